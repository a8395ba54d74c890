"""Sinkhorn's codes and the swapped prediction against loops, closed forms, and prototypes that stand still at first."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import batch_of, default_objective, make_batches, picture, tiny_encoder, train, two_views, write_folder
from torch import Tensor

from selfsight.data.geometry import Geometry
from selfsight.objectives.objective import Objective
from selfsight.objectives.prototypes import (
    FROZEN,
    Prototypes,
    cosines,
    prototype_count,
    sinkhorn,
    swapped_prediction,
)
from selfsight.objectives.swav import SwAV, swav_loss
from selfsight.training.recipe import Budget
from selfsight.views.make import View, make_views

Rows = list[list[float]]


def slow_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Rows:
    """Caron et al. 2020, section 3.1, in Python floats, with the masses that the paper names: Q starts as
    exp(scores / epsilon) over its sum; each prototype is brought to 1 / K, then each sample to 1 / B."""
    batch, count = scores.shape
    q = [[math.exp(float(x) / epsilon) for x in row] for row in scores]
    total = math.fsum(math.fsum(row) for row in q)
    q = [[x / total for x in row] for row in q]
    for _ in range(iterations):
        for k in range(count):
            mass = math.fsum(row[k] for row in q)
            for row in q:
                row[k] /= mass * count
        for b in range(batch):
            mass = math.fsum(q[b])
            q[b] = [x / (mass * batch) for x in q[b]]
    return [[x * batch for x in row] for row in q]


def slow_swapped(scores: Tensor, targets: list[Rows], temperature: float) -> float:
    """Equations 1 and 2, and multi-crop's equation 6, as a loop over codes, predictions and items."""
    views, batch, count = scores.shape
    losses = []
    for code in range(len(targets)):
        for view in range(views):
            if view == code:
                continue
            for b in range(batch):
                x = [float(s) / temperature for s in scores[view, b].detach()]
                below = math.log(math.fsum(math.exp(s) for s in x))
                losses.append(-math.fsum(targets[code][b][k] * (x[k] - below) for k in range(count)))
    return math.fsum(losses) / len(losses)


def views_of(task: Objective, count: int = 4, size: int = 32) -> list[View]:
    rng = np.random.default_rng(0)
    ids = [f"{i * 7919:016x}{0:016x}" for i in range(count)]
    batch = batch_of([picture(rng, size, size) for _ in range(count)], ids)
    return make_views(batch, task.views, Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), 0)


def cosine_scores(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("batch, count", [(2, 2), (7, 5), (4, 16)])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_sinkhorn_equals_the_loop(batch: int, count: int, epsilon: float):
    scores = cosine_scores(batch, count)
    for iterations in (1, 3):
        wanted = torch.tensor(slow_sinkhorn(scores, epsilon, iterations))
        assert torch.allclose(sinkhorn(scores, epsilon, iterations), wanted, atol=1e-5)


def test_sinkhorn_is_doubly_stochastic_in_the_end():
    codes = sinkhorn(cosine_scores(12, 5), 0.3, 100)
    assert torch.allclose(codes.sum(1), torch.ones(12), atol=1e-5)
    assert torch.allclose(codes.sum(0), torch.full((5,), 12 / 5), atol=1e-4)


def test_sinkhorn_of_collapsed_samples_is_uniform_and_of_a_permutation_itself():
    same = cosine_scores(1, 6).expand(9, -1)
    assert torch.allclose(sinkhorn(same, 0.05), torch.full((9, 6), 1 / 6), atol=1e-5)
    order = torch.randperm(8)
    assert torch.allclose(sinkhorn(torch.eye(8)[order], 0.05), torch.eye(8)[order], atol=1e-6)


def test_sinkhorn_does_not_overflow_nor_count_what_is_left_out():
    assert torch.isfinite(sinkhorn(1000 + cosine_scores(6, 4), 0.01)).all()
    scores, kept = cosine_scores(6, 4), torch.tensor([1.0, 0, 1, 1, 0, 1])
    codes = sinkhorn(scores, 0.1, kept=kept)
    assert torch.allclose(codes[kept.bool()], sinkhorn(scores[kept.bool()], 0.1), atol=1e-6)
    assert (codes[~kept.bool()] == 0).all()
    assert (sinkhorn(scores, 0.1, kept=torch.zeros(6)) == 0).all()


@pytest.mark.parametrize("views, large, batch, count", [(2, 2, 2, 3), (6, 2, 5, 4), (3, 1, 4, 8)])
def test_the_loss_equals_the_loops(views: int, large: int, batch: int, count: int):
    scores = cosine_scores(views, batch, count)
    codes = [slow_sinkhorn(view, 0.05, 3) for view in scores[:large]]
    loss, got = swav_loss(scores, large, 0.1, 0.05)
    assert loss.item() == pytest.approx(slow_swapped(scores, codes, 0.1), abs=2e-5)
    assert torch.allclose(got, torch.tensor(codes), atol=1e-5)


def test_the_gradient_equals_finite_differences_with_codes_held():
    scores = cosine_scores(4, 3, 5)
    codes = [slow_sinkhorn(view, 0.05, 3) for view in scores[:2]]
    free = scores.float().requires_grad_()
    swav_loss(free, 2, 0.1, 0.05)[0].backward()
    for index in [(0, 0, 0), (1, 2, 3), (3, 1, 4)]:
        step = torch.zeros_like(scores)
        step[index] = 1e-5
        slope = (slow_swapped(scores + step, codes, 0.1) - slow_swapped(scores - step, codes, 0.1)) / 2e-5
        assert free.grad[index].item() == pytest.approx(slope, abs=2e-5)


def test_values_in_closed_form():
    # Identity scores (peers.md, E.2): codes are one-hot, the loss is log(1 + (K - 1) exp(-1 / t)); collapsed: log K.
    loss, _ = swav_loss(torch.eye(8).expand(3, -1, -1), 2, 0.1, 0.05)
    assert loss.item() == pytest.approx(math.log(1 + 7 * math.exp(-10)), abs=1e-5) and loss < 0.5
    flat, codes = swav_loss(torch.zeros(2, 4, 16), 2, 0.1, 0.05)
    assert flat.item() == pytest.approx(math.log(16), abs=1e-5) and torch.allclose(codes, torch.tensor(1 / 16))


@pytest.mark.parametrize("shape", [(1, 8, 4), (2, 1, 4)])
def test_one_view_or_one_sample_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="at least 2 views and 2 samples"):
        swapped_prediction(torch.randn(shape), torch.rand(shape), 0.1)


