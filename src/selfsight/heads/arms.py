"""The arms of a label curve: ways to learn from labels, one row of a table each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from selfsight.curation.selection import Pool, choose
from selfsight.data.groups import group_numbers
from selfsight.data.splits import Side
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import gathered, item_features
from selfsight.heads.classify import Wish, learn
from selfsight.heads.fits import scored
from selfsight.heads.scratch import supervised_answers
from selfsight.heads.self_training import self_trained
from selfsight.heads.tuning import tuned
from selfsight.probing.controls import Pair
from selfsight.probing.linear import FEW_SHOT_STRENGTH, draw_shots, fit_few_shot, fit_linear
from selfsight.probing.neighbours import EXACT, neighbour_graph
from selfsight.views.plan import ViewGroup

SHARE = 0.8  # of the train items, among which `selected` chooses in a draw


@dataclass(frozen=True)
class Task:
    """What all arms learn from and are measured on.

    train, test: labelled items that can be decoded. classes: in the order of their numbers. encoder: that is measured.
    pairs: features of both, in the same order: by the "encoder", the "random" one and its "start". minutes: of a
    supervised training. view: the augmentation of the pretraining, if it is known.
    """

    train: Side
    test: Side
    classes: list[str]
    encoder: Encoder
    pairs: dict[str, Pair]
    minutes: float
    view: ViewGroup | None = None

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


def selected(task: Task, draw: Draw) -> Learnt:
    """As `on_features` of the encoder, but as many labels are given to items that `select` chooses, of a random 80 % of
    the train items: so draws differ."""
    taught, asked = task.pairs["encoder"]
    budget = len(draw.places(task.taught))
    if draw.shots == "all":
        return on_features(task, draw, "encoder")
    some = np.random.default_rng(draw.seed).permutation(len(taught.labels))[
        : max(budget, int(SHARE * len(task.taught)))
    ]
    some = some[:EXACT]
    features = F.normalize(torch.from_numpy(taught.features[some]), dim=1).numpy()
    groups = group_numbers([taught.groups[i] for i in some], len(some))
    pool = Pool(features, neighbour_graph(features), groups, np.full(len(some), -1))
    chosen = some[choose(pool, budget, seed=draw.seed)[0]]
    if len(np.unique(taught.labels[chosen])) < 2:  # one class: it is all that could be said
        return Learnt(asked.labels == taught.labels[chosen[0]])
    probe = fit_linear(taught.features[chosen], taught.labels[chosen], len(task.classes), FEW_SHOT_STRENGTH)
    return Learnt(probe.scores(asked.features).argmax(1) == asked.labels)


def with_guesses(task: Task, draw: Draw) -> Learnt:
    """Hits of a head on the encoder's features that also learns from guesses of the labels that were not drawn."""
    places, wish = np.sort(draw.places(task.taught)), Wish(method="linear", seed=draw.seed)
    taught, asked = task.pairs["encoder"]
    labels, rest = task.train.labels.take(places), np.setdiff1d(np.arange(len(task.taught)), places)
    open_ = task.train.labels.take(rest)
    pool = replace(open_, values=(None,) * len(rest))
    learnt = learn(labels, taught.features[places], wish)
    learnt, _, _ = self_trained(learnt, labels, taught.features[places], pool, taught.features[rest], wish)
    numbers = np.array([task.classes.index(name) for name in learnt.targets.classes])
    return Learnt(numbers[scored(learnt.scorer, asked.features).argmax(1)] == asked.labels)


def finetuned(task: Task, draw: Draw) -> Learnt:
    """Hits of a linear head on the encoder that the drawn labels tuned, all of its weights."""
    labels = task.train.labels.take(np.sort(draw.places(task.taught)))
    made = tuned(task.encoder, task.train.items, labels, "finetune", seed=draw.seed)
    features = [gathered(item_features(made, side.items, rows), rows)[1]
                for side, rows in ((task.train, labels.rows), (task.test, task.test.labels.rows))]  # fmt: skip
    probe = fit_linear(features[0], labels.numbers(task.classes), len(task.classes), FEW_SHOT_STRENGTH)
    return Learnt(probe.scores(features[1]).argmax(1) == task.truth)


def from_scratch(task: Task, draw: Draw) -> Learnt:
    """Hits of the same network supervised from random weights."""
    chosen = np.sort(draw.places(task.taught))
    train = task.train._replace(labels=task.train.labels.take(chosen))
    found, passes = supervised_answers(task.encoder, train, task.test, task.classes, task.minutes, task.view, draw.seed)
    return Learnt(np.equal(found, task.truth), passes)


@dataclass(frozen=True)
class Arm:
    """A way to learn.

    title: in pictures and tables. learn: from a draw. features: the encoder whose features it needs; "" for none.
    slow: whether each draw takes minutes, and is made for few numbers of labels only.
    """

    title: str
    learn: Learn
    features: str = ""
    slow: bool = False


ARMS = {
    "frozen": Arm("frozen features, linear head", partial(on_features, name="encoder"), "encoder"),
    "selected": Arm("frozen, labels that select chose", selected, "encoder"),
    "selftrained": Arm("frozen, self-trained", with_guesses, "encoder"),
    "finetuned": Arm("fine-tuned", finetuned, "encoder", slow=True),
    "random": Arm("random weights, linear head", partial(on_features, name="random"), "random"),
    "start": Arm("starting weights, linear head", partial(on_features, name="start"), "start"),
    "scratch": Arm("supervised from scratch", from_scratch, slow=True),
}
LEVEL = "scratch"  # what the others are to reach
