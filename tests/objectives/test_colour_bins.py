"""Colour: Lab against published values, bins and rebalancing against loops, and no grey images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import default_objective, two_views

from selfsight.errors import SelfsightError
from selfsight.objectives.colour import MEMORY, ColourBins, bin_table, bins_of, gamut, rebalanced, rebalancing, to_lab
from selfsight.objectives.objective import find
from selfsight.views.make import View

# The corners of the sRGB cube in Lab (D65, 2 degrees) as colour calculators print them (Lindbloom; easyrgb.com).
PUBLISHED = {
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (255, 255, 0): (97.14, -21.55, 94.48),
    (0, 255, 255): (91.11, -48.09, -14.13),
    (255, 0, 255): (60.32, 98.23, -60.82),
    (255, 255, 255): (100.0, 0.0, 0.0),
    (128, 128, 128): (53.59, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
}


def view_of(unit: torch.Tensor) -> View:
    """A view of images [B, 3, H, W] in [0, 1], normalised as the tiny encoders are."""
    return View((unit - 0.5) / 0.25, torch.zeros(len(unit), 2, 3), [str(i) for i in range(len(unit))], 0)


@pytest.mark.parametrize("rgb", PUBLISHED)
def test_lab_is_as_published(rgb: tuple[int, int, int]):
    got = to_lab(torch.tensor(rgb).view(1, 3, 1, 1) / 255)
    assert got.flatten().tolist() == pytest.approx(PUBLISHED[rgb], abs=0.015)


def test_lab_is_that_of_a_loop_in_double_precision():
    rng = np.random.default_rng(0)
    images = rng.random((2, 3, 4, 5)) ** 3  # dark ones too, below both linear parts

    def lab(pixel: np.ndarray) -> list[float]:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in pixel]
        m = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
        xyz = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in m]
        x, y, z = (
            t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116
            for t in (v / w for v, w in zip(xyz, (0.95047, 1.0, 1.08883), strict=True))
        )
        return [116 * y - 16, 500 * (x - y), 200 * (y - z)]

    wanted = np.apply_along_axis(lab, 1, images)
    assert np.allclose(to_lab(torch.tensor(images)).numpy(), wanted, atol=1e-4)
    assert np.allclose(to_lab(torch.tensor(images).float()).numpy(), wanted, atol=1e-2)


@pytest.mark.parametrize("step", [5, 10, 20])
def test_the_bins_are_those_that_srgb_can_show(step: int):
    bins = gamut(step)
    assert len(bins.unique(dim=0)) == len(bins) and (bins % step == 0).all() and (0 in bins.abs().sum(1))
    # Of ab in [-110, 110] sRGB fills a bit over half; the paper counts 313 bins of 10 with a rim, 22 x 22 in all.
    assert 0.4 < len(bins) * step**2 / 220**2 < 0.65
    ab = to_lab(torch.rand(1, 3, 4000, 1))[:, 1:, :, 0]  # [1, 2, 4000]
    nearest = (ab[0].T[:, None] - bins).abs().amax(2).argmin(1)
    inside = (ab[0].T - bins[nearest]).abs().amax(1) < step / 2 - 1e-3
    assert inside.float().mean() > 0.98
    assert torch.equal(bins_of(ab, bin_table(step), step)[0][inside], nearest[inside])


def test_a_colour_outside_of_the_bins_gets_one_close_by():
    bins, ab = gamut(10), torch.tensor([[[120.0, -127.0, 0.0], [120.0, -127.0, 0.0]]])
    got = bins[bins_of(ab, bin_table(10), 10)[0]]
    for point, chosen in zip(ab[0].T, got, strict=True):
        centre = (point / 10).round().clamp(-12, 12) * 10
        assert (chosen - centre).norm() == (bins - centre).norm(dim=1).min()
    assert got[2].tolist() == [0.0, 0.0]


def test_cells_are_labelled_in_reading_order_by_their_mean():
    task = default_objective("colour")
    colours = torch.tensor([[255, 0, 0], [0, 128, 0], [20, 40, 250], [128, 128, 128]]) / 255
    unit = colours.T.reshape(1, 3, 2, 2).repeat_interleave(16, 2).repeat_interleave(16, 3)
    _, ab = task.task(view_of(unit))
    labels = task.bins(ab, (2, 2))
    wanted = to_lab(colours.T[None, :, :, None])[0, 1:, :, 0].T
    assert ((gamut(10)[labels[0]] - wanted).abs() <= 5.01).all()
    whole = gamut(10)[task.bins(ab, (1, 1))[0, 0]]
    assert ((whole - wanted.mean(0)).abs() <= 5.01).all()


def test_the_encoder_sees_lightness_three_times_and_no_colour():
    task = default_objective("colour")
    unit = torch.rand(2, 3, 32, 32)
    light, ab = task.task(view_of(unit))
    lab = to_lab(unit)
    assert torch.allclose(light * 0.25 + 0.5, (lab[:, :1] / 100).expand(2, 3, 32, 32), atol=1e-4)
    assert torch.allclose(ab, lab[:, 1:], atol=1e-2)
    y = ((lab[:, :1] + 16) / 116) ** 3
    y = torch.where(lab[:, :1] > 8, y, lab[:, :1] * 27 / 24389)
    grey = torch.where(y > 0.0031308, 1.055 * y ** (1 / 2.4) - 0.055, 12.92 * y)  # a grey image as light at each pixel
    assert torch.allclose(task.task(view_of(grey.expand(2, 3, 32, 32)))[0], light, atol=1e-3)


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_rare_colours_count_more(mix: float):
    f = torch.tensor([0.7, 0.2, 0.1])
    raw = [1 / ((1 - mix) * p + mix / 3) for p in f.tolist()]
    mean = sum(p * w for p, w in zip(f.tolist(), raw, strict=True))
    assert rebalancing(f, mix).tolist() == pytest.approx([w / mean for w in raw], rel=1e-5)
    if mix == 1.0:
        assert rebalancing(f, mix).tolist() == pytest.approx([1, 1, 1])
    assert torch.isfinite(rebalancing(torch.tensor([1.0, 0.0, 0.0]), 0.5)).all()


def test_the_loss_is_that_of_a_loop():
    logits, labels, weights = torch.randn(3, 4, 5, dtype=torch.float64), torch.randint(5, (3, 4)), torch.rand(5) + 0.5
    losses = []
    for row, label in zip(logits.view(12, 5).tolist(), labels.flatten().tolist(), strict=True):
        losses.append(float(weights[label]) * (math.log(math.fsum(math.exp(x) for x in row)) - row[label]))
    assert rebalanced(logits, labels, weights).item() == pytest.approx(math.fsum(losses) / 12, abs=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rebalanced(logits.bfloat16(), labels, weights).dtype == torch.float32


def test_equal_logits_give_the_chance_level_whatever_the_frequencies():
    labels = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1, 2]])
    weights = rebalancing(labels[0].bincount() / 10)
    assert rebalanced(torch.zeros(1, 10, 3), labels, weights).item() == pytest.approx(math.log(3), abs=1e-6)
    task = default_objective("colour")
    for parameter in (task.cells.weight, task.cells.bias, task.whole.weight):
        torch.nn.init.zeros_(parameter)
    loss = task([view_of(torch.rand(4, 3, 32, 32))], 0.0)
    assert loss.total.item() == pytest.approx(math.log(len(gamut(10))), abs=1e-5)


@pytest.mark.parametrize("encoder", ["resnet18", "vit_tiny_patch16_224"])
def test_the_objective_is_the_loss_of_its_cells(encoder: str):
    task, view = default_objective("colour", encoder, step=20).eval(), view_of(torch.rand(3, 3, 32, 32))
    task.frequency.copy_(torch.rand(75).softmax(0))
    with torch.no_grad():
        got = task([view], 0.0)
        light, ab = task.task(view)
        losses, right = [], []
        for b in range(3):
            f = task.encoder(light[b : b + 1])
            assert torch.allclose(got.embeddings[0, b], f.pooled[0], atol=1e-5)
            height = 32 // f.grid[0]
            for n in range(f.patches.shape[1]):
                y, x = n // f.grid[1] * height, n % f.grid[1] * height
                mean = ab[b, :, y : y + height, x : x + height].mean((1, 2))
                label = int((gamut(20) - mean).abs().amax(1).argmin())
                logits = (task.cells(f.patches[0, n]) + task.whole(f.pooled[0])).tolist()
                weight = float(rebalancing(task.frequency)[label])
                losses.append(weight * (math.log(math.fsum(math.exp(x) for x in logits)) - logits[label]))
                right.append(max(range(75), key=logits.__getitem__) == label)
    assert got.total.item() == pytest.approx(math.fsum(losses) / len(losses), abs=1e-4)
    assert got.parts["accuracy"].item() == pytest.approx(sum(right) / len(right))


def test_the_frequencies_follow_the_batches_and_are_kept():
    task = default_objective("colour")
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 32, 32)
    before = task.frequency.clone()
    task([view_of(red)], 0.0)
    assert torch.equal(task.frequency, before)  # a forward alone changes nothing
    task.after_step(0.0)
    where = int((gamut(10) - torch.tensor([80.0, 70.0])).abs().sum(1).argmin())
    wanted = before * (1 - MEMORY)
    wanted[where] += MEMORY
    assert torch.allclose(task.frequency, wanted, atol=1e-7)
    assert task.frequency.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert "frequency" in task.state_dict() and "table" not in task.state_dict()


@pytest.mark.parametrize("channels, said", [(1, "1 channel:"), (5, "5 channels:")])
def test_images_without_colour_are_refused_in_a_sentence(channels: int, said: str):
    for name in ("colour", "rotation+colour"):
        with pytest.raises(SelfsightError) as error:
            find(name).check("resnet18", channels, two_views())
        assert said in str(error.value) and str(error.value).count(".") == 1 and str(error.value).endswith(".")
    ColourBins.check("resnet18", 3, two_views())
