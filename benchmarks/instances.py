"""Objects told apart by `train segment`: average precision and error of the count, by the commands that a user types.

    pip install faster-coco-eval
    python benchmarks/instances.py composed      # cells with exact masks, apart and touching
    python benchmarks/instances.py bccd          # blood cells, from masks that Otsu makes inside of drawn boxes

`composed`: 20 pictures learnt from, 20 tested, for each of two kinds. Cells are discs with a texture, on a background
that is uneven, beside specks of dirt. `bccd`: 40 of the training and validation pictures, in each box the largest piece
below Otsu's threshold (Otsu, IEEE Trans. Syst. Man Cybern. 1979) of the green channel; the boxes of the objects that
are found on the test split are compared with those that people drew.
AP50 as COCO has it; the count error is the mean over pictures of how far the count is off, with how many there are.
A row a call in results/instances.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes, gaussian_filter, label
from skimage.filters import threshold_otsu

from selfsight.data.annotations import coco
from selfsight.data.annotations.outlines import Outline, Outlines
from selfsight.data.annotations.rle import encode, encode_part
from selfsight.data.boxes import Box
from selfsight.machine import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "instances.jsonl"
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data")) / "bccd"
STOCK = "package:efficientnet_lite0"
SIDE, CELLS, PICTURES, BCCD = 256, 24, 20, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("composed", "bccd"))
    what = parser.parse_args().what
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("apart", "touching") if what == "composed" else ("bccd",):
            work = Path(folder) / name
            splits = blood(work) if name == "bccd" else composed(work, name == "touching")
            rows.append({"set": name, **figures(work, *splits)})
    machine = environment("cpu")
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        for row in rows:
            row |= {"machine": machine["processor"], "cores": machine["cores"]}
            file.write(json.dumps(row) + "\n")
            print(json.dumps(row, indent=1))


def composed(work: Path, touching: bool) -> tuple[dict[str, Outlines], dict[str, Outlines]]:
    """Write the pictures of both splits; what is in them."""
    found = []
    for split, first in (("taught", 0), ("tested", 1_000)):
        folder = work / split
        folder.mkdir(parents=True)
        known = {}
        for number in range(PICTURES):
            picture, ids = cells(np.random.default_rng(first + number), touching)
            Image.fromarray(picture).save(folder / f"{number:02d}.png")
            each = tuple(Outline("cell", encode(ids == n)) for n in range(1, ids.max() + 1))
            known[f"{number:02d}.png"] = Outlines(each, (SIDE, SIDE))
        found.append(known)
    return found[0], found[1]


def cells(rng: np.random.Generator, touching: bool) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture [H, W] uint8 and its cells [H, W], numbered from 1: those that touch are of 8 clumps."""
    y, x = np.mgrid[:SIDE, :SIDE]
    ids, number = np.zeros((SIDE, SIDE), np.int32), 0
    clumps = rng.uniform(30, SIDE - 30, (8, 2))
    for _ in range(20_000):
        if number == CELLS:
            break
        radius = rng.uniform(9, 15)
        centre = clumps[rng.integers(8)] + rng.normal(0, 20, 2) if touching else rng.uniform(0, SIDE, 2)
        away = np.hypot(y - centre[0], x - centre[1])
        disc = away < radius
        if disc.sum() < 0.7 * np.pi * radius**2 or (ids[away < radius + (0 if touching else 4)] > 0).mean() > 0.05:
            continue
        if touching and (ids[disc] > 0).any() and (disc & (ids == 0)).sum() < 0.9 * disc.sum():
            continue
        number += 1
        ids[disc & (ids == 0)] = number
    inside = ids > 0
    picture = 165.0 + 25.0 * (x / SIDE) - 60.0 * gaussian_filter(inside.astype(float), 1.0)
    picture += 14.0 * gaussian_filter(rng.normal(size=inside.shape), 2.0) * 6.0 * inside
    for cy, cx in rng.uniform(0, SIDE, (15, 2)):  # dirt
        picture[np.hypot(y - cy, x - cx) < rng.uniform(1, 2.5)] -= 50.0
    picture = gaussian_filter(picture, 0.7) + rng.normal(0, 4.0, inside.shape)
    return picture.clip(0, 255).astype(np.uint8), ids


