"""Jigsaw: permutations against a slow greedy search, tiles against slices, the loss against a loop."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import default_objective
from scipy.stats import chisquare

from selfsight.data.randomness import item_keys, uniform
from selfsight.errors import SelfsightError
from selfsight.objectives.jigsaw import DRAWS, far_apart, normalised, shuffled, tiles_of
from selfsight.views.make import View


def view_of(count: int, channels: int = 3, size: int = 32) -> View:
    ids = [f"{i * 7919:016x}" for i in range(count)]
    draws = torch.tensor(uniform(0, 0, item_keys(ids), "own 0 0", DRAWS), dtype=torch.float32)
    return View(torch.randn(count, channels, size, size), torch.zeros(count, 2, 3), ids, 0, draws)


def distances(permutations: torch.Tensor) -> list[int]:
    rows = permutations.tolist()
    return [sum(x != y for x, y in zip(a, b, strict=True)) for a, b in itertools.combinations(rows, 2)]


@pytest.mark.parametrize("count, least", [(9, 9), (16, 8), (64, 7), (100, 6)])
def test_permutations_are_far_apart(count: int, least: int):
    # No ten are 9 apart, as the first place takes one of nine values; no 73 are 8 apart, as the first two take 72.
    got = far_apart(count)
    assert got.shape == (count, 9) and torch.equal(got.sort(1).values, torch.arange(9).expand(count, 9))
    assert min(distances(got)) == least
    assert np.mean(distances(got)) > 8  # nine different places less one fixed point of random ones


@pytest.mark.parametrize("tiles, count", [(3, 6), (4, 12), (5, 30)])
def test_permutations_are_those_of_a_slow_greedy_search(tiles: int, count: int):
    every = list(itertools.permutations(range(tiles)))
    chosen = [every[0]]
    while len(chosen) < count:
        apart = [[sum(x != y for x, y in zip(a, b, strict=True)) for b in chosen] for a in every]
        best = max(range(len(every)), key=lambda i: (min(apart[i]), sum(apart[i]), -i))
        chosen.append(every[best])
    assert far_apart(count, tiles).tolist() == [list(p) for p in chosen]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_there_are_only_so_many_permutations(count: int):
    with pytest.raises(SelfsightError, match="2 to 6 permutations"):
        far_apart(count, 3)


@pytest.mark.parametrize("size, margin", [(30, 0), (32, 1), (64, 0)])
def test_whole_cells_put_back_in_order_give_the_image(size: int, margin: int):
    images = torch.randn(2, 3, size, size)
    tiles = tiles_of(images, torch.rand(2, 18), fill=1.0)
    cell = size // 3
    together = tiles.view(2, 3, 3, 3, cell, cell).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 3 * cell, 3 * cell)
    assert torch.equal(together, images[:, :, margin : margin + 3 * cell, margin : margin + 3 * cell])


@pytest.mark.parametrize("size, cell, side", [(32, 10, 8), (75, 25, 21), (128, 42, 35), (225, 75, 64)])
def test_tiles_are_cut_where_the_draws_say(size: int, cell: int, side: int):
    images, draws = torch.randn(3, 2, size, size), torch.rand(3, 18)
    tiles = tiles_of(images, draws)
    margin = (size - 3 * cell) // 2
    for b, k in itertools.product(range(3), range(9)):
        y = margin + k // 3 * cell + math.floor(draws[b, k].item() * (cell - side + 1))
        x = margin + k % 3 * cell + math.floor(draws[b, 9 + k].item() * (cell - side + 1))
        assert np.array_equal(tiles[b, k].numpy(), images[b, :, y : y + side, x : x + side].numpy())


def test_a_tile_is_anywhere_in_its_cell_and_never_beyond():
    at = torch.arange(32.0).expand(1, 1, 32, 32)
    least, most = (tiles_of(at, torch.full((1, 18), d))[0, :, 0, 0] for d in (0.0, 1 - 2.0**-24))
    assert least[:, 0].tolist() == [1, 11, 21] * 3 and most[:, -1].tolist() == [10, 20, 30] * 3


def test_each_tile_is_normalised_by_itself():
    tiles = torch.randn(2, 9, 3, 8, 8) * torch.rand(2, 9, 3, 1, 1) * 4 + torch.randn(2, 9, 3, 1, 1)
    tiles[0, 0] = 0.7
    x = tiles.double().numpy()
    wanted = (x - x.mean((2, 3, 4), keepdims=True)) / np.sqrt(x.var((2, 3, 4), keepdims=True) + 1e-3)
    assert np.allclose(normalised(tiles).numpy(), wanted, atol=1e-5)
    assert np.allclose(normalised(tiles)[0, 0].numpy(), 0.0, atol=1e-5)


def test_the_puzzle_in_order_is_the_tiles():
    task, view = default_objective("jigsaw"), view_of(6)
    shown, label = task.puzzle(view, view.draws)
    assert shown.shape == (6, 9, 3, 16, 16)
    tiles = tiles_of(view.pixels, view.draws[:, 1:])
    for b in range(6):
        order = far_apart(64)[math.floor(view.draws[b, 0].item() * 64)].tolist()
        assert order == far_apart(64)[label[b]].tolist()
        for place, tile in enumerate(order):
            enlarged = torch.nn.functional.interpolate(tiles[b, tile][None], (16, 16), mode="bilinear")
            assert torch.allclose(shown[b, place], normalised(enlarged)[0], atol=1e-5)
    order = far_apart(64)[label]
    assert torch.equal(shuffled(shuffled(tiles, order), order.argsort(1)), tiles)


def test_every_permutation_is_drawn_as_often():
    task = default_objective("jigsaw", channels=1, tile=4)
    view = view_of(6400, 1, 12)
    _, label = task.puzzle(view, view.draws)
    assert chisquare(label.bincount(minlength=64).numpy()).pvalue > 1e-3


def test_the_loss_is_that_of_a_loop():
    task, view = default_objective("jigsaw").eval(), view_of(5)
    with torch.no_grad():
        got = task([view], 0.0)
        tiles, label = task.puzzle(view, view.draws)
        losses, right = [], []
        for b in range(5):
            each = [task.encoder(tiles[b, k][None]).pooled[0] for k in range(9)]
            assert torch.allclose(got.embeddings[:, b], each[0][None], atol=1e-5)
            logits = task.head(torch.cat([task.neck(z) for z in each])[None])[0].tolist()
            losses.append(math.log(math.fsum(math.exp(x) for x in logits)) - logits[label[b]])
            right.append(max(range(64), key=logits.__getitem__) == label[b])
    assert got.total.item() == pytest.approx(math.fsum(losses) / 5, abs=1e-5)
    assert got.parts["accuracy"].item() == pytest.approx(sum(right) / 5)


def test_equal_logits_give_the_chance_level():
    task = default_objective("jigsaw", permutations=20)
    torch.nn.init.zeros_(task.head[-1].weight)
    torch.nn.init.zeros_(task.head[-1].bias)
    assert task([view_of(4)], 0.0).total.item() == pytest.approx(math.log(20), abs=1e-6)
