"""curate: find what harms in a collection, show it, remove it, undo it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from selfsight.errors import DataError, SelfsightError
from selfsight.results import counted
from selfsight.verbs.arguments import checked
from selfsight.verbs.curate_results import Curation, Issue, Issues, Partner, Slimmed

if TYPE_CHECKING:
    import numpy as np

    from selfsight.curation.faults import Found
    from selfsight.curation.ranking import Ranking
    from selfsight.data.boxes import Box
    from selfsight.data.collection import Collection
    from selfsight.encoders.encoder import Encoder

PAGE, ISSUES, SLIM, SPLIT = "report.html", "issues.json", "slim.csv", "split.csv"
TOLD = 20  # decisions that are printed
LEVEL = 0.01  # the false-alarm level in examples


@checked
def curate(
    source: str,
    *,
    model: str | Encoder | None = None,
    labels: str | None = None,
    sources: str | None = None,
    summary: str | None = None,
    summaries: bool = False,
    out: str | None = None,
    auto: float | None = None,
    undo: bool = False,
    export: str | None = None,
    slim: int | None = None,
    split: str | None = None,
    seed: int = 0,
    thumbnails: bool = True,
    review: bool = False,
    map: Literal["umap", "pca"] | None = None,
    by: str = "local",
    port: int | None = None,
    device: str | None = None,
) -> Curation:
    """Find what harms in a collection: copies, strays, wrong labels, bad pictures. Drop it, and undo that.

    Without --model: exact copies, and what is dark, bright, blurred, without information, or odd in size, shape or
    channels beside the rest of the collection. With one also near duplicates, first those across splits, items that do
    not belong, and labels that look wrong. Of each kind it says how many are thought to be real, and lists at most
    twice as many, the most likely first.

    A decision to drop an item, or to change its label, counts in every verb from then on: nothing learns from a dropped
    item, measures on it or selects it. No file is deleted or moved, no feature is lost, and every decision can be
    undone.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, or what `embed --model` takes.
    labels
        A CSV or Parquet of labels: path or id, and label. Without it the column `label` counts, else the folders.
    sources
        Column of the sites, cameras or batches that items are from, if it is not called `site`, `camera` or `batch`.
        Those that harm the others are told from those that are only different.
    summary
        Write what SOURCE tells of itself, as .json under its name, and do nothing else: sums, no item. Such files may
        travel where images may not.
    summaries
        SOURCE is a folder of such files, of one encoder: compare the sources that wrote them.
    out
        Folder for report.html, issues.json, and what --slim and --split write.
    auto
        Drop what is at fault, and change wrong labels, without a look: the share of sound items that may be called
        faults, such as 0.01. What people decided stays. Of copies one stays. Again, it decides nothing new.
    undo
        Take back the decisions of the last --auto.
    export
        What is left after all decisions, as .csv, .parquet, COCO (.json), or a folder called voc or yolo.
    slim
        Write slim.csv: so many items that cover all others, and what is lost without the rest.
    split
        Write split.csv: shares of train and test, or train, val and test, such as 0.8,0.1,0.1. Groups, and items that
        show one picture, stay on one side.
    seed
        Of --split and --slim.
    thumbnails
        Small copies of your images on the page; `--no-thumbnails` leaves every one out.
    review
        Open a page on this machine to keep, drop or relabel by keyboard what the folder of -o says, until Ctrl-C. What
        is there already is not looked for again. With --model it has a map of all items.
    map
        How that map is drawn: by UMAP, or principal components. UMAP where it is installed, if not given.
    by
        Who decides on the page.
    port
        Of the page; a free one if not given.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.curation.automatic import by_people
    from selfsight.curation.cleaned import check_export
    from selfsight.curation.faults import find_faults
    from selfsight.data.canvases import measure_format
    from selfsight.data.collection import Collection
    from selfsight.data.importers import check_outside, open_source
    from selfsight.encoders.weights import encoder_of
    from selfsight.verbs.curate_review import review_page
    from selfsight.verbs.curate_sources import compared, run_of, summed

    if review:
        others = {"--auto": auto, "--undo": undo, "--export": export, "--slim": slim, "--split": split}
        others |= {"--summary": summary, "--summaries": summaries}
        return review_page(source, model, labels, sources, out, thumbnails, map, by, port, others)
    _check(model, out, auto, undo, slim, split)
    if summaries:
        return compared(source)
    if summary is not None:
        return summed(source, model, labels, summary)
    if export is not None:
        check_export(export)
    items = open_source(source)
    for path, option in ((out, "-o"), (export, "--export")):
        if path is not None:
            check_outside(path, items.about.location, option)
    if undo:
        return _undone(source, items)
    judged = by_people(items)
    if not len(judged.usable):
        raise DataError(f"No item of {source} is left: all were dropped, or cannot be read.")
    encoder = None if model is None else encoder_of(model, measure_format(judged))
    found = find_faults(judged, encoder, labels, sources, run_of(model))
    decided = None if auto is None else _decide(items, found, auto)
    again = Collection.open(items.path)  # with what was decided now
    result = _listed(source, again, found)
    if decided is not None:
        result = replace(result, decided=len(decided), decisions=decided)
    if export is not None:
        result = replace(result, exported={export: _export(again, Path(export), labels)})
    if out is not None:
        result = _written(result, again, found, Path(out), thumbnails, slim, split, seed, model)
    return result


