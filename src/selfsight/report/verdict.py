"""The verdict: from the label-free evidence of a run to one honest sentence.

The alarm and its thresholds decide what has collapsed or does not move. This module decides the rest: whether there is
enough evidence, and what got better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from selfsight.training.alarm import STILL_CONTRAST, Alarm

# Below this many steps the warm-up has barely ended, and rows come every tenth step: too few to compare.
STEPS_NEEDED = 50
# A level is the median of this share of the rows (at least 2, at most 10), so that no single batch decides.
ROWS_SHARE = 0.1

FIGURES = ("loss", "effective_rank", "spread", "centre_norm")
COMPARED = ("agreement", "contrast")  # of objectives with several views
COURSES = ("loss", "contrast", "effective_rank", "alignment", "uniformity", "neighbour_stability")


@dataclass(frozen=True)
class Verdict:
    """Whether a run works.

    word: "working", "stuck", "collapsed" or "not enough evidence".
    sentence: says it.
    figures: steps, epochs and the level of each of `FIGURES`. If measured, also of `COMPARED` and `COURSES`; NAME_first
        is the first value of a course.
    evidence: the figures in words.
    """

    word: str
    sentence: str
    figures: dict[str, float] = field(default_factory=dict)
    evidence: str = ""


def judge(rows: Sequence[Mapping[str, float]]) -> Verdict:
    """The verdict on the rows of `metrics.jsonl`, oldest first. Rows with a figure that is not finite are left out."""
    needed = (*FIGURES, *(key for key in COMPARED if any(key in row for row in rows)))
    rows = [row for row in rows if all(math.isfinite(row.get(key, math.nan)) for key in needed)]
    if not rows:
        return Verdict("not enough evidence", "Not enough evidence yet: nothing finite has been measured.")
    count = min(len(rows), 10, max(2, round(ROWS_SHARE * len(rows))))
    first, last = rows[:count], rows[-count:]
    courses = [key for key in COURSES if all(math.isfinite(row.get(key, math.nan)) for row in first + last)]
    figures: dict[str, float] = {"steps": rows[-1]["step"], "epochs": rows[-1].get("epoch", 0.0)}
    figures |= {key: median(row[key] for row in last) for key in (*needed, *courses)}
    figures |= {f"{key}_first": median(row[key] for row in first) for key in courses}
    alarm = Alarm()
    for row in rows:
        alarm.look(row)
    word, opening = _word(figures, alarm)
    return Verdict(word, opening, figures, _evidence(figures))


def _word(f: dict[str, float], alarm: Alarm) -> tuple[str, str]:
    """The word and the first part of the sentence."""
    steps = f"{f['steps']:,.0f} steps"
    if f["steps"] < STEPS_NEEDED:
        return (
            "not enough evidence",
            f"Not enough evidence yet: {steps} were measured, and a judgement needs at least {STEPS_NEEDED}.",
        )
    passes = f"{steps} ({f['epochs']:,.1f} passes over the images)"
    still = alarm.raised.get("loss not moving")
    if still:
        return "stuck", f"Stuck: {passes} changed neither the loss nor how well images are told apart."
    if alarm.raised:
        alert = min(alarm.raised.values(), key=lambda alert: alert.step)
        return "collapsed", f"Collapsed ({alert.kind}), seen first at step {alert.step:,}. {alert.sentence}"
    if "contrast" not in f and f["loss"] < f["loss_first"]:
        return "working", f"Working, by its loss only: after {passes} it is lower, and this task compares no views."
    if "contrast" not in f:
        return "not enough evidence", (
            f"Not enough evidence: after {passes} the loss is no lower than at the start, and this task compares no "
            "views."
        )
    if f["contrast"] - f["contrast_first"] >= STILL_CONTRAST:
        better = "the encoder recognises an image from its parts better than at the start."
        return "working", f"Working: after {passes} {better}"
    unlike = f"after {passes} images are not told apart better than at the start."
    return "working", f"Working, by its loss only: {unlike}"


def _evidence(f: dict[str, float]) -> str:
    """The figures in words, with their units."""
    said = ""
    if "contrast" in f:
        said = (
            f"Two views of one image agree by {f['agreement']:.2f} and views of different images by "
            f"{f['agreement'] - f['contrast']:.2f} (1 is the same, 0 is unrelated); that gap went from "
            f"{f['contrast_first']:.2f} to {f['contrast']:.2f}. "
        )
    said += (
        f"The loss went from {f['loss_first']:.4g} to {f['loss']:.4g} (lower is better). "
        f"The answers vary in about {f['effective_rank']:.0f} independent directions, "
        f"with a spread of {f['spread']:.2f} (1 is as different as can be, 0 is all the same)."
    )
    if "neighbour_stability" in f:
        said += (
            f" Two views of an image have {f['neighbour_stability']:.0%} of their nearest neighbours in common, "
            f"chance deducted; at the start {f['neighbour_stability_first']:.0%}."
        )
    if "alignment" in f and "uniformity" in f:
        said += (
            f" Alignment went from {f['alignment_first']:.2f} to {f['alignment']:.2f} and uniformity from "
            f"{f['uniformity_first']:.2f} to {f['uniformity']:.2f} (of both, lower is better)."
        )
    return said
