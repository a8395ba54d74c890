"""VICReg's three terms against a slow float64 reference, closed forms, and numbers of another library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import batch_of, picture, tiny_encoder, two_views

from selfsight.objectives.vicreg import VICReg, vicreg_terms


def slow_terms(z: np.ndarray) -> tuple[float, float, float]:
    """Bardes et al. 2022, equations 1 to 5, for each view and each pair of views, in loops of float64."""
    views, batch, dim = z.shape
    pairs = [(v, w) for v in range(views) for w in range(v)]
    invariance = np.mean([np.mean((z[v] - z[w]) ** 2) for v, w in pairs])
    hinges, squares = [], []
    for v in range(views):
        means = [math.fsum(z[v, :, j]) / batch for j in range(dim)]

        def covariance(j: int, k: int, v: int = v, means: list[float] = means) -> float:
            return math.fsum((z[v, i, j] - means[j]) * (z[v, i, k] - means[k]) for i in range(batch)) / (batch - 1)

        hinges += [max(0.0, 1.0 - math.sqrt(covariance(j, j) + 1e-4)) for j in range(dim)]
        squares.append(math.fsum(covariance(j, k) ** 2 for j in range(dim) for k in range(dim) if j != k) / dim)
    # As the authors weigh two views: the hinges averaged, the squared covariances summed.
    return float(invariance), float(np.mean(hinges)), 2 * float(np.mean(squares))


def terms(z: torch.Tensor) -> list[float]:
    return [t.item() for t in vicreg_terms(z)]


@pytest.mark.parametrize("views, batch, dim", [(2, 2, 3), (2, 9, 5), (4, 6, 7), (8, 3, 2)])
@pytest.mark.parametrize("scale", [0.01, 0.7, 3.0])
def test_equals_the_slow_reference(views: int, batch: int, dim: int, scale: float):
    z = torch.randn(views, batch, dim) * scale + torch.randn(dim)
    assert terms(z) == pytest.approx(slow_terms(z.double().numpy()), rel=2e-4, abs=1e-5)


def test_equals_lightly():
    # lightly 1.6.0 (MIT), VICRegLoss(25, 25, 1), which follows the authors' code.
    torch.manual_seed(0)
    z = torch.stack([torch.randn(8, 16), torch.randn(8, 16)])
    invariance, variance, covariance = terms(z)
    assert 25 * invariance + 25 * variance + covariance == pytest.approx(46.390873, abs=2e-4)


def test_live_parity_with_lightly():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z = torch.randn(2, 9, 12)
    invariance, variance, covariance = terms(z)
    wanted = loss.VICRegLoss()(z[0], z[1]).item()
    assert 25 * invariance + 25 * variance + covariance == pytest.approx(wanted, rel=1e-4)


def test_identical_views_have_no_invariance_term():
    invariance, variance, covariance = terms(torch.randn(1, 8, 4).repeat(3, 1, 1))
    assert invariance == pytest.approx(0, abs=1e-12) and variance > 0 and covariance > 0


def test_a_constant_distance_between_views():
    z = torch.randn(1, 8, 4)
    assert terms(torch.cat([z, z + 0.5]))[0] == pytest.approx(0.25, abs=1e-6)
    # Three views at 0, 1, 3: squared distances 1, 9, 4.
    assert terms(torch.cat([z, z + 1, z + 3]))[0] == pytest.approx(14 / 3, abs=1e-5)


def test_orthogonal_dimensions_have_no_covariance():
    # A Hadamard design: columns of +-1 with mean nought, orthogonal to each other; variance 8/7 above the hinge.
    h2 = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    design = torch.kron(torch.kron(h2, h2), h2)[:, 1:]  # [8, 7]
    assert terms(design.repeat(2, 1, 1)) == pytest.approx([0, 0, 0], abs=1e-6)
    assert terms(0.5 * design.repeat(2, 1, 1))[1] == pytest.approx(1 - math.sqrt(0.25 * 8 / 7 + 1e-4), abs=1e-6)


def test_equal_dimensions_have_the_largest_covariance():
    # D copies of one column of variance 8/7: D (D - 1) entries of (8/7) squared, over D, twice.
    column = torch.tensor([1.0, -1.0] * 4)[:, None]
    assert terms(column.repeat(2, 1, 5).view(2, 8, 5))[2] == pytest.approx(2 * 4 * (8 / 7) ** 2, rel=1e-5)


def test_collapse_costs_the_whole_hinge():
    assert terms(torch.ones(2, 8, 4) * 3) == pytest.approx([0, 1 - 0.01, 0], abs=1e-6)  # sqrt(1e-4) = 0.01


def test_shift_and_scale():
    z = torch.randn(2, 16, 6) * 5
    one, shifted, scaled = terms(z), terms(z + 7), terms(2 * z)
    assert shifted == pytest.approx(one, rel=1e-3)
    assert scaled[0] == pytest.approx(4 * one[0], rel=1e-5) and scaled[2] == pytest.approx(16 * one[2], rel=1e-4)
    assert one[1] == 0.0  # wide enough: the hinge is off


@pytest.mark.parametrize("shape", [(1, 8, 4), (2, 1, 4)])
def test_one_view_or_one_sample_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="at least 2 views and 2 samples"):
        vicreg_terms(torch.randn(shape))


def test_float32_inside_under_bf16():
    z = torch.randn(2, 16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = vicreg_terms(z)
    assert [t.item() for t in got] == terms(z) and all(t.dtype == torch.float32 for t in got)
    half = z.bfloat16()
    assert terms(half) == pytest.approx(slow_terms(half.double().numpy()), rel=1e-3)


def test_gradient_equals_finite_differences():
    z = (0.5 * torch.randn(3, 5, 4)).requires_grad_()
    sum(w * t for w, t in zip((25, 25, 1), vicreg_terms(z), strict=True)).backward()
    exact = z.detach().double().numpy()

    def total(x: np.ndarray) -> float:
        return float(np.dot((25, 25, 1), slow_terms(x)))

    for index in [(0, 0, 0), (1, 2, 3), (2, 4, 1)]:
        step = np.zeros_like(exact)
        step[index] = 1e-6
        slope = (total(exact + step) - total(exact - step)) / 2e-6
        assert z.grad[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_the_objective_weighs_the_terms_by_25_25_1():
    from selfsight.data.geometry import Geometry
    from selfsight.views.make import make_views

    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, 32, 32) for _ in range(4)], [f"{i:032x}" for i in range(4)])
    views = make_views(batch, two_views(), Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), 0)
    task = VICReg(tiny_encoder(), two_views(), hidden=16, width=8).eval()
    loss = task(views, 0.0)
    a, b, c = slow_terms(loss.embeddings.double().numpy())
    assert loss.total.item() == pytest.approx(25 * a + 25 * b + c, rel=1e-4)
    assert {k: v.item() for k, v in loss.parts.items()} == pytest.approx(
        {"invariance": a, "variance": b, "covariance": c}, rel=1e-3, abs=1e-6
    )
    other = VICReg(task.encoder, two_views(), invariance=1, variance=2, covariance=3, hidden=16, width=8).eval()
    other.projector = task.projector
    assert other(views, 0.0).total.item() == pytest.approx(a + 2 * b + 3 * c, rel=1e-4)
