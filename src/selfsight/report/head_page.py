"""The page of a head: what it is worth, where it is wrong, what it was made from and how to use it."""

from __future__ import annotations

import base64
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from selfsight.data.collection import Collection
from selfsight.data.spread import spread
from selfsight.encoders.licences import concern
from selfsight.errors import SelfsightError
from selfsight.files import read_json
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.evaluation import HeadEvaluation, Mistake, evaluate_held_out, held_out_from
from selfsight.heads.targets import read_label
from selfsight.report import head_worth as worth
from selfsight.report import nameless
from selfsight.report.pictures import data_uri, thumbnails_of
from selfsight.report.plane import Point, plane
from selfsight.report.plots import MOST_NUMBERED, confusion_png
from selfsight.report.template import render
from selfsight.report.tested import folder_of, tested_of, traced
from selfsight.report.verdict import Verdict
from selfsight.report.worth import Table

THUMBNAIL = 120  # px
MOST_POINTS = 1000  # of numbers
MOST_PAIRS = 12  # of classes that are confused
TONES = {"better": "working", "worse": "stuck"}  # first word of a verdict: class of the style sheet
HELD_OUT, TEST = "held out in turn", "test"


class Tile(NamedTuple):
    """A mistake on the page: picture and name may be ""."""

    picture: str
    name: str
    mistake: Mistake


class Part(NamedTuple):
    """One set of figures on the page: of test items, or of those that were held out."""

    title: str
    measured: HeadEvaluation
    recall: Table
    by: Table | None
    plane: str
    matrix: str
    confused: list[tuple[str, str, int]]
    tiles: list[Tile]
    missing: str


def build(head: ClassifyHead, thumbnails: bool = True, names: bool = True) -> tuple[str, Verdict, int]:
    """The page of `head` as HTML, its verdict, and how many items it learnt from.

    thumbnails: whether the page shows images.
    names: whether it names items and paths.

    Raises `SelfsightError` if the evaluation in its folder cannot be read.
    """
    about, lineage = head.about, read_json(folder_of(head) / "lineage.json") or {}
    tested, notes = tested_of(head, HeadEvaluation.of)
    held = evaluate_held_out(head)
    sides = {title: side for title, side in ((TEST, tested), (HELD_OUT, held)) if side is not None}
    learnt = _learnt(head)
    notes += [*about.notes, *(tested.notes if tested else [])]
    verdict = worth.verdict(about, learnt, tested or held, tested is not None)
    places = {HELD_OUT: str(lineage.get("collection", "")), TEST: tested.collection if tested else ""}
    content: dict[str, object] = {
        "title": folder_of(head).name, "about": about, "verdict": verdict, "thumbnails": thumbnails, "names": names,
        "metrics": worth.metrics_table(sides), "tone": TONES.get(verdict.word.split()[0], ""),
        "parts": [_part(head, title, side, places[title], learnt, thumbnails, names) for title, side in sides.items()],
        "rule": worth.decided(about.decision), "costs": about.decision.costs, "promised": worth.promised(about),
        "notes": notes if names else nameless.head_notes(notes), "tested": tested is not None,
        "facts": _facts(head, lineage, places[TEST], names), "concern": concern(about.licence),
        "intended": about.intended_use if names else nameless.intended(about.intended_use),
        "commands": _commands(head, names), "learnt": sorted(learnt.items(), key=lambda pair: -pair[1]),
    }  # fmt: skip
    return render("head_page.html", content), verdict, about.items


def collections(head: ClassifyHead) -> list[str]:
    """Where the images are that the page may show."""
    lineage, (tested, _) = read_json(folder_of(head) / "lineage.json") or {}, tested_of(head, HeadEvaluation.of)
    return [*filter(None, [str(lineage.get("collection", "")), tested.collection if tested else ""])]


def _learnt(head: ClassifyHead) -> dict[str, int]:
    """{class: items that it learnt from}; none of a number."""
    counts = Counter(dict.fromkeys(head.about.classes, 0))
    if head.about.kind != "number":
        for label in head.labelled["label"].to_pylist():
            value = read_label(label, head.about.kind)
            counts.update(value if isinstance(value, tuple) else [str(value)])
    return dict(counts)


# -- figures --


