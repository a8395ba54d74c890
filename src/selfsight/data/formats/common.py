"""JPEG (of an MPO the first image), PNG, WebP, BMP and GIF, by Pillow; PNG of 16 bits by imagecodecs, as Pillow would
drop the low bits."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from selfsight.data.formats.format import MAX_FRAMES, MAX_PIXELS, Header, Unreadable, check_frame, hostile
from selfsight.data.orientation import known, turns, upright

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif"})

# Our own limit is checked first; Pillow's error, at twice this, guards what it allocates while it opens a file.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# Pillow warns of odd metadata in files that decode well. `catch_warnings` is not safe in threads, a filter is.
warnings.filterwarnings("ignore", module=r"PIL\.")

_most: ContextVar[int] = ContextVar("most pixels", default=MAX_PIXELS)
_MAX_BYTES = 2**31
# Of an animation every frame has to be drawn to reach the last; a small file may ask for years of that.
_MAX_DRAWN = 10 * MAX_PIXELS
# Each scan of a progressive JPEG passes over the whole image; encoders write about ten.
_MAX_SCANS = 500
_JPEG_END = b"\xff\xd9"
# What might follow a JPEG that lacks its end: nothing; or bits, more than a block of pixels takes, and then restarts.
# A decoder that waits for one takes any but the two that come after it.
_JPEG_BITS = bytes(range(1, 255)) * 16
_JPEG_RESTARTS = [bytes([0xFF, 0xD0 + n]) + _JPEG_BITS for n in range(8)]
_JPEG_TAILS = (b"", b"".join((_JPEG_BITS, *_JPEG_RESTARTS)), b"".join((_JPEG_BITS[::-1], *_JPEG_RESTARTS[4:])))
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not stuffing, fill or restart
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_MODES = {"1": "L", "L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA", "CMYK": "CMYK"}
_PNG_16_BIT_MODES = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}  # by colour type


def identify(head: bytes) -> bool:
    """Whether a file begins as one of the five formats does."""
    return _format_of(head) is not None


def headers(file: BinaryIO, rate: float | None) -> list[Header]:
    """One image, or one for each frame of an animated GIF or WebP (of an APNG the default image alone)."""
    opened = _open(file)
    many = len(opened.sizes) > 1
    return [
        Header(
            opened.format, *size, opened.mode, opened.depth, frame if many else None, opened.orientation, opened.note
        )
        for frame, size in enumerate(opened.sizes)
    ]


def read(
    file: BinaryIO, frames: Sequence[int], rate: float | None, at_least: int | None
) -> Iterator[np.ndarray | Unreadable]:
    """Pixels [H, W, C]; a JPEG at the smallest of 1/1, 1/2, 1/4, 1/8 whose shorter side is `at_least` or above."""
    try:
        opened = _open(file)
    except Unreadable as reason:
        yield from [reason] * len(frames)
        return
    broken = None  # every frame is drawn over those before it, so none after a broken one can be told
    for frame in frames:
        if broken is None:
            try:
                yield _pixels(opened, frame, at_least)
                continue
            except MemoryError:
                raise
            except Unreadable as reason:
                broken = reason
            except OSError as error:  # Pillow's words for broken data
                broken = Unreadable(f"cannot be decoded: {(str(error).splitlines() or ['broken data'])[0]}")
            except Exception:  # Pillow raises many kinds on hostile bytes
                broken = Unreadable("cannot be decoded")
        yield broken


@contextmanager
def at_most(pixels: int) -> Iterator[None]:
    """Within it, in this thread, an image of more pixels is `Unreadable`: for files that come from anybody."""
    before = _most.set(pixels)
    try:
        yield
    finally:
        _most.reset(before)


def check_size(width: int, height: int) -> None:
    """Raises `Unreadable` for an image of no pixels or of more than `MAX_PIXELS`, or what `at_most` says."""
    if not (0 <= width < 2**32 and 0 <= height < 2**32):
        raise Unreadable("the sides of the image are damaged")
    if not width * height:
        raise Unreadable(f"an image of {width} x {height} has no pixels")
    if width * height > _most.get():
        raise Unreadable(f"{width} x {height} is above the limit of {_most.get():,} pixels")


def jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """(second byte of a marker, where its segment begins) of each marker of a JPEG, in order."""
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        yield marker, at
        if marker not in (0x01, 0xD8, 0xD9):  # the markers without a segment
            at += int.from_bytes(data[at : at + 2], "big")


@dataclass
class _Opened:
    """A file whose header and end were checked. sizes: (width, height) of each frame, upright. note: as `Header`'s."""

    format: str
    data: bytes
    image: Image.Image
    sizes: list[tuple[int, int]]
    mode: str
    depth: int
    orientation: int
    note: str = ""


