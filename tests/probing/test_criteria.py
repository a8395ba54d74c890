"""RankMe, LiDAR and alpha-ReQ against loops, closed forms and spectra that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from selfsight.probing.criteria import alpha_req, lidar, rankme

RNG = np.random.default_rng(0)


def test_rankme_counts_directions():
    basis, _ = np.linalg.qr(RNG.normal(size=(64, 16)))
    assert rankme(basis) == pytest.approx(16, rel=1e-4)  # sixteen equal singular values
    assert rankme(np.outer(RNG.normal(size=50), RNG.normal(size=8))) == pytest.approx(1, abs=1e-4)
    values = np.array([4.0, 2.0, 1.0, 1.0])
    share = values / values.sum()
    wanted = math.exp(-sum(p * math.log(p) for p in share))
    assert rankme(np.diag(values)) == pytest.approx(wanted, rel=1e-5)


def test_lidar_equals_the_slow_reference():
    x = RNG.normal(size=(3, 20, 5)) + RNG.normal(size=(20, 5)) * [6, 5, 4, 3, 0]
    means = x.mean(0)
    between = sum(np.outer(m - means.mean(0), m - means.mean(0)) for m in means) / 19
    within = sum(np.outer(x[v, i] - means[i], x[v, i] - means[i]) for v in range(3) for i in range(20)) / (20 * 2)
    root = np.linalg.inv(np.real(sqrtm(within + 1e-4 * np.eye(5))))
    edge = ((1 + math.sqrt(5 / 20 + 5 / 40 - 5 / 20 * 5 / 40)) / (1 - 5 / 40)) ** 2 / 3
    values = np.array([v - 1 / 3 if v > edge else 0.0 for v in np.linalg.eigvalsh(root @ between @ root)])
    assert (values > 0).sum() == 4
    share = values / values.sum() + 1e-7
    assert lidar(x) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_lidar_counts_only_directions_in_which_items_differ_beyond_their_views():
    items = np.zeros((1, 300, 8))
    items[..., :3] = RNG.normal(size=(1, 300, 3))
    noise = 0.01 * RNG.normal(size=(4, 300, 8))
    assert lidar(items + noise) == pytest.approx(3, abs=0.1)
    with pytest.raises(ValueError, match="two views"):
        lidar(items)


@pytest.mark.parametrize("views", [2, 4, 16])
def test_lidar_of_features_that_tell_nothing_apart_is_one(views: int):
    """By the paper's equations it would be nearly all directions: what is left of noise in the mean of few views."""
    assert lidar(RNG.normal(size=(views, 400, 100))) == pytest.approx(1.0, abs=0.3)
    told = RNG.normal(size=(400, 100)) * (np.arange(100) < 10)
    assert lidar(RNG.normal(size=(views, 400, 100)) + 3 * told) == pytest.approx(10, abs=0.3)


def test_lidar_of_fewer_views_than_dimensions_is_one():
    assert lidar(RNG.normal(size=(2, 20, 30)) + 10 * RNG.normal(size=(20, 30))) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_of_a_known_spectrum(alpha: float):
    basis, _ = np.linalg.qr(RNG.normal(size=(400, 64)) - 0.0)
    basis -= basis.mean(0)
    basis, _ = np.linalg.qr(basis)  # orthogonal columns whose means are nought
    scale = np.arange(1, 65) ** (-alpha / 2)
    assert alpha_req(basis * scale) == pytest.approx(alpha, rel=0.02)


def test_alpha_of_a_collapse_is_infinite():
    assert alpha_req(np.ones((10, 4)) + np.outer(np.arange(10), np.ones(4))) == float("inf")
