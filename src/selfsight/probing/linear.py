"""The linear probe and its few-label form: logistic regression on frozen features of unit length."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)  # inverse L2 strengths C, tried on a split of the training labels
CHOICE_ITEMS = 8000
FEW_SHOT_STRENGTH = 10.0  # fixed: a handful of labels leaves nothing to choose it on


def _fit(features: np.ndarray, labels: np.ndarray, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    model = make_pipeline(Normalizer(), LogisticRegression(C=strength, max_iter=200, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reaching the iteration limit moves no digit that is shown
        return model.fit(features, labels)


def _scores(model: Any, features: np.ndarray, classes: int) -> np.ndarray:
    scores = np.zeros((len(features), classes))
    scores[:, model.classes_] = model.predict_proba(features)
    return scores


def linear_scores(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, seed: int = 0
) -> tuple[np.ndarray, float]:
    """Class probabilities [N, C] of a probe trained on all labels, and the strength C it chose.

    C is the best on a held-out fifth of (at most 8,000 of) the training items; the test is not seen.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train))[:CHOICE_ITEMS]
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]
    best = STRENGTHS[1]
    if len(held) and len(np.unique(labels[kept])) > 1:
        hits = [(_fit(train[kept], labels[kept], c).predict(train[held]) == labels[held]).mean() for c in STRENGTHS]
        best = STRENGTHS[int(np.argmax(hits))]
    return _scores(_fit(train, labels, best), test, classes), best


def draw_shots(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Indices of `shots` random items of each class, or all of a class that has fewer."""
    rng = np.random.default_rng(seed)
    chosen = []
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        chosen.append(rng.choice(members, size=min(shots, len(members)), replace=False))
    return np.concatenate(chosen)


def few_shot_scores(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, shots: int, seed: int
) -> np.ndarray:
    """Class probabilities [N, C] of logistic regression on `shots` items a class."""
    chosen = draw_shots(labels, shots, seed)
    return _scores(_fit(train[chosen], labels[chosen], FEW_SHOT_STRENGTH), test, classes)
