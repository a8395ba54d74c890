"""The linear probe: logistic regression on frozen features of unit length, of all labels or of a few of each class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selfsight.data.groups import group_numbers, hold_out

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # inverse L2 strengths C, tried on a split of the training labels
USUAL = STRENGTHS[1]  # where the labels leave nothing to choose it on
CHOICE_ITEMS = 8000
CHOICE_SHARE = 1 / 5
FEW_SHOT_STRENGTH = 10.0  # fixed: a handful of labels leaves nothing to choose it on


@dataclass(frozen=True)
class LinearProbe:
    """A fitted logistic regression: softmax(weight x + bias) of features x of unit length.

    weight: [C, D]. Two classes have opposite weights.
    bias: [C], minus infinity for a class without examples, whose probability is then 0.
    strength: the inverse L2 strength C of the fit.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Class probabilities [N, C] of `features` [N, D] of any length."""
        logits = (unit_rows(features) @ self.weight.T + self.bias).astype(np.float64)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(odds / odds.sum(1, keepdims=True))


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    strength: float | None = None,
    groups: Sequence[str | None] | np.ndarray | None = None,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> LinearProbe:
    """The linear probe fitted to `features` [N, D] and class numbers `labels` [N], each below `classes`.

    strength: inverse L2 strength C. None takes the best of `STRENGTHS` on a held-out fifth of the items (of at most
    8,000
        of them), drawn by `seed`, and then fits all items with it.
    groups: a name for each item, or None for an item that is alone. No group is on both sides of that split.
    weights: how much each item counts [N], all the same if not given. The split of a choice leaves them out.

    Raises `ValueError` for items of fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError("a linear probe needs items of at least two classes")
    if strength is None:
        strength = _chosen(features, labels, classes, group_numbers(groups, len(labels)), seed)
    return _fitted(features, labels, classes, strength, weights)


def _chosen(features: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray, seed: int) -> float:
    """The strength with the best accuracy on held-out groups."""
    order = np.random.default_rng(seed).permutation(len(features))[:CHOICE_ITEMS]
    out = hold_out(groups[order], CHOICE_SHARE)
    held, kept = order[out], order[~out]
    if not len(held) or len(np.unique(labels[kept])) < 2:
        return USUAL
    fits = [_fitted(features[kept], labels[kept], classes, strength) for strength in STRENGTHS]
    hits = [(fit.scores(features[held]).argmax(1) == labels[held]).mean() for fit in fits]
    return STRENGTHS[int(np.argmax(hits))]


def _fitted(
    features: np.ndarray, labels: np.ndarray, classes: int, strength: float, weights: np.ndarray | None = None
) -> LinearProbe:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reaching the iteration limit moves no digit that is shown
        model.fit(unit_rows(features), labels, weights)
    rows, ends = model.coef_, model.intercept_
    if len(rows) == 1:  # of two classes scikit-learn keeps the difference: sigmoid(z) = softmax(-z / 2, z / 2)
        rows, ends = np.concatenate([-rows, rows]) / 2, np.concatenate([-ends, ends]) / 2
    weight = np.zeros((classes, features.shape[1]), rows.dtype)
    bias = np.full(classes, -np.inf, ends.dtype)
    weight[model.classes_], bias[model.classes_] = rows, ends
    return LinearProbe(weight, bias, strength)


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Features [N, D] at unit length, in their own precision; zeros stay zeros."""
    lengths = np.sqrt(np.einsum("ij,ij->i", features, features))[:, None]
    return np.asarray(features / np.where(lengths == 0, 1, lengths).astype(features.dtype))


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` random items per class; of a class with fewer, all of them."""
    rng = np.random.default_rng(seed)
    chosen = []
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        chosen.append(rng.choice(members, size=min(shots, len(members)), replace=False))
    return np.concatenate(chosen)


def draw_half(labels: np.ndarray, seed: int) -> np.ndarray:
    """Indices of a random half of each class's items, rounded up."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    return np.concatenate([rng.permutation(some)[: -(-len(some) // 2)] for some in members])


def fit_few_shot(features: np.ndarray, labels: np.ndarray, classes: int, shots: int, seed: int) -> LinearProbe:
    """The linear probe fitted to `shots` items per class, drawn by `seed`, with a fixed strength."""
    chosen = draw_shots(labels, shots, seed)
    return fit_linear(features[chosen], labels[chosen], classes, strength=FEW_SHOT_STRENGTH)
