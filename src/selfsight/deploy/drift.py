"""Whether the pictures of a stream are still like those that a head learnt from: a distance with a stated rate of false
alarms.

A window of features is compared with a reference: by the distance of the means, and by the maximum mean discrepancy
(Gretton et al., "A Kernel Two-Sample Test", JMLR 2012) with a Gaussian kernel as wide as the median distance. Both are
norms |Σ v φ(u)| of weights v, 1 / n for the window and -1 in all for the reference, with φ that of the kernel u·u' or
exp(-|u - u'|² / 2σ²).

A stream that comes in the order of classes has not drifted. So the reference is weighted to hold the classes in the
shares in which the head finds them in the window. The limit is that of windows of the same classes which are drawn from
the reference itself and compared with the rest of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import NamedTuple, Self, TypeGuard

import numpy as np

from selfsight.data.spread import spread
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.classify_voice import ClassifyVoice, known_features
from selfsight.heads.voice import Voice
from selfsight.probing.linear import unit_rows

MOST = 1000  # items of a reference
LEAST = 40  # of them, for a limit that means something
FEWEST = 8  # pictures of a window that can be compared
DRAWN = 999  # windows that are drawn from the reference, at least
LEAST_RATE, MOST_RATE = 0.001, 0.2  # of false alarms
NEAREST = 10  # of the reference, by which a picture is far
REMEMBERED = 64  # mixtures of classes whose limit is known


class Distance(NamedTuple):
    """How far a window is from the reference.

    mean: |mean - mean of the reference|, of features of unit length. mmd: the maximum mean discrepancy. distance: the
    larger of both, each in units of its median for windows without drift. limit: of the distance, which windows without
    drift pass at the stated rate. usual: the median of `mean` for windows without drift. judged: pictures of the window
    that were compared; where they are too few, the distance is 0.
    """

    mean: float
    mmd: float
    distance: float
    limit: float
    usual: float
    judged: int

    @property
    def alarm(self) -> bool:
        """Whether this is drift."""
        return self.distance > self.limit


class _Null(NamedTuple):
    """What windows without drift have: medians of both distances, and the limit of the larger ratio."""

    mean: float
    mmd: float
    limit: float


class Drift:
    """Distances of windows from a reference.

    features: of the reference [N, D], of unit length. found: the class [N] in which the head finds each of them, by
    answers that did not learn from it. false_alarms: the share of windows without drift that may be called one.
    """

    def __init__(self, features: np.ndarray, found: np.ndarray, false_alarms: float = 0.01) -> None:
        if not LEAST_RATE <= false_alarms <= MOST_RATE:
            raise SelfsightError(f"--false-alarms lies from {LEAST_RATE} to {MOST_RATE}, not at {false_alarms:g}.")
        if len(features) < LEAST:
            raise DataError(
                f"The head keeps {len(features)} items to compare with, and {LEAST} are needed to tell what is drift. "
                "Train it again, with more."
            )
        self.features, self.found, self.false_alarms = features.astype(np.float32), found, false_alarms
        squares = np.maximum(2.0 - 2.0 * self.features @ self.features.T, 0.0)
        self._width = float(np.median(squares[np.triu_indices(len(squares), 1)])) or 1.0  # sigma squared
        self._kernels = self.features @ self.features.T, np.exp(-squares / (2.0 * self._width))
        self._draws = max(DRAWN, math.ceil(2.0 / false_alarms) - 1)
        self._known: OrderedDict[tuple[tuple[int, int], ...], _Null] = OrderedDict()

    @classmethod
    def of(cls, head: Voice, false_alarms: float = 0.01) -> Self:
        """Against at most 1,000 of the items that a head learnt from: of classes or grades those that it was also held
        out from, of others all that it keeps the features of, as if of one class."""
        if names_one(head):
            unit, found, _ = held_out_items(head)
        else:
            known = "features" in head.items.column_names and head.items["features"].null_count < len(head.items)
            unit = unit_rows(known_features(head.items)) if known else np.zeros((0, 1), np.float32)
            found = np.zeros(len(unit), int)
        places = spread(len(unit), MOST)
        return cls(unit[places], found[places], false_alarms)

    def far(self, features: np.ndarray, found: np.ndarray) -> Distance:
        """The distance of a window of features [W, D], in whose classes [W] the head finds them. Of a class at most
        half as many pictures are compared as the reference has of it."""
        places = []
        for number in np.unique(found):
            of = np.flatnonzero(found == number)
            places.append(of[spread(len(of), int((self.found == number).sum()) // 2)])
        taken = np.sort(np.concatenate(places)) if places else np.zeros(0, np.int64)
        if len(taken) < FEWEST:
            return Distance(0.0, 0.0, 0.0, 1.0, 0.0, len(taken))
        window, of = unit_rows(features[taken]), found[taken]
        weights = np.zeros(len(self.features), np.float32)
        counts = [(int(number), int((of == number).sum())) for number in np.unique(of)]
        for number, count in counts:
            here = self.found == number
            weights[here] = count / len(of) / here.sum()
        mean, mmd = self._between(window, weights)
        null = self._null(tuple(counts))
        distance = max(mean / null.mean, mmd / null.mmd)
        return Distance(mean, mmd, distance, null.limit, null.mean, len(taken))

    def apart(self, unit: np.ndarray) -> np.ndarray:
        """How far features [W, D] of unit length are each: the mean cosine distance [W] to the 10 nearest of the
        reference."""
        alike = unit @ self.features.T
        return np.asarray(1.0 - np.partition(alike, -NEAREST, axis=1)[:, -NEAREST:].mean(1))

    def _between(self, window: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
        """Both distances between a window and the reference with its weights [N], which sum to 1."""
        across = window @ self.features.T  # [W, N]
        within = window @ window.T
        found = []
        for number, of in enumerate((_same, self._gaussian)):
            square = of(within).mean() - 2.0 * (of(across) @ weights).mean() + weights @ self._kernels[number] @ weights
            found.append(math.sqrt(max(float(square), 0.0)))
        return found[0], found[1]

    def _gaussian(self, cosines: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-np.maximum(2.0 - 2.0 * cosines, 0.0) / (2.0 * self._width)))

    def _null(self, counts: tuple[tuple[int, int], ...]) -> _Null:
        """What windows with these (class, pictures) have, which are drawn from the reference without drift."""
        if counts not in self._known:
            means, mmds = self._drawn(counts)
            middle = float(np.median(means)), float(np.median(mmds))
            ratios = np.sort(np.maximum(means / middle[0], mmds / middle[1]))
            rank = math.ceil((len(ratios) + 1) * (1.0 - self.false_alarms) - 1e-9)
            self._known[counts] = _Null(*middle, float(ratios[rank - 1]))
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[counts]

    def _drawn(self, counts: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
        """Both distances of windows that are drawn from the reference, from the rest of it."""
        rng, total = np.random.default_rng(0), sum(count for _, count in counts)
        places = np.flatnonzero(np.isin(self.found, [number for number, _ in counts]))
        found = self.found[places]
        weights = np.zeros((self._draws, len(places)), np.float32)
        for number, count in counts:
            here = np.flatnonzero(found == number)
            weights[:, here] = -count / total / (len(here) - count)
            drawn = np.argpartition(rng.random((self._draws, len(here))), count - 1, axis=1)[:, :count]
            np.put_along_axis(weights, here[drawn], np.float32(1.0 / total), axis=1)
        kernels = (kernel[np.ix_(places, places)] for kernel in self._kernels)
        squares = [((weights @ kernel) * weights).sum(1) for kernel in kernels]
        mean, mmd = (np.sqrt(np.maximum(square, 1e-12)) for square in squares)
        return mean, mmd


def names_one(head: Voice) -> TypeGuard[ClassifyVoice]:
    """Whether a head names one class or grade an item, so that drift can be told apart from another mixture of them."""
    return isinstance(head, ClassifyVoice) and head.about.kind in ("class", "grade")


def held_out_items(head: ClassifyVoice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features [M, D] of unit length, the class [M] that the head gave each when it was held out, its row [M] in
    items.parquet) of the items that a head was held out from and keeps the features of."""
    items = head.items
    known = np.asarray(items["features"].is_valid())
    rows = np.flatnonzero(known & np.asarray(items["held_out"].is_valid()))
    unit = unit_rows(known_features(items))[np.searchsorted(np.flatnonzero(known), rows)]
    held = np.array(items["held_out"].take(rows).to_pylist(), np.float64).reshape(len(rows), -1)
    return unit, head.about.decision.answers(head.about.classes, held) if len(rows) else np.zeros(0, int), rows


def _same(cosines: np.ndarray) -> np.ndarray:
    return cosines
