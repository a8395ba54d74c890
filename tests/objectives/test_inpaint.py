"""Inpaint: blocks against a loop over cells, and a loss that looks at hidden pixels alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import default_objective

from selfsight.objectives.inpaint import hidden, hidden_error
from selfsight.views.make import View


def view_of(count: int = 5, channels: int = 3, size: int = 32) -> View:
    draws = torch.rand(count, 8)
    ids = [str(i) for i in range(count)]
    return View(torch.randn(count, channels, size, size), torch.zeros(count, 2, 3), ids, 0, draws)


@pytest.mark.parametrize("size, grid, side, blocks", [(32, 8, 2, 4), (48, 8, 3, 1), (128, 8, 2, 3), (50, 5, 5, 2)])
def test_blocks_hide_what_the_draws_say(size: int, grid: int, side: int, blocks: int):
    draws, cell = torch.rand(20, 2 * blocks), size // grid
    wanted = np.zeros((20, 1, size, size), bool)
    for b in range(20):
        for k in range(blocks):
            y, x = (math.floor(draws[b, 2 * k + i].item() * (grid - side + 1)) * cell for i in range(2))
            wanted[b, 0, y : y + side * cell, x : x + side * cell] = True
    got = hidden(draws, size, grid, side).numpy()
    assert got.dtype == bool and np.array_equal(got, wanted)
    assert (got.sum((1, 2, 3)) >= (side * cell) ** 2).all()


def test_every_cell_is_hidden_and_none_always():
    share = hidden(torch.rand(2000, 8), 32, 8, 2).float().mean(0)
    assert share.min() > 0.03 and share.max() < 0.5


def test_the_error_is_that_of_a_loop():
    predicted, images = torch.randn(3, 2, 6, 6, dtype=torch.float64), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    mask = torch.rand(3, 1, 6, 6) < torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1)
    mask[:, 0, 0, 0] = True
    items = []
    for p, x, m in zip(predicted, images, mask[:, 0], strict=True):
        places = [(c, i, j) for c in range(2) for i in range(6) for j in range(6) if m[i, j]]
        items.append(math.fsum((float(p[at]) - float(x[at])) ** 2 for at in places) / len(places))
    assert hidden_error(predicted, images, mask).item() == pytest.approx(math.fsum(items) / 3, abs=1e-6)


def test_only_hidden_pixels_count():
    view = view_of()
    mask = hidden(view.draws, 32, 8, 2)
    predicted = torch.randn_like(view.pixels).requires_grad_()
    hidden_error(predicted, view.pixels, mask).backward()
    assert torch.equal(predicted.grad != 0, mask.expand_as(predicted))
    noise = torch.randn_like(view.pixels).masked_fill(mask, 0.0)
    base = hidden_error(predicted, view.pixels, mask)
    assert torch.equal(hidden_error(predicted + noise, view.pixels, mask), base)
    assert hidden_error(view.pixels + noise, view.pixels, mask).item() == 0.0
    assert hidden_error(view.pixels + 0.5, view.pixels, mask).item() == pytest.approx(0.25, abs=1e-5)


def test_an_item_that_hides_nothing_is_refused():
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="hides no pixel"):
        hidden_error(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4), mask)


def test_float32_inside_under_bf16():
    view, mask = view_of(), hidden(torch.rand(5, 8), 32, 8, 2)
    predicted = torch.randn_like(view.pixels).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = hidden_error(predicted, view.pixels, mask)
    assert got.dtype == torch.float32 and got.item() == hidden_error(predicted.float(), view.pixels, mask).item()


@pytest.mark.parametrize("channels, size, encoder", [(3, 32, ""), (1, 64, ""), (5, 48, "vit_tiny_patch16_224")])
def test_the_view_is_filled_by_the_prediction_and_hidden_pixels_do_not_leak(channels: int, size: int, encoder: str):
    task, view = default_objective("inpaint", encoder, size, channels).eval(), view_of(4, channels, size)
    mask = task.mask(view).expand_as(view.pixels)
    masked, filled = task.masked(view), task.reconstruct(view)
    assert masked.shape == filled.shape == view.pixels.shape and not filled.requires_grad
    assert torch.equal(masked[~mask], view.pixels[~mask]) and (masked[mask] == 0).all()
    assert torch.equal(filled[~mask], view.pixels[~mask]) and (filled[mask] != view.pixels[mask]).all()
    error = np.mean([(filled[i] - view.pixels[i])[mask[i]].square().mean().item() for i in range(4)])
    assert task([view], 0.0).total.item() == pytest.approx(error, abs=1e-5)
    other = View(torch.where(mask, torch.randn_like(view.pixels), view.pixels), view.affine, view.ids, 0, view.draws)
    assert torch.equal(task.reconstruct(other), filled)
    assert torch.allclose(task([view], 0.0).embeddings[0], task.encoder(masked).pooled, atol=1e-5)


def test_the_mean_colour_scores_one_on_normalised_noise():
    view = view_of(200)
    got = hidden_error(torch.zeros_like(view.pixels), view.pixels, hidden(view.draws, 32, 8, 2))
    assert got.item() == pytest.approx(1.0, abs=0.02)
