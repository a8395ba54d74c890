"""A head that follows a stream, window by window, and goes back by itself where that makes it worse.

1. Running statistics. While a window is too far from what was learnt from (`drift.py`), the shift that all classes have
   in common is taken away (`running.py`), if that brings the window nearer. A stream in the order of classes has no
   such shift, and neither has a new class.
2. Prototypes, as T3A has them (Iwasawa and Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain
   Generalization", NeurIPS 2021): the surest pictures of each class move the middle of the class, which shares in the
   scores while there is drift and classes are mixed. In a stream in the order of classes a few middles would move, and
   draw the pictures of the other classes to them.
3. Labels that people gave: the head is refitted to what it learnt from and these together (`refit.py`).

The guard compares the head with a shadow, the head as it was: on items that both were held out from, and on every label
that came back, by what both said before they learnt it. Worse on either by more than chance (`worse`) means back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import binom
from torch import nn

from selfsight.deploy.drift import Distance, names_one
from selfsight.deploy.folded import mixed, sharpness_of, shifted
from selfsight.deploy.refit import Refit, Returned, Said
from selfsight.deploy.running import Running, variety
from selfsight.deploy.watcher import Counts, Told, Watcher
from selfsight.errors import SelfsightError
from selfsight.heads.calibration import Decision, probabilities
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.fits import scored
from selfsight.heads.head import Head
from selfsight.probing.linear import unit_rows

ROUNDS = 3  # of finding the classes of a window and the shift in turn
SHARE = 0.5  # of prototypes in the scores
MIXED = 0.7  # of the classes that a window could hold, from which on it counts as mixed
CHANCE = 0.05
MOST_LABELS = 2000  # that came back and are learnt from; the oldest go


class Adapter(Watcher):
    """A head that follows a stream. Its memory is bounded.

    classes: of the head as it is now. scorer: the head as it is now, without the shift. Raises `SelfsightError` for a
    head that has not one class or grade an item, and for one that keeps too few items.
    """

    adapts = True
    head: ClassifyHead

    def __init__(self, head: ClassifyHead, false_alarms: float = 0.01) -> None:
        if head.about.kind not in ("class", "grade"):
            raise SelfsightError(
                f"adapt takes heads of one class or grade an item, and this one is of the kind {head.about.kind}."
            )
        super().__init__(head, false_alarms)
        self.scorer = self._original = _scorer_of(head)
        self.classes = head.about.classes
        self._learnt = Refit(head)
        self._held_out = self._learnt.fitted([], self.classes, held_out=True)
        self._middles = self._learnt.middles
        self._sharpness = sharpness_of(self._original, self._middles, self.drift.features)
        self.running = self._nothing()

    @property
    def fitted(self) -> bool:
        return self.scorer is not self._original

    @property
    def notes(self) -> list[str]:
        tuned = self.head.about.method not in ("prototypes", "linear", "ordinal", "knn")
        return ["the encoder was tuned on what it is compared with, so new pictures seem farther away"] if tuned else []

    @property
    def current(self) -> nn.Module:
        """The scorer of features of the stream as the head is now."""
        return shifted(self._with_prototypes(self.scorer), self.running.shift)

    def window(self, features: np.ndarray) -> Told:
        """Follow a window of features [W, D] of the stream."""
        unit, did = unit_rows(np.asarray(features, np.float32)), list[str]()
        shadow, before = self._of_shadow(unit), self._decided(self.current, unit)
        found = self.drift.far(unit, shadow)
        drifted = self.running.drifts
        self.count(len(unit), found)
        if not found.alarm:
            self.running = self._nothing()
            did += ["the drift is over"] if drifted else []
        else:
            self._follow(unit, found)
            did += [] if drifted else ["drift: the head follows it"]
            did += self._guarded_prototypes()
        undone = float(np.linalg.norm(self.running.shift))
        return Told(found, undone, did, self._decided(self.current, unit), before, shadow)

    def learn(self, said: Sequence[Said], features: np.ndarray, shifts: np.ndarray | None = None) -> list[str]:
        """Learn from labels of pictures with features [N, D]; returns what was done, in words. Of a picture the last
        label counts. shifts: [N, D], that were taken away when the pictures passed; that of now if not given."""
        if not len(said):
            return []
        unit = unit_rows(np.asarray(features, np.float32))
        names = np.array([one.label for one in said], object)
        known = unit - (self.running.shift if shifts is None else shifts)
        then = (self.current, unit) if shifts is None else (self._with_prototypes(self.scorer), known)
        right = np.array(self.classes, object)[self._decided(*then)] == names
        was = np.array(self.head.about.classes, object)[self._of_shadow(unit)] == names
        again = {one.id for one in said}
        more = [Returned(*each) for each in zip(said, unit, known, right.tolist(), was.tolist(), strict=True)]
        self.labels = [*(each for each in self.labels if each.said.id not in again), *more][-MOST_LABELS:]
        self.counts.gained += int((right & ~was).sum())
        self.counts.lost += int((was & ~right).sum())
        did = [f"{len(said)} label{'s' if len(said) > 1 else ''} learnt"] if self._fitted() else []
        return self._guarded_labels(did)

    def unlearn(self, ids: set[str]) -> list[str]:
        """Forget the labels of pictures with these ids, which were taken back; returns what was done, in words."""
        left = [each for each in self.labels if each.said.id not in ids]
        count, self.labels = len(self.labels) - len(left), left
        if not count:
            return []
        self._fitted()
        return [f"{count} label{'s' if count > 1 else ''} unlearnt"]

    # -- shift and prototypes --

    def _nothing(self) -> Running:
        return Running.nothing(len(self._middles), self._middles.shape[1])

    def _follow(self, unit: np.ndarray, found: Distance) -> None:
        """Take the shift of a window of features away, if that brings it nearer."""
        running = self.running
        for _ in range(ROUNDS):
            p = self._probabilities(shifted(self._with_prototypes(self.scorer), running.shift), unit)
            running = self.running.with_window(unit, p[:, : len(self._middles)], self._middles)
        if not self._nearer(unit - running.shift, found):
            running = replace(running, shift=np.zeros_like(running.shift))
        known, self.running = unit - running.shift, running
        p = self._probabilities(self._with_prototypes(self.scorer), known)[:, : len(self._middles)]
        varied = variety(p.argmax(1)) >= MIXED * min(variety(self.drift.found), len(unit))
        self.running = (
            running.with_supports(known, p) if varied else replace(running, supports=self._nothing().supports)
        )

    def _nearer(self, known: np.ndarray, found: Distance) -> bool:
        p = self._probabilities(self._original, known)
        return self.drift.far(known, self._decide(p, self.head.about.classes)).distance < found.distance

    def _with_prototypes(self, scorer: nn.Module) -> nn.Module:
        if not any(self.running.supports) or len(self.classes) > len(self._middles):
            return scorer
        return mixed(scorer, self.running.prototypes(self._middles), SHARE, self._sharpness)

    def _guarded_prototypes(self) -> list[str]:
        """Go without prototypes where the guard finds the head worse with them."""
        lost, gained = self._compared(self._with_prototypes(self._held_out))
        if not worse(lost, gained):
            return []
        self.running = replace(self.running, supports=self._nothing().supports)
        return [self._back(f"prototypes are left out: with them {lost} held-out items more are wrong, {gained} fewer")]

    # -- labels --

    def _fitted(self) -> bool:
        """Fit the head anew to what it learnt from and the labels; False where there is nothing to fit."""
        self.classes = self._learnt.with_new([each.said.label for each in self.labels])
        there = any(each.said.label in self.classes for each in self.labels)
        self.scorer = self._learnt.fitted(self.labels, self.classes, held_out=False) if there else self._original
        return there

    def _guarded_labels(self, did: list[str]) -> list[str]:
        """Forget the labels where the guard finds the head worse with them, on its own items or on what came back."""
        compared = {"labels that came back": (self.counts.lost, self.counts.gained)}
        if self.fitted:
            candidate = self._learnt.fitted(self.labels, self.classes, held_out=True)
            compared["items that both were held out from"] = self._compared(candidate)
        found = [(of, lost, gained) for of, (lost, gained) in compared.items() if worse(lost, gained)]
        if not found:
            return did
        of, lost, gained = found[0]
        count = len(self.labels)
        self.labels, self.running = [], self._nothing()
        self.scorer, self.classes = self._original, self.head.about.classes
        self.counts.lost = self.counts.gained = 0
        return [self._back(
            f"back to the head as it was, without {count} label{'s' if count > 1 else ''}: of {of}, {lost} were wrong "
            f"that the first head knew, and {gained} right that it did not know"
        )]  # fmt: skip

    def _compared(self, scorer: nn.Module) -> tuple[int, int]:
        decided = self._decided(scorer, self._learnt.guard)
        return self._learnt.compared(np.array(self.classes, object)[decided])

    def _back(self, note: str) -> str:
        self.counts.rollbacks += 1
        self.counts.notes = [*self.counts.notes, note][-20:]
        return note

    def restore(self, running: Running, labels: list[Returned], counts: Counts) -> None:
        super().restore(running, labels, counts)
        self._fitted()

    # -- answers --

    def _of_shadow(self, unit: np.ndarray) -> np.ndarray:
        return self._decide(self._probabilities(self._original, unit), self.head.about.classes)

    def _decided(self, scorer: nn.Module, unit: np.ndarray) -> np.ndarray:
        return self._decide(self._probabilities(scorer, unit), self.classes)

    def _decide(self, p: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
        return decision_over(self.head.about.decision, p.shape[1]).answers(classes[: p.shape[1]], p)

    def _probabilities(self, scorer: nn.Module, unit: np.ndarray) -> np.ndarray:
        return probabilities(self.head.about.kind, scored(scorer, unit), float(self.head.module.calibrate.temperature))  # type: ignore[union-attr, arg-type]


def follower_of(head: Head, false_alarms: float = 0.01) -> Watcher:
    """An adapter of a head of one class or grade an item; of any other head a watcher. Raises `SelfsightError` for one
    that keeps too few items."""
    if names_one(head) and isinstance(head, ClassifyHead):
        return Adapter(head, false_alarms)
    return Watcher(head, false_alarms)


def _scorer_of(head: ClassifyHead) -> nn.Module:
    scorer = head.module.task.scorer
    assert isinstance(scorer, nn.Module)
    return scorer


def decision_over(decision: Decision, classes: int) -> Decision:
    """The rule over as many classes: a new one weighs as the others do on average."""
    lacking = classes - len(decision.weights)
    if decision.rule != "balanced" or lacking <= 0:
        return decision
    return replace(decision, weights=[*decision.weights, *[float(np.mean(decision.weights))] * lacking])


def worse(lost: int, gained: int) -> bool:
    """Whether as many items lost against those gained are more than chance.

    Under chance each is lost with a probability of 1/2. That of what was seen under a larger one, of which none is
    likelier than another, is then 20 times as large with a probability of 5 % at most, however often one looks while
    items come (Robbins, "Statistical Methods Related to the Law of the Iterated Logarithm", 1970; Ville's inequality).
    """
    count = lost + gained
    larger = 2.0 * binom.sf(gained, count + 1, 0.5) / (count + 1)  # 2 times the integral of p^lost (1 - p)^gained
    return lost > gained and bool(CHANCE * larger >= binom.pmf(lost, count, 0.5))
