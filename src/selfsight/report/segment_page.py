"""The page of a segmentation: how well its masks lie, of which classes, on which pictures, what it was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from selfsight.files import read_json
from selfsight.heads.metrics import plainly
from selfsight.heads.segment_evaluation import Scored, SegmentEvaluation
from selfsight.heads.segment_head import SegmentHead
from selfsight.heads.segment_voice import SegmentAbout
from selfsight.probing.evaluation import Interval
from selfsight.report import where_page as where
from selfsight.report.beside import pictures_of
from selfsight.report.template import render
from selfsight.report.tested import folder_of, tested_of
from selfsight.report.verdict import Verdict
from selfsight.report.worth import Cell, Row, Table

WEAK = 0.05  # of IoU, below the mean, from which a class is named in the verdict


def build(head: SegmentHead, thumbnails: bool = True, names: bool = True) -> tuple[str, Verdict, int]:
    """The page of `head` as HTML, its verdict, and how many masks it learnt from.

    thumbnails: whether the page shows images. names: whether it names items and paths. Raises `SelfsightError` if the
    evaluation in its folder cannot be read.
    """
    about, (tested, notes) = head.about, tested_of(head, SegmentEvaluation.of)
    told = verdict(about, tested)
    learnt = [("masks", f"{about.items:,}"), ("classes", ", ".join(about.classes))]
    looks = [("objects that touch", "told apart" if about.told_apart else "not told apart")]
    if about.roi is not None:
        looks.append(("looks at", f"a mask of {about.roi[1]} x {about.roi[0]} px"))
    content = where.content_of(head, tested, notes, thumbnails, names) | {
        "verdict": told, "classes": _classes(head, tested), "colours": where.colours(about.classes[1:]),
        "strips": where.strips_of(_wanted(head, tested), partial(pictures_of, head), thumbnails, names),
        "facts": where.facts_of(head, names, learnt, looks),
        "commands": where.commands_of(head, names, "MASKS", "len(row['objects'] or [])"),
    }  # fmt: skip
    return render("segment_page.html", content), told, about.items


def collections(head: SegmentHead) -> list[str]:
    """Where the images are that the page may show."""
    lineage, (tested, _) = read_json(folder_of(head) / "lineage.json") or {}, tested_of(head, SegmentEvaluation.of)
    return [*filter(None, [str(lineage.get("collection", "")), tested.collection if tested else ""])]


def verdict(about: SegmentAbout, tested: SegmentEvaluation | None) -> Verdict:
    """What the head is worth beside one class everywhere."""
    metrics: dict[str, Interval] = tested.metrics if tested else about.metrics["held_out"]
    if not metrics:
        return where.not_measured("1 mask" if about.items == 1 else f"{about.items:,} masks")
    classes: dict[str, Interval] = tested.classes if tested else about.metrics.get("classes", {})
    pixels = tested.pixels if tested else about.pixels
    everywhere, beside = one_class(pixels, classes)
    found = metrics["miou"]
    sign = Interval(found.value, *(None if end is None else end - beside for end in (found.low, found.high))).sign
    word = {1: "better than", 0: "not measurably better than", -1: "worse than"}[sign]
    sentence = (
        f"Its masks overlap the true ones by {plainly(found)}, the mean over classes, on "
        f"{where.measured_on(about.held_out, tested)}, where {everywhere} everywhere would have {beside:.3g}"
    )
    figures = {"miou": found.value or 0.0, "one_class": beside}
    if "ap50" in metrics:
        objects, off = metrics["ap50"], metrics["count_error"]
        sentence += (
            f". Objects are found with an AP50 of {plainly(objects)}; counts are off by {plainly(off)} a picture"
        )
        figures |= {"ap50": objects.value or 0.0, "count_error": off.value or 0.0}
    sentence += f"{where.weakest(classes, (found.value or 0.0) - WEAK)}."
    return Verdict(f"{word} one class everywhere", sentence, figures)


def one_class(pixels: dict[str, int], classes: dict[str, Interval]) -> tuple[str, float]:
    """(the commonest class, the mIoU of answering it everywhere): its share of the pixels over the number of classes
    that there are, as it overlaps itself by its share and the others by nothing."""
    there = {name: count for name, count in pixels.items() if count}
    if not there:
        return "one class", 1.0 / max(1, len(classes))
    commonest = max(there, key=lambda name: there[name])
    return commonest, there[commonest] / sum(there.values()) / len(there)


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


def _wanted(head: SegmentHead, tested: SegmentEvaluation | None) -> list[where.Wanted]:
    def named(some: Sequence[Scored]) -> list[where.Named]:
        return [(one.id, one.uri, f"overlap {one.miou:.3f}") for one in some]

    says = ("The least overlap with the true mask.", "The most overlap.")
    found = where.of_test(tested, named(tested.worst), named(tested.best), says) if tested else []
    held = head.items.filter(head.items["held_out"].is_valid()) if "held_out" in head.items.column_names else None
    if held is not None and len(held):
        lineage = read_json(folder_of(head) / "lineage.json") or {}
        rows = sorted(held.select(["id", "uri", "held_out"]).to_pylist(), key=lambda row: (row["held_out"], row["id"]))
        pictures = [(row["id"], row["uri"], f"overlap {row['held_out']:.3f}") for row in rows[: where.MOST_TILES]]
        sentence = (
            "The figure is from when the picture was held out; the mask is by the head as it is, which has learnt from "
            "it since. If the true mask is wrong, correct it and train again."
        )
        place, labels = str(lineage.get("collection", "")), str(lineage.get("masks", ""))
        found.append(where.Wanted("Worst pictures that it learnt from", sentence, place, labels, pictures))
    return found
