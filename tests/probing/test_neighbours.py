"""k-NN against a loop, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from selfsight.probing import neighbours
from selfsight.probing.neighbours import POWERS, KNNProbe, fit_knn, nearest, nearest_others, neighbour_graph


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


# -- how far to whiten --


def two_classes(count: int, seed: int, signal: float, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items of two classes, `signal` apart along the first direction, with `noise` (its spread) along each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    features = rng.normal(size=(count, len(noise))) * noise
    features[:, 0] += signal * (labels - 0.5)
    return features.astype(np.float32), labels


def test_whitening_is_chosen_where_the_signal_lies_in_little_variance() -> None:
    noise = np.array([0.1, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0])
    train, labels = two_classes(300, 0, 0.6, noise)
    test, truth = two_classes(300, 1, 0.6, noise)
    chosen = fit_knn(train, labels, 2, whitening=None)
    right = [(probe.scores(test).argmax(1) == truth).mean() for probe in (fit_knn(train, labels, 2), chosen)]
    assert chosen.whitening == 0.5 and right[0] < 0.7 < 0.9 < right[1]


def test_whitening_is_left_where_the_signal_lies_in_much_variance() -> None:
    noise = np.array([1.0, 1.0] + [0.3] * 60)
    train, labels = two_classes(300, 0, 4.0, noise)
    test, truth = two_classes(300, 1, 4.0, noise)
    chosen, full = fit_knn(train, labels, 2, whitening=None), fit_knn(train, labels, 2, whitening=0.5)
    right = [(probe.scores(test).argmax(1) == truth).mean() for probe in (full, chosen)]
    assert chosen.whitening == 0.0 and chosen.bank is train and right[0] + 0.1 < right[1]


def test_the_least_of_powers_that_are_as_good_is_taken() -> None:
    far = np.repeat(np.eye(3), 8, axis=0) + np.random.default_rng(0).normal(0, 0.01, (24, 3))  # any power finds all
    assert fit_knn(far, np.repeat(np.arange(3), 8), 3, k=5, whitening=None).whitening == 0.0
    with pytest.raises(ValueError, match="2 labels for 3 items"):
        fit_knn(np.eye(3), np.array([0, 1]), 2, whitening=None)
    for alone in (fit_knn(np.ones((1, 4)), np.array([0]), 1, whitening=None), one_group()):  # nobody else votes
        assert alone.whitening == 0.0


def one_group() -> KNNProbe:
    return fit_knn(np.eye(4), np.array([0, 1, 0, 1]), 2, whitening=None, groups=["a"] * 4)


def test_neither_an_item_nor_its_group_votes_for_itself() -> None:
    rng = np.random.default_rng(2)
    bank, labels = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    groups = np.concatenate([np.arange(40 - 12), rng.integers(0, 3, 12)])  # most are alone, some in three groups
    asked = np.array([0, 1, 13, 30, 39])
    found = KNNProbe(bank, labels, 3, 4).scores_of_own(asked, groups)
    for item, row in zip(asked.tolist(), found, strict=True):
        others = [i for i in range(40) if groups[i] != groups[item]]
        cosines = {i: float(unit[i] @ unit[item]) for i in others}
        votes = [0.0] * 3
        for i in sorted(others, key=lambda i: -cosines[i])[:4]:
            votes[labels[i]] += math.exp((cosines[i] - 1.0) / 0.07)
        assert row == pytest.approx(votes, rel=1e-4)
    lonely = KNNProbe(bank, labels, 3, 40).scores_of_own(np.array([0]), np.array([0] * 39 + [1]))
    assert np.count_nonzero(lonely) == 1  # of 40 neighbours one is of another group


def test_the_choice_is_that_of_a_slow_search_over_groups() -> None:
    """Pictures of a patient are alike in much variance, which does not help with other patients."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 4)
    labels = np.where(rng.random(60) < 0.3, 1, 0)[patients]
    features = rng.normal(0, 3, (60, 12))[patients] + rng.normal(0, 0.05, (240, 12))
    features[:, 0] = 0.5 * labels + rng.normal(0, 0.25, 240)
    features = features.astype(np.float32)
    names = [f"p{number}" for number in patients]

    def found(power: float) -> float:
        bank = fit_knn(features, labels, 2, whitening=power).bank.astype(np.float64)
        unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
        hits: dict[int, list[bool]] = {0: [], 1: []}
        for i in range(240):
            order = sorted((j for j in range(240) if patients[j] != patients[i]), key=lambda j: -unit[i] @ unit[j])[:20]
            votes = [sum(math.exp(unit[i] @ unit[j] / 0.07) for j in order if labels[j] == c) for c in (0, 1)]
            hits[labels[i]].append(votes[labels[i]] > votes[1 - labels[i]])
        return float(np.mean([np.mean(some) for some in hits.values()]))

    shares = {power: found(power) for power in POWERS}
    assert fit_knn(features, labels, 2, whitening=None, groups=names).whitening == max(POWERS, key=shares.__getitem__)
    assert shares[0.5] > shares[0.0]
    assert fit_knn(features, labels, 2, whitening=None).whitening == 0.0  # asked of the patient's own pictures


def test_full_whitening_is_that_of_the_covariance_of_ledoit_and_wolf() -> None:
    features = np.random.default_rng(3).normal(size=(50, 8)) @ np.diag([4, 3, 2, 1, 1, 0.5, 0.2, 0.1]) + 7.0
    covariance, shrinkage = ledoit_wolf(features)
    assert 0.01 < shrinkage < 0.9
    probe = fit_knn(features, np.arange(50) % 2, 2, whitening=0.5)
    assert probe.map is not None
    weight = probe.map[0].astype(np.float64)
    white = weight @ covariance @ weight.T
    assert white / white[0, 0] == pytest.approx(np.eye(8), abs=1e-4)  # up to one factor for all, as cosines are
    assert probe.bank.mean(0) == pytest.approx(np.zeros(8), abs=1e-4)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_the_graph_is_that_of_a_slow_search_and_copies_are_neighbours(k: int) -> None:
    rng = np.random.default_rng(5)
    features = rng.normal(size=(30, 6)).astype(np.float32)
    features[20:24] = features[3]  # five of a kind
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    graph = neighbour_graph(features, k)
    assert graph.index.shape == (30, min(k, 29))
    assert not (graph.index == np.arange(30)[:, None]).any()
    assert graph.cosine == pytest.approx(-np.sort(-cosines, axis=1)[:, :k][:, :29], abs=1e-6)
    assert np.take_along_axis(cosines, graph.index, 1) == pytest.approx(graph.cosine, abs=1e-6)


def test_many_items_are_searched_in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="needs the extra search")
    rng = np.random.default_rng(6)
    features = (rng.normal(size=(40, 16))[rng.integers(0, 40, 2000)] + 0.3 * rng.normal(size=(2000, 16))).astype("f4")
    exact = neighbour_graph(features, 10)
    monkeypatch.setattr(neighbours, "EXACT", 100)
    found = neighbour_graph(features, 10)
    assert not (found.index == np.arange(2000)[:, None]).any() and (found.index >= 0).all()
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.index, found.index, strict=True)])
    assert shared > 0.95