def _part(
    head: ClassifyHead,
    title: str,
    side: HeadEvaluation,
    place: str,
    learnt: dict[str, int],
    thumbnails: bool,
    names: bool,
) -> Part:
    pictures, missing = _pictures(head, place, side.mistakes) if thumbnails else ({}, "")
    if missing and not names:
        missing = nameless.NO_PICTURES
    tiles = [Tile(pictures.get(one.id, ""), one.uri if names else "", one) for one in side.mistakes]
    many = len(side.classes) > MOST_NUMBERED and bool(side.confusion)
    drawn = ""
    if side.reliability:
        points = [
            Point(
                said, right, f"{count:,} items: said {100 * said:.0f} %, right {100 * right:.0f} %", count / side.items
            )
            for said, right, count in side.reliability
        ]
        drawn = plane([*points], "probability of the answer", "share that is right", shares=True)
    elif side.kind == "number" and title == HELD_OUT:
        drawn = _numbers(head, names)
    return Part(
        title, side, worth.recall_table(side, learnt), worth.by_table(side.by) if side.by and names else None, drawn,
        _png(confusion_png(side.classes, side.confusion)) if many else "",
        worth.confused(side, MOST_PAIRS) if many else [], tiles, missing,
    )  # fmt: skip


def _numbers(head: ClassifyHead, names: bool) -> str:
    """The held-out answers over the truth."""
    rows, targets, said = held_out_from(head)
    chosen = spread(len(rows), MOST_POINTS)
    uris = rows["uri"].to_pylist()
    points = []
    for place in chosen.tolist():
        truth, value = float(targets.values[place, 0]), float(said.decided[place, 0])
        points.append(Point(truth, value, f"{uris[place]}: " * names + f"{truth:.4g}, answer {value:.4g}"))
    return plane(points, "truth", "answer")


def _png(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


def _pictures(head: ClassifyHead, place: str, mistakes: Sequence[Mistake]) -> tuple[dict[str, str], str]:
    """({id: picture} of the items in the collection at `place`, why some are missing)."""
    wanted = {mistake.id for mistake in mistakes}
    if not wanted:
        return {}, ""
    if not place:
        return {}, "The pictures are missing, as lineage.json does not say where they are."
    try:
        items = Collection.open(place)
        items.source  # noqa: B018
    except SelfsightError as error:
        return {}, f"The pictures are not there any more: {error}"
    rows = items.table.filter([item in wanted for item in items.table["id"].to_pylist()])
    drawn = thumbnails_of(items, rows, head.encoder, THUMBNAIL)
    ids = rows["id"].to_pylist()
    return {ids[number]: data_uri(picture) for number, picture in drawn.items()}, ""


# -- what it is made of --


def _facts(head: ClassifyHead, lineage: dict[str, object], test: str, names: bool) -> list[tuple[str, str]]:
    about, groups = head.about, set(head.labelled["group"].to_pylist()) - {None}
    model = str(lineage.get("model", ""))
    rows = [("labelled items", f"{about.items:,}")]
    rows += [("groups", f"{len(groups):,}, each held out as a whole")] if groups else []
    rows += (
        [("collection", f"{lineage.get('collection')}, version {lineage.get('collection_version')}")] if names else []
    )
    rows += [("tested on", test)] if names and test else []
    rows += [("encoder", _encoder(head))]
    rows += [("from", model)] if names or nameless.is_public(model) else []
    rows += [("licence", about.licence), ("method", f"{about.method} {about.setting}".strip())]
    rows += [("seed of the folds", str(lineage.get("seed", "")))]
    rows += [("command", str(lineage.get("command", "")))] if names else []
    return rows + traced(head, lineage)


def _encoder(head: ClassifyHead) -> str:
    geometry = head.encoder.geometry
    config = read_json(folder_of(head) / "encoder" / "config.json") or {}
    return (
        f"{config.get('architecture', 'encoder')}, {geometry.size} px, {geometry.channels} "
        f"channel{'' if geometry.channels == 1 else 's'} ({head.about.encoder})"
    )


def _commands(head: ClassifyHead, names: bool) -> dict[str, str]:
    """How to use it, by what it is for."""
    folder = str(folder_of(head)) if names else nameless.HEAD
    here = shlex.quote(folder)
    label = {"classes": "labels", "number": "value"}.get(head.about.kind, "label")
    return {
        "predict": f"selfsight predict NEW/ --head {here} -o predictions.parquet",
        "evaluate": f"selfsight evaluate {here} --test LABELLED",
        "python": (
            "import selfsight\n\n"
            f"table = selfsight.predict('NEW/', head={folder!r}).table\n"
            f"print(table.select(['uri', {label!r}]).to_pylist())"
        ),
    }
