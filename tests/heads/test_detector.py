"""The parts of a detector: what it is to be told, what it makes of that, and how it is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfsight.data.boxed import Truth
from selfsight.data.placements import Placement, tiles
from selfsight.heads.detect import best_of
from selfsight.heads.detect_fit import Piece, box_loss, fit_calibration, heat_loss, target_of
from selfsight.heads.detect_learnt import best_thresholds, count_widths
from selfsight.heads.detect_metrics import Precisions, precisions
from selfsight.heads.detect_modules import Calibrate, Detect, boxes_at
from selfsight.heads.detect_objects import Found, gathered, kept, matched, overlaps
from selfsight.heads.detect_prototypes import Prototypes, Windows, fit_prototypes, log_odds, regions, sizes_of
from selfsight.heads.detect_voice import between


def boxes_in(rng: np.random.Generator, count: int, side: float = 200.0) -> np.ndarray:
    low = rng.uniform(0, side - 40, (count, 2))
    return np.concatenate([low, low + rng.uniform(10, 40, (count, 2))], 1)


def area_of_overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Of boxes with whole edges, by counting the pixels of both."""
    grid = np.zeros((2, 250, 250), bool)
    for place, (x0, y0, x1, y1) in enumerate((one.astype(int), other.astype(int))):
        grid[place, y0:y1, x0:x1] = True
    return float(grid.all(0).sum() / grid.any(0).sum())


def test_overlaps_are_those_of_counted_pixels() -> None:
    rng = np.random.default_rng(0)
    one, other = boxes_in(rng, 12, 80).round(), boxes_in(rng, 9, 80).round()
    slow = [[area_of_overlap(a, b) for b in other] for a in one]
    assert np.allclose(overlaps(one, other), slow) and np.max(slow) > 0.3


def test_objects_that_touch_stay_and_second_boxes_of_one_go() -> None:
    """Three boxes of one object, a neighbour that overlaps it by a half with its centre apart, another class on it."""
    boxes = np.array([[0, 0, 40, 40], [2, 1, 42, 41], [0, 0, 37, 40], [14, 0, 54, 40], [0, 0, 40, 40]], float)
    found = Found(boxes, np.array([0, 0, 0, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6, 0.5]))
    share, apart = overlaps(boxes[:1], boxes[3:4])[0, 0], 14**2 / (54**2 + 40**2)
    assert share == pytest.approx(26 / 54) and share - apart < 0.5
    assert kept(found).tolist() == [0, 3, 4]


def answer(boxes: list[list[float]], scores: list[float]) -> dict[str, np.ndarray]:
    return {"boxes": np.array(boxes), "scores": np.array(scores), "labels": np.zeros(len(boxes), np.int64)}


def test_an_object_is_taken_from_the_tile_that_shows_it_whole() -> None:
    """A cell of 20 px in the overlap of two tiles, that both see, the first cut and surer."""
    places = tiles(64, 112, 64, 16)
    assert [each.source for each in places] == [(0, 0, 64, 64), (48, 0, 112, 64)]
    cut, whole = answer([[46, 20, 64, 40]], [0.9]), answer([[0, 20, 18, 40]], [0.6])
    found = gathered([cut, whole], places)  # the centre of the first lies at 55, of the second at 57
    assert found.boxes.tolist() == [[46, 20, 64, 40]] and found.scores.tolist() == [0.9]
    far = gathered([answer([[50, 20, 64, 40]], [0.3]), answer([[2, 20, 30, 40]], [0.6])], places)
    assert sorted(far.boxes[:, 0].tolist()) == [50]  # the centre of the first, 57, is nearer to the second tile


def test_each_true_object_is_found_once_and_crowds_count_neither_way() -> None:
    truth = Truth(np.array([[0, 0, 10, 10], [50, 50, 90, 90]], float), np.array([0, 0]), np.array([False, True]))
    boxes = np.array([[0, 0, 10, 9], [0, 1, 10, 10], [55, 55, 65, 65], [0, 0, 10, 10], [85, 85, 100, 100]], float)
    right = matched(Found(boxes, np.array([0, 0, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.6, 0.5])), truth)
    assert right[:2].tolist() == [1, 0] and np.isnan(right[2]) and right[3:].tolist() == [0, 0]


