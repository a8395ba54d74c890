"""Masks of items, wherever labels say that they are: classes, objects, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data.annotations import coco
from selfsight.data.annotations.masks import IGNORE, read_mask, write_mask
from selfsight.data.annotations.outlines import BACKGROUND, IGNORED, Outline, Outlines, value_of
from selfsight.data.annotations.rle import encode
from selfsight.data.importers import import_source, open_source
from selfsight.data.labels import Labels
from selfsight.data.masks import Masks, looks_like_objects, numbers_of
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.source import Options
from selfsight.errors import DataError

HEIGHT, WIDTH = 12, 16


def folder_of(tmp_path: Path, masks: list[np.ndarray | bytes]) -> Path:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    rng = np.random.default_rng(0)
    for number, mask in enumerate(masks):
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH), np.uint8)).save(tmp_path / "images" / f"{number}.png")
        data = mask if isinstance(mask, bytes) else write_mask(mask)
        (tmp_path / "masks" / f"{number}.png").write_bytes(data)
    return tmp_path


def masks_in(place: Path, objects: bool | None = None) -> Masks:
    items = open_source(place / "images", place / "x.lance")
    return Masks.of(items, Labels.of(items, path=str(place / "masks"), kind="masks"), objects)


def squares(*classes: int) -> np.ndarray:
    """A mask with squares of 4 px that touch, one of each class."""
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    for place, name in enumerate(classes):
        ids[2:6, 4 * place : 4 * place + 4] = name
    return ids


def test_numbers_in_masks_are_classes_in_order_and_come_back(tmp_path: Path):
    given = [squares(255, 9), squares(9, 128), squares(IGNORE, 9)]
    masks = masks_in(folder_of(tmp_path, given))
    assert masks.names == (BACKGROUND, "9", "128", "255") and not masks.told_apart
    values = np.array([*numbers_of(masks.names), IGNORE])
    order = np.argsort(masks.labels.rows["uri"].to_pylist())
    for place, mask in zip(order, given, strict=True):
        classes, objects = masks.at(int(place))
        assert (values[classes] == mask).all() and not objects.any()


def test_masks_beside_images_named_by_a_column(tmp_path: Path):
    place = folder_of(tmp_path, [squares(1), squares(2, 1)])
    source = make_source(str(place), Options(columns={"mask": "masks/{name}"}))
    items = import_source(source, place / "x.lance")
    assert Masks.of(items, Labels.of(items, kind="masks")).names == (BACKGROUND, "1", "2")


def test_numbers_of_objects_are_told_from_classes_by_how_they_look(tmp_path: Path):
    """1 … n in one piece each, n from mask to mask: objects. The same classes in each mask, or in pieces: classes."""
    cells = folder_of(tmp_path, [squares(1, 2, 3), squares(1, 2), squares(1, 2, 3, 4)])
    masks = masks_in(cells)
    assert masks.told_apart and masks.names == (BACKGROUND, "object") and "taken for" in masks.notes[0]
    classes, objects = masks.at(masks.labels.rows["uri"].to_pylist().index("0.png"))
    assert ((classes == 1) == (squares(1, 2, 3) > 0)).all() and (objects == squares(1, 2, 3)).all()
    assert masks_in(cells, objects=False).names == (BACKGROUND, "1", "2", "3", "4")
    full = encode(np.ones((3, 3), bool))
    parts = encode(np.array([[1, 0, 0], [0, 0, 1], [1, 0, 0]], bool))
    assert looks_like_objects([{"1": full, "2": full, "3": full}, {"1": full}])
    assert not looks_like_objects([{"1": full, "2": full, "3": full}] * 3)
    assert not looks_like_objects([{"1": parts, "2": parts, "3": full}, {"1": full}])
    assert not looks_like_objects([{"128": full, "255": full, "7": full}, {"128": full}])


def test_classes_that_a_person_called_by_numbers_are_no_objects(tmp_path: Path):
    """The same masks, painted or as files of numbers: only of a file may the numbers be those of objects."""
    place = folder_of(tmp_path, [squares(1, 2, 3), squares(1, 2), squares(1)])
    items = open_source(place / "images", place / "x.lance")
    for row in items.usable.to_pylist():
        with (place / "masks" / row["uri"]).open("rb") as file:
            painted = dict(value_of(read_mask(file)))
        items.decisions.decide(row["id"], row["content_hash"], "mask", painted)
    painted = Masks.of(items, Labels.of(items, kind="masks"))
    assert not painted.told_apart and painted.names == (BACKGROUND, "1", "2", "3")
    over = Masks.of(items, Labels.of(items, path=str(place / "masks"), kind="masks"))  # the journal is asked first
    assert not over.told_apart and over.names == (BACKGROUND, "1", "2", "3")


def test_more_classes_than_any_head_tells_apart_are_taken_for_numbers_of_objects(tmp_path: Path):
    """Numbers that run on from picture to picture, as a microscope's software writes them."""
    place = folder_of(tmp_path, [np.arange(192).reshape(HEIGHT, WIDTH) + 200 * k for k in range(2)])
    with pytest.raises(DataError, match=r"have 383 classes, of which 255 can be told apart.*--objects"):
        masks_in(place)
    masks = masks_in(place, objects=True)
    assert masks.told_apart and masks.names == (BACKGROUND, "object") and masks.at(0)[1].max() in (191, 192)


