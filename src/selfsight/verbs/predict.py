"""predict: what a head says of new items."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from selfsight.errors import SelfsightError
from selfsight.results import Result, counted
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import pyarrow as pa

    from selfsight.heads.classify_head import ClassifyHead
    from selfsight.heads.head import Head

PRINTED = 10


@dataclass(frozen=True)
class Predictions(Result):
    """The result of `predict`.

    table: a row an item, by id (Arrow). items: that were predicted. set_aside: items that cannot be read, whose rows
    have a reason. reasons: why, with the number for each. labels: how many items got each label. left_open: items that
    the head does not decide with the promised coverage, or has seen nothing like. file: that was written. coco: the
    file of outlines that was written.
    """

    table: pa.Table
    items: int
    set_aside: int
    reasons: dict[str, int]
    labels: dict[str, int]
    left_open: int
    file: str | None = None
    coco: str | None = None

    def to_dict(self) -> dict[str, object]:
        values = {
            name: getattr(self, name)
            for name in ("items", "set_aside", "reasons", "labels", "left_open", "file", "coco")
        }
        return values if self.file else values | {"predictions": self.table.to_pylist()}


@checked
def predict(
    source: str, *, head: str | Head, out: str | None = None, pixel_size: str | None = None, coco: str | None = None,
    watch: bool = False, device: str | None = None,
) -> Predictions:  # fmt: skip
    """Say what a head makes of every item of SOURCE: label, calibrated probabilities, prediction set, and why.

    A row an item: id, uri, reason (of an item that cannot be read), label, score (the probability of the label),
    probabilities, set (the classes that hold the truth with the promised coverage), abstain (the set holds several
    classes, or nothing like the item was learnt), novel (a p-value: small for what is unlike all that was learnt) and
    why (the examples most like it). Several labels have `labels`; a number has value, low and high. The same command
    goes on where it stopped.

    Of an inspection: score (higher is more abnormal), p (the share of good parts that score as high), defect (p is at
    most the rate of false alarms that the head promises) and map (its picture's path in the folder).

    Of a segmentation: score (how sure it is of a pixel, the mean), mask (its path in the folder) and objects, each with
    label, score, box, area, centroid (x, y), intensity (mean grey, 0 to 1) and run lengths (COCO). The folder also gets
    objects.csv, a row an object, and counts.csv, a row a picture; where the head tells objects apart, objects/ has
    their numbers, 16 bits.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    head
        A head, made by `selfsight train`.
    out
        File for the predictions: .parquet, .csv (lists as JSON), .json, .jsonl or .lance. Of a head that says where, a
        folder: for predictions.parquet, maps/, masks/, objects/ and overlays/.
    pixel_size
        Side of a pixel, such as 0.5um or 0.02mm: objects.csv and counts.csv then give areas and places in it too.
    coco
        File for a COCO JSON of what a segmentation finds: run lengths, box, score and class of each object; where it
        does not tell objects apart, one region for each class in a picture.
    watch
        Go on as files arrive, until Ctrl-C, and append to a .jsonl or .lance. A file is taken once its size stood still
        for a second; one that cannot be read is tried until it is a minute old. Started again, it skips the items that
        the file has of the same head.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.data.importers import check_outside, open_source
    from selfsight.data.written import note
    from selfsight.files import write_whole
    from selfsight.heads import watching
    from selfsight.heads.head import Head, load_head
    from selfsight.heads.outlined import check_outlines, coco_of
    from selfsight.heads.pictures import JOURNAL, is_folder
    from selfsight.heads.predictions import FORMATS, check_format, save_predictions
    from selfsight.heads.segment_head import SegmentAbout
    from selfsight.heads.segment_pictures import counts_csv, objects_csv, parse_pixel_size
    from selfsight.machine import best_device

    side = parse_pixel_size(pixel_size)
    if coco is not None and (watch or Path(coco).suffix.lower() != ".json" or coco == out):
        raise SelfsightError(
            f"--coco is a file of its own that ends in .json, and does not go with --watch; it cannot be {coco} here."
        )
    if watch and out is None:
        raise SelfsightError("--watch appends to a file. Give one: -o predictions.jsonl")
    opened = head if isinstance(head, Head) else load_head(head)
    folder = None if out is None or watch or not is_folder(out, opened.draws) else Path(out)
    if out is not None and folder is None:
        check_format(out, watching.FORMATS if watch else FORMATS)
    if coco is not None:
        check_outlines(opened, folder)
    opened.module.to(best_device())
    if watch and out is not None:
        check_outside(out, source)
        return _watch(watching.check_watches(opened), source, Path(out))
    items = open_source(source)
    if out is not None:
        check_outside(out, items.about.location)
    if coco is not None:
        check_outside(coco, items.about.location, "--coco")
    result = replace(_counted(opened.predict(items, folder)), coco=coco)
    if coco is not None and isinstance(opened.about, SegmentAbout):
        Path(coco).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(coco), coco_of(result.table, items.usable, opened.about, folder))
        note("pictures", Path(coco), items.path)
    if out is None:
        return result
    if folder is None:
        save_predictions(result.table, out)
    else:
        save_predictions(result.table, folder / "predictions.parquet")
        if "objects" in result.table.column_names:
            write_whole(folder / "objects.csv", objects_csv(result.table, *side))
            names = getattr(opened.about, "classes", [])[1:]
            write_whole(folder / "counts.csv", counts_csv(result.table, names, *side))
        (folder / JOURNAL).unlink(missing_ok=True)
        note("pictures", folder, items.path)
    note("features", Path(out) if folder is None else folder / "predictions.parquet", items.path)
    return replace(result, file=out)


