"""From a listed file to the rows of the items it holds."""

from __future__ import annotations

import hashlib
import io
from functools import partial
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from selfsight.data.annotations.outlines import mask_cell
from selfsight.data.boxes import as_cell
from selfsight.data.collection import item_id
from selfsight.data.decoding import NoImage, family_of, read_headers
from selfsight.data.formats.dicom import attributes
from selfsight.data.formats.format import Header, Unreadable, unreadable
from selfsight.data.sources.names import suffix_of
from selfsight.data.sources.source import Entry, Source

WHOLE = 64 * 2**20  # bytes; a larger file is not read into memory
FROM_HEADER = ("format", "width", "height", "exif_orientation", "mode", "channels", "depth")
_blake = partial(hashlib.blake2b, digest_size=16)


def rows_of(source: Source, entry: Entry, keywords: dict[str, str]) -> list[dict[str, object]]:
    """The rows of a file's items: one, or one per page. A file that cannot be read gives one row that is set aside. A
    file that is not an image, and not named like one, gives one row of the status "other".

    keywords: columns to fill from DICOM attributes, {column: keyword}.
    """
    row = row_of(source, entry)
    if entry.reason:
        return [row]
    try:
        with source.open(entry.uri) as file:
            if (entry.bytes or 0) <= WHOLE:
                content = file.read()
                row["content_hash"] = _blake(content).hexdigest()
                readable: BinaryIO = io.BytesIO(content)
            else:
                row["content_hash"] = hashlib.file_digest(cast(io.BufferedReader, file), _blake).hexdigest()
                readable = file
            headers = _headers(readable, entry.uri, source.options.rate)
            if keywords and headers[0].format == "DICOM":
                found = attributes(readable, list(keywords.values()))
                row |= {column: found[keyword] for column, keyword in keywords.items()}
    except NoImage as what:
        suffix = PurePosixPath(entry.uri).suffix
        if source.kind != "table" and (not suffix or suffix[1:].isdigit()):  # nobody said it was an image
            return [row | {"status": "other", "reason": str(what)}]
        return [row | {"status": "set_aside", "reason": f"holds {what}, not an image"}]
    except (Unreadable, MemoryError, OSError) as error:
        lost = {"content_hash": None} if isinstance(error, OSError) else {}  # it may be read the next time
        return [row | {"status": "set_aside", "reason": str(unreadable(error))} | lost]
    return [_with_header(source, entry, row, header) for header in headers]


def _headers(file: BinaryIO, uri: str, rate: float | None) -> list[Header]:
    """`read_headers`, where the reason also says that the name is one of another family of formats."""
    try:
        return read_headers(file, rate)
    except Unreadable as reason:
        suffix = suffix_of(uri)
        if suffix and suffix not in family_of(file).SUFFIXES:  # which itself raises for what is of no family
            raise Unreadable(f"{reason} (the file is called {suffix})") from None
        raise


def row_of(source: Source, entry: Entry) -> dict[str, object]:
    """What the listing says of a file."""
    row: dict[str, object] = {"id": item_id(source.name, entry.uri), "uri": entry.uri, "reason": entry.reason}
    row["status"] = "set_aside" if entry.reason else "ok"
    row |= {"bytes": entry.bytes, "modified_ns": entry.modified_ns} | entry.columns
    for name in ("boxes", "mask"):  # their pixels are known with the header
        if not isinstance(row.get(name), str):
            row.pop(name, None)
    return row


def _with_header(source: Source, entry: Entry, row: dict[str, object], header: Header) -> dict[str, object]:
    row = row | {name: getattr(header, name) for name in FROM_HEADER} | {"reason": header.note}
    if (boxes := entry.columns.get("boxes")) is not None:
        row["boxes"] = as_cell(boxes, header.width, header.height, header.exif_orientation)
    if (mask := entry.columns.get("mask")) is not None:
        row["mask"] = mask_cell(mask, header.width, header.height, header.exif_orientation)
    if header.frame is not None:
        row |= {"page": header.frame, "id": item_id(source.name, entry.uri, header.frame)}
        row["content_hash"] = _blake(f"{row['content_hash']} {header.frame}".encode()).hexdigest()
        if row.get("frame") is None:  # a page without a place of its own is at its number in its file
            row |= {"sequence": row.get("sequence") or entry.uri, "frame": header.frame}
    return row