def test_objects_of_coco_keep_their_identity_and_crowds_are_left_out(tmp_path: Path):
    place = folder_of(tmp_path, [squares(1)])
    left, right = [[0.0, 0, 8, 0, 8, 6, 0, 6]], [[8.0, 0, 16, 0, 16, 6, 8, 6]]
    crowd = encode(np.pad(np.ones((2, WIDTH), bool), ((HEIGHT - 2, 0), (0, 0))))
    outlines = (Outline("cell", left), Outline("cell", right), Outline("cell", crowd, None, True))
    (place / "x.json").write_bytes(coco.write({"0.png": Outlines(outlines, (WIDTH, HEIGHT))}))
    items = open_source(place / "images", place / "x.lance")
    masks = Masks.of(items, Labels.of(items, path=str(place / "x.json"), kind="masks"))
    classes, objects = masks.at(0)
    assert masks.told_apart and masks.names == (BACKGROUND, "cell")
    assert (objects[:6, :8] == 1).all() and (objects[:6, 8:] == 2).all() and not objects[6:].any()
    assert (classes[:6] == 1).all() and (classes[6:-2] == 0).all() and (classes[-2:] == IGNORE).all()


def test_what_people_drew_overrides_a_mask(tmp_path: Path):
    place = folder_of(tmp_path, [squares(1), squares(2)])
    items = open_source(place / "images", place / "x.lance")
    row = items.usable.to_pylist()[0]
    drawn = {"scratch": encode(squares(1) > 0), BACKGROUND: encode(squares(0, 1) > 0)}
    items.decisions.decide(row["id"], row["content_hash"], "mask", drawn)
    masks = Masks.of(items, Labels.of(items, path=str(place / "masks"), kind="masks"))
    classes, _ = masks.at(masks.labels.ids.index(row["id"]))
    assert "scratch" in masks.names
    assert (classes == IGNORE).sum() == HEIGHT * WIDTH - 32 and (classes == 0).sum() == 16


def test_masks_that_cannot_be_used_are_named(tmp_path: Path):
    place = folder_of(tmp_path, [squares(1), b"broken", np.zeros((5, 4), np.int32)])
    masks = masks_in(place)
    assert len(masks) == 1
    reasons = {one.where: one.reason for one in masks.aside}
    assert reasons["2.png"] == "a mask of 4 x 5 for an image of 16 x 12" and "no mask of PNG" in reasons["1.png"]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([b"broken"], "has no annotation that can be used: 0.png: no mask of PNG"),
        ([np.zeros((HEIGHT, WIDTH), np.int32)] * 2, "hold background alone"),
    ],
)
def test_masks_of_nothing_are_refused_in_one_sentence(tmp_path: Path, given: list, error: str):
    place = folder_of(tmp_path, given)
    with pytest.raises(DataError, match=error):
        masks_in(place)


def test_items_without_masks_are_refused(tmp_path: Path):
    place = folder_of(tmp_path, [squares(1)])
    items = open_source(place / "images", place / "x.lance")
    with pytest.raises(DataError, match=r"No item of .* has a mask"):
        Masks.of(items, Labels.of(items, kind="masks"))


def test_a_class_without_a_pixel_is_none(tmp_path: Path):
    place = folder_of(tmp_path, [squares(1)])
    sliver = Outline("sliver", [[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]])
    outlines = Outlines((sliver, Outline("cell", [[0.0, 0, 8, 0, 8, 6]])), (WIDTH, HEIGHT))
    (place / "x.json").write_bytes(coco.write({"0.png": outlines}))
    items = open_source(place / "images", place / "x.lance")
    masks = Masks.of(items, Labels.of(items, path=str(place / "x.json"), kind="masks"))
    assert masks.names == (BACKGROUND, "cell") and "no mask has a pixel of sliver" in masks.notes[0]


def test_classes_that_a_head_does_not_know_are_left_out(tmp_path: Path):
    masks = masks_in(folder_of(tmp_path, [squares(1, 7), squares(1)])).with_names((BACKGROUND, "1", "2"))
    place = masks.labels.rows["uri"].to_pylist().index("0.png")
    classes, _ = masks.at(place)
    assert (classes[2:6, :4] == 1).all() and (classes[2:6, 4:8] == IGNORE).all() and "left out: 7" in masks.notes[-1]
    with pytest.raises(DataError, match="classes that are not known: 1"):
        masks.take([1 - place]).with_names((BACKGROUND, "5"))


def test_a_collection_made_of_a_coco_file_has_its_masks(tmp_path: Path):
    place = folder_of(tmp_path, [squares(1), squares(1)])
    mask = squares(0, 1) > 0
    root = json.loads(coco.write({"images/0.png": Outlines((Outline("cell", encode(mask)),), (WIDTH, HEIGHT))}))
    (place / "x.json").write_text(json.dumps(root))
    items = open_source(place / "x.json", place / "x.lance")
    masks = Masks.of(items, Labels.of(items, kind="masks"))
    classes, objects = masks.at(0)
    assert ((classes == 1) == mask).all() and (objects == mask).all() and IGNORED not in masks.names
