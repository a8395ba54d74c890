"""From a source to a collection: parallel, incremental, and nothing silently skipped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfsight.console import console, track
from selfsight.data.annotations.outlines import mask_cell
from selfsight.data.boxes import as_cell
from selfsight.data.cache import cache_folder, check_room
from selfsight.data.collection import SCHEMA, About, Collection, schema_with
from selfsight.data.items import row_of, rows_of
from selfsight.data.lock import awaited
from selfsight.data.manifest import beside
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.source import KNOWN_COLUMNS, Entry, Options, Source
from selfsight.data.threads import ordered
from selfsight.data.written import note
from selfsight.errors import DataError, SelfsightError

T = TypeVar("T")
LISTED = 4096  # files looked up at a time
CHUNK = 64  # files a task of a thread: enough that handing over costs little beside reading headers
SEGMENT = 20_000  # rows, after which an import that is killed keeps what it has read


def open_source(
    source: str | os.PathLike[str],
    collection: str | os.PathLike[str] | None = None,
    strict: bool = False,
    as_is: bool = False,
) -> Collection:
    """The collection of a source (kept under the cache folder, or at `collection`), or a `.lance` folder. `as_is`: the
    one that there is, if there is one, whatever has become of the source since.

    Raises `SelfsightError` for a source that does not exist or holds no readable image, and with `strict`
    for the first item that has to be set aside.
    """
    if str(source).rstrip("/\\").endswith(".lance"):
        return _told(_checked(Collection.open(Path(source).expanduser()), strict))
    opened = make_source(str(source), Options())
    if collection is not None and Collection.exists(Path(collection)):
        about = Collection.open(collection).about
        if about.location == opened.location:  # listed again as it was imported: with its columns and patterns
            opened = make_source(str(source), about.options)
    if collection is None:
        key = hashlib.blake2b(os.fsencode(opened.location), digest_size=6).hexdigest()
        name = re.sub(r"[^\w.-]", "_", opened.name)[:60]
        collection = cache_folder() / "collections" / f"{name}-{key}" / "items.lance"
    if as_is and Collection.exists(Path(collection)):
        return _told(Collection.open(collection))
    return _told(import_source(opened, Path(collection), strict))


def import_source(source: Source, out: Path, strict: bool = False) -> Collection:
    """List `source` into the collection at `out`. A file that has not changed since the last import is not
    read again, and an import that was stopped goes on where it was."""
    if Collection.exists(out):
        known = Collection.open(out)
        if (known.about.location, known.about.listing) == (source.location, _listing(source)[1]):
            return _checked(known, strict)
    check_room(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    # where another process imports it at this moment, what it reads is then known
    with awaited(beside(out, ".lance.lock"), pause=0.2):
        items = _import(source, out, strict)
    note("collection", out, out)
    return items


def _import(source: Source, out: Path, strict: bool) -> Collection:
    """`import_source` where no other process is at it."""
    before = Collection.open(out) if Collection.exists(out) else None
    if before and before.about.location != source.location:
        raise SelfsightError(f"{out} was imported from {before.about.location}. Give another -o, or remove it first.")
    count, listing = _listing(source)
    if before and before.about.listing == listing:
        return _checked(before, strict)
    part = _partial(source, out)
    schema = schema_with((*source.options.columns, *source.brings))
    # First what is not known yet, in segments that survive a kill; then the whole table, in one commit.
    failed = _read_unknown(source, _Known(source, before, part), part, schema, count, strict)
    others = source.others + Counter({"": Collection.open(part).count("other") if Collection.exists(part) else 0})
    about = About(source.location, source.options, dict(others), "" if failed else listing)
    about.forgotten = before.about.forgotten if before else []
    about.contradicted, about.aside = dict(source.contradicted), dict(source.aside)
    batches = _batches(source, _Known(source, before, part), schema, set(about.forgotten))
    first: list[pa.RecordBatch] = []  # up to a usable row: without any, nothing is overwritten
    while not (first and pc.any(pc.equal(first[-1]["status"], "ok")).as_py()):
        if (batch := next(batches, None)) is None:
            shutil.rmtree(part, ignore_errors=True)
            raise _nothing(source, others, first)
        first.append(batch)
    items = Collection.write(out, chain(first, batches), schema, about)
    shutil.rmtree(part, ignore_errors=True)
    return items


def _partial(source: Source, out: Path) -> Path:
    """Where rows of an unfinished import lie; those of an import that was asked otherwise are of no use."""
    part = beside(out, ".lance.partial")
    if Collection.exists(part):
        about = Collection.open(part).about
        elder = "exif_orientation" not in Collection.open(part).columns  # before version 3
        if elder or (about.location, about.options) != (source.location, source.options):
            shutil.rmtree(part)
    return part


def _listing(source: Source) -> tuple[int, str]:
    """How many files the source lists, and a hash of all that the listing says."""
    digest = hashlib.blake2b(json.dumps(source.options.to_dict()).encode(), digest_size=16)
    count, keys = 0, [np.empty(0, np.uint64)]
    chunks = _chunks(source.entries(), LISTED)
    for chunk in track(chunks, f"Listing {source.name}", None, size=len):
        text = "\n".join(f"{e.uri}\0{e.bytes}\0{e.modified_ns}\0{e.columns}\0{e.reason}" for e in chunk)
        digest.update(text.encode("utf-8", "backslashreplace"))
        keys.append(_keys(chunk))
        count += len(chunk)
    for said in (source.others, *filter(None, (source.contradicted, source.aside))):
        digest.update(json.dumps(dict(said), sort_keys=True).encode("utf-8", "backslashreplace"))
    if len(np.unique(np.concatenate(keys))) < count:
        raise DataError(f"{source.location} lists two files under one name. Rename one of them.")
    return count, digest.hexdigest()


def _read_unknown(source: Source, known: _Known, part: Path, schema: pa.Schema, count: int, strict: bool) -> int:
    """Read the headers of files that are not known and append their rows to the table `part`.

    Returns how many could not even be opened.
    """
    failed = 0
    keywords = source.keywords

    def read(chunk: Task) -> Rows:
        return chunk[0], [row for entry in chunk[1] for row in rows_of(source, entry, keywords)]

    def unknown() -> Iterator[Task]:
        for chunk in _chunks(source.entries(), LISTED):
            found = known.find(chunk)
            missing = [
                e for e, rows in zip(chunk, found, strict=True) if rows is None and not (e.reason and not strict)
            ]
            yield len(chunk) - len(missing), []
            for task in _chunks(missing, CHUNK):
                yield len(task), task

    rows: list[dict[str, object]] = []
    try:
        for _, fresh in track(_threaded(read, unknown()), f"Reading {source.name}", count, size=lambda chunk: chunk[0]):
            for row in fresh:
                if strict and row["status"] == "set_aside":
                    raise refusal(str(row["uri"]), str(row["reason"]))
                failed += row["status"] == "set_aside" and row.get("content_hash") is None
            rows += fresh
            if len(rows) >= SEGMENT:
                _append(part, rows, schema, source)
                rows = []
    finally:  # also what Ctrl-C leaves
        if rows:
            _append(part, rows, schema, source)
    return failed


Task = tuple[int, list[Entry]]
Rows = tuple[int, list[dict[str, object]]]


def _threaded(read: Callable[[Task], Rows], tasks: Iterator[Task]) -> Iterator[Rows]:
    """`read` of each task, in many threads where it waits for a disk or a network, as the first task shows; in one
    where it does not: Python's lock let one thread read 13,000 small files a second, and four 5,000 to 11,000."""
    for task in tasks:
        began, worked = time.monotonic(), time.thread_time()
        yield read(task)
        if task[1]:
            waits = time.monotonic() - began > 3 * (time.thread_time() - worked)
            yield from ordered(read, tasks, ahead=32, workers=16 if waits else 1)


