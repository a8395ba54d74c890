"""The one way out of a head: a row an item, in the file that a name asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from selfsight.errors import SelfsightError
from selfsight.files import Place, save_table, whole

FORMATS = (".parquet", ".csv", ".json", ".jsonl", ".lance")


def check_format(out: Place, formats: tuple[str, ...] = FORMATS) -> None:
    """Raise `SelfsightError` if predictions cannot be written under this name."""
    if Path(out).suffix.lower() not in formats:
        raise SelfsightError(f"Cannot tell the format of {str(out)!r}. End it in one of {', '.join(formats)}.")


class Unread(NamedTuple):
    """An item that cannot be read, and why."""

    id: str
    uri: str
    reason: str


def unread(rows: pa.Table) -> list[Unread]:
    """Items that were set aside when they were imported."""
    return [Unread(**row) for row in rows.select(Unread._fields).to_pylist()]


def failed(rows: pa.Table, bad: dict[str, str]) -> list[Unread]:
    """Those of `rows` that could not be decoded: {id: reason}."""
    if not bad:
        return []
    pairs = zip(rows["id"].to_pylist(), rows["uri"].to_pylist(), strict=True)
    return [Unread(item, uri, bad[item]) for item, uri in pairs if item in bad]


def with_unread(found: pa.Table, rest: list[Unread], head: str) -> pa.Table:
    """Predictions, of which `reason` is one column, with a row for each of the `rest`, in the order of ids. The column
    `head` is the digest of the head."""
    columns = [pa.array([getattr(item, name) for item in rest], pa.string()) for name in Unread._fields]
    found = pa.concat_tables([found, pa.table(columns, names=Unread._fields)], promote_options="default")
    return found.append_column("head", pa.array([head] * len(found), pa.string())).sort_by("id")


def save_predictions(table: pa.Table, out: Place) -> None:
    """Write predictions in the format of the suffix; in .csv lists are JSON."""
    check_format(out)
    suffix = Path(out).suffix.lower()
    if suffix not in (".json", ".jsonl"):
        save_table(table, out)
        return
    if "://" not in str(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    with whole(out) as file:
        if suffix == ".json":
            file.write(json.dumps(table.to_pylist(), indent=1).encode())
        else:
            file.writelines((json.dumps(row) + "\n").encode() for row in table.to_pylist())
