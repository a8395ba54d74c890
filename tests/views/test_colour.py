"""Photometric changes: a slow float64 reference, torchvision as referee, and frequencies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from helpers import PLAIN

from selfsight.data.randomness import uniform
from selfsight.views.colour import COLOUR_DRAWS, change_colour, gaussian_blur, jitter, solarise
from selfsight.views.plan import Colour


def slow_jitter(image: np.ndarray, b: float, c: float, s: float, h: float) -> np.ndarray:
    """[3, H, W] float64, pixel by pixel: to YIQ, turn and scale the chrominance, back; then contrast, brightness."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    _, height, width = image.shape
    mean = np.mean([to_yiq[0] @ image[:, r, k] for r in range(height) for k in range(width)])
    out = np.zeros_like(image)
    for r in range(height):
        for k in range(width):
            y, i, q = to_yiq @ image[:, r, k]
            chroma = complex(i, q) * s * complex(math.cos(2 * math.pi * h), math.sin(2 * math.pi * h))
            rgb = np.linalg.solve(to_yiq, [y, chroma.real, chroma.imag])
            out[:, r, k] = np.clip(b * (mean + c * (rgb - mean)), 0.0, 1.0)
    return out


def ones(n: int) -> torch.Tensor:
    return torch.ones(n)


def draws_of(count: int, channels: int = 3) -> np.ndarray:
    return uniform(0, 0, np.arange(count, dtype=np.uint64), "colour", COLOUR_DRAWS + 2 * channels)


def test_jitter_equals_the_slow_reference_for_each_image():
    images = torch.rand(6, 3, 7, 9)
    b, c = torch.tensor([1.0, 0.7, 1.3, 1.0, 0.9, 1.4]), torch.tensor([1.0, 1.3, 0.6, 1.0, 1.2, 0.8])
    s, h = torch.tensor([1.0, 0.8, 1.2, 1.5, 0.0, 1.1]), torch.tensor([0.0, 0.1, -0.1, 0.25, 0.3, -0.5])
    got = jitter(images, b, c, s, h)
    for k in range(6):
        wanted = slow_jitter(images[k].double().numpy(), *(float(v[k]) for v in (b, c, s, h)))
        assert np.abs(got[k].double().numpy() - wanted).max() < 2e-5


def test_nothing_changed_and_a_full_turn_of_hue_are_the_identity():
    images = torch.rand(4, 3, 8, 8)
    one = ones(4)
    assert torch.allclose(jitter(images, one, one, one, 0 * one), images, atol=2e-6)
    assert torch.allclose(jitter(images, one, one, one, one), images, atol=2e-6)
    assert not torch.allclose(jitter(images, one, one, one, one / 2), images, atol=0.05)


def test_saturation_nought_is_torchvisions_grey():
    images = torch.rand(4, 3, 8, 8)
    got = jitter(images, ones(4), ones(4), 0 * ones(4), 0.3 * ones(4))
    assert (got - tv.rgb_to_grayscale(images, 3)).abs().max() < 1e-3


def test_brightness_and_contrast_equal_torchvisions():
    images = torch.rand(3, 3, 8, 8)
    one, zero = ones(3), 0 * ones(3)
    for factor in (0.6, 1.4):
        assert torch.allclose(
            jitter(images, factor * one, one, one, zero), tv.adjust_brightness(images, factor), atol=1e-5
        )
        assert torch.allclose(
            jitter(images, one, factor * one, one, zero), tv.adjust_contrast(images, factor), atol=1e-3
        )
        assert torch.allclose(
            jitter(images, one, one, factor * one, zero), tv.adjust_saturation(images, factor), atol=1e-3
        )


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_change_each_by_its_own_strength(channels: int):
    images = torch.rand(2, channels, 6, 7) * 0.5 + 0.25
    b, c = torch.rand(2, channels) * 0.4 + 0.8, torch.rand(2, channels) * 0.4 + 0.8
    got = jitter(images, b, c)
    for k in range(2):
        for ch in range(channels):
            x = images[k, ch].double()
            wanted = (b[k, ch] * (x.mean() + c[k, ch] * (x - x.mean()))).clamp(0, 1)
            assert (got[k, ch] - wanted).abs().max() < 1e-6


def test_blur_equals_torchvisions_with_each_images_own_sigma():
    images = torch.rand(4, 3, 20, 23)
    sigma = torch.tensor([0.1, 0.7, 1.5, 2.0])
    for radius in (2, 4):
        got = gaussian_blur(images, sigma, radius)
        for k in range(4):
            wanted = tv.gaussian_blur(images[k], [2 * radius + 1] * 2, [float(sigma[k])] * 2)
            assert (got[k] - wanted).abs().max() < 1e-5


