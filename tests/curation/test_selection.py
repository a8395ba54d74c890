"""Which items are chosen first: held against a slow greedy cover, and on features whose best choice is known."""

from __future__ import annotations

import numpy as np
import pytest

from selfsight.curation.selection import Pool, choose, clusters, stands_for
from selfsight.errors import SelfsightError
from selfsight.probing.neighbours import neighbour_graph


def unit(features: np.ndarray) -> np.ndarray:
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def pool_of(features: np.ndarray, labels: np.ndarray | None = None, groups: np.ndarray | None = None) -> Pool:
    count = len(features)
    return Pool(
        features,
        neighbour_graph(features),
        np.arange(count) if groups is None else groups,
        np.full(count, -1) if labels is None else labels,
    )


def bunches(sizes: list[int], spread: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(features, bunch) of items around orthogonal centres."""
    rng = np.random.default_rng(seed)
    bunch = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.eye(16)[: len(sizes)]
    return unit(centres[bunch] + spread * rng.standard_normal((len(bunch), 16))), bunch


def greedy(features: np.ndarray, budget: int, covered: np.ndarray, weights: np.ndarray, out: set[int]) -> list[int]:
    """The cover by its definition: every item asked every time."""
    kernel = np.exp(-((features[:, None] - features[None]) ** 2).sum(2))
    found: list[int] = []
    for _ in range(budget):
        worth = (np.maximum(kernel - covered, 0) * weights).sum(1)
        worth[[*found, *out]] = -1
        found.append(int(worth.argmax()))
        covered = np.maximum(covered, kernel[found[-1]])
    return found


def test_a_cover_is_the_greedy_one_of_its_definition() -> None:
    features = unit(np.random.default_rng(0).standard_normal((120, 5)).astype(np.float64))
    chosen, method = choose(pool_of(features), 12)
    assert method == "cover"
    assert chosen.tolist() == greedy(features.astype(np.float64), 12, np.zeros(120), np.ones(120), set())


def test_a_cover_goes_on_from_labels() -> None:
    features = unit(np.random.default_rng(1).standard_normal((100, 5)).astype(np.float64))
    labels = np.full(100, -1)
    labels[[3, 50]] = 0  # of one class: nothing to doubt
    chosen, method = choose(pool_of(features, labels), 6)
    kernel = np.exp(-((features[:, None] - features[None, [3, 50]]) ** 2).sum(2)).max(1)
    assert method == "cover"
    assert chosen.tolist() == greedy(features.astype(np.float64), 6, kernel, np.ones(100), {3, 50})


@pytest.mark.parametrize("method", ["cover", "typical"])
def test_each_bunch_gets_one_before_any_gets_two_the_largest_first(method: str) -> None:
    features, bunch = bunches([60, 45, 30, 15])
    chosen, _ = choose(pool_of(features), 4, method)  # type: ignore[arg-type]
    assert bunch[chosen].tolist() == [0, 1, 2, 3]


def test_the_typical_item_is_the_one_whose_neighbours_are_nearest() -> None:
    features, _ = bunches([80])
    chosen, _ = choose(pool_of(features), 1, "typical")
    distance = np.sort(np.linalg.norm(features[:, None] - features[None], axis=2), axis=1)[:, 1:21].mean(1)
    assert chosen[0] == distance.argmin()


@pytest.mark.parametrize("method", ["cover", "typical"])
def test_copies_of_what_is_chosen_or_labelled_are_passed_over(method: str) -> None:
    features = unit(np.random.default_rng(2).standard_normal((40, 8)))
    features = np.concatenate([features, features[:5], features[:5]])  # three of each of the first five
    labels = np.full(50, -1)
    labels[45] = 0  # a copy of 0 and 40
    chosen, _ = choose(pool_of(features, labels), 50, method)  # type: ignore[arg-type]
    assert sorted(number % 40 for number in chosen.tolist()) == list(range(1, 40))


def test_doubt_asks_between_two_classes_of_equal_size() -> None:
    rng = np.random.default_rng(3)
    angle = np.concatenate([rng.uniform(0.0, 0.2, 60), rng.uniform(1.3, 1.5, 60), rng.uniform(0.65, 0.85, 60)])
    features = unit(np.stack([np.cos(angle), np.sin(angle)], 1))
    labels = np.full(180, -1)
    labels[:4], labels[60:64] = 0, 1
    chosen, method = choose(pool_of(features, labels), 1)
    assert method == "doubt" and chosen[0] >= 120


@pytest.mark.parametrize("method", ["cover", "typical"])
def test_groups_take_turns(method: str) -> None:
    features, _ = bunches([30, 30])
    groups = np.tile(np.arange(6), 10)
    chosen, _ = choose(pool_of(features, groups=groups), 12, method)  # type: ignore[arg-type]
    assert np.bincount(groups[chosen], minlength=6).tolist() == [2] * 6


def test_a_budget_beyond_the_items_takes_them_all() -> None:
    features = unit(np.random.default_rng(4).standard_normal((9, 6)))
    assert sorted(choose(pool_of(features), 50)[0].tolist()) == list(range(9))
    assert choose(pool_of(features[:1]), 5)[0].tolist() == [0]


def test_what_stands_for_what_adds_up_to_all() -> None:
    features, _ = bunches([60, 45, 30, 15])
    chosen, _ = choose(pool_of(features), 4)
    assert stands_for(features, chosen).tolist() == [60, 45, 30, 15]


def test_clusters_are_the_bunches() -> None:
    features, bunch = bunches([60, 45, 30, 15])
    found = clusters(features, 4, 0)
    assert len({*zip(found.tolist(), bunch.tolist(), strict=True)}) == 4


def test_doubt_needs_labels_and_a_method_is_one_of_three() -> None:
    features, _ = bunches([10])
    with pytest.raises(SelfsightError, match="needs labels of two classes"):
        choose(pool_of(features), 2, "doubt")
    with pytest.raises(SelfsightError, match=r"no method 'covers'. Choose one of cover, doubt, typical. Did you mean"):
        choose(pool_of(features), 2, "covers")  # type: ignore[arg-type]
