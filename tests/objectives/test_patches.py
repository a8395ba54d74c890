"""What masked objectives share: patches against slices, positions against the formula, recipes without a fit."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import tiny_encoder

from selfsight.encoders.tokens import take
from selfsight.errors import SelfsightError
from selfsight.objectives.patches import (
    cut,
    join,
    only_group,
    patch_side,
    patches_a_side,
    positions,
    token_grid,
    transformer,
)
from selfsight.views.plan import ViewGroup, ViewPlan


def test_patches_are_slices_in_reading_order_and_come_back():
    images = torch.rand(2, 3, 12, 8)
    patches = cut(images, (3, 2))
    assert patches.shape == (2, 6, 48)
    for b in range(2):
        for row in range(3):
            for column in range(2):
                piece = images[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert torch.equal(patches[b, 2 * row + column], piece.flatten())
    assert torch.equal(join(patches, (3, 2), 3), images)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(cut(channels_last, (3, 2)), patches)


def test_take_is_a_loop():
    tokens, index = torch.rand(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    wanted = [[tokens[b, i].tolist() for i in index[b]] for b in range(2)]
    assert take(tokens, index).tolist() == wanted


def test_positions_are_sines_and_cosines_of_row_and_column():
    got = positions((3, 5), 16)
    for n in range(15):
        wanted = []
        for place in divmod(n, 5):
            angles = [place / 10000 ** (k / 4) for k in range(4)]
            wanted += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert got[n].tolist() == pytest.approx(wanted, abs=1e-6)
    assert got.square().sum(1).tolist() == pytest.approx([8.0] * 15, abs=1e-5)  # width / 2 pairs of sine and cosine
    assert len(got.unique(dim=0)) == 15
    with pytest.raises(SelfsightError, match="multiple of 4, not 18"):
        positions((3, 5), 18)


def test_the_grid_is_the_encoders_own():
    encoder = tiny_encoder(name="vit_tiny_patch16_224")
    for size in (32, 48):
        assert token_grid(encoder, size) == encoder(torch.rand(1, 3, size, size)).grid == (size // 8, size // 8)


@pytest.mark.parametrize(
    "encoder, args, side",
    [
        ("vit_tiny_patch16_224", {"patch_size": 8}, 8),
        ("vit_small_patch32_224", {}, 32),
        ("deit_small_distilled_patch16_224", {"depth": 2}, 16),
        ("resnet18", {}, 7),
    ],
)
def test_the_patch_of_a_recipe(encoder: str, args: dict[str, int], side: int):
    assert patch_side({"encoder": encoder, "encoder_args": args}, otherwise=7) == side
    assert patches_a_side({"encoder": "vit_small_patch32_224", "encoder_args": {}, "size": 224}) == 7


def test_views_that_do_not_fit_are_refused():
    assert only_group(ViewPlan((ViewGroup(1, 32, draws=9),)), 9).size == 32
    with pytest.raises(SelfsightError, match=r"32 px need 16 draws.*has 9"):
        only_group(ViewPlan((ViewGroup(1, 32, draws=9),)), 16)
    with pytest.raises(SelfsightError, match="one view of each item, and its view plan has 2"):
        only_group(ViewPlan((ViewGroup(2, 32, draws=16),)), 16)
    with pytest.raises(SelfsightError, match="width must be a multiple of heads"):
        transformer(64, 1, 5)
