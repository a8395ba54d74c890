"""DINO against a loop over algorithm 1, closed forms, and a centre and teacher that move by their formulas."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers import default_objective, tiny_encoder, two_views
from test_swav import slow_sinkhorn, slow_swapped, views_of
from torch import Tensor

from selfsight.objectives.dino import DINO, dino_targets, teacher_temperature
from selfsight.objectives.prototypes import swapped_prediction


def slow_targets(scores: Tensor, centre: Tensor, temperature: float) -> list[list[list[float]]]:
    """The teacher's part of algorithm 1, in Python floats."""
    out = []
    for view in scores:
        rows = []
        for row in view:
            e = [math.exp((float(x) - float(c)) / temperature) for x, c in zip(row, centre, strict=True)]
            rows.append([x / math.fsum(e) for x in e])
        out.append(rows)
    return out


def small(encoder: str = "resnet18", **options: Any) -> DINO:
    options = {
        "prototypes": 6,
        "hidden": 16,
        "bottleneck": 8,
        "centring": "mean",
        "teacher_temperature": 0.04,
    } | options
    task = default_objective(
        "dino", encoder, device="cuda", **options
    )  # with small crops, as the rules for a GPU have it
    assert isinstance(task, DINO)
    return task


@pytest.mark.parametrize("views, large, batch, count", [(2, 2, 2, 3), (6, 2, 5, 4), (3, 1, 4, 8)])
def test_the_loss_equals_the_loops(views: int, large: int, batch: int, count: int):
    teacher = torch.rand(large, batch, count, dtype=torch.float64) * 2 - 1
    student = torch.rand(views, batch, count, dtype=torch.float64) * 2 - 1
    centre = torch.randn(count, dtype=torch.float64) * 0.1
    wanted = slow_targets(teacher, centre, 0.04)
    got = dino_targets(teacher, centre, 0.04)
    assert torch.allclose(got, torch.tensor(wanted), atol=1e-5)
    assert swapped_prediction(student, got, 0.1).item() == pytest.approx(slow_swapped(student, wanted, 0.1), abs=2e-5)


def test_the_gradient_equals_finite_differences():
    student = torch.rand(4, 3, 5, dtype=torch.float64) * 2 - 1
    targets = slow_targets(torch.rand(2, 3, 5) * 2 - 1, torch.zeros(5), 0.07)
    free = student.float().requires_grad_()
    swapped_prediction(free, torch.tensor(targets), 0.1).backward()
    for index in [(0, 0, 0), (1, 2, 3), (3, 1, 4)]:
        step = torch.zeros_like(student)
        step[index] = 1e-5
        slope = (slow_swapped(student + step, targets, 0.1) - slow_swapped(student - step, targets, 0.1)) / 2e-5
        assert free.grad[index].item() == pytest.approx(slope, abs=2e-5)


def test_golden_value():
    # DINOv2's image loss, which is DINO's, on these rows at temperatures 0.04 and 0.1 is 1.5565 as a sum over the four
    # pairs of two views each (peers.md, E.2); every pair has the same part, so that ours, the mean, is a quarter.
    teacher = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]).expand(2, -1, -1)
    student = torch.tensor([[0.7, 0.8], [0.9, 1.0], [1.1, 1.2]]).expand(2, -1, -1)
    targets = dino_targets(teacher, torch.zeros(2), 0.04)
    assert swapped_prediction(student, targets, 0.1).item() == pytest.approx(1.5565 / 4, abs=2e-5)


def test_equal_views_at_equal_temperatures_give_the_entropy():
    scores = torch.rand(1, 5, 7).repeat(3, 1, 1)
    p = dino_targets(scores[:2], torch.zeros(7), 0.1)
    entropy = torch.special.entr(p).sum(2).mean().item()
    assert swapped_prediction(scores, p, 0.1).item() == pytest.approx(entropy, abs=1e-5)
    assert swapped_prediction(torch.zeros(2, 5, 7), p, 0.1).item() == pytest.approx(math.log(7), abs=1e-5)


def test_a_centre_of_all_scores_alike_makes_targets_uniform():
    scores = torch.randn(6).expand(2, 5, 6)
    assert torch.allclose(dino_targets(scores, scores[0, 0], 0.04), torch.full((2, 5, 6), 1 / 6), atol=1e-6)


def test_the_teachers_temperature_rises_and_stays():
    got = [teacher_temperature(0.07, p) for p in (0.0, 0.15, 0.3, 1.0)]
    assert got == pytest.approx([0.04, 0.055, 0.07, 0.07])
    assert teacher_temperature(0.02, 0.0) == teacher_temperature(0.02, 1.0) == pytest.approx(0.02)


def test_float32_inside_under_bf16():
    scores = torch.randn(2, 16, 32)
    wanted = dino_targets(scores, torch.zeros(32), 0.04)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = dino_targets(scores, torch.zeros(32), 0.04)
    assert got.dtype == torch.float32 and torch.equal(got, wanted)


