"""Polygons, run lengths and the files that hold them, against slow references and by round trips of random shapes."""

from __future__ import annotations

import io
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from selfsight.data.annotations import coco, labelme, voc, yolo
from selfsight.data.annotations.masks import IGNORE, read_mask, write_mask
from selfsight.data.annotations.outlines import IGNORED, Outline, Outlines, corners, drawn, pixels_of, value_of
from selfsight.data.annotations.polygons import crosses_itself, filled, filled_part, traced
from selfsight.data.annotations.rle import decode, decode_part, encode, encode_part, from_text, to_text
from selfsight.data.boxes import Box, Boxes
from selfsight.errors import SelfsightError

SEEDS = range(12)


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A mask with parts, holes and single pixels; sometimes empty or full."""
    return rng.random((height, width)) < rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])


def slow_counts(mask: np.ndarray) -> list[int]:
    """Run lengths, pixel by pixel, down the columns."""
    counts, inside = [0], False
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if bool(mask[y, x]) != inside:
                counts.append(0)
                inside = not inside
            counts[-1] += 1
    return counts


def star(rng: np.random.Generator, height: int, width: int) -> list[float]:
    """A polygon that does not cross itself: corners in the order of their direction from one point."""
    turns = (np.arange(7) + rng.random(7)) / 7 * 2 * np.pi  # no two further apart than half a turn
    reach = rng.uniform(0.2, 0.5, 7) * min(height, width)
    points = np.stack([width / 2 + reach * np.cos(turns), height / 2 + reach * np.sin(turns)], axis=1)
    return points.reshape(-1).tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_part_around_an_object_is_all_of_it(seed: int):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    mask = blobs(rng, height, width)
    part = decode_part(encode(mask, compressed=bool(seed % 2)))
    whole = np.zeros_like(mask)
    whole[part.place] = part.mask
    rows, columns = mask.any(1), mask.any(0)
    assert (whole == mask).all()
    if mask.any():
        assert part.mask.shape == (np.ptp(np.flatnonzero(rows)) + 1, np.ptp(np.flatnonzero(columns)) + 1)
    some = [np.array(star(rng, height, width)).reshape(-1, 2) + rng.uniform(-9, 9, 2) for _ in range(2)]
    part, slow = filled_part(some, height, width), filled(some, height, width)
    assert part.mask.sum() == slow.sum() and (slow[part.place] == part.mask).all()


def test_runs_without_a_gap_are_one():
    rle = {"size": [4, 3], "counts": [0, 5, 0, 3, 4]}
    assert decode_part(rle).mask.all() and decode_part(rle).mask.shape == (4, 2) and decode(rle).sum() == 8


def test_thousands_of_objects_are_drawn_without_a_mask_of_the_image_for_each():
    side, small = 2_000, np.ones((6, 6), bool)
    corner = [(y, x) for y in range(0, side, 50) for x in range(0, side, 50)]
    cells = [encode_part(small, y, x, side, side) for y, x in corner]
    cells += [[[x + 10.0, y, x + 16.0, y, x + 16.0, y + 6, x + 10.0, y + 6]] for y, x in corner]
    tracemalloc.start()
    classes, objects = drawn({"cell": cells}, ["background", "cell"], side, side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert objects.max() == 3_200 and (np.bincount(objects.reshape(-1))[1:] == 36).all()
    assert (classes > 0).sum() == 3_200 * 36
    assert peak < 2 * (classes.nbytes + objects.nbytes)  # a mask for each would be 200 times that


@pytest.mark.parametrize("seed", SEEDS)
def test_run_lengths_are_those_of_a_slow_count(seed: int):
    rng = np.random.default_rng(seed)
    mask = blobs(rng, *rng.integers(1, 40, 2))
    assert encode(mask, compressed=False)["counts"] == slow_counts(mask)
    assert encode(mask)["counts"] == to_text(slow_counts(mask)) and from_text(to_text(slow_counts(mask)))
    padded = np.pad(mask, ((2, 1), (0, 3)))
    assert encode_part(mask, 2, 0, *padded.shape) == encode(padded)
    assert encode_part(mask, 0, 0, *mask.shape) == encode(mask)
    for compressed in (False, True):
        rle = json.loads(json.dumps(encode(mask, compressed)))
        assert (decode(rle) == mask).all() and decode(rle).shape == mask.shape


def test_letters_of_run_lengths_are_those_of_pycocotools():
    """Worked by hand from `rleToString`: 6 is '6'; 1 '1'; 40 = 8 + 32, as 01000 with more, then 00001; the fourth is a
    difference to the second, 5 - 1 = 4; the fifth 20 - 40 = -20 = 01100 with more, then -1 = 11111."""
    assert to_text([6, 1, 40, 5, 20]) == "61X14\\O"
    assert from_text("61X14\\O") == [6, 1, 40, 5, 20]
    for text in ("6X", "\x10", "é"):
        with pytest.raises(ValueError, match="run lengths"):
            from_text(text)


@pytest.mark.parametrize("rle", [{}, {"size": [2, 2]}, {"size": [2, 2], "counts": [3]}, {"size": [2], "counts": "1"}])
def test_run_lengths_of_no_image_are_refused(rle: dict):
    with pytest.raises(ValueError, match=r"run lengths|unpack"):
        decode(rle)


@pytest.mark.parametrize("seed", SEEDS)
def test_pixels_whose_centre_is_inside_belong_to_a_polygon(seed: int):
    """The winding number of each centre, from the angles under which it sees the edges."""
    rng = np.random.default_rng(seed)
    points = np.array(star(rng, 21, 30)).reshape(-1, 2)
    found = filled([points], 21, 30)
    for y in range(21):
        for x in range(30):
            rays = (points - (x + 0.5, y + 0.5)) @ np.array([1, 1j])
            winding = np.angle(np.roll(rays, -1) / rays).sum() / (2 * np.pi)
            assert found[y, x] == (abs(winding) > 0.5)


@pytest.mark.parametrize("seed", SEEDS)
def test_polygons_that_share_edges_share_no_pixel_and_leave_none(seed: int):
    """Fans around a point, also where edges run through centres of pixels."""
    rng = np.random.default_rng(seed)
    rim = np.array([(0, 0), (8.5, 0), (20, 0), (20, 9.5), (20, 16), (7, 16), (0, 16), (0, 3.5)])
    middle = rng.integers(2, 14, 2) + 0.5
    parts = [filled([np.array([middle, rim[i], rim[(i + 1) % 8]])], 16, 20) for i in range(8)]
    assert (np.sum(parts, axis=0) == 1).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_traced_mask_is_filled_as_it_was(seed: int):
    rng = np.random.default_rng(seed)
    mask = blobs(rng, *rng.integers(1, 30, 2))
    polygons = traced(mask)
    assert (filled(polygons, *mask.shape) == mask).all()
    assert not any(crosses_itself(polygon) for polygon in polygons)


def test_edges_that_cross_are_told_from_edges_that_touch():
    square, bow = [(0, 0), (4, 0), (4, 4), (0, 4)], [(0, 0), (4, 4), (4, 0), (0, 4)]
    touching = [(0, 0), (4, 0), (2, 2), (4, 4), (0, 4), (2, 2)]
    assert [crosses_itself(np.array(points, float)) for points in (square, bow, touching)] == [False, True, False]


# -- files --


def objects(rng: np.random.Generator, height: int, width: int, polygons_only: bool) -> list[Outline]:
    found = []
    for number in range(rng.integers(0, 6)):
        label = str(rng.choice(["cell", "a word", "é", "3"]))
        x0, y0 = rng.uniform(0, width / 2), rng.uniform(0, height / 2)
        box = Box(label, x0, y0, x0 + rng.uniform(0, width / 2), y0 + rng.uniform(0, height / 2))
        kind = rng.integers(0, 3 if polygons_only else 5)
        if kind == 0:
            found.append(Outline(label, corners(box), box) if polygons_only else Outline(label, None, box))
        elif kind == 1:
            found.append(Outline(label, [star(rng, height, width)]))
        elif kind == 2:
            found.append(Outline(label, [star(rng, height, width), star(rng, height, width)]))
        else:
            crowd = bool(number % 2)
            region = encode(blobs(rng, height, width), compressed=kind == 3)
            box = Box(label, box.x0, box.y0, box.x1, box.y1, iscrowd=crowd)
            found.append(Outline(label, region, box if kind == 3 else None, crowd))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_coco_gives_back_what_was_written(seed: int):
    rng = np.random.default_rng(seed)
    images = {f"a/{n}.jpg": Outlines(tuple(objects(rng, 20, 31, False)), (31, 20)) for n in range(3)}
    scored = [replace(one, score=float(rng.random())) for one in objects(rng, 20, 31, False)]
    images["found.jpg"] = Outlines(tuple(scored), (31, 20))
    for one in json.loads(coco.write(images))["annotations"]:
        assert ("score" in one) == (one["image_id"] == 4)
        if isinstance(region := one.get("segmentation"), dict):
            assert one["area"] == decode(region).sum()
    again = coco.read(coco.write(images, {"never": 90, "3": 7}))
    assert again.images == images and not again.aside
    assert again.classes | {"never": 90, "3": 7} == again.classes


@pytest.mark.parametrize("seed", SEEDS)
def test_labelme_gives_back_what_was_written(seed: int):
    rng = np.random.default_rng(seed)
    image = Outlines(tuple(objects(rng, 20, 31, True)), (31, 20))
    assert labelme.read(labelme.write(image, "a.jpg")) == (image, ())


@pytest.mark.parametrize("seed", SEEDS)
def test_voc_and_yolo_give_back_random_boxes(seed: int):
    """VOC in whole pixels exactly; YOLO, whose numbers are fractions of the image, to the last digits."""
    rng = np.random.default_rng(seed)
    edges = np.sort(rng.integers(0, 50, (5, 2, 2)), axis=2)
    flags = rng.random((5, 2)) < 0.5
    boxes = [
        Box(f"c{i}", float(x0), float(y0), float(x1), float(y1), difficult=bool(d), truncated=bool(t))
        for i, (((x0, x1), (y0, y1)), (d, t)) in enumerate(zip(edges, flags, strict=True))
    ]
    assert voc.read(voc.write(boxes, 60, 55)) == Boxes(tuple(boxes), (60, 55))
    again = yolo.read(yolo.write(boxes, 60, 55)).upright(60, 55)
    for box, same in zip(boxes, again, strict=True):
        assert same.label == box.label
        near = pytest.approx((box.x0, box.y0, box.x1, box.y1), abs=1e-12)
        assert (same.x0, same.y0, same.x1, same.y1) == near


@pytest.mark.parametrize("high", [2, 9, 200, 256, 65536])
@pytest.mark.parametrize("ignored", [False, True])
def test_masks_give_back_what_was_written(high: int, ignored: bool):
    rng = np.random.default_rng(high)
    ids = rng.integers(0, high, (17, 23)).astype(np.int32)
    if ignored:
        ids[rng.random(ids.shape) < 0.2] = IGNORE
        if high > 255:
            with pytest.raises(SelfsightError, match="fits no PNG"):
                write_mask(ids)
            return
    assert (read_mask(io.BytesIO(write_mask(ids))) == ids).all()


def one_image(*annotations: dict) -> bytes:
    cells = [{"id": 7 + i, "image_id": 1, "category_id": 1} | one for i, one in enumerate(annotations)]
    images = [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 8}]
    return json.dumps({"images": images, "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}).encode()


@pytest.mark.parametrize("score", ["high", True, None, float("nan"), [1]])
def test_a_score_that_is_no_number_is_none(score: object):
    [outline] = coco.read(one_image({"bbox": [1, 2, 3, 4], "score": score})).images["a.jpg"].outlines
    assert outline.score is None and outline.box == Box("cell", 1, 2, 4, 6)


def test_annotations_that_cannot_be_used_are_named_and_the_others_count():
    good = {"bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]]}
    found = coco.read(
        one_image(
            good,
            {"bbox": [6, 2, 30, 4]},
            good | {"category_id": 3},
            {"segmentation": [[0, 0, 4, 4, 4, 0, 0, 4]]},
            {"segmentation": [[20, 0, 24, 4, 24, 0]]},
            {"segmentation": {"size": [10, 8], "counts": [80]}},
            {"segmentation": [[1, 2, 3, 4]]},
            {"bbox": [1, 2, 3]},
            {},
            good | {"image_id": 2},
        )
    )
    assert [outline.box for outline in found.images["a.jpg"].outlines] == [Box("cell", 1, 2, 4, 6)]
    assert [(one.where, one.reason) for one in found.aside] == [
        ("a.jpg, annotation 8", "a box outside its image"),
        ("a.jpg, annotation 9", "an unknown class 3"),
        ("a.jpg, annotation 10", "a polygon that crosses itself"),
        ("a.jpg, annotation 11", "a polygon outside its image"),
        ("a.jpg, annotation 12", "a mask of 8 x 10, which does not fit its image"),
        ("a.jpg, annotation 13", "a polygon of fewer than 3 points"),
        ("a.jpg, annotation 14", "a box that is not x, y, width and height"),
        ("a.jpg, annotation 15", "neither a box nor a mask"),
        ("image 2, annotation 16", "an image that is not in the file"),
    ]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"images": []}', b'{"images": [{}], "annotations": [], "categories": []}']
)
def test_what_is_no_coco_file_is_refused(data: bytes):
    with pytest.raises(ValueError, match=r"JSON|COCO|without"):
        coco.read(data)


def test_touching_objects_keep_their_identity_and_the_smaller_lies_on_top():
    left, right = [[0, 0, 4, 0, 4, 6, 0, 6]], [[4, 0, 8, 0, 8, 6, 4, 6]]
    value = {"cell": [left, right], "nucleus": [[[1, 1, 3, 1, 3, 3, 1, 3]]]}
    classes, told = drawn(value, ["background", "cell", "nucleus"], 6, 10)
    assert (classes[:, :8] > 0).all() and (classes[:, 8:] == 0).all() and (classes[1:3, 1:3] == 2).all()
    assert (classes == 2).sum() == 4 and (told[:, 4:8] == 2).all() and set(told[:, :4].reshape(-1)) == {1, 3}


def test_a_value_that_names_the_background_is_of_a_part_of_the_image():
    mask = np.zeros((4, 5), bool)
    mask[:2] = True
    value = {"cell": encode(mask), "background": encode(~mask & (np.arange(5) < 2))}
    classes, told = drawn(value, ["background", "cell"], 4, 5)
    assert (classes[:2] == 1).all() and (classes[2:, :2] == 0).all() and (classes[2:, 2:] == IGNORE).all()
    assert not told.any()


def test_class_numbers_become_a_value_and_come_back():
    ids = np.array([[0, 128, 255], [IGNORE, 0, 128]], np.int32)
    value = value_of(ids)
    assert set(value) == {"128", "255", IGNORED}
    classes, _ = drawn(value, ["background", "128", "255"], 2, 3)
    assert classes.tolist() == [[0, 1, 2], [IGNORE, 0, 1]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_outlines_of_the_unturned_image_are_turned_with_it(orientation: int):
    """Polygons and run lengths of the stored image, against its pixels turned by numpy's own words."""
    rng = np.random.default_rng(orientation)
    flat = star(rng, 20, 30)
    stored = filled([np.array(flat).reshape(-1, 2)], 20, 30)
    ways = [lambda m: m, np.fliplr, lambda m: np.rot90(m, 2), np.flipud, np.transpose]
    ways += [lambda m: np.rot90(m, -1), lambda m: np.rot90(m.T, 2), lambda m: np.rot90(m, 1)]
    seen = ways[orientation - 1](stored) if orientation >= 5 else stored
    outlines = Outlines((Outline("x", [flat]), Outline("x", encode(stored))), (30, 20))
    polygon, runs = outlines.mask(*seen.shape[::-1], orientation)["x"]
    assert (pixels_of(runs, *seen.shape) == seen).all() and (pixels_of(polygon, *seen.shape) == seen).all()


