"""The one way out of a head: a row an item, in the file that a name asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from selfsight.data.collection import Collection
from selfsight.encoders.features import pooled
from selfsight.errors import SelfsightError
from selfsight.files import Place, save_table, whole
from selfsight.heads.head import Head

FORMATS = (".parquet", ".csv", ".json", ".jsonl", ".lance")


def check_format(out: Place, formats: tuple[str, ...] = FORMATS) -> None:
    """Raise `SelfsightError` if predictions cannot be written under this name."""
    if Path(out).suffix.lower() not in formats:
        raise SelfsightError(f"Cannot tell the format of {str(out)!r}. End it in one of {', '.join(formats)}.")


def predicted(head: Head, items: Collection, rows: pa.Table | None = None) -> pa.Table:
    """Predictions for `rows` (all items if not given), in the order of ids. Items that cannot be read have a `reason`
    and nothing else. `head` is its digest.

    Features are kept with the collection, so the same call goes on where it was stopped.
    """
    rows = items.table if rows is None else rows
    usable = rows.filter(pa.compute.equal(rows["status"], "ok"))
    known, features, bad = pooled(head.encoder, items, usable) if len(usable) else (usable, None, {})
    unread = dict(zip(rows["id"].to_pylist(), rows["reason"].to_pylist(), strict=True))
    read = set(known["id"].to_pylist())
    failed = [row for row in rows.select(["id", "uri"]).to_pylist() if row["id"] not in read]
    reasons = [bad.get(row["id"]) or unread[row["id"]] for row in failed]
    rest = pa.table(
        {
            "id": pa.array([row["id"] for row in failed], pa.string()),
            "uri": pa.array([row["uri"] for row in failed], pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
    )
    found = rest
    if features is not None and len(known):
        told = head.predictions(known, features)
        told = told.add_column(2, "reason", pa.array([""] * len(told), pa.string()))
        found = pa.concat_tables([told, rest], promote_options="default")
    return found.append_column("head", pa.array([head.digest] * len(found), pa.string())).sort_by("id")


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
