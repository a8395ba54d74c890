"""Where pixels, points, boxes, masks and scores land, against affines written here, on made pictures and real ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from whole_maps import scores_to_file

from selfsight.data.annotations import voc, yolo
from selfsight.data.annotations.masks import IGNORE, read_mask
from selfsight.data.geometry import Geometry
from selfsight.data.pixels import resize
from selfsight.data.placements import OVERLAP, Placement, mask_to_file

DATA = Path(os.environ.get("SELFSIGHT_DATA", Path(__file__).parents[3] / "shared" / "data"))
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}; SELFSIGHT_DATA names another folder")
RNG = np.random.default_rng(0)
SIZES = [(1, 1), (3, 200), (64, 64), (63, 64), (50, 40), (65, 64), (100, 300), (211, 97), (480, 640)]
RULES = ("squash", "fit", "tiles")
STRIDE = 16


def places(rule: str, height: int, width: int, size: int = 64) -> list[Placement]:
    geometry = Geometry(1, size, (0.0, 255.0), (0.0,), (1.0,))
    return replace(geometry, rule=rule).placements(height, width, STRIDE)


def reference(rule: str, height: int, width: int, size: int = 64) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """(affine, valid (h, w)) of the rules with one input, in float64."""
    longer = max(height, width)
    if rule == "squash":
        h = w = size
    else:
        h, w = (max(1, int(np.floor(side * size / longer + 0.5))) for side in (height, width))
    return np.array([[w / width, 0, 0], [0, h / height, 0]], np.float64), (h, w)


def covers(box: np.ndarray, height: int, width: int, grain: int = 64) -> np.ndarray:
    """How much of each pixel [H, W] a box covers."""
    x0, y0, x1, y1 = box
    columns = (np.minimum(x1, np.arange(width) + 1) - np.maximum(x0, np.arange(width))).clip(0, 1)
    rows = (np.minimum(y1, np.arange(height) + 1) - np.maximum(y0, np.arange(height))).clip(0, 1)
    return rows[:, None] * columns


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Intersection over union of two masks; 1 of two empty ones."""
    return float((one & two).sum() / max((one | two).sum(), 1)) if (one | two).any() else 1.0


