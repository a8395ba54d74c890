"""MAE against loops over items, patches and pixels; what the encoder may see; the pictures of the report."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import batch_of, default_objective, picture, tiny_encoder
from torch import Tensor

from selfsight.data.geometry import Geometry
from selfsight.errors import SelfsightError
from selfsight.objectives.mae import MAE, masked_error, normalised
from selfsight.objectives.patches import cut
from selfsight.views.make import View, make_views
from selfsight.views.masks import as_mask
from selfsight.views.plan import ViewGroup, ViewPlan


def slow_loss(prediction: Tensor, images: Tensor, mask: Tensor, side: int) -> float:
    """Section 3 in Python floats: squared error to a patch's pixels less their mean over their deviation, the hidden
    patches of all items alike."""
    batch, _, height, width = images.shape
    errors = []
    for b in range(batch):
        patch = 0
        for top in range(0, height, side):
            for left in range(0, width, side):
                piece = images[b, :, top : top + side, left : left + side].flatten().tolist()
                mean = math.fsum(piece) / len(piece)
                std = math.sqrt(math.fsum((x - mean) ** 2 for x in piece) / len(piece) + 1e-6)
                guess = prediction[b, patch].tolist()
                error = math.fsum((g - (x - mean) / std) ** 2 for g, x in zip(guess, piece, strict=True)) / len(piece)
                if mask[b, patch]:
                    errors.append(error)
                patch += 1
    return math.fsum(errors) / len(errors)


def some(channels: int = 3, count: int = 4) -> tuple[MAE, View]:
    task = default_objective("mae", channels=channels).eval()
    rng = np.random.default_rng(0)
    pictures = [picture(rng, 32, 32, channels).reshape(32, 32, channels) for _ in range(count)]
    batch = batch_of(pictures, [f"{i * 7919:016x}{0:016x}" for i in range(count)])
    normalise = Geometry(channels, 32, (0.0, 255.0), (0.5,) * channels, (0.25,) * channels)
    (view,) = make_views(batch, task.views, normalise, 0)
    assert isinstance(task, MAE)
    return task, view


def random_case(batch: int = 3, channels: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Images of 3 x 2 patches of 4 px, a prediction and a mask with two hidden patches an item."""
    images = torch.randn(batch, channels, 12, 8)
    mask = as_mask(torch.stack([torch.randperm(6)[:2] for _ in range(batch)]), 6)
    return images, torch.randn(batch, 6, channels * 16), mask


def test_equals_the_loops():
    for channels in (1, 3):
        images, prediction, mask = random_case(channels=channels)
        target, _, _ = normalised(cut(images, (3, 2)))
        wanted = slow_loss(prediction, images, mask, 4)
        assert masked_error(prediction, target, mask).item() == pytest.approx(wanted, rel=1e-5)


def test_gradient_equals_finite_differences():
    images, prediction, mask = random_case()
    prediction.requires_grad_()
    masked_error(prediction, normalised(cut(images, (3, 2)))[0], mask).backward()
    exact = prediction.detach().double()
    for b, n in ((0, 0), (0, int(mask[0].nonzero()[0])), (2, int(mask[2].nonzero()[1]))):
        step = torch.zeros_like(exact)
        step[b, n, 5] = 1e-4
        slope = (slow_loss(exact + step, images, mask, 4) - slow_loss(exact - step, images, mask, 4)) / 2e-4
        assert prediction.grad[b, n, 5].item() == pytest.approx(slope, abs=1e-6)


def test_closed_forms():
    images, prediction, mask = random_case()
    target, mean, std = normalised(cut(images, (3, 2)))
    assert masked_error(target, target, mask).item() == 0.0
    # Targets have mean 0 and variance 1, so a constant c costs 1 + c^2.
    assert masked_error(torch.full_like(target, 0.5), target, mask).item() == pytest.approx(1.25, abs=1e-4)
    assert torch.allclose(target * std + mean, cut(images, (3, 2)), atol=1e-6)
    flat, _, _ = normalised(torch.full((1, 2, 48), 0.3))
    assert flat.abs().max() < 1e-3  # a patch of one colour has nothing to predict
    with pytest.raises(ValueError, match="at least one hidden patch"):
        masked_error(prediction, target, torch.zeros_like(mask))


def test_only_hidden_patches_count():
    images, prediction, mask = random_case()
    target, _, _ = normalised(cut(images, (3, 2)))
    base = masked_error(prediction, target, mask).item()
    noise = torch.randn_like(target)
    assert masked_error(prediction, target + noise * ~mask[:, :, None], mask).item() == base
    assert masked_error(prediction + noise * ~mask[:, :, None], target, mask).item() == base
    assert masked_error(prediction, target + noise * mask[:, :, None], mask).item() != base


