"""PNM (PBM, PGM and PPM), as text and as bytes: the plain formats of Netpbm, which older data sets hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from selfsight.data.formats.common import check_size
from selfsight.data.formats.format import Header, Unreadable, check_frame, each_frame, hostile

SUFFIXES = frozenset({".pbm", ".pgm", ".ppm", ".pnm"})

_MAX_BYTES = 2**31
_GAP = rb"(?:\s|#[^\n]*\n)+"  # white space and comments
_NUMBERS = {
    kind: re.compile(rb"P\d" + (_GAP + rb"(\d{1,6})") * (2 if kind in b"14" else 3) + rb"\s") for kind in b"123456"
}
_CHANNELS = {kind: 3 if kind in b"36" else 1 for kind in b"123456"}


def identify(head: bytes) -> bool:
    """Whether a file begins as one of the six formats does."""
    return re.match(rb"P[1-6]\s(?:\s|#[^\n]*\n)*\d", head) is not None


def headers(file: BinaryIO, rate: float | None) -> list[Header]:
    """One image; of a file that holds several, the first."""
    opened = _open(file)
    mode = "RGB" if opened.channels == 3 else "L"
    return [Header("PNM", opened.width, opened.height, mode, 16 if opened.highest > 255 else 8)]


def read(
    file: BinaryIO, frames: Sequence[int], rate: float | None, at_least: int | None
) -> Iterator[np.ndarray | Unreadable]:
    """Pixels [H, W, C]: those of up to 8 bits over their whole range, deeper ones as they are stored."""
    return each_frame(lambda: _open(file), _Opened.pixels, frames)


@dataclass
class _Opened:
    """A file whose header was read. kind: the second byte of the file. start: of the pixels. highest: a value there."""

    data: bytes
    kind: int
    width: int
    height: int
    channels: int
    highest: int
    start: int

    @hostile("cannot be decoded: broken data")
    def pixels(self, frame: int) -> np.ndarray:
        """[H, W, C]."""
        check_frame(frame, 1)
        values = self._values().reshape(self.height, self.width, self.channels)
        if values.max() > self.highest:
            raise Unreadable("cannot be decoded: a value is above the highest that the header names")
        if self.highest > 255:
            return values.astype(np.uint16)
        if self.kind in b"14":  # of a bitmap 1 is black
            values = 1 - values
        scaled: np.ndarray = (values.astype(np.uint16) * 255 + self.highest // 2) // self.highest
        return scaled.astype(np.uint8)

    def _values(self) -> np.ndarray:
        """The values as they are stored, one after another."""
        count = self.width * self.height * self.channels
        body = self.data[self.start :]
        if self.kind == ord("1"):  # whose digits need nothing between them
            digits = np.frombuffer(re.sub(rb"#[^\n]*", b"", body).translate(None, b" \t\r\n\v\f"), np.uint8)[:count]
            return digits - ord("0")
        if self.kind in b"23":
            return np.array(re.sub(rb"#[^\n]*", b"", body).split()[:count]).astype(np.int64)
        if self.kind == ord("4"):
            rows = np.frombuffer(body, np.uint8, self.height * -(-self.width // 8)).reshape(self.height, -1)
            return np.unpackbits(rows, axis=1)[:, : self.width]
        return np.frombuffer(body, ">u2" if self.highest > 255 else np.uint8, count)


def _open(file: BinaryIO) -> _Opened:
    file.seek(0)
    data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise Unreadable("the file is above the limit of 2 GB")
    if not identify(data[:256]):
        raise Unreadable("not a PNM")
    kind = data[1]
    found = _NUMBERS[kind].match(data[: 2**16])
    width, height, highest = (*map(int, found.groups()), 1)[:3] if found else (0, 0, 0)
    if not found or not 0 < highest < 65536:
        raise Unreadable("damaged PNM header")
    check_size(width, height)
    opened = _Opened(data, kind, width, height, _CHANNELS[kind], highest, found.end())
    values = width * height * opened.channels
    least = height * -(-width // 8) if kind == ord("4") else values * (2 if highest > 255 else 1)
    if len(data) - found.end() < (least if kind in b"456" else values if kind == ord("1") else 2 * values - 1):
        raise Unreadable("truncated PNM: the pixels end early")
    return opened
