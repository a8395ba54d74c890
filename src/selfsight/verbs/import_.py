"""import: from a source of images, whatever its kind, to a collection that every verb reads."""

from __future__ import annotations

import math
import shlex
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsight.data.sources.source import BLANKS
from selfsight.errors import DataError, SelfsightError
from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.data.collection import Collection
    from selfsight.data.sources.source import Options

MOST_NAMED = 20  # files set aside that are printed by name
# Columns whose values are counted.
COUNTED = ("format", "mode", "depth", "label", "split", "site", "group", "sequence", "boxes")


@dataclass(frozen=True)
class SetAside:
    """An item that cannot be read."""

    uri: str
    reason: str


@dataclass(frozen=True)
class Imported(Result):
    """The result of `import`.

    collection: its path.
    source: of the images.
    items: how many can be read.
    pixels: the form that all items are brought into.
    other_channels: items whose channels do not fit that form, by mode.
    set_aside: how many items cannot be read.
    reasons: why, with the number of items for each.
    set_aside_items: which.
    others: files that are not images, by suffix.
    formats: items by file format.
    labels: items by label.
    splits: items by split.
    sites: items by site.
    groups: how many groups.
    sequences: how many sequences.
    boxes: how many boxes, by class.
    masks: how many items have a mask.
    blanks: cells that mean "not known", such as "label NA", with their number.
    empty_columns: columns that were asked for and that no item has.
    notes: what else to know before these items and labels are believed.
    annotations_set_aside: boxes and masks that are not used, and why; None where all are.
    seconds: that it took.
    """

    if_any = ("annotations_set_aside",)

    collection: str
    source: str
    items: int
    pixels: str
    other_channels: dict[str, int]
    set_aside: int
    reasons: dict[str, int]
    set_aside_items: list[SetAside]
    others: dict[str, int]
    formats: dict[str, int]
    labels: dict[str, int]
    splits: dict[str, int]
    sites: dict[str, int]
    groups: int
    sequences: int
    boxes: dict[str, int]
    masks: int
    blanks: dict[str, int]
    empty_columns: list[str]
    notes: list[str]
    annotations_set_aside: dict[str, str] | None = None
    seconds: float = 0.0


@checked
def import_(
    source: str,
    *,
    out: str,
    columns: str | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    root: str | None = None,
    blank: str = ",".join(BLANKS),
    rate: float = 1.0,
    strict: bool = False,
) -> Imported:
    """Read a source of images into a collection: one table of what there is and what is known of it.

    Headers are read, pixels are not; nothing is copied, and nothing is written into the source. Files that cannot be
    read are set aside with the reason. The same command again reads only what is new or has changed.

    SOURCE is one of: a folder, searched recursively; a .txt list of paths; a .csv, .tsv or .parquet table, or
    several as 'site*/labels.csv'; a COCO file (.json), with its boxes and masks; a .zip; WebDataset .tar shards, as a
    folder or 'shard-{000..009}.tar'; a video or a folder of videos; a folder saved by Hugging Face datasets, or
    hf:NAME; torchvision:NAME; a .lance collection.

    Parameters
    ----------
    source
        Where the images are.
    out
        The collection to make, NAME.lance.
    columns
        What is known of an item, as name=where,name=where. `where` is a column of the table; or `a|b`, the first of
        two that there is; or made from the path: {0}, {1} its parts, {folder}, {stem}, {name}, {table}; or for
        DICOM files a keyword such as PatientID. Names with a meaning: path, label, split, group, site, sequence, frame,
        mask and boxes (files of YOLO or VOC boxes).
    include
        Only paths that match one of these patterns; `*` crosses folders.
    exclude
        No paths that match one of these patterns.
    root
        Folder that the paths of a list or table are relative to, if not its own.
    blank
        What a cell of a label, split, group, site or sequence says, in any case, where it holds nothing; separated by
        commas. '' takes every text as it is.
    rate
        Frames a second to take of videos; 0 takes every frame.
    strict
        Stop at the first file that cannot be read, instead of setting it aside.
    """
    from selfsight.data.importers import check_outside, import_source
    from selfsight.data.sources.choose import make_source
    from selfsight.data.sources.columns import parse_columns
    from selfsight.data.sources.source import Options

    began = time.monotonic()
    if not out.rstrip("/\\").endswith(".lance"):
        raise SelfsightError(f"{out or 'The collection'} must end in .lance. Give a name such as -o photos.lance")
    if not 0 <= rate < math.inf:
        raise SelfsightError(f"--rate is frames a second, 0 or above, not {rate:g}.")
    path = Path(out)
    blanks = tuple(text.strip() for text in blank.split(",") if text.strip())
    options = Options(
        tuple(include or ()), tuple(exclude or ()), parse_columns(columns or ""), root, rate or None, blanks
    )
    if source.rstrip("/\\").endswith(".lance"):
        items = _copy(source, path, options, strict)
    else:
        opened = make_source(source, options)
        check_outside(out, opened.location)
        items = import_source(opened, path, strict)
    counts = _count(items)
    for name in counts.empty_columns:
        if name in items.source.keywords:
            keyword = options.columns[name]
            raise DataError(
                f"--columns {name}={keyword} fills nothing: no file of {source} has a DICOM keyword {keyword!r}. "
                f"Make it from the path, for example {name}={{0}}."
            )
    return replace(counts, seconds=time.monotonic() - began)


