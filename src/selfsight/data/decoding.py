"""From a file of a source to pixels: which family of formats it is, its headers, and the items it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO, TypedDict

import numpy as np

from selfsight.data.formats.common import check_size
from selfsight.data.formats.format import Family, Header, Unreadable, channels_of, families, unreadable
from selfsight.data.pixels import PixelFormat, convert, describe_mode, fit, resize
from selfsight.data.sources.source import Member, Source

_HEAD = 256  # bytes by which a file is recognised

# What is often found under the name of an image, by its first bytes.
_IMPOSTORS = {
    b"version https://git-lfs": "a Git LFS pointer (run: git lfs pull)",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML text",
    b"<svg": "an SVG drawing",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"{": "JSON text",
}
# Images of formats that are not read.
_UNREAD = {
    b"8BPS": "Photoshop",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"II\xbc": "JPEG XR",
    b"\0\0\1\0": "ICO",
    b"SIMPLE  =": "FITS",
}


class NoImage(Exception):
    """A file of no family of formats; the message says what it holds."""


def family_of(file: BinaryIO) -> Family:
    """The family of formats of an open file, by its first bytes. Raises `NoImage`, or `Unreadable` if it is empty or
    of a format that is not read."""
    file.seek(0)
    head = file.read(_HEAD)
    file.seek(0)
    if not head:
        raise Unreadable("empty file")
    for family in families().values():
        if family.identify(head):
            return family
    for start, what in _UNREAD.items():
        if head.startswith(start):
            raise Unreadable(f"{what} is not read: save it as JPEG, PNG or TIFF")
    text = head.lstrip()
    for start, what in _IMPOSTORS.items():
        if text[: len(start)].lower() == start.lower():
            raise NoImage(what)
    if not head.strip(b"\0"):
        raise NoImage("only zeros")
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise NoImage("text")
    raise NoImage("no known image format")


def read_headers(file: BinaryIO, rate: float | None) -> list[Header]:
    """The images of an open file. Raises `NoImage` or `Unreadable` with the reason."""
    headers = family_of(file).headers(file, rate)
    for header in headers:
        check_size(header.width, header.height)
    if not headers:
        raise Unreadable("holds no picture")
    return headers


class Row(TypedDict):
    """The part of an item's row that reading it takes.

    uri: path relative to the source.
    page: None in a file of one image.
    mode: as `Header.mode`.
    bytes: size of the file at import, to notice a change; None where the source cannot say.
    modified_ns: time of its last change at import, likewise.
    """

    uri: str
    page: int | None
    mode: str
    bytes: int | None
    modified_ns: int | None


def read_items(
    source: Source,
    rows: Sequence[Row],
    want: PixelFormat,
    short_side: int | None = None,
    square: int | None = None,
) -> list[np.ndarray | Unreadable]:
    """Pixels [H, W, C] of items of one file, given by their rows with pages ascending, in the form `want`.

    `short_side` fits them as canvases (see `fit`), from a reduced decoding where that is enough; `square`
    resizes to exactly (square, square), as `timm`'s "squash" transform does; with neither they keep
    their size. What cannot be read stands as an `Unreadable` in its place.
    """
    try:
        if not want.takes(rows[0]["mode"]):  # known without decoding
            raise Unreadable(f"{describe_mode(rows[0]['mode'])}, not {describe_mode(want.mode)}")
        with source.open(rows[0]["uri"]) as file:
            _check_unchanged(file, rows[0])
            pages = [row["page"] or 0 for row in rows]
            decoded = family_of(file).read(file, pages, source.options.rate, short_side)
            return [_finish(pixels, row, want, short_side, square) for pixels, row in zip(decoded, rows, strict=True)]
    except NoImage as reason:
        failure = Unreadable(f"changed since import: holds {reason}")
    except (Unreadable, MemoryError, OSError) as error:
        failure = unreadable(error)
    return [failure] * len(rows)


def _check_unchanged(file: BinaryIO, row: Row) -> None:
    try:
        stat = os.fstat(file.fileno())
    except OSError:  # not a file of its own: a member of an archive, read into memory
        same_time = not isinstance(file, Member) or row["modified_ns"] in (None, file.modified_ns)
        if row["bytes"] not in (None, file.seek(0, os.SEEK_END)) or not same_time:
            raise Unreadable("changed since import") from None
        return
    if (stat.st_size, stat.st_mtime_ns) != (row["bytes"], row["modified_ns"]) and row["bytes"] is not None:
        raise Unreadable("changed since import")


def _finish(
    pixels: np.ndarray | Unreadable, row: Row, want: PixelFormat, short_side: int | None, square: int | None
) -> np.ndarray | Unreadable:
    if isinstance(pixels, Unreadable):
        return pixels
    try:
        if pixels.shape[2] != channels_of(row["mode"]):
            raise Unreadable("changed since import")
        pixels = convert(pixels, row["mode"], want)
    except Unreadable as reason:
        return reason
    if square is not None:
        pixels = resize(pixels, square, square)
    elif short_side is not None:
        pixels = fit(pixels, short_side)
    return np.ascontiguousarray(pixels)
