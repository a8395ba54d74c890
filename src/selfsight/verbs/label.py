"""label: a local page on which people give labels, and the file that holds them."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, ClassVar, Literal

from selfsight.errors import DataError, MachineError, SelfsightError, in_words
from selfsight.results import Result, counted
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.data.annotations.outlines import MaskValue
    from selfsight.data.collection import Collection
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.head import Head
    from selfsight.pages.answers import Agreement, Answers
    from selfsight.pages.neighbours import Suggest
    from selfsight.pages.server import Server

COLUMNS = ("id", "path", "label", "by", "time")  # of the file that --export writes


@dataclass(frozen=True)
class Labelling(Result):
    """What people said of the items until now.

    source: whose items.
    given: how many answers the page took in this session and that were not taken back.
    labelled: how many items have a label, of the journal or of the column.
    items: how many were asked for.
    classes: {class: how many items have it}.
    agreement: of each two people who labelled the same items.
    disputed: how many items people differ about, and nobody settled.
    damaged: lines of the journal that are cut or no decision, and were skipped.
    journal: the folder that holds every answer.
    exported: the file with all labels, if one was asked for.
    kind: of an answer.
    """

    if_any: ClassVar = ("exported",)
    source: str
    given: int
    labelled: int
    items: int
    classes: dict[str, int]
    agreement: list[Agreement] = field(default_factory=list)
    disputed: int = 0
    damaged: int = 0
    journal: str = ""
    exported: str | None = None
    kind: str = "class"


@checked
def label(
    source: str,
    *,
    model: str | Encoder | None = None,
    head: str | Head | None = None,
    ask: str | None = None,
    kind: Literal["class", "classes", "grade", "mask"] = "class",
    by: str = "local",
    export: str | None = None,
    port: int | None = None,
    device: str | None = None,
) -> Labelling:
    """Open a page on this machine to label images, by keyboard, until Ctrl-C; or write all labels to a file.

    Every answer is on disk at once, in a journal beside the table of items, and counts wherever labels of SOURCE are
    used. Already labelled is what the journal or the `label` column of the table names. Folder names, which other verbs
    take as labels where there are no others, are not: the page shows them in the path. Only this machine can open
    the page, with the address that is printed.

    Parameters
    ----------
    source
        Folder of images, or any other source that `selfsight import --help` names.
    model
        A run, or what `embed --model` takes, to suggest the labels of the most similar labelled images, and to say when
        more labels change little.
    head
        A head, to suggest the labels that it would give, in place of the most similar images. For masks one of
        `train segment`, whose guess is shown to be corrected.
    ask
        A CSV or Parquet of the items to label, in this order, with a column id or path. All images if not given.
    kind
        class: one per image. classes: several. grade: one of ordered classes. mask: pixels, painted with a brush.
    by
        Who answers. Two people who label the same images see how far they agree, and settle where they do not.
    export
        Write every label to this .csv and open no page: id, path, label, by, time. `--labels` takes it. Masks go to a
        COCO file, .json, which `train segment --labels` takes.
    port
        Of the page; a free one if not given.
    device
        Where to compute features: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.console import console
    from selfsight.data.importers import check_outside, open_source
    from selfsight.pages.answers import Answers

    suffix, what = (".json", "Masks") if kind == "mask" else (".csv", "Labels")
    if export is not None and Path(export).suffix.lower() != suffix:
        raise SelfsightError(f"{what} are written as {suffix}, not as {export!r}. For example: --export labels{suffix}")
    if head is not None and model is not None:
        raise SelfsightError("--head and --model both suggest labels. Give one of them.")
    items = open_source(source)
    if kind == "mask":
        return _masks(source, items, model, head, ask, by, export, port)
    answers = Answers(items, by, kind)
    order = _order(items, answers.ids, answers.labels, ask)
    if answers.damaged:
        console().print(_damaged(answers.damaged), soft_wrap=True)
    if export is None:
        _serve(items, answers, order, model, head, port)
    else:
        check_outside(export, items.about.location)
        _write(Path(export), items, answers)
    known = answers.labels
    return Labelling(
        source, answers.given, sum(item in known for item in order), len(order), answers.counts, answers.agreement,
        len(answers.disputed), answers.damaged, str(items.decisions.folder), export, answers.kind,
    )  # fmt: skip


def _masks(
    source: str, items: Collection, model: str | Encoder | None, head: str | Head | None, ask: str | None, by: str,
    export: str | None, port: int | None,
) -> Labelling:  # fmt: skip
    """Let masks be painted until Ctrl-C, or write them all to a COCO file."""
    from selfsight.console import console
    from selfsight.data.importers import check_outside
    from selfsight.pages.painted import Painted

    if model is not None:
        raise SelfsightError("--model suggests classes, not masks. Train a head, and give it: --head heads/cells")
    painted = Painted(items, by)
    order = _order(items, painted.ids, painted.masked, ask)
    if painted.damaged:
        console().print(_damaged(painted.damaged), soft_wrap=True)
    if export is None:
        try:
            from selfsight.pages.paint import MOST_BYTES, painting
            from selfsight.pages.server import Server
        except ModuleNotFoundError as missing:
            raise MachineError(f"Pages need {missing.name}: pip install 'selfsight[serve]'") from None
        from selfsight.pages.pictures import Pictures

        guess = None if head is None else guess_of(items, head)
        app = painting(painted, Pictures(items), order, items.about.location, guess)
        _run(Server(app, port, MOST_BYTES), "Paint masks of", len(order))
    else:
        check_outside(export, items.about.location)
        _write_masks(Path(export), items)
    masked = painted.masked
    return Labelling(
        source, painted.given, sum(item in masked for item in order), len(order), painted.counts,
        damaged=painted.damaged, journal=str(items.decisions.folder), exported=export, kind="mask",
    )  # fmt: skip


