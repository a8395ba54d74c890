"""Label-free evidence in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from selfsight.training.monitors import effective_rank, evidence, neighbour_stability


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
    wanted |= {"rank_share": 1 / 3, "alignment": 0, "uniformity": 0, "neighbour_stability": 0}
    assert got.pop("scale") == pytest.approx(float(z[0].std(0).square().mean().sqrt()))
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


def test_alignment_and_uniformity_by_their_definitions():
    z = torch.nn.functional.normalize(torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1)), dim=2)
    alignment = sum(float((z[0, i] - z[1, i]).square().sum()) for i in range(7)) / 7
    pairs = [math.exp(-2 * float((z[0, i] - z[0, j]).square().sum())) for i in range(7) for j in range(7) if i != j]
    got = evidence(3 * z)
    assert got["alignment"] == pytest.approx(alignment, abs=1e-5)
    assert got["uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-5)
    assert evidence(torch.ones(2, 6, 4))["uniformity"] == pytest.approx(0.0, abs=1e-5)  # the worst there is


def test_neighbours_that_two_views_agree_on():
    one = torch.nn.functional.normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(2)), dim=1)
    assert neighbour_stability(one, one) == pytest.approx(1.0)
    turned = one @ torch.linalg.qr(torch.randn(8, 8)).Q  # every item turned alike: nobody's neighbours change
    assert neighbour_stability(one, turned) == pytest.approx(1.0)
    other = torch.nn.functional.normalize(torch.randn(4000, 8), dim=1)
    unlike = torch.nn.functional.normalize(torch.randn(4000, 8), dim=1)
    assert neighbour_stability(other, unlike) == pytest.approx(0.0, abs=0.01)
    with pytest.raises(ValueError, match="three items"):
        neighbour_stability(one[:2], one[:2])


def test_a_share_of_the_directions_there_could_be():
    assert evidence(torch.randn(2, 9, 400))["rank_share"] == pytest.approx(
        1.0, abs=0.02
    )  # nine items: eight directions
    assert evidence(torch.randn(2, 400, 4))["rank_share"] == pytest.approx(1.0, abs=0.02)
    line = torch.linspace(-1, 1, 101)[None, :, None] * torch.randn(1, 1, 50)
    assert evidence(line.repeat(2, 1, 1))["rank_share"] == pytest.approx(1 / 50, abs=1e-3)


@pytest.mark.parametrize(
    ("assignments", "entropy", "cluster"),
    [
        (torch.full((6, 8), 1 / 8), 1.0, 1.0),  # every item belongs to all alike
        (torch.eye(8), 0.0, 1.0),  # every item to a cluster of its own
        (torch.eye(8)[[3] * 6], 0.0, 0.0),  # all to one
        (torch.eye(8)[[0, 1] * 4], 0.0, 1 / 3),  # two of eight
    ],
)
def test_entropies_of_assignments(assignments: torch.Tensor, entropy: float, cluster: float):
    got = evidence(torch.randn(2, 6, 4), assignments)
    assert got["assignment_entropy"] == pytest.approx(entropy, abs=1e-5)
    assert got["cluster_entropy"] == pytest.approx(cluster, abs=1e-5)
    assert "cluster_entropy" not in evidence(torch.randn(2, 6, 4))
