"""Objects without labels: a cut is the second eigenvector of the normalised Laplacian; planted things are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny_encoder
from scipy.linalg import eigh
from skimage.filters import threshold_otsu

from selfsight.curation.discovery import APART, Piece, basis, cut, objects_in, same
from selfsight.encoders.tokens import last_keys
from selfsight.heads.discovered import Keys, view_of


def two_kinds(rng: np.random.Generator, few: int, many: int) -> np.ndarray:
    centres = rng.normal(size=(2, 6))
    return np.concatenate([c + 0.2 * rng.normal(size=(n, 6)) for c, n in zip(centres, (few, many), strict=True)])


def test_the_cut_is_that_of_the_generalised_eigenproblem() -> None:
    patches = two_kinds(np.random.default_rng(0), 11, 40)
    units = patches / np.linalg.norm(patches, axis=1, keepdims=True)
    cosine = units @ units.T
    weight = np.where(cosine > threshold_otsu(cosine[np.triu_indices(51, 1)]), 1.0, APART)
    degree = np.diag(weight.sum(1))
    slow = eigh(degree - weight, degree)[1][:, 1]  # (D - W) y = l D y, the second smallest
    found = cut(patches)
    assert abs(np.corrcoef(found, slow)[0, 1]) > 0.9999
    assert len({*(found > found.mean())[:11]}) == len({*(found > found.mean())[11:]}) == 1  # each kind on one side
    assert np.array_equal(found, cut(patches))


def test_a_cut_of_patches_that_are_all_alike_is_no_error() -> None:
    assert np.isfinite(cut(np.ones((20, 3)))).all()


def field(rng: np.random.Generator, things: list[tuple[int, int, int, int]]) -> np.ndarray:
    """[20, 24, 8] of a background, in which rectangles (row, column, height, width) differ, each in its own way."""
    grid = rng.normal(size=8) + 0.3 * rng.normal(size=(20, 24, 8))
    for top, left, height, width in things:
        grid[top : top + height, left : left + width] = 4 * rng.normal(size=8) + 0.3 * rng.normal(
            size=(height, width, 8)
        )
    return grid


@pytest.mark.parametrize(
    "things", [[(5, 6, 6, 5)], [(2, 3, 5, 6), (11, 14, 6, 5)], [(3, 2, 5, 5), (3, 15, 6, 4), (13, 8, 4, 6)]]
)
def test_what_was_planted_is_found_where_it_is(things: list[tuple[int, int, int, int]]) -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(10):
        grid = field(rng, things)
        seen = basis(np.concatenate([field(rng, []).reshape(-1, 8), grid.reshape(-1, 8)])).of(grid)
        found = objects_in(seen, np.ones((20, 24), bool), (160, 192), len(things))
        assert [piece.clear for piece in found] == sorted((piece.clear for piece in found), reverse=True)
        for top, left, height, width in things:
            true = Piece((slice(8 * top, 8 * (top + height)), slice(8 * left, 8 * (left + width))), np.ones(1), 0.0)
            hits += any(near(piece, true) for piece in found)
    assert hits >= 9 * len(things)  # of 10


def near(piece: Piece, true: Piece) -> bool:
    """Whether each edge of a piece is within a patch of the true one."""
    pairs = zip(piece.place, true.place, strict=True)
    return all(abs(a.start - b.start) <= 8 and abs(a.stop - b.stop) <= 8 for a, b in pairs)


def test_nothing_is_found_beyond_the_picture() -> None:
    rng = np.random.default_rng(2)
    grid = field(rng, [(2, 3, 5, 5)])
    counts = np.ones((20, 24), bool)
    counts[:, 16:] = False  # padding, as different from the picture as can be
    grid[:, 16:] = 50.0
    found = objects_in(basis(grid[:, :16].reshape(-1, 8)).of(grid), counts, (160, 192), 3)
    assert found and all(piece.place[1].stop <= 8 * 16 + 4 for piece in found)


def test_boxes_of_one_object() -> None:
    def piece(x0: int, x1: int) -> Piece:
        return Piece((slice(0, 10), slice(x0, x1)), np.ones(1, bool), 1.0)

    assert same(piece(0, 10), piece(5, 15))  # 1/3 of the union
    assert not same(piece(0, 10), piece(6, 16))  # 1/4
    assert same(piece(0, 100), piece(5, 10)) and not same(piece(0, 10), piece(20, 30))


def test_keys_are_what_the_last_block_multiplies_its_input_with() -> None:
    encoder = tiny_encoder(name="vit_tiny_patch16_224")
    images = torch.randn(2, 3, 32, 32)
    seen: list[torch.Tensor] = []
    attention = encoder.net.blocks[-1].attn  # type: ignore[union-attr, index]
    hook = attention.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        keys = last_keys(encoder.net, images)  # type: ignore[arg-type]
        hook.remove()
        weight, bias = attention.qkv.weight[32:64], attention.qkv.bias[32:64]
        slow = (seen[0] @ weight.T + bias)[:, encoder.net.num_prefix_tokens :]  # type: ignore[operator]
    assert keys.shape == (2, 32, 4, 4)
    torch.testing.assert_close(keys.flatten(2).transpose(1, 2), slow)
    assert not attention.qkv._forward_hooks and isinstance(view_of(encoder), Keys)
    assert not isinstance(view_of(tiny_encoder()), Keys)


@pytest.mark.parametrize("seed", range(4, 8))
def test_patches_that_are_alike_but_for_rounding_are_not_cut(seed: int) -> None:
    """As the ground of a drawing is, or what is left of it after a first cut."""
    rng = np.random.default_rng(seed)
    ground = np.tile(rng.normal(size=10), (14, 14, 1))
    everywhere = np.ones((14, 14), bool)
    assert not cut(ground.reshape(-1, 10)).any() and objects_in(ground, everywhere, (112, 112), 3) == []
    ground[3:7, 3:7] = 4 * rng.normal(size=10)
    first = objects_in(ground, everywhere, (112, 112), 3)[0]
    assert [(side.start + side.stop) / 2 for side in first.place] == pytest.approx([40, 40], abs=4)
