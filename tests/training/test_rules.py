"""The rules at the corners: few images and small batches, many images and large ones, small pictures and large ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from selfsight.data.geometry import Geometry
from selfsight.data.pixels import PixelFormat
from selfsight.encoders.store import create
from selfsight.encoders.weights import Weights
from selfsight.errors import SelfsightError
from selfsight.objectives.facts import Facts
from selfsight.objectives.objective import find, registry
from selfsight.training.build import check_sizes
from selfsight.training.recipe import Budget, Recipe
from selfsight.training.rules import LEAST_STEPS, NARROW, NARROW_COST, resolve

CORNERS = [(1000, 64), (50_000, 256)]


def recipe(objective: str, items: int, batch: int | None, side: int = 32, device: str = "cpu", **more: Any) -> Recipe:
    format = PixelFormat("RGB", 8, (0.0, 255.0))
    facts = Facts(items, side, format, device, False, 1, 2**40, lambda side: 0.0, lambda side: 0)
    asked: dict[str, Any] = {"objective": objective, "budget": Budget(steps=100)} | more
    return resolve(asked | ({"batch_size": batch} if batch else {}), facts)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("side", [32, 64, 100, 224, 1000])
@pytest.mark.parametrize("items, batch", CORNERS)
@pytest.mark.parametrize("objective", list(registry()))
def test_whatever_the_data_the_sizes_go_together(objective: str, items: int, batch: int, side: int, device: str):
    r = recipe(objective, items, batch, side, device)
    assert r.batch_size == batch and r.views.count >= find(objective).least_views
    assert r.size <= 2 * max(side, 32) and r.canvas_side <= side
    patch = r.encoder_args.get("patch_size")
    for group in r.views.groups:
        assert 0 < group.size <= r.size and (patch is None or group.size % patch == 0)
    assert set(r.reasons) >= {"views", "objective_options", "learning_rate", "canvas_side"}
    find(objective).check(r.encoder, r.channels, r.views)


@pytest.mark.parametrize("objective", list(registry()))
def test_the_encoder_takes_the_sizes_of_the_rules(objective: str):
    for side in (32, 200):
        check_sizes(recipe(objective, 1000, 64, side))


@pytest.mark.parametrize("objective", ["jigsaw", "rotation+jigsaw"])
def test_an_encoder_that_cannot_take_a_tile_is_refused_in_a_sentence(objective: str):
    made = recipe(objective, 1000, 64, encoder="convnext_atto", encoder_args={}, size=32)
    with pytest.raises(SelfsightError, match="convnext_atto cannot take images of 16 px"):
        check_sizes(made)


@pytest.mark.parametrize("objective", ["swav", "dino", "dinov2"])
def test_prototypes_are_counted_by_images(objective: str):
    few, many = (recipe(objective, *corner).objective_options["prototypes"] for corner in CORNERS)
    assert (few, many) == (64, 1024)  # 16 images each would be 62 and 3,125, of which 1,024 is the limit


def test_a_weighted_task_of_patches_has_their_mean_as_features_too():
    pools = [recipe(name, 1000, 64).encoder_args.get("global_pool") for name in ("ijepa", "2*ijepa", "ijepa+mae")]
    assert pools == ["avg", "avg", None]


def test_the_rate_follows_the_root_of_the_batch():
    few, many = (recipe("vicreg", *corner).learning_rate for corner in CORNERS)
    assert few == pytest.approx(many / 2) and many == pytest.approx(2e-3)


@pytest.mark.parametrize("minutes, size", [(1, 32), (3, 64), (8, 96), (12, 128), (60, 128)])
def test_the_size_is_the_largest_that_leaves_time_to_learn(minutes: float, size: int):
    """A step sees 512 views of half the side, forward and back; 100 GFLOP/s make 300 of them in the minutes, or not."""
    made = recipe("simclr", 1000, None, 200, budget=Budget(minutes=minutes))
    assert made.size == size
    seconds = 512 * 3 * NARROW_COST / 1e11 * (size / 2) ** 2
    assert size == 32 or minutes * 60 * 0.9 / seconds >= LEAST_STEPS
    if size < 128:
        larger = 512 * 3 * NARROW_COST / 1e11 * ((size + 32) / 2) ** 2
        assert minutes * 60 * 0.9 / larger < LEAST_STEPS and f"{minutes} minutes are about" in made.reasons["size"]
    assert recipe("simclr", 1000, None, 200, budget=Budget(steps=5)).size == 128  # no clock says that it is too large
    assert recipe("simclr", 1000, None, 80, budget=Budget(minutes=60)).size == 64  # no larger than the images
    assert recipe("mae", 1000, None, 200, budget=Budget(minutes=1)).size == 128  # of a ViT the cost is another


def test_the_cost_of_a_view_is_that_of_the_narrow_encoder():
    geometry = Geometry(3, 64, (0.0, 255.0), (0.0,) * 3, (1.0,) * 3)
    counter = FlopCounterMode(display=False)
    with counter:
        create("resnet18", geometry, NARROW)(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() / 64**2 == pytest.approx(NARROW_COST, rel=0.02)


def test_the_default_takes_many_small_steps_from_random_weights_on_a_cpu():
    made = recipe("simclr", 50_000, None)
    assert (made.batch_size, made.views.count, made.optimiser) == (64, 8, "muon")
    made = recipe("simclr", 50_000, None, device="cuda")
    assert (made.batch_size, made.views.count, made.optimiser) == (256, 4, "adamw")
    made = recipe("simclr", 50_000, None, optimiser="sgd")
    assert (made.batch_size, made.learning_rate) == (64, pytest.approx(0.03))


def test_what_nothing_but_its_predictor_keeps_apart_goes_slowly():
    whole = recipe("vicreg", 1000, 64)
    for name in ("byol", "vicreg+byol"):
        slow = recipe(name, 1000, 64)
        assert slow.learning_rate == pytest.approx(whole.learning_rate / 4)
        assert "collapsed" in slow.reasons["learning_rate"] and "collapsed" not in whole.reasons["learning_rate"]


def test_what_a_batch_can_bear():
    """Barlow's weight makes what chance correlates weigh as much at any batch; EMP's width is no more than a batch."""
    few, many = (recipe("barlow", *corner).objective_options for corner in CORNERS)
    chance = [o["redundancy"] * o["width"] / batch for o, (_, batch) in zip((few, many), CORNERS, strict=True)]
    assert chance == pytest.approx([0.0204, 0.0204], rel=2e-3)
    few, many = (recipe("emp", *corner).objective_options["width"] for corner in CORNERS)
    assert (few, many) == (64, 256)
    said = recipe("moco", 1000, 64).reasons["objective_options"]
    assert f"{0.8 * math.log(64):.1f}" in said


def test_a_batch_is_all_there_is_of_few_images():
    assert recipe("simclr", 40, None).batch_size == 40
    assert recipe("simclr", 40, 64).batch_size == 40
    assert recipe("vicreg", 50_000, None).batch_size == 256


def test_a_vit_has_patches_of_16_on_a_gpu_where_images_are_large():
    assert recipe("mae", 1000, 64, 224, "cuda").encoder_args["patch_size"] == 16
    assert recipe("mae", 1000, 64, 224, "cpu").encoder_args["patch_size"] == 16  # of 128 px, eight a side
    assert recipe("mae", 1000, 64, 32, "cpu").encoder_args["patch_size"] == 4
    assert recipe("mae", 1000, 64, 32, "cuda").encoder_args["patch_size"] == 4


@pytest.mark.parametrize(
    ("architecture", "native", "side", "size"),
    [
        ("resnet18", 224, 180, 224), ("resnet18", 224, 1000, 224), ("resnet18", 224, 100, 192),
        ("resnet18", 224, 32, 64), ("resnet18", 128, 300, 128), ("resnet50", 288, 600, 224),
        ("vit_tiny_patch16_224", 224, 180, 224), ("vit_small_patch14_dinov2", 518, 600, 224),
        ("vit_small_patch14_dinov2", 518, 32, 56), ("swin_tiny_patch4_window7_224", 224, 32, 224),
    ],
)  # fmt: skip
def test_weights_are_adapted_at_the_size_they_know(architecture: str, native: int, side: int, size: int):
    half = (0.5, 0.5, 0.5)
    start = Weights("hub", architecture, {}, 3, native, half, half, "mit", "hub", torch.nn.Identity)
    format = PixelFormat("RGB", 8, (0.0, 255.0))
    facts = Facts(5000, side, format, "cpu", False, 1, 2**40, lambda side: 0.0, lambda side: 0, start=start)
    r = resolve({"objective": "simclr", "weights": "hub", "budget": Budget(steps=1)}, facts)
    assert r.size == size and r.batch_size == 64 and all(group.size <= size for group in r.views.groups)
    check_sizes(r)