def _copy(source: str, out: Path, options: Options, strict: bool) -> Collection:
    """The rows of another collection that are wanted, as a collection of the same source."""
    import pyarrow.compute as pc

    from selfsight.data.collection import DROPPED, Collection
    from selfsight.data.importers import check_outside, open_source

    if options.columns:
        raise SelfsightError("A collection brings its own columns. Leave --columns out, or import its source again.")
    items = open_source(source, strict=strict)
    if out.exists() and not (Collection.exists(out) and Collection.open(out).about.location == items.about.location):
        raise SelfsightError(f"{out} exists and is not a part of {source}. Give another -o.")
    if out.resolve() == items.path.resolve():
        raise SelfsightError(f"{out} is the collection itself. Give another -o.")
    check_outside(str(out), items.about.location)
    rows = items.table.filter(pc.not_equal(items.table["reason"], DROPPED))  # decisions stay with their collection
    rows = rows.filter([options.wanted(uri) for uri in rows["uri"].to_pylist()])
    if not pc.any(pc.equal(rows["status"], "ok")).as_py():
        raise DataError(f"No readable item of {source} matches --include and --exclude.")
    return Collection.write(out, rows, rows.schema, replace(items.about, listing="", others={}))


def _count(items: Collection) -> Imported:
    """What the summary and `--json` say of a collection, read some thousand rows at a time: it may hold millions."""
    import pyarrow.compute as pc

    from selfsight.data.pixels import common_format, describe_mode

    seen: dict[str, Counter[Any]] = {name: Counter() for name in COUNTED}
    aside: list[dict[str, str]] = []
    masks, folders = 0, set[str]()  # the outermost ones
    asked = {name: 0 for name in items.about.options.columns if name in items.columns}  # how many items have it
    for batch in items.batches(
        [c for c in {"uri", "status", "reason", "mask", *COUNTED, *asked} if c in items.columns]
    ):
        ok = pc.equal(batch["status"], "ok")
        aside += batch.filter(pc.invert(ok)).select(["uri", "reason"]).to_pylist()
        usable = batch.filter(ok)
        for name, counts in seen.items():
            if name in usable.schema.names:
                values = pc.list_flatten(usable[name]).field("label") if name == "boxes" else usable[name]
                for found in pc.value_counts(values.drop_null()).to_pylist():
                    counts[found["values"]] += found["counts"]
        folders |= {uri.rpartition("/")[0].partition("/")[0] for uri in usable["uri"].to_pylist()}
        for name in asked:
            asked[name] += len(usable) - usable[name].null_count
        masks += len(usable) - usable["mask"].null_count if "mask" in usable.schema.names else 0
    pixels = common_format(seen["mode"].elements(), seen["depth"].elements())
    by_count = {name: dict(sorted(c.items(), key=lambda pair: (-pair[1], pair[0]))) for name, c in seen.items()}
    return Imported(
        collection=str(items.path),
        source=items.about.location,
        items=seen["format"].total(),
        pixels=str(pixels),
        other_channels={describe_mode(mode): n for mode, n in by_count["mode"].items() if not pixels.takes(mode)},
        set_aside=len(aside),
        reasons=dict(Counter(item["reason"] for item in aside).most_common()),
        set_aside_items=[SetAside(**item) for item in sorted(aside, key=lambda item: item["uri"])],
        others=items.about.files,
        formats=by_count["format"],
        labels=by_count["label"],
        splits=by_count["split"],
        sites=by_count["site"],
        groups=len(seen["group"]),
        sequences=len(seen["sequence"]),
        boxes=by_count["boxes"],
        masks=masks,
        blanks=items.about.blanks,
        empty_columns=[name for name, count in asked.items() if not count],
        notes=_notes(items, seen["label"], set() if seen["label"] else folders),
        annotations_set_aside=items.about.aside or None,
    )


