"""DINOv2's terms against loops and the numbers of others, masks that are functions of an item, and the anchor."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import default_objective, tiny_encoder, two_views
from test_swav import slow_sinkhorn, slow_swapped, views_of
from torch import Tensor

from selfsight.data.pixels import PixelFormat
from selfsight.errors import SelfsightError
from selfsight.objectives.dinov2 import DINOv2, gram_loss, hidden_patches, ibot_loss, koleo
from selfsight.views.masks import as_mask


def slow_ibot(scores: Tensor, targets: Tensor, masks: list[list[int]], temperature: float) -> float:
    """Zhou et al. 2022, equation 2: the mean over the hidden patches of a crop, then over crops, in Python floats."""
    crops = []
    for s, t, mask in zip(scores, targets, masks, strict=True):
        losses = []
        for i in (i for i, hidden in enumerate(mask) if hidden):
            x = [float(v) / temperature for v in s[i]]
            below = math.log(math.fsum(math.exp(v) for v in x))
            losses.append(-math.fsum(float(q) * (v - below) for q, v in zip(t[i], x, strict=True)))
        crops.append(math.fsum(losses) / len(losses) if losses else 0.0)
    return math.fsum(crops) / len(crops)


def slow_koleo(features: Tensor) -> float:
    """Sablayrolles et al. 2019, equation 2, of each view, with the authors' 1e-8."""
    total = 0.0
    for view in features:
        rows = [[float(x) / float(row.norm()) for x in row] for row in view]
        logs = []
        for i, a in enumerate(rows):
            near = min(math.dist(a, b) for j, b in enumerate(rows) if j != i)
            logs.append(math.log(near + 1e-8))
        total -= math.fsum(logs) / len(logs)
    return total


