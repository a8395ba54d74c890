"""select: which items to label first."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, ClassVar, Literal

from selfsight.errors import DataError, SelfsightError
from selfsight.results import Result, counted
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from selfsight.data.collection import Collection
    from selfsight.data.labels import Labels
    from selfsight.encoders.encoder import Encoder

MOST = 96  # pictures on the sheet
PRINTED = 10


@dataclass(frozen=True)
class SelectedItem(Result):
    """An item to label.

    rank: 1 is to be labelled first.
    id: of the item.
    path: relative to the source.
    page: page or frame in a file that holds several.
    stands_for: how many items are more like it than like any other that is labelled or to be labelled.
    """

    if_any: ClassVar = ("page",)
    rank: int
    id: str
    path: str
    page: int | None
    stands_for: int


@dataclass(frozen=True)
class Selection(Result):
    """Which items to label first.

    source: of the items.
    items: what to label, in this order.
    method: that chose them: cover, doubt or typical.
    labelled: how many items have a label already.
    pool: how many have none.
    set_aside: how many items cannot be read.
    reasons: why, with the number of items for each.
    file: the CSV that was written; `label --ask` takes it.
    sheet: the PNG that shows the first 96.
    notes: what a user must know of the labels.
    """

    if_any: ClassVar = ("file", "sheet", "notes")
    source: str
    items: list[SelectedItem]
    method: str
    labelled: int
    pool: int
    set_aside: int
    reasons: dict[str, int]
    file: str | None = None
    sheet: str | None = None
    notes: list[str] | None = None


@checked
def select(
    source: str,
    *,
    model: str | Encoder,
    budget: int = 100,
    out: str | None = None,
    labels: str | None = None,
    method: Literal["cover", "doubt", "typical"] | None = None,
    seed: int = 0,
    device: str | None = None,
) -> Selection:
    """Choose the items to label first, so that a few labels are worth as much as they can be.

    The items chosen cover all others: each item has one like it that will be labelled. Once two classes are labelled,
    items that a classifier of these labels doubts count more, so run it again after some labels. Near-copies of what
    is chosen or labelled are passed over, and groups (patients, parts, days) take turns. Labels count as in
    `selfsight label`: those of the journal and of the column `label`, not names of folders.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, or what `embed --model` takes. The better it is, the better the choice.
    budget
        How many items to choose.
    out
        CSV for what to label: id, path, rank, stands_for. A sheet of the pictures is drawn beside it, as .png.
    labels
        A CSV or Parquet of labels that are there already: path or id, and label.
    method
        cover: items that cover all others. doubt: the same, but items that a classifier of the labels doubts count up
        to twice. typical: the most typical item of each cluster. If not given, doubt once two classes are labelled,
        before that cover.
    seed
        Of the clusters of `typical`.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    import numpy as np

    from selfsight.curation.selection import choose, stands_for
    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import check_outside, open_source
    from selfsight.data.labels import Labels
    from selfsight.encoders.features import pooled
    from selfsight.encoders.weights import encoder_of

    if budget < 1:
        raise SelfsightError(f"--budget is how many items to choose: 1 or more, not {budget}.")
    if out is not None and Path(out).suffix.lower() != ".csv":
        raise SelfsightError(f"What to label is written as .csv, not as {out!r}. For example: -o ask.csv")
    items = open_source(source)
    if out is not None:
        check_outside(out, items.about.location)
        check_sheet(Path(out))
    given = Labels.of(items, path=labels, kind="classes", folders=False)
    encoder = encoder_of(model, measure_format(items))
    rows, features, bad = pooled(encoder, items)
    given = given.take(np.flatnonzero(~np.isin(given.ids, list(bad))))
    pool = _pool(encoder, items, rows, features, given)
    if (known := int(given.known.sum())) == len(rows):
        raise DataError(f"All {known:,} items of {source} have a label already; there is nothing to choose.")
    chosen, method = choose(pool, budget, method, seed)
    there = np.concatenate([chosen, pool.labelled])
    shares = stands_for(pool.features, there)[: len(chosen)]
    picked = rows.take(chosen)
    selected = [
        SelectedItem(rank, row["id"], row["uri"], row["page"], int(share))
        for rank, (row, share) in enumerate(zip(picked.to_pylist(), shares, strict=True), start=1)
    ]
    reasons = items.reasons(bad.values())
    notes = [given.doubt] if given.doubt else None
    result = Selection(source, selected, method, known, len(rows) - known, sum(reasons.values()), reasons, notes=notes)
    return result if out is None else _written(result, items, picked, encoder, Path(out))