@pytest.mark.parametrize("rule", ["squash", "fit"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_one_input_holds_the_whole_file(rule: str, height: int, width: int):
    (place,) = places(rule, height, width)
    affine, valid = reference(rule, height, width)
    assert place.affine.dtype == np.float64 and np.allclose(place.affine, affine, rtol=1e-15, atol=0)
    assert place.valid == valid and max(valid) == 64 and place.source == (0, 0, width, height)
    if rule == "squash":
        assert place.size == (64, 64)
    else:
        assert place.size == tuple(int(np.ceil(side / STRIDE)) * STRIDE for side in valid)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiles_cover_every_pixel_overlap_and_end_with_the_file(height: int, width: int):
    found = places("tiles", height, width)
    if max(height, width) <= 64:
        assert found == places("fit", height, width)
        return
    count = np.zeros((height, width), int)
    for place in found:
        x0, y0, x1, y1 = place.source
        count[y0:y1, x0:x1] += 1
        assert place.valid == (y1 - y0, x1 - x0) == (min(64, height), min(64, width))
        assert (place.affine == [[1, 0, -x0], [0, 1, -y0]]).all() and place.size[0] % STRIDE == 0
    assert count.min() == 1 and len(set(found)) == len(found)
    for axis, side in ((0, width), (1, height)):
        starts = sorted({place.source[axis] for place in found})
        assert starts[0] == 0 and starts[-1] == max(0, side - 64)
        assert all(b - a <= 64 * (1 - OVERLAP) for a, b in pairwise(starts))
        fewest = 1 if side <= 64 else 1 + int(np.ceil((side - 64) / 48))
        assert len(starts) == fewest


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_points_and_boxes_go_both_ways(rule: str, height: int, width: int):
    points = RNG.uniform(-10, 700, (50, 2))
    boxes = np.sort(RNG.uniform(0, 1, (50, 2, 2)), axis=1).reshape(50, 4) * [width, height, width, height]
    for place in places(rule, height, width):
        matrix = np.vstack([place.affine, [0, 0, 1]])
        moved = place.points_to_input(points)
        assert np.allclose(moved, (np.c_[points, np.ones(50)] @ matrix.T)[:, :2], rtol=1e-12, atol=1e-9)
        back = place.points_to_file(moved)
        assert np.abs(back - points).max() < 1e-9
        assert np.abs(back - (np.c_[moved, np.ones(50)] @ np.linalg.inv(matrix).T)[:, :2]).max() < 1e-9
        carried, left, share = place.boxes_to_input(boxes)
        x0, y0, x1, y1 = place.source
        expected = {}
        for i, (a, b, c, d) in enumerate(boxes):
            cut = max(a, x0), max(b, y0), min(c, x1), min(d, y1)
            if cut[2] > cut[0] and cut[3] > cut[1]:
                part = (cut[2] - cut[0]) * (cut[3] - cut[1]) / ((c - a) * (d - b))
                expected[i] = (*cut, part)
        assert left.tolist() == list(expected)
        wanted = np.array(list(expected.values())).reshape(-1, 5)
        assert np.abs(place.boxes_to_file(carried) - wanted[:, :4]).max(initial=0) < 1e-9
        assert np.abs(share - wanted[:, 4]).max(initial=0) < 1e-9
        edges = (*place.valid[::-1], *place.valid[::-1])
        assert (carried >= 0).all() and (carried <= np.array(edges) + 1e-9).all()


def test_boxes_without_area_and_no_boxes_leave_nothing():
    (place,) = places("squash", 10, 20)
    for boxes in (np.zeros((0, 4)), np.array([[3, 3, 3, 9], [5, 5, 2, 9], [20, 0, 30, 10]])):
        carried, left, share = place.boxes_to_input(boxes)
        assert carried.shape == (0, 4) and len(left) == len(share) == 0
    carried, left, share = place.boxes_to_input([[0, 0, 1, 1], [-10, 0, 10, 10]])
    assert carried.tolist() == [[0, 0, 3.2, 6.4], [0, 0, 32, 64]] and share.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("height", "width"), [(200, 320), (32, 48), (150, 61)])
def test_a_painted_rectangle_lands_where_its_box_says(rule: str, height: int, width: int):
    """Of the sum and the first moments of a picture the antialiased filter changes little: they tell the edges."""
    box = np.array([width // 4, height // 3, width // 2, 2 * height // 3])
    pixels = np.zeros((height, width, 1), np.float32)
    pixels[box[1] : box[3], box[0] : box[2]] = 1
    seen = 0
    for place in places(rule, height, width):
        found = place.pixels_to_input(pixels)[:, :, 0]
        assert found.shape == place.size
        found = found[: place.valid[0], : place.valid[1]]
        carried, left, _ = place.boxes_to_input(box[None])
        if not len(left):
            assert not found.any()
            continue
        seen += 1
        exact = covers(carried[0], *found.shape)
        assert abs(found.sum() / exact.sum() - 1) < 0.02
        for axis in (0, 1):
            along = found.sum(1 - axis), exact.sum(1 - axis)
            centre, wanted = (np.average(np.arange(len(values)) + 0.5, weights=values) for values in along)
            assert abs(centre - wanted) < 0.05
    assert seen


def test_padding_repeats_the_edge_of_the_picture():
    pixels = RNG.integers(0, 256, (30, 20, 3)).astype(np.uint8)
    (place,) = places("fit", 30, 20)  # 64 x 43, padded to 64 x 48
    found = place.pixels_to_input(pixels)
    assert place.valid == (64, 43) and found.shape == (64, 48, 3) and found.flags.c_contiguous
    assert (found[:, :43] == resize(pixels, 64, 43)).all() and (found[:, 43:] == found[:, 42:43]).all()
    thin = RNG.integers(0, 256, (30, 100, 3)).astype(np.uint8)
    for place in places("tiles", 30, 100):
        found, x = place.pixels_to_input(thin), place.source[0]
        assert (found[:30] == thin[:, x : x + 64]).all() and (found[30:] == found[29]).all() and len(found) == 32


def test_what_is_not_of_the_files_size_is_refused():
    (place,) = places("squash", 30, 20)
    for wrong in (np.zeros((20, 30)), np.zeros((31, 20))):
        with pytest.raises(ValueError, match=r"\(30, 20\)"):
            place.mask_to_input(wrong)
        with pytest.raises(ValueError, match=r"\(30, 20\)"):
            place.pixels_to_input(wrong[:, :, None])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_mask_takes_the_class_at_each_centre(rule: str, height: int, width: int):
    mask = RNG.integers(0, 60000, (height, width)).astype(np.uint16)
    found = places(rule, height, width)
    carried = [place.mask_to_input(mask) for place in found]
    for place, got in zip(found, carried, strict=True):
        inverse = np.linalg.inv(np.vstack([place.affine, [0, 0, 1]]))
        y, x = np.mgrid[: place.valid[0], : place.valid[1]] + 0.5
        at = np.stack([x, y, np.ones_like(x)], -1) @ inverse.T
        wanted = mask[tuple(np.floor(at[..., axis] + 1e-9).astype(int) for axis in (1, 0))]
        assert got.dtype == np.int32 and got.shape == place.size
        assert (got[: place.valid[0], : place.valid[1]] == wanted).all()
        rest = got.copy()
        rest[: place.valid[0], : place.valid[1]] = IGNORE
        assert (rest == IGNORE).all()
    enlarged = min(min(place.affine[0, 0], place.affine[1, 1]) for place in found) >= 1
    if enlarged:  # each pixel of the file has at least one of the input, that at its centre
        assert (mask_to_file(carried, found) == mask).all()


def test_where_tiles_overlap_the_nearest_centre_names_the_class():
    found = places("tiles", 100, 300)
    masks = [np.full(place.size, number) for number, place in enumerate(found)]
    centres = [((p.source[0] + p.source[2]) / 2, (p.source[1] + p.source[3]) / 2) for p in found]
    merged = mask_to_file(masks, found)
    for y in range(100):
        for x in range(300):
            distances = [(x + 0.5 - a) ** 2 + (y + 0.5 - b) ** 2 for a, b in centres]
            assert distances[merged[y, x]] == min(distances)


def test_scores_of_tiles_are_averaged():
    found = places("tiles", 64, 100)  # 0 to 64 and 36 to 100
    merged = scores_to_file([np.full((2, 64, 64), 1.0), np.full((2, 64, 64), 4.0)], found)
    assert merged.shape == (2, 64, 100) and merged.dtype == np.float32
    assert (merged[:, :, :36] == 1).all() and (merged[:, :, 36:64] == 2.5).all() and (merged[:, :, 64:] == 4).all()


@pytest.mark.parametrize("coarse", [1, 4, 16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("height", "width"), [(100, 300), (211, 97), (50, 40), (10, 10), (64, 65)])
def test_scores_of_a_ramp_give_the_ramp(rule: str, height: int, width: int, coarse: int):
    """A linear function of the file's coordinates, seen by inputs of its own: exact, but beyond the outermost centres
    of a map, where it keeps their value."""

    def ramp(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 0.03 * x - 0.02 * y + 1

    found = places(rule, height, width)
    maps, inside = [], np.zeros((height, width), bool)
    inside[:] = True
    y, x = np.mgrid[:height, :width] + 0.5
    for place in found:
        cells = tuple(side // coarse for side in place.size)
        v, u = np.mgrid[: cells[0], : cells[1]] * coarse + coarse / 2
        inverse = np.linalg.inv(np.vstack([place.affine, [0, 0, 1]]))
        at = np.stack([u, v, np.ones_like(u)], -1) @ inverse.T
        maps.append(ramp(at[..., 0], at[..., 1]))
        x0, y0, x1, y1 = place.source
        low = at[0, 0, :2]
        ends = [-(-side // coarse) - 1 for side in place.valid]
        high = at[ends[0], ends[1], :2]
        here = (x >= low[0] - 1e-9) & (x <= high[0] + 1e-9) & (y >= low[1] - 1e-9) & (y <= high[1] + 1e-9)
        inside[y0:y1, x0:x1] &= here[y0:y1, x0:x1]
    merged = scores_to_file(maps, found)
    assert np.abs(merged - ramp(x, y))[inside].max(initial=0) < 1e-5
    assert inside.any() or coarse == 16
    if coarse == 1 and rule == "tiles" and max(height, width) > 64:
        assert inside.all()


def test_the_padding_has_no_say_in_scores():
    (place,) = places("fit", 30, 20)
    scores = np.full(place.size, np.nan)
    scores[: place.valid[0], : place.valid[1]] = 3.0
    assert (scores_to_file([scores], [place]) == 3).all()


@pytest.mark.parametrize("rule", RULES)
def test_masks_of_shapes_come_back_as_well_as_the_scale_allows(rule: str):
    """Of a mask brought down and up again, a pixel can be wrong only where the one taken for it, at most half a pixel
    of the input away in each direction, is on the other side of the border."""
    y, x = np.mgrid[:300, :400]
    mask = ((y - 140) ** 2 / 90**2 + (x - 210) ** 2 / 150**2 < 1).astype(np.uint8)
    found = places(rule, 300, 400)
    back = mask_to_file([place.mask_to_input(mask) for place in found], found)
    across, down = (int(np.ceil(0.5 / found[0].affine[axis, axis] + 0.5)) if rule != "tiles" else 0 for axis in (0, 1))
    shifted = [
        np.roll(mask, (a, b), (0, 1)) for a in range(-down, down + 1) for b in range(-across, across + 1)
    ]  # nothing is near the edges
    sure, possible = np.minimum.reduce(shifted), np.maximum.reduce(shifted)
    assert ((back >= sure) & (back <= possible)).all()
    assert overlap(back == 1, mask == 1) >= sure.sum() / possible.sum()


@real
@pytest.mark.parametrize("rule", RULES)
def test_real_boxes_come_back(rule: str):
    """What all inputs together show of a box is the box."""
    count = 0
    kinds = [(voc, "bccd/Annotations/*.xml", 640, 480), (yolo, "neu/boxes/*.txt", 200, 200)]
    for kind, pattern, width, height in kinds:
        for file in sorted(DATA.glob(pattern))[::25]:
            held = kind.read(file.read_bytes()).upright(width, height)
            boxes = np.array([[box.x0, box.y0, box.x1, box.y1] for box in held]).reshape(-1, 4)
            real_ones = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
            joined = np.full((len(boxes), 4), [np.inf, np.inf, -np.inf, -np.inf])
            most = np.zeros(len(boxes))
            for place in places(rule, height, width, 96):
                carried, left, share = place.boxes_to_input(boxes)
                back = place.boxes_to_file(carried)
                joined[left, :2] = np.minimum(joined[left, :2], back[:, :2])
                joined[left, 2:] = np.maximum(joined[left, 2:], back[:, 2:])
                most[left] = np.maximum(most[left], share)
            inside = boxes.clip(0, [width, height, width, height])
            assert np.abs(joined - inside)[real_ones].max(initial=0) < 1e-9
            small = (boxes[:, 2:] - boxes[:, :2]).max(1, initial=0) <= 96 * OVERLAP
            within = (inside == boxes).all(1)
            assert (most[real_ones][(small & within)[real_ones]] > 1 - 1e-9).all()
            count += len(real_ones)
    assert count > 300


@real
@pytest.mark.parametrize("rule", RULES)
def test_real_masks_come_back(rule: str):
    count = 0
    for pattern in ("magnetic-tile/masks/*/*.png", "wbc/*/masks/*.png"):
        for file in sorted(DATA.glob(pattern))[::40]:
            with file.open("rb") as opened:
                mask = read_mask(opened)
            found = places(rule, *mask.shape, 128)
            back = mask_to_file([place.mask_to_input(mask) for place in found], found)
            scale = min(found[0].affine[0, 0], found[0].affine[1, 1])
            if scale >= 1:
                assert (back == mask).all()
                continue
            assert set(np.unique(back)) <= set(np.unique(mask))
            far = int(np.ceil(0.5 / scale + 0.5))  # pixels of the file
            edged = np.pad(mask, far, mode="edge")
            windows = np.lib.stride_tricks.sliding_window_view(edged, (2 * far + 1, 2 * far + 1))
            settled = windows.min((2, 3)) == windows.max((2, 3))
            assert (back == mask)[settled].all() and settled.mean() > 0.3
            count += 1
    assert count > 10 or rule == "tiles"


@real
def test_a_real_picture_in_tiles_is_the_picture():
    file = sorted((DATA / "bccd" / "JPEGImages").glob("*.jpg"))[0]
    pixels = np.asarray(Image.open(file))
    found = places("tiles", *pixels.shape[:2], 224)
    maps = [place.pixels_to_input(pixels).transpose(2, 0, 1) for place in found]
    assert len(found) > 4 and (scores_to_file(maps, found) == pixels.transpose(2, 0, 1)).all()
