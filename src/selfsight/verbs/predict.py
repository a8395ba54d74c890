"""predict: what a head says of new items."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.results import Result, counted
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import pyarrow as pa

    from selfsight.heads.head import Head

PRINTED = 10


@dataclass(frozen=True)
class Predictions(Result):
    """The result of `predict`.

    table: a row an item, by id (Arrow). items: that were predicted. set_aside: items that cannot be read, whose rows
    have a reason. reasons: why, with the number for each. labels: how many items got each label. left_open: items that
    the head does not decide with the promised coverage, or has seen nothing like. file: that was written.
    """

    table: pa.Table
    items: int
    set_aside: int
    reasons: dict[str, int]
    labels: dict[str, int]
    left_open: int
    file: str | None = None

    def to_dict(self) -> dict[str, object]:
        values = {
            name: getattr(self, name) for name in ("items", "set_aside", "reasons", "labels", "left_open", "file")
        }
        return values if self.file else values | {"predictions": self.table.to_pylist()}


@checked
def predict(source: str, *, head: str | Head, out: str | None = None, device: str | None = None) -> Predictions:
    """Say what a head makes of every item of SOURCE: label, calibrated probabilities, prediction set, and why.

    A row an item: id, uri, reason (of an item that cannot be read), label, score (the probability of the label),
    probabilities, set (the classes that hold the truth with the promised coverage), abstain (the set holds several
    classes, or nothing like the item was learnt), novel (a p-value: small for what is unlike all that was learnt) and
    why (the examples most like it). Several labels have `labels`; a number has value, low and high. The same command
    goes on where it stopped.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    head
        A head, made by `selfsight train classify`.
    out
        File for the predictions: .parquet, .csv (lists as JSON), .json, .jsonl or .lance.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from collections import Counter

    from selfsight.data.importers import check_outside, open_source
    from selfsight.data.written import note
    from selfsight.heads.head import Head, load_head
    from selfsight.heads.predictions import check_format, predicted, save_predictions
    from selfsight.machine import best_device

    if out is not None:
        check_format(out)
    opened = head if isinstance(head, Head) else load_head(head)
    opened.module.to(best_device())
    items = open_source(source)
    if out is not None:
        check_outside(out, items.about.location)
    table = predicted(opened, items)
    reasons = Counter(reason for reason in table["reason"].to_pylist() if reason)
    named = [name for name in ("label", "labels") if name in table.column_names]
    said = [value for name in named for value in table[name].to_pylist() if value is not None]
    labels = Counter("|".join(value) if isinstance(value, list) else value for value in said)
    open_ = sum(filter(None, table["abstain"].to_pylist())) if "abstain" in table.column_names else 0
    bad = sum(reasons.values())
    result = Predictions(table, len(table) - bad, bad, dict(reasons), dict(labels.most_common()), open_)
    if out is None:
        return result
    save_predictions(table, out)
    note("features", Path(out), items.path)
    return replace(result, file=out)


def show(result: Predictions) -> None:
    """Print how many items got which label, and the first rows or where they are."""
    from selfsight.console import results, table

    console = results(soft_wrap=True)
    console.print(f"{result.items:,} items predicted.")
    if result.labels:
        table(("label", "items"), [(name or "(none)", f"{count:,}") for name, count in result.labels.items()])
    if result.left_open:
        console.print(
            f"{result.left_open:,} are left open: several classes are likely, or nothing like them was learnt."
        )
    if result.set_aside:
        console.print(f"{result.set_aside:,} cannot be read ({counted(result.reasons)}).")
    if result.file is not None:
        console.print(f"Written to {shlex.quote(result.file)}.")
        return
    for row in result.table.slice(0, PRINTED).to_pylist():
        said = row.get("label") or row.get("labels") or row.get("value") or row["reason"]
        score = f"{100 * row['score']:.0f} %" if row.get("score") is not None else ""
        console.print(f"{said}  {score}  {row['uri']}")
    console.print("No file was written. Give one: -o predictions.parquet")
