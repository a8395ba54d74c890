"""The total coding rate against determinants in numpy and the constants of its closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import batch_of, default_objective, picture

from selfsight.data.geometry import Geometry
from selfsight.objectives.emp import agreement, coding_rate
from selfsight.views.make import make_views


@pytest.mark.parametrize("batch, dim", [(3, 8), (8, 3), (5, 5)])
def test_equals_numpy_in_value_and_gradient(batch: int, dim: int):
    z = F.normalize(torch.randn(2, batch, dim), dim=2).requires_grad_()
    got = coding_rate(z)
    for view, rate in zip(z.detach().double().numpy(), got, strict=True):
        matrix = np.eye(dim) + dim / (batch * 0.2) * view.T @ view
        assert rate.item() == pytest.approx(0.5 * np.linalg.slogdet(matrix)[1], rel=1e-5)
    got.sum().backward()
    for v in range(2):  # d/dZ 1/2 logdet(I + a Z^T Z) = a Z (I + a Z^T Z)^-1
        view, a = z[v].detach().double(), dim / (batch * 0.2)
        wanted = a * view @ torch.linalg.inv(torch.eye(dim).double() + a * view.T @ view)
        assert torch.allclose(z.grad[v].double(), wanted, atol=1e-5)


def test_closed_forms():
    # B rows of orthogonal directions: B/2 log(1 + d / (B eps)); all rows equal: 1/2 log(1 + d / eps).
    orthogonal = torch.eye(100, 1024)[None]
    assert coding_rate(orthogonal).item() == pytest.approx(197.8, abs=0.05)
    collapsed = torch.eye(1, 1024).expand(1, 100, -1)
    assert coding_rate(collapsed).item() == pytest.approx(4.27, abs=0.01)


def test_the_rate_is_made_large():
    """Another library adds the rate where it must be taken away: minimising its loss would collapse."""
    task = default_objective("emp").train()
    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, 32, 32) for _ in range(8)], [f"{i * 7919:016x}{0:016x}" for i in range(8)])
    loss = task(make_views(batch, task.views, Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), 0), 0.0)
    wanted = -loss.parts["coding_rate"] - 200 * loss.parts["cosine"]
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-6) and loss.parts["coding_rate"] > 0


def test_agreement():
    e = torch.eye(3)
    assert agreement(torch.stack([e, e])).item() == pytest.approx(1.0)
    assert agreement(torch.stack([e, e.roll(1, 0)])).item() == pytest.approx(0.5**0.5)  # orthogonal: 45 degrees