@pytest.mark.parametrize("encoder", ["resnet18", "vit_tiny_patch16_224"])
def test_the_objective_is_the_loss_of_its_student_and_teacher(encoder: str):
    task = small(encoder).eval()  # eval: views may pass one by one
    views = views_of(task)
    for p in task.teacher.parameters():
        p.data += 0.01 * torch.randn_like(p)
    task.centre.normal_().mul_(0.1)
    task.teacher_temperature = 0.07  # in the middle of whose rise this is
    got = task(views, 0.15)
    t_encoder, t_head, t_prototypes = task.teacher.copies
    said = torch.stack([t_prototypes(t_head(t_encoder(v.pixels).pooled)) for v in views[: task.large]])
    z = torch.stack([task.head(task.encoder(v.pixels).pooled) for v in views]).detach()
    targets = slow_targets(said, task.centre, 0.055)
    wanted = slow_swapped(task.prototypes(z), targets, 0.1)
    assert got.total.item() == pytest.approx(wanted, abs=1e-4) and got.parts["dino"].item() == got.total.item()
    assert torch.allclose(got.embeddings, z, atol=1e-5) and not got.embeddings.requires_grad
    assert got.assignments is not None
    assert torch.allclose(got.assignments, torch.tensor(targets).flatten(0, 1), atol=1e-4)


def test_centred_by_sinkhorn_each_view_has_codes_of_its_own():
    task = small(centring="sinkhorn", teacher_temperature=0.07).eval()
    views = views_of(task)
    got = task(views, 0.15)
    t_encoder, t_head, t_prototypes = task.teacher.copies
    targets = []
    for view in views[: task.large]:
        targets.append(slow_sinkhorn(t_prototypes(t_head(t_encoder(view.pixels).pooled)), 0.055, 3))
    z = torch.stack([task.head(task.encoder(v.pixels).pooled) for v in views]).detach()
    assert got.total.item() == pytest.approx(slow_swapped(task.prototypes(z), targets, 0.1), abs=1e-3)
    assert got.assignments is not None
    assert torch.allclose(got.assignments, torch.tensor(targets).flatten(0, 1), atol=1e-3)


@pytest.mark.parametrize("centring, weight", [("mean", 0.05), ("sinkhorn", 1 - 0.5**9)])
def test_a_teacher_without_a_running_centre_forgets_its_random_weights(centring: str, weight: float):
    task = small(centring=centring, momentum=0.9)
    teacher, student = (next(net.parameters()) for net in (task.teacher.copies[0], task.encoder))
    task.teacher.last.fill_(0.25)
    was, student.data = teacher.clone(), student.data + 1.0
    task.after_step(0.5)
    assert torch.allclose(teacher, was + weight * (student - was), atol=1e-6)


def test_the_rules_choose_a_teacher_without_a_running_centre():
    task = default_objective("dino")
    assert isinstance(task, DINO) and task.centring == "sinkhorn" and not task.teacher.slow and task.large == 4


def test_the_centre_moves_by_the_formula_and_is_part_of_the_state():
    task = small()
    task.centre.normal_()
    before = task.centre.clone()
    task(views_of(task), 0.5)
    task.train()(views_of(task), 0.5)
    t_encoder, t_head, t_prototypes = copy.deepcopy(task.teacher.copies).train()
    pixels = torch.cat([v.pixels for v in views_of(task)[: task.large]])
    mean = t_prototypes(t_head(t_encoder(pixels).pooled)).mean(0)
    task.after_step(0.5)
    assert torch.allclose(task.centre, 0.9 * before + 0.1 * mean, atol=1e-5)
    other = small()
    other.load_state_dict(task.state_dict())
    assert torch.equal(other.centre, task.centre) and not torch.equal(other.centre, torch.zeros(6))


def test_the_teacher_follows_by_the_formula_without_gradients():
    task = small(momentum=0.9).train()
    before = copy.deepcopy(task.teacher.copies)
    loss = task(views_of(task), 0.25)
    loss.total.backward()
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    for p in task.parameters():
        if p.requires_grad:
            assert p.grad is not None
            p.data -= 0.1 * p.grad
    task.after_step(0.25)
    momentum = 1 - 0.1 * (math.cos(math.pi * 0.25) + 1) / 2
    for old, new, mine in zip(before, task.teacher.copies, [task.encoder, task.head, task.prototypes], strict=True):
        for was, now, student in zip(old.parameters(), new.parameters(), mine.parameters(), strict=True):
            assert torch.allclose(now, momentum * was + (1 - momentum) * student, atol=1e-6)
    assert task.trained is task.teacher.copies[0] and task.trained is not task.encoder


def test_prototypes_have_no_gradient_to_follow_at_first():
    task = small().train()
    for progress, still in ((0.0, True), (0.049, True), (0.05, False)):
        task.zero_grad()
        task(views_of(task), progress).total.backward()
        grad = task.prototypes.weight.grad
        assert grad is not None and bool((grad == 0).all()) == still


@pytest.mark.parametrize("views, items", [(1, 4), (2, 1)])
def test_one_view_or_one_sample_is_refused(views: int, items: int):
    task = DINO(tiny_encoder(), two_views(32), prototypes=6, hidden=16, bottleneck=8).eval()
    with pytest.raises(ValueError, match="at least 2 views and 2 samples"):
        task(views_of(task, items)[:views], 0.5)
