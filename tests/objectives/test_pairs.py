"""BYOL, SimSiam and MoCo against loops over pairs of views, closed forms, and where gradients may go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import batch_of, default_objective, picture
from torch import Tensor

from selfsight.data.geometry import Geometry
from selfsight.objectives.byol import cross_view_distance
from selfsight.objectives.moco import info_nce
from selfsight.objectives.objective import EMATeacher
from selfsight.objectives.simsiam import negative_cosine
from selfsight.views.make import View, make_views

HALF = Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3)
SHAPES = [(2, 2, 3), (2, 7, 5), (4, 5, 6)]


def unit(row: Tensor) -> Tensor:
    return row / row.square().sum().sqrt()


def slow_distance(p: Tensor, t: Tensor) -> Tensor:
    """Equation 2 of BYOL for one pair and direction after the other; two views give the published sum of both."""
    views, batch, _ = p.shape
    pairs = [(v, w) for v in range(views) for w in range(views) if v != w]
    terms = [(unit(p[v, i]) - unit(t[w, i])).square().sum() for v, w in pairs for i in range(batch)]
    return 2 * torch.stack(terms).mean()


def slow_cosine(p: Tensor, t: Tensor) -> Tensor:
    """Equation 2 of SimSiam: half the negative cosine of each direction, summed over the two of a pair."""
    views, batch, _ = p.shape
    pairs = [(v, w) for v in range(views) for w in range(v)]
    both = [unit(p[v, i]) @ unit(t[w, i]) + unit(p[w, i]) @ unit(t[v, i]) for v, w in pairs for i in range(batch)]
    return -torch.stack(both).mean() / 2


def slow_info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Algorithm 1 of MoCo v3: ctr(q1, k2) + ctr(q2, k1), each 2 tau times a cross-entropy."""
    views, batch, _ = q.shape
    terms = []
    for v in range(views):
        for w in range(views):
            if v != w:
                for i in range(batch):
                    scores = torch.stack([unit(q[v, i]) @ unit(k[w, j]) / temperature for j in range(batch)])
                    terms.append(2 * temperature * (scores.exp().sum().log() - scores[i]))
    return 2 * torch.stack(terms).mean()


LOSSES = {
    "byol": (cross_view_distance, slow_distance),
    "simsiam": (negative_cosine, slow_cosine),
    "moco": (lambda q, k: info_nce(q, k, 0.3), lambda q, k: slow_info_nce(q, k, 0.3)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_equal_the_slow_reference(name: str, shape: tuple[int, int, int]):
    fast, slow = LOSSES[name]
    one, target = torch.randn(shape, requires_grad=True), torch.randn(shape, requires_grad=True)
    other = one.detach().double().requires_grad_()
    got, wanted = fast(one, target), slow(other, target.detach().double())
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    got.backward()
    wanted.backward()
    assert torch.allclose(one.grad.double(), other.grad, atol=1e-6)
    assert target.grad is None  # nothing flows into a target


def test_closed_forms():
    e = torch.eye(4)
    same = torch.stack([e, e])
    assert cross_view_distance(same, 3 * same).item() == pytest.approx(0.0, abs=1e-6)
    assert cross_view_distance(same, -same).item() == pytest.approx(8.0)
    assert cross_view_distance(same, same.roll(1, 1)).item() == pytest.approx(4.0)
    assert negative_cosine(same, same).item() == pytest.approx(-1.0)
    collapsed = torch.ones(2, 6, 3)
    assert info_nce(collapsed, collapsed, 0.2).item() == pytest.approx(0.8 * math.log(6))  # chance
    sure = 0.8 * math.log(1 + 3 * math.exp(-1 / 0.2))
    assert info_nce(same, same, 0.2).item() == pytest.approx(sure, rel=1e-5)


def test_equals_lightly():
    # lightly 1.6.0 (MIT), NegativeCosineSimilarity on these rows: -0.101899 (peers.md, section E.2).
    torch.manual_seed(0)
    a, b = torch.randn(8, 16), torch.randn(8, 16)
    assert negative_cosine(torch.stack([a, b]), torch.stack([a, b])).item() == pytest.approx(-0.101899, abs=1e-5)


@pytest.mark.parametrize("loss", [cross_view_distance, negative_cosine, lambda q, k: info_nce(q, k, 0.2)])
def test_one_view_or_one_sample_is_refused(loss):
    for shape in ((1, 4, 3), (2, 1, 3)):
        with pytest.raises(ValueError, match="at least 2 views and 2 samples"):
            loss(torch.randn(shape), torch.randn(shape))


def views_of(task) -> list[View]:
    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, 32, 32) for _ in range(6)], [f"{i * 7919:016x}{0:016x}" for i in range(6)])
    return make_views(batch, task.views, HALF, 0)


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_the_teacher_has_no_gradient_and_follows_by_the_formula(name: str):
    task = default_objective(name, momentum=0.9)
    teacher = task.target if name == "byol" else task.teacher
    task(views_of(task), 0.0).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in task.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p))
    mine = [*task.encoder.parameters(), *task.projector.parameters()]
    teacher.last.fill_(0.5)  # long after the beginning
    task.after_step(0.5)  # half way the momentum is half way from 0.9 to 1
    for old, new, own in zip(before, teacher.parameters(), mine, strict=True):
        assert torch.allclose(new, 0.95 * old + 0.05 * own, atol=1e-6)
    state = {k: v.clone() for k, v in task.state_dict().items()}
    fresh = default_objective(name, momentum=0.9)
    fresh.load_state_dict(state)
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), task.parameters(), strict=True))


@pytest.mark.parametrize("steps", [2, 50, 5000])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_a_follower_remembers_a_tenth_of_its_steps_and_no_more_than_its_momentum_says(steps: int, progress: float):
    layer = torch.nn.Linear(2, 2)
    teacher = EMATeacher(layer, base=0.99)
    before = teacher.copies[0].weight.clone()
    teacher.last.fill_(progress - progress / steps)
    with torch.no_grad():
        layer.weight.add_(1.0)
    teacher.follow((layer,), progress)
    momentum = min((1 - 1 / steps) ** 9, {0.0: 0.0, 0.5: 0.995, 1.0: 1.0}[progress])
    assert torch.allclose(teacher.copies[0].weight, before + 1 - momentum, atol=1e-5)
    assert teacher.last.item() == progress


def test_a_teacher_of_a_short_run_is_a_mean_over_its_last_tenth():
    """The student of step t counts as t ** 8. By a momentum of 0.99 and up, six tenths would be the random weights."""
    layer = torch.nn.Linear(1, 1, bias=False)
    teacher = EMATeacher(layer, base=0.99)
    teacher.copies[0].weight.data.fill_(1e9)
    for step in range(100):
        layer.weight.data.fill_(step)
        teacher.follow((layer,), step / 100)
    assert teacher.copies[0].weight.item() == pytest.approx(0.9 * 99, abs=1.0)


def test_the_teacher_of_an_extension_follows_by_its_momentum():
    """By the progress of the extension it would be the student of its second step."""
    layer = torch.nn.Linear(1, 1, bias=False)
    teacher, progress = EMATeacher(layer, base=0.99), [step / 100 for step in range(100)]
    layer.weight.data.fill_(0.0)
    for at in progress:
        teacher.follow((layer,), at)
    layer.weight.data.fill_(1.0)
    left = 1.0
    for at in progress[:50]:
        teacher.follow((layer,), at)
        left *= 1 - 0.01 * (math.cos(math.pi * at) + 1) / 2
    assert teacher.copies[0].weight.item() == pytest.approx(1 - left, abs=1e-4)
