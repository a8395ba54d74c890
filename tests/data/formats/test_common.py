"""JPEG, PNG, WebP, BMP and GIF, compared with Pillow used the plain way and with files put together by hand."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from helpers import picture
from PIL import Image, ImageOps

from selfsight.data.formats import common
from selfsight.data.formats.format import Header, Unreadable

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, name: str, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, name, **how)
    return out.getvalue()


def header_of(data: bytes) -> Header:
    assert common.identify(data[:256])
    (header,) = common.headers(io.BytesIO(data), None)
    return header


def pixels_of(data: bytes, frame: int = 0, at_least: int | None = None) -> np.ndarray:
    (got,) = common.read(io.BytesIO(data), [frame], None, at_least)
    if isinstance(got, Unreadable):
        raise got
    return got


def reason_of(data: bytes) -> str:
    """Why a file is set aside; reading it must give the same reason."""
    with pytest.raises(Unreadable) as raised:
        common.headers(io.BytesIO(data), None)
    (got,) = common.read(io.BytesIO(data), [0], None, None)
    assert str(got) == str(raised.value)
    return str(got)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels: np.ndarray, colour_type: int, *extra: bytes, bits: int = 16) -> bytes:
    """A PNG of [H, W, C] made by the specification, without any filter; `extra` chunks stand before the pixels."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    body = head + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