def _check(model: object, out: str | None, auto: float | None, undo: bool, slim: int | None, split: str | None) -> None:
    """Raise `SelfsightError` for what has no meaning, before anything is read."""
    from selfsight.curation.cleaned import shares_of

    if auto is not None and not 0.0 < auto < 0.5:
        raise SelfsightError(
            f"--auto is the share of sound items that may be called faults, between 0 and 0.5, not {auto:g}. "
            f"For example: --auto {LEVEL}"
        )
    if auto is not None and undo:
        raise SelfsightError("--auto makes decisions and --undo takes them back. Give one of them.")
    if out is not None and Path(out).is_file():
        raise SelfsightError(f"{out} is a file. Give a folder for the report: -o FOLDER")
    for option, value in (("--slim", slim), ("--split", split)):
        if value is not None and out is None:
            raise SelfsightError(f"{option} writes a file into the folder of the report. Give one: -o FOLDER")
    if slim is not None and slim < 1:
        raise SelfsightError(f"--slim is how many items are to stay: 1 or more, not {slim}.")
    if slim is not None and model is None:
        raise SelfsightError("--slim chooses by features. Give an encoder: --model RUN")
    if split is not None:
        shares_of(split)


def _undone(source: str, items: Collection) -> Curation:
    """The result of taking back what was decided automatically."""
    from selfsight.curation.automatic import undo
    from selfsight.curation.how_many import LEVEL as RATE
    from selfsight.data.collection import Collection

    count, _ = undo(items)
    again = Collection.open(items.path)
    reasons = again.reasons()
    return Curation({}, {}, RATE, source, len(again.usable), sum(reasons.values()), reasons, 0, [], undone=count)


def _decide(items: Collection, found: Found, level: float) -> list[str]:
    """Make the decisions of the automatic mode; returns them in words."""
    import numpy as np

    from selfsight.curation.automatic import decide, sure, wanted
    from selfsight.curation.faults import KINDS

    made, _ = decide(items, found, wanted(found, level, _flagged(items, found, "keep")))
    names = dict(zip(found.rows["id"].to_pylist(), found.rows["uri"].to_pylist(), strict=True))
    kinds: dict[str, list[str]] = {}
    for ranking in found.rankings:
        for number in np.unique(ranking.numbers[sure(ranking, level)]).tolist():
            kinds.setdefault(found.rows["id"][number].as_py(), []).append(KINDS[ranking.kind][0].lower())
    return [
        f"{names[one.id]} dropped ({', '.join(kinds.get(one.id, []))})" if one.field == "drop"
        else f"{names[one.id]} labelled {one.new}"
        for one in made
    ]  # fmt: skip


def _flagged(items: Collection, found: Found, field: str) -> np.ndarray:
    """[N] which items people, or the automatic mode, decided to drop or to keep, as they are now."""
    import numpy as np

    latest = items.decisions.latest(field)
    pairs = zip(found.rows["id"].to_pylist(), found.rows["content_hash"].to_pylist(), strict=True)
    flags = [(one := latest.get(i)) is not None and one.new is True and one.content_hash in (None, h) for i, h in pairs]
    return np.array(flags, bool)


def _open(items: Collection, found: Found) -> list[Ranking]:
    """The rankings without what somebody decided."""
    import numpy as np

    from selfsight.curation.automatic import UNDONE
    from selfsight.curation.faults import PAIRS

    dropped, kept = (_flagged(items, found, field) for field in ("drop", "keep"))
    said = {item for item, one in items.decisions.latest("label").items() if one.new is not None and one.by != UNDONE}
    labelled = np.array([item in said for item in found.rows["id"].to_pylist()], bool)
    left = []
    for ranking in found.rankings:
        numbers = ranking.numbers
        if ranking.kind in PAIRS:
            settled = dropped[numbers].any(1) | kept[numbers].all(1)
        else:
            settled = dropped[numbers] | kept[numbers]
        if ranking.kind == "label_errors":
            settled |= labelled[numbers]
        left.append(ranking.only(~settled))
    return left


