"""The parts of a segmentation against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from selfsight.heads.readouts import fit_calibration, fit_readout, leaning, uncalibrated
from selfsight.heads.scenes import Piece, Points, Scene, at_points, counted, drawn_points
from selfsight.heads.segment import confusion, ious, miou
from selfsight.heads.segment_modules import Calibrate, Readout, Segment, guided, mean_around


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels(size: int = 12) -> list[torch.Tensor]:
    return [some(2, 3, size // 2, size // 2), some(2, 4, size // 4, size // 4, seed=1), some(2, 2, 2, 1, seed=2)]


def test_a_readout_is_linear_in_all_levels_brought_to_the_input() -> None:
    weight, bias = some(5, 9, seed=3), some(5, seed=4)
    whole = torch.cat([F.interpolate(level, (12, 14), mode="bilinear") for level in levels()], dim=1)
    expected = torch.einsum("kc,bchw->bkhw", weight, whole) + bias[:, None, None]
    assert torch.allclose(Readout((3, 4, 2), weight, bias)(levels(), (12, 14)), expected, atol=1e-5)


def test_features_of_drawn_pixels_are_those_of_levels_brought_to_the_input() -> None:
    whole = torch.cat([F.interpolate(level, (12, 14), mode="bilinear") for level in levels()], dim=1)[1]
    places = torch.arange(12 * 14)
    found = at_points([level[1] for level in levels()], places, (12, 14))
    assert torch.allclose(found, whole.flatten(1).T, atol=1e-5)


@pytest.mark.parametrize("radius", [1, 3, 20])
def test_the_guided_filter_is_that_of_the_paper(radius: int) -> None:
    """Equations 5, 6 and 8, window by window."""
    rng = np.random.default_rng(0)
    grey, plane, eps = rng.random((9, 11)), rng.random((9, 11)), 1e-2
    windows = {
        (y, x): np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        for y in range(9)
        for x in range(11)
    }
    a, b = np.zeros((9, 11)), np.zeros((9, 11))
    for k, window in windows.items():
        i, p = grey[window], plane[window]
        a[k] = ((i * p).mean() - i.mean() * p.mean()) / (i.var() + eps)
        b[k] = p.mean() - a[k] * i.mean()
    expected = np.array([[a[windows[y, x]].mean() * grey[y, x] + b[windows[y, x]].mean() for x in range(11)]
                         for y in range(9)])  # fmt: skip
    planes = torch.tensor(np.stack([plane, 1 - plane]))[None].float()
    found = guided(planes, torch.tensor(grey)[None, None].float(), radius, eps)
    assert found[0, 0].numpy() == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(1, 9, 11), atol=1e-5)


def test_running_sums_are_exact_enough_on_a_large_picture() -> None:
    planes = torch.rand(1, 1, 40, 3000, generator=torch.Generator().manual_seed(0))
    expected = F.avg_pool2d(planes.double(), 9, 1, 4, count_include_pad=False)
    assert torch.allclose(mean_around(planes, 4).double(), expected, atol=1e-4)


def test_the_readout_has_the_least_loss() -> None:
    """Its gradient is zero, worked out by hand; a step in any direction costs more."""
    n, d, k, decay = 200, 6, 3, 0.01
    features = some(n, d) * torch.tensor([1.0, 10, 0.1, 1, 1, 3]) + 2
    classes = (features @ some(d, k, seed=5) + some(n, k, seed=6)).argmax(1)
    weights = torch.rand(n, generator=torch.Generator().manual_seed(7))
    points = Points(features, classes, weights / weights.sum(), None, np.zeros(k))
    found = fit_readout(points, k, decay, (2, 4), (4, 16))
    scale = features.std(0) / torch.tensor([32.0] * 2 + [4.0] * 4).sqrt()  # 64 / C times 4 / stride
    own = found.weight * scale  # of standardised features
    p = (features @ found.weight.T + found.bias).softmax(1)
    off = (p - F.one_hot(classes, k)) * points.weights[:, None]
    gradient = off.T @ ((features - features.mean(0)) / scale) + decay * own
    assert gradient.abs().max() < 2e-3 and off.sum(0).abs().max() < 2e-3


def test_pixels_are_drawn_evenly_over_classes_and_weigh_the_same() -> None:
    classes = torch.zeros(10, 10, dtype=torch.int64)
    classes[0, :5], classes[1] = 1, -1
    piece = Piece([some(2, 5, 5).half()], torch.zeros(1, 10, 10), classes, None)
    scene = Scene(0, [piece], [], counted(classes, 2))
    points = drawn_points([scene], 1, 2, 40, seed=0)
    assert torch.bincount(points.classes).tolist() == [20, 5] and points.counts.tolist() == [85, 5]
    for kind in (0, 1):
        assert points.weights[points.classes == kind].sum() == pytest.approx(0.5)


def test_a_picture_of_many_tiles_gives_no_more_pixels_than_one_of_one_tile() -> None:
    rng = np.random.default_rng(0)
    pieces = [
        Piece([some(2, 5, 5).half()], torch.zeros(1, 10, 10), torch.tensor(rng.integers(0, 2, (10, 10))),
              torch.ones(2, 10, 10))
        for _ in range(30)
    ]  # fmt: skip
    counts = sum(counted(piece.classes, 2) for piece in pieces)
    points = drawn_points([Scene(0, pieces, [], counts)], 1, 2, 40, seed=0)
    assert len(points.features) == 60 and points.apart is not None and (points.apart == 1).all()
    assert points.counts.sum() == 3_000
    one = Scene(0, pieces[7:8], [], counts)
    every = drawn_points([one], 1, 2, 10_000, seed=0)  # of each the class and the features at its own place
    both = torch.cat(
        [at_points(pieces[7].levels, (pieces[7].classes.flatten() == k).nonzero()[:, 0], (10, 10)) for k in (0, 1)]
    )
    assert torch.equal(every.features[:100], both)


def test_calibration_finds_the_temperature_and_the_shares_of_classes() -> None:
    """Scores that are twice as sure as they may be, of classes that weighed the same; the truth is drawn from them."""
    rng = np.random.default_rng(0)
    logits = some(20_000, 3) * 1.5
    offset = torch.tensor([1.0, 0.0, -1.0])
    p = (logits + offset).softmax(1).numpy()
    true = torch.tensor([rng.choice(3, p=row / row.sum()) for row in p])
    found = fit_calibration(2.0 * logits, true, np.array([3, 2, 1]), 0.0)
    assert float(found.slope) == pytest.approx(0.5, abs=0.02)
    between = found.offset - found.offset.mean()
    assert between.tolist() == pytest.approx(offset.tolist(), abs=0.06)


def test_a_lean_gives_rare_classes_their_due() -> None:
    """With all of it, the class is chosen by likelihood, whatever its share."""
    calibrate = Calibrate(torch.ones(()), torch.zeros(2), leaning(np.array([990, 10]), 1.0))
    scores = torch.tensor([[0.9, 0.1]]).log().reshape(1, 2, 1, 1)
    told = calibrate({"scores": scores})
    assert told["probabilities"].flatten().tolist() == pytest.approx([0.9, 0.1]) and told["mask"].item() == 1
    usual = uncalibrated(np.array([990, 10]), 0.0)({"scores": torch.zeros(1, 2, 1, 1)})
    assert usual["probabilities"].flatten().tolist() == pytest.approx([0.99, 0.01]) and usual["mask"].item() == 0


def test_the_filter_leaves_probabilities() -> None:
    task = Segment(Readout((3,), some(4, 3), some(4)), 2, radius=2)
    found = task([some(1, 3, 6, 6)], torch.rand(1, 1, 12, 12))
    assert torch.allclose(found["scores"].exp().sum(1), torch.ones(1, 12, 12), atol=1e-5)
    assert found["centre"].shape == (1, 12, 12) and found["centre"].min() > 0 and found["boundary"].max() < 1


def test_intersection_over_union_by_hand() -> None:
    true = np.array([[0, 0, 1, 1], [2, 2, -1, 1]])
    answer = np.array([[0, 1, 1, 1], [2, 0, 2, 1]])
    counts = confusion(true, answer, 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 3, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert ious(counts[None])[:3] == pytest.approx([1 / 3, 3 / 4, 1 / 2]) and np.isnan(ious(counts[None])[3])
    assert miou(counts[None]) == pytest.approx((1 / 3 + 3 / 4 + 1 / 2) / 3)