# -- how good boxes are --


def slow_precision(found: list[Found], truths: list[Truth], kind: int, least: float) -> float:
    """COCO's average precision of a class, step by step: 101 recalls, the best precision at each or above."""
    told = [
        (score, place, box) for place, one in enumerate(found) for box, k, score in zip(*one, strict=True) if k == kind
    ]
    true = [one.boxes[one.kinds == kind] for one in truths]
    taken = [np.zeros(len(each), bool) for each in true]
    hits = []
    for _, place, box in sorted(told, key=lambda each: -each[0]):
        shares = overlaps(box[None], true[place])[0] * ~taken[place] if len(true[place]) else np.zeros(0)
        hits.append(bool(len(shares)) and shares.max() >= least)
        if hits[-1]:
            taken[place][shares.argmax()] = True
    total = sum(map(len, true))
    recall, precision = np.cumsum(hits) / total, np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(np.mean([precision[recall >= at - 1e-9].max(initial=0.0) for at in np.linspace(0, 1, 101)]))


def pictures(count: int) -> tuple[list[Found], list[Truth]]:
    rng = np.random.default_rng(1)
    found, truths = [], []
    for _ in range(count):
        true = boxes_in(rng, 6)
        kinds = rng.integers(0, 2, 6)
        truths.append(Truth(true, kinds, np.zeros(6, bool)))
        seen = rng.random(6) < 0.7
        told = np.concatenate([true[seen] + rng.normal(0, 2, (seen.sum(), 4)), boxes_in(rng, 3)])
        found.append(Found(told, np.concatenate([kinds[seen], rng.integers(0, 2, 3)]), rng.random(len(told))))
    return found, truths


def test_precision_is_that_of_a_slow_one_also_of_pictures_drawn_twice() -> None:
    found, truths = pictures(8)
    measured = Precisions(found, truths, 2, 100)
    for some in (np.arange(8), np.array([0, 0, 3, 5, 5, 5, 7])):
        chosen = [found[i] for i in some], [truths[i] for i in some]
        slow = [[slow_precision(*chosen, kind, least) for kind in (0, 1)] for least in np.arange(0.5, 1.0, 0.05)]
        assert np.allclose(measured.of(some), slow, atol=1e-6) and 0.1 < np.mean(slow) < 0.9
    ap = precisions(measured, None)["ap"]
    assert ap.low < ap.value < ap.high


def test_a_class_that_is_in_no_picture_has_no_precision() -> None:
    found, truths = pictures(3)
    assert np.isnan(Precisions(found, truths, 3, 100).of(np.arange(3))[:, 2]).all()


# -- what is learnt --


def test_targets_are_bumps_at_centres_and_nothing_is_known_of_crowds() -> None:
    boxes = torch.tensor([[8.0, 8.0, 56.0, 40.0], [40.0, 4.0, 48.0, 12.0]])
    piece = Piece([torch.zeros(1, 8, 8)], boxes, torch.tensor([0, 1]), torch.tensor([[0.0, 48.0, 64.0, 64.0]]))
    told = target_of(piece, 2, (8, 8), 8)
    assert (told.heat == 1).nonzero().tolist() == [[0, 3, 4], [1, 1, 5]]
    assert not told.counts[6:].any() and told.counts[:6].all()
    assert told.weight.sum().item() == pytest.approx(2.0, abs=1e-5)  # one for each object
    assert told.boxes[:, 1, 5].tolist() == boxes[1].tolist()  # the smaller one lies on top
    assert told.boxes[:, 3, 4].tolist() == boxes[0].tolist()