def _listed(source: str, items: Collection, found: Found) -> Curation:
    """What was found, less what somebody decided."""
    from selfsight.curation.how_many import LEVEL as RATE
    from selfsight.verbs.curate_sources import sources_of

    open_ = _open(items, found)
    settled = sum(one.estimated for one in found.rankings) - sum(one.estimated for one in open_)
    reasons = items.reasons(found.bad.values())
    return Curation(
        {one.kind: Issues(one.estimated, _issues(found, one)) for one in open_},
        {one.kind: [one.low, one.high] for one in open_},
        RATE, source, len(found.rows) - len(found.bad), sum(reasons.values()), reasons, settled, found.notes,
        sources=sources_of(found.sources) or None,
    )  # fmt: skip


def _issues(found: Found, ranking: Ranking) -> list[Issue]:
    """At most twice as many of the first as are thought to be at fault."""
    import pyarrow as pa

    from selfsight.curation.automatic import preferred
    from selfsight.curation.faults import PAIRS

    first = ranking.numbers[: 2 * ranking.estimated]
    if ranking.kind in PAIRS:  # the one that would go, then the one that would stay
        stays = [preferred(found, pair) for pair in first.tolist()]
        goes = [sum(pair) - stay for pair, stay in zip(first.tolist(), stays, strict=True)]
    else:
        stays, goes = [], first.tolist()
    rows = found.rows.select(["id", "uri", "page"])
    named = rows.take(pa.array(goes, pa.int64())).to_pylist()
    others = rows.take(pa.array(stays, pa.int64())).to_pylist()
    return [
        Issue(
            row["id"], row["uri"], float(ranking.score[n]),
            Partner(others[n]["id"], others[n]["uri"]) if others else None,
            ranking.suggested[n] if ranking.suggested else None,
            _edges(found.regions.get(goes[n])) if ranking.kind == "label_errors" else None, row["page"],
        )
        for n, row in enumerate(named)
    ]  # fmt: skip


def _edges(box: Box | None) -> list[float] | None:
    return None if box is None else [box.x0, box.y0, box.x1, box.y1]


def _export(items: Collection, out: Path, labels: str | None) -> int:
    """Write what is left."""
    from selfsight.curation.cleaned import export
    from selfsight.data.written import note

    count = export(items, out, labels)
    note("labels", out, items.path)
    return count


def _written(
    result: Curation, items: Collection, found: Found, out: Path, thumbnails: bool, slim: int | None,
    split: str | None, seed: int, model: str | Encoder | None,
) -> Curation:  # fmt: skip
    """The result with its report, and the part and the split that were asked for."""
    import numpy as np

    from selfsight.data.written import note
    from selfsight.files import write_whole
    from selfsight.report import curation_page
    from selfsight.verbs.curate_sources import table_of

    out.mkdir(parents=True, exist_ok=True)
    stay = np.isin(found.rows["id"].to_pylist(), items.usable["id"].to_pylist())
    if slim is not None:
        result = replace(result, slim=_slimmed(found, stay, slim, seed, out / SLIM))
    if split is not None:
        result = replace(result, split=_split(found, items, stay, split, seed, out / SPLIT))
    result = replace(result, report=str(out))
    counts = [("items", f"{result.items:,}"), *((reason, f"{n:,}") for reason, n in result.reasons.items())]
    page = curation_page.build(
        items,
        replace(found, rankings=_open(items, found)),
        thumbnails,
        said(result),
        next_steps(result, model),
        counts,
        table_of(result.sources or []),
    )
    write_whole(out / PAGE, page)
    write_whole(out / ISSUES, json.dumps(result.to_dict(), indent=1))
    note("pictures", out, items.path)
    return result


def _slimmed(found: Found, stay: np.ndarray, count: int, seed: int, out: Path) -> Slimmed:
    """Write the part that covers the whole."""
    import pyarrow as pa

    from selfsight.curation.cleaned import slim
    from selfsight.files import save_table

    made = slim(found, stay, count, seed)
    rows = found.rows.take(pa.array(made.numbers))
    columns = {"id": rows["id"], "path": rows["uri"], "rank": pa.array(range(1, len(rows) + 1))}
    save_table(pa.table({**columns, "stands_for": pa.array(made.stands_for)}), out)
    classes = made.classes or (None, None)
    return Slimmed(str(out), len(rows), made.coverage, made.random, *classes)


