"""SIGReg and the sliced distance: constants, known integrals, slow references, and where they push."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import batch_of, default_objective, picture, tiny_encoder
from scipy import stats

from selfsight.data.geometry import Geometry
from selfsight.objectives.lejepa import LeJEPA, directions, sigreg, sliced
from selfsight.views.make import make_views
from selfsight.views.plan import ViewGroup, ViewPlan

ALONG = directions(64, 128, 0)


def cloud(n: int, dim: int = 64, seed: int = 1) -> torch.Tensor:
    return torch.randn(1, n, dim, generator=torch.Generator().manual_seed(seed))


def slow(z: np.ndarray, along: np.ndarray) -> float:
    """The trapezoid sum over 17 knots of [-3, 3] by symmetry, one direction and knot after the other."""
    total = []
    for a in along.T:
        s, value = z @ a, 0.0
        for j in range(17):
            t = 3 * j / 16
            phi = np.exp(1j * t * s).mean()
            weight = (3 / 16) * (1 if j in (0, 16) else 2)
            value += weight * abs(phi - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
        total.append(len(z) * value)
    return float(np.mean(total))


def test_equals_the_slow_reference_in_value_and_gradient():
    z, along = torch.randn(2, 6, 4), directions(4, 5, 3)
    wanted = np.mean([slow(v, along.double().numpy()) for v in z.double().numpy()])
    assert sigreg(z, along).item() == pytest.approx(wanted, rel=1e-5)
    exact = z.double().requires_grad_()
    with torch.enable_grad():
        assert torch.autograd.gradcheck(lambda x: sigreg.__wrapped__(x, along.double()), exact, atol=1e-5)


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_constants(n: int):
    """methods.md, appendix B: measured with numpy for 128 directions of 64 dimensions."""
    assert sigreg(cloud(n), ALONG).item() == pytest.approx(1.06, abs=0.15)
    assert sigreg(torch.zeros(1, n, 64), ALONG).item() == pytest.approx(0.402 * n, rel=0.01)
    normalised = sigreg(F.normalize(cloud(n), dim=2), ALONG).item()
    assert normalised == pytest.approx(0.379 * n, rel=0.03)  # almost a collapse


def test_uniform_shifted_and_scaled_clouds_are_told_from_normal_ones():
    normal = sigreg(cloud(512), ALONG).item()
    shifts = [sigreg(cloud(512) + shift, ALONG).item() for shift in (0.0, 0.05, 0.1, 0.2)]
    assert shifts == sorted(shifts) and shifts[-1] > 5 * normal
    assert sigreg(2 * cloud(512), ALONG).item() > 10 * normal and sigreg(cloud(512) / 2, ALONG).item() > 10 * normal
    order = torch.randperm(512)
    assert sigreg(cloud(512)[:, order], ALONG).item() == pytest.approx(normal, rel=1e-5)


def test_sliced_equals_the_slow_reference():
    z, along = torch.randn(2, 7, 3), directions(3, 4, 0)
    values = []
    for view in z.double().numpy():
        mean, sd = view.mean(0), view.std(0)
        standard = (view - mean) / (sd + 1e-4)
        wanted = [stats.norm.ppf(i / 8) for i in range(1, 8)]
        shape = np.mean([(np.sort(standard @ a) - wanted) ** 2 for a in along.double().numpy().T])
        values.append(np.mean(mean**2) + np.mean((1 - sd) ** 2) + shape)
    assert sliced(z, along).item() == pytest.approx(float(np.mean(values)), rel=1e-4)


def test_the_shape_of_the_sliced_distance_does_not_push_the_deviation():
    """Its gradient is that of the loops in which the deviation that standardises is a constant; the scale has its own
    term for it."""
    z, along = torch.randn(2, 7, 3).double(), directions(3, 4, 0).double()
    wanted = torch.tensor([stats.norm.ppf(i / 8) for i in range(1, 8)])
    ours, slow = z.clone().requires_grad_(), z.clone().requires_grad_()
    total = 0.0
    for view, held in zip(slow, z.numpy(), strict=True):
        mean = view.sum(0) / 7
        deviation = ((view - mean).square().sum(0) / 7).sqrt()
        standard = (view - mean) / (torch.from_numpy(held.std(0)) + 1e-4)
        shape = torch.stack([((standard @ a).sort().values - wanted).square().mean() for a in along.T]).mean()
        total = total + (mean.square().mean() + (1 - deviation).square().mean() + shape) / 2
    total.backward()
    sliced.__wrapped__(ours, along).backward()
    assert torch.allclose(ours.grad, slow.grad, rtol=1e-4, atol=1e-6)


def test_views_of_all_sizes_are_drawn_to_the_mean_of_the_large_ones():
    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, 32, 32) for _ in range(5)], [f"{i * 7919:016x}{0:016x}" for i in range(5)])
    plan = ViewPlan((ViewGroup(count=2, size=32), ViewGroup(count=3, size=16)))
    task = LeJEPA(tiny_encoder(), plan, hidden=16, width=8)
    loss = task(make_views(batch, plan, Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), 0), 0.0)
    z = loss.embeddings.double().numpy()  # [2 + 3, 5, 8]
    distances = [np.mean((z[v, i] - (z[0, i] + z[1, i]) / 2) ** 2) for v in range(5) for i in range(5)]
    assert loss.parts["prediction"].item() == pytest.approx(float(np.mean(distances)), rel=1e-5)


def test_at_a_collapse_one_gradient_vanishes_and_the_other_does_not():
    def pull(test, z: torch.Tensor) -> float:
        z = z.clone().requires_grad_()
        test(z, ALONG).backward()
        return float(z.grad.norm()) / float(z.grad.numel()) ** 0.5

    flat = 1e-3 * cloud(256)
    assert pull(sliced, flat) > 100 * pull(sigreg, flat) / 256  # of which SIGReg's grows with the batch


def test_weights_of_nought_and_one():
    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, 32, 32) for _ in range(8)], [f"{i * 7919:016x}{0:016x}" for i in range(8)])
    for weight, part in ((0.0, "prediction"), (1.0, "regulariser")):
        task = default_objective("lejepa", weight=weight).train()
        views = make_views(batch, task.views, Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), 0)
        loss = task(views, 0.0)
        assert loss.total.item() == pytest.approx(loss.parts[part].item(), rel=1e-6)


def test_directions_change_with_the_step_and_come_back_with_the_state():
    task = default_objective("lejepa")
    assert isinstance(task, LeJEPA)
    one = directions(8, 4, int(task.steps))
    task.after_step(0.1)
    fresh = default_objective("lejepa")
    fresh.load_state_dict(task.state_dict())
    two = directions(8, 4, int(fresh.steps))
    assert int(fresh.steps) == 1 and not torch.equal(one, two)
    assert torch.allclose(two.norm(dim=0), torch.ones(4))
