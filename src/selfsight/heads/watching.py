"""Predictions that go on as files arrive."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.errors import DataError
from selfsight.files import append_lance, lance_exists, open_lance
from selfsight.heads.head import Head
from selfsight.heads.predictions import failed, unread, with_unread

FORMATS = (".jsonl", ".lance")  # that can be appended to
STILL = 1.0  # seconds that the size of a file must have stood
PATIENCE = 60.0  # seconds after its last change, for which a file that cannot be read may still become readable
AT_ONCE = 256  # items


def watched(head: Head, source: str, out: Path) -> Iterator[pa.Table]:
    """Predictions for the items of `source` that `out` does not have under this head yet, and for those that arrive,
    for ever. Each table was appended to `out` before it is yielded; where nothing arrived for a second it is empty.

    A file is taken once its size stood still for a second. One that cannot be read is tried until it is a minute old.
    """
    written = _written(out, head.digest)
    sizes: dict[str, tuple[object, float]] = {}
    while True:
        began = time.monotonic()
        arrived = False
        for table in _fresh(head, _listed(source), written, sizes):
            _append(table, out)
            written |= set(table["id"].to_pylist())
            arrived = True
            yield table
        if not arrived:
            yield pa.table({"id": pa.array([], pa.string())})
        time.sleep(max(STILL / 2, time.monotonic() - began))  # listing takes at most half of the time


def _listed(source: str) -> Collection | None:
    """The items that there are; None while there is none that can be read."""
    try:
        return open_source(source)
    except DataError:
        if not Path(source).is_dir():
            raise
        return None


def _fresh(
    head: Head, items: Collection | None, written: set[str], sizes: dict[str, tuple[object, float]]
) -> Iterator[pa.Table]:
    """Predictions for what may be taken now."""
    if items is None:
        return
    now, wall = time.monotonic(), time.time()
    ready, late = [], set()
    rows = items.table
    names = ("id", "bytes", "modified_ns")
    for place, (item, size, changed) in enumerate(zip(*(rows[name].to_pylist() for name in names), strict=True)):
        if item in written:
            continue
        stamp = (size, changed)
        known, since = sizes.setdefault(item, (stamp, now))
        if known != stamp:
            sizes[item] = (stamp, now)
        elif now - since >= STILL:
            ready.append(place)
            if changed is None or wall - changed / 1e9 > PATIENCE:
                late.add(item)
    for start in range(0, len(ready), AT_ONCE):
        table = _predicted(head, items, rows.take(ready[start : start + AT_ONCE]), late)
        if len(table):
            yield table


def _predicted(head: Head, items: Collection, rows: pa.Table, late: set[str]) -> pa.Table:
    """Predictions for these rows; of those that cannot be read only the `late` ones."""
    fine = pa.compute.equal(rows["status"], "ok")
    usable, rest = rows.filter(fine), unread(rows.filter(pa.compute.invert(fine)))
    found, bad = head.told_of(items, usable)
    waited = [item for item in rest + failed(usable, bad) if item.id in late]
    return with_unread(found, waited, head.digest)


def _written(out: Path, digest: str) -> set[str]:
    """The ids that `out` has under this head. A line that a kill has cut is removed."""
    if out.suffix.lower() == ".lance":
        if not lance_exists(out):
            return set()
        rows = open_lance(out).to_table(columns=["id", "head"]).to_pylist()
        return {row["id"] for row in rows if row["head"] == digest}
    if not out.exists():
        return set()
    content = out.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(out, content.rfind(b"\n") + 1)
    found = set()
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if line.endswith(b"\n"):
            try:
                row = json.loads(line)
                found |= {row["id"]} if row["head"] == digest else set()
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{out}, line {number}, is not a prediction. Give another -o.") from None
    return found


def _append(table: pa.Table, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".lance":
        append_lance(table, out)
        return
    with out.open("ab") as file:
        file.write(b"".join((json.dumps(row) + "\n").encode() for row in table.to_pylist()))
        file.flush()
        os.fsync(file.fileno())