def _append(part: Path, rows: list[dict[str, object]], schema: pa.Schema, source: Source) -> None:
    about = About(source.location, source.options)
    Collection.append(part, pa.Table.from_pylist(rows, schema=schema), about)


def _batches(source: Source, known: _Known, schema: pa.Schema, forgotten: set[str]) -> Iterator[pa.RecordBatch]:
    """The rows of the whole source, some thousands at a time."""
    keywords = source.keywords
    for chunk in _chunks(source.entries(), LISTED):
        found = known.find(chunk)
        rows = known.take(chunk, found, schema)
        fresh: list[dict[str, object]] = []
        for entry, positions in zip(chunk, found, strict=True):
            if positions is None:  # not opened, or changed a moment ago
                fresh += [row_of(source, entry)] if entry.reason else rows_of(source, entry, keywords)
        rows = pa.concat_tables([rows, pa.Table.from_pylist(fresh, schema=schema)])
        rows = rows.filter(pc.not_equal(rows["status"], "other"))
        if forgotten:
            rows = rows.filter(pc.invert(pc.is_in(rows["id"], pa.array(forgotten, pa.string()))))
        yield from rows.combine_chunks().to_batches()


class _Known:
    """The rows of earlier imports, found by path, size and time of change: twenty bytes per row in memory."""

    def __init__(self, source: Source, before: Collection | None, part: Path) -> None:
        candidates = [before] if before else []
        if Collection.exists(part):
            candidates.append(Collection.open(part))
        now = source.location, source.options.rate, source.keywords
        self.from_files = set(source.keywords)
        if {"boxes", "mask"} & {
            *source.options.columns,
            *source.brings,
        }:  # which cannot be turned with images that were read before version 3
            candidates = [c for c in candidates if "exif_orientation" in c.columns]
        self.tables = [c for c in candidates if now == (c.about.location, c.about.options.rate, c.source.keywords)]
        self.starts = np.cumsum([0, *(len(table) for table in self.tables)])  # a place counts through all tables
        self.keys, self.stamps = (np.empty(self.starts[-1], np.uint64) for _ in range(2))
        self.places = np.empty(self.starts[-1], np.uint32)
        count = 0
        for table, place in zip(self.tables, self.starts.tolist(), strict=False):
            for batch in table.batches(["uri", "bytes", "modified_ns", "content_hash"]):
                read = batch.filter(batch["content_hash"].is_valid())
                filled = slice(count, count + len(read))
                self.keys[filled] = [_key(uri) for uri in read["uri"].to_pylist()]
                self.stamps[filled] = _stamps(read["bytes"].to_pylist(), read["modified_ns"].to_pylist())
                self.places[filled] = place + np.flatnonzero(batch["content_hash"].is_valid())
                count, place = count + len(read), place + len(batch)
        order = np.argsort(self.keys[:count], kind="stable").astype(np.uint32)
        for name in ("keys", "stamps", "places"):  # one by one, as the old one goes when the new one is there
            setattr(self, name, getattr(self, name)[order])

    def find(self, entries: list[Entry]) -> list[np.ndarray | None]:
        """For each file the numbers of its rows here, or None if it is new or has changed."""
        keys = _keys(entries)
        starts, ends = np.searchsorted(self.keys, keys, "left"), np.searchsorted(self.keys, keys, "right")
        stamps = _stamps([entry.bytes for entry in entries], [entry.modified_ns for entry in entries])
        found: list[np.ndarray | None] = []
        for entry, stamp, start, end in zip(entries, stamps, starts.tolist(), ends.tolist(), strict=True):
            places = np.empty(0, np.uint32)
            if end > start and entry.bytes is not None and not entry.reason:
                places = self.places[start:end][self.stamps[start:end] == stamp]
            if len(places):  # those of the latest table
                latest = self.starts[np.searchsorted(self.starts, places.max(), "right") - 1]
                places = places[places >= latest]
            found.append(places if len(places) else None)
        return found

    def take(self, entries: list[Entry], found: list[np.ndarray | None], schema: pa.Schema) -> pa.Table:
        """The rows found, with what the source says of their files now."""
        tables = [schema.empty_table()]
        owners = [np.full(len(rows), i) for i, rows in enumerate(found) if rows is not None]
        numbers = [rows for rows in found if rows is not None]
        if not numbers:
            return tables[0]
        owner, number = np.concatenate(owners), np.concatenate(numbers)
        for table, start in zip(self.tables, self.starts.tolist(), strict=False):
            mine = (number >= start) & (number < start + len(table))
            if mine.any():
                rows = table.take(number[mine] - start)
                tables.append(_described(rows, [entries[i] for i in owner[mine]], schema, self.from_files))
        return pa.concat_tables(tables)


