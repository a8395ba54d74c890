"""What the classic pretext tasks share: cutting, resizing, guessing, and encoders of every kind."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import NARROW, SMALL_VIT, batch_of, default_objective, picture

from selfsight.data.geometry import Geometry
from selfsight.data.pixels import PixelFormat
from selfsight.encoders.store import create
from selfsight.errors import SelfsightError
from selfsight.objectives.objective import Objective, find
from selfsight.objectives.pretext import arrangement, cut, guess, part_size, resize, up_to
from selfsight.training.recipe import Budget
from selfsight.views.make import View, make_views
from selfsight.views.plan import ViewPlan

CLASSIC = ("rotation", "jigsaw", "position", "inpaint", "colour")
SWIN = {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1), "window_size": 1}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}


def test_squares_are_cut_where_they_should_be():
    rng = np.random.default_rng(0)
    images = rng.random((3, 2, 11, 13))
    top, left = rng.integers(0, 8, (3, 5)), rng.integers(0, 10, (3, 5))
    got = cut(torch.tensor(images), torch.tensor(top), torch.tensor(left), 4)
    assert got.shape == (3, 5, 2, 4, 4)
    for b in range(3):
        for k in range(5):
            y, x = top[b, k], left[b, k]
            assert np.array_equal(got[b, k].numpy(), images[b, :, y : y + 4, x : x + 4])


def test_parts_are_resized_each_by_itself():
    parts = torch.rand(2, 3, 1, 5, 5)
    got = resize(parts, 8)
    assert got.shape == (2, 3, 1, 8, 8)
    assert torch.equal(got[1, 2], resize(parts[1:, 2:], 8)[0, 0])
    assert torch.allclose(resize(torch.full((1, 1, 1, 5, 5), 0.3), 16), torch.tensor(0.3))


def test_numbers_up_to_a_count_are_evenly_likely_and_never_the_count():
    draws = torch.arange(1200) / 1200
    assert torch.equal(up_to(draws, 8).bincount(), torch.full((8,), 150))
    assert up_to(torch.tensor(1 - 2.0**-24), 3_000_000) == 2_999_999


def test_a_guess_is_the_mean_cross_entropy_and_the_share_that_is_right():
    logits, labels = torch.randn(3, 4, 5, dtype=torch.float64), torch.randint(5, (3, 4))
    losses, right = [], []
    for row, label in zip(logits.view(12, 5).tolist(), labels.flatten().tolist(), strict=True):
        losses.append(math.log(math.fsum(math.exp(x) for x in row)) - row[label])
        right.append(max(range(5), key=row.__getitem__) == label)
    loss, accuracy = guess(logits, labels).tolist()
    assert loss == pytest.approx(math.fsum(losses) / 12, abs=1e-6) and accuracy == pytest.approx(sum(right) / 12)


@pytest.mark.parametrize("count", [4, 8, 64])
def test_equal_logits_give_the_chance_level(count: int):
    loss, _ = guess(torch.full((10, count), 3.0), torch.arange(10) % count)
    assert loss.item() == pytest.approx(math.log(count), abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert guess(torch.full((10, count), 3.0).bfloat16(), torch.zeros(10).long()).dtype == torch.float32


@pytest.mark.parametrize("name", CLASSIC)
def test_plans_of_more_views_or_too_few_draws_are_refused(name: str):
    task = default_objective(name)
    group = task.views.groups[0]
    with pytest.raises(SelfsightError, match="one view"):
        type(task)(task.encoder, ViewPlan((replace(group, count=2),)))
    if group.draws:
        with pytest.raises(SelfsightError, match=f"{group.draws} draws"):
            type(task)(task.encoder, ViewPlan((replace(group, draws=group.draws - 1),)))


@pytest.mark.parametrize(
    "name, options",
    [("jigsaw", {"permutations": 1}), ("colour", {"step": 0}), ("inpaint", {"blocks": 0}), ("inpaint", {"side": 9})],
)
def test_options_without_meaning_are_refused(name: str, options: dict[str, int]):
    with pytest.raises(SelfsightError, match=str(*options.values())):
        default_objective(name, **options)


@pytest.mark.parametrize(
    "encoder, args, size, half, third",
    [
        ("resnet18", NARROW, 32, 16, 16),
        ("resnet18", NARROW, 64, 32, 16),
        ("resnet18", NARROW, 128, 64, 32),
        ("resnet18", {}, 32, 16, 16),
        ("convnext_atto", {}, 64, 32, 32),
        ("resnet50", {}, 224, 112, 64),
        ("vit_tiny_patch16_224", {"patch_size": 8}, 64, 32, 16),
        ("vit_tiny_patch16_224", {"patch_size": 6}, 48, 24, 12),
        ("vit_tiny_patch16_224", {"patch_size": 12}, 96, 48, 24),
        ("vit_tiny_patch16_224", {}, 96, 48, 32),
        ("vit_small_patch14_dinov2", {}, 224, 112, 70),
        ("mixer_s16_224", {}, 64, 64, 64),
    ],
)
def test_parts_are_half_or_a_third_in_whole_patches(
    encoder: str, args: dict[str, Any], size: int, half: int, third: int
):
    recipe = {"encoder": encoder, "encoder_args": args, "size": size}
    assert (part_size(recipe, 2), part_size(recipe, 3)) == (half, third)


def test_an_arrangement_is_not_mirrored():
    plan, _ = arrangement(7, grey=0.3)(None, {"size": 48})
    (group,) = plan.groups
    assert (group.count, group.size, group.flip, group.draws, group.colour.grey) == (1, 48, 0.0, 7, 0.3)
    assert (group.colour.jitter, group.colour.blur, group.colour.solarise) == (0.0, 0.0, 0.0)


def objective_of(name: str, encoder: str, args: dict[str, Any], size: int) -> Objective:
    """As the rules make it for an encoder that was asked for."""
    facts = SimpleNamespace(items=1000, side=size, format=PixelFormat("RGB", 8), device="cpu", processes=1, start=None)
    values: dict[str, Any] = {"objective": name, "encoder": encoder, "encoder_args": args, "size": size}
    values |= {"batch_size": 16, "channels": 3, "budget": Budget(steps=30)}
    cls = find(name)
    values["views"], reason = cls.rules["views"](facts, values)
    options, why = cls.rules["objective_options"](facts, values)
    assert reason and why and cls.when.endswith(".") and cls.family == "classic pretext" and not cls.tokens
    made = create(encoder, Geometry(3, size, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), args)
    return cls(made, values["views"], **options)


@pytest.mark.parametrize("name", CLASSIC)
@pytest.mark.parametrize(
    "encoder, args, size",
    [
        ("resnet18", NARROW, 64),
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}, 48),
        ("vit_tiny_patch16_224", SMALL_VIT | {"patch_size": 6}, 48),
        ("vit_tiny_patch16_224", SMALL_VIT | {"global_pool": "avg"}, 32),
        ("convnext_atto", CONVNEXT, 64),
        ("swin_tiny_patch4_window7_224", SWIN, 32),
    ],
)
def test_every_parameter_of_any_encoder_has_a_gradient(name: str, encoder: str, args: dict[str, Any], size: int):
    task = objective_of(name, encoder, args, size).train()
    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, size, size + 5) for _ in range(4)], [f"{i * 7919:016x}" for i in range(4)])
    views = make_views(batch, task.views, Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), 0)
    for precision in (False, True):
        task.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            loss = task(views, 0.5)
        loss.total.backward()
        for key, parameter in task.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        assert loss.total.dtype == torch.float32 and loss.embeddings.dtype == torch.float32
        assert loss.embeddings.shape[1:] == (4, task.encoder.dim) and not loss.embeddings.requires_grad
        assert ("accuracy" in loss.parts) == (name != "inpaint")
        assert not any(part.requires_grad for part in loss.parts.values())


@pytest.mark.parametrize("name", CLASSIC)
def test_the_same_views_give_the_same_loss_whatever_torch_would_draw(name: str):
    task = default_objective(name).eval()
    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, 32, 32) for _ in range(4)], [f"{i * 7919:016x}" for i in range(4)])
    normalise = Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3)
    losses = set()
    for seed in range(2):
        torch.manual_seed(seed)
        losses.add(task(make_views(batch, task.views, normalise, 0), 0.5).total.item())
        assert torch.equal(torch.random.get_rng_state(), torch.manual_seed(seed).get_state())
    assert len(losses) == 1
    assert task(make_views(batch, task.views, normalise, 1), 0.5).total.item() not in losses


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", [n for n in CLASSIC if n != "colour"])
def test_other_channels_than_three(name: str, channels: int):
    task = default_objective(name, channels=channels).train()
    pixels = torch.randn(4, channels, 32, 32)
    draws = torch.rand(4, task.views.groups[0].draws)
    loss = task([View(pixels, torch.zeros(4, 2, 3), list("abcd"), 0, draws)], 0.0)
    assert torch.isfinite(loss.total)