def guess_of(items: Collection, head: str | Head) -> Callable[[str], MaskValue | None]:
    """What a head of `train segment` makes of an item. Raises `SelfsightError` for another head."""
    import numpy as np

    from selfsight.data.annotations.rle import encode
    from selfsight.heads.head import Head, load_head
    from selfsight.heads.segment_head import SegmentHead
    from selfsight.machine import best_device

    opened = head if isinstance(head, Head) else load_head(head)
    if not isinstance(opened, SegmentHead):
        raise SelfsightError(f"{opened.path} says no masks. Give a head of selfsight train segment, or none.")
    opened.module.to(best_device())
    places = {item: place for place, item in enumerate(items.usable["id"].to_pylist())}

    def guess(item: str) -> MaskValue | None:
        for found in opened.segment(items, items.usable.take([places[item]]), {}):
            classes = opened.about.classes
            if opened.about.told_apart:
                told: MaskValue = {}
                for number, thing in enumerate(found.things, 1):
                    told.setdefault(classes[thing.label], []).append(dict(encode(found.objects == number)))
                return told
            there = [place for place in np.unique(found.mask).tolist() if place > 0]
            return {classes[place]: dict(encode(found.mask == place)) for place in there}
        return None

    return guess


def _write_masks(out: Path, items: Collection) -> None:
    """Write every mask to a COCO file."""
    from selfsight.console import console
    from selfsight.data.annotations.coco import write
    from selfsight.data.annotations.outlines import BACKGROUND, Outline, Outlines, is_polygons
    from selfsight.data.labels import Labels
    from selfsight.data.masks import Masks
    from selfsight.data.written import note
    from selfsight.files import write_whole

    masks = Masks.of(items, Labels.of(items, kind="masks"))
    images: dict[str, Outlines] = {}
    for row, value in zip(masks.labels.rows.to_pylist(), masks.values, strict=True):
        several = {name: [of] if isinstance(of, dict) or is_polygons(of) else of for name, of in value.items()}
        objects = [Outline(name, region) for name, regions in several.items() for region in regions]
        name = row["uri"] if row["page"] is None else f"{row['uri']}.{row['page']}"
        images[name] = Outlines(tuple(objects), (row["width"], row["height"]))
    write_whole(out, write(images, [name for name in masks.names if name != BACKGROUND]))
    note("labels", out, items.path)
    for one in masks.aside:
        console().print(f"Left out: {one.where}: {one.reason}.", soft_wrap=True)
    if not masks.told_apart:
        console().print(
            "These masks do not tell objects apart: train segment --labels with --no-objects.", soft_wrap=True
        )


def _serve(
    items: Collection, answers: Answers, order: list[str], model: str | Encoder | None, head: str | Head | None,
    port: int | None,
) -> None:  # fmt: skip
    """Show the page until Ctrl-C."""
    try:
        from selfsight.pages.label import labelling
        from selfsight.pages.server import Server
    except ModuleNotFoundError as missing:
        raise MachineError(f"Pages need {missing.name}: pip install 'selfsight[serve]'") from None
    from selfsight.pages.neighbours import Watch
    from selfsight.pages.pictures import Pictures

    suggest = None if model is None else _neighbours(items, answers, model)
    watch = None if suggest is None else Watch(suggest, answers)
    suggest = suggest if head is None else of_head(items, head)
    app = labelling(answers, Pictures(items), order, items.about.location, suggest, watch)
    _run(Server(app, port), "Label", len(order))


def _run(server: Server, what: str, count: int) -> None:
    """Say where the page is, and answer until Ctrl-C."""
    from selfsight.console import console

    items = f"{count:,} item{'' if count == 1 else 's'}"
    console().print(f"{what} {items} here, and stop with Ctrl-C:\n  {server.address}", soft_wrap=True)
    server.run()


def _neighbours(items: Collection, answers: Answers, model: str | Encoder) -> Suggest:
    from selfsight.data.canvases import measure_format
    from selfsight.encoders.features import pooled
    from selfsight.encoders.weights import encoder_of
    from selfsight.pages.neighbours import Neighbours

    rows, features, _ = pooled(encoder_of(model, measure_format(items)), items)
    return Neighbours(rows["id"].to_pylist(), features, answers)


