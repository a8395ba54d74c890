"""Videos that PyAV encodes here: every frame read alone must equal the one that decoding from the start gives."""

from __future__ import annotations

import io
import random
import sys
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from selfsight.data.formats import video
from selfsight.data.formats.format import Header, Unreadable

av = pytest.importorskip("av")

WIDTH, HEIGHT, COUNT, FPS = 96, 64, 60, 25


def drawn(i: int) -> np.ndarray:
    """[H, W, 3]: moving lines, and a brightness that tells the frames apart."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, :, 0] = 4 * i
    pixels[i % HEIGHT, :, 1] = 255
    pixels[:, 3 * i % WIDTH, 2] = 200
    return pixels


def encoded(
    container: str, codec: str, milliseconds: list[int] | None = None, rotation: int = 0, **options: str
) -> bytes:
    """COUNT frames with B-frames where the codec has them, at FPS or at the given times."""
    with TemporaryDirectory() as folder:  # for `faststart`, which puts the index first, FFmpeg opens the file again
        path = Path(folder) / "video"
        _encode(path, container, codec, milliseconds, rotation, options)
        return path.read_bytes()


def _encode(
    path: Path, container: str, codec: str, milliseconds: list[int] | None, rotation: int, options: dict[str, str]
) -> None:
    first = {"movflags": "faststart"} if container == "mp4" else {}
    with av.open(str(path), "w", format=container, options=first) as file:
        stream = file.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.gop_size = WIDTH, HEIGHT, 12
        stream.pix_fmt = options.get("pix_fmt", "yuv420p")
        if codec in ("libx264", "mpeg4", "mpeg2video"):
            stream.codec_context.max_b_frames = 3
        base = Fraction(1, 1000) if milliseconds else Fraction(1, FPS)
        stream.codec_context.time_base = base
        stream.options = {"threads": "1"} | {name: value for name, value in options.items() if name != "pix_fmt"}
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(COUNT):
            frame = av.VideoFrame.from_ndarray(drawn(i))
            frame.pts, frame.time_base = milliseconds[i] if milliseconds else i, base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def decoded(data: bytes, pixels: str = "rgb24") -> list[np.ndarray]:
    """All frames, from the start on."""
    with av.open(io.BytesIO(data)) as file:
        return [frame.to_ndarray(format=pixels) for frame in file.decode(video=0)]


def headers_of(data: bytes, rate: float | None) -> list[Header]:
    assert video.identify(data[:256])
    return video.headers(io.BytesIO(data), rate)


def read(data: bytes, frames: list[int], rate: float | None) -> list[Any]:
    return list(video.read(io.BytesIO(data), frames, rate, None))


def reason_of(data: bytes) -> str:
    with pytest.raises(Unreadable) as raised:
        video.headers(io.BytesIO(data), 1.0)
    (got,) = read(data, [0], 1.0)
    assert str(got) == str(raised.value)
    return str(got)


KINDS = [
    ("MP4", "mp4", "libx264", {}), ("MP4", "mp4", "libx264", {"x264-params": "open-gop=1:keyint=10"}),
    ("MP4", "mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=20"}), ("MKV", "matroska", "libx264", {}),
    ("WEBM", "webm", "libvpx", {}), ("AVI", "avi", "mpeg4", {}), ("AVI", "avi", "libx264", {}),
    ("AVI", "avi", "mjpeg", {"pix_fmt": "yuvj420p"}), ("MPEGTS", "mpegts", "libx264", {}),
    ("MPEG", "mpeg", "mpeg2video", {}),
]  # fmt: skip


@pytest.mark.parametrize("name, container, codec, options", KINDS)
def test_a_frame_alone_is_the_frame_among_others(name: str, container: str, codec: str, options: dict[str, str]):
    data = encoded(container, codec, **options)
    wanted = decoded(data)
    assert headers_of(data, None) == [Header(name, WIDTH, HEIGHT, "RGB", 8, i) for i in range(COUNT)]
    together = read(data, list(range(COUNT)), None)
    assert all((a == b).all() for a, b in zip(together, wanted, strict=True))
    for i in (0, 1, 11, 12, 13, 29, 47, 58, 59):
        assert (read(data, [i], None)[0] == wanted[i]).all()
    # 2.4 seconds: at 10 a second every other or third frame is the last that was shown
    assert len(headers_of(data, 10.0)) == 24
    shown = [k * FPS // 10 for k in range(24)]
    for asked in ([0], [1], [9, 17], [5, 6, 23], list(range(24))):
        for k, got in zip(asked, read(data, asked, 10.0), strict=True):
            assert (got == wanted[shown[k]]).all()


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_variable_frame_rate(container: str):
    random.seed(1)
    times = [0]
    while len(times) < COUNT:
        times.append(times[-1] + random.choice([20, 40, 40, 60, 360]))
    data = encoded(container, "libx264", times)
    wanted = decoded(data)
    assert len(headers_of(data, None)) == COUNT
    for rate in (1.0, 12.0, 60.0):
        # one frame for each 1 / rate seconds, up to the time at which the last one is shown and a little more
        count = len(headers_of(data, rate))
        assert 0 <= count - 1 - times[-1] * rate // 1000 <= max(1, rate // FPS + 1)
        shown = [max(i for i, time in enumerate(times) if time * rate <= 1000 * k) for k in range(count)]
        for asked in ([count - 1], [count // 3], [1, count // 2], list(range(count))):
            for k, got in zip(asked, read(data, asked, rate), strict=True):
                assert (got == wanted[shown[k]]).all()


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation(rotation: int):
    data = encoded("mp4", "libx264", rotation=rotation)
    wanted = np.rot90(decoded(data)[30], rotation // 90)
    header = headers_of(data, None)[30]
    assert (header.height, header.width) == wanted.shape[:2]
    assert (read(data, [30], None)[0] == wanted).all()


def test_grey_stays_grey():
    data = encoded("matroska", "ffv1", pix_fmt="gray")
    assert headers_of(data, 1.0)[0] == Header("MKV", WIDTH, HEIGHT, "L", 8, 0)
    got = read(data, [7], None)[0]
    assert got.shape == (HEIGHT, WIDTH, 1) and (got[:, :, 0] == decoded(data, "gray")[7]).all()


@pytest.mark.parametrize("container, codec", [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4")])
def test_of_a_truncated_video_the_frames_before_the_end_are_read(container: str, codec: str):
    data = encoded(container, codec)
    wanted = decoded(data)
    for kept in range(len(data) // 2, len(data), 211):
        cut = data[:kept]
        got = read(cut, list(range(COUNT)), float(FPS))
        good = [k for k, pixels in enumerate(got) if not isinstance(pixels, Unreadable)]
        assert good == list(range(len(good))) and len(good) < COUNT
        assert all((got[k] == wanted[k]).all() for k in good)
        assert str(got[-1]) == "truncated video: frame 59 cannot be decoded"
        assert str(read(cut, [59], float(FPS))[0]) == str(got[-1])
    cut = data[: len(data) * 7 // 8]
    assert 40 < len(headers_of(cut, float(FPS))) <= COUNT
    assert sum(not isinstance(pixels, Unreadable) for pixels in read(cut, list(range(COUNT)), float(FPS))) > 20
    assert reason_of(data[:200]) in ("damaged or truncated video", "a video without pictures, or cut off before them")
    assert reason_of(b"") == "empty file"


def test_a_damaged_place_gives_reasons_and_no_wrong_frames():
    data = bytearray(encoded("mp4", "libx264"))
    wanted = decoded(bytes(data))
    at = data.index(b"mdat") + 4 + (len(data) - data.index(b"mdat")) // 2
    data[at : at + 40] = b"\xff" * 40
    got = read(bytes(data), list(range(COUNT)), float(FPS))
    bad = [k for k, pixels in enumerate(got) if isinstance(pixels, Unreadable)]
    assert bad and len(bad) < 40
    first = min(bad)
    assert all((got[k] == wanted[k]).all() for k in range(first - 4))  # up to the reach of B-frames
    for k in (first, bad[-1]):
        assert isinstance(read(bytes(data), [k], float(FPS))[0], Unreadable)


def test_sound_without_pictures():
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    assert reason_of(out.getvalue()) == "a video without pictures, or cut off before them"


def test_the_number_of_frames_is_limited():
    with pytest.raises(Unreadable, match=r"2,400,000 frames is above the limit of 1,000,000"):
        video.headers(io.BytesIO(encoded("mp4", "libx264")), 1e6)


def test_what_is_something_else_is_not_taken():
    for head in (
        b"the free encyclopedia",
        b"\0\0\0\x18ftypheic",
        b"\0\0\0\x1cftypavif",
        b"RIFF\0\0\0\0WAVE",
        b"",
        b"G",
    ):
        assert not video.identify(head.ljust(256))
    assert video.identify(b"\0\0\0\x08wide\0\0\0\0mdat")


def test_without_pyav_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    data = encoded("mp4", "libx264")
    monkeypatch.setitem(sys.modules, "av", None)
    assert reason_of(data) == "video needs PyAV: pip install 'selfsight[video]'"