def _format_of(head: bytes) -> str | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(_PNG_MAGIC):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def _open(file: BinaryIO) -> _Opened:
    file.seek(0)
    data = file.read(_MAX_BYTES + 1)
    if not data:
        raise Unreadable("empty file")
    if len(data) > _MAX_BYTES:
        raise Unreadable("the file is above the limit of 2 GB")
    name = _format_of(data[:256])
    if name is None:
        raise Unreadable("not a JPEG, PNG, WebP, BMP or GIF")
    if name == "GIF":
        return _open_gif(data)
    endless = name == "JPEG" and not _has_jpeg_end(data)
    if endless:
        data = data.rstrip(b"\xff") + _JPEG_END
    chunks = _png_chunks(data) if name == "PNG" else []
    if name == "WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise Unreadable("truncated WebP: the file is shorter than its header says")
    image = _pillow(data, name)
    check_size(*image.size)
    if endless:
        _check_whole_jpeg(data)
    if name == "BMP":
        _check_bmp_end(data, image)
    for kind, start, end in chunks:
        if kind == b"eXIf":  # may also follow the pixels, where Pillow does not look before it decodes
            image.info.setdefault("exif", b"Exif\0\0" + data[start + 8 : end - 4])
    orientation = _orientation(image)
    size = image.size[::-1] if turns(orientation)[0] else image.size
    deep = name == "PNG" and data[24] == 16
    mode = _PNG_16_BIT_MODES.get(data[25], "") if deep else _mode(image)
    if not mode:
        raise Unreadable(f"{name} of a kind that is not supported")
    frames = getattr(image, "n_frames", 1) if name == "WEBP" else 1
    if frames > 1:
        mode = "RGB"
    _check_drawn(frames, *size)
    note = "JPEG without its end marker; its pixels are all there" if endless else ""
    return _Opened(name, data, image, [size] * frames, mode, 16 if deep else 8, orientation, note)


def _open_gif(data: bytes) -> _Opened:
    try:
        sizes, grey = _gif_frames(data)
    except IndexError:
        raise Unreadable("truncated GIF: no end marker") from None
    if not sizes:
        raise Unreadable("GIF without an image")
    check_size(*sizes[-1])  # the largest, as the canvas only grows
    _check_drawn(len(sizes), *sizes[-1])
    return _Opened("GIF", data, _pillow(data, "GIF"), sizes, "L" if grey else "RGB", 8, 1)


def _pillow(data: bytes, name: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=(name,))
        image.decodermaxblock = max(image.decodermaxblock, 8 * image.width)  # a row in many pieces is copied for each
        return image
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        size = next(iter(re.findall(r"\d+", str(error))), "too many")
        raise Unreadable(f"{int(size):,} pixels are above the limit of {MAX_PIXELS:,} pixels") from None
    except Exception:  # Pillow raises many kinds on hostile bytes
        raise Unreadable(f"damaged {name} header") from None


def _orientation(image: Image.Image) -> int:
    try:
        # The method of the base class: that of PNG decodes the whole image to look behind it.
        return known(Image.Image.getexif(image).get(0x0112))
    except Exception:  # broken EXIF says nothing of the pixels
        return 1


def _mode(image: Image.Image) -> str:
    if image.mode != "P":
        return _MODES.get(image.mode, "")
    if "transparency" in image.info:
        return "RGBA"
    if image.palette is None:
        return ""
    kind, values = image.palette.getdata()
    return "L" if _is_grey(bytes(values), len(kind)) else "RGB"


def _is_grey(palette: bytes, step: int) -> bool:
    return palette[::step] == palette[1::step] == palette[2::step]


def _check_drawn(frames: int, width: int, height: int) -> None:
    if frames > MAX_FRAMES or (frames > 1 and frames * width * height > _MAX_DRAWN):
        raise Unreadable(f"an animation of {frames:,} frames of {width} x {height} is above the limit")


def _has_jpeg_end(data: bytes) -> bool:
    """Walks from marker to marker: a thumbnail in the EXIF has an end of its own, and cameras append data.

    Raises `Unreadable` where there is no image, or only the beginning of a header.
    """
    scans = 0
    for marker, _ in jpeg_markers(data):
        if marker == 0xF7:
            raise Unreadable("JPEG-LS is not read: save it as JPEG, PNG or TIFF")
        if marker == 0xD9 and scans:
            return True
        if marker == 0xD9:
            raise Unreadable("JPEG without an image")
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise Unreadable(f"JPEG of more than {_MAX_SCANS} scans")
    if not scans:
        raise Unreadable("truncated JPEG: no end marker")
    return False


def _check_whole_jpeg(data: bytes) -> None:
    """Raise `Unreadable` where something that might follow a JPEG, whose end was added, would change a pixel of it."""
    with hostile("truncated JPEG: no end marker"):
        pictures = (_pillow(data.removesuffix(_JPEG_END) + tail + _JPEG_END, "JPEG") for tail in _JPEG_TAILS)
        if not _has_all_scans(data) or len({hashlib.blake2b(each.tobytes()).digest() for each in pictures}) > 1:
            raise Unreadable("truncated JPEG: no end marker")