def of_head(items: Collection, head: str | Head) -> Suggest:
    """What a head says of the items. Raises `SelfsightError` for a head of numbers."""
    from selfsight.encoders.features import pooled
    from selfsight.heads.classify_head import ClassifyHead
    from selfsight.heads.head import Head, load_head
    from selfsight.machine import best_device

    opened = head if isinstance(head, Head) else load_head(head)
    if not isinstance(opened, ClassifyHead) or not opened.about.classes:
        of = "numbers" if isinstance(opened, ClassifyHead) else opened.gives
        raise SelfsightError(f"{opened.path} is a head of {of}, and the page asks for classes. Give another --head.")
    opened.module.to(best_device())
    rows, features, _ = pooled(opened.encoder, items)
    probabilities = opened.tensors(features)["probabilities"]
    places = {item: place for place, item in enumerate(rows["id"].to_pylist())}

    def suggest(ids: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
        known = [item for item in ids if item in places]
        said = {item: zip(opened.about.classes, probabilities[places[item]].tolist(), strict=True) for item in known}
        return {item: sorted(pairs, key=lambda pair: -pair[1]) for item, pairs in said.items()}

    return suggest


def _order(items: Collection, ids: Sequence[str], known: Container[str], ask: str | None) -> list[str]:
    """Those of `ids` to label: of the table `ask` in its order, else all, first those that are not `known`."""
    if ask is None:
        return sorted(ids, key=lambda item: item in known)
    column, named = _asked(ask)
    called: dict[str, list[str]] = {}
    for item, name in zip(items.table["id"].to_pylist(), items.table[column].to_pylist(), strict=True):
        called.setdefault(name, []).append(item)
    if unknown := [name for name in named if name not in called]:
        examples = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        raise DataError(
            f"{ask} names {len(unknown)} items that are not in {items.about.location}: {examples}. Was it made for "
            "another source?"
        )
    usable = set(ids)
    order = [item for name in named for item in called[name] if item in usable]
    if not order:
        raise DataError(f"{ask} names no item that can be read. Give ids, or paths relative to the source.")
    return list(dict.fromkeys(order))


def _asked(path: str) -> tuple[str, list[str]]:
    """(column of the collection, names in it) of the items that a table names. Raises `DataError`."""
    from selfsight.data.sources.columns import as_text, in_any_case
    from selfsight.data.sources.table import open_table

    try:
        with open_table(path, path) as table:
            column = in_any_case("id", table.header) if "id" in table.header else in_any_case("path", table.header)
            if column is None:
                raise DataError(
                    f"{path} has no column id or path. Give a table that has one, with a row for each item to label."
                )
            cells = [as_text(row[column]) for _, row, _ in table.rows([column])]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {in_words(error)}.") from None
    return "id" if column == "id" else "uri", [cell for cell in cells if cell]


def _write(out: Path, items: Collection, answers: Answers) -> None:
    """Write every label to a .csv whose columns id and label are what `--labels` reads."""
    import pyarrow as pa

    from selfsight.data.written import note
    from selfsight.files import save_table

    rows = []
    for item, uri in zip(items.usable["id"].to_pylist(), items.usable["uri"].to_pylist(), strict=True):
        if names := answers.label(item):
            said = answers.decision(item)
            time = datetime.fromtimestamp(said.time, UTC).isoformat(timespec="seconds") if said else ""
            rows.append((item, uri, "|".join(names), said.by if said else "", time))
    columns = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    save_table(pa.table([pa.array(column, pa.string()) for column in columns], names=COLUMNS), out)
    note("labels", out, items.path)


def _damaged(lines: int) -> str:
    said = "1 line of the journal is" if lines == 1 else f"{lines:,} lines of the journal are"
    return f"{said} cut or no decision, and left out. All other answers count, and nothing was removed."


def show(result: Labelling) -> None:
    """Print how many labels there are, where they are, and how to get them as a file."""
    from selfsight.console import results
    from selfsight.data.cache import cache_folder

    console = results(soft_wrap=True)
    thing = "mask" if result.kind == "mask" else "label"
    if result.exported is None:
        console.print(f"{result.given:,} {thing}{'' if result.given == 1 else 's'} given.")
    classes = f" ({counted({name: n for name, n in result.classes.items() if n})})" if result.labelled else ""
    console.print(f"{result.labelled:,} of {result.items:,} items have a {thing}{classes}.")
    for each in result.agreement:
        kappa = "" if each.kappa is None else f", kappa {each.kappa:.2f}"
        pair = f"{each.first} and {each.second}"
        console.print(f"{pair} agree on {100 * each.same:.0f} % of {each.items:,} items{kappa}.")
    if result.disputed:
        about = f"{result.disputed:,} item{'' if result.disputed == 1 else 's'}"
        console.print(f"People differ about {about}: the latest answer counts until somebody settles it.")
    if result.exported is not None:
        console.print(f"Written to {result.exported}, for --labels {quote(result.exported)}")
        return
    console.print(f"They are in {result.journal}")
    if Path(result.journal).is_relative_to(cache_folder()):
        console.print("That is in the cache folder, and selfsight cache clear keeps it.")
    how = "--kind mask --export masks.json" if result.kind == "mask" else "--export labels.csv"
    console.print(f"To write them to a file: selfsight label {quote(result.source)} {how}")
