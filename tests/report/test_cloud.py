"""The map of a collection: principal components, and UMAP on the graph that is there."""

from __future__ import annotations

import numpy as np
import pytest

from selfsight.probing.neighbours import neighbour_graph
from selfsight.report.cloud import chosen_how, projected


def clusters(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(features [240, 32] of twelve directions with noise, which each is of)."""
    of = np.arange(240) % 12
    centres = rng.normal(size=(12, 32))
    return (centres[of] + 0.3 * rng.normal(size=(240, 32))).astype(np.float32), of


def agreement(plane: np.ndarray, of: np.ndarray) -> float:
    """How often the nearest other point is of the same cluster."""
    far = np.square(plane[:, None] - plane[None]).sum(2)
    np.fill_diagonal(far, np.inf)
    return float((of[far.argmin(1)] == of).mean())


def test_components_are_those_of_the_covariance() -> None:
    features, _ = clusters(np.random.default_rng(0))
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    centred = units - units.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    wanted = centred @ vectors[:, [-1, -2]]
    plane = projected(features, neighbour_graph(features), "pca")
    for axis in (0, 1):
        assert abs(np.corrcoef(plane[:, axis], wanted[:, axis])[0, 1]) == pytest.approx(1.0, abs=1e-4)
    assert np.ptp(plane[:, 0]) / np.ptp(plane[:, 1]) == pytest.approx(np.ptp(wanted[:, 0]) / np.ptp(wanted[:, 1]), 1e-3)


def test_umap_keeps_neighbours_together_and_is_the_same_again() -> None:
    pytest.importorskip("umap", reason="pip install 'selfsight[map]'")
    features, of = clusters(np.random.default_rng(1))
    graph = neighbour_graph(features)
    plane = projected(features, graph, "umap")
    assert agreement(plane, of) > 0.98 > agreement(projected(features, graph, "pca"), of)
    assert (plane == projected(features, graph, "umap")).all() and plane.min() == 0.0 and plane.max() == 1.0


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_items_and_copies_have_a_place(count: int) -> None:
    plane = projected(np.ones((count, 8), np.float32), neighbour_graph(np.ones((count, 8), np.float32)), "pca")
    assert plane.shape == (count, 2) and (plane == 0).all()
    assert chosen_how(count, "pca") == "pca" and (count > 3 or chosen_how(count, None) == "pca")
