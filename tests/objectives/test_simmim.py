"""SimMIM against loops over items and pixels, with a convolutional encoder and a ViT; the pictures of the report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import batch_of, default_objective, picture, tiny_encoder
from torch import Tensor

from selfsight.data.geometry import Geometry
from selfsight.encoders.store import create
from selfsight.errors import SelfsightError
from selfsight.objectives.simmim import SimMIM, masked_l1, squares_a_side, squares_mask
from selfsight.views.make import View, make_views
from selfsight.views.plan import ViewGroup, ViewPlan

ENCODERS = ("resnet18", "vit_tiny_patch16_224")


def slow_loss(prediction: Tensor, images: Tensor, mask: Tensor) -> float:
    """Section 3 in Python floats: |y - x| over all hidden pixels and channels, over their number."""
    batch, channels, height, width = images.shape
    errors = [
        abs(prediction[b, c, y, x].item() - images[b, c, y, x].item())
        for b in range(batch)
        for c in range(channels)
        for y in range(height)
        for x in range(width)
        if mask[b, 0, y, x]
    ]
    return math.fsum(errors) / len(errors)


def some(encoder: str = "resnet18", channels: int = 3, count: int = 4, size: int = 32) -> tuple[SimMIM, View]:
    task = default_objective("simmim", encoder, size, channels).eval()
    rng = np.random.default_rng(0)
    pictures = [picture(rng, size, size, channels).reshape(size, size, channels) for _ in range(count)]
    batch = batch_of(pictures, [f"{i * 7919:016x}{0:016x}" for i in range(count)])
    normalise = Geometry(channels, 32, (0.0, 255.0), (0.5,) * channels, (0.25,) * channels)
    (view,) = make_views(batch, task.views, normalise, 0)
    assert isinstance(task, SimMIM)
    return task, view


def random_case(batch: int = 3, channels: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    mask = squares_mask(torch.rand(batch, 9), 3, 5, 6)
    return torch.randn(batch, channels, 6, 6), torch.randn(batch, channels, 6, 6), mask


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_loops(channels: int):
    prediction, images, mask = random_case(channels=channels)
    assert masked_l1(prediction, images, mask).item() == pytest.approx(slow_loss(prediction, images, mask), rel=1e-5)


def test_gradient_equals_finite_differences():
    prediction, images, mask = random_case()
    prediction.requires_grad_()
    masked_l1(prediction, images, mask).backward()
    exact = prediction.detach().double()
    hidden, seen = mask[1, 0].nonzero()[0].tolist(), (~mask[1, 0]).nonzero()[0].tolist()
    for y, x in (hidden, seen):
        step = torch.zeros_like(exact)
        step[1, 0, y, x] = 1e-5
        slope = (slow_loss(exact + step, images, mask) - slow_loss(exact - step, images, mask)) / 2e-5
        assert prediction.grad[1, 0, y, x].item() == pytest.approx(slope, abs=1e-6)


def test_closed_forms():
    _, images, mask = random_case()
    assert masked_l1(images, images, mask).item() == 0.0
    assert masked_l1(images + 0.75, images, mask).item() == pytest.approx(0.75, rel=1e-5)
    with pytest.raises(ValueError, match="at least one hidden pixel"):
        masked_l1(images, images, torch.zeros_like(mask))


def test_only_hidden_pixels_count():
    prediction, images, mask = random_case()
    base = masked_l1(prediction, images, mask).item()
    noise = torch.randn_like(images)
    assert masked_l1(prediction, images + noise * ~mask, mask).item() == base
    assert masked_l1(prediction + noise * ~mask, images, mask).item() == base
    assert masked_l1(prediction, images + noise * mask, mask).item() != base


def test_float32_inside_under_bf16_and_a_mean_over_items():
    prediction, images, _ = random_case(4)
    mask = squares_mask(torch.rand(4, 16), 4, 5, 6)  # squares of one, two and four pixels: items differ in how many
    assert len(mask.sum((1, 2, 3)).unique()) > 1
    whole = masked_l1(prediction, images, mask)
    alone = [slow_loss(prediction[i : i + 1], images[i : i + 1], mask[i : i + 1]) for i in range(4)]
    assert whole.item() == pytest.approx(math.fsum(alone) / 4, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = masked_l1(prediction.bfloat16(), images, mask)
    assert low.dtype == torch.float32 and low.item() == pytest.approx(whole.item(), rel=1e-2)


@pytest.mark.parametrize("squares, size", [(4, 32), (3, 32), (7, 28), (8, 8)])
def test_the_mask_is_whole_squares(squares: int, size: int):
    draws = torch.rand(5, squares**2)
    count = round(0.6 * squares**2)
    mask = squares_mask(draws, squares, count, size)
    assert mask.shape == (5, 1, size, size)
    for b in range(5):
        hidden = sorted(draws[b].tolist())[:count]
        for y in range(size):
            for x in range(size):
                square = (y * squares // size) * squares + x * squares // size
                assert mask[b, 0, y, x].item() == (draws[b, square].item() in hidden)


def test_six_tenths_are_hidden_other_ones_in_each_item():
    task, view = some(count=16)
    mask = task.hidden(view)
    assert (mask.float().mean((1, 2, 3)) == 10 / 16).all() and len(mask.unique(dim=0)) > 12
    again = View(view.pixels.flip(0), view.affine, view.ids[::-1], 0, view.draws.flip(0))
    assert torch.equal(task.hidden(again), mask.flip(0))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_network_sees_the_learned_value_and_no_hidden_pixel(encoder: str):
    task, view = some(encoder)
    torch.nn.init.normal_(task.value)
    mask = task.hidden(view)
    shown = task.hide(view.pixels, mask)
    for c in range(3):
        assert (shown[:, c][mask[:, 0]] == task.value[c]).all()
        assert torch.equal(shown[:, c][~mask[:, 0]], view.pixels[:, c][~mask[:, 0]])
    noise = torch.randn_like(view.pixels) * mask
    assert torch.equal(task.hide(view.pixels + noise, mask), shown)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_cell_of_features_predicts_its_own_pixels(encoder: str):
    task, view = some(encoder)
    features = task.encoder(view.pixels)
    got = task.image(features, 32)
    rows, columns = features.grid
    side = 32 // rows
    for row in range(rows):
        for column in range(columns):
            cell = task.predict(features.patches[:, row * columns + column]) + task.predict_pooled(features.pooled)
            piece = got[:, :, side * row : side * (row + 1), side * column : side * (column + 1)]
            assert torch.allclose(piece.flatten(1), cell, atol=1e-5)


def test_an_image_that_the_cells_do_not_divide_is_covered():
    plan = ViewPlan((ViewGroup(1, 40, draws=16),))
    task = SimMIM(tiny_encoder(40), plan, squares=4)  # strides of 16: cells 3 x 3, of 14 px
    features = task.eval().encoder(torch.rand(2, 3, 40, 40))
    assert features.grid == (3, 3) and task.image(features, 40).shape == (2, 3, 40, 40)
    assert task.predict.out_features == 3 * 14 * 14


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_objective_is_the_loss_of_its_prediction_and_moves_every_parameter(encoder: str, channels: int):
    task, view = some(encoder, channels)
    mask = task.hidden(view)
    loss = task([view], 0.0)
    prediction = task.image(task.encoder(task.hide(view.pixels, mask)), 32)
    assert loss.total.item() == pytest.approx(slow_loss(prediction, view.pixels, mask), rel=1e-4)
    assert loss.embeddings.shape == (1, 4, 32) and not loss.embeddings.requires_grad
    task.train()([view], 0.0).total.backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        if not name.startswith("encoder") or encoder != "resnet18":  # whose blocks start as nothing (timm's own zeros)
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "name, args",
    [
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),  # a norm behind its pooling
        ("mobilenetv3_small_050", {}),  # a layer behind its pooling
        ("vit_tiny_patch16_224", {"global_pool": "avg", "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2}),
    ],
)
def test_every_parameter_has_a_gradient_whatever_the_encoder(name: str, args: dict[str, Any]):
    _, view = some()
    encoder = create(name, Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), args)
    was = {k: v.clone() for k, v in encoder.state_dict().items()}
    task = SimMIM(encoder, default_objective("simmim").views, squares=4)
    assert encoder.training and all(torch.equal(v, was[k]) for k, v in encoder.state_dict().items())
    task([view], 0.0).total.backward()
    assert [k for k, p in task.named_parameters() if p.grad is None] == []


def test_pictures_of_the_report(monkeypatch: pytest.MonkeyPatch):
    task, view = some()
    hidden = task.hidden(view).expand_as(view.pixels)
    masked, filled = task.masked(view), task.reconstruct(view)
    assert torch.equal(masked[~hidden], view.pixels[~hidden]) and not masked[hidden].any()
    assert torch.equal(filled[~hidden], view.pixels[~hidden]) and not filled.requires_grad
    assert not torch.allclose(filled[hidden], view.pixels[hidden], atol=0.1)
    monkeypatch.setattr(task, "image", lambda features, size: view.pixels)
    assert torch.equal(task.reconstruct(view), view.pixels)


@pytest.mark.parametrize(
    "encoder, args, size, squares",
    [
        ("resnet50", {}, 224, 7),  # the paper's squares of 32 px
        ("resnet18", {}, 128, 8),
        ("resnet18", {}, 64, 8),
        ("vit_tiny_patch16_224", {"patch_size": 16}, 128, 8),  # whole patches
        ("vit_small_patch16_224", {}, 224, 7),
        ("resnet18", {}, 88, 8),  # eleven cells of 8 px: squares that are not all of one size
    ],
)
def test_squares_are_of_whole_patches(encoder: str, args: dict[str, int], size: int, squares: int):
    assert squares_a_side({"encoder": encoder, "encoder_args": args, "size": size}) == squares


def test_what_does_not_fit_is_refused():
    with pytest.raises(SelfsightError, match="need 64 draws"):
        SimMIM(tiny_encoder(), ViewPlan((ViewGroup(1, 32, draws=16),)))
