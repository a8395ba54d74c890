"""The one way out of a head: a row an item, in the file that a name asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import pyarrow as pa

from selfsight.errors import SelfsightError
from selfsight.files import Place, save_table, whole

Row: TypeAlias = dict[str, Any]  # an item's predictions, by the names of the columns
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


def read_rows(rows: pa.Table, said: Mapping[int, Mapping[str, object]], types: Mapping[str, pa.DataType]) -> pa.Table:
    """Predictions of those of `rows` whose number `said` has, with the columns `types`."""
    known = [number for number in range(len(rows)) if number in said]
    found = rows.select(["id", "uri"]).take(pa.array(known, pa.int64()))
    found = found.append_column("reason", pa.array([""] * len(known), pa.string()))
    for name, type in types.items():
        found = found.append_column(name, pa.array([said[number][name] for number in known], type))
    return found


def with_unread(found: pa.Table, rest: list[Unread], head: str) -> pa.Table:
    """Predictions, of which `reason` is one column, with a row for each of the `rest`, in the order of ids. The column
    `head` is the digest of the head."""
    columns = [pa.array([getattr(item, name) for item in rest], pa.string()) for name in Unread._fields]
    found = pa.concat_tables([found, pa.table(columns, names=Unread._fields)], promote_options="default")
    return found.append_column("head", pa.array([head] * len(found), pa.string())).sort_by("id")


def decision(row: Mapping[str, object]) -> str:
    """What a row of predictions decides, without how sure it is."""
    if "defect" in row:
        return "defect" if row["defect"] else "good"
    if "objects" in row:
        return f"{len(cast('list[object]', row['objects'])):,} objects"
    if "value" in row:
        return f"{row['value']:.4g}"
    return str(row["label"]) if "label" in row else "|".join(cast("list[str]", row["labels"])) or "(none)"


def said(row: Mapping[str, object]) -> str:
    """The answer of a row of predictions in a few words, or why there is none."""
    if row.get("reason"):
        return str(row["reason"])
    words, score = decision(row), row.get("score")
    if "defect" in row:
        where = f"  {row['map']}" if row.get("map") else ""
        return f"{words}  {score:.3f}  p {row['p']:.3f}{where}"
    if "objects" in row:
        return words + (f"  {path}" if (path := row.get("mask") or row.get("overlay")) else "")
    if "value" in row:
        return f"{words} [{row['low']:.4g}, {row['high']:.4g}]"
    return words if score is None else f"{words}  {100 * cast(float, score):.0f} %"


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
