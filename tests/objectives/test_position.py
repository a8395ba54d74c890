"""Position: patches of an image of coordinates say where they were cut; colours against the matrix of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import default_objective
from scipy.stats import chisquare

from selfsight.data.randomness import item_keys, uniform
from selfsight.objectives.position import DRAWS, layout, pair, without_green
from selfsight.views.make import View


def view_of(pixels: torch.Tensor) -> View:
    ids = [f"{i * 7919:016x}" for i in range(len(pixels))]
    draws = torch.tensor(uniform(0, 0, item_keys(ids), "own 0 0", DRAWS), dtype=torch.float32)
    return View(pixels, torch.zeros(len(pixels), 2, 3), ids, 0, draws)


def coordinates(count: int, size: int) -> torch.Tensor:
    """[count, 2, size, size]: every pixel is its own row and column."""
    return torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).expand(count, 2, -1, -1)


@pytest.mark.parametrize("size", [32, 48, 64, 96, 128, 224])
def test_the_label_is_where_the_patch_was_cut(size: int):
    view = view_of(coordinates(2000, size))
    parts, label = pair(view.pixels, view.draws)
    side, gap, shift = layout(size)
    assert parts.shape == (2000, 2, 2, side, side)
    corner = parts[:, :, :, 0, 0].numpy()  # [B, 2, (row, column)]
    whole = np.arange(side)
    rows = np.broadcast_to(corner[:, :, 0, None, None] + whole[:, None], (2000, 2, side, side))
    columns = np.broadcast_to(corner[:, :, 1, None, None] + whole, (2000, 2, side, side))
    assert np.array_equal(parts.numpy(), np.stack([rows, columns], 2))  # whole patches, nothing turned or scaled
    apart = corner[:, 1] - corner[:, 0]
    away = np.rint(apart / (side + gap)).astype(int)
    place = 3 * (away[:, 0] + 1) + away[:, 1] + 1  # of the 3 x 3 arrangement in reading order; 4 is the middle
    assert np.array_equal(label.numpy(), place - (place > 4)) and not (place == 4).any()
    assert np.abs(apart - away * (side + gap)).max() == 2 * shift
    assert (np.abs(apart).max(1) > side).all()  # at least a pixel between them
    assert corner.min() == 0 and corner.max() in (size - side, size - side - 1)


def test_all_shifts_of_a_patch_are_drawn():
    view = view_of(coordinates(500, 128))
    parts, _ = pair(view.pixels, view.draws)
    for axis in range(2):
        assert len(parts[:, 0, axis, 0, 0].unique()) == 2 * layout(128)[2] + 1


def test_every_neighbour_is_drawn_as_often():
    view = view_of(torch.zeros(4000, 1, 32, 32))
    assert chisquare(pair(view.pixels, view.draws)[1].bincount(minlength=8).numpy()).pvalue > 1e-3


def test_the_projection_is_the_matrix_of_the_paper():
    a = np.array([[-1.0, 2.0, -1.0]])
    matrix = np.eye(3) - a.T @ a / (a @ a.T)
    unit = torch.rand(2, 4, 3, 5, 6)
    wanted = np.einsum("nkchw,cd->nkdhw", unit.double().numpy(), matrix)
    assert np.allclose(without_green(unit).numpy(), wanted, atol=1e-6)
    grey = torch.rand(1, 1, 4, 4).expand(1, 3, 4, 4)
    assert torch.allclose(without_green(grey), grey, atol=1e-6)
    assert torch.allclose(without_green(without_green(unit)), without_green(unit), atol=1e-6)


def test_the_encoder_does_not_see_green_unless_asked():
    pixels = torch.rand(4, 3, 32, 32) * 2 - 1  # within what becomes [0, 1]
    more = pixels + 0.5 * torch.tensor([-1.0, 2.0, -1.0]).view(3, 1, 1)
    task = default_objective("position")
    one, other = view_of(pixels), view_of(more)
    seen, seen_more = (task.patches(view, view.draws)[0] for view in (one, other))
    assert seen.shape == (4, 2, 3, 16, 16) and torch.allclose(seen, seen_more, atol=1e-5)
    task = default_objective("position", project=False)
    seen, seen_more = (task.patches(view, view.draws)[0] for view in (one, other))
    assert torch.allclose(seen_more - seen, (more - pixels)[0, :, :1, :1], atol=1e-5)
    assert not default_objective("position", channels=1).project


def test_the_loss_is_that_of_a_loop():
    task, view = default_objective("position").eval(), view_of(torch.randn(5, 3, 32, 32))
    with torch.no_grad():
        got = task([view], 0.0)
        parts, label = task.patches(view, view.draws)
        losses, right = [], []
        for b in range(5):
            each = [task.encoder(parts[b, k][None]).pooled[0] for k in range(2)]
            assert torch.allclose(got.embeddings[:, b], each[0][None], atol=1e-5)
            logits = task.head(torch.cat(each)[None])[0].tolist()
            losses.append(math.log(math.fsum(math.exp(x) for x in logits)) - logits[label[b]])
            right.append(max(range(8), key=logits.__getitem__) == label[b])
    assert got.total.item() == pytest.approx(math.fsum(losses) / 5, abs=1e-5)
    assert got.parts["accuracy"].item() == pytest.approx(sum(right) / 5)


def test_equal_logits_give_the_chance_level():
    task = default_objective("position")
    torch.nn.init.zeros_(task.head[-1].weight)
    torch.nn.init.zeros_(task.head[-1].bias)
    loss = task([view_of(torch.randn(4, 3, 32, 32))], 0.0)
    assert loss.total.item() == pytest.approx(math.log(8), abs=1e-6)