def blood(work: Path) -> tuple[dict[str, Outlines], dict[str, Outlines]]:
    """Link the pictures of both splits; what is in those that are learnt from, by Otsu, and in the others."""
    names = {
        split: (DATA / "ImageSets" / "Main" / f"{split}.txt").read_text().split() for split in ("trainval", "test")
    }
    some = names["trainval"][:: max(1, len(names["trainval"]) // BCCD)][:BCCD]
    taught = {f"{name}.jpg": boxes_of(name) for name in linked(work / "taught", some)}
    tested = {f"{name}.jpg": boxes_of(name) for name in linked(work / "tested", names["test"])}
    return {name: otsu(work / "taught" / name, known) for name, known in taught.items()}, tested


def linked(folder: Path, names: Iterable[str]) -> list[str]:
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.jpg").symlink_to((DATA / "JPEGImages" / f"{name}.jpg").resolve())
    return list(names)


def boxes_of(name: str) -> Outlines:
    root = ET.parse(DATA / "Annotations" / f"{name}.xml").getroot()
    size = tuple(float(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    found = []
    for one in root.iter("object"):
        x0, y0, x1, y1 = (float(one.findtext(f"bndbox/{edge}", "0")) for edge in ("xmin", "ymin", "xmax", "ymax"))
        x0, y0, x1, y1 = max(0.0, x0 - 1), max(0.0, y0 - 1), min(size[0], x1), min(size[1], y1)
        if x1 - x0 > 2 and y1 - y0 > 2:
            kind = one.findtext("name", "")
            found.append(Outline(kind, box=Box(kind, x0, y0, x1, y1)))
    return Outlines(tuple(found), (size[0], size[1]))


def otsu(file: Path, known: Outlines) -> Outlines:
    green = np.asarray(Image.open(file).convert("RGB"))[:, :, 1]
    found = []
    for one in known.outlines:
        assert one.box is not None
        x0, y0, x1, y1 = (int(edge) for edge in (one.box.x0, one.box.y0, one.box.x1, one.box.y1))
        here = green[y0:y1, x0:x1]
        dark = binary_fill_holes(here <= threshold_otsu(here)) if here.min() < here.max() else np.ones(here.shape, bool)
        pieces, count = label(dark)
        if count:
            largest = pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
            found.append(Outline(one.label, encode_part(largest, y0, x0, *green.shape)))
    return Outlines(tuple(found), known.size)


def figures(work: Path, taught: dict[str, Outlines], tested: dict[str, Outlines]) -> dict[str, Any]:
    (work / "taught.json").write_bytes(coco.write(taught))
    began = time.monotonic()
    selfsight(
        "train", "segment", work / "taught", "--model", STOCK, "--labels", work / "taught.json", "-o", work / "head"
    )
    learning = time.monotonic() - began
    began = time.monotonic()
    selfsight("predict", work / "tested", "--head", work / "head", "-o", work / "out", "--coco", work / "found.json")
    each = (time.monotonic() - began) / len(tested)
    found = json.loads((work / "found.json").read_text())
    truth = json.loads(coco.write(with_boxes(tested)))
    about = json.loads((work / "head" / "head.json").read_text())
    row: dict[str, Any] = {"taught": len(taught), "tested": len(tested), "setting": about.get("setting")}
    row |= average_precision(truth, found)
    counts: dict[str, list[tuple[int, int]]] = {}
    for image in truth["images"]:
        for kind in truth["categories"]:
            true = how_many(truth, image["file_name"], kind["name"])
            counts.setdefault(kind["name"], []).append((how_many(found, image["file_name"], kind["name"]), true))
    row["counts"] = {
        kind: {"error": float(np.mean([abs(a - b) for a, b in some])), "true": float(np.mean([b for _, b in some]))}
        for kind, some in counts.items()
    }
    return row | {"seconds_learning": round(learning), "seconds_a_picture": round(each, 2)}


def with_boxes(known: dict[str, Outlines]) -> dict[str, Outlines]:
    """Each outline with the box around it."""
    return {
        name: Outlines(
            tuple(
                Outline(one.label, one.region, box)
                for one, box in zip(each.outlines, each.boxes.boxes, strict=True)
            ),
            each.size,
        )
        for name, each in known.items()
    }  # fmt: skip


def how_many(of: dict[str, Any], image: str, kind: str) -> int:
    image_id = next(one["id"] for one in of["images"] if one["file_name"] == image)
    kinds = {one["id"] for one in of["categories"] if one["name"] == kind}
    return sum(one["image_id"] == image_id and one["category_id"] in kinds for one in of["annotations"])


def average_precision(truth: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """AP50 of boxes, and of masks where the truth has them, of each class and the mean."""
    from faster_coco_eval import COCO, COCOeval_faster

    images = {one["file_name"]: one["id"] for one in truth["images"]}
    kinds = {one["name"]: one["id"] for one in truth["categories"]}
    theirs = {one["id"]: images[one["file_name"]] for one in found["images"]}
    called = {one["id"]: kinds.get(one["name"]) for one in found["categories"]}
    results = [
        {"image_id": theirs[one["image_id"]], "category_id": called[one["category_id"]], "score": one["score"]}
        | {name: one[name] for name in ("bbox", "segmentation") if name in one}
        for one in found["annotations"]
        if called[one["category_id"]] is not None
    ]
    row: dict[str, Any] = {}
    for kind in ("bbox", "segm") if any("segmentation" in one for one in truth["annotations"]) else ("bbox",):
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO(truth)
            test = COCOeval_faster(known, known.loadRes(results), kind)
            test.params.maxDets = [1, 100, 1_000]
            test.evaluate()
            test.accumulate()
        precision = test.eval["precision"][0, :, :, 0, -1]  # at 0.5: [recalls, classes]
        each = {name: float(precision[:, place].mean()) for place, name in enumerate(kinds)}
        row[f"ap50_{kind}"] = {**each, "mean": float(np.mean(list(each.values())))}
    return row


def selfsight(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "selfsight", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
