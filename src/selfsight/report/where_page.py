"""What the pages of a detector and of a segmentation share: tables, pictures beside the truth, of what it was made."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from selfsight.encoders.licences import concern
from selfsight.files import read_json
from selfsight.heads.detect_evaluation import DetectEvaluation
from selfsight.heads.detect_head import DetectHead
from selfsight.heads.metrics import plainly
from selfsight.heads.segment_evaluation import SegmentEvaluation
from selfsight.heads.segment_head import SegmentHead
from selfsight.heads.segment_pictures import COLOURS
from selfsight.probing.evaluation import Interval
from selfsight.report import nameless
from selfsight.report.beside import Beside
from selfsight.report.head_worth import by_table, figures_table
from selfsight.report.tested import folder_of, traced
from selfsight.report.verdict import Verdict

WhereHead: TypeAlias = DetectHead | SegmentHead
WhereEvaluation: TypeAlias = DetectEvaluation | SegmentEvaluation
Named: TypeAlias = tuple[str, str, str]  # a picture: its id, uri, and what is said of it
Fact: TypeAlias = tuple[str, str]  # a title and what is told

MOST_TILES = 6  # pictures of a kind
MOST_ASIDE = 12  # masks or boxes that are named


class Tile(NamedTuple):
    """A picture on the page, with what the head says and with the truth; pictures and name may be ""."""

    pictures: Beside
    name: str
    what: str


class Strip(NamedTuple):
    """Pictures on the page under a heading, with a sentence, and why some are missing."""

    title: str
    sentence: str
    tiles: list[Tile]
    missing: str


class Wanted(NamedTuple):
    """What a strip is to show: pictures of the collection at `place`, whose truth is at `labels`."""

    title: str
    sentence: str
    place: str
    labels: str
    pictures: list[Named]


def content_of(
    head: WhereHead, tested: WhereEvaluation | None, notes: list[str], thumbnails: bool, names: bool
) -> dict[str, object]:
    """What both pages are filled with. notes: on the evaluation that was read."""
    about = head.about
    sides = ({"test": tested.metrics} if tested else {}) | {"held out": about.metrics["held_out"]}
    notes = [*notes, *about.notes, *(tested.notes if tested else [])]
    unusable = [*about.unusable.items()] if isinstance(about.unusable, dict) else about.unusable
    aside = unusable[:MOST_ASIDE] if names else []
    return {
        "title": folder_of(head).name, "about": about, "thumbnails": thumbnails, "names": names, "tested": tested,
        "metrics": figures_table({title: side for title, side in sides.items() if side}),
        "by": by_table(tested.by) if tested and tested.by and names else None,
        "notes": [nameless.without_folders(note) for note in notes] if names else nameless.head_notes(notes),
        "concern": concern(about.licence), "aside": aside, "more_aside": len(unusable) - len(aside),
        "intended": about.intended_use if names else nameless.intended(about.intended_use),
    }  # fmt: skip


def colours(classes: Sequence[str]) -> dict[str, str]:
    """{class: its colour in overlays}."""
    tones = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(classes)}
    return {name: "#" + "".join(f"{part:02x}" for part in tone) for name, tone in tones.items()}


# -- the verdict --


def not_measured(learnt: str) -> Verdict:
    """Of a head that learnt from so many masks or pictures, which nothing was held out of."""
    return Verdict(
        "not measured",
        f"It learnt from {learnt}, and none was held out. How good it is on other pictures is not known.",
    )


def measured_on(held_out: int, tested: WhereEvaluation | None) -> str:
    """How many pictures the figures are of, and which."""
    if tested:
        return f"{tested.items:,} pictures of the test"
    return f"{held_out:,} pictures that were held out in turn"


def weakest(classes: dict[str, Interval], limit: float) -> str:
    """The end of a sentence that names the weakest class, if it lies below the limit."""
    known = {name: one.value for name, one in classes.items() if one.value is not None}
    name = min(known, key=lambda name: known[name], default="")
    return f". Weakest class: {name}, {plainly(classes[name])}" if name and known[name] < limit else ""


# -- pictures --


def of_test(
    tested: WhereEvaluation, worst: Sequence[Named], best: Sequence[Named], says: tuple[str, str]
) -> list[Wanted]:
    """The worst and the best pictures of a test, none of them twice. says: of the worst, and of the best."""
    first = worst[: min(MOST_TILES, (tested.items + 1) // 2)]
    last = [one for one in best if one not in first][:MOST_TILES]
    titles = ("Worst pictures of the test", "Best pictures of the test")
    return [
        Wanted(title, sentence, tested.collection, tested.labels, [*some])
        for title, sentence, some in zip(titles, says, (first, last), strict=True)
    ]


def strips_of(
    wanted: Sequence[Wanted], draw: Callable[[str, str, list[str]], tuple[dict[str, Beside], str]], thumbnails: bool,
    names: bool,
) -> list[Strip]:  # fmt: skip
    """Each that has pictures, as the page shows it. draw: gives of a place, labels and ids what `beside` gives."""
    strips = []
    for one in wanted:
        ids = [item for item, _, _ in one.pictures]
        pictures, missing = draw(one.place, one.labels, ids) if thumbnails and ids else ({}, "")
        missing = nameless.NO_PICTURES if missing and not names else nameless.without_folders(missing)
        tiles = [Tile(pictures.get(i, Beside("", "")), uri if names else "", what) for i, uri, what in one.pictures]
        strips.append(Strip(one.title, one.sentence, tiles, missing))
    return [strip for strip in strips if strip.tiles]


# -- what it is made of --


def facts_of(head: WhereHead, names: bool, learnt: Sequence[Fact], looks: Sequence[Fact] = ()) -> list[Fact]:
    """What it was made from: what it learnt, how it looks, and how it came about."""
    about, geometry = head.about, head.encoder.geometry
    lineage = read_json(folder_of(head) / "lineage.json") or {}
    config = read_json(folder_of(head) / "encoder" / "config.json") or {}
    groups = set(head.items["group"].to_pylist()) - {None, ""}
    model = str(lineage.get("model", ""))
    rows = [*learnt, *([("groups", f"{len(groups):,}, each held out as a whole")] if groups else []), *looks]
    if names:
        rows.append(("version of the collection", str(lineage.get("collection_version", ""))))
        rows.append(("command", nameless.without_folders(str(lineage.get("command", "")))))
    rows += [
        ("encoder", f"{config.get('architecture', 'encoder')} ({about.encoder}), {geometry.size} px, {geometry.rule}")
    ]
    rows += [("from", nameless.without_folders(model))] if model and (names or nameless.is_public(model)) else []
    rows += [("licence", about.licence), ("method", about.setting), ("seed", str(lineage.get("seed", "")))]
    return rows + traced(head, lineage)


def commands_of(head: WhereHead, names: bool, labels: str, told: str) -> dict[str, str]:
    """How to use it, by what it is for. labels: what the truth is called; told: what a line of Python prints of a
    row."""
    folder = nameless.without_folders(str(folder_of(head))) if names else nameless.HEAD
    here = shlex.quote(folder)
    return {
        "predict": f"selfsight predict NEW/ --head {here} -o found/ --pixel-size 0.5um --coco found.json",
        "evaluate": f"selfsight evaluate {here} --test LABELLED --labels {labels}",
        "python": (
            "import selfsight\n\n"
            f"table = selfsight.predict('NEW/', head={folder!r}).table\n"
            f"print([(row['uri'], {told}) for row in table.to_pylist()])"
        ),
    }
