"""k-NN against a loop, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfsight.probing.neighbours import fit_knn, nearest, nearest_others


def test_votes_equal_a_loop() -> None:
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(50, 6)), rng.normal(size=(9, 6))
    labels = rng.integers(0, 4, 50)
    found = fit_knn(train, labels, 4, k=7).scores(test)
    for x, row in zip(test, found, strict=True):
        cosines = [float(x @ t / np.linalg.norm(x) / np.linalg.norm(t)) for t in train]
        votes = [0.0] * 4
        for i in sorted(range(50), key=lambda i: -cosines[i])[:7]:
            votes[labels[i]] += math.exp(cosines[i] / 0.07)
        assert row / row.sum() == pytest.approx(np.array(votes) / sum(votes), rel=1e-4)


def test_weight_lets_one_near_beat_two_far() -> None:
    train = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    assert fit_knn(train, np.array([0, 1, 1]), 2, k=3).scores(np.array([[1.0, 0.05]])).argmax() == 0


def test_length_does_not_matter_and_k_may_exceed_the_bank() -> None:
    similarity, index = nearest(np.array([[0.0, 3.0]]), np.array([[5.0, 0.0], [0.0, 0.1]]), k=20)
    assert index.tolist() == [[1, 0]] and similarity[0].tolist() == pytest.approx([1.0, 0.0])


def test_a_bank_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="2 labels for 3 items"):
        fit_knn(np.eye(3), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="0 labels for 0 items"):
        fit_knn(np.empty((0, 3)), np.empty(0, dtype=int), 2)


def test_others_are_those_of_a_slow_search_without_the_item_itself() -> None:
    features = np.random.default_rng(1).normal(size=(30, 5))
    features[7] = features[3]  # as near to an item as the item itself
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    asked = np.array([3, 20])
    for item, found in zip(asked.tolist(), nearest_others(features, asked, 4), strict=True):
        expected = sorted((i for i in range(30) if i != item), key=lambda i: -float(unit[i] @ unit[item]))[:4]
        assert [i for i, _ in found] == expected
        assert [cosine for _, cosine in found] == pytest.approx([unit[i] @ unit[item] for i in expected], abs=1e-6)
    assert [len(found) for found in nearest_others(features, asked, 40)] == [29, 29]
