"""predict --coco, and the pictures of objects: what is written is read back, pixel by pixel."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cells import write_cells
from helpers import tiny_encoder, write_colours
from PIL import Image

import selfsight
from selfsight.data.annotations import coco
from selfsight.data.annotations.masks import read_mask
from selfsight.data.annotations.rle import decode
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.data.masks import Masks
from selfsight.encoders.store import save
from selfsight.errors import SelfsightError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder/; objects/ and classes/, heads that tell cells apart and that do not; new/ with a picture that is to be
    turned, one in a folder, two of a name and a broken one."""
    folder = tmp_path_factory.mktemp("coco")
    save(tiny_encoder(64), folder / "encoder")
    train = write_cells(folder / "train", 4, 0)
    how = {"source": str(train / "images"), "model": str(folder / "encoder"), "size": 64, "method": "linear"}
    selfsight.train.segment(**how, labels=str(train / "cells.json"), out=str(folder / "objects"))
    (folder / "numbered").mkdir()
    for file in (train / "ids").iterdir():  # two classes, of which one has the number 7
        ids = np.asarray(Image.open(file))
        Image.fromarray(np.where(ids == 1, 7, np.where(ids > 1, 2, 0)).astype(np.uint8)).save(
            folder / "numbered" / file.name
        )
    selfsight.train.segment(**how, labels=str(folder / "numbered"), out=str(folder / "classes"), objects=False)
    new = write_cells(folder / "made", 4, 1) / "images"
    (folder / "new" / "deep").mkdir(parents=True)
    shutil.copy(new / "0.png", folder / "new" / "deep" / "0.png")
    shutil.copy(new / "1.png", folder / "new" / "0.png")
    pixels = np.asarray(Image.open(new / "2.png"))[:40]  # [40, 64]
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(folder / "new" / "0.jpg", exif=turned, quality=95)
    (folder / "new" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return folder


def written(folder: Path, name: str) -> np.ndarray:
    with (folder / name).open("rb") as file:
        return read_mask(file)


def test_objects_are_read_back_to_the_pixel(place: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "found", tmp_path / "deep" / "found.json"
    said = selfsight.predict(str(place / "new"), head=str(place / "objects"), out=str(out), coco=str(file))
    assert said.coco == str(file) and said.set_aside == 1
    rows = {row["uri"]: row for row in said.table.to_pylist() if not row["reason"]}
    found = coco.read(file.read_bytes())
    assert not found.aside and found.classes == {"cell": 1} and list(found.images) == sorted(rows)
    with (out / "objects.csv").open() as text:
        listed = list(csv.DictReader(text))
    assert sum(len(row["objects"]) for row in rows.values()) > 8
    for uri, image in found.images.items():
        name = rows[uri]["mask"].removeprefix("masks/")
        with Image.open(out / "objects" / name) as picture:
            assert picture.mode == "I;16"
            numbers = np.asarray(picture)
        assert image.size == numbers.shape[::-1] == ((40, 64) if uri == "0.jpg" else (64, 64))
        together = np.zeros(numbers.shape, int)
        said_of = rows[uri]["objects"]
        for number, (outline, one) in enumerate(zip(image.outlines, said_of, strict=True), 1):
            together[decode(outline.region)] = number
            assert outline.label == one["label"] == "cell" and outline.score == one["score"]
            assert (outline.box.x0, outline.box.y1) == (one["x0"], one["y1"])
        assert (together == numbers).all() and len(said_of) == numbers.max() > 0
        areas = {int(line["object"]): int(line["area_px"]) for line in listed if line["uri"] == uri}
        assert areas == {n: int((numbers == n).sum()) for n in range(1, numbers.max() + 1)}
    raw = json.loads(file.read_bytes())["annotations"]
    assert all(one["area"] == decode(one["segmentation"]).sum() and 0 < one["score"] <= 1 for one in raw)


def test_what_is_written_can_be_learnt_from(place: Path, tmp_path: Path) -> None:
    """As labels of the same pictures, one of which is turned, it makes the same masks."""
    file, out = tmp_path / "found.json", tmp_path / "found"
    for head in ("objects", "classes"):
        selfsight.predict(str(place / "new"), head=str(place / head), out=str(out / head), coco=str(file))
        items = open_source(str(place / "new"))
        masks = Masks.of(items, Labels.of(items, path=str(file), kind="masks"))
        uris = masks.labels.rows["uri"].to_pylist()
        assert len(uris) == 3 and masks.told_apart
        numbers = {"objects": {"cell": 1}, "classes": {"2": 2, "7": 7}}[head]
        names = {"0.png": "0.png.png", "0.jpg": "0.jpg.png", "deep/0.png": "deep/0.png"}
        for number, uri in enumerate(uris):
            classes, _ = masks.at(number)
            as_written = np.array([0, *(numbers[name] for name in masks.names[1:])])[classes]
            mask = written(out / head / "masks", names[uri])
            if head == "objects":  # what is too small for an object is in the mask alone
                mask = np.where(written(out / head / "objects", names[uri]) > 0, mask, 0)
            assert (as_written == mask).all()


def test_of_classes_there_is_one_region_a_picture(place: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "found", tmp_path / "found.json"
    table = selfsight.predict(str(place / "new"), head=str(place / "classes"), out=str(out), coco=str(file)).table
    found = coco.read(file.read_bytes())
    assert found.classes == {"2": 2, "7": 7} and not (out / "objects").exists()
    for row in table.to_pylist():
        if not row["reason"]:
            mask = written(out, row["mask"])
            outlines = found.images[row["uri"]].outlines
            assert [one.label for one in outlines] == [str(n) for n in (2, 7) if (mask == n).any()]
            for one in outlines:
                inside = decode(one.region)
                y, x = np.nonzero(inside)
                assert (inside == (mask == int(one.label))).all()
                assert (one.box.x0, one.box.y0, one.box.x1, one.box.y1) == (x.min(), y.min(), x.max() + 1, y.max() + 1)
                parts = [(each["score"], each["area"]) for each in row["objects"] if each["label"] == one.label]
                mean = sum(s * a for s, a in parts) / sum(a for _, a in parts) if parts else row["score"]
                assert one.score == pytest.approx(mean)


def test_without_a_folder_and_where_there_is_nothing_to_outline(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    new, said = str(place / "new"), {"coco": str(file)}
    with pytest.raises(SelfsightError, match="does not tell objects apart, so --coco outlines its masks"):
        selfsight.predict(new, head=str(place / "classes"), **said)
    write_colours(tmp_path / "colours", 4)
    encoder = str(place / "encoder")
    selfsight.train.classify(str(tmp_path / "colours"), model=encoder, out=str(tmp_path / "named"), method="linear")
    selfsight.train.inspect(str(tmp_path / "colours" / "red"), model=encoder, out=str(tmp_path / "parts"), size=32)
    for head, task in (("named", "classify"), ("parts", "inspect")):
        with pytest.raises(SelfsightError, match=f"this one is of the task {task}. Leave --coco out."):
            selfsight.predict(new, head=str(tmp_path / head), **said)
    head = str(place / "objects")
    for wrong in ({"coco": "found.txt"}, {"coco": "same.json", "out": "same.json"}):
        with pytest.raises(SelfsightError, match="--coco is a file of its own"):
            selfsight.predict(new, head=head, **wrong)
    with pytest.raises(SelfsightError, match=r"is in the folder of the images.* Give another --coco"):
        selfsight.predict(new, head=head, coco=str(place / "new" / "found.json"))
    assert not file.exists() and not (place / "new" / "found.json").exists()
    selfsight.predict(new, head=head, **said)  # objects need no folder
    assert len(coco.read(file.read_bytes()).images) == 3
