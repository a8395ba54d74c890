"""I-JEPA against loops over items, patches and dimensions; which patches are whose; the teacher."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import batch_of, default_objective, picture, tiny_encoder
from torch import Tensor

from selfsight.data.geometry import Geometry
from selfsight.errors import SelfsightError
from selfsight.objectives.ijepa import IJEPA, choose, sizes, smooth_l1, standardised
from selfsight.views.make import View, make_views
from selfsight.views.plan import ViewGroup, ViewPlan

TARGETS = [[3, 4], [3, 3], [4, 3], [4, 3]]


def slow_loss(prediction: Tensor, target: Tensor) -> float:
    """In Python floats: the target less its mean over its deviation, then half the square below 1, else |d| - 1/2."""
    terms = []
    for b in range(len(target)):
        for n in range(target.shape[1]):
            values = target[b, n].tolist()
            mean = math.fsum(values) / len(values)
            std = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values) + 1e-5)
            for guess, x in zip(prediction[b, n].tolist(), values, strict=True):
                d = abs(guess - (x - mean) / std)
                terms.append(d * d / 2 if d < 1 else d - 0.5)
    return math.fsum(terms) / len(terms)


def slow_standardised(patches: Tensor) -> Tensor:
    """In Python floats: of each image and dimension, less the mean over patches and over their deviation."""
    out = torch.empty_like(patches)
    for b in range(len(patches)):
        for d in range(patches.shape[2]):
            values = patches[b, :, d].tolist()
            mean = math.fsum(values) / len(values)
            std = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values) + 1e-5)
            out[b, :, d] = torch.tensor([(x - mean) / std for x in values])
    return out


def some(channels: int = 3, count: int = 4) -> tuple[IJEPA, View]:
    task = default_objective("ijepa", channels=channels).eval()
    rng = np.random.default_rng(0)
    pictures = [picture(rng, 32, 32, channels).reshape(32, 32, channels) for _ in range(count)]
    batch = batch_of(pictures, [f"{i * 7919:016x}{0:016x}" for i in range(count)])
    normalise = Geometry(channels, 32, (0.0, 255.0), (0.5,) * channels, (0.25,) * channels)
    (view,) = make_views(batch, task.views, normalise, 0)
    assert isinstance(task, IJEPA)
    return task, view


def chosen(task: IJEPA, view: View) -> tuple[Tensor, list[Tensor]]:
    return choose(view.draws, task.grid, task.targets, task.context, task.kept)


# -- the loss --


def test_equals_the_loops():
    prediction, target = torch.randn(3, 5, 7), 3 * torch.randn(3, 5, 7) + 1
    assert smooth_l1(prediction, target).item() == pytest.approx(slow_loss(prediction, target), rel=1e-5)


def test_gradient_equals_finite_differences():
    prediction, target = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    prediction[0, 0, 0] = 9.0  # on the straight part
    prediction.requires_grad_()
    smooth_l1(prediction, target).backward()
    exact = prediction.detach().double()
    for index in ((0, 0, 0), (0, 1, 2), (1, 2, 4)):
        step = torch.zeros_like(exact)
        step[index] = 1e-5
        slope = (slow_loss(exact + step, target) - slow_loss(exact - step, target)) / 2e-5
        assert prediction.grad[index].item() == pytest.approx(slope, abs=1e-6)


def test_closed_forms():
    target = torch.randn(3, 4, 16)
    normal = torch.nn.functional.layer_norm(target, (16,))
    assert smooth_l1(normal, target).item() == 0.0
    assert smooth_l1(normal + 0.5, target).item() == pytest.approx(0.125, rel=1e-4)
    assert smooth_l1(normal - 3.0, target).item() == pytest.approx(2.5, rel=1e-4)
    assert smooth_l1(normal, 5 * target + 2).item() == pytest.approx(0.0, abs=1e-6)  # scale and shift are taken away


def test_float32_inside_under_bf16_and_the_mean_of_halves():
    prediction, target = torch.randn(4, 5, 8), torch.randn(4, 5, 8)
    whole = smooth_l1(prediction, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = smooth_l1(prediction.bfloat16(), target.bfloat16())
    assert low.dtype == torch.float32 and low.item() == pytest.approx(whole.item(), rel=2e-2)
    halves = [smooth_l1(prediction[i : i + 2], target[i : i + 2]) for i in (0, 2)]
    assert torch.stack(halves).mean().item() == pytest.approx(whole.item(), rel=1e-6)


def test_what_all_patches_of_an_image_share_is_taken_from_the_target():
    patches = torch.randn(3, 9, 6)
    target = standardised(patches)
    assert torch.allclose(target, slow_standardised(patches), atol=1e-5)
    own = torch.randn(3, 1, 6)  # of an image
    assert torch.allclose(standardised(2.0 * patches + own), target, atol=1e-3)
    assert standardised(own.expand(3, 9, 6)).abs().max() < 1e-3  # patches that are alike: nothing to guess
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert standardised(patches.bfloat16()).dtype == torch.float32


# -- which patches --


def slow_choice(draws: list[float], grid: int, context: int, kept: int) -> tuple[list[int], list[list[int]]]:
    """Of one item, patch by patch."""

    def inside(top: float, left: float, h: int, w: int) -> set[int]:
        y, x = int(top * (grid - h + 1)), int(left * (grid - w + 1))
        return {grid * row + column for row in range(y, y + h) for column in range(x, x + w)}

    targets = [inside(*draws[2 + 2 * i : 4 + 2 * i], h, w) for i, (h, w) in enumerate(TARGETS)]
    free = inside(draws[0], draws[1], context, context) - set.union(*targets)
    first = sorted(free, key=lambda n: draws[2 + 2 * len(TARGETS) + n])[:kept]
    return sorted(first), [sorted(target) for target in targets]


@pytest.mark.parametrize("grid, context, kept", [(8, 8, 18), (8, 8, 3), (9, 8, 18)])
def test_the_choice_equals_the_loop_and_targets_are_never_seen(grid: int, context: int, kept: int):
    draws = torch.rand(200, 10 + grid**2)
    seen, targets = choose(draws, grid, TARGETS, context, kept)
    assert seen.shape == (200, kept) and [t.shape[1] for t in targets] == [12, 9, 12, 12]
    for b in range(200):
        wanted, blocks = slow_choice([float(x) for x in draws[b]], grid, context, kept)
        assert seen[b].tolist() == wanted and [t[b].tolist() for t in targets] == blocks
        assert not set(wanted) & set().union(*blocks)
    assert len(seen.unique(dim=0)) > 150  # each item its own


def test_where_no_targets_overlap_the_context_is_all_that_is_left():
    corners = [0.0, 0.0, 0.0, 0.99, 0.99, 0.0]  # of three targets of 2 x 2 on a grid of 4
    seen, targets = choose(torch.tensor([[0.0, 0.0, *corners, *torch.rand(16).tolist()]]), 4, [[2, 2]] * 3, 4, 4)
    assert [t[0].tolist() for t in targets] == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13]]
    assert seen[0].tolist() == [10, 11, 14, 15]


def test_sizes_are_in_the_papers_ranges():
    for grid in (8, 10, 14, 16, 32):
        targets, context = sizes(grid)
        assert len(targets) == 4 and 0.84 <= (context / grid) ** 2 <= 1.0
        for h, w in targets:
            assert 0.13 <= h * w / grid**2 <= 0.22 and 0.66 <= h / w <= 1.67  # in whole patches
        assert context**2 - sum(h * w for h, w in targets) > 0.15 * grid**2
    assert sizes(8) == (TARGETS, 8)


# -- the objective --


def test_the_encoder_sees_the_context_only_and_the_teacher_the_whole():
    task, view = some()
    seen, targets = chosen(task, view)
    base = task([view], 0.0).total
    hidden = torch.ones(4, 16, dtype=torch.bool).scatter_(1, seen, False)
    pixels = view.pixels.clone()
    for b, n in hidden.nonzero().tolist():
        y, x = 8 * (n // 4), 8 * (n % 4)
        pixels[b, :, y : y + 8, x : x + 8] = 0.0
    other = View(pixels, view.affine, view.ids, 0, view.draws)
    one, two = (task.guess(task.encoder(v.pixels, keep=seen), seen, targets) for v in (view, other))
    assert torch.equal(one, two)  # the guess is of what is seen
    assert task([other], 0.0).total.item() != base.item()  # what it is held against is not


def test_the_predictor_equals_a_loop_over_items_and_targets():
    task, view = some()
    seen, targets = chosen(task, view)
    features = task.encoder(view.pixels, keep=seen)
    got = task.guess(features, seen, targets)
    for b in range(4):
        context = [task.embed_pooled(features.pooled[b])]
        context += [task.embed(features.patches[b, k]) + task.positions[n] for k, n in enumerate(seen[b].tolist())]
        wanted = []
        for target in targets:
            asked = [task.token + task.positions[n] for n in target[b].tolist()]
            wanted.append(task.predict(task.predictor(torch.stack(context + asked)[None])[0, len(context) :]))
        assert torch.allclose(got[b], torch.cat(wanted), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_objective_is_the_loss_of_its_guess_and_moves_every_parameter_but_the_teachers(channels: int):
    task, view = some(channels)
    seen, targets = chosen(task, view)
    with torch.no_grad():
        for parameter in task.trained.parameters():  # a teacher that differs from the encoder
            parameter.add_(0.05 * torch.randn_like(parameter))
    loss = task.train()([view], 0.0)
    guess = task.guess(task.encoder(view.pixels, keep=seen), seen, targets)
    whole = task.trained(view.pixels)
    teacher = slow_standardised(whole.patches)
    wanted = torch.stack([teacher[b, torch.cat([t[b] for t in targets])] for b in range(4)])
    assert loss.total.item() == pytest.approx(slow_loss(guess, wanted), rel=1e-4)
    assert torch.equal(loss.embeddings[0], whole.pooled) and not loss.embeddings.requires_grad
    loss.total.backward()
    for name, parameter in task.named_parameters():
        if name.startswith("teacher"):
            assert not parameter.requires_grad and parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_every_parameter_has_a_gradient_when_the_encoder_pools_by_a_mean():
    _, view = some()
    plan = default_objective("ijepa").views
    encoder = tiny_encoder(name="vit_tiny_patch16_224", global_pool="avg")
    targets, context = sizes(4)
    task = IJEPA(encoder, plan, targets, context)
    task([view], 0.0).total.backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


@pytest.mark.parametrize("progress", [0.1, 0.25, 1.0])
def test_the_teacher_follows_by_the_formula_and_is_what_is_saved(progress: float):
    task, view = some()
    optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.5)
    task.train()([view], 0.0).total.backward()
    before = {k: v.clone() for k, v in task.trained.named_parameters()}
    optimiser.step()
    assert all(torch.equal(v, before[k]) for k, v in task.trained.named_parameters())
    task.teacher.last.fill_(progress)  # long after the beginning
    task.after_step(progress)
    momentum = 1 - (1 - 0.99) * (math.cos(math.pi * progress) + 1) / 2
    for (name, theirs), mine in zip(task.trained.named_parameters(), task.encoder.parameters(), strict=True):
        assert torch.allclose(theirs, momentum * before[name] + (1 - momentum) * mine, atol=1e-6), name
    assert task.trained is not task.encoder and task.trained.geometry == task.encoder.geometry
    grouped = {id(p) for group in task.parameter_groups(0.0) for p in group["params"]}
    assert not grouped & {id(p) for p in task.trained.parameters()}


def test_what_does_not_fit_is_refused():
    encoder = tiny_encoder(name="vit_tiny_patch16_224")
    plan = ViewPlan((ViewGroup(1, 32, draws=26),))
    with pytest.raises(SelfsightError, match=r"context of 8 x 8 .* do not fit 4 x 4 patches"):
        IJEPA(encoder, plan)
    with pytest.raises(SelfsightError, match="with some context left"):
        IJEPA(encoder, plan, targets=[[2, 2]] * 4, context=4)
    with pytest.raises(SelfsightError, match="need 26 draws"):
        IJEPA(encoder, ViewPlan((ViewGroup(1, 32, draws=16),)), *sizes(4))