def test_solarise_equals_torchvisions():
    images = torch.rand(2, 3, 8, 8)
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0.5, 0.8  # the threshold itself is inverted
    assert torch.equal(solarise(images), tv.solarize(images, 0.5))
    assert torch.equal(solarise(images, 0.8), tv.solarize(images, 0.8))


# -- the whole, from draws --


@pytest.mark.parametrize("part", ["blur", "solarise", "grey", "jitter"])
def test_probabilities_are_honoured(part: str):
    count, p = 4000, 0.3
    images = torch.rand(1, 3, 6, 6).repeat(count, 1, 1, 1)
    values = PLAIN.__dict__ | {part: p, "brightness": 0.5 if part == "jitter" else 0.0, "blur_sigma": (1.0, 2.0)}
    changed = (change_colour(images.clone(), draws_of(count), Colour(**values)) - images).abs().amax((1, 2, 3)) > 1e-3
    assert abs(changed.float().mean() - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_each_part_alone_has_its_declared_strength():
    count = 3000
    grey = torch.full((count, 3, 4, 4), 0.5)
    bright = change_colour(grey.clone(), draws_of(count), Colour(**PLAIN.__dict__ | {"brightness": 0.4, "jitter": 1.0}))
    factor = bright.mean((1, 2, 3)) / 0.5
    assert 0.6 <= factor.min() < 0.61 and 1.39 < factor.max() <= 1.4001 and abs(factor.mean() - 1) < 0.02
    half = torch.rand(1, 3, 4, 4).repeat(count, 1, 1, 1) * 0.2 + 0.4
    flat = change_colour(half.clone(), draws_of(count), Colour(**PLAIN.__dict__ | {"contrast": 0.4, "jitter": 1.0}))
    ratio = flat.flatten(1).std(1) / half.flatten(1).std(1)
    assert 0.6 <= ratio.min() < 0.7 and 1.3 < ratio.max() < 1.41
    # Hue: the turn of the IQ plane, read back from a coloured patch.
    iq = torch.tensor([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    patch = torch.tensor([0.6, 0.45, 0.5]).view(1, 3, 1, 1).repeat(count, 1, 2, 2)
    turned = change_colour(patch.clone(), draws_of(count), Colour(**PLAIN.__dict__ | {"hue": 0.1, "jitter": 1.0}))
    before, after = ((iq @ x[:, :, 0, 0].T) for x in (patch, turned))
    angle = torch.atan2(after[1], after[0]) - torch.atan2(before[1], before[0])
    assert 0.095 < angle.max() / (2 * math.pi) <= 0.1001 and -0.1001 <= angle.min() / (2 * math.pi) < -0.095


def test_blur_sigma_is_drawn_from_its_range():
    # The variance that a blur adds to a point is sigma squared: wide enough a window to see it all.
    count, size = 200, 41
    point = torch.zeros(count, 3, size, size)
    point[:, :, size // 2, size // 2] = 0.4
    draws = draws_of(count)
    got = change_colour(point.clone(), draws, Colour(**PLAIN.__dict__ | {"blur": 1.0, "blur_sigma": (0.5, 3.0)}))
    x = torch.arange(size) - size // 2
    profile = got[:, 0].sum(1)  # [B, size]
    sigma = ((profile * x**2).sum(1) / profile.sum(1)).sqrt()
    wanted = torch.as_tensor(0.5 + 2.5 * draws[:, 7])
    assert (sigma - wanted).abs()[wanted < 2].max() < 0.05  # beyond, the tails are cut at two sigmas
    assert np.corrcoef(sigma, wanted)[0, 1] > 0.98


def test_colour_is_a_function_of_the_draws_and_leaves_its_input_alone():
    images, draws = torch.rand(16, 3, 12, 12), draws_of(16)
    colour = Colour(blur=0.5)
    kept = images.clone()
    one, two = change_colour(images, draws, colour), change_colour(images, draws, colour)
    assert torch.equal(one, two) and torch.equal(images, kept)
    assert one.min() >= 0 and one.max() <= 1
    order = torch.randperm(16)
    assert torch.equal(change_colour(images[order], draws[order], colour), one[order])
    assert torch.equal(change_colour(images[3:4], draws[3:4], colour), one[3:4])


def test_grey_images_take_no_part_in_hue_and_grey():
    images = torch.rand(64, 1, 6, 6)
    colour = Colour(brightness=0, contrast=0, saturation=1, hue=0.5, jitter=1, grey=1, blur=0, solarise=0)
    assert torch.allclose(change_colour(images, draws_of(64, 1), colour), images, atol=1e-6)
