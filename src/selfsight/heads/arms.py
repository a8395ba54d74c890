"""The arms of a label curve: ways to learn from labels, one row of a table each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from selfsight.data.splits import Side
from selfsight.encoders.encoder import Encoder
from selfsight.heads.scratch import supervised_answers
from selfsight.probing.controls import Pair
from selfsight.probing.linear import draw_shots, fit_few_shot, fit_linear


@dataclass(frozen=True)
class Task:
    """What all arms learn from and are measured on.

    train, test: labelled items that can be decoded. classes: in the order of their numbers. encoder: that is measured.
    pairs: features of both, in the same order: by the "encoder", the "random" one and its "start". minutes: of a
    supervised training.
    """

    train: Side
    test: Side
    classes: list[str]
    encoder: Encoder
    pairs: dict[str, Pair]
    minutes: float

    @property
    def taught(self) -> np.ndarray:
        """Class numbers [N] of the train items."""
        return self.train.labels.numbers(self.classes)

    @property
    def truth(self) -> np.ndarray:
        """Class numbers [N] of the test items."""
        return self.test.labels.numbers(self.classes)


@dataclass(frozen=True)
class Draw:
    """Labels to learn from: `shots` of each class, as drawn by `seed`, or "all"."""

    shots: str
    seed: int

    def places(self, labels: np.ndarray) -> np.ndarray:
        """Those of the train items whose labels are given."""
        return np.arange(len(labels)) if self.shots == "all" else draw_shots(labels, int(self.shots), self.seed)


class Learnt(NamedTuple):
    """What came of learning.

    hits: [N] bool, which of the test items are right. passes: over the labels; None where it is no question of time.
    """

    hits: np.ndarray
    passes: float | None = None


Learn: TypeAlias = Callable[[Task, Draw], Learnt]


def on_features(task: Task, draw: Draw, name: str) -> Learnt:
    """Hits of a linear head on frozen features, those of the encoder called `name`. With all labels its strength is
    chosen on a held-out fifth of them."""
    taught, asked = task.pairs[name]
    if draw.shots == "all":
        probe = fit_linear(taught.features, taught.labels, len(task.classes), groups=taught.groups, seed=draw.seed)
    else:
        probe = fit_few_shot(taught.features, taught.labels, len(task.classes), int(draw.shots), draw.seed)
    return Learnt(probe.scores(asked.features).argmax(1) == asked.labels)


def from_scratch(task: Task, draw: Draw) -> Learnt:
    """Hits of the same network supervised from random weights."""
    chosen = np.sort(draw.places(task.taught))
    train = task.train._replace(labels=task.train.labels.take(chosen))
    found, passes = supervised_answers(task.encoder, train, task.test, task.classes, task.minutes)
    return Learnt(np.equal(found, task.truth), passes)


@dataclass(frozen=True)
class Arm:
    """A way to learn.

    title: in pictures and tables. learn: from a draw. features: the encoder whose features it needs; "" for none.
    only_all: whether it is measured with all labels alone, because each draw takes minutes.
    """

    title: str
    learn: Learn
    features: str = ""
    only_all: bool = False


ARMS = {
    "frozen": Arm("frozen features, linear head", partial(on_features, name="encoder"), "encoder"),
    "random": Arm("random weights, linear head", partial(on_features, name="random"), "random"),
    "start": Arm("starting weights, linear head", partial(on_features, name="start"), "start"),
    "scratch": Arm("supervised from scratch", from_scratch, only_all=True),
}
LEVEL = "scratch"  # what the others are to reach
