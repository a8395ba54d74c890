"""Label-free evidence in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from selfsight.training.monitors import effective_rank, evidence


def cross(dim: int) -> torch.Tensor:
    """The 2 D points +-e_i: mean nought, all singular values equal."""
    return torch.cat([torch.eye(dim), -torch.eye(dim)])


def test_effective_rank():
    assert effective_rank(cross(6)) == pytest.approx(6, abs=1e-4)
    assert effective_rank(cross(6) * 100 + 7) == pytest.approx(6, abs=1e-3)  # neither scale nor place matters
    line = torch.linspace(-1, 1, 9)[:, None] * torch.randn(1, 5)
    assert effective_rank(line) == pytest.approx(1, abs=1e-4)
    two = cross(5)[[0, 1, 5, 6]]
    assert effective_rank(two) == pytest.approx(2, abs=1e-5)
    uneven = two * torch.tensor([3.0, 1, 1, 1, 1])  # singular values 3 : 1
    wanted = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(uneven) == pytest.approx(wanted, abs=1e-5)
    assert effective_rank(torch.ones(8, 4)) == 1.0  # collapsed
    assert effective_rank(torch.eye(5)) == pytest.approx(4, abs=1e-4)  # centring takes one of the five away


def test_evidence_of_points_that_fill_the_sphere():
    z = cross(4)[None].repeat(2, 1, 1) * torch.tensor([1.0, 5.0]).view(2, 1, 1)
    got = evidence(z)
    assert got["effective_rank"] == pytest.approx(4, abs=1e-4)
    assert got["centre_norm"] == pytest.approx(0, abs=1e-6)
    assert got["agreement"] == pytest.approx(1, abs=1e-6)
    # Each dimension holds 1 and -1 among 8 values: std sqrt(2 / 7), times sqrt(4).
    assert got["spread"] == pytest.approx(2 * math.sqrt(2 / 7), abs=1e-6)
    # Of 7 others one is opposite and the rest are orthogonal: a mean cosine of -1/7.
    assert got["contrast"] == pytest.approx(1 + 1 / 7, abs=1e-6)


def test_evidence_of_collapse():
    z = torch.tensor([[1.0, 2.0, 2.0]]).expand(2, 6, 3) * (torch.rand(2, 6, 1) + 0.5)
    got = evidence(z)
    wanted = {"effective_rank": 1, "centre_norm": 1, "spread": 0, "agreement": 1, "contrast": 0}
    assert got == pytest.approx(wanted, abs=2e-3)


def test_agreement_is_the_mean_cosine_over_pairs_of_views():
    angles = torch.tensor([[0.0, 0.3], [0.5, 0.1], [1.2, 0.9]])  # three views of two items
    z = torch.stack([angles.cos(), angles.sin()], 2) * 3
    pairs = [(0, 1), (0, 2), (1, 2)]
    agreement = sum(math.cos(angles[a, i] - angles[b, i]) for a, b in pairs for i in range(2)) / 6
    got = evidence(z)
    assert got["agreement"] == pytest.approx(agreement, abs=1e-6)
    assert got["contrast"] == pytest.approx(agreement - math.cos(0.3), abs=1e-6)
    assert got["centre_norm"] == pytest.approx(math.cos(0.15), abs=1e-6)  # of the first view: 0 and 0.3 radians


def test_random_embeddings_spread_over_the_sphere():
    got = evidence(torch.randn(2, 2000, 64))
    assert got["spread"] == pytest.approx(1, abs=0.02)
    assert got["centre_norm"] < 0.05 and abs(got["agreement"]) < 0.02 and abs(got["contrast"]) < 0.02
