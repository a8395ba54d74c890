"""The verdict: from the label-free evidence of a run to one honest sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

# Below this many steps the warm-up has barely ended, and rows come every tenth step: too few to compare.
STEPS_NEEDED = 50
# Spread is about 1 for directions that fill the sphere. Below a tenth of that, what tells two images apart is
# under a hundredth of the embeddings' energy.
SPREAD_COLLAPSED = 0.1
# All embeddings on one line give an effective rank of 1. Below 2 there is no second direction to tell images by.
RANK_COLLAPSED = 2.0
# Rows are of one batch each. A rise of the contrast (a cosine) smaller than this is what batches differ by.
CONTRAST_RISE = 0.02
# A fall of the loss by less than this share of its first level is also within the noise of batches.
LOSS_FALL = 0.01
# A level is the median of this share of the rows (at least 2, at most 10), so that no single batch decides.
ROWS_SHARE = 0.1

FIGURES = ("loss", "agreement", "contrast", "effective_rank", "spread", "centre_norm")


@dataclass(frozen=True)
class Verdict:
    """`word` is "working", "stuck", "collapsed" or "not enough evidence"; `sentence` says it with the figures;
    `figures` holds them: steps, epochs, and the level of each of `FIGURES` with the first of loss and contrast."""

    word: str
    sentence: str
    figures: dict[str, float] = field(default_factory=dict)


def judge(rows: Sequence[dict[str, Any]]) -> Verdict:
    """The verdict on the rows of `metrics.jsonl`, oldest first. Rows with a figure that is not finite are left out."""
    rows = [row for row in rows if all(math.isfinite(row.get(key, math.nan)) for key in FIGURES)]
    if not rows:
        return Verdict("not enough evidence", "Not enough evidence yet: nothing finite has been measured.")
    count = min(len(rows), 10, max(2, round(ROWS_SHARE * len(rows))))
    first, last = rows[:count], rows[-count:]
    figures: dict[str, float] = {"steps": rows[-1]["step"], "epochs": rows[-1].get("epoch", 0.0)}
    figures |= {key: median(row[key] for row in last) for key in FIGURES}
    figures |= {f"{key}_first": median(row[key] for row in first) for key in ("loss", "contrast")}
    word, opening = _word(figures)
    return Verdict(word, f"{opening} {_evidence(figures)}", figures)


def _word(f: dict[str, float]) -> tuple[str, str]:
    """The word and the first part of the sentence."""
    steps = f"{f['steps']:,.0f} steps"
    if f["steps"] < STEPS_NEEDED:
        return (
            "not enough evidence",
            f"Not enough evidence yet: {steps} were measured, and a judgement needs at least {STEPS_NEEDED}.",
        )
    passes = f"{steps} ({f['epochs']:,.1f} passes over the images)"
    if f["spread"] < SPREAD_COLLAPSED or f["effective_rank"] < RANK_COLLAPSED:
        return "collapsed", f"Collapsed: after {passes} the encoder gives nearly the same answer for every image."
    rose = f["contrast"] - f["contrast_first"] >= CONTRAST_RISE
    fell = f["loss_first"] - f["loss"] >= LOSS_FALL * abs(f["loss_first"])
    if not rose and not fell:
        return "stuck", f"Stuck: {passes} changed neither the loss nor how well images are told apart."
    if not rose:
        return (
            "working",
            f"Working, by its loss only: after {passes} images are not told apart better than at the start.",
        )
    return (
        "working",
        f"Working: after {passes} the encoder recognises an image from its parts better than at the start.",
    )


def _evidence(f: dict[str, float]) -> str:
    """The figures in words, with their units."""
    return (
        f"Two views of one image agree by {f['agreement']:.2f} and views of different images by "
        f"{f['agreement'] - f['contrast']:.2f} (1 is the same, 0 is unrelated); that gap went from "
        f"{f['contrast_first']:.2f} to {f['contrast']:.2f}. "
        f"The loss went from {f['loss_first']:.4g} to {f['loss']:.4g} (lower is better). "
        f"The answers vary in about {f['effective_rank']:.0f} independent directions, "
        f"with a spread of {f['spread']:.2f} (1 is as different as can be, 0 is all the same)."
    )
