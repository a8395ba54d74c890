"""How many of a ranking are truly at fault, and where to cut it.

Most items are sound, so the bulk of the scores tells what sound items score: its quantiles are continued to the tail,
and what lies above that is at fault (the idea of Gröger et al., "Intrinsic Self-Supervision for Data Quality Audits",
NeurIPS 2024: robust quantiles, a logistic tail, a level). Here the tail may bend, as scores of sound items are seldom
even.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logit

LEVEL = 0.01  # share of sound items that may be called faults
BULK = np.arange(0.05, 0.85, 0.05)  # quantiles of scores that are taken to be those of sound items
LEAST = 20  # items, below which a bulk says nothing


@dataclass(frozen=True)
class Count:
    """How many items are thought to be at fault; low, high: the interval of 95 %."""

    estimated: int
    low: int
    high: int


def how_many(values: np.ndarray) -> Count:
    """How many of the items are at fault, by their `values` [N]: any numbers, higher for a fault.

    Those above the cut, less the sound ones that are there by chance: none to `LEVEL` of all, half of that is taken
    away. The interval is of the count, and of that.
    """
    called, spare = cut(values), LEVEL * len(values) / 2
    if not called:
        return Count(0, 0, 0)
    doubt = 2.0 * float(np.sqrt(called)) + spare
    found = max(0.0, called - spare)
    return Count(round(found), max(0, int(found - doubt)), min(len(values), int(np.ceil(found + doubt))))


def cut(values: np.ndarray, level: float = LEVEL) -> int:
    """How many of the items, those of the highest `values` [N], are called faults, if `level` of the sound ones may
    be."""
    if len(values) < LEAST:
        return 0
    return int((values > _sound_quantile(values, 1.0 - level)).sum())


def _sound_quantile(values: np.ndarray, share: float) -> float:
    """The value below which `share` of the sound items lie: quantiles of the bulk of `values` [N] as a parabola of
    their log odds, which may bend up, but not down."""
    odds = logit(BULK)
    quantiles = np.quantile(values, BULK)
    bend, slope, middle = np.polyfit(odds, quantiles, 2)
    if bend < 0:
        bend, (slope, middle) = 0.0, np.polyfit(odds, quantiles, 1)
    at = logit(share)
    return float(middle + slope * at + bend * at**2)
