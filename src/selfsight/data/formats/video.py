"""Videos, by PyAV (the extra `video`): frames at a chosen rate, counted from zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from math import ceil, floor
from typing import Any, BinaryIO

import numpy as np

from selfsight.data.formats.common import check_size
from selfsight.data.formats.format import MAX_FRAMES, MAX_PIXELS, Header, Unreadable

SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"})

# The demuxer of each container, by our name of the format. None is guessed: some that FFmpeg would guess are
# playlists that name other files.
_DEMUXERS = {
    "MP4": "mov", "MOV": "mov", "MKV": "matroska", "WEBM": "matroska", "AVI": "avi", "MPEGTS": "mpegts",
    "MPEG": "mpeg", "M1V": "mpegvideo",
}  # fmt: skip
_BOXES = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # how a QuickTime file without `ftyp` begins
_STILL_IMAGES = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"avis", b"crx ")  # kinds of `ftyp`
_ESTIMATED = ("MPEGTS", "MPEG", "M1V")  # FFmpeg estimates their duration from the bytes
_USUAL_RATE = Fraction(25)  # where a file does not say


def identify(head: bytes) -> bool:
    """Whether a file begins as one of the containers does."""
    return _format_of(head) is not None


def headers(file: BinaryIO, rate: float | None) -> list[Header]:
    """One image for each frame taken. One frame is decoded, for the size as it is shown."""
    try:
        video = _open(file, rate)
        count = video.count()
        if count > MAX_FRAMES:
            raise Unreadable(f"a video of {count:,} frames is above the limit of {MAX_FRAMES:,}")
        return [Header(video.format, video.width, video.height, video.mode, 8, frame) for frame in range(count)]
    except Exception as error:
        raise _reason(error) from None


def read(
    file: BinaryIO, frames: Sequence[int], rate: float | None, at_least: int | None
) -> Iterator[np.ndarray | Unreadable]:
    """Pixels [H, W, C]. Decodes once, from the key frame before the first asked frame to the last.

    Frame k is the one shown at k / `rate` seconds after the first, or the k-th one if `rate` is None.
    """
    given = 0
    try:
        for picture in _pictures(_open(file, rate), frames):
            yield picture
            given += 1
    except Exception as error:
        yield from [_reason(error)] * (len(frames) - given)


def _import_av() -> Any:
    """The module of PyAV. Raises `Unreadable` where it is not installed."""
    try:
        import av
    except ImportError:
        raise Unreadable("video needs PyAV: pip install 'selfsight[video]'") from None
    return av


def _reason(error: Exception) -> Unreadable:
    if isinstance(error, Unreadable):
        return error
    # FFmpeg's own error of that name is also given for absurd sizes in damaged files.
    if isinstance(error, MemoryError) and not isinstance(error, _import_av().FFmpegError):
        raise error
    return Unreadable("damaged or truncated video")


def _format_of(head: bytes) -> str | None:
    size, kind = int.from_bytes(head[:4], "big"), head[4:8]
    if kind == b"ftyp":
        return None if head[8:12] in _STILL_IMAGES else "MOV" if head[8:12] == b"qt  " else "MP4"
    if kind in _BOXES and (size < 2**24 or kind == b"mdat"):
        return "MOV"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "WEBM" if b"webm" in head else "MKV" if b"matroska" in head else None
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "AVI"
    if head.startswith(b"\0\0\1\xba"):
        return "MPEG"
    if head.startswith(b"\0\0\1\xb3"):
        return "M1V"
    for first, step in ((0, 188), (4, 192)):
        if len(head) >= first + step + 4 and all(
            head[at] == 0x47 and head[at + 3] & 0x30 for at in (first, first + step)
        ):
            return "MPEGTS"
    return None


@dataclass
class _Video:
    """An open video and its first picture, from which times are counted.

    times: of all frames in the order in which they are shown, in `base` seconds from the first; only if no rate
    was given. timed: whether the frames carry times that can be relied on; if not, they are `tick` apart.
    seekable: whether these are the same after a seek. cut: whether the file is known to end early.
    """

    file: BinaryIO
    format: str
    rate: Fraction | None
    stream: Any
    base: Fraction
    start: int
    tick: Fraction
    timed: bool
    seekable: bool
    cut: bool
    width: int
    height: int
    mode: str
    turns: int
    times: list[int] | None = None

    def count(self) -> int:
        """How many frames are taken."""
        if self.rate is None:
            return len(self.shown_times())
        return max(1, ceil(self.seconds() * self.rate))

    def seconds(self) -> Fraction:
        """How long the video is."""
        if self.stream.duration and self.format not in _ESTIMATED:
            return Fraction(self.stream.duration) * self.base
        stated = _clock_time(self.stream.metadata.get("DURATION", ""))
        if stated is not None:
            return stated
        if not self.timed:
            return len(self.shown_times()) * self.tick
        ends = [(p.pts + (p.duration or 0), p.duration) for p in _packets(self.file, self.format) if p.pts is not None]
        end, duration = max(ends, default=(self.start, 1))
        return (end - self.start) * self.base + (0 if duration else self.tick)

    def shown_times(self) -> list[int]:
        """`times`, from the packets of the whole file."""
        if self.times is None:
            packets = [p.pts for p in _packets(self.file, self.format) if not p.is_discard]
            known = [pts - self.start for pts in packets if pts is not None and pts >= self.start]
            self.times = sorted(known) if self.timed else list(range(len(packets)))
        return self.times

    def target(self, frame: int) -> Fraction:
        """When a frame is to be shown: in `base` from the first; in frames from the first if not `timed`."""
        if self.rate is None:
            return Fraction(self.shown_times()[frame])
        return Fraction(frame) / self.rate / (self.base if self.timed else self.tick)

    def pixels(self, frame: Any) -> np.ndarray:
        """[H, W, C], upright."""
        grey = self.mode == "L"
        pixels = frame.to_ndarray(format="gray" if grey else "rgb24", threads=1)
        pixels = np.rot90(pixels[:, :, None] if grey else pixels, self.turns)
        if pixels.shape[:2] != (self.height, self.width):
            raise Unreadable("the size of the picture changes within the video")
        return np.ascontiguousarray(pixels)


def _container(file: BinaryIO, format: str) -> tuple[Any, Any]:
    """An open container and its first stream of moving pictures."""
    av = _import_av()
    file.seek(0)
    # The limit is for the decoders, which may meet a larger picture later; nothing beside the file is opened.
    limit = {"max_pixels": str(MAX_PIXELS), "threads": "1"}
    container = av.open(
        file, "r", format=_DEMUXERS[format], options=limit, metadata_errors="replace", io_open=_refuse,
    )  # fmt: skip
    covers = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not streams:
        raise Unreadable("a video without pictures, or cut off before them")
    stream = streams[0]
    if stream.codec_context is None:
        raise Unreadable("the video codec is not supported")
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return container, stream


def _refuse(*_: Any) -> None:
    raise Unreadable("the video refers to another file")


def _open(file: BinaryIO, rate: float | None) -> _Video:
    file.seek(0)
    head = file.read(256)
    if not head:
        raise Unreadable("empty file")
    format = _format_of(head)
    if format is None:
        raise Unreadable("not a video of a known container")
    container, stream = _container(file, format)
    first = next((picture for _, picture in _decoded(container.demux(stream)) if picture is not None), None)
    if first is None:
        raise Unreadable("damaged or truncated video: no picture can be decoded")
    check_size(first.width, first.height)
    # AVI says when a packet is decoded; where pictures are reordered, not when it is shown.
    timed = first.pts is not None and not (format == "AVI" and stream.codec_context.has_b_frames)
    turns = first.rotation // 90 % 4 if first.rotation % 90 == 0 else 0
    width, height = (first.height, first.width) if turns % 2 else (first.width, first.height)
    tick = 1 / (stream.average_rate or stream.guessed_rate or _USUAL_RATE)
    return _Video(
        file=file, format=format, rate=None if rate is None else Fraction(rate).limit_denominator(10**6),
        stream=stream, base=stream.time_base or Fraction(1, 1000), start=first.pts or 0, tick=tick, timed=timed,
        seekable=timed and format not in ("MPEG", "M1V"), cut=_is_cut(file, format, stream),
        width=width, height=height, mode="L" if first.format.name.startswith("gray") else "RGB", turns=turns,
    )  # fmt: skip


def _is_cut(file: BinaryIO, format: str, stream: Any) -> bool:
    """Whether the file is shorter than its structure says; a stream for broadcast says it only by half a packet."""
    size = file.seek(0, 2)
    if format in ("MP4", "MOV"):
        return any(entry.pos + entry.size > size for entry in stream.index_entries)
    file.seek(0)
    head = file.read(256)
    if format == "AVI":
        return int.from_bytes(head[4:8], "little") + 8 > size
    if format == "MPEGTS":
        return size % (188 if head[:1] == b"\x47" else 192) > 0
    if format not in ("MKV", "WEBM"):
        return False
    length, start = _ebml_size(head, 4)
    known, start = _ebml_size(head, start + length + 4)
    return start + known > size


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """A size of Matroska at `at`, 0 if unknown, and where it ends. Its first set bit tells how many bytes it has."""
    width = 9 - data[at].bit_length() if at < len(data) and data[at] else 8
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(data[at : at + width], "big") & unknown
    return (0 if size == unknown else size), at + width


def _packets(file: BinaryIO, format: str) -> Iterator[Any]:
    """The packets of the pictures, in the order of the file."""
    container, stream = _container(file, format)
    for packet in container.demux(stream):
        if packet.size:
            yield packet


def _decoded(packets: Iterator[Any], cut: bool = False) -> Iterator[tuple[bool, Any]]:
    """(whether all is well since the last key frame, picture) in the order in which they are shown.

    The picture is None where a packet could not be decoded. cut: whether the file ends early; then the last
    packet may be a part of one, and pictures that belong before the last ones may be missing.
    """
    av, well = _import_av(), True
    for packet, following in pairwise(chain(packets, [None])):
        pictures, cut_here = [], cut and not (following and following.size)
        try:
            if packet.size and packet.is_corrupt:
                raise ValueError
            pictures = packet.decode()
        except (av.FFmpegError, ValueError):
            well = False
            yield well, None
        for picture in pictures:
            well = (well or picture.key_frame) and not picture.is_corrupt
            yield well and not cut_here, picture


def _pictures(video: _Video, frames: Sequence[int]) -> Iterator[np.ndarray | Unreadable]:
    """The asked frames, in order."""
    there = [frame for frame in frames if video.rate is not None or frame < len(video.shown_times())]
    wanted, done = [(frame, video.target(frame)) for frame in there], 0
    while done < len(wanted):
        packets, not_before = _packets_from(video, wanted[done][1])
        for picture in _chosen(video, wanted[done:], packets, not_before):
            if isinstance(picture, Unreadable) and not_before is not None:
                break
            yield picture
            done += 1
        # Some videos have no true key frames, and a damaged place must not depend on where the decoding began.
        video.seekable = False
    yield from (Unreadable(f"truncated video: frame {frame} cannot be decoded") for frame in frames[len(there) :])


def _chosen(
    video: _Video, wanted: list[tuple[int, Fraction]], packets: Iterator[Any], not_before: int | None
) -> Iterator[np.ndarray | Unreadable]:
    """Of each wanted (frame, time) the last picture that is not shown later; `not_before`: see `_packets_from`."""
    tick = video.tick / video.base if video.timed else Fraction(1)
    shown, well, done, time = None, True, 0, -tick
    for fine, picture in _decoded(packets, video.cut):
        if picture is None:
            well = False
            continue
        time = Fraction(picture.pts - video.start) if video.timed and picture.pts is not None else time + tick
        if not_before is not None and time < not_before:
            continue  # a picture shown before the key frame needs pictures that were not decoded
        while done < len(wanted) and time > wanted[done][1]:
            yield _picture(video, shown or picture, well and (shown is not None or fine), wanted[done][0])
            done += 1
        if done == len(wanted):
            return
        shown, well = picture, fine
    # The last picture stays for as long as pictures usually do.
    stays = max(tick, Fraction(shown.duration or 0)) if shown and video.timed else tick
    for frame, target in wanted[done:]:
        yield _picture(video, shown, well and target < time + stays, frame)


def _picture(video: _Video, picture: Any, well: bool, frame: int) -> np.ndarray | Unreadable:
    if picture is None or not well:
        return Unreadable(f"truncated video: frame {frame} cannot be decoded")
    try:
        return video.pixels(picture)
    except Unreadable as reason:
        return reason


def _packets_from(video: _Video, target: Fraction) -> tuple[Iterator[Any], int | None]:
    """The packets from a key frame that is not shown later than `target`, and when that is shown.

    From the first on (and None) where there is no such place to be found.
    """
    av = _import_av()
    back = Fraction(0)
    while video.seekable and target - back > 0:
        container, stream = _container(video.file, video.format)
        try:
            container.seek(video.start + floor(target - back), stream=stream)
            packets = container.demux(stream)
            found = _key_frame(packets, video.start + target)
        except av.FFmpegError:
            break
        if found is not None:
            return chain([found], packets), found.pts - video.start
        back = 2 * back or 1 / video.base  # a second earlier, then two, ...
    container, stream = _container(video.file, video.format)
    return container.demux(stream), None


def _key_frame(packets: Iterator[Any], latest: Fraction) -> Any:
    """The next key frame, if it is not shown later than `latest`."""
    for packet in packets:
        if packet.pts is None or packet.pts > latest:
            return None
        if packet.is_keyframe and not packet.is_corrupt:
            return packet
    return None


def _clock_time(text: str) -> Fraction | None:
    """Seconds of "00:00:02.400000000", as Matroska states a duration."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except ValueError:
        return None
