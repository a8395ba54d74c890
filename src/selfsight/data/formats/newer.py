"""AVIF (in 8 bits) and JPEG 2000 by Pillow; JPEG 2000 of more bits and JPEG XL by imagecodecs. HEIC is named, not read:
no permissively licensed package decodes it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from selfsight.data.formats.common import check_size
from selfsight.data.formats.format import (
    MAX_FRAMES,
    Header,
    Unreadable,
    check_frame,
    each_frame,
    hostile,
)
from selfsight.data.orientation import known, turns, upright

SUFFIXES = frozenset({".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxl", ".heic", ".heif", ".hif"})

_MAX_BYTES = 2**31
_JP2, _J2K = b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
_JXL, _JXL_STREAM = b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels; JPEG 2000 and JPEG XL seldom hold other four
_RATIOS = {1: (1, 1), 2: (6, 5), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}  # of JPEG XL, width to height


def identify(head: bytes) -> bool:
    """Whether a file begins as one of these formats does."""
    return _format_of(head) is not None


def headers(file: BinaryIO, rate: float | None) -> list[Header]:
    """One image, or one for each frame of an AVIF sequence. A JPEG XL is decoded, as its header is part of its code."""
    opened = _open(file)
    width, height = opened.size
    if turns(opened.orientation)[0]:
        width, height = height, width
    frames = [frame if opened.frames > 1 else None for frame in range(opened.frames)]
    return [
        Header(opened.format, width, height, opened.mode, opened.depth, frame, opened.orientation) for frame in frames
    ]


def read(
    file: BinaryIO, frames: Sequence[int], rate: float | None, at_least: int | None
) -> Iterator[np.ndarray | Unreadable]:
    """Pixels [H, W, C], upright."""
    return each_frame(lambda: _open(file), _Opened.pixels, frames)


@dataclass
class _Opened:
    """A file whose header was read. size: (width, height) as stored. decoded: [H, W] or [H, W, C] of a frame."""

    format: str
    size: tuple[int, int]
    mode: str
    depth: int
    decoded: Callable[[int], np.ndarray]
    frames: int = 1
    orientation: int = 1

    @hostile("cannot be decoded: broken data")
    def pixels(self, frame: int) -> np.ndarray:
        """[H, W, C], upright."""
        check_frame(frame, self.frames)
        pixels = self.decoded(frame)
        if pixels.shape[1::-1] != self.size:
            raise Unreadable("the pixels are not of the size that the header says")
        return upright(pixels.reshape(*pixels.shape[:2], -1), self.orientation)


def _format_of(head: bytes) -> str | None:
    if head.startswith((_JP2, _J2K)):
        return "JPEG2000"
    if head.startswith((_JXL, _JXL_STREAM)):
        return "JPEG XL"
    if head[4:8] == b"ftyp":
        brands = head[8 : min(len(head), int.from_bytes(head[:4], "big"))]
        if any(brand in brands for brand in _AVIF_BRANDS):
            return "AVIF"
        if brands[:4] in _HEIC_BRANDS:
            return "HEIC"
    return None


@hostile("damaged image")
def _open(file: BinaryIO) -> _Opened:
    file.seek(0)
    data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise Unreadable("the file is above the limit of 2 GB")
    name = _format_of(data[:256])
    if name == "HEIC":
        raise Unreadable("HEIC is not read: save it as JPEG, PNG or TIFF")
    makers = {"AVIF": _avif, "JPEG2000": _jpeg2000, "JPEG XL": _jpeg_xl}
    if name not in makers:
        raise Unreadable("not an AVIF, JPEG 2000 or JPEG XL")
    return makers[name](data)


def _avif(data: bytes) -> _Opened:
    _check_boxes(data)
    image = Image.open(io.BytesIO(data), formats=("AVIF",))
    check_size(*image.size)
    frames = getattr(image, "n_frames", 1)
    if frames > MAX_FRAMES:
        raise Unreadable(f"an animation of {frames:,} frames is above the limit")

    def decoded(frame: int) -> np.ndarray:
        image.seek(frame)
        return np.asarray(image)

    return _Opened("AVIF", image.size, image.mode, 8, decoded, frames, known(image.getexif().get(0x0112)))


def _check_boxes(data: bytes) -> None:
    """Raise `Unreadable` where a box of the file reaches beyond its end."""
    at = 0
    while at < len(data):
        size, header = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if size == 0:  # up to the end
            return
        at += max(size, header)
    if at > len(data):
        raise Unreadable("truncated AVIF: the file is shorter than its boxes say")


def _jpeg2000(data: bytes) -> _Opened:
    """8 bits by Pillow, which knows colour spaces; more bits by imagecodecs, as Pillow would drop some."""
    from imagecodecs import jpeg2k_decode

    start = data.find(_J2K)
    if start < 0 or len(data) < start + 45:
        raise Unreadable("truncated JPEG 2000: no codestream")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    (count,) = struct.unpack_from(">H", data, start + 40)
    size = (right - left, bottom - top)
    check_size(*size)
    components = data[start + 42 : start + 42 + 3 * count]
    if len(set(components[0::3])) != 1 or components[0] & 0x80 or components[0] > 15:
        raise Unreadable("JPEG 2000 with components of several depths, or of more than 16 bits, is not supported")
    if b"\xff\xd9" not in data[start:]:  # no other place may hold these two bytes
        raise Unreadable("truncated JPEG 2000: no end marker")
    if components[0] < 8 and count <= 4:
        image = Image.open(io.BytesIO(data), formats=("JPEG2000",))
        mode = image.mode if image.mode in _MODES.values() else "RGB"  # of a palette
        return _Opened("JPEG2000", size, mode, 8, lambda frame: np.asarray(image.convert(mode)))
    depth = 8 if components[0] < 8 else 16
    return _Opened("JPEG2000", size, _MODES.get(count, str(count)), depth, lambda frame: jpeg2k_decode(data))


def _jpeg_xl(data: bytes) -> _Opened:
    from imagecodecs import jpegxl_decode

    size = _size_of_jpeg_xl(data)
    check_size(*size)
    pixels = jpegxl_decode(data)
    if pixels.shape[1::-1] not in (size, size[::-1]):  # upright already; of an animation frames come first
        raise Unreadable("JPEG XL of several frames is not supported")
    if pixels.ndim > 3 or pixels.dtype not in (np.uint8, np.uint16, np.float32, np.float16):
        raise Unreadable("JPEG XL of a kind that is not supported")
    depth = {1: 8, 2: 16}[pixels.dtype.itemsize] if pixels.dtype.kind == "u" else 32
    pixels = pixels.astype(np.float32) if depth == 32 else pixels
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return _Opened("JPEG XL", pixels.shape[1::-1], _MODES.get(channels, str(channels)), depth, lambda frame: pixels)


def _jpeg_xl_codestream(data: bytes) -> int:
    """Where the codestream goes on after its two first bytes: in a container, in its first box of code."""
    if data.startswith(_JXL_STREAM):
        return 2
    at = 0
    while at + 8 <= len(data):
        size, kind, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        start += 4 if kind == b"jxlp" else 0  # the number of the part
        if kind in (b"jxlc", b"jxlp") and data[start : start + 2] == _JXL_STREAM:
            return start + 2
        if size < 8:
            break
        at += size
    raise Unreadable("truncated JPEG XL: no code in it")


def _size_of_jpeg_xl(data: bytes) -> tuple[int, int]:
    """(width, height) of the codestream (ISO/IEC 18181-1, annex D.2), before anything is decoded."""
    start = _jpeg_xl_codestream(data)
    bits = int.from_bytes(data[start : start + 16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    width = side() if ratio == 0 else height * _RATIOS[ratio][0] // _RATIOS[ratio][1]
    return width, height
