"""Objects: told apart by a watershed, measured, and beside the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from selfsight.data.annotations.rle import decode
from selfsight.heads.objects import Matched, ap50, apart, count_error, matched, renumbered, targets, things_of


def cells(seed: int, side: int = 120, count: int = 16) -> np.ndarray:
    """Discs [H, W], numbered from 1, that touch and do not overlap."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    ids, number = np.zeros((side, side), np.int32), 0
    while number < count:
        radius, (cy, cx) = rng.uniform(6, 12), rng.uniform(0, side, 2)
        disc = np.hypot(y - cy, x - cx) < radius
        if (ids[disc] > 0).mean() < 0.1 and disc.sum() > 60:
            number += 1
            ids[disc & (ids == 0)] = number
    return ids


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_touching_cells_are_told_apart(seed: int, blur: float) -> None:
    """From the true centres and boundaries, also where a network blurs them."""
    true = cells(seed)
    centre, boundary = (gaussian_filter(each, blur) if blur else each for each in targets(true))
    mask = (true > 0).astype(np.int32)
    found = apart(mask, centre, boundary, 0.5, 1)
    assert ((found > 0) == (true > 0)).all()
    beside = matched(found, [1] * found.max(), [1.0] * found.max(), true, mask)
    assert beside.right.all() and len(beside.true) == true.max() == found.max()
    agree = sum(np.bincount(true[found == n]).max() for n in range(1, found.max() + 1))
    assert agree >= 0.99 * (true > 0).sum()


def test_a_centre_is_how_deep_a_pixel_lies_in_its_own_object() -> None:
    ids = np.zeros((7, 12), np.int32)
    ids[1:6, 1:6], ids[1:6, 6:11] = 1, 2
    centre, boundary = targets(ids)
    ring = np.array([min(i, 4 - i) + 1 for i in range(5)])
    square = np.minimum(ring[:, None], ring[None]) / 3
    assert centre[1:6, 1:6] == pytest.approx(square) and centre[1:6, 6:11] == pytest.approx(square)
    assert (boundary > 0).nonzero()[1].tolist() == [5, 6] * 5 and not centre[ids == 0].any()


def test_an_object_without_a_centre_is_one_and_specks_are_none() -> None:
    mask = np.zeros((10, 20), np.int32)
    mask[1:9, 1:9], mask[2:6, 12:16], mask[8, 18] = 1, 2, 1
    centre = np.zeros(mask.shape, np.float32)
    centre[3:6, 3:6] = 1.0
    found = apart(mask, centre, np.zeros_like(centre), 0.5, 4)
    assert [int((found == n).sum()) for n in (1, 2, 3)] == [64, 16, 0]


def test_without_centres_what_hangs_together_is_an_object_of_its_class() -> None:
    mask = np.array([[1, 1, 2, 0, 1], [0, 0, 2, 1, 0], [1, 0, 0, 0, 0]], np.int32)
    found = apart(mask, None, None, 0.5, 1)
    assert found.max() == 4 and len(set(found[mask == 1])) == 3 and found[0, 4] == found[1, 3]
    assert renumbered(np.array([[3, 3, 0, 7]]), 2).tolist() == [[1, 1, 0, 0]]


def test_an_object_is_measured() -> None:
    mask = np.zeros((8, 10), np.int32)
    mask[2:5, 3:7] = 2
    mask[4, 6] = 1  # fewer pixels of another class
    objects = (mask > 0).astype(np.int32)
    probabilities = np.zeros((3, 8, 10), np.float32)
    probabilities[2] = np.arange(10) / 10
    grey = np.tile(np.arange(8)[:, None] / 8, (1, 10)).astype(np.float32)
    (thing,) = things_of(objects, mask, probabilities, grey)
    assert (thing.label, thing.box, thing.area, thing.centroid) == (2, (3, 2, 7, 5), 12, (5.0, 3.5))
    assert thing.score == pytest.approx(0.45) and thing.intensity == pytest.approx(3 / 8)
    assert (decode(thing.runs) == objects.astype(bool)).all()


def test_average_precision_by_hand() -> None:
    """Three true objects; answers by sureness: right, wrong, right. Precision 1 at recall 1/3, 2/3 at recall 2/3."""
    one = Matched(np.array([1, 1]), np.array([0.9, 0.8]), np.array([True, False]), np.array([1, 1]))
    other = Matched(np.array([1]), np.array([0.7]), np.array([True]), np.array([1]))
    assert ap50([one, other]) == pytest.approx((1 + 2 / 3) / 3)
    assert ap50([Matched(*(np.array([]),) * 2, np.array([], bool), np.array([], int))]) is None
    assert count_error([one, other, Matched(one.labels, one.scores, one.right, np.array([1]))]) == pytest.approx(1 / 3)


def test_an_answer_of_another_class_or_of_too_little_is_wrong() -> None:
    true = np.zeros((6, 12), np.int32)
    true[:, :6], true[:, 6:] = 1, 2
    found = np.zeros_like(true)
    found[:, :4], found[:4, 6:9], found[4:, 6:9] = 1, 2, 3
    classes = np.where(true == 1, 1, 2)
    assert matched(found, [1, 2, 2], [0.5, 0.9, 0.8], true, classes).right.tolist() == [True, False, False]
    assert matched(found, [2, 2, 2], [0.5, 0.9, 0.8], true, classes).right.tolist() == [False] * 3
    twice = np.where(true == 1, 1, 0)
    assert matched(twice, [1], [0.5], true, classes).right.tolist() == [True]