def _described(rows: pa.Table, entries: list[Entry], schema: pa.Schema, from_files: set[str]) -> pa.Table:
    """`rows` with the columns of `schema`: what describes an item as the source says it now, and nothing of what it
    said before, but for what was read from the files themselves: the columns `from_files`, and places of pages."""
    columns = {}
    described = {*KNOWN_COLUMNS, *(name for name in schema.names if name not in SCHEMA.names)} - from_files
    pages = rows["page"].to_pylist()
    for field in schema:
        old = rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        if field.name in described:
            own = field.name in ("sequence", "frame")
            kept = [k if own and page is not None else None for k, page in zip(old.to_pylist(), pages, strict=True)]
            said = [e.columns.get(field.name) for e in entries]
            if field.name in ("boxes", "mask"):
                sizes = (rows[name].to_pylist() for name in ("width", "height", "exif_orientation"))
                cell = as_cell if field.name == "boxes" else mask_cell
                said = [cell(*each) for each in zip(said, *sizes, strict=True)]
            old = pa.array([k if s is None else s for s, k in zip(said, kept, strict=True)], field.type)
        columns[field.name] = old
    return pa.table(columns, schema=schema)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).digest(), "little")


def _stamps(sizes: list[int | None], times: list[int | None]) -> list[int]:
    """One number for the size and the time of the last change of each file."""
    return [_key(f"{size} {time}") for size, time in zip(sizes, times, strict=True)]


