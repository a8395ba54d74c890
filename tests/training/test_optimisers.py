"""LARS against a slow reference, what is decayed, and the schedule's closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import tiny_encoder, tiny_recipe, two_views
from torch import nn

from selfsight.errors import SelfsightError
from selfsight.objectives.simclr import SimCLR
from selfsight.training.optimisers import LARS, learning_rate_factor, make_optimiser
from selfsight.training.pretraining import groups_of, schedule


def slow_lars(w: np.ndarray, grads: list[np.ndarray], rates: list[float], decay: float, eta: float) -> np.ndarray:
    """You et al. 2017, algorithm 1, for one weight in float64."""
    velocity = np.zeros_like(w)
    for g, rate in zip(grads, rates, strict=True):
        local = eta * np.sqrt((w**2).sum()) / (np.sqrt((g**2).sum()) + decay * np.sqrt((w**2).sum())) if decay else 1.0
        velocity = 0.9 * velocity + rate * local * (g + decay * w)
        w = w - velocity
    return w


@pytest.mark.parametrize("decay", [0.0, 1e-4, 0.1])
def test_lars_equals_the_slow_reference(decay: float):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(4, 3)), rng.normal(size=5) * 0.01]
    grads = [[rng.normal(size=x.shape) for x in start] for _ in range(4)]
    rates = [0.3, 0.3, 0.1, 0.05]
    weights = [nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in start]
    optimiser = LARS(weights, lr=0.3, weight_decay=decay, eta=0.02)
    for step, rate in enumerate(rates):
        optimiser.param_groups[0]["lr"] = rate
        for w, g in zip(weights, grads[step], strict=True):
            w.grad = torch.tensor(g)
        optimiser.step()
    for k, w in enumerate(weights):
        wanted = slow_lars(start[k], [g[k] for g in grads], rates, decay, 0.02)
        assert np.abs(w.detach().numpy() - wanted).max() < 1e-12


def test_lars_moves_a_weight_of_nought_by_the_plain_step():
    w = nn.Parameter(torch.zeros(3))
    w.grad = torch.tensor([1.0, 2.0, 3.0])
    LARS([w], lr=0.5, weight_decay=0.1).step()
    assert w.tolist() == [-0.5, -1.0, -1.5]


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "lars"])
def test_biases_and_norms_are_not_decayed(name: str):
    task = SimCLR(tiny_encoder(), two_views(), hidden=8, width=8)
    optimiser = make_optimiser(groups_of(task, 0.1), name, 1e-3)
    names = {id(p): n for n, p in task.named_parameters()}
    decayed = {names[id(p)] for g in optimiser.param_groups if g["weight_decay"] == 0.1 for p in g["params"]}
    plain = {names[id(p)] for g in optimiser.param_groups if g["weight_decay"] == 0.0 for p in g["params"]}
    assert decayed | plain == set(names.values()) and not decayed & plain
    wanted = set()
    for path, module in task.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            wanted.add(f"{path}.weight")
    assert decayed == wanted
    with pytest.raises(SelfsightError, match=r"'adam'.*adamw, muon, sgd, lars"):
        make_optimiser(groups_of(task, 0.1), "adam", 1e-3)


def test_without_a_gradient_adamw_shrinks_weights_and_leaves_biases():
    task = SimCLR(tiny_encoder(), two_views(), hidden=8, width=8)
    optimiser = make_optimiser(groups_of(task, 0.5), "adamw", 0.01)
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    for p in task.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for n, p in task.named_parameters():
        factor = (1 - 0.01 * 0.5) if p.ndim > 1 else 1.0
        assert torch.allclose(p, before[n] * factor, atol=1e-8), n


@pytest.mark.parametrize(
    "progress, factor",
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (0.325, 0.5 + math.sqrt(0.125)), (1.0, 0.0), (1.5, 0.0)],
)
def test_the_schedules_closed_form(progress: float, factor: float):
    assert learning_rate_factor(progress, 0.1) == pytest.approx(factor, abs=1e-12)


def test_the_schedule_without_warmup_starts_at_the_peak():
    assert learning_rate_factor(0.0, 0.0) == 1.0
    rates = [learning_rate_factor(p, 0.05) for p in np.linspace(0.05, 1, 50)]
    assert rates == sorted(rates, reverse=True)


def test_schedule_scales_each_group_by_progress():
    class Scaled(SimCLR):
        def parameter_groups(self, progress: float) -> list[dict]:
            one, two = super().parameter_groups(progress)
            return [one | {"lr_scale": 0.1, "weight_decay_scale": 1 + progress}, two | {"lr_scale": 1 - progress}]

    task = Scaled(tiny_encoder(), two_views(), hidden=8, width=8)
    recipe = tiny_recipe(task.views, learning_rate=2.0, weight_decay=0.3, warmup=0.1)
    optimiser = make_optimiser(groups_of(task, 0.3), "sgd", 2.0)
    assert schedule(optimiser, task, 0.55, recipe) == pytest.approx(1.0)
    got = [(g["lr"], g["weight_decay"]) for g in optimiser.param_groups]
    assert got[0] == pytest.approx((0.1, 0.3 * 1.55)) and got[1] == pytest.approx((0.45, 0.0))


def test_a_step_of_muon_is_the_gradient_with_all_directions_made_equal():
    """Against the singular value decomposition, whose singular values Newton and Schulz's steps bring near 1; its root
    mean square is 0.2, as of AdamW's step (Liu et al., 2025)."""
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.zeros(24, 8, 3, 3)), nn.Parameter(torch.zeros(24))
    weight.grad, bias.grad = torch.randn(24, 8, 3, 3) * torch.logspace(-2, 0, 24)[:, None, None, None], torch.ones(24)
    gradient = weight.grad.clone().flatten(1)
    make_optimiser([{"params": [weight, bias], "weight_decay": 0.0}], "muon", 0.01).step()
    step = -weight.detach().flatten(1)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    turned = left.T @ step @ right.T / (0.01 * 0.2 * 72**0.5)  # diagonal, if no direction was turned
    assert turned.diag().min() > 0.6 and turned.diag().max() < 1.3
    assert (turned - turned.diag().diag()).abs().max() < 0.06
    # A first step of AdamW with Nesterov's momentum: (0.9 * 0.1 + 0.1) / 0.1 of the rate.
    assert torch.allclose(bias.detach(), torch.full((24,), -0.019))
