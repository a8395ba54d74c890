"""What a label curve says in words: labels needed, labels saved, or that the level was not reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from selfsight.heads.arms import ARMS, LEVEL
from selfsight.heads.metrics import percent

if TYPE_CHECKING:
    from selfsight.heads.curves import LabelCurve
    from selfsight.probing.curve import Needed
    from selfsight.probing.evaluation import Interval

SURE = 0.975  # share of the resamplings that reach the level, below which it is said


def verdict(result: LabelCurve) -> str:
    """The labels that the first arm needs to reach what supervision from scratch reaches with all, in a sentence or
    two."""
    if result.level is None:
        return f"Labels saved: not measured, because {LEVEL} is not among --arms."
    what = "balanced accuracy" if result.leading == "balanced" else "accuracy"
    every = f"supervision from scratch reaches with all {result.train_items:,}, {what} {percent(result.level)}"
    if not result.needed:
        return f"Labels saved: not measured, because {LEVEL} is the only arm. What {every}."
    arm, found = next(iter(result.needed.items()))
    if found.labels.value is None:
        last, gap = result.curves[arm][-1], found.gap
        ends = "" if gap.low is None or gap.high is None else f" [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        return (
            f"Labels needed to reach what {every}: not reached. With {last.labels:,} labels, {ARMS[arm].title}: "
            f"{percent(last.accuracy)}, {100 * (gap.value or 0.0):+.1f}{ends} points."
        )
    few = " It is the fewest that were measured: fewer might do." if found.at_most else ""
    doubt = f" It is reached in {100 * found.reached:.0f} % of the resamplings only." if found.reached < SURE else ""
    return (
        f"Labels needed to reach what {every}: {labels_said(found)}, by {ARMS[arm].title}. "
        f"Labels saved: {saved_said(found)}.{few}{doubt}"
    )


def labels_said(found: Needed) -> str:
    """`92 [70, 130]`; an end that was not reached is said so."""
    value, low, high = found.labels.value, found.labels.low, found.labels.high
    if value is None:
        return "not reached"
    between = "" if low is None else f" [{low:,.0f}, {'not reached' if high is None else f'{high:,.0f}'}]"
    return f"{'at most ' if found.at_most else ''}{value:,.0f}{between}"


def saved_said(found: Needed) -> str:
    """`93.6 % [91.0, 95.1]`; an end at which none is saved is said so."""
    value, low, high = found.saved.value, found.saved.low, found.saved.high
    if value is None:
        return "none"
    between = "" if high is None else f" [{'none' if low is None else f'{100 * low:.1f}'}, {100 * high:.1f}]"
    return f"{'at least ' if found.at_most else ''}{100 * value:.1f} %{between}"


def shown(found: Interval) -> str:
    """An accuracy as `91.5 [86, 96]`, in %, for a table."""
    if found.value is None:
        return "–"
    between = "" if found.low is None or found.high is None else f" [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    return f"{100 * found.value:.1f}{between}"