def check_sheet(out: Path) -> None:
    """Raise `SelfsightError` if the sheet beside the table `out` would take the place of a file that is no sheet of
    ours."""
    from selfsight.data.written import written

    sheet = out.with_suffix(".png")
    if sheet.exists() and str(sheet.resolve()) not in {one.path for one in written("pictures")}:
        raise SelfsightError(
            f"{sheet} is there already, and the sheet of {out} would take its place. Give another -o, or move it away."
        )


def _pool(encoder: Encoder, items: Collection, rows: pa.Table, features: np.ndarray, given: Labels):  # type: ignore[no-untyped-def]
    """The items to choose from, as `curation.selection.Pool`."""
    import numpy as np

    from selfsight.curation.selection import Pool
    from selfsight.data.groups import group_numbers
    from selfsight.probing.neighbours import graph_of

    named = [None if value is None else "|".join(map(str, value)) for value in given.values]  # type: ignore[arg-type]
    numbers = {name: number for number, name in enumerate(sorted({name for name in named if name is not None}))}
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return Pool(
        units.astype(np.float32),
        graph_of(encoder, items, rows, features),
        group_numbers(given.groups, len(rows)),
        np.array([-1 if name is None else numbers[name] for name in named]),
    )


def _written(result: Selection, items: Collection, rows: pa.Table, encoder: Encoder, out: Path) -> Selection:
    """The result with its table at `out`, and beside it the sheet."""
    from selfsight.data.written import note
    from selfsight.files import write_whole
    from selfsight.report.pictures import thumbnails_of
    from selfsight.report.sheet import TILE, contact_sheet

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("id", "path", "rank", "stands_for"))
    writer.writerows((each.id, each.path, each.rank, each.stands_for) for each in result.items)
    first = result.items[:MOST]
    captions = [[f"{each.rank} · stands for {each.stands_for:,}", each.path] for each in first]
    thumbnails = thumbnails_of(items, rows.slice(0, MOST), encoder, TILE)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet = out.with_suffix(".png")
    write_whole(sheet, contact_sheet(list(thumbnails.values()), captions))
    write_whole(out, table.getvalue())
    note("pictures", sheet, items.path)
    return replace(result, file=str(out), sheet=str(sheet))


def show(result: Selection) -> None:
    """Print the first of them, and what to do next."""
    from selfsight.console import results

    console = results(soft_wrap=True)
    known = f"; {result.labelled:,} are labelled already" if result.labelled else ""
    console.print(
        f"Label these {len(result.items):,} first, of {result.pool:,} without a label{known} ({result.method}):"
    )
    for each in result.items[:PRINTED]:
        page = "" if each.page is None else f" #{each.page}"
        console.print(f"{each.rank:>4}  {each.path}{page}  (stands for {each.stands_for:,})")
    if result.set_aside:
        console.print(f"{result.set_aside:,} items set aside ({counted(result.reasons)}).")
    for note in result.notes or ():
        console.print(f"Note: {note}.")
    if result.file is None:
        console.print("No file was written. Give one: -o ask.csv")
        return
    console.print(
        f"Written to {quote(result.file)}; {quote(str(result.sheet))} shows the first {min(len(result.items), MOST)}."
    )
    console.print(f"Next: selfsight label {quote(result.source)} --ask {quote(result.file)}")
