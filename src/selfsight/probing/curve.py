"""Label curves: accuracy against the number of labels given, and how many labels reach what others reach with all.

A curve is known at a few numbers of labels. Between them it is taken as linear in the logarithm of the number, and
never to fall: more labels are no harm, so a dip is noise, and is levelled (isotonic regression; Barlow et al.,
"Statistical Inference under Order Restrictions", 1972).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from selfsight.data.groups import group_numbers
from selfsight.probing.evaluation import Interval

SLACK = 1e-9  # of an accuracy that is a level, against rounding


class Point(NamedTuple):
    """What was measured with so many labels.

    labels: how many were given, of all classes together.
    hits: whether each test item was classified correctly, [S, N] bool for S draws of the labels.
    """

    labels: int
    hits: np.ndarray


@dataclass(frozen=True)
class Needed:
    """How many labels a curve needs to reach a level, with 95 % intervals.

    level: the accuracy to be reached.
    labels: how many labels reach it, of all classes together; None where none do, within those measured.
    saved: 1 minus the share of these in the labels that the level was reached with; None likewise.
    at_most: whether the fewest labels that were measured reach it already, so that fewer might.
    reached: the share of the resamplings in which it was reached.
    gap: accuracy of the curve with the most labels minus the level.
    """

    level: Interval
    labels: Interval
    saved: Interval
    at_most: bool
    reached: float
    gap: Interval


def never_falling(accuracies: np.ndarray) -> np.ndarray:
    """The nearest curves to `accuracies` [..., P] that never fall, by least squares: at each place the largest over
    beginnings up to it of the smallest over ends from it of the mean between the two."""
    places = range(accuracies.shape[-1])
    sums = np.concatenate([np.zeros_like(accuracies[..., :1]), accuracies.cumsum(-1)], -1)
    found = np.empty_like(accuracies)
    for at in places:
        least = [
            np.min([(sums[..., end + 1] - sums[..., first]) / (end + 1 - first) for end in places[at:]], axis=0)
            for first in places[: at + 1]
        ]
        found[..., at] = np.max(least, axis=0)
    return found


def labels_to_reach(labels: Sequence[int], accuracies: np.ndarray, level: np.ndarray | float) -> np.ndarray:
    """The labels [...] with which curves [..., P], measured at `labels` [P] ascending, reach a `level` [...]: the
    fewest measured where these do already, infinity where none do."""
    curves, wanted = never_falling(accuracies), np.broadcast_to(level, accuracies.shape[:-1])
    there = curves >= wanted[..., None] - SLACK
    after = there.argmax(-1)  # the first that reaches it
    before = np.maximum(after - 1, 0)
    logs = np.log(np.asarray(labels, float))
    low, high = (np.take_along_axis(curves, place[..., None], -1)[..., 0] for place in (before, after))
    share = np.where(high > low, (wanted - low) / np.where(high > low, high - low, 1.0), 1.0).clip(0.0, 1.0)
    found = np.exp(logs[before] + share * (logs[after] - logs[before]))
    return np.where(there.any(-1), found, np.inf)


def resampled(
    points: Sequence[Point],
    weights: np.ndarray,
    groups: Sequence[str | None] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies [P] of `points` on the same N test items, and those of as many resamplings, [draws, P].

    weights: of the items [N]. An item keeps its weight however often its class is drawn. groups: a name for each item,
    or None for an item that is alone. Whole groups are resampled.

    Items and each point's draws of the labels are resampled with replacement, the items the same for all points. Owen,
    "The pigeonhole bootstrap", Annals of Applied Statistics 2007. With one item or group, no resampling is made.
    """
    numbers = group_numbers(groups, len(weights))
    count = int(numbers.max()) + 1
    sizes = np.bincount(numbers, weights, count)
    sums = [np.stack([np.bincount(numbers, row * weights, count) for row in point.hits]) for point in points]
    values = np.array([some.sum(1).mean() for some in sums]) / sizes.sum()
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws if count > 1 else 0):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        rows = [(some @ times)[rng.integers(0, len(some), len(some))].mean() for some in sums]
        found.append(np.array(rows) / (sizes @ times))
    return values, np.array(found).reshape(-1, len(points))


def interval_of(value: float, found: np.ndarray) -> Interval:
    """A figure with the middle 95 % of its resamplings [B]. An end that is infinite, and a figure that is, are None."""
    ends = np.quantile(found, [0.025, 0.975], method="inverted_cdf") if len(found) else [np.inf, np.inf]
    return Interval(*(float(each) if np.isfinite(each) else None for each in (value, *ends)))


def needed(
    labels: Sequence[int], values: np.ndarray, found: np.ndarray, level: float, levels: np.ndarray, of: int
) -> Needed:
    """How many labels a curve needs to reach what another one reaches with `of` labels.

    labels: the curve's, [P] ascending. values: its accuracies [P]. found: their resamplings [B, P]. level: the other's
    accuracy. levels: its resamplings [B], each of the same items as those of the curve.
    """
    value = float(labels_to_reach(labels, values, level))
    each = labels_to_reach(labels, found, levels)
    return Needed(
        level=interval_of(level, levels),
        labels=interval_of(value, each),
        saved=interval_of(1.0 - value / of, 1.0 - each / of),
        at_most=value <= labels[0] * (1.0 + SLACK),  # a logarithm and back is not exact
        reached=float(np.isfinite(each).mean()) if len(each) else float(np.isfinite(value)),
        gap=interval_of(float(values[-1] - level), found[:, -1] - levels),
    )