def _split(found: Found, items: Collection, stay: np.ndarray, shares: str, seed: int, out: Path) -> dict[str, int]:
    """Write the split, as a manifest; returns how many items are in each."""
    from collections import Counter

    import numpy as np
    import pyarrow as pa

    from selfsight.curation.cleaned import manifest, shares_of, split
    from selfsight.files import save_table

    names = split(found, stay, shares_of(shares), seed)
    places = np.flatnonzero(stay)
    table = manifest(items, found.labels.take(places), found.rows.take(pa.array(places)))
    table = table.drop_columns(["split"]) if "split" in table.column_names else table
    save_table(table.append_column("split", pa.array(names)), out)
    counts = Counter(names)
    return {name: counts[name] for name in ("train", "val", "test") if name in counts}


def said(result: Curation) -> list[str]:
    """What was done, sentence by sentence."""
    lines = []
    if result.undone is not None:
        lines.append(f"{result.undone:,} decisions taken back." if result.undone else "There was nothing to take back.")
    if result.decided is not None:
        lines.append(f"{result.decided:,} decisions made." if result.decided else "Nothing new was to be decided.")
        lines += [f"  {one}" for one in (result.decisions or [])[:TOLD]]
        if result.decided > TOLD:
            lines.append(f"  and {result.decided - TOLD:,} more, which --json names")
    if result.reviewed is not None:
        lines.append(f"{result.reviewed:,} decisions made on the page. The same command goes on where you stopped.")
    if result.set_aside:
        lines.append(f"{result.set_aside:,} items set aside ({counted(result.reasons)}).")
    if result.settled:
        lines.append(f"{result.settled:,} faults are not listed, as they were decided about.")
    if (slim := result.slim) is not None:
        classes = "" if slim.classes is None else f", and {slim.classes_kept} of {slim.classes} classes"
        lines.append(
            f"{slim.items:,} items cover {100 * slim.coverage:.1f} %, as many drawn by chance {100 * slim.random:.1f} %"
            f"{classes}: {slim.file}"
        )
    if result.split is not None:
        sides = ", ".join(f"{count:,} {name}" for name, count in result.split.items())
        lines.append(f"Split: {sides}: {result.report}/{SPLIT}")
    for file, count in (result.exported or {}).items():
        lines.append(f"{count:,} items are left, written to {file}")
    return lines


def next_steps(result: Curation, model: str | Encoder | None) -> list[str]:
    """What to type next."""
    start = f"selfsight curate {quote(result.source)}"
    start += f" --model {quote(model)}" if isinstance(model, str) else ""
    lines = [] if model is not None else [f"{start} --model RUN -o report/"]
    if result.decided:
        return [*lines, f"selfsight curate {quote(result.source)} --undo", f"{start} --export clean.csv"]
    return [*lines, f"{start} --auto {LEVEL}", f"selfsight curate {quote(result.source)} --undo"]


def show(result: Curation) -> None:
    """Print what was found, where it is shown, and what to do next."""
    from selfsight.console import results, table
    from selfsight.curation.faults import KINDS
    from selfsight.verbs.curate_sources import table_of

    console = results(soft_wrap=True)
    if result.summary is not None:
        console.print(f"{result.items:,} items of {result.source} are summed up in {quote(result.summary)}.")
        return
    if result.undone is None:
        console.print(f"{result.items:,} items of {result.source} were looked at.")
    found = {kind: issues for kind, issues in result.faults.items() if issues.estimated}
    rows = [_row(kind, issues, result.intervals[kind]) for kind, issues in found.items()]
    if rows:
        table(("fault", "thought to be real", "first"), rows)
    if result.sources:
        table(*table_of(result.sources))
    if nothing := [KINDS[kind][0] for kind in result.faults if kind not in found]:
        console.print(f"Nothing found: {', '.join(nothing)}.")
    for line in said(result):
        console.print(line)
    for note in result.notes:
        console.print(f"Note: {note}.")
    if result.report is not None:
        console.print(f"The pictures, to open in any browser: {quote(f'{result.report}/{PAGE}')}")
    elif result.undone is None and result.decided is None and not result.exported:
        console.print("No report was written. Give a folder: -o report/")


def _row(kind: str, issues: Issues, interval: Sequence[int]) -> tuple[str, str, str]:
    from selfsight.curation.faults import KINDS

    first = issues.items[0]
    name = first.name if first.pair is None else f"{first.name} = {first.pair.uri}"
    low, high = interval
    between = "" if low == high else f" ({low:,} to {high:,})"
    return (
        KINDS[kind][0],
        f"{issues.estimated:,}{between}",
        f"{name}{f' -> {first.suggested}' if first.suggested else ''}",
    )
