"""label: a local page on which people give labels, and the file that holds them."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from selfsight.errors import DataError, MachineError, SelfsightError, in_words
from selfsight.results import Result, counted
from selfsight.verbs.arguments import checked
from selfsight.verbs.label_heads import boxes_of, masks_of, of_head

if TYPE_CHECKING:
    from selfsight.data.collection import Collection
    from selfsight.encoders.encoder import Encoder
    from selfsight.heads.head import Head
    from selfsight.pages.answers import Agreement, Answers
    from selfsight.pages.marked import Marked
    from selfsight.pages.neighbours import Suggest
    from selfsight.pages.server import Server

DRAWN = {"mask": "masks", "box": "boxes"}  # kinds that are drawn on the picture
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
    kind: Literal["class", "classes", "grade", "mask", "box"] = "class",
    classes: str | None = None,
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
        `train segment`, whose guess is shown to be corrected; for boxes one of `train detect`, whose objects are shown
        to be accepted, one by one or all.
    ask
        A CSV or Parquet of the items to label, in this order, with a column id or path. All images if not given.
    kind
        class: one per image. classes: several. grade: one of ordered classes. mask: pixels, painted with a brush. box:
        around each object, drawn with the mouse.
    classes
        Names, a,b, that have keys from the start; others can be made on the page. With a head of boxes its guesses of
        these alone are shown.
    by
        Who answers. Two people who label the same images see how far they agree, and settle where they do not.
    export
        Write every label to this .csv and open no page: id, path, label, by, time. `--labels` takes it. Masks go to a
        COCO file, .json, or to a folder whose name says its format: labelme (polygons), voc or yolo (boxes of objects),
        masks (pictures of class numbers). Boxes go to .json, voc or
        yolo. `--labels` takes each.
    port
        Of the page; a free one if not given.
    device
        Where to compute features: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    from selfsight.console import console
    from selfsight.data.importers import check_outside, open_source
    from selfsight.pages.answers import Answers, checked_name

    if export is not None:
        check_export(Path(export), kind)
    if head is not None and model is not None:
        raise SelfsightError("--head and --model both suggest labels. Give one of them.")
    items = open_source(source)
    named = [checked_name(name, "class") for name in classes.split(",")] if classes is not None else []
    if kind == "mask" or kind == "box":
        if model is not None:
            raise SelfsightError(f"--model suggests classes, not {DRAWN[kind]}. Train a head, and give it: --head HEAD")
        return _drawn(source, items, kind, head, named, ask, by, export, port)
    answers = Answers(items, by, kind, named)
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


def _drawn(
    source: str, items: Collection, kind: Literal["mask", "box"], head: str | Head | None, classes: Sequence[str],
    ask: str | None, by: str, export: str | None, port: int | None,
) -> Labelling:  # fmt: skip
    """Let masks or boxes be drawn until Ctrl-C, or write them all to files."""
    from selfsight.console import console
    from selfsight.data.importers import check_outside
    from selfsight.pages.drawn import Drawn
    from selfsight.pages.painted import Painted

    guess: Callable[[str], Any] | None = None
    if head is not None and export is None:
        if kind == "mask":
            guess = masks_of(items, head)
        else:
            guess, classes = boxes_of(items, head, classes)
    marked = Painted(items, by, classes) if kind == "mask" else Drawn(items, by, classes)
    order = _order(items, marked.ids, marked.marked, ask)
    if marked.damaged:
        console().print(_damaged(marked.damaged), soft_wrap=True)
    if export is None:
        _serve_drawn(items, marked, order, guess, port)
    else:
        check_outside(export, items.about.location)
        (_write_masks if kind == "mask" else _write_boxes)(Path(export), items)
    there = marked.marked
    return Labelling(
        source, marked.given, sum(item in there for item in order), len(order), marked.counts,
        damaged=marked.damaged, journal=str(items.decisions.folder), exported=export, kind=kind,
    )  # fmt: skip


def check_export(out: Path, kind: str) -> None:
    """Raise `SelfsightError` for a name under which labels of this kind are not written, and for a folder that holds
    something that --export did not write."""
    from selfsight.data.annotations.folders import FOLDERS, OF_BOXES
    from selfsight.data.written import written

    if kind not in DRAWN:
        if out.suffix.lower() != ".csv":
            raise SelfsightError(f"Labels are written as .csv, not as '{out}'. For example: --export labels.csv")
        return
    folders, what = (FOLDERS, "masks") if kind == "mask" else (OF_BOXES, "boxes")
    if out.suffix.lower() != ".json" and out.name not in folders:
        called = " or ".join(filter(None, [", ".join(folders[:-1]), folders[-1]]))
        raise SelfsightError(
            f"{what.capitalize()} are written as .json, or into a folder called {called}, not as '{out}'. For example: "
            f"--export {what}.json"
        )
    ours = str(out.resolve()) in {one.path for one in written("pictures")}
    if out.name in folders and out.exists() and not ours and (out.is_file() or any(out.iterdir())):
        raise SelfsightError(f"{out} is there already and holds something else. Give --export another place.")


def _serve_drawn(
    items: Collection, marked: Marked, order: list[str], guess: Callable[[str], Any] | None, port: int | None
) -> None:
    """Show the page of masks or boxes until Ctrl-C."""
    try:
        from selfsight.pages import draw, paint
        from selfsight.pages.server import Server
    except ModuleNotFoundError as missing:
        raise MachineError(f"Pages need {missing.name}: pip install 'selfsight[serve]'") from None
    from selfsight.pages.drawn import Drawn
    from selfsight.pages.painted import Painted
    from selfsight.pages.pictures import Pictures

    pictures, where = Pictures(items), items.about.location
    if isinstance(marked, Painted):
        app = paint.painting(marked, pictures, order, where, guess)
        _run(Server(app, port, paint.MOST_BYTES), "Paint masks of", len(order))
    elif isinstance(marked, Drawn):
        app = draw.drawing(marked, pictures, order, where, guess)
        _run(Server(app, port, draw.MOST_BYTES), "Draw boxes on", len(order))


def _write_boxes(out: Path, items: Collection) -> None:
    """Write every box to a COCO file, or to a folder of the format that its name says."""
    from selfsight.curation.cleaned import write_boxes
    from selfsight.data.labels import Labels
    from selfsight.data.written import note

    boxes = Labels.of(items, kind="boxes")
    if boxes.kind == "none":
        raise DataError(f"No item of {boxes.location} has a box. Draw some: selfsight label SOURCE --kind box")
    write_boxes(boxes.labelled(), out)
    note("pictures", out, items.path)


def _write_masks(out: Path, items: Collection) -> None:
    """Write every mask to a COCO file, or to a folder of the format that its name says."""
    from selfsight.console import console
    from selfsight.data.annotations import coco
    from selfsight.data.annotations.folders import FOLDERS, OF_BOXES, in_files, names_of
    from selfsight.data.annotations.outlines import BACKGROUND, Outline, Outlines, is_polygons
    from selfsight.data.labels import Labels
    from selfsight.data.masks import Masks, numbers_of
    from selfsight.data.written import note
    from selfsight.files import write_whole

    masks = Masks.of(items, Labels.of(items, kind="masks"))
    images: list[Outlines] = []
    for row, value in zip(masks.labels.rows.to_pylist(), masks.values, strict=True):
        several = {name: [of] if isinstance(of, dict) or is_polygons(of) else of for name, of in value.items()}
        objects = [Outline(name, region) for name, regions in several.items() for region in regions]
        images.append(Outlines(tuple(objects), (row["width"], row["height"])))
    uris, pages = (masks.labels.rows[name].to_pylist() for name in ("uri", "page"))
    if out.name in FOLDERS:
        if out.name in OF_BOXES and not masks.told_apart:
            raise SelfsightError(
                f"These masks do not tell objects apart, so there is no box of one for {out}. Write them as .json, or "
                "into a folder called labelme or masks."
            )
        named = dict(zip(names_of(uris, pages), images, strict=True))
        for file, data in in_files(out.name, named, masks.names, numbers_of(masks.names)).items():
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            write_whole(out / file, data)
    else:
        called = [uri if page is None else f"{uri}.{page}" for uri, page in zip(uris, pages, strict=True)]
        classes = [name for name in masks.names if name != BACKGROUND]
        write_whole(out, coco.write(dict(zip(called, images, strict=True)), classes))
    note("pictures", out, items.path)
    for one in masks.aside:
        console().print(f"Left out: {one.where}: {one.reason}.", soft_wrap=True)
    if not masks.told_apart and out.name != "masks":
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
    thing = {"mask": "a mask", "box": "boxes"}.get(result.kind, "a label")
    if result.exported is None:
        plural = "" if result.given == 1 else "s"
        given = {"mask": f"mask{plural} given", "box": f"item{plural} answered"}.get(
            result.kind, f"label{plural} given"
        )
        console.print(f"{result.given:,} {given}.")
    classes = f" ({counted({name: n for name, n in result.classes.items() if n})})" if result.labelled else ""
    console.print(f"{result.labelled:,} of {result.items:,} items have {thing}{classes}.")
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
    drawn = DRAWN.get(result.kind)
    how = f"--kind {result.kind} --export {drawn}.json" if drawn else "--export labels.csv"
    console.print(f"To write them to a file: selfsight label {quote(result.source)} {how}")
