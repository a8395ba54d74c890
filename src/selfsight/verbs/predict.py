"""predict: what a head says of new items."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from selfsight.errors import SelfsightError
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

    Of a detector: objects, each with label, score (the probability that it is there) and box, and counts, each with
    label, count, low and high, between which the true count lies as often as the head promises. The folder also gets
    objects.csv, a row an object, and counts.csv, a row a picture.

    Of a segmentation: score (how sure it is of a pixel, the mean), mask (its path in the folder) and objects, each with
    label, score, box, area, centroid (x, y), intensity (mean grey, 0 to 1) and run lengths (COCO). The folder also gets
    objects.csv, a row an object, and counts.csv, a row a picture; where the head tells objects apart, objects/ has
    their numbers, 16 bits.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names. With --watch also a camera,
        /dev/video0 or rtsp://user:password@camera/1, of which a frame a second is taken.
    head
        A head, made by `selfsight train`.
    out
        File for the predictions: .parquet, .csv (lists as JSON), .json, .jsonl or .lance. Of a head that says where, a
        folder: for predictions.parquet, maps/, masks/, objects/ and overlays/.
    pixel_size
        Side of a pixel, such as 0.5um or 0.02mm: objects.csv and counts.csv then give areas and places in it too.
    coco
        File for a COCO JSON of the objects that a detector or a segmentation finds: box, score and class of each, and
        its run lengths; where these are not told apart, one region for each class in a picture.
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
    from selfsight.heads import streaming, watching
    from selfsight.heads.detect_voice import DetectAbout
    from selfsight.heads.head import Head, load_head
    from selfsight.heads.outlined import check_outlines, coco_of
    from selfsight.heads.pictures import JOURNAL, is_folder
    from selfsight.heads.predictions import FORMATS, check_format, save_predictions
    from selfsight.heads.segment_pictures import parse_pixel_size
    from selfsight.heads.segment_voice import SegmentAbout
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
    if watch and out is not None and streaming.is_stream(source):
        return _stream(opened, source, Path(out))
    if watch and out is not None:
        check_outside(out, source)
        return _watch(opened, source, Path(out))
    items = open_source(source)
    if out is not None:
        check_outside(out, items.about.location)
    if coco is not None:
        check_outside(coco, items.about.location, "--coco")
    result = replace(_counted(opened.predict(items, folder)), coco=coco)
    if coco is not None and isinstance(opened.about, SegmentAbout | DetectAbout):
        Path(coco).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(coco), coco_of(result.table, items.usable, opened.about, folder))
        note("pictures", Path(coco), items.path)
    if out is None:
        return result
    if folder is None:
        save_predictions(result.table, out)
    else:
        save_predictions(result.table, folder / "predictions.parquet")
        for name, content in opened.tables(result.table, items.usable, *side).items():
            write_whole(folder / name, content)
        (folder / JOURNAL).unlink(missing_ok=True)
        note("pictures", folder, items.path)
    note("features", Path(out) if folder is None else folder / "predictions.parquet", items.path)
    return replace(result, file=out)


def _watch(head: Head, source: str, out: Path) -> Predictions:
    """Predict until Ctrl-C; returns how many items got which label, with the table of the last of them."""
    from collections import Counter

    import pyarrow as pa

    from selfsight.console import console
    from selfsight.data.importers import open_source
    from selfsight.data.written import note
    from selfsight.heads.predictions import said
    from selfsight.heads.watching import watched

    console().print(f"Watching {source}; Ctrl-C ends it.", soft_wrap=True)
    result = _counted(pa.table({"id": pa.array([], pa.string())}))
    try:
        for table in watched(head, source, out):
            first = len(table) and not result.items + result.set_aside
            more = _counted(table)
            result = replace(
                more,
                items=result.items + more.items,
                set_aside=result.set_aside + more.set_aside,
                reasons=dict(Counter(result.reasons) + Counter(more.reasons)),
                labels=dict(Counter(result.labels) + Counter(more.labels)),
                left_open=result.left_open + more.left_open,
            )
            for row in table.to_pylist():
                console().print(f"{said(row)}  {row['uri']}", soft_wrap=True)
            if first:
                note("features", out, open_source(source, as_is=True).path)
    except KeyboardInterrupt:  # the way to end it
        console().print("Stopped; every row is in the file.")
    return replace(result, file=str(out))


def _stream(head: Head, source: str, out: Path) -> Predictions:
    """Predict the frames of a camera until Ctrl-C; returns how many got which label, with the last of them."""
    from collections import Counter

    import pyarrow as pa

    from selfsight.console import console
    from selfsight.heads.predictions import decision, said
    from selfsight.heads.streaming import streamed, without_password

    console().print(f"Watching {without_password(source)}; Ctrl-C ends it.", soft_wrap=True)
    labels, reasons, last, left = Counter[str](), Counter[str](), [], 0
    try:
        for row in streamed(head, source, out):
            console().print(f"{said(row)}  {row['uri'].rpartition('#')[2]}", soft_wrap=True)
            (reasons if row["reason"] else labels)[row["reason"] or decision(row)] += 1
            left += bool(row.get("abstain"))
            last = [row]
    except KeyboardInterrupt:  # the way to end it
        console().print("Stopped; every row is in the file.")
    table, bad = pa.Table.from_pylist(last), sum(reasons.values())
    return Predictions(table, sum(labels.values()), bad, dict(reasons), dict(labels), left, str(out))


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
    from selfsight.heads.predictions import said

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
        console.print(f"{result.set_aside:,} have no prediction ({counted(result.reasons)}).")
    if result.coco is not None:
        console.print(f"Objects written to {shlex.quote(result.coco)}.")
    if result.file is not None:
        console.print(f"Written to {shlex.quote(result.file)}.")
        return
    for row in result.table.slice(0, PRINTED).to_pylist():
        console.print(f"{said(row)}  {row['uri']}")
    if result.coco is None:
        console.print("No file was written. Give one: -o predictions.parquet")