def _notes(items: Collection, labels: Iterable[str], folders: set[str]) -> list[str]:
    """What is odd about items that are used all the same, and about their labels."""
    from selfsight.data.annotations.outlines import Aside
    from selfsight.data.labels import doubts_about
    from selfsight.data.sources.annotated import told

    odd = [f"{len(uris):,} used, such as {uris[0]}: {note}" for note, uris in items.oddities.items()]
    unused = told(Aside(where, reason) for where, reason in items.about.aside.items())
    doubts = [items.contradictions, unused, *doubts_about(labels, False), *doubts_about(folders - {""}, True)]
    return [*odd, *filter(None, doubts)]


def show(result: Imported) -> None:
    """Print what there is, what was set aside and why, and what to type next."""
    from selfsight.console import results

    console = results(soft_wrap=True)
    formats = ", ".join(f"{n:,} {name}" for name, n in result.formats.items())
    console.print(f"{result.collection}: {result.items:,} items ({formats}), {result.pixels}.")
    for title in ("labels", "splits", "sites", "boxes"):
        if getattr(result, title):
            shown = list(getattr(result, title).items())
            text = "; ".join(f"{name} {n:,}" for name, n in shown[:10])  # names may hold commas
            console.print(f"  {title}: {text}{f'; and {len(shown) - 10:,} more' if len(shown) > 10 else ''}")
    for title in ("groups", "sequences", "masks"):
        if getattr(result, title):
            console.print(f"  {title}: {getattr(result, title):,}")
    for name in result.empty_columns:
        console.print(f"  {name}: no item has one, although --columns asked for it")
    if result.blanks:
        said = ", ".join(f"{n:,} {cell!r}" for cell, n in result.blanks.items())
        console.print(f"  cells that were taken as empty: {said} (--blank names others)")
    for mode, count in result.other_channels.items():
        console.print(f"  {count:,} of {mode} do not go with the others: they will be set aside when they are decoded")
    if result.set_aside:
        console.print(f"{result.set_aside:,} set aside:")
        for reason, count in result.reasons.items():
            console.print(f"  {count:,} {reason}")
        names = result.set_aside_items
        for item in names[:MOST_NAMED]:
            console.print(f"    {item.uri}: {item.reason}")
        if len(names) > MOST_NAMED:
            console.print(f"    and {len(names) - MOST_NAMED:,} more; --json names them all")
    for text in result.notes:
        console.print(f"Note: {text}.")
    if result.others:
        others = ", ".join(f"{n:,} {suffix or 'without suffix'}" for suffix, n in result.others.items())
        console.print(f"Other files, not images: {others}.")
    console.print(f"Next: selfsight pretrain {shlex.quote(result.collection)} -o runs/first --minutes 20")
