"""Crops and their sampling: against closed forms, a slow bilinear loop, and torchvision as referee."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from helpers import picture
from scipy.stats import kstest

from selfsight.data.randomness import uniform
from selfsight.views.crops import crop_affines, levels_of, pyramid, sample
from selfsight.views.plan import ViewGroup


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    stack = np.stack([picture(rng, height, width) for _ in range(count)])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255


def box(x: float, y: float, w: float, h: float, size: int, flip: bool = False) -> np.ndarray:
    return np.array([[[-w / size if flip else w / size, 0, x + w if flip else x], [0, h / size, y]]])


def slow_bilinear(image: np.ndarray, affine: np.ndarray, size: int) -> np.ndarray:
    """[C, size, size] of `image` [C, H, W], one pixel at a time; pixel i has its centre at i + 0.5."""
    _, height, width = image.shape
    out = np.zeros((len(image), size, size))
    for r in range(size):
        for c in range(size):
            x, y = affine @ np.array([c + 0.5, r + 0.5, 1.0])
            x, y = min(max(x - 0.5, 0.0), width - 1.0), min(max(y - 0.5, 0.0), height - 1.0)
            x0, y0 = min(int(x), width - 2), min(int(y), height - 2)
            fx, fy = x - x0, y - y0
            for dy, dx, weight in [
                (0, 0, (1 - fy) * (1 - fx)),
                (0, 1, (1 - fy) * fx),
                (1, 0, fy * (1 - fx)),
                (1, 1, fy * fx),
            ]:
                out[:, r, c] += weight * image[:, y0 + dy, x0 + dx]
    return out


def draw_boxes(group: ViewGroup, height: int, width: int, count: int = 20_000) -> dict[str, np.ndarray]:
    """Left, top, width, height, and whether flipped, of many crops, read back through their corners."""
    draws = uniform(0, 0, np.arange(count, dtype=np.uint64), "geometry", 5)
    affines = crop_affines(draws, np.tile([[height, width]], (count, 1)), group)
    start = affines @ np.array([0.0, 0.0, 1.0])
    end = affines @ np.array([group.size, group.size, 1.0])
    low, high = np.minimum(start, end), np.maximum(start, end)
    assert (start[:, 1] <= end[:, 1]).all()  # never upside down
    return {
        "x": low[:, 0],
        "y": low[:, 1],
        "w": (high - low)[:, 0],
        "h": (high - low)[:, 1],
        "flip": start[:, 0] > end[:, 0],
    }


# -- the boxes --


def test_a_box_by_hand():
    group = ViewGroup(count=1, size=10, scale=(0.2, 0.3), ratio=(1.0, 4.0), flip=0.5)
    # area: the middle of 0.2 and 0.3; ratio: the geometric middle of 1 and 4; place: a quarter and all the way.
    draws = np.array([[0.5, 0.5, 0.25, 1.0, 0.6], [0.5, 0.5, 0.25, 1.0, 0.4]])
    plain, flipped = crop_affines(draws, np.array([[80, 100], [80, 100]]), group)
    w, h = math.sqrt(0.25 * 8000 * 2), math.sqrt(0.25 * 8000 / 2)
    x, y = 0.25 * (100 - w), 80 - h
    assert np.allclose(plain @ [0, 0, 1], [x, y]) and np.allclose(plain @ [10, 10, 1], [x + w, y + h])
    assert np.allclose(flipped @ [0, 0, 1], [x + w, y]) and np.allclose(flipped @ [10, 10, 1], [x, y + h])


@pytest.mark.parametrize("height, width", [(100, 100), (80, 100)])
def test_area_ratio_place_and_flip_have_the_declared_distributions(height: int, width: int):
    group = ViewGroup(count=1, size=16, scale=(0.1, 0.4), ratio=(3 / 4, 4 / 3), flip=0.3)
    b = draw_boxes(group, height, width)  # the largest, 0.4 by 4/3, still fits: nothing is cut
    count = len(b["x"])
    share = b["w"] * b["h"] / (height * width)
    assert kstest(share, "uniform", (0.1, 0.3)).pvalue > 1e-4
    assert kstest(np.log(b["w"] / b["h"]), "uniform", (-math.log(4 / 3), 2 * math.log(4 / 3))).pvalue > 1e-4
    assert kstest(b["x"] / (width - b["w"]), "uniform").pvalue > 1e-4
    assert kstest(b["y"] / (height - b["h"]), "uniform").pvalue > 1e-4
    assert abs(b["flip"].mean() - 0.3) < 5 * math.sqrt(0.21 / count)
    parts = np.stack([share, b["w"] / b["h"], b["x"] / (width - b["w"]), b["y"] / (height - b["h"]), b["flip"]])
    assert np.abs(np.corrcoef(parts) - np.eye(5)).max() < 5 / math.sqrt(count)


@pytest.mark.parametrize("flip, expected", [(0.0, 0.0), (1.0, 1.0)])
def test_flip_never_and_always(flip: float, expected: float):
    assert draw_boxes(ViewGroup(count=1, size=8, flip=flip), 50, 50, 1000)["flip"].mean() == expected


def test_what_does_not_fit_is_cut_to_the_canvas():
    b = draw_boxes(ViewGroup(count=1, size=8, scale=(0.9, 1.0), ratio=(3.0, 4.0)), 60, 40, 1000)
    assert np.allclose(b["w"], 40) and np.allclose(b["x"], 0)
    assert (b["h"] < 60).all() and (b["y"] >= 0).all() and (b["y"] + b["h"] <= 60 + 1e-9).all()
    tiny = draw_boxes(ViewGroup(count=1, size=8, scale=(1e-9, 1e-8)), 60, 40, 100)
    assert (tiny["w"] == pytest.approx(1.0)) and (tiny["h"] == pytest.approx(1.0))  # never less than a pixel


# -- the pyramid --


def test_pyramid_is_the_mean_of_blocks():
    images = pictures(2, 32, 48)
    levels = pyramid(images, 3)
    for k, level in enumerate(levels):
        n = 2**k
        blocks = images.unfold(2, n, n).unfold(3, n, n).mean((4, 5))
        assert torch.allclose(level, blocks, atol=1e-6)


def test_pyramid_of_odd_sides_repeats_the_edge():
    image = torch.tensor([[[[1.0, 2.0, 3.0], [5.0, 6.0, 7.0], [9.0, 10.0, 11.0]]]])
    assert pyramid(image, 1)[1].tolist() == [[[[3.5, 5.0], [9.5, 11.0]]]]


def test_levels_of_is_the_whole_number_of_halvings():
    steps = [0.3, 1.0, 1.99, 2.0, 3.99, 4.0, 9.0]
    affines = np.concatenate([box(0, 0, s * 8, 8, 8) for s in steps])
    assert levels_of(affines).tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert levels_of(box(0, 0, 8, 32, 8, flip=True)).tolist() == [2]  # the coarser side decides
    assert levels_of(box(0, 0, 32, 8, 8, flip=True)).tolist() == [2]  # a flip is no smaller step


# -- sampling at the canvas' own level --


@pytest.mark.parametrize("flip", [False, True])
def test_sampling_equals_a_slow_bilinear_loop(flip: bool):
    images = pictures(1, 30, 40)
    for x, y, w, h in [(0, 0, 40, 30), (3.7, 2.2, 17.3, 11.9), (20, 10, 20, 20), (38.5, 0, 1.5, 1.0)]:
        affine = box(x, y, w, h, 24, flip)
        got = sample([images], affine, 24)[0].double().numpy()
        assert np.abs(got - slow_bilinear(images[0].double().numpy(), affine[0], 24)).max() < 2e-5


@pytest.mark.parametrize("top, left, h, w", [(0, 0, 30, 40), (5, 8, 12, 20), (7, 3, 23, 17), (10, 20, 8, 8)])
def test_sampling_equals_torchvision_inside_the_box(top: int, left: int, h: int, w: int):
    images, size = pictures(2, 30, 40), 24
    affine = box(left, top, w, h, size).repeat(2, 0)
    assert levels_of(affine).max() == 0
    got = sample([images], affine, size)
    wanted = tv.resized_crop(images, top, left, h, w, [size, size], tv.InterpolationMode.BILINEAR, antialias=False)
    # torchvision crops first, so within half a pixel of the box's border it cannot see the neighbours.
    cx, cy = (torch.arange(size) + 0.5) * w / size, (torch.arange(size) + 0.5) * h / size
    inside = ((cy >= 0.5) & (cy <= h - 0.5))[:, None] & ((cx >= 0.5) & (cx <= w - 0.5))[None, :]
    assert inside.float().mean() > 0.6
    assert (got - wanted)[:, :, inside].abs().max() < 1e-5


def test_a_whole_canvas_at_its_own_size_is_itself_and_a_flip_mirrors_it():
    images = pictures(3, 32, 32)
    assert torch.allclose(sample([images], box(0, 0, 32, 32, 32).repeat(3, 0), 32), images, atol=1e-5)
    mirrored = sample([images], box(0, 0, 32, 32, 32, flip=True).repeat(3, 0), 32)
    assert torch.allclose(mirrored, images.flip(3), atol=1e-5)
    # An odd crop as well: left and right of the same box are exchanged, top and bottom are not.
    one, two = (sample([images], box(3.3, 5.1, 20.2, 18.7, 16, flip).repeat(3, 0), 16) for flip in (False, True))
    assert torch.allclose(one.flip(3), two, atol=1e-5)


# -- sampling from the pyramid --


def test_downscaling_by_four_is_the_mean_of_four_by_four():
    images = torch.rand(2, 3, 128, 128)
    got = sample(pyramid(images, 2), box(0, 0, 128, 128, 32).repeat(2, 0), 32)
    assert torch.allclose(got, F.avg_pool2d(images, 4), atol=1e-5)


def test_downscaling_is_near_torchvisions_antialiased_resize():
    images = pictures(2, 128, 160)
    for w, h, size in [(160, 128, 32), (150, 100, 24), (96, 96, 32)]:
        affine = box(4, 8, w, h, size).repeat(2, 0) if w < 160 else box(0, 0, w, h, size).repeat(2, 0)
        top, left = (8, 4) if w < 160 else (0, 0)
        wanted = tv.resized_crop(images, top, left, h, w, [size, size], tv.InterpolationMode.BILINEAR, antialias=True)
        inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        error = (sample(pyramid(images, 3), affine, size) - wanted)[inner].square().mean().sqrt()
        assert error < 0.025


@pytest.mark.parametrize("period", [2, 3, 5])
def test_fine_patterns_do_not_alias(period: int):
    # A checkerboard finer than the view can show must come out as an even grey.
    y, x = torch.meshgrid(torch.arange(240), torch.arange(240), indexing="ij")
    board = ((x % period < period / 2) ^ (y % period < period / 2)).float()[None, None]
    mean = F.avg_pool2d(board, 240 // 30 * period, stride=1).mean()
    affine = box(0.5, 0.5, 232, 232, 29)  # eight canvas pixels a view pixel, off the grid of the canvas
    through = sample(pyramid(board, 3), affine, 29)
    without = sample([board], affine, 29)
    wanted = tv.resize(board, [30, 30], antialias=True)
    assert (wanted - mean).abs().max() < 0.1
    assert (through - mean).square().mean().sqrt() < 0.06
    assert (without - mean).square().mean().sqrt() > 4 * (through - mean).square().mean().sqrt()


def test_a_place_is_kept_through_the_levels():
    # The centre of a bright blob, found in the view, maps through the affine to where the blob is.
    y, x = np.mgrid[:128, :128] + 0.5
    blob = torch.from_numpy(np.exp(-((x - 70.0) ** 2 + (y - 45.0) ** 2) / (2 * 6.0**2))).float()[None, None]
    for w, h, size, flip in [(100, 90, 64, False), (100, 90, 40, True), (110, 100, 25, False), (110, 110, 12, True)]:
        affine = box(12.0, 6.0, w, h, size, flip)
        view = sample(pyramid(blob, 4), affine, size)[0, 0].double().numpy()
        centres = np.arange(size) + 0.5
        at = [(view.sum(0) * centres).sum() / view.sum(), (view.sum(1) * centres).sum() / view.sum(), 1.0]
        step = max(w, h) / size
        assert np.abs(affine[0] @ at - [70.0, 45.0]).max() < 0.05 * max(1.0, step)


def test_views_of_mixed_levels_equal_each_alone():
    images = pictures(5, 96, 96)
    affines = np.concatenate([box(1, 2, s, s, 12, s % 2 == 1) for s in (8, 15, 30, 61, 90)])
    assert sorted(set(levels_of(affines).tolist())) == [0, 1, 2]
    levels = pyramid(images, 2)
    together = sample(levels, affines, 12)
    for i in range(5):
        assert torch.equal(together[i : i + 1], sample([level[i : i + 1] for level in levels], affines[i : i + 1], 12))
