"""Boxes as a detector takes them: against coordinates worked out by hand, whatever the format they came from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data.boxed import Boxed
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.errors import DataError

WIDTH, HEIGHT = 40, 20
TURNED = 6  # the EXIF orientation of a camera held upright: stored 20 x 40, seen 40 x 20 turned


def write_picture(path: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, (90, 120, 150)).save(path, exif=exif)


def boxed_of(folder: Path, labels: Path) -> Boxed:
    return Boxed.of(Labels.of(open_source(str(folder)), path=str(labels), kind="boxes"))


def coco_file(path: Path, boxes: list[dict[str, object]], size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    images = [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    annotations = [{"id": n, "image_id": 1, "category_id": 1, **one} for n, one in enumerate(boxes, 1)]
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "spot"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_coco_boxes_are_cut_counted_and_set_aside(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "a.jpg")
    boxes: list[dict[str, object]] = [
        {"bbox": [2, 3, 10, 5]},  # x0 2, y0 3, x1 12, y1 8
        {"bbox": [-4, 15, 10, 10]},  # reaches over the left and the lower edge: cut to 0, 15, 6, 20
        {"bbox": [5, 5, 0, 4]},  # no width
        {"bbox": [-6, 2, 5, 5]},  # ends a pixel before the picture begins
        {"bbox": [200, 2, 5, 5]},  # far outside: refused as it is read
        {"bbox": [20, 2, 15, 15], "iscrowd": 1},
        {"bbox": [1, 1, 4, 4], "category_id": 9},  # a class that the file does not name
        {"bbox": [30, 10, 4, 4], "category_id": 2},
    ]
    found = boxed_of(tmp_path / "in", coco_file(tmp_path / "a.json", boxes))
    truth = found.at(0)
    assert found.names == ("cell", "spot")
    assert truth.boxes.tolist() == [[2, 3, 12, 8], [0, 15, 6, 20], [20, 2, 35, 17], [30, 10, 34, 14]]
    assert truth.kinds.tolist() == [0, 0, 0, 1] and truth.unsure.tolist() == [False, False, True, False]
    assert found.counts().tolist() == [[2, 1]]  # a crowd is not an object
    reasons = sorted(one.reason for one in found.aside)
    assert reasons == ["a box of no area", "a box outside its image", "a box outside its image", "an unknown class 9"]
    assert all("a.jpg" in one.where for one in found.aside)


def test_voc_counts_pixels_from_one_and_difficult_is_unsure(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "a.jpg")
    thing = (
        "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
        "<ymax>{}</ymax></bndbox></object>"
    )
    things = thing.format("cell", 0, 1, 1, 10, 5) + thing.format("cell", 1, 11, 6, 20, 20)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text(f"<annotation>{size}{things}</annotation>")
    truth = boxed_of(tmp_path / "in", tmp_path / "voc").at(0)
    assert truth.boxes.tolist() == [[0, 0, 10, 5], [10, 5, 20, 20]] and truth.unsure.tolist() == [False, True]


def test_yolo_boxes_are_parts_of_the_upright_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "a.jpg")
    write_picture(tmp_path / "in" / "b.jpg", TURNED, (HEIGHT, WIDTH))  # seen as WIDTH x HEIGHT
    write_picture(tmp_path / "in" / "c.jpg")
    (tmp_path / "yolo").mkdir()
    for name in ("a", "b"):
        (tmp_path / "yolo" / f"{name}.txt").write_text("0 0.25 0.5 0.5 0.2\n")
    (tmp_path / "yolo" / "c.txt").write_text("")  # looked at, and nothing is there
    (tmp_path / "yolo" / "classes.txt").write_text("cell\n")
    found = boxed_of(tmp_path / "in", tmp_path / "yolo")
    assert [found.at(place).boxes.tolist() for place in range(3)] == [[[0, 8, 20, 12]], [[0, 8, 20, 12]], []]
    assert len(found) == 3  # one without an object is known to be background


def test_boxes_of_the_stored_picture_are_turned_with_it(tmp_path: Path) -> None:
    """Stored 20 wide and 40 high, turned by a quarter to the right: (x, y) lies at (40 - y, x) of the upright one."""
    write_picture(tmp_path / "in" / "a.jpg", TURNED, (HEIGHT, WIDTH))
    labels = coco_file(tmp_path / "a.json", [{"bbox": [2, 3, 4, 10]}], (HEIGHT, WIDTH))
    assert boxed_of(tmp_path / "in", labels).at(0).boxes.tolist() == [[40 - 13, 2, 40 - 3, 6]]


def test_boxes_of_other_classes_than_the_head_has(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "a.jpg")
    boxes: list[dict[str, object]] = [{"bbox": [2, 3, 10, 5]}, {"bbox": [30, 10, 4, 4], "category_id": 2}]
    found = boxed_of(tmp_path / "in", coco_file(tmp_path / "a.json", boxes)).with_names(("other", "spot"))
    assert found.at(0).kinds.tolist() == [1] and found.counts().tolist() == [[0, 1]]
    assert [one.reason for one in found.aside] == ["an unknown class cell"]
    with pytest.raises(DataError, match="not known: cell, spot"):
        boxed_of(tmp_path / "in", tmp_path / "a.json").with_names(("other",))


def test_shots_draw_whole_pictures_and_count_all_of_their_boxes(tmp_path: Path) -> None:
    """Three classes, of which each picture of the rare one has many of the common one."""
    rng, images, annotations = np.random.default_rng(0), [], []
    for number in range(30):
        write_picture(tmp_path / "in" / f"{number}.jpg")
        images.append({"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        classes = [1] * int(rng.integers(2, 6)) + [2] * (number % 3 == 0) + [3] * (number % 5 == 0)
        annotations += [
            {"id": len(annotations) + n, "image_id": number, "category_id": c, "bbox": [2, 2, 5, 5]}
            for n, c in enumerate(classes)
        ]
    categories = [{"id": n, "name": name} for n, name in enumerate(("common", "rare", "rarest"), 1)]
    (tmp_path / "all.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    every = boxed_of(tmp_path / "in", tmp_path / "all.json")
    draws = []
    for seed in range(4):
        some = every.shots(4, seed)
        counts = some.counts()
        assert (counts.sum(0) >= 4).all()
        assert f"{counts[:, 0].sum()} common" in some.notes[-1]  # all of their boxes are counted, and said
        without = [np.delete(counts, place, 0).sum(0).min() for place in range(len(some))]
        assert min(without) < 4 and len(some) <= 12
        assert some.labels.ids == every.shots(4, seed).labels.ids
        draws.append(tuple(some.labels.ids))
    assert len(set(draws)) == 4
    with pytest.raises(DataError, match=r"--shots 7 .* rarest has 6"):
        every.shots(7, 0)