def _has_all_scans(data: bytes) -> bool:
    """Whether the last bit of each coefficient of each component is in a scan: a progressive JPEG has many scans."""
    lacking: set[tuple[int, int]] = set()
    for marker, at in jpeg_markers(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, with the components
            lacking = {(component, k) for component in data[at + 8 : at + 8 + 3 * data[at + 7] : 3] for k in range(64)}
        elif marker == 0xDA:
            *components, first, last, bits = data[at + 3 : at + 6 + 2 * data[at + 2]]
            if bits & 0x0F == 0:
                lacking -= {(component, k) for component in components[::2] for k in range(first, last + 1)}
    return not lacking


def _png_chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk up to the last. Raises `Unreadable` if there is no last."""
    at, kind = len(_PNG_MAGIC), b""
    chunks = []
    while kind != b"IEND":
        start, kind = at, data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if len(kind) < 4 or at > len(data):
            raise Unreadable("truncated PNG: no end chunk")
        chunks.append((kind, start, at))
    if chunks[0][0] != b"IHDR" or chunks[0][2] - chunks[0][1] != 25:
        raise Unreadable("damaged PNG header")
    return chunks


def _check_bmp_end(data: bytes, image: Image.Image) -> None:
    decoder, _, offset, arguments = image.tile[0]  # type: ignore[attr-defined]
    stated = int.from_bytes(data[34:38], "little")
    length = arguments[1] * image.height if decoder == "raw" else stated  # rows are padded; packed ones vary
    if offset + length > len(data):
        raise Unreadable("truncated BMP: the file is shorter than its header says")
    if image.width * image.height > 256 * len(data):  # two bytes give at most 255 pixels
        raise Unreadable("truncated BMP: too few bytes for its pixels")


def _gif_frames(data: bytes) -> tuple[list[tuple[int, int]], bool]:
    """(width, height) of the canvas at each frame, and whether all colours are grey.

    A frame that reaches beyond the canvas enlarges it, as in Pillow. Raises `IndexError` where the file ends early.
    """
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    at, grey = _gif_palette(data, data[10], 13)
    sizes: list[tuple[int, int]] = []
    while data[at] != 0x3B and len(sizes) <= MAX_FRAMES:  # the trailer
        if data[at] == 0x21:  # an extension
            at = _skip_blocks(data, at + 2)
        elif data[at] == 0x2C:  # an image
            left, top, wide, high = (int.from_bytes(data[i : i + 2], "little") for i in range(at + 1, at + 9, 2))
            width, height = max(width, left + wide), max(height, top + high)
            start = at + 10
            at, grey_too = _gif_palette(data, data[at + 9], start)
            grey &= grey_too
            at = _skip_blocks(data, at + 1)
            sizes.append((width, height))
        else:
            at += 1
    return sizes, grey


def _gif_palette(data: bytes, flags: int, at: int) -> tuple[int, bool]:
    """Where a palette at `at` ends, and whether it is grey; there is none if the flags say so."""
    if not flags & 0x80:
        return at, True
    end = at + (6 << (flags & 7))
    return end, _is_grey(data[at:end], 3)


def _skip_blocks(data: bytes, at: int) -> int:
    while length := data[at]:
        at += length + 1
    return at + 1


def _pixels(opened: _Opened, frame: int, at_least: int | None) -> np.ndarray:
    check_frame(frame, len(opened.sizes))
    image = opened.image
    if opened.depth == 16:
        pixels = _decode_16_bit_png(opened.data)
    else:
        if opened.format == "JPEG" and at_least:
            image.draft(None, (at_least, at_least))
        if frame:
            image.seek(frame)
        image.load()  # which makes RGBA of an RGB frame that enlarges its GIF
        pixels = np.asarray(image if image.mode == opened.mode else image.convert(opened.mode))
    pixels = upright(pixels.reshape(*pixels.shape[:2], -1), opened.orientation)
    if opened.format != "JPEG" and pixels.shape[1::-1] != opened.sizes[frame]:
        raise Unreadable("the pixels are not of the size that the header says")
    return pixels


def _decode_16_bit_png(data: bytes) -> np.ndarray:
    from imagecodecs import png_decode

    # libpng prints a warning of each oddity, and turns a transparent colour into a channel.
    head, *rest = _png_chunks(data)
    kept = [head, *(chunk for chunk in rest if chunk[0] in (b"IDAT", b"IEND"))]
    if any(chunk[0] == b"IHDR" for chunk in rest):
        raise Unreadable("damaged PNG header")
    if data[26:28] != b"\0\0" or data[28] > 1 or max(data[16:18], data[20:22]) > b"\0\x0f":
        raise Unreadable("damaged PNG header")  # compression, filter, interlacing; sides of more than a million
    with hostile("cannot be decoded: broken data"):
        pixels: np.ndarray = png_decode(_PNG_MAGIC + b"".join(data[start:end] for _, start, end in kept))
    return pixels