def test_losses_are_those_of_the_formulas() -> None:
    p, t = 0.3, 0.6
    odds = torch.tensor([np.log(p / (1 - p))]).float().expand(1, 1, 1, 2)
    target = torch.tensor([[[[1.0, t]]]])
    expected = -((1 - p) ** 2) * np.log(p) - (1 - t) ** 4 * p**2 * np.log(1 - p)
    assert heat_loss(odds, target, torch.ones(1, 1, 2, dtype=torch.bool)).item() == pytest.approx(expected, rel=1e-5)
    one = torch.tensor([0.0, 0.0, 10.0, 10.0]).reshape(1, 4, 1, 1)
    other = torch.tensor([5.0, 0.0, 15.0, 10.0]).reshape(1, 4, 1, 1)
    giou = 50 / 150 - (150 - 150) / 150
    assert box_loss(one, other, torch.ones(1, 1, 1)).item() == pytest.approx(1 - giou, rel=1e-5)


class Said(torch.nn.Module):
    """A readout that says the same of everything."""

    stride = 8

    def __init__(self, heat: torch.Tensor) -> None:
        super().__init__()
        self.told = heat

    def forward(self, levels: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"heat": self.told, "edges": torch.full((len(self.told), 4, *self.told.shape[2:]), 5.0)}


def test_the_surest_peaks_are_told_in_a_fixed_number() -> None:
    heat = torch.full((1, 2, 4, 5), -9.0)
    heat[0, 0, 1, 2], heat[0, 0, 1, 3], heat[0, 1, 3, 0] = 2.0, 1.0, 3.0  # the second lies beside a higher one
    told = Detect(Said(heat), (0,), 50)([torch.zeros(1)])  # type: ignore[arg-type]
    assert told["scores"].shape == (1, 50) and told["boxes"].shape == (1, 50, 4)
    assert told["labels"][0, :2].tolist() == [1, 0] and told["scores"][0, :2].tolist() == [3.0, 2.0]
    assert told["boxes"][0, 1].tolist() == [2.5 * 8 - 5, 1.5 * 8 - 5, 2.5 * 8 + 5, 1.5 * 8 + 5]
    assert (told["scores"][0, 40:] < -1000).all()  # 40 places: no object beyond
    assert boxes_at(torch.zeros(1, 4, 2, 3), 4)[0, :, 1, 2].tolist() == [10, 6, 10, 6]
    calibrated = Calibrate(torch.tensor([1.0, 2.0]), torch.tensor([0.0, -1.0]))(told)
    assert calibrated["scores"][0, :2].tolist() == pytest.approx([1 / (1 + np.exp(-5)), 1 / (1 + np.exp(-2))])


# -- what scores mean --


def test_calibrated_scores_are_how_often_they_are_right() -> None:
    rng = np.random.default_rng(0)
    odds, kinds = rng.normal(0, 2, 4000), rng.integers(0, 2, 4000)
    truly = 1 / (1 + np.exp(-(0.5 * odds + np.array([-1.0, 0.5])[kinds])))
    fitted = fit_calibration(odds, kinds, (rng.random(4000) < truly).astype(float), 2)
    assert fitted.slope.tolist() == pytest.approx([0.5, 0.5], abs=0.06)
    assert fitted.offset.tolist() == pytest.approx([-1.0, 0.5], abs=0.15)


def test_thresholds_have_the_highest_f1() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(60)
    right, kinds = (rng.random(60) < scores).astype(float), np.zeros(60, np.int64)

    def f1(threshold: float) -> float:
        sure = scores >= threshold
        return float(2 * right[sure].sum() / (sure.sum() + 40))

    (threshold,) = best_thresholds(scores, kinds, right, np.array([40]))
    assert f1(threshold) == pytest.approx(max(map(f1, scores)))