def _keys(entries: list[Entry]) -> np.ndarray:
    return np.array([_key(entry.uri) for entry in entries], dtype=np.uint64)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _nothing(source: Source, others: Counter[str], rows: list[pa.RecordBatch]) -> SelfsightError:
    reasons = Counter(reason for batch in rows for reason in batch["reason"].to_pylist())
    example = next((f", such as {batch['uri'][0]}" for batch in rows if len(batch)), "")
    seen = [f"{n:,} that cannot be read ({reason})" for reason, n in reasons.most_common(3)]
    seen += [f"{n:,} {suffix or 'without suffix'}" for suffix, n in others.most_common(5) if n]
    options = source.options
    patterns = [f"--include '{p}'" for p in options.include] + [f"--exclude '{p}'" for p in options.exclude]
    way = "Give a folder, list, table or archive of images (see selfsight import --help)."
    if patterns:
        way = f"Only what {' '.join(patterns)} lets through was looked at: change or leave out these patterns."
    elif source.kind in ("table", "coco") and reasons:
        way = "Name the folder that its paths are relative to: --root FOLDER; or another column: --columns path=COLUMN."
    return DataError(
        f"No readable image in {source.location}; what is there: {', '.join(seen) or 'nothing'}{example}. {way}"
    )


def _checked(items: Collection, strict: bool) -> Collection:
    """`items`, unless `strict` forbids that one is set aside."""
    if strict and len(items.unreadable):
        raise refusal(items.unreadable["uri"][0].as_py(), items.unreadable["reason"][0].as_py())
    return items


def _told(items: Collection) -> Collection:
    """`items`, once it is said how many people dropped."""
    if items.decided and (dropped := len(items.set_aside) - len(items.unreadable)):
        _tell(items.about.location, dropped)
    return items


@cache  # said once, however often a folder is looked into
def _tell(location: str, dropped: int) -> None:
    these = "1 item" if dropped == 1 else f"{dropped:,} items"
    console().print(f"{these} of {location} dropped by decisions.", style="dim", soft_wrap=True)


def refusal(uri: str, reason: str) -> SelfsightError:
    """The error of `strict`."""
    return DataError(f"{uri}: {reason}. Mend or remove it, or leave --strict out to set such files aside.")


def check_outside(out: str, location: str, option: str = "-o") -> None:
    """Raise `SelfsightError` if `out`, given by this option, would be written into the folder of a source."""
    folder = Path(location)
    if folder.is_dir() and Path(out).resolve().is_relative_to(folder.resolve()):
        raise SelfsightError(f"{out} is in the folder of the images, which stays as it is. Give another {option}.")