def test_float32_inside_under_bf16():
    z, prototypes = torch.randn(2, 16, 32), torch.randn(8, 32)
    wanted = swav_loss(cosines(z, prototypes), 2, 0.1, 0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = swav_loss(cosines(z, prototypes), 2, 0.1, 0.05)
    assert got[0].dtype == torch.float32 and got[0].item() == wanted[0].item()


def test_the_objective_is_the_loss_of_its_projected_features():
    task = SwAV(tiny_encoder(), two_views(32), prototypes=6, hidden=16, width=8).eval()
    views = views_of(task)
    got = task(views, 0.5)
    z = torch.stack([task.projector(task.encoder(v.pixels).pooled) for v in views]).detach()
    scores = F.normalize(z, dim=2) @ F.normalize(task.prototypes.weight.detach(), dim=1).T
    wanted = slow_swapped(scores, [slow_sinkhorn(view, 0.03, 3) for view in scores], 0.1)
    assert got.total.item() == pytest.approx(wanted, abs=1e-4) and got.parts["swapped"].item() == got.total.item()
    assert torch.allclose(got.embeddings, z, atol=1e-5) and not got.embeddings.requires_grad
    assert got.assignments is not None and got.assignments.shape == (8, 6)
    assert torch.allclose(got.assignments.sum(1), torch.ones(8), atol=1e-5)


def test_small_views_predict_but_give_no_codes():
    task = default_objective("swav", device="cuda")
    assert [(g.count, g.size) for g in task.views.groups] == [(2, 32), (4, 16)]
    loss = task(views_of(task, 5), 0.5)
    assert loss.assignments is not None
    assert loss.embeddings.shape[:2] == (6, 5) and len(loss.assignments) == 2 * 5


def test_frozen_prototypes_have_a_gradient_of_zero():
    prototypes, z = Prototypes(5, 4), torch.randn(3, 4)
    assert torch.equal(prototypes(z, frozen=True), prototypes(z))
    prototypes(z, frozen=True).sum().backward()
    assert prototypes.weight.grad is not None and (prototypes.weight.grad == 0).all()
    prototypes(z).square().sum().backward()
    assert prototypes.weight.grad.abs().max() > 0


def test_prototypes_stand_still_at_first_then_move_on_the_sphere(tmp_path: Path):
    batches = make_batches(write_folder(tmp_path / "photos", 8), 4)
    task = SwAV(tiny_encoder(), two_views(), prototypes=6, hidden=16, width=8)
    start = task.prototypes.weight.detach().clone()
    seen: list[tuple[float, Tensor]] = []
    after = task.after_step

    def watch(progress: float) -> None:
        after(progress)
        seen.append((progress, task.prototypes.weight.detach().clone()))

    task.after_step = watch  # type: ignore[method-assign]
    train(task, batches, tmp_path / "run", budget=Budget(steps=40), warmup=0.0)
    assert sum(progress < FROZEN for progress, _ in seen) == 2
    for progress, weight in seen:
        assert torch.allclose(weight.norm(dim=1), torch.ones(6), atol=1e-6)
        if progress < FROZEN:  # but for the rounding of weight decay, which shortens them, and of bringing them back
            assert torch.allclose(weight, start, atol=1e-6)
    assert (seen[2][1] - start).abs().max() > 1e-4


def test_the_number_of_prototypes_follows_that_of_images():
    numbers = [prototype_count(n, 256)[0] for n in (1, 100, 1000, 4000, 10_000, 50_000, 10**7)]
    assert numbers == sorted(numbers) and numbers[0] == 64 and numbers[-1] == 1024
    assert prototype_count(4096, 256)[0] == 256


@pytest.mark.parametrize("batch, count", [(2, 8), (16, 64), (64, 64)])
def test_a_small_batch_has_few_prototypes_and_the_reason_says_so(batch: int, count: int):
    options, reason = SwAV.rules["objective_options"](SimpleNamespace(items=1000), {"batch_size": batch})
    assert options["prototypes"] == count and reason.startswith(f"{count}: ")
    assert ("per image of a batch" in reason) == (batch == 2)