def test_intervals_of_counts_hold_as_often_as_promised() -> None:
    """Counts that are off by Poisson noise, whose conformal intervals are tested on others; 300 times."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        true = rng.poisson(12, (40, 1))
        counts = rng.binomial(true, 0.8) + rng.poisson(2, true.shape)
        widths, coverage = count_widths(counts[:-10], true[:-10])
        assert coverage == 0.9
        ends = [between(int(count), float(widths[0])) for count in counts[-10:, 0]]
        inside += [low <= n <= high for (low, high), n in zip(ends, true[-10:, 0], strict=True)]
    assert 0.88 < np.mean(inside) < 0.96  # whole numbers make them somewhat wider
    few, coverage = count_widths(np.array([[3], [5], [8]]), np.array([[3], [7], [8]]))
    assert coverage == 0.75 and few[0] == pytest.approx(2 / 6**0.5)


def test_placements_of_one_input_keep_every_object() -> None:
    place = Placement((100, 200), (0, 0, 200, 100), (64, 96), (48, 96))
    found = gathered([answer([[0, 0, 48, 24], [40, 10, 130, 60]], [0.5, 0.9])], [place])
    assert found.boxes[0].tolist() == pytest.approx([40 / 0.48, 10 / 0.48, 200, 100])  # cut to the file
    assert found.boxes[1].tolist() == pytest.approx([0, 0, 100, 50])


# -- prototypes --

NO_BOXES = torch.zeros(0, 4)


def blobs(seed: int, count: int = 6) -> Piece:
    """Two levels in which objects of two classes shine in two channels, amid noise."""
    rng = np.random.default_rng(seed)
    fine, boxes, kinds = rng.normal(0, 0.3, (3, 24, 32)), [], []
    for place in rng.permutation(24)[:count]:
        y, x = 6 * (place // 6) + rng.integers(0, 2), 5 * (place % 6) + rng.integers(0, 2)
        kind = len(kinds) % 2
        fine[kind, y : y + 4, x : x + 4] += 2
        boxes.append([8.0 * x, 8.0 * y, 8.0 * (x + 4), 8.0 * (y + 4)])
        kinds.append(kind)
    coarse = fine.reshape(3, 12, 2, 16, 2).mean((2, 4))
    levels = [torch.from_numpy(each).half() for each in (fine, coarse)]
    return Piece(levels, torch.tensor(boxes), torch.tensor(kinds), NO_BOXES)


def found_in(net: Prototypes, used: tuple[int, ...], pieces: list[Piece]) -> tuple[list[Found], list[Truth]]:
    """What prototypes find, and the truth."""
    found, truths = [], []
    place = Placement((192, 256), (0, 0, 256, 192), (192, 256), (192, 256))
    for piece in pieces:
        told = Detect(net, used, 20)([level[None].float() for level in piece.levels])
        found.append(gathered([{name: tensor[0].numpy() for name, tensor in told.items()}], [place], -3.0))
        truths.append(Truth(piece.boxes.double().numpy(), piece.kinds.numpy(), np.zeros(len(piece.kinds), bool)))
    return found, truths


def test_prototypes_of_two_pictures_find_the_objects_of_others() -> None:
    net = fit_prototypes((3, 3), (8, 16), [blobs(0), blobs(9)], 2, torch.zeros(6), torch.ones(6), 0)
    found, truths = found_in(net, (0, 1), [blobs(seed) for seed in range(1, 6)])
    assert Precisions(found, truths, 2, 20).of(np.arange(5))[0].mean() > 0.8


def patches(seed: int) -> Piece:
    """A picture in which one class, of an even texture and of many sizes, shines in one channel amid noise."""
    rng = np.random.default_rng(seed)
    fine, boxes = rng.normal(0, 0.3, (3, 24, 32)), []
    for left in (0, 16):
        (high, wide) = rng.integers(4, 15, 2)
        y, x = rng.integers(0, 25 - high), left + rng.integers(0, 16 - wide)
        fine[0, y : y + high, x : x + wide] += 1
        boxes.append([8.0 * x, 8.0 * y, 8.0 * (x + wide), 8.0 * (y + high)])
    return Piece([torch.from_numpy(fine).half()], torch.tensor(boxes), torch.zeros(2, dtype=torch.long), NO_BOXES)


def test_large_objects_of_an_even_texture_are_found_whole() -> None:
    """Of which every part looks like the whole, but for what lies beside it."""
    net = fit_prototypes((3,), (8,), [patches(seed) for seed in range(6)], 1, torch.zeros(3), torch.ones(3), 0)
    found, truths = found_in(net, (0,), [patches(seed) for seed in range(10, 22)])
    assert Precisions(found, truths, 1, 20).of(np.arange(12))[0].mean() > 0.6


def test_sizes_of_windows_are_those_that_fit_the_boxes_best() -> None:
    """Twelve boxes of as many sizes, and a second class whose only box is large; by trying every size at each step."""
    rng = np.random.default_rng(0)
    sides = np.concatenate([rng.uniform(24, 120, (12, 2)), [[300, 90]]])  # width, height
    edges = torch.from_numpy(np.concatenate([np.zeros_like(sides), sides], 1)).float()
    kinds = torch.tensor([0] * 12 + [1])
    some = sorted({(max(1, round(h / 24)), max(1, round(w / 24))) for w, h in sides.tolist()})

    def fits(sizes: list[tuple[int, int]]) -> float:
        """How well the best of them fits a box, the mean over boxes of the mean over classes."""
        shapes = [np.array([[-w, -h, w, h]]) * 12.0 for h, w in sizes]
        boxes = np.concatenate([-sides, sides], 1) / 2
        best = np.max([overlaps(boxes, shape)[:, 0] for shape in shapes], 0)
        return float((best[:12].mean() + best[12]) / 2)

    chosen: list[tuple[int, int]] = []
    for _ in range(8):
        chosen.append(max(some, key=lambda each: fits([*chosen, each])))
    told = sizes_of([Piece([], edges, kinds, NO_BOXES)], 8).tolist()
    assert sorted(map(tuple, told)) == sorted(chosen) and (4, 12) in chosen


def test_the_network_says_of_windows_what_their_descriptions_say() -> None:
    net = fit_prototypes((3,), (8,), [patches(0), patches(1)], 1, torch.zeros(3), torch.ones(3), 0)
    levels = [patches(2).levels[0][None].float()]
    maps = net.windows.maps(levels)
    slow = [
        log_odds((net.weight @ net.windows.described(maps, part)[0] + net.bias[:, None])[None, :, :, None], 1)
        for part in net.parts
    ]
    assert torch.allclose(net(levels)["heat"].flatten(2), torch.stack(slow).amax(0)[..., 0], atol=1e-2)
    assert torch.allclose(regions().sum((1, 2)), torch.ones(13))


def test_windows_are_means_of_their_parts() -> None:
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.normal(size=(1, 2, 12, 14))).float()
    windows = Windows((2,), (8,), torch.zeros(2), torch.eye(2))
    told = windows.described(maps, (2, 3)).reshape(3, 13, 12, 14)
    padded = np.zeros((3, 40, 40))  # outside, maps are 0, and the last is 1
    padded[2] = 1
    padded[:2, 14:26, 13:27], padded[2, 14:26, 13:27] = maps[0].numpy(), 0
    for y, x in [(5, 6), (0, 0), (11, 2), (3, 13)]:
        parts = np.zeros((3, 5, 5))  # of 2 x 3 cells, the middle one around the place
        for row in range(5):
            for column in range(5):
                top, left = 14 + y + 2 * (row - 2), 13 + x + 3 * (column - 2) - 1
                parts[:, row, column] = padded[:, top : top + 2, left : left + 3].mean((1, 2))
        sides = [parts[:, 0, 1:4], parts[:, 4, 1:4], parts[:, 1:4, 0], parts[:, 1:4, 4]]
        slow = np.concatenate([parts[:, 1:4, 1:4].reshape(3, 9), np.stack([side.mean(1) for side in sides], 1)], 1)
        assert np.allclose(told[:, :, y, x], slow, atol=1e-5)


def test_log_odds_are_of_one_against_all_others() -> None:
    scores = torch.tensor([1.0, 2.0, 0.5, -1.0]).reshape(1, 4, 1, 1)
    p = scores.softmax(1)[0, :2, 0, 0]
    assert torch.allclose(log_odds(scores, 2)[0, :, 0, 0], (p / (1 - p)).log(), atol=1e-5)


def test_many_pictures_are_for_the_method_that_learns_from_all_of_them() -> None:
    even, apart = {"prototypes": 0.860, "centres": 0.855}, {"prototypes": 0.88, "centres": 0.86}
    assert [best_of(even, many) for many in (False, True)] == ["prototypes", "centres"]
    assert (
        best_of(apart, many=True) == "prototypes" and best_of({"prototypes": 0.2, "centres": 0.4}, False) == "centres"
    )