def _watch(head: ClassifyHead, source: str, out: Path) -> Predictions:
    """Predict until Ctrl-C; returns how many items got which label, with the table of the last of them."""
    from collections import Counter

    import pyarrow as pa

    from selfsight.console import console
    from selfsight.data.importers import open_source
    from selfsight.data.written import note
    from selfsight.heads.watching import watched

    console().print(f"Watching {source}; Ctrl-C ends it.", soft_wrap=True)
    result = _counted(pa.table({"id": pa.array([], pa.string())}))
    try:
        for table in watched(head, source, out):
            if len(table) and not result.items + result.set_aside:  # the first
                note("features", out, open_source(source, as_is=True).path)
            for row in table.to_pylist():
                console().print(f"{said(row)}  {row['uri']}", soft_wrap=True)
            more = _counted(table)
            result = replace(
                more,
                items=result.items + more.items,
                set_aside=result.set_aside + more.set_aside,
                reasons=dict(Counter(result.reasons) + Counter(more.reasons)),
                labels=dict(Counter(result.labels) + Counter(more.labels)),
                left_open=result.left_open + more.left_open,
            )
    except KeyboardInterrupt:  # the way to end it
        console().print("Stopped; every row is in the file.")
    return replace(result, file=str(out))


def said(row: Mapping[str, object]) -> str:
    """The answer of a row of predictions in a few words, or why there is none."""
    if row.get("reason"):
        return str(row["reason"])
    if "defect" in row:
        where = f"  {row['map']}" if row.get("map") else ""
        return f"{'defect' if row['defect'] else 'good'}  {row['score']:.3f}  p {row['p']:.3f}{where}"
    if "objects" in row:
        return f"{len(cast('list[object]', row['objects'])):,} objects" + (f"  {row['mask']}" if row["mask"] else "")
    if "value" in row:
        return f"{row['value']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"
    named = row["label"] if "label" in row else "|".join(cast("list[str]", row["labels"])) or "(none)"
    score = row.get("score")
    return f"{named}" if score is None else f"{named}  {100 * cast(float, score):.0f} %"


def _counted(table: pa.Table) -> Predictions:
    """The table, and how often it says what."""
    from collections import Counter

    columns = set(table.column_names)
    reasons = Counter(reason for reason in (table["reason"].to_pylist() if "reason" in columns else []) if reason)
    values = [value for name in ("label", "labels") if name in columns for value in table[name].to_pylist()]
    named = Counter("|".join(value) if isinstance(value, list) else value for value in values if value is not None)
    if "defect" in columns:
        named = Counter("defect" if each else "good" for each in table["defect"].to_pylist() if each is not None)
    if "objects" in columns:
        named = Counter(one["label"] for found in table["objects"].to_pylist() for one in found or ())
    left = sum(filter(None, table["abstain"].to_pylist())) if "abstain" in columns else 0
    bad = sum(reasons.values())
    return Predictions(table, len(table) - bad, bad, dict(reasons), dict(named.most_common()), left)


def _counts(columns: list[str]) -> str:
    """What a table of predictions counts."""
    return "object" if "objects" in columns else "answer" if "defect" in columns else "label"


def show(result: Predictions) -> None:
    """Print how many items got which label, and the first rows or where they are."""
    from selfsight.console import results, table

    console = results(soft_wrap=True)
    console.print(f"{result.items:,} items predicted.")
    if result.labels:
        table(
            (_counts(result.table.column_names), "items"),
            [(name or "(none)", f"{count:,}") for name, count in result.labels.items()],
        )
    if result.left_open:
        console.print(
            f"{result.left_open:,} are left open: several classes are likely, or nothing like them was learnt."
        )
    if result.set_aside:
        console.print(f"{result.set_aside:,} cannot be read ({counted(result.reasons)}).")
    if result.coco is not None:
        console.print(f"Outlines written to {shlex.quote(result.coco)}.")
    if result.file is not None:
        console.print(f"Written to {shlex.quote(result.file)}.")
        return
    for row in result.table.slice(0, PRINTED).to_pylist():
        console.print(f"{said(row)}  {row['uri']}")
    if result.coco is None:
        console.print("No file was written. Give one: -o predictions.parquet")
