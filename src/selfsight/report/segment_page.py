"""The page of a segmentation: how well its masks lie, of which classes, on which pictures, what it was made from."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any, NamedTuple

from selfsight.encoders.licences import concern
from selfsight.files import read_json
from selfsight.heads.metrics import TITLES, number, plainly
from selfsight.heads.segment_evaluation import SegmentEvaluation
from selfsight.heads.segment_head import SegmentAbout, SegmentHead
from selfsight.heads.segment_pictures import COLOURS
from selfsight.probing.evaluation import Interval
from selfsight.report import nameless
from selfsight.report.beside import Beside, pictures_of
from selfsight.report.template import render
from selfsight.report.tested import folder_of, tested_of
from selfsight.report.verdict import Verdict
from selfsight.report.worth import Cell, Row, Table

MOST_TILES = 6  # pictures of a kind
MOST_ASIDE = 12  # masks that are named
WEAK = 0.05  # of IoU, below the mean, from which a class is named in the verdict


class Tile(NamedTuple):
    """A picture on the page, with its mask and the true one; pictures and name may be ""."""

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
    """What a strip is to show: ids, uris and mIoU of pictures of the collection at `place`, whose masks are at
    `labels`."""

    title: str
    sentence: str
    place: str
    labels: str
    pictures: list[tuple[str, str, float]]


def build(head: SegmentHead, thumbnails: bool = True, names: bool = True) -> tuple[str, Verdict, int]:
    """The page of `head` as HTML, its verdict, and how many masks it learnt from.

    thumbnails: whether the page shows images. names: whether it names items and paths. Raises `SelfsightError` if the
    evaluation in its folder cannot be read.
    """
    about, lineage = head.about, read_json(folder_of(head) / "lineage.json") or {}
    tested, notes = tested_of(head, SegmentEvaluation.of)
    notes = [*notes, *about.notes, *(tested.notes if tested else [])]
    told = verdict(about, tested)
    folder = nameless.without_folders(str(folder_of(head))) if names else nameless.HEAD
    aside = [*about.unusable.items()][:MOST_ASIDE] if names else []
    notes = [nameless.without_folders(note) for note in notes] if names else nameless.head_notes(notes)
    content: dict[str, object] = {
        "title": folder_of(head).name, "about": about, "verdict": told, "thumbnails": thumbnails, "names": names,
        "tested": tested, "metrics": _metrics(about, tested), "classes": _classes(head, tested),
        "by": _by(tested, names), "colours": colours(about.classes),
        "strips": _strips(head, lineage, tested, thumbnails, names),
        "notes": notes, "concern": concern(about.licence),
        "aside": aside, "more_aside": len(about.unusable) - len(aside),
        "facts": _facts(head, lineage, names), "commands": _commands(folder),
        "intended": about.intended_use if names else nameless.intended(about.intended_use),
    }  # fmt: skip
    return render("segment_page.html", content), told, about.items


def collections(head: SegmentHead) -> list[str]:
    """Where the images are that the page may show."""
    lineage, (tested, _) = read_json(folder_of(head) / "lineage.json") or {}, tested_of(head, SegmentEvaluation.of)
    return [*filter(None, [str(lineage.get("collection", "")), tested.collection if tested else ""])]


def colours(classes: list[str]) -> dict[str, str]:
    """{class: its colour in overlays}; the background has none."""
    tones = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(classes[1:])}
    return {name: "#" + "".join(f"{part:02x}" for part in tone) for name, tone in tones.items()}


# -- figures --


def verdict(about: SegmentAbout, tested: SegmentEvaluation | None) -> Verdict:
    """What the head is worth beside one class everywhere."""
    metrics: dict[str, Interval] = tested.metrics if tested else about.metrics["held_out"]
    if not metrics:
        few = "1 mask" if about.items == 1 else f"{about.items:,} masks"
        return Verdict(
            "not measured",
            f"It learnt from {few}, and none was held out. How good it is on other pictures is not known.",
        )
    classes: dict[str, Interval] = tested.classes if tested else about.metrics.get("classes", {})
    pixels = tested.pixels if tested else about.pixels
    everywhere, beside = one_class(pixels, classes)
    found = metrics["miou"]
    sign = Interval(found.value, *(None if end is None else end - beside for end in (found.low, found.high))).sign
    word = {1: "better than", 0: "not measurably better than", -1: "worse than"}[sign]
    of = (
        f"{tested.items:,} pictures of the test"
        if tested
        else f"{about.held_out:,} pictures that were held out in turn"
    )
    sentence = (
        f"Its masks overlap the true ones by {plainly(found)}, the mean over classes, on {of}, "
        f"where {everywhere} everywhere would have {beside:.3g}"
    )
    figures = {"miou": found.value or 0.0, "one_class": beside}
    if "ap50" in metrics:
        objects, off = metrics["ap50"], metrics["count_error"]
        sentence += (
            f". Objects are found with an AP50 of {plainly(objects)}; counts are off by {plainly(off)} a picture"
        )
        figures |= {"ap50": objects.value or 0.0, "count_error": off.value or 0.0}
    known = {name: one.value for name, one in classes.items() if one.value is not None}
    weakest = min(known, key=lambda name: known[name], default="")
    if weakest and known[weakest] < (found.value or 0.0) - WEAK:
        sentence += f". Weakest class: {weakest}, {plainly(classes[weakest])}"
    return Verdict(f"{word} one class everywhere", f"{sentence}.", figures)


def one_class(pixels: dict[str, int], classes: dict[str, Interval]) -> tuple[str, float]:
    """(the commonest class, the mIoU of answering it everywhere): its share of the pixels over the number of classes
    that there are, as it overlaps itself by its share and the others by nothing."""
    there = {name: count for name, count in pixels.items() if count}
    if not there:
        return "one class", 1.0 / max(1, len(classes))
    commonest = max(there, key=lambda name: there[name])
    return commonest, there[commonest] / sum(there.values()) / len(there)


def _metrics(about: SegmentAbout, tested: SegmentEvaluation | None) -> Table:
    sides = ({"test": tested.metrics} if tested else {}) | {"held out": about.metrics["held_out"]}
    sides = {title: side for title, side in sides.items() if side}
    rows = []
    for name in dict.fromkeys(name for side in sides.values() for name in side):
        cells = [Cell(number(name, side[name]) if name in side else "–", 0) for side in sides.values()]
        rows.append(Row(name, TITLES[name], cells))
    return Table(list(sides), rows)


def _classes(head: SegmentHead, tested: SegmentEvaluation | None) -> Table:
    """How well each class is found, and of how much was learnt."""
    about = head.about
    held: dict[str, Interval] = about.metrics.get("classes", {})
    sides = ({"test": (tested.classes, tested.pixels)} if tested else {}) | (
        {"held out": (held, about.pixels)} if held else {}
    )
    learnt = Counter(name for label in head.items["label"].to_pylist() for name in (label or "").split("|"))
    rows = []
    for name in about.classes:
        count = learnt.get(name)
        cells = [Cell("–" if count is None else f"{count:,}", 0)]
        for found, pixels in sides.values():
            share = pixels.get(name, 0) / max(1, sum(pixels.values()))
            cells += [Cell(f"{100 * share:.3g} %", 0), Cell(plainly(found[name]) if name in found else "–", 0)]
        rows.append(Row(name, name, cells))
    columns = [column for title in sides for column in (f"pixels, {title}", f"IoU, {title}")]
    return Table(["masks", *columns], rows)


def _by(tested: SegmentEvaluation | None, names: bool) -> Table | None:
    if tested is None or not tested.by or not names:
        return None
    columns = list(dict.fromkeys(name for found in tested.by.values() for name in found))
    rows = [
        Row(value, value, [Cell(number(name, found[name]) if name in found else "–", 0) for name in columns])
        for value, found in tested.by.items()
    ]
    return Table([TITLES[name] for name in columns], rows)


# -- pictures --


def _strips(
    head: SegmentHead, lineage: dict[str, Any], tested: SegmentEvaluation | None, thumbnails: bool, names: bool
) -> list[Strip]:
    strips = []
    for wanted in _wanted(head, lineage, tested):
        ids = [item for item, _, _ in wanted.pictures]
        pictures, missing = pictures_of(head, wanted.place, wanted.labels, ids) if thumbnails else ({}, "")
        missing = nameless.NO_PICTURES if missing and not names else nameless.without_folders(missing)
        tiles = [
            Tile(pictures.get(item, Beside("", "")), uri if names else "", f"overlap {miou:.3f}")
            for item, uri, miou in wanted.pictures
        ]
        strips.append(Strip(wanted.title, wanted.sentence, tiles, missing))
    return strips


def _wanted(head: SegmentHead, lineage: dict[str, Any], tested: SegmentEvaluation | None) -> list[Wanted]:
    found = []
    if tested is not None:
        half = (tested.items + 1) // 2
        worst = [(one.id, one.uri, one.miou) for one in tested.worst[: min(MOST_TILES, half)]]
        best = [(one.id, one.uri, one.miou) for one in tested.best if one.id not in {each[0] for each in worst}]
        place, labels = tested.collection, tested.labels
        found.append(
            Wanted("Worst pictures of the test", "The least overlap with the true mask.", place, labels, worst)
        )
        found.append(Wanted("Best pictures of the test", "The most overlap.", place, labels, best[:MOST_TILES]))
    held = head.items.filter(head.items["held_out"].is_valid()) if "held_out" in head.items.column_names else None
    if held is not None and len(held):
        rows = sorted(held.select(["id", "uri", "held_out"]).to_pylist(), key=lambda row: (row["held_out"], row["id"]))
        pictures = [(row["id"], row["uri"], row["held_out"]) for row in rows[:MOST_TILES]]
        sentence = (
            "The figure is from when the picture was held out; the mask is by the head as it is, which has learnt from "
            "it since. If the true mask is wrong, correct it and train again."
        )
        place, labels = str(lineage.get("collection", "")), str(lineage.get("masks", ""))
        found.append(Wanted("Worst pictures that it learnt from", sentence, place, labels, pictures))
    return [one for one in found if one.pictures]


# -- what it is made of --


def _facts(head: SegmentHead, lineage: dict[str, Any], names: bool) -> list[tuple[str, str]]:
    about, geometry = head.about, head.encoder.geometry
    groups = set(head.items["group"].to_pylist()) - {None, ""}
    model = str(lineage.get("model", ""))
    config = read_json(folder_of(head) / "encoder" / "config.json") or {}
    rows = [("masks", f"{about.items:,}"), ("classes", ", ".join(about.classes))]
    rows += [("groups", f"{len(groups):,}, each held out as a whole")] if groups else []
    rows += [("objects that touch", "told apart" if about.told_apart else "not told apart")]
    if names:
        rows.append(("version of the collection", str(lineage.get("collection_version", ""))))
        rows.append(("command", nameless.without_folders(str(lineage.get("command", "")))))
    rows += [
        ("encoder", f"{config.get('architecture', 'encoder')} ({about.encoder}), {geometry.size} px, {geometry.rule}")
    ]
    rows += [("from", nameless.without_folders(model))] if model and (names or nameless.is_public(model)) else []
    rows += [("licence", about.licence), ("method", about.setting), ("seed", str(lineage.get("seed", "")))]
    rows += [("ids", str(lineage.get("ids", ""))), ("labels", str(lineage.get("labels", "")))]
    rows += [("this head", head.digest)]
    rows += [("head before", str(lineage["parent"]))] if lineage.get("parent") else []
    if isinstance(versions := lineage.get("versions"), dict):
        rows.append(("versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
    return rows


def _commands(folder: str) -> dict[str, str]:
    """How to use it, by what it is for."""
    here = shlex.quote(folder)
    return {
        "predict": f"selfsight predict NEW/ --head {here} -o found/ --pixel-size 0.5um --coco found.json",
        "evaluate": f"selfsight evaluate {here} --test LABELLED --labels MASKS",
        "python": (
            "import selfsight\n\n"
            f"table = selfsight.predict('NEW/', head={folder!r}).table\n"
            "print([(row['uri'], len(row['objects'] or [])) for row in table.to_pylist()])"
        ),
    }
