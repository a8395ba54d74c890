"""A head refitted to what it learnt from and the labels that came back, and the items that its guard keeps from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import nn

from selfsight.deploy.drift import held_out_items
from selfsight.heads.classify_head import ClassifyHead, remembered
from selfsight.heads.fits import methods
from selfsight.heads.targets import Targets

NEW_CLASS = 5  # labels, from which on a class that the head does not know becomes one of its own
GUARDED = 0.2  # of the folds, that the guard keeps


class Said(NamedTuple):
    """What somebody said of a picture: its label."""

    id: str
    uri: str
    content_hash: str
    label: str


@dataclass(frozen=True)
class Returned:
    """A label that came back. seen: features [D] as the stream has them. known: without the shift of their window.
    right: whether the head knew it before it learnt it; was_right: whether the shadow did."""

    said: Said
    seen: np.ndarray
    known: np.ndarray
    right: bool
    was_right: bool


class Refit:
    """What a head keeps of what it learnt from, and the guard's part of it.

    middles: of the classes [K, D], as the head finds them. guard: features [G, D] of unit length of items that
    stay held out.
    """

    def __init__(self, head: ClassifyHead) -> None:
        self._head, about = head, head.about
        valid = np.flatnonzero(np.asarray(head.items["features"].is_valid()))
        rows = head.items.take(valid)
        self._unit = remembered(head.items).numpy()
        self._names = np.array(rows["label"].to_pylist(), object)
        self._weights = np.array(rows["weight"].to_pylist(), np.float64)
        unit, found, places = held_out_items(head)
        folds = np.array(head.items["fold"].to_pylist())[places]
        several = np.unique(folds)
        kept = np.isin(folds, several[: max(1, round(GUARDED * len(several)))])
        self.guard, self._truth = unit[kept], np.array(head.items["label"].to_pylist(), object)[places[kept]]
        self._knew = np.array(about.classes, object)[found[kept]] == self._truth
        self._held = np.isin(valid, places[kept])
        self.middles = np.zeros((len(about.classes), self._unit.shape[1]), np.float32)
        for number in np.unique(found):
            self.middles[number] = unit[found == number].mean(0)

    def compared(self, answers: np.ndarray) -> tuple[int, int]:
        """(guarded items that the head knew when it was held out and these answers do not know, the reverse)."""
        right = answers == self._truth
        return int((self._knew & ~right).sum()), int((right & ~self._knew).sum())

    def with_new(self, labels: list[str]) -> tuple[str, ...]:
        """The classes with those that enough labels name. By costs nothing new can be decided, and grades have an order
        that a new one has no place in."""
        known = self._head.about.classes
        if self._head.about.decision.rule == "costs" or self._head.about.kind == "grade":
            return known
        new = {name for name in labels if name not in known and labels.count(name) >= NEW_CLASS}
        return (*known, *sorted(new))

    def fitted(self, labels: list[Returned], classes: tuple[str, ...], held_out: bool) -> nn.Module:
        """The scorer that has learnt from labels of these classes too. held_out: without what the guard keeps."""
        use = [each for each in labels if each.said.label in classes]
        about, own = self._head.about, ~self._held if held_out else np.ones(len(self._held), bool)
        features = np.concatenate([self._unit[own], *(each.known[None] for each in use)])
        names = [*self._names[own], *(each.said.label for each in use)]
        values = np.zeros((len(names), len(classes)), np.float32)
        values[np.arange(len(names)), [classes.index(str(name)) for name in names]] = 1.0
        targets = Targets(about.kind, classes, values)
        known = methods(about.kind, len(targets))
        fit = known[about.method if about.method in known else "linear"][about.setting]
        weights = np.concatenate([self._weights[own], np.ones(len(use))])
        return fit(features, targets) if (weights == 1.0).all() else fit(features, targets, weights=weights)
