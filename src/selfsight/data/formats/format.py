"""What every family of formats gives: headers without decoding, and pixels in the file's own channels and depth."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO, Protocol, TypeVar

import numpy as np

# A decompression bomb is stopped by its header, before any pixel is decoded.
MAX_PIXELS = 200_000_000
# A file of more pages or frames is taken for damaged or hostile.
MAX_FRAMES = 1_000_000
# As what the values of each `Header.depth` are read.
DTYPES = {8: np.uint8, 16: np.uint16, 32: np.float32}
Opened = TypeVar("Opened")


class Unreadable(Exception):
    """An item that is set aside; the message is the reason."""


@dataclass(frozen=True)
class Header:
    """One image of a file, as its header describes it.

    format: name of the file type, as Pillow spells it if it knows it. width: of the upright image. height: of the
    upright image. mode: "L", "LA", "RGB", "RGBA", "CMYK" as Pillow names them, or the number of channels in digits
    ("2", "5") where they
        are not colours.
    depth: 8 or 16 bits unsigned, or 32 for everything else (signed, wider, float), which is read as float32.
    frame: which page or frame; None in a file of one image.
    exif_orientation: of EXIF or TIFF, 1 to 8: how the stored image was turned upright.
    note: what is odd about a file that is used all the same; "" for nothing.
    """

    format: str
    width: int
    height: int
    mode: str
    depth: int
    frame: int | None = None
    exif_orientation: int = 1
    note: str = ""

    @property
    def channels(self) -> int:
        """Channels of the mode."""
        return channels_of(self.mode)


def channels_of(mode: str) -> int:
    """Channels of a mode."""
    return int(mode) if mode.isdigit() else {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]


def usual_mode(channels: int) -> str:
    """The mode that this many channels are taken for."""
    return {1: "L", 3: "RGB"}.get(channels, str(channels))


def unreadable(error: Exception) -> Unreadable:
    """Why a file cannot be read, of whatever reading it raised: for the user, without the names of exceptions."""
    if isinstance(error, Unreadable):
        return error
    if isinstance(error, MemoryError):
        return Unreadable("too large for the memory of this machine")
    # a disk or network that fails while reading
    return Unreadable((error.strerror if isinstance(error, OSError) else "") or str(error))


@contextmanager
def hostile(reason: str) -> Iterator[None]:
    """Within it, whatever a library raises on hostile bytes is `Unreadable` for this reason; memory that is used up
    stays a `MemoryError`."""
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except Exception:  # they raise many kinds
        raise Unreadable(reason) from None


def each_frame(
    open_file: Callable[[], Opened], pixels: Callable[[Opened, int], np.ndarray], frames: Sequence[int]
) -> Iterator[np.ndarray | Unreadable]:
    """`Family.read`, where frames do not depend on each other: the pixels of each one of a file that `open_file` opens,
    or the `Unreadable` that was raised instead; where the file cannot be opened, its for each."""
    try:
        opened = open_file()
    except Unreadable as reason:
        yield from [reason] * len(frames)
        return
    for frame in frames:
        try:
            yield pixels(opened, frame)
        except Unreadable as reason:
            yield reason


def without_nodata(pixels: np.ndarray, nodata: np.ndarray, darkest_is_high: bool = False) -> np.ndarray:
    """`pixels` where those that a file declares to hold no data say nothing: NaN among floats, else as dark as the
    darkest of the others, which the intensity window does not notice. nodata: bool, of the same shape.

    Raises `Unreadable` where no pixel is left.
    """
    if not nodata.any():
        return pixels
    if nodata.all():
        raise Unreadable("every pixel is declared to hold no data")
    others = pixels[~nodata]
    fill = np.nan if pixels.dtype.kind == "f" else others.max() if darkest_is_high else others.min()
    return np.where(nodata, pixels.dtype.type(fill), pixels)


def check_frame(frame: int, count: int) -> None:
    """Raises `Unreadable` for a frame that a file of `count` frames does not have."""
    if not 0 <= frame < count:
        raise Unreadable(f"the file has no frame {frame}")


class Family(Protocol):
    """A module of this package. `SUFFIXES` are the lower-case suffixes that name its files."""

    SUFFIXES: frozenset[str]

    def identify(self, head: bytes) -> bool:
        """Whether a file that begins with `head` (its first 256 bytes or fewer) is of this family."""
        ...

    def headers(self, file: BinaryIO, rate: float | None) -> list[Header]:
        """The images of a file, from its header and its end marker, nothing decoded where that can be avoided.

        `rate`: frames a second to take of a video (None: every frame); other families ignore it.
        Raises `Unreadable` with the reason: what is wrong, in words for the user, no Python exception names.
        """
        ...

    def read(
        self, file: BinaryIO, frames: Sequence[int], rate: float | None, at_least: int | None
    ) -> Iterator[np.ndarray | Unreadable]:
        """Pixels [H, W, C], upright, of the asked frames (0 in a file of one image), in ascending order.

        uint8, uint16 or float32 as `Header.depth` says. A family may give a reduced image whose shorter side
        is still at `at_least` or above (JPEG). A frame that cannot be decoded is given as an
        `Unreadable`, and the rest still follow; a file that cannot be opened gives one for each.
        """
        ...


FAMILIES = ("common", "newer", "tiff", "array", "pnm", "dicom", "video")


@cache
def families() -> dict[str, Family]:
    """The modules of the formats, by name, in the order in which they are asked whether a file is theirs."""
    return {name: importlib.import_module(f"selfsight.data.formats.{name}") for name in FAMILIES}  # type: ignore[misc]
