"""Items that may have one fault, worst first, and how many of them are thought to have it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Items, or pairs of items, that may have one fault, worst first.

    kind: the fault, as `curate --json` calls it: near_duplicates, off_topic, label_errors, dark, …
    numbers: [K] of items, or [K, 2] of pairs of items: rows of the table that was ranked.
    score: [K], from 1, surely at fault, down to 0.
    estimated: how many of the first are thought to be at fault; low, high: its interval of 95 %.
    suggested: [K] the label that each may have in truth, for errors of labels.
    alarms: [K] the share of sound items that are thought to come no later than each; None where the score tells it, or
        nothing does.
    """

    kind: str
    numbers: np.ndarray
    score: np.ndarray
    estimated: int
    low: int
    high: int
    suggested: tuple[str, ...] | None = None
    alarms: np.ndarray | None = None

    def only(self, kept: np.ndarray) -> Ranking:
        """Those of the K that are `kept` [K]; of the estimated numbers, what was left out is taken away."""
        counts = [many - int((~kept[:many]).sum()) for many in (self.estimated, self.low, self.high)]
        suggested = self.suggested and tuple(name for name, stays in zip(self.suggested, kept, strict=True) if stays)
        alarms = None if self.alarms is None else self.alarms[kept]
        return replace(self, numbers=self.numbers[kept], score=self.score[kept], estimated=counts[0], low=counts[1],
                       high=counts[2], suggested=suggested, alarms=alarms)  # fmt: skip

    def of(self, places: np.ndarray) -> Ranking:
        """The same of a larger table, in which the items ranked lie at `places` [N]."""
        return replace(self, numbers=places[self.numbers])