def test_what_is_set_aside_is_no_background_in_a_mask() -> None:
    """Its pixels are left out: that nothing is there is not known."""
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [[10, 10, 16, 16, 16, 10, 10, 16]],
        },  # crosses itself
        {"id": 3, "image_id": 1, "category_id": 1, "bbox": [20, 2, 4, 6]},  # a box alone
    ]
    root = {"images": [{"id": 1, "file_name": "a.png", "width": 30, "height": 20}], "annotations": annotations,
            "categories": [{"id": 1, "name": "cell"}]}  # fmt: skip
    found = coco.read(json.dumps(root).encode())
    assert [one.reason for one in found.aside] == ["a polygon that crosses itself"]
    classes, _ = drawn(found.images["a.png"].mask(30, 20), ["background", "cell"], 20, 30)
    want = np.zeros((20, 30), int)
    want[1:5, 1:5] = 1
    want[10:16, 10:16] = want[2:8, 20:24] = -1
    assert (classes == want).all()
    circle = {"label": "cell", "shape_type": "circle", "points": [[10, 10], [13, 14]]}
    shape = {"label": "cell", "shape_type": "polygon", "points": [[1, 1], [5, 1], [5, 5], [1, 5]]}
    image, aside = labelme.read(json.dumps({"shapes": [shape, circle], "imageWidth": 30, "imageHeight": 20}).encode())
    classes, _ = drawn(image.mask(30, 20), ["background", "cell"], 20, 30)
    want[:] = 0
    want[1:5, 1:5] = 1
    want[5:15, 5:15] = -1
    assert len(aside) == 1 and (classes == want).all()
