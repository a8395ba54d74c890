"""Suggestions from the labelled items that are nearest in features, and how much the last labels changed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from selfsight.data.spread import spread
from selfsight.pages.answers import Answers
from selfsight.probing.neighbours import TEMPERATURE, nearest
from selfsight.results import Result

# {id: [(label, probability), …], most probable first} of the items that something can be said of.
Suggest: TypeAlias = Callable[[Sequence[str]], Mapping[str, list[tuple[str, float]]]]
K = 10  # neighbours that vote
WINDOW = 20  # answers between two looks at all suggestions
SAMPLE = 2000  # items that are looked at
FEW = 0.01  # of them: when fewer have another suggestion than before, more labels may add little


class Neighbours:
    """Suggests labels for items by their nearest labelled ones, the item itself left out.

    The 10 nearest vote with weights w = exp((cosine - largest cosine) / 0.07), 1 for the nearest. A class has the
    probability (sum of w of those that have it + 1/C) / (sum of all w + 1), C classes: one neighbour alone is never
    certain. Nothing is said while fewer than two classes are known.
    """

    def __init__(self, ids: Sequence[str], features: np.ndarray, answers: Answers) -> None:
        """features: [N, D] of the items `ids`."""
        self._places = {item: place for place, item in enumerate(ids)}
        self._features = features
        self._answers = answers

    def __call__(self, ids: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
        with self._answers.lock:
            labels = self._answers.labels
        known = [(self._places[item], names) for item, names in labels.items() if item in self._places]
        classes = sorted({name for _, names in known for name in names})
        asked = [item for item in ids if item in self._places]
        if len(classes) < 2 or not asked:
            return {}
        bank = np.array([place for place, _ in known])
        has = np.array([[name in names for name in classes] for _, names in known], dtype=np.float64)  # [L, C]
        places = np.array([self._places[item] for item in asked])
        cosines, index = nearest(self._features[places], self._features[bank], K, apart=(places, bank))
        others = np.isfinite(cosines)  # [N, K], not the item itself
        cosines = np.where(others, cosines, -1.0).astype(np.float64)
        weights = np.where(others, np.exp((cosines - cosines[:, :1]) / TEMPERATURE), 0.0)
        votes = np.einsum("nk,nkc->nc", weights, has[index])
        shares = (votes + 1 / len(classes)) / (weights.sum(1, keepdims=True) + 1)
        return {
            item: sorted(zip(classes, row, strict=True), key=lambda pair: -pair[1])
            for item, row in zip(asked, shares.tolist(), strict=True)
        }


@dataclass(frozen=True)
class Change(Result):
    """How much the last labels changed.

    labels: how many answers lie between the two looks.
    share: of the items without a label, how many have another first suggestion than before.
    items: how many these were.
    enough: whether the share is below 1 % and no new class came: more labels may add little.
    """

    labels: int
    share: float
    items: int
    enough: bool


class Watch:
    """Looks at the first suggestion of up to 2,000 items, spread evenly, after every 20 answers."""

    def __init__(self, suggest: Suggest, answers: Answers) -> None:
        self._suggest, self._answers = suggest, answers
        self._sample = [answers.ids[place] for place in spread(len(answers.ids), SAMPLE)]
        self._at, self._firsts, self._classes = answers.given, self._look(), len(answers.classes)
        self.change: Change | None = None

    def answered(self) -> None:
        """To be called after each answer."""
        if self._answers.given < self._at + WINDOW:
            return
        before, classes = self._firsts, self._classes
        self._at, self._firsts, self._classes = self._answers.given, self._look(), len(self._answers.classes)
        left = [item for item in self._sample if not self._answers.label(item)]
        if not left:
            self.change = None
            return
        share = sum(before.get(item) != self._firsts.get(item) for item in left) / len(left)
        self.change = Change(WINDOW, share, len(left), share < FEW and self._classes == classes)

    def _look(self) -> dict[str, str]:
        return {item: said[0][0] for item, said in self._suggest(self._sample).items()}