def test_float32_inside_under_bf16_and_the_mean_of_halves():
    images, prediction, mask = random_case(4)
    target, _, _ = normalised(cut(images, (3, 2)))
    whole = masked_error(prediction, target, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = masked_error(prediction.bfloat16(), target, mask)
    assert low.dtype == torch.float32 and low.item() == pytest.approx(whole.item(), rel=1e-2)
    halves = [masked_error(prediction[i : i + 2], target[i : i + 2], mask[i : i + 2]) for i in (0, 2)]
    assert torch.stack(halves).mean().item() == pytest.approx(whole.item(), rel=1e-6)


def test_three_quarters_are_hidden_other_ones_in_each_item():
    task, view = some(count=16)
    keep, mask = task.split(view)
    assert keep.shape == (16, 4) and (mask.sum(1) == 12).all()
    assert not mask.gather(1, keep).any() and len(mask.unique(dim=0)) > 12
    again = View(view.pixels.flip(0), view.affine, view.ids[::-1], 0, view.draws.flip(0))
    assert torch.equal(task.split(again)[0], keep.flip(0))  # of the item's own numbers, not of its place in the batch
    half = MAE(task.encoder, task.views, hidden=0.5)
    assert (half.split(view)[1].sum(1) == 8).all()
    for hidden, kept in ((0.0, 15), (1.0, 1)):  # never nothing to see, never nothing to predict
        assert MAE(task.encoder, task.views, hidden=hidden).kept == kept


def test_the_encoder_sees_no_hidden_pixel():
    task, view = some()
    keep, _ = task.split(view)
    other = task.masked(view)
    assert not torch.equal(other, view.pixels)
    one, two = (task.decode(task.encoder(x, keep=keep), keep) for x in (view.pixels, other))
    assert torch.equal(one, two)


def test_the_decoder_equals_a_loop_over_places():
    task, view = some()
    keep, _ = task.split(view)
    features = task.encoder(view.pixels, keep=keep)
    got = task.decode(features, keep)
    for b in range(len(keep)):
        tokens = [task.embed_pooled(features.pooled[b])]
        for n in range(16):
            at = (keep[b] == n).nonzero()
            token = task.embed(features.patches[b, int(at[0])]) if len(at) else task.token
            tokens.append(token + task.positions[n])
        alone = task.predict(task.decoder(torch.stack(tokens)[None])[0, 1:])
        assert torch.allclose(got[b], alone, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_objective_is_the_loss_of_its_prediction_and_moves_every_parameter(channels: int):
    task, view = some(channels)
    keep, mask = task.split(view)
    loss = task.train()([view], 0.0)
    prediction = task.decode(task.encoder(view.pixels, keep=keep), keep)
    assert loss.total.item() == pytest.approx(slow_loss(prediction, view.pixels, mask, 8), rel=1e-4)
    assert loss.embeddings.shape == (1, 4, 32) and not loss.embeddings.requires_grad
    loss.total.backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_every_parameter_has_a_gradient_however_the_encoder_pools(pool: str):
    _, view = some()
    task = MAE(tiny_encoder(name="vit_tiny_patch16_224", global_pool=pool), default_objective("mae").views)
    task([view], 0.0).total.backward()
    assert all(p.grad is not None for p in task.parameters())


def test_pictures_of_the_report(monkeypatch: pytest.MonkeyPatch):
    task, view = some()
    _, mask = task.split(view)
    pixels = cut(view.pixels, (4, 4))
    masked, filled = (cut(image, (4, 4)) for image in (task.masked(view), task.reconstruct(view)))
    assert torch.equal(masked[~mask], pixels[~mask]) and not masked[mask].any()
    assert torch.equal(filled[~mask], pixels[~mask]) and not torch.allclose(filled[mask], pixels[mask], atol=0.1)
    assert not filled.requires_grad
    target, _, _ = normalised(pixels)
    monkeypatch.setattr(task, "decode", lambda features, keep: target)  # who predicts all shows the image itself
    assert torch.allclose(task.reconstruct(view), view.pixels, atol=1e-5)


def test_what_does_not_fit_is_refused():
    task, _ = some()
    with pytest.raises(SelfsightError, match="need 16 draws"):
        MAE(task.encoder, ViewPlan((ViewGroup(1, 32, draws=4),)))
    assert MAE.tokens  # so that an encoder without tokens is refused before it is made