def slow_gram(x: Tensor, y: Tensor) -> float:
    """The mean over items and ordered pairs of patches of the squared difference of their cosines."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / a.norm() / b.norm())

    n = x.shape[1]
    pairs = [(b, i, j) for b in range(len(x)) for i in range(n) for j in range(n)]
    return math.fsum((cosine(x[b, i], x[b, j]) - cosine(y[b, i], y[b, j])) ** 2 for b, i, j in pairs) / len(pairs)


def slope(loss, at: Tensor, index: tuple[int, ...]) -> float:
    step = torch.zeros_like(at)
    step[index] = 1e-5
    return float(loss(at + step) - loss(at - step)) / 2e-5


def small(**options: Any) -> DINOv2:
    # With small crops, as the rules for a GPU have it, unless "cpu" is asked for.
    task = default_objective("dinov2", **{"device": "cuda", "prototypes": 6, "hidden": 16, "bottleneck": 8} | options)
    assert isinstance(task, DINOv2)
    return task


FACTS = SimpleNamespace(items=1000, side=32, format=PixelFormat("RGB", 8), device="cpu", processes=1, start=None)
MASKS = [[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]]


def test_ibot_and_its_gradient_equal_the_loop():
    scores = torch.rand(4, 3, 5, dtype=torch.float64) * 2 - 1
    targets = torch.rand(4, 3, 5, dtype=torch.float64).softmax(2)
    free = scores.float().requires_grad_()
    loss = ibot_loss(free, targets, torch.tensor(MASKS).float(), 0.1)
    assert loss.item() == pytest.approx(slow_ibot(scores, targets, MASKS, 0.1), abs=2e-5)
    loss.backward()
    for index in [(0, 0, 0), (0, 2, 1), (2, 1, 3)]:
        wanted = slope(lambda s: slow_ibot(s, targets, MASKS, 0.1), scores, index)
        assert free.grad[index].item() == pytest.approx(wanted, abs=2e-5)


def test_ibots_golden_value():
    # The authors' iBOTPatchLoss, temperatures 0.1 and 0.2, three crops of which two, one and no patches are hidden:
    # 0.4057, which lightly's tests (MIT, tests/loss/test_ibot_loss.py) quote; peers.md, E.2.
    teacher = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0, 0]], [[0, 0], [0, 0]]])
    student = torch.tensor([[[0.7, 0.8], [0.9, 1.0]], [[1.1, 1.2], [0, 0]], [[0, 0], [0, 0]]])
    counts = torch.tensor([[1.0, 1], [1, 0], [0, 0]])
    assert ibot_loss(student, (teacher / 0.1).softmax(2), counts, 0.2).item() == pytest.approx(0.4057, rel=1e-4)


def test_koleo_and_its_gradient_equal_the_loop():
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    free = x.float().requires_grad_()
    loss = koleo(free)
    assert loss.item() == pytest.approx(slow_koleo(x), abs=1e-5)
    loss.backward()
    for index in [(0, 0, 0), (1, 5, 3), (0, 3, 2)]:
        assert free.grad[index].item() == pytest.approx(slope(slow_koleo, x, index), abs=1e-4)


def test_koleos_golden_values():
    # Of the authors' code; lightly's tests (MIT, tests/loss/test_koleo_loss.py) quote them; peers.md, E.2.
    six = [[0.0, 1], [1, 0], [1, 1], [-1, 0], [0, -1], [-1, -1]]
    for points, wanted in (
        ([[0.0, 1], [0, -1]], -math.log(2)),
        ([[0.0, 1], [1, 0]], -math.log(2) / 2),
        (six, 0.2674),
    ):
        assert koleo(torch.tensor([points])).item() == pytest.approx(wanted, rel=1e-4)
        assert koleo(torch.tensor([points, points]) * 3).item() == pytest.approx(2 * wanted, rel=1e-4)  # a sum of views


def test_koleo_of_one_sample_is_refused_and_of_equal_ones_finite():
    with pytest.raises(ValueError, match="at least 2 samples"):
        koleo(torch.ones(2, 1, 3))
    same = torch.ones(1, 4, 3, requires_grad=True)
    loss = koleo(same)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8), rel=1e-3) and torch.isfinite(same.grad).all()


def test_gram_and_its_gradient_equal_the_loop():
    x, y = torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    free = x.float().requires_grad_()
    loss = gram_loss(free, y)
    assert loss.item() == pytest.approx(slow_gram(x, y), abs=1e-5)
    loss.backward()
    for index in [(0, 0, 0), (1, 3, 4)]:
        assert free.grad[index].item() == pytest.approx(slope(lambda s: slow_gram(s, y), x, index), abs=2e-5)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert gram_loss(x, 2 * x @ turn).item() == pytest.approx(0.0, abs=1e-10)  # only cosines matter


@pytest.mark.parametrize("loss", [koleo, lambda x: gram_loss(x, x.flip(0)), lambda x: ibot_loss(x, x, x[..., 0], 0.1)])
def test_float32_inside_under_bf16(loss):
    x = torch.rand(2, 16, 32)
    wanted = loss(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(x)
    assert got.dtype == torch.float32 and got.item() == wanted.item()


def test_masks_have_the_shares_that_were_asked_for():
    view, index, counts = hidden_patches(torch.rand(4000, 2 + 64), 2, 64)
    assert index.shape == counts.shape == (4000, 32)
    assert abs(view.float().mean() - 0.5) < 0.03  # half of the crops
    share = counts.sum(1) / 64
    assert share.min() >= 0.09 and share.max() <= 0.5 and abs(share.mean() - 0.3) < 0.01
    assert all(len(set(row.tolist())) == 32 for row in index[:50])
    hidden = as_mask(index, 64).float().mean(0)
    assert (hidden - 0.5).abs().max() < 0.05  # no place is preferred


def test_masks_are_functions_of_the_item():
    draws = torch.rand(8, 2 + 16)
    whole = hidden_patches(draws, 2, 16)
    for half in (slice(0, 4), slice(4, 8)):
        for mine, its in zip(hidden_patches(draws[half], 2, 16), whole, strict=True):
            assert torch.equal(mine, its[half])
    task = small().eval()
    views = views_of(task)
    first, second = task(views, 0.5).total.item(), task(views, 0.5).total.item()
    assert first == second  # nothing else is drawn
    assert views[0].draws is not None
    views[0].draws = views[0].draws.flip(1)
    assert task(views, 0.5).total.item() != first


@pytest.mark.parametrize("device, size, large", [("cuda", 32, 2), ("cpu", 64, 4)])
def test_the_objective_is_the_sum_of_its_terms(device: str, size: int, large: int):
    task = small(device=device, size=size).eval()
    assert task.large == large and task.patches == 16
    for p in task.teacher.parameters():
        p.data += 0.01 * torch.randn_like(p)
    views = views_of(task)
    task.teacher_temperature = 0.07  # in the middle of whose rise this is
    got = task(views, 0.15)
    task.token.data.normal_()
    assert task(views, 0.15).parts["ibot"] != got.parts["ibot"]  # what is hidden is replaced by the token
    got = task(views, 0.15)
    view, index, counts = hidden_patches(views[0].draws, large, 16)
    teacher, t_head, t_prototypes, t_patch_head, t_patch_prototypes = task.teacher.copies
    with torch.no_grad():
        masks = torch.zeros(large, 4, 16, dtype=torch.bool)
        for b in range(4):
            for j in range(8):
                masks[view[b], b, index[b, j]] |= bool(counts[b, j])
        seen = [task.encoder(v.pixels, replace=(m, task.token)) for v, m in zip(views[:large], masks, strict=True)]
        full = [teacher(v.pixels) for v in views[:large]]
        pooled = torch.stack([f.pooled for f in seen])
        small_ones = [task.encoder(v.pixels).pooled for v in views[large:]]
        z = torch.stack([task.head(rows) for rows in [*pooled, *small_ones]])
        said = torch.stack([t_prototypes(t_head(f.pooled)) for f in full])
        targets = slow_sinkhorn(said.flatten(0, 1), 0.055, 3)
        dino = slow_swapped(task.prototypes(z), [targets[i : i + 4] for i in range(0, len(targets), 4)], 0.1)
        # every hidden patch of the batch once: its scores by the student, and by the teacher, which sees all
        where = [(v, b, n) for v in range(large) for b in range(4) for n in range(16) if masks[v, b, n]]
        mine = torch.stack([task.patch_head(seen[v].patches[b, n][None])[0] for v, b, n in where])
        its = torch.stack([t_patch_head(full[v].patches[b, n][None])[0] for v, b, n in where])
        codes = torch.tensor(slow_sinkhorn(t_patch_prototypes(its), 0.055, 3))
        scores = task.patch_prototypes(mine)
        crops = [[i for i, at in enumerate(where) if at[:2] == (v, b)] for v in range(large) for b in range(4)]
        ibot = (
            sum(slow_ibot(scores[i][None], codes[i][None], [[1] * len(i)], 0.1) for i in crops if i) / 8
        )  # as of two views
    spread = slow_koleo(pooled) * 2 / large
    for name, wanted in (("dino", dino), ("ibot", ibot), ("koleo", spread)):
        assert got.parts[name].item() == pytest.approx(wanted, abs=2e-4), name
    assert got.total.item() == pytest.approx(dino + ibot + 0.1 * spread, abs=4e-4)
    assert torch.allclose(got.embeddings, z, atol=1e-4) and not got.embeddings.requires_grad
    assert got.assignments is not None and torch.allclose(got.assignments, torch.tensor(targets), atol=1e-4)


def test_the_teacher_follows_all_parts_and_gets_no_gradient():
    task = small(momentum=0.9).train()
    before = [p.clone() for p in task.teacher.parameters()]
    task(views_of(task), 0.0).total.backward()
    for name, p in task.named_parameters():
        assert (p.grad is not None) == p.requires_grad == (not name.startswith("teacher")), name
        if p.requires_grad:
            p.data += 0.1
    for prototypes in (task.prototypes, task.patch_prototypes):
        assert (prototypes.weight.grad == 0).all()  # in the first 5 %
    task.teacher.last.fill_(0.25)
    task.after_step(0.5)
    students = [p for module in task._followed() for p in module.parameters()]
    for was, now, student in zip(before, task.teacher.parameters(), students, strict=True):
        assert torch.allclose(now, 0.5**9 * was + (1 - 0.5**9) * student, atol=1e-6)
    assert task.trained is task.teacher.copies[0]


def test_the_anchor_is_the_teacher_of_its_time():
    task = small(gram=2.0, gram_from=0.4, momentum=0.5)
    views = views_of(task)
    task.after_step(0.3)
    assert not task.anchored and "gram" not in task(views, 0.3).parts
    task.encoder.net.cls_token.data += 1.0
    task.after_step(0.4)
    taken = {k: v.clone() for k, v in task.anchor.state_dict().items()}
    assert task.anchored and torch.equal(taken["net.cls_token"], task.trained.net.cls_token)
    task.encoder.net.patch_embed.proj.weight.data.normal_()
    task.after_step(0.5)  # and stays as it was
    assert all(torch.equal(v, taken[k]) for k, v in task.anchor.state_dict().items())
    loss = task.eval()(views, 0.5)
    rest = sum(weight * loss.parts[name].item() for name, weight in (("dino", 1.0), ("ibot", 1.0), ("koleo", 0.1)))
    assert loss.total.item() == pytest.approx(rest + 2.0 * loss.parts["gram"].item(), abs=1e-4)
    assert loss.parts["gram"] > 0
    loss.total.backward()
    assert all(p.grad is None for p in task.anchor.parameters())
    other = small(gram=2.0, gram_from=0.4)
    other.load_state_dict(task.state_dict())
    assert other.anchored and torch.equal(other.anchor.net.cls_token, task.anchor.net.cls_token)


def test_views_without_enough_numbers_are_refused():
    with pytest.raises(SelfsightError, match="draws: 18"):
        DINOv2(tiny_encoder(name="vit_tiny_patch16_224"), two_views(32))


@pytest.mark.parametrize("size, patch", [(32, 8), (48, 6), (96, 12), (128, 16)])
def test_small_views_are_of_whole_patches(size: int, patch: int):
    recipe = {"encoder": "vit_tiny_patch16_224", "encoder_args": {"patch_size": patch}, "size": size}
    plan, _ = DINOv2.rules["views"](SimpleNamespace(**vars(FACTS) | {"device": "cuda"}), recipe)
    large, little = plan.groups
    assert large.draws == 2 + (size // patch) ** 2 and little.size % patch == 0 and little.size <= size // 2
    plan, _ = DINOv2.rules["views"](FACTS, recipe)
    first, *rest = plan.groups
    assert first.size == (size if size == 32 else little.size) and len(rest) == (size == 32)  # 16 px are 2 x 2 patches
    assert first.draws == 2 + (first.size // patch) ** 2
