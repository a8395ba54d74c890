"""Barlow Twins against loops, batch norm, closed forms, and numbers of another library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selfsight.objectives.barlow import barlow_terms


def slow(z: np.ndarray) -> tuple[float, float]:
    views, _, dim = z.shape
    ones, twos = [], []
    for v in range(views):
        for w in range(v):
            one = two = 0.0
            for i in range(dim):
                for j in range(dim):
                    a, b = z[w, :, i], z[v, :, j]
                    deviations = math.sqrt(a.var() + 1e-5) * math.sqrt(b.var() + 1e-5)
                    c = float(((a - a.mean()) * (b - b.mean())).mean() / deviations)
                    one, two = (one + (1 - c) ** 2, two) if i == j else (one, two + c * c)
            ones.append(one)
            twos.append(two)
    return float(np.mean(ones)), float(np.mean(twos))


@pytest.mark.parametrize("views, batch, dim", [(2, 2, 3), (2, 9, 5), (4, 6, 4)])
def test_equals_the_slow_reference(views: int, batch: int, dim: int):
    z = torch.randn(views, batch, dim)
    assert [t.item() for t in barlow_terms(z)] == pytest.approx(slow(z.double().numpy()), rel=1e-4, abs=1e-6)


def test_gradient_equals_that_through_batch_norm():
    z = torch.randn(2, 8, 5, requires_grad=True)
    one, two = barlow_terms(z)
    (one + 0.1 * two).backward()
    x = z.detach().clone().requires_grad_()
    norm = torch.nn.BatchNorm1d(5, affine=False)
    c = norm(x[0]).T @ norm(x[1]) / 8
    off = c - torch.diag(c.diagonal())
    ((1 - c.diagonal()).square().sum() + 0.1 * off.square().sum()).backward()
    assert torch.allclose(z.grad, x.grad, atol=1e-5)


def test_equals_lightly():
    # lightly 1.6.0 (MIT), BarlowTwinsLoss(lambda 0.005) on these rows: 16.00779 (peers.md, section E.2).
    torch.manual_seed(0)
    invariance, redundancy = barlow_terms(torch.stack([torch.randn(8, 16), torch.randn(8, 16)]))
    assert (invariance + 5e-3 * redundancy).item() == pytest.approx(16.00779, rel=1e-3)


def test_closed_forms():
    z = torch.randn(1, 500, 4).expand(2, -1, -1)
    invariance, redundancy = barlow_terms(z)
    assert invariance.item() == pytest.approx(0.0, abs=1e-6)  # equal views correlate with themselves
    moved = torch.stack([z[0], 2 * z[1] + 4])  # correlations do not change with scale and place
    assert barlow_terms(moved)[1].item() == pytest.approx(redundancy.item(), rel=1e-4)
    collapsed = torch.ones(2, 6, 3)
    assert [t.item() for t in barlow_terms(collapsed)] == pytest.approx([3.0, 0.0])
    one = torch.randn(1, 64, 1).expand(2, -1, 3)  # all dimensions say the same
    assert [t.item() for t in barlow_terms(one)] == pytest.approx([0.0, 6.0], abs=1e-3)


def test_one_view_or_one_sample_is_refused():
    for shape in ((1, 4, 3), (2, 1, 3)):
        with pytest.raises(ValueError, match="at least 2 views and 2 samples"):
            barlow_terms(torch.randn(shape))
