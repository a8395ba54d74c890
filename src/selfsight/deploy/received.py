"""What a request brings: its images, from the bytes to pixels, with nothing believed that a header says."""

from __future__ import annotations

import io
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from selfsight.data.collection import item_id
from selfsight.data.decoding import NoImage, family_of, read_items
from selfsight.data.formats.common import at_most
from selfsight.data.formats.format import Unreadable, channels_of, families
from selfsight.data.items import rows_of
from selfsight.data.pixels import PixelFormat
from selfsight.data.sources.source import Entry, Options, Source

MOST_PIXELS = 2**25  # of an image, or of all pages of a file together
MOST_IMAGES = 64  # of a request, and pages of a file
MOST_PARTS = 2 * MOST_IMAGES
MOST_NAME = 200  # characters of the name of an image


class Refused(Exception):
    """A request that is answered with an error: its status, what is wrong, and what to do."""

    def __init__(self, status: HTTPStatus, what: str, do: str = "") -> None:
        super().__init__(what)
        self.status, self.what, self.do = status, what, do


class Sent(NamedTuple):
    """An image as it was sent: the name that it was given, "" for none, and its bytes."""

    name: str
    data: bytes


class Page(NamedTuple):
    """An image, or a page of one, as its header describes it. row: of a collection. reason: why it is not read."""

    row: dict[str, Any]

    @property
    def reason(self) -> str:
        fine = self.row["status"] == "ok"
        return "" if fine else str(self.row["reason"])

    @property
    def told(self) -> dict[str, object]:
        """The columns of predictions that a header fills; the id is that of its content."""
        named = {name: self.row[name] for name in ("id", "uri")} | {"reason": self.reason}
        return named | ({"page": self.row["page"]} if self.row.get("page") is not None else {})


# -- the parts of a body --


def parts_of(content_type: str, body: bytes) -> tuple[list[Sent], dict[str, str]]:
    """The images of a request, and the fields beside them. Anything but multipart/form-data is one image.

    Raises `Refused` for a body without an image, with too many, or that is not what its type says.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        images, fields = [Sent("", body)] if body else [], dict[str, str]()
    else:
        try:
            images, fields = _parted(options.get(b"boundary", b""), body)
        except (MultipartParseError, ValueError):
            raise Refused(
                HTTPStatus.BAD_REQUEST, "The body is not the multipart/form-data that its type says.",
                "Let a library or curl -F write it.",
            ) from None  # fmt: skip
    if len(images) > MOST_IMAGES:
        raise Refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"A request has at most {MOST_IMAGES} images.",
            "Send several requests.",
        )
    return images, fields


class _Part:
    """A part of a body as it is read."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.name, self.value, self.data = bytearray(), bytearray(), bytearray()


def _parted(boundary: bytes, body: bytes) -> tuple[list[Sent], dict[str, str]]:
    parts: list[_Part] = []
    ended = False

    def begin() -> None:
        if len(parts) >= MOST_PARTS:
            raise ValueError("too many parts")
        parts.append(_Part())

    def header() -> None:
        part = parts[-1]
        if len(part.headers) > 16 or len(part.value) > 4096:
            raise ValueError("headers that are too many or too long")
        part.headers[bytes(part.name).lower()] = bytes(part.value)
        part.name, part.value = bytearray(), bytearray()

    def end() -> None:
        nonlocal ended
        ended = True

    def into(which: str) -> Any:
        def more(data: bytes, start: int, stop: int) -> None:
            target: bytearray = getattr(parts[-1], which)
            target += data[start:stop]

        return more

    if not 1 <= len(boundary) <= 70:
        raise ValueError("no boundary")
    callbacks: Any = {
        "on_part_begin": begin, "on_header_field": into("name"), "on_header_value": into("value"),
        "on_header_end": header, "on_part_data": into("data"), "on_end": end,
    }  # fmt: skip
    parser = MultipartParser(boundary, callbacks)
    parser.write(body)
    parser.finalize()
    if not ended:
        raise ValueError("a body that is cut")
    images, fields = [], {}
    for part in parts:
        _, said = parse_options_header(part.headers.get(b"content-disposition", b""))
        if b"filename" in said:
            images.append(Sent(_text(said[b"filename"])[:MOST_NAME], bytes(part.data)))
        else:
            fields[_text(said.get(b"name", b""))] = _text(bytes(part.data))
    return images, fields


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


# -- from bytes to pixels --


class Bytes(Source):
    """One file that is in memory."""

    kind, location, name, options = "bytes", "", "", Options()

    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    def entries(self) -> Iterator[Entry]:
        yield Entry(self._sent.name or "image")

    def open(self, uri: str) -> BinaryIO:
        return io.BytesIO(self._sent.data)


def pages_of(sent: Sent) -> list[Page]:
    """What the header of an image says, before a pixel is decoded: one page, of some formats several. One that cannot
    be read has a reason. A video is not taken: what reads videos could be led to other files."""
    source = Bytes(sent)
    [entry] = source.entries()
    with at_most(MOST_PIXELS):
        if _is_video(sent.data):
            row: dict[str, Any] = {"id": "", "uri": "", "status": "set_aside", "reason": "a video: send its frames"}
            rows = [row]
        else:
            rows = rows_of(source, entry, {})
    if len(rows) > MOST_IMAGES or sum(_size(row) for row in rows) > MOST_PIXELS:
        reason = f"{len(rows):,} pages are above the limit of {MOST_IMAGES} or of {MOST_PIXELS:,} pixels together"
        rows = [rows[0] | {"status": "set_aside", "reason": reason}]
    for row in rows:
        row["id"], row["uri"] = item_id("", str(row.get("content_hash"))), sent.name
        if row["status"] == "other":
            row["reason"] = f"holds {row['reason']}, not an image"
    return [Page(row) for row in rows]


def _is_video(data: bytes) -> bool:
    try:
        return family_of(io.BytesIO(data)) is families()["video"]
    except (NoImage, Unreadable):  # which the header says better
        return False


def _size(row: dict[str, Any]) -> int:
    return int(row.get("width") or 0) * int(row.get("height") or 0)


def bytes_of(pages: list[Page], want: PixelFormat) -> int:
    """The bytes that the pixels of pages take."""
    each = [_size(page.row) * max(channels_of(page.row["mode"]), want.channels) for page in pages if not page.reason]
    return sum(each) * {8: 1, 16: 2, 32: 4}[want.depth]


def pixels_of(sent: Sent, pages: list[Page], want: PixelFormat) -> list[np.ndarray | Unreadable]:
    """The pixels [H, W, C] of the pages of an image, in the form that a geometry wants."""
    unchanged = {"bytes": None, "modified_ns": None}
    rows: list[Any] = [{**{name: page.row[name] for name in ("uri", "mode")}, "page": page.row.get("page")} | unchanged
                       for page in pages]  # fmt: skip
    with at_most(MOST_PIXELS):
        return read_items(Bytes(sent), rows, want)
