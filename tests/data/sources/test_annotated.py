"""COCO files as sources, and what `--labels` of boxes and masks names, matched with images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data.annotations import coco, labelme, voc, yolo
from selfsight.data.annotations.masks import write_mask
from selfsight.data.annotations.outlines import Outline, Outlines, corners, drawn
from selfsight.data.boxes import Box
from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.errors import DataError, SelfsightError

SIZE = (12, 9)
BOX = Box("cell", 1.0, 2.0, 7.0, 8.0)
POLYGON = [[2.0, 1.0, 9.0, 1.0, 9.0, 6.0]]


def pictures(folder: Path, *names: str, exif: int = 1) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tags = Image.Exif()
        tags[0x0112] = exif
        Image.fromarray(np.full((SIZE[1], SIZE[0]), 40 * number, np.uint8)).save(path, exif=tags.tobytes())


def opened(source: Path, tmp_path: Path) -> Collection:
    return open_source(source, tmp_path / "items.lance")


def by_uri(labels: Labels) -> dict[str, object]:
    return dict(zip(labels.rows["uri"].to_pylist(), labels.values, strict=True))


def test_a_coco_file_is_a_source_with_its_boxes_and_masks(tmp_path: Path):
    pictures(tmp_path / "images", "a.jpg", "b.jpg", "stray.jpg")
    outlines = Outlines((Outline("cell", POLYGON, BOX), Outline("rod", None, BOX)), SIZE)
    file = tmp_path / "annotations" / "instances.json"
    file.parent.mkdir()
    file.write_bytes(coco.write({"a.jpg": outlines, "b.jpg": Outlines((), SIZE), "gone.jpg": outlines}))
    items = opened(file, tmp_path)
    assert sorted(items.usable["uri"].to_pylist()) == ["images/a.jpg", "images/b.jpg"]
    assert dict(zip(items.set_aside["uri"].to_pylist(), items.set_aside["reason"].to_pylist(), strict=True)) == {
        "annotations/gone.jpg": "no such file"
    }
    boxes, masks = by_uri(Labels.of(items, kind="boxes")), by_uri(Labels.of(items, kind="masks"))
    assert boxes == {"images/a.jpg": (BOX, Box("rod", 1.0, 2.0, 7.0, 8.0)), "images/b.jpg": ()}
    unknown = [corners(BOX)]  # of the rod only a box is known, which is no background
    assert masks == {"images/a.jpg": {"cell": [POLYGON], "ignore": unknown}, "images/b.jpg": {}}


def test_annotations_set_aside_are_kept_with_the_collection_by_name(tmp_path: Path):
    pictures(tmp_path, "a.jpg")
    root = json.loads(coco.write({"a.jpg": Outlines((Outline("cell", None, BOX),), SIZE)}))
    root["annotations"] += [root["annotations"][0] | {"id": 5, "category_id": 9}]
    (tmp_path / "x.json").write_text(json.dumps(root))
    items = opened(tmp_path / "x.json", tmp_path)
    assert items.about.aside == {"a.jpg, annotation 5": "an unknown class 9"}
    assert Collection.open(items.path).about.aside == items.about.aside
    assert by_uri(Labels.of(items, kind="boxes")) == {"a.jpg": (BOX,)}


def test_a_coco_file_that_changed_is_read_again(tmp_path: Path):
    pictures(tmp_path, "a.jpg")
    for label in ("cell", "rod"):
        box = Box(label, 1.0, 2.0, 7.0, 8.0)
        (tmp_path / "x.json").write_bytes(coco.write({"a.jpg": Outlines((Outline(label, corners(box), box),), SIZE)}))
        items = opened(tmp_path / "x.json", tmp_path)
        assert by_uri(Labels.of(items, kind="boxes")) == {"a.jpg": (box,)}
        assert by_uri(Labels.of(items, kind="masks")) == {"a.jpg": {label: [corners(box)]}}


def test_coordinates_of_the_stored_image_are_turned(tmp_path: Path):
    """Orientation 6: what is stored left is seen above. The stored image of 12 x 9 stands 9 x 12."""
    pictures(tmp_path, "a.png", exif=6)
    stored = Box("cell", 0.0, 0.0, 3.0, 9.0)
    (tmp_path / "x.json").write_bytes(
        coco.write({"a.png": Outlines((Outline("cell", corners(stored), stored),), SIZE)})
    )
    items = opened(tmp_path / "x.json", tmp_path)
    assert by_uri(Labels.of(items, kind="boxes"))["a.png"] == (Box("cell", 0.0, 0.0, 9.0, 3.0),)
    classes, _ = drawn(by_uri(Labels.of(items, kind="masks"))["a.png"], ["background", "cell"], 12, 9)
    assert (classes[:3] == 1).all() and (classes[3:] == 0).all()


def test_json_that_is_no_coco_file_is_refused_in_one_sentence(tmp_path: Path):
    for text, reason in (("{}", "no list of images"), ("[", "not JSON")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(DataError, match=reason):
            opened(tmp_path / "x.json", tmp_path)


# -- labels --


def test_every_format_of_boxes_says_the_same_of_an_image(tmp_path: Path):
    pictures(tmp_path / "photos", "a/1.jpg", "a/2.jpg", "b/1.jpg")
    items = opened(tmp_path / "photos", tmp_path)
    outlines = Outlines((Outline("cell", corners(BOX), BOX),), SIZE)
    named = {
        "voc/a/1.xml": voc.write([BOX], *SIZE),
        "yolo/a/1.txt": yolo.write([BOX], *SIZE),
        "numbers/labels/a/1.txt": yolo.write([Box("1", 1.0, 2.0, 7.0, 8.0)], *SIZE),
        "numbers/data.yaml": b"names: {0: rod, 1: cell}\n",
        "labelme/a/1.json": labelme.write(outlines),
        "one.json": coco.write({"a/1.jpg": outlines}),
    }
    for name, data in named.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for path in ("voc", "yolo", "numbers/labels", "labelme", "one.json"):
        found = by_uri(Labels.of(items, path=str(tmp_path / path), kind="boxes"))
        (box,) = found.pop("a/1.jpg")
        assert box.label == "cell" and found == {"a/2.jpg": None, "b/1.jpg": None}
        assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((1, 2, 7, 8))


def test_masks_of_any_folder_are_matched_by_the_end_of_their_path(tmp_path: Path):
    pictures(tmp_path / "photos", "images/a/1.jpg", "images/b/1.jpg", "images/b/2.jpg", "images/b/3.jpg")
    items = opened(tmp_path / "photos", tmp_path)
    ids = np.zeros(SIZE[::-1], np.int32)
    for number, name in enumerate(("a/1.png", "b/1.png", "2_mask.png", "b/9.png"), 1):
        file = tmp_path / "masks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        ids[:] = number
        file.write_bytes(write_mask(ids))
    labels = Labels.of(items, path=str(tmp_path / "masks"), kind="masks")
    found = {uri: value and list(value) for uri, value in by_uri(labels).items()}
    assert found == {"images/a/1.jpg": ["1"], "images/b/1.jpg": ["2"], "images/b/2.jpg": ["3"], "images/b/3.jpg": None}
    assert "1 annotation belongs to no image of the source, such as b/9.png" in labels.doubt


def test_a_mask_that_two_images_could_have_is_given_to_neither(tmp_path: Path):
    pictures(tmp_path / "photos", "a/1.jpg", "b/1.jpg", "2.jpg")
    items = opened(tmp_path / "photos", tmp_path)
    (tmp_path / "masks").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "masks" / name).write_bytes(write_mask(np.eye(*SIZE[::-1], dtype=np.int32)))
    labels = Labels.of(items, path=str(tmp_path / "masks"), kind="masks")
    assert {uri for uri, value in by_uri(labels).items() if value} == {"2.jpg"}
    assert "1.png" in labels.doubt


def test_what_is_named_exactly_is_not_taken_by_another_suffix(tmp_path: Path):
    """A COCO file means a.png, not a.jpg; a mask a.png is that of the image a.png."""
    pictures(tmp_path / "photos", "a.png", "a.jpg", "s/b.png", "s/b.jpg")
    items = opened(tmp_path / "photos", tmp_path)
    cell = Outlines((Outline("cell", POLYGON, BOX),), SIZE)
    (tmp_path / "one.json").write_bytes(coco.write({"a.png": cell, "b.jpg": cell}))
    labels = Labels.of(items, path=str(tmp_path / "one.json"), kind="masks")
    assert {uri for uri, value in by_uri(labels).items() if value} == {"a.png", "s/b.jpg"} and not labels.doubt
    (tmp_path / "masks" / "s").mkdir(parents=True)
    for name in ("a.png", "s/b.jpg.png", "s/b.png.png"):  # as `predict` calls masks of images that differ in suffix
        (tmp_path / "masks" / name).write_bytes(write_mask(np.eye(*SIZE[::-1], dtype=np.int32)))
    labels = Labels.of(items, path=str(tmp_path / "masks"), kind="masks")
    assert {uri for uri, value in by_uri(labels).items() if value} == {"a.png", "s/b.jpg", "s/b.png"}


def test_pages_of_a_file_are_named_by_their_numbers(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    first, *rest = (Image.fromarray(np.full(SIZE[::-1], 40 * n, np.uint8)) for n in range(3))
    first.save(tmp_path / "photos" / "stack.tif", save_all=True, append_images=rest)
    items = opened(tmp_path / "photos", tmp_path)
    assert items.usable["page"].to_pylist().count(None) == 0 and len(items.usable) == 3
    cell = Outlines((Outline("cell", POLYGON, BOX),), SIZE)
    (tmp_path / "one.json").write_bytes(coco.write({"stack.tif.0": cell, "stack.tif.2": cell, "stack.tif": cell}))
    labels = Labels.of(items, path=str(tmp_path / "one.json"), kind="masks")
    of_page = dict(zip(items.usable["page"].to_pylist(), labels.values, strict=True))
    assert {page for page, value in of_page.items() if value} == {0, 2}
    assert "stack.tif" in labels.doubt
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "stack.1.png").write_bytes(write_mask(np.eye(*SIZE[::-1], dtype=np.int32)))
    labels = Labels.of(items, path=str(tmp_path / "masks"), kind="masks")
    of_page = dict(zip(items.usable["page"].to_pylist(), labels.values, strict=True))
    assert {page for page, value in of_page.items() if value} == {1}


def test_what_could_be_of_several_images_is_counted_and_named(tmp_path: Path):
    pictures(tmp_path / "photos", "a/1.jpg", "b/1.jpg", "2.jpg", "3.jpg")
    items = opened(tmp_path / "photos", tmp_path)
    (tmp_path / "masks").mkdir()
    for name in ("1.png", "2.png", "2_mask.png", "3.png"):
        (tmp_path / "masks" / name).write_bytes(write_mask(np.eye(*SIZE[::-1], dtype=np.int32)))
    labels = Labels.of(items, path=str(tmp_path / "masks"), kind="masks")
    assert {uri for uri, value in by_uri(labels).items() if value} == {"3.jpg"}
    twice = "one of several files for the same image"
    assert {one.where: one.reason for one in labels.aside} == {
        "1.png": "several images are called so", "2.png": twice, "2_mask.png": twice
    }  # fmt: skip
    assert "3 annotations are set aside" in labels.doubt and "belong" not in labels.doubt


def test_objects_of_voc_keep_their_identity(tmp_path: Path):
    pictures(tmp_path / "JPEGImages", "1.jpg")
    items = opened(tmp_path / "JPEGImages", tmp_path)
    classes, objects = np.zeros(SIZE[::-1], np.int32), np.zeros(SIZE[::-1], np.int32)
    classes[:4], objects[:4, :6], objects[:4, 6:] = 3, 1, 2
    for name, ids in (("SegmentationClass", classes), ("SegmentationObject", objects)):
        (tmp_path / "voc" / name).mkdir(parents=True)
        (tmp_path / "voc" / name / "1.png").write_bytes(write_mask(ids))
    (value,) = Labels.of(items, path=str(tmp_path / "voc"), kind="masks").values
    again, told = drawn(value, ["background", "3"], *SIZE[::-1])
    assert (again == (classes > 0)).all() and (told == objects).all()


def test_what_cannot_be_used_is_named_and_what_is_nothing_refused(tmp_path: Path):
    pictures(tmp_path / "photos", "1.jpg", "2.jpg", "3.jpg")
    items = opened(tmp_path / "photos", tmp_path)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "1.png").write_bytes(write_mask(np.eye(*SIZE[::-1], dtype=np.int32)))
    (tmp_path / "masks" / "2.png").write_bytes(write_mask(np.eye(5, dtype=np.int32)))
    (tmp_path / "masks" / "3.png").write_bytes(b"broken")
    labels = Labels.of(items, path=str(tmp_path / "masks"), kind="masks")
    reasons = {one.where: one.reason for one in labels.aside}
    assert reasons["2.jpg"] == "a mask of 5 x 5 for an image of 12 x 9" and reasons["3.jpg"].startswith(
        "no mask of PNG"
    )
    assert "2 annotations are set aside" in labels.doubt and labels.known.sum() == 1
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "classes.txt").write_text("rod\n")
    (tmp_path / "names" / "1.txt").write_text("4 .5 .5 .5 .5\n")
    (tmp_path / "names" / "2.txt").write_text("0 .5 .5 .5 .5\n")
    labels = Labels.of(items, path=str(tmp_path / "names"), kind="boxes")
    assert [(one.where, one.reason) for one in labels.aside] == [("1.txt", "an unknown class 4")]
    for path, kind, error in (
        (tmp_path / "photos", "boxes", "holds no file of boxes"),
        (tmp_path / "nowhere", "masks", "does not exist. Give a COCO file"),
        (tmp_path / "photos", "masks", "holds no file of masks"),
    ):
        with pytest.raises(SelfsightError, match=error):
            Labels.of(items, path=str(path), kind=kind)
