"""Linear and few-shot probes: scikit-learn's own pipeline, known answers, nothing seen of the test, whole groups."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from selfsight.probing.linear import STRENGTHS, LinearProbe, draw_shots, fit_few_shot, fit_linear


def blobs(rng: np.random.Generator, count: int, noise: float, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, classes, count)
    centres = np.eye(classes, 8) * 4
    return (centres[labels] + noise * rng.normal(size=(count, 8))).astype(np.float32), labels


def pipeline(features: np.ndarray, labels: np.ndarray, strength: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_pipeline(Normalizer(), LogisticRegression(C=strength, max_iter=200, tol=1e-3))
        return model.fit(features, labels)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_scores_and_strength_equal_the_pipeline(kind: type, classes: int, noise: float) -> None:
    rng = np.random.default_rng(10 * classes)
    (train, labels), (test, _) = blobs(rng, 203, noise, classes), blobs(rng, 90, noise, classes)
    train, test = train.astype(kind), test.astype(kind)
    order = np.random.default_rng(4).permutation(203)
    held, kept = order[:40], order[40:]
    hits = [(pipeline(train[kept], labels[kept], c).predict(train[held]) == labels[held]).mean() for c in STRENGTHS]
    best = STRENGTHS[int(np.argmax(hits))]
    probe = fit_linear(train, labels, classes, seed=4)
    assert probe.strength == best
    assert np.abs(probe.scores(test) - pipeline(train, labels, best).predict_proba(test)).max() < 1e-6


@pytest.mark.parametrize("present", [(0, 2), (1, 3), (0, 1, 3)])
def test_a_class_without_an_example_keeps_its_column(present: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    (train, labels), (test, truth) = blobs(rng, 90, 0.4, 4), blobs(rng, 60, 0.4, 4)
    some = np.isin(labels, present)
    scores = fit_linear(train[some], labels[some], 4, strength=10.0).scores(test)
    wanted = np.zeros((60, 4))
    wanted[:, list(present)] = pipeline(train[some], labels[some], 10.0).predict_proba(test)
    assert np.abs(scores - wanted).max() < 1e-6 and (scores[:, [c for c in range(4) if c not in present]] == 0).all()
    assert (scores.argmax(1) == truth)[np.isin(truth, present)].all()


def test_the_probe_is_its_arrays() -> None:
    """softmax(weight x + bias) by a loop, from what would be saved."""
    rng = np.random.default_rng(5)
    train, labels = blobs(rng, 80, 1.0)
    probe = fit_linear(train[labels < 2], labels[labels < 2], 3, strength=1.0)
    assert probe.weight.shape == (3, 8) and probe.bias[2] == -np.inf
    saved = LinearProbe(np.array(probe.weight.tolist()), np.array(probe.bias.tolist()), probe.strength)
    for x, row in zip(train, saved.scores(train * 7), strict=True):
        unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64))
        odds = [np.exp(w @ unit + b) for w, b in zip(probe.weight.astype(np.float64), probe.bias, strict=True)]
        assert row == pytest.approx(np.array(odds) / sum(odds), abs=1e-5)


def test_separable_classes_are_separated() -> None:
    rng = np.random.default_rng(0)
    (train, labels), (test, truth) = blobs(rng, 300, 0.3), blobs(rng, 200, 0.3)
    probe = fit_linear(train, labels, 3)
    scores = probe.scores(test)
    assert (scores.argmax(1) == truth).all() and probe.strength in STRENGTHS
    assert scores.sum(1) == pytest.approx(np.ones(200))


def test_labels_without_meaning_give_chance() -> None:
    rng = np.random.default_rng(1)
    (train, _), (test, _) = blobs(rng, 600, 1.0), blobs(rng, 2000, 1.0)
    labels, truth = rng.integers(0, 3, 600), rng.integers(0, 3, 2000)
    assert abs((fit_linear(train, labels, 3).scores(test).argmax(1) == truth).mean() - 1 / 3) < 0.05


def patients(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """40 patients with five images that are nearly the same, and a label that half of the patients have by chance."""
    owner = np.repeat(np.arange(40), 5)
    labels = rng.permutation(np.arange(40) % 2)[owner]
    return rng.normal(size=(40, 60))[owner] + 0.05 * rng.normal(size=(200, 60)), labels, owner


def test_the_strength_is_chosen_on_patients_that_were_not_seen() -> None:
    """Where a label is one of the patient only, a split of images rewards knowing patients by heart: the more strength
    the better. A split of patients does not. The choice equals the slow one on a split by hand."""
    differ = 0
    for seed in range(6):
        features, labels, owner = patients(np.random.default_rng(seed))
        names = np.array([f"patient {i}" for i in owner], dtype=object)
        order = np.random.default_rng(seed).permutation(200)
        held = list(dict.fromkeys(owner[order]))[:8]  # patients in the order of their first images; a fifth
        out = np.array([owner[i] in held for i in order])
        kept, asked = order[~out], order[out]
        hits = [
            (pipeline(features[kept], labels[kept], c).predict(features[asked]) == labels[asked]).mean()
            for c in STRENGTHS
        ]
        found = fit_linear(features, labels, 2, groups=names, seed=seed).strength
        assert found == STRENGTHS[int(np.argmax(hits))]
        differ += found != fit_linear(features, labels, 2, seed=seed).strength
    assert differ


def test_groups_of_one_change_nothing() -> None:
    train, labels = blobs(np.random.default_rng(2), 150, 2.5)
    alone, named = np.array([None] * 150, dtype=object), np.array([f"{i}" for i in range(150)])
    wanted = fit_linear(train, labels, 3)
    for groups in (alone, named):
        assert np.array_equal(fit_linear(train, labels, 3, groups=groups).weight, wanted.weight)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        fit_linear(np.eye(3), np.ones(3, dtype=int), 2)


def test_draws_take_each_class_alike_and_all_of_a_small_one() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2] * 10)
    chosen = draw_shots(labels, 5, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 5] and len(set(chosen)) == 13
    assert draw_shots(labels, 5, seed=0).tolist() == chosen.tolist() != draw_shots(labels, 5, seed=1).tolist()
    # Each item of a class is as likely as another: 400 draws of 5 in 10, within five deviations.
    hits = np.zeros(23)
    for seed in range(400):
        hits[draw_shots(labels, 5, seed)] += 1
    assert np.abs(hits[labels != 1] - 200).max() < 5 * 10


def test_few_shots_equal_the_pipeline_on_the_items_drawn() -> None:
    rng = np.random.default_rng(6)
    (train, labels), (test, _) = blobs(rng, 60, 1.0), blobs(rng, 50, 1.0)
    chosen = draw_shots(labels, 4, seed=9)
    found = fit_few_shot(train, labels, 3, shots=4, seed=9).scores(test)
    assert np.abs(found - pipeline(train[chosen], labels[chosen], 10.0).predict_proba(test)).max() < 1e-6