IMAGES = {
    "L": Image.fromarray(picture(RNG, 33, 47, 1)),
    "RGB": Image.fromarray(picture(RNG, 33, 47)),
    "RGBA": Image.fromarray(picture(RNG, 33, 47, 4)),
    "LA": Image.fromarray(picture(RNG, 33, 47, 2)),
    "CMYK": Image.fromarray(picture(RNG, 33, 47)).convert("CMYK"),
}
KINDS = [
    ("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "RGB"), ("PNG", "RGBA"),
    ("WEBP", "RGB"), ("WEBP", "RGBA"), ("BMP", "L"), ("BMP", "RGB"),
]  # fmt: skip


@pytest.mark.parametrize("name, mode", KINDS)
def test_every_mode_keeps_its_channels(name: str, mode: str):
    data = encoded(IMAGES[mode], name)
    assert header_of(data) == Header(name, 47, 33, mode, 8)
    wanted = np.asarray(Image.open(io.BytesIO(data)))
    assert Image.open(io.BytesIO(data)).mode == mode
    assert (pixels_of(data) == wanted.reshape(33, 47, -1)).all()


def test_jpeg_of_inks_is_not_inverted():
    data = encoded(Image.new("CMYK", (16, 16), (200, 10, 0, 30)), "JPEG", quality=95)
    assert np.abs(pixels_of(data).astype(int) - [200, 10, 0, 30]).max() <= 3


def test_one_bit_and_palettes():
    grey = IMAGES["L"]
    bits = grey.convert("1")
    for name in ("PNG", "BMP"):
        data = encoded(bits, name)
        assert header_of(data).mode == "L"
        assert (pixels_of(data)[:, :, 0] == np.asarray(bits) * 255).all()
        colours = IMAGES["RGB"].quantize(16)
        data = encoded(colours, name)
        assert header_of(data).mode == "RGB"
        assert (pixels_of(data) == np.asarray(colours.convert("RGB"))).all()
    greys = Image.fromarray(np.asarray(grey) // 16).convert("L")  # 16 values, brightest first in the palette
    greys = Image.frombytes("P", greys.size, greys.tobytes())
    greys.putpalette([v for i in range(16) for v in [255 - 17 * i] * 3])
    data = encoded(greys, "PNG")
    assert header_of(data).mode == "L"
    assert (pixels_of(data)[:, :, 0] == 255 - 17 * (np.asarray(grey) // 16)).all()


def test_a_transparent_palette_has_an_alpha_channel():
    colours = IMAGES["RGB"].quantize(8)
    data = encoded(colours, "PNG", transparency=bytes([0, 40, 80, 120]))
    assert header_of(data).mode == "RGBA"
    got = pixels_of(data)
    index = np.asarray(colours)
    assert (got[:, :, :3] == np.asarray(colours.convert("RGB"))).all()
    assert (got[:, :, 3] == np.array([0, 40, 80, 120, 255, 255, 255, 255])[index]).all()


@pytest.mark.parametrize("colour_type, mode, channels", [(0, "L", 1), (2, "RGB", 3), (4, "LA", 2), (6, "RGBA", 4)])
def test_sixteen_bits_stay_sixteen_bits(colour_type: int, mode: str, channels: int):
    deep = RNG.integers(0, 65536, (19, 23, channels)).astype(np.uint16)
    key = chunk(b"tRNS", b"\0\1" * channels) if colour_type < 4 else b""  # a transparent colour is no channel
    data = png(deep, colour_type, key, chunk(b"eXIf", exif(6).tobytes()[6:]))
    assert header_of(data) == Header("PNG", 19, 23, mode, 16, exif_orientation=6)
    got = pixels_of(data)
    assert got.dtype == np.uint16 and (got == np.rot90(deep, -1)).all()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(name: str, orientation: int):
    data = encoded(IMAGES["RGB"], name, exif=exif(orientation))
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    header = header_of(data)
    assert (header.height, header.width, header.exif_orientation) == (*wanted.shape[:2], orientation)
    assert (pixels_of(data) == wanted).all()


def test_orientation_behind_the_pixels_of_a_png_and_broken_exif():
    pixels = picture(RNG, 8, 12)
    data = png(pixels, 2, bits=8)
    late = data[:-12] + chunk(b"eXIf", exif(8).tobytes()[6:]) + data[-12:]
    assert header_of(late).height == 12 and (pixels_of(late) == np.rot90(pixels, 1)).all()
    broken = png(pixels, 2, chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"), bits=8)
    assert (pixels_of(broken) == pixels).all()


@pytest.mark.parametrize("at_least, shape", [(None, (200, 320)), (101, (200, 320)), (100, (100, 160)), (20, (25, 40))])
def test_jpeg_at_a_reduced_scale_stays_upright_and_large_enough(at_least: int | None, shape: tuple[int, int]):
    image = Image.fromarray(picture(RNG, 320, 200))
    data = encoded(image, "JPEG", exif=exif(6), quality=95)
    got = pixels_of(data, at_least=at_least)
    assert got.shape[:2] == shape
    plain = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize(shape[::-1], Image.Resampling.BOX)
    assert np.abs(got.astype(int) - np.asarray(plain)).mean() < 3
    assert header_of(data).height == 200  # the header is of the full size


def animation(name: str, **how: Any) -> tuple[bytes, list[Image.Image]]:
    """Four frames, each with a square of its own colour that moves, and the images that were saved."""
    frames = []
    for i in range(4):
        image = Image.new("RGB", (40, 30), (10, 60, 20))
        image.paste((250, 40 * i, 5), (8 * i, 4 * i, 8 * i + 8, 4 * i + 8))
        frames.append(image)
    return encoded(frames[0], name, save_all=True, append_images=frames[1:], duration=50, **how), frames


@pytest.mark.parametrize("name, how", [("GIF", {}), ("GIF", {"disposal": 2}), ("WEBP", {"lossless": True})])
def test_each_frame_of_an_animation_is_an_image(name: str, how: dict[str, Any]):
    data, frames = animation(name, **how)
    assert common.headers(io.BytesIO(data), None) == [Header(name, 40, 30, "RGB", 8, i) for i in range(4)]
    for asked in ([0], [3], [1, 2], [0, 1, 2, 3]):
        got = list(common.read(io.BytesIO(data), asked, None, None))
        for i, pixels in zip(asked, got, strict=True):
            assert (pixels == np.asarray(frames[i])).all()
    (beyond,) = common.read(io.BytesIO(data), [4], None, None)
    assert str(beyond) == "the file has no frame 4"


def test_a_gif_of_greys_and_one_of_colours():
    grey, colours = IMAGES["L"], IMAGES["RGB"].quantize(32)
    data = encoded(grey, "GIF")
    assert header_of(data) == Header("GIF", 47, 33, "L", 8)
    assert (pixels_of(data)[:, :, 0] == np.asarray(grey)).all()
    data = encoded(colours, "GIF")
    assert header_of(data).mode == "RGB"
    assert (pixels_of(data) == np.asarray(colours.convert("RGB"))).all()


def test_of_an_animated_png_the_default_image_is_taken():
    data, frames = animation("PNG")
    assert header_of(data).frame is None
    assert (pixels_of(data) == np.asarray(frames[0])).all()


def jpegs() -> dict[str, bytes]:
    thumbnail = encoded(Image.new("L", (16, 16), 9), "JPEG")
    tags = exif(1)
    tags[0x010F] = thumbnail  # a whole JPEG, end marker and all, within the EXIF
    return {
        "plain": encoded(IMAGES["RGB"], "JPEG"),
        "progressive": encoded(IMAGES["RGB"], "JPEG", progressive=True),
        "thumbnail": encoded(IMAGES["RGB"], "JPEG", exif=tags),
        "restarts": encoded(IMAGES["RGB"], "JPEG", restart_marker_blocks=1),
    }


@pytest.mark.parametrize("name", jpegs())
def test_the_end_of_a_jpeg(name: str):
    data = jpegs()[name]
    appended = data + b"a film \xff\xda behind the picture"
    assert (pixels_of(appended) == np.asarray(Image.open(io.BytesIO(data)))).all()
    for kept in (len(data) // 2, 30):
        assert reason_of(data[:kept]) == "truncated JPEG: no end marker"


@pytest.mark.parametrize("name", jpegs())
def test_a_jpeg_that_lacks_no_more_than_its_end_is_used(name: str):
    data = jpegs()[name]
    whole = np.asarray(Image.open(io.BytesIO(data)))
    for kept in (len(data) - 1, len(data) - 2):
        assert header_of(data[:kept]).note == "JPEG without its end marker; its pixels are all there"
        assert (pixels_of(data[:kept]) == whole).all()
    for kept in range(len(data) - 3, len(data) - 40, -1):  # into the last block of pixels and, of restarts, before it
        assert reason_of(data[:kept]) == "truncated JPEG: no end marker"
    assert header_of(data).note == ""


@pytest.mark.parametrize("how", [{}, {"restart_marker_blocks": 1}, {"progressive": True, "restart_marker_blocks": 2}])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_of_a_plain_jpeg_no_pixel_is_made_up(value: int, how: dict[str, Any]):
    # What is missing of it may be what a decoder takes for granted: then it may be used, but never with other pixels.
    data = encoded(Image.new("RGB", (40, 40), (value, value, value)), "JPEG", **how)
    for kept in range(len(data) // 2, len(data)):
        (got,) = common.read(io.BytesIO(data[:kept]), [0], None, None)
        assert isinstance(got, Unreadable) or (got == value).all()


def test_truncated_files_are_found_in_the_header():
    reasons = {
        "PNG": "truncated PNG: no end chunk",
        "GIF": "truncated GIF: no end marker",
        "WEBP": "truncated WebP: the file is shorter than its header says",
        "BMP": "truncated BMP: the file is shorter than its header says",
    }
    for name, reason in reasons.items():
        data = encoded(IMAGES["RGB"], name)
        for kept in (len(data) - 1, len(data) // 2):
            assert reason_of(data[:kept]) == reason
    data, _ = animation("GIF")
    assert reason_of(data[:-30]) == reasons["GIF"]


def test_the_pixel_limit_is_checked_before_any_pixel():
    huge = png(np.zeros((1, 1, 1)), 0, bits=8)
    huge = huge.replace(huge[8:33], chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 10001, 8, 0, 0, 0, 0)))
    assert reason_of(huge) == "20000 x 10001 is above the limit of 200,000,000 pixels"
    gif = encoded(IMAGES["L"], "GIF")
    gif = gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:]
    assert reason_of(gif) == "65535 x 65535 is above the limit of 200,000,000 pixels"
    jpeg = encoded(IMAGES["L"], "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    assert reason_of(jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :]).endswith("limit of 200,000,000 pixels")
    frame = gif.index(b",\0\0\0\0") + 1  # a frame far outside of a small canvas would enlarge it
    gif = gif[:6] + struct.pack("<HH", 8, 8) + gif[10:frame] + b"\xff\xff\xff\xff" + gif[frame + 4 :]
    assert "above the limit" in reason_of(gif)


def packed_bmp(width: int, height: int, packed: bytes) -> bytes:
    """A BMP of 8 bits with a palette of greys and run lengths."""
    palette = b"".join(bytes([i, i, i, 0]) for i in range(255, -1, -1))
    start = 14 + 40 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(packed), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(packed), 0, 0, start) + head + palette + packed


def test_packed_bmp():
    rows = [(16, 3), (16, 9), (16, 200)]
    data = packed_bmp(16, 3, b"".join(bytes([*row, 0, 0]) for row in rows) + b"\0\1")
    assert (pixels_of(data)[:, :, 0] == 255 - np.array([[200], [9], [3]])).all()  # from the bottom up
    assert reason_of(packed_bmp(16000, 12000, b"\x10\x03\0\1")) == "truncated BMP: too few bytes for its pixels"


def test_small_files_that_would_take_hours():
    data = encoded(Image.new("L", (64, 64)), "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    assert reason_of(data[:at] + data[at:-2] * 600 + data[-2:]) == "JPEG of more than 500 scans"
    data = encoded(Image.new("P", (3000, 3000)), "GIF")
    at = data.index(b",\0\0\0\0")
    reason = "an animation of 5,000 frames of 3000 x 3000 is above the limit"
    assert reason_of(data[:at] + data[at:-1] * 5000 + b";") == reason


def test_an_animation_that_draws_too_many_pixels_is_not_begun():
    # 10 frames of this canvas, just within the limit, take up to 41 s of a core; the bytes are few, 700 or so.
    frames = [Image.new("RGB", (16, 16), (i, 3, 7)) for i in range(12)]
    data = bytearray(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    data[24:30] = (14142 - 1).to_bytes(3, "little") * 2  # the canvas
    assert reason_of(bytes(data)) == "an animation of 12 frames of 14142 x 14142 is above the limit"


def test_what_is_something_else_is_not_taken():
    tiff = encoded(IMAGES["L"], "TIFF")
    for data in (tiff, b"BM, said the text, and ended.", b"RIFF\0\0\0\0AVI LIST", b"", b"GIF88a" + bytes(20)):
        assert not common.identify(data[:256])
    assert reason_of(b"") == "empty file"
    assert reason_of(tiff) == "not a JPEG, PNG, WebP, BMP or GIF"


def test_pixels_that_cannot_be_decoded_give_a_reason(capfd: pytest.CaptureFixture[str]):
    data = bytearray(png(picture(RNG, 64, 64), 2, bits=8))
    at = data.index(b"IDAT") + 200
    data[at : at + 500] = bytes(500)
    assert header_of(bytes(data)).width == 64  # the header is well
    with pytest.raises(Unreadable, match="cannot be decoded"):
        pixels_of(bytes(data))
    deep = bytearray(png(RNG.integers(0, 65536, (64, 64, 1)), 0))
    deep[at : at + 500] = bytes(500)
    with pytest.raises(Unreadable, match="cannot be decoded"):
        pixels_of(bytes(deep))
    odd = bytearray(png(RNG.integers(0, 65536, (8, 8, 1)), 0, chunk(b"tRNS", b"\0" * 7)))
    odd[28] = 7  # a way of interlacing that there is not
    odd[29:33] = struct.pack(">I", zlib.crc32(odd[12:29]))
    with pytest.raises(Unreadable, match="damaged PNG header"):
        pixels_of(bytes(odd))
    assert capfd.readouterr() == ("", "")  # libpng prints what it thinks of a file
