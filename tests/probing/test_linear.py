"""Linear and few-shot probes: known answers, nothing seen of the test, draws without repeats."""

from __future__ import annotations

import numpy as np
import pytest

from selfsight.probing.linear import STRENGTHS, draw_shots, few_shot_scores, linear_scores


def blobs(rng: np.random.Generator, count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, 3, count)
    centres = np.eye(3, 8) * 4
    return (centres[labels] + noise * rng.normal(size=(count, 8))).astype(np.float32), labels


def test_separable_classes_are_separated() -> None:
    rng = np.random.default_rng(0)
    (train, labels), (test, truth) = blobs(rng, 300, 0.3), blobs(rng, 200, 0.3)
    scores, strength = linear_scores(train, labels, test, 3)
    assert (scores.argmax(1) == truth).all() and strength in STRENGTHS
    assert scores.sum(1) == pytest.approx(np.ones(200))


def test_labels_without_meaning_give_chance() -> None:
    rng = np.random.default_rng(1)
    (train, _), (test, _) = blobs(rng, 600, 1.0), blobs(rng, 2000, 1.0)
    labels, truth = rng.integers(0, 3, 600), rng.integers(0, 3, 2000)
    scores, _ = linear_scores(train, labels, test, 3)
    assert abs((scores.argmax(1) == truth).mean() - 1 / 3) < 0.05


def test_strength_is_chosen_without_the_test_items() -> None:
    rng = np.random.default_rng(2)
    train, labels = blobs(rng, 300, 2.0)
    chosen = {linear_scores(train, labels, test, 3)[1] for test in (train[:5], -train[:5], 100 * train[5:9])}
    assert len(chosen) == 1


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


def test_a_class_absent_from_the_training_labels_keeps_its_column() -> None:
    rng = np.random.default_rng(3)
    train, labels = blobs(rng, 60, 0.3)
    scores = few_shot_scores(train[labels != 1], labels[labels != 1], train, 3, shots=3, seed=0)
    assert scores.shape == (60, 3) and (scores[:, 1] == 0).all()
    assert (scores.argmax(1) == labels)[labels != 1].all()
