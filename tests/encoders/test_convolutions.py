"""The weight gradient of a strided convolution on one pixel, in bfloat16, against float32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from selfsight.encoders.convolutions import with_written_gradients


@pytest.mark.parametrize("side", [1, 2, 5])
def test_the_gradient_is_that_of_float32_whatever_lay_in_memory(side: int):
    for seed in range(20):
        torch.manual_seed(seed)
        conv = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        images = torch.randn(16, 8, side, side)
        (wanted,) = torch.autograd.grad(conv(images).square().mean(), conv.weight)
        with_written_gradients(conv)
        junk = [torch.full((8, 8, 3, 3), float("nan"), dtype=torch.bfloat16) for _ in range(50)]
        del junk  # what is freed is what an unwritten gradient shows
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(images)
        out.float().square().mean().backward()
        assert conv.weight.grad is not None
        assert (conv.weight.grad - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_float32_is_left_as_it_is():
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    images = torch.randn(2, 3, 1, 1)
    wanted = conv(images)
    assert torch.equal(with_written_gradients(conv)(images), wanted)


def test_a_copy_convolves_with_its_own_weights():
    """A teacher is a copy: its convolutions must not go on with the student's."""
    conv = with_written_gradients(nn.Conv2d(3, 4, 3, stride=2, padding=1))
    images = torch.randn(2, 3, 8, 8)
    wanted, teacher = conv(images), copy.deepcopy(conv)
    nn.init.zeros_(conv.weight)
    assert torch.equal(teacher(images), wanted) and not torch.equal(conv(images), wanted)
