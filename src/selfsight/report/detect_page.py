"""The page of a detector: how well it finds and counts, which classes, on which pictures, what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from selfsight.heads.detect_evaluation import DetectEvaluation, Scored
from selfsight.heads.detect_head import DetectHead
from selfsight.heads.detect_voice import DetectAbout
from selfsight.heads.metrics import percent, plainly
from selfsight.probing.evaluation import Interval
from selfsight.report import where_page as where
from selfsight.report.beside import boxed_pictures
from selfsight.report.template import render
from selfsight.report.tested import tested_of
from selfsight.report.verdict import Verdict
from selfsight.report.worth import Cell, Row, Table

GOOD, POOR = 0.5, 0.2  # of AP50: above it most objects are found, below it few are
WEAK = 0.1  # of AP50, below the mean, from which a class is named in the verdict


def build(head: DetectHead, thumbnails: bool = True, names: bool = True) -> tuple[str, Verdict, int]:
    """The page of `head` as HTML, its verdict, and how many pictures it learnt from.

    thumbnails: whether the page shows images. names: whether it names items and paths. Raises `SelfsightError` if the
    evaluation in its folder cannot be read.
    """
    about, (tested, notes) = head.about, tested_of(head, DetectEvaluation.of)
    told = verdict(about, tested)
    boxes = ", ".join(f"{count:,} {name}" for name, count in about.boxes.items())
    draw = partial(boxed_pictures, head)
    content = where.content_of(head, tested, notes, thumbnails, names) | {
        "verdict": told, "classes": _classes(about, tested), "colours": where.colours(about.classes),
        "strips": where.strips_of(_wanted(tested), draw, thumbnails, names),
        "facts": where.facts_of(head, names, [("pictures", f"{about.items:,}"), ("boxes", boxes)]),
        "commands": where.commands_of(head, names, "BOXES", "row['counts']"),
    }  # fmt: skip
    return render("detect_page.html", content), told, about.items


def collections(head: DetectHead) -> list[str]:
    """Where the images are that the page may show."""
    tested, _ = tested_of(head, DetectEvaluation.of)
    return [tested.collection] if tested else []


def verdict(about: DetectAbout, tested: DetectEvaluation | None) -> Verdict:
    """What the head is worth."""
    metrics: dict[str, Interval] = tested.metrics if tested else about.metrics["held_out"]
    if not metrics or metrics["ap50"].value is None:
        return where.not_measured("1 picture" if about.items == 1 else f"{about.items:,} pictures")
    classes: dict[str, Interval] = tested.classes if tested else about.metrics.get("classes", {})
    found, off = metrics["ap50"], metrics["count_error"]
    value = found.value or 0.0
    word = "finds most objects" if value >= GOOD else "finds few objects" if value < POOR else "finds some objects"
    sentence = (
        f"Objects are found with an AP50 of {plainly(found)}, the mean over classes, on "
        f"{where.measured_on(about.held_out, tested)}; counts are off by {plainly(off)} a picture"
        f"{where.weakest(classes, value - WEAK)}."
    )
    return Verdict(word, sentence, {"ap50": value, "count_error": off.value or 0.0})


def _classes(about: DetectAbout, tested: DetectEvaluation | None) -> Table:
    """How well each class is found and counted, and of how much was learnt."""
    held: dict[str, Interval] = about.metrics.get("classes", {})
    columns = ["boxes learnt from", "threshold"] + (["AP50, held out"] if held else [])
    columns += ["boxes, test", "AP50, test", "count off by", "within interval", "false alarms"] if tested else []
    rows = []
    for name, threshold in zip(about.classes, about.thresholds, strict=True):
        texts = [f"{about.boxes.get(name, 0):,}", f"{threshold:.2f}"] + ([plainly(held[name])] if held else [])
        if tested:
            one = tested.counts[name]
            texts += [f"{tested.boxes[name]:,}", plainly(tested.classes[name]), plainly(one.error)]
            texts += [percent(each) if each else "–" for each in (one.inside, one.alarms)]
        rows.append(Row(name, name, [Cell(text, 0) for text in texts]))
    return Table(columns, rows)


def _wanted(tested: DetectEvaluation | None) -> list[where.Wanted]:
    def named(some: Sequence[Scored]) -> list[where.Named]:
        return [
            (one.id, one.uri, f"{one.missed} of {one.objects} missed, {one.false} told that are not there")
            for one in some
        ]

    says = ("The most mistakes.", "The fewest.")
    return where.of_test(tested, named(tested.worst), named(tested.best), says) if tested else []
