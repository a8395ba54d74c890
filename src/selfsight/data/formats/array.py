"""Arrays in .npy files: images, stacks of pages, and channels before or after the rows and columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import numpy as np

from selfsight.data.formats.common import check_size
from selfsight.data.formats.format import DTYPES, MAX_FRAMES, Header, Unreadable, check_frame, each_frame, usual_mode

SUFFIXES = frozenset({".npy"})

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 65_536
_FEW = 16  # channels that are known as such on either side
_BLOCK = 2**22  # values read at once of a stack whose pages are interleaved
# The header is the text of a Python dictionary. It is not evaluated: a hostile one could exhaust the parser.
_DTYPE = re.compile(r"['\"]descr['\"]\s*:\s*(?:['\"]([ -&(-~]{1,20})['\"]|([\[(]))")
_FORTRAN = re.compile(r"['\"]fortran_order['\"]\s*:\s*(True|False)")
_SHAPE = re.compile(r"['\"]shape['\"]\s*:\s*\(([\d\sL,]*)\)")
_NUMBERS = re.compile(r"[<>|=]?(\?|b1|[ui][1248]|f(2|4|8|12|16))")


def identify(head: bytes) -> bool:
    """Whether a file begins as an .npy does."""
    return head.startswith(_MAGIC)


def headers(file: BinaryIO, rate: float | None) -> list[Header]:
    """One image, or one for each page of a stack."""
    array = _open(file)
    header = Header("NPY", array.width, array.height, array.mode, array.depth)
    if array.pages == 1:
        return [header]
    return [Header("NPY", array.width, array.height, array.mode, array.depth, page) for page in range(array.pages)]


def read(
    file: BinaryIO, frames: Sequence[int], rate: float | None, at_least: int | None
) -> Iterator[np.ndarray | Unreadable]:
    """Pixels [H, W, C]. Only the bytes of the asked pages are read, unless they are interleaved (Fortran order)."""
    return each_frame(lambda: _open(file), lambda array, frame: _pixels(file, array, frame), frames)


@dataclass(frozen=True)
class _Array:
    """What the header says. start: the first byte of the values. page: shape of one image as stored.

    channel_axis: which axis of `page` is that of the channels, None if it has none.
    """

    start: int
    dtype: np.dtype
    fortran: bool
    pages: int
    page: tuple[int, ...]
    channel_axis: int | None

    @property
    def height(self) -> int:
        return self.page[1 if self.channel_axis == 0 else 0]

    @property
    def width(self) -> int:
        return self.page[2 if self.channel_axis == 0 else 1]

    @property
    def mode(self) -> str:
        channels = 1 if self.channel_axis is None else self.page[self.channel_axis]
        return usual_mode(channels)

    @property
    def depth(self) -> int:
        return {"bool": 8, "uint8": 8, "uint16": 16}.get(self.dtype.name, 32)


def _open(file: BinaryIO) -> _Array:
    size = file.seek(0, 2)
    if not size:
        raise Unreadable("empty file")
    file.seek(0)
    text, start = _header_text(file)
    dtype, shape = _dtype_of(text), _shape_of(text)
    fortran = _FORTRAN.search(text)
    if not fortran:
        raise Unreadable("damaged NPY header")
    pages, page, channel_axis = _layout(shape)
    array = _Array(start, dtype, fortran[1] == "True", pages, page, channel_axis)
    check_size(array.width, array.height)
    if pages < 1:
        raise Unreadable("a stack without pages")
    if pages > MAX_FRAMES:
        raise Unreadable(f"a stack of {pages:,} pages is above the limit of {MAX_FRAMES:,}")
    if start + prod(shape) * dtype.itemsize > size:
        raise Unreadable("truncated NPY: the values end early")
    return array


def _header_text(file: BinaryIO) -> tuple[str, int]:
    head = file.read(12)
    if not identify(head) or len(head) < 12:
        raise Unreadable("damaged NPY header")
    width = 2 if head[6] == 1 else 4  # bytes of the length, by the version of the format
    length = int.from_bytes(head[8 : 8 + width], "little")
    if head[6] not in (1, 2, 3) or length > _MAX_HEADER:
        raise Unreadable("damaged NPY header")
    file.seek(8 + width)
    return file.read(length).decode("latin-1"), 8 + width + length


def _dtype_of(text: str) -> np.dtype:
    found = _DTYPE.search(text)
    if not found:
        raise Unreadable("damaged NPY header")
    name, other = found.groups()
    if other:
        raise Unreadable("an array of a structured dtype holds no pixels")
    if name.lstrip("<>|=") == "O":
        raise Unreadable("holds Python objects, not numbers")
    if not _NUMBERS.fullmatch(name):
        raise Unreadable(f"an array of dtype {name} holds no pixels")
    try:
        return np.dtype(name)
    except TypeError:  # a long float of another machine
        raise Unreadable(f"an array of dtype {name} cannot be read on this machine") from None


def _shape_of(text: str) -> tuple[int, ...]:
    found = _SHAPE.search(text)
    sizes = re.findall(r"\d+", found[1]) if found else []
    if not found or any(len(size) > 18 for size in sizes):
        raise Unreadable("damaged NPY header")
    return tuple(int(size) for size in sizes)


def _layout(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...], int | None]:
    """(pages, shape of a page, its axis of channels)."""
    if len(shape) == 2:
        return 1, shape, None
    if len(shape) == 3:
        channel_axis = _channel_axis(shape)
        return (shape[0], shape[1:], None) if channel_axis is None else (1, shape, channel_axis)
    if len(shape) == 4:
        channel_axis = _channel_axis(shape[1:])
        if channel_axis is not None:
            return shape[0], shape[1:], channel_axis
    raise Unreadable(f"an array of shape {shape} is neither an image nor a stack of them")


def _channel_axis(shape: tuple[int, ...]) -> int | None:
    """2 for (H, W, C), 0 for (C, H, W): channels are few, and fewer than rows and columns. Many channels after rows
    and columns of similar length make a hyperspectral cube; before them they cannot be told from pages."""
    first, second, third = shape
    short, long = sorted((first, second))
    if 0 < third < short and (third <= _FEW or (2 * third <= short and long <= 2 * short)):
        return 2
    return 0 if 0 < first <= _FEW and first < min(second, third) else None


def _pixels(file: BinaryIO, array: _Array, frame: int) -> np.ndarray:
    check_frame(frame, array.pages)
    if array.fortran:
        page = _interleaved(file, array, frame).reshape(array.page[::-1]).transpose()
    else:
        page = _values(file, array, frame * prod(array.page), prod(array.page)).reshape(array.page)
    if array.channel_axis is None:
        page = page[:, :, None]
    elif array.channel_axis == 0:
        page = page.transpose(1, 2, 0)
    if array.dtype == bool:
        page = np.where(page, 255, 0)
    with np.errstate(over="ignore"):  # beyond the range of float32 is infinite
        pixels: np.ndarray = page.astype(DTYPES[array.depth], order="C")
    return pixels


def _values(file: BinaryIO, array: _Array, first: int, count: int) -> np.ndarray:
    file.seek(array.start + first * array.dtype.itemsize)
    data = file.read(count * array.dtype.itemsize)
    if len(data) < count * array.dtype.itemsize:
        raise Unreadable("truncated NPY: the values end early")
    return np.frombuffer(data, np.uint8 if array.dtype == bool else array.dtype)


def _interleaved(file: BinaryIO, array: _Array, frame: int) -> np.ndarray:
    """The values of a page in Fortran order: the first axis, that of the pages, is the fastest."""
    count, step = prod(array.page), max(1, _BLOCK // array.pages)
    parts = [
        _values(file, array, at * array.pages, min(step, count - at) * array.pages)[frame :: array.pages].copy()
        for at in range(0, count, step)
    ]
    return np.concatenate(parts)
