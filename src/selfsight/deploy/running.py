"""What a stream's drift is, from pictures without labels: the shift that all classes have in common, and the surest
pictures of each class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

FORGET = 0.5  # of the sums, with each window
LEAST = 3.0  # pictures, for a class to count
SUPPORTS = 50  # surest pictures of a class
WORTH = 20.0  # pictures, that what was learnt counts as in a prototype


class Support(NamedTuple):
    """A picture that stands for a class. entropy: of its probabilities. features: [D], without the shift."""

    entropy: float
    features: np.ndarray


@dataclass
class Running:
    """The present drift of a stream.

    sums [K, D], counts [K]: of how far pictures lie from the middle of their class. shift [D]: that is taken away, 0
    where the classes have none in common. supports: of each class. drifts: whether there is drift.
    """

    sums: np.ndarray
    counts: np.ndarray
    shift: np.ndarray
    supports: list[list[Support]]
    drifts: bool = False

    @classmethod
    def nothing(cls, classes: int, dim: int) -> Running:
        """Where there is no drift."""
        zeros = np.zeros((classes, dim), np.float32)
        return cls(zeros, np.zeros(classes, np.float32), np.zeros(dim, np.float32), [[] for _ in range(classes)])

    def with_window(self, unit: np.ndarray, p: np.ndarray, middles: np.ndarray) -> Running:
        """With a window of features [W, D] whose classes have the probabilities p [W, K]. middles: of the classes
        [K, D], where they were learnt. Its shift is that of all that is remembered."""
        sure = p.max(1, keepdims=True) * (p == p.max(1, keepdims=True))  # [W, K]
        sums = FORGET * self.sums + sure.T @ unit - sure.sum(0)[:, None] * middles
        counts = FORGET * self.counts + sure.sum(0)
        return Running(sums.astype(np.float32), counts.astype(np.float32), common(sums, counts), self.supports, True)

    def with_supports(self, known: np.ndarray, p: np.ndarray) -> Running:
        """With the surest of a window of features [W, D], without the shift, whose classes have probabilities p."""
        entropy = -(p * np.log(p.clip(1e-12))).sum(1)
        supports = []
        for number, those in enumerate(self.supports):
            more = [Support(float(entropy[i]), known[i]) for i in np.flatnonzero(p.argmax(1) == number)]
            supports.append(sorted([*those, *more], key=lambda each: each.entropy)[:SUPPORTS])
        return replace(self, supports=supports)

    def prototypes(self, middles: np.ndarray) -> np.ndarray:
        """The middles [K, D] of the classes, which their supports have moved."""
        moved = middles.copy()
        for number, those in enumerate(self.supports):
            if those:
                total = WORTH * middles[number] + np.sum([each.features for each in those], axis=0)
                moved[number] = total / (WORTH + len(those))
        return moved


def variety(numbers: np.ndarray) -> float:
    """How many classes there are among class numbers [N], the rare ones in part: e to the entropy of their shares."""
    shares = np.unique(numbers, return_counts=True)[1] / len(numbers)
    return float(np.exp(-(shares * np.log(shares)).sum()))


def common(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The shift [D] that classes have in common, from the sums [K, D] of their counts [K].

    Their mean, times the share of it that is not chance: the mean product of the shifts of two classes, over the square
    of the mean. 0 where fewer than two classes were seen.
    """
    there = counts >= LEAST
    if there.sum() < 2:
        return np.zeros(sums.shape[1], np.float32)
    shifts = sums[there] / counts[there, None]
    weights = counts[there] / counts[there].sum()
    mean = weights @ shifts
    both = np.outer(weights, weights)
    np.fill_diagonal(both, 0.0)
    product = float((both * (shifts @ shifts.T)).sum() / both.sum())
    return np.asarray(mean * np.clip(product / max(float(mean @ mean), 1e-12), 0.0, 1.0), np.float32)
