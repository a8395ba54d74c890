"""Rotation against numpy's turns and a loop over items and turns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import default_objective

from selfsight.objectives.rotation import turns
from selfsight.views.make import View


def view_of(count: int = 5, size: int = 32) -> View:
    return View(torch.randn(count, 3, size, size), torch.zeros(count, 2, 3), [str(i) for i in range(count)], 0)


@pytest.mark.parametrize("size", [5, 8])
def test_turns_are_those_of_numpy(size: int):
    images = torch.randn(3, 2, size, size)
    for k, turned in enumerate(turns(images)):
        for image, got in zip(images.numpy(), turned.numpy(), strict=True):
            assert np.array_equal(got, np.rot90(image.transpose(1, 2, 0), k).transpose(2, 0, 1))


def test_no_two_turns_are_alike_mirrored_or_not():
    images = torch.randn(1, 3, 8, 8)
    both = torch.stack(turns(images) + turns(images.flip(3)))
    assert len(both.flatten(1).unique(dim=0)) == 8


def test_the_loss_is_that_of_a_loop():
    task, view = default_objective("rotation").eval(), view_of()
    with torch.no_grad():
        got = task([view], 0.0)
        losses, right, pooled = [], [], torch.zeros(4, 5, task.encoder.dim)
        for i, image in enumerate(view.pixels.numpy()):
            for k in range(4):
                turned = torch.tensor(np.rot90(image, k, (1, 2)).copy())[None]
                pooled[k, i] = task.encoder(turned).pooled[0]
                logits = task.head(pooled[k, i]).tolist()
                losses.append(math.log(math.fsum(math.exp(x) for x in logits)) - logits[k])
                right.append(max(range(4), key=logits.__getitem__) == k)
    assert got.total.item() == pytest.approx(math.fsum(losses) / 20, abs=1e-5)
    assert got.parts["cross_entropy"].item() == got.total.item()
    assert got.parts["accuracy"].item() == pytest.approx(sum(right) / 20)
    assert torch.allclose(got.embeddings, pooled[:1], atol=1e-5)  # one turn: how alike turns are is not the task


def test_equal_logits_give_the_chance_level():
    task = default_objective("rotation")
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.constant_(task.head.bias, 2.0)
    loss = task([view_of()], 0.0)
    assert loss.total.item() == pytest.approx(math.log(4), abs=1e-6)
    assert loss.parts["accuracy"].item() == pytest.approx(1 / 4)
