"""Objects found without labels by `discover`, beside a centred box, Otsu's threshold and colour.

    python benchmarks/discovery.py scenes       # sprites on textures, composed here: one a picture, and up to three
    python benchmarks/discovery.py bccd         # the white cells of the test split's blood smears
    python benchmarks/discovery.py whole        # bccd: clusters named by an oracle, and a detector from them

CorLoc is the share of pictures in which the first box covers an object with an intersection over union of 0.5; AR@3 the
mean over 0.5, 0.55, … 0.95 of the share of objects that one of three boxes covers so. `otsu` is the largest parts of
Otsu's threshold of grey, whichever side touches the border less; `colour` the same of saturation. A row an arm in
results/discovery.jsonl; what is there is not run again. What is set in `curation/discovery.py` was chosen on scenes of
another seed and on 60 pictures of bccd's training split.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects, gaussian_filter, label
from skimage.filters import threshold_otsu

import selfsight
from selfsight.data.annotations import coco
from selfsight.data.importers import open_source
from selfsight.encoders.store import create
from selfsight.encoders.weights import load
from selfsight.machine import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "discovery.jsonl"
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data")) / "bccd"
STOCK = "package:efficientnet_lite0"
SIDE, PICTURES, SEED, MOST = 224, 100, 1000, 3
LEVELS = np.arange(0.5, 0.96, 0.05)
Edges = tuple[float, float, float, float]
Truth = dict[str, list[tuple[str, Edges]]]


def composed(folder: Path, most: int) -> Truth:
    """Sprites of three kinds, 36 to 90 px, on smooth textures of any colour; they do not touch."""
    rng, truth = np.random.default_rng(SEED + most), {}
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        noise = gaussian_filter(rng.normal(size=(SIDE, SIDE, 3)), (*[rng.uniform(1, 4)] * 2, 0))
        picture = rng.uniform(60, 200, 3) + noise / noise.std() * rng.uniform(10, 30)
        placed: list[tuple[str, Edges]] = []
        for _ in range(200):
            reach = rng.uniform(18, 45)
            x, y = rng.uniform(1.2 * reach, SIDE - 1.2 * reach, 2)
            free = all(abs(x - (b[0] + b[2]) / 2) > 1.2 * reach + (b[2] - b[0]) / 2
                       or abs(y - (b[1] + b[3]) / 2) > 1.2 * reach + (b[3] - b[1]) / 2 for _, b in placed)  # fmt: skip
            if free:
                placed.append(sprite(picture, int(rng.integers(3)), x, y, reach))
            if len(placed) == 1 + number % most:
                break
        truth[f"{number:03d}.png"] = placed
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
    return truth


def sprite(picture: np.ndarray, kind: int, x: float, y: float, reach: float) -> tuple[str, Edges]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inside = (
        np.hypot(columns - x, rows - y) < reach,
        (abs(columns - x) < reach) & (abs(rows - y) < 0.8 * reach),
        abs(columns - x) + abs(rows - y) < 1.2 * reach,
    )[kind]
    stripes = (columns // 6, rows // 5 + columns // 5, rows // 7)[kind] % 2 > 0
    one, other = (((220, 40, 40), (250, 220, 60)), ((20, 20, 20), (240, 240, 240)), ((30, 90, 220), (120, 230, 240)))[
        kind
    ]
    picture[inside] = np.where(stripes[..., None], one, other)[inside]
    y_, x_ = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return ("disc", "board", "diamond")[kind], (x_[0], y_[0], x_[-1] + 1, y_[-1] + 1)


def smears(folder: Path, split: str, kinds: tuple[str, ...] = ("WBC",)) -> Truth:
    """Pictures of a split of bccd that show one of the kinds, with its boxes."""
    folder.mkdir(parents=True)
    truth: Truth = {}
    for name in (DATA / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
        root = ET.parse(DATA / "Annotations" / f"{name}.xml").getroot()
        boxes = []
        for one in root.iter("object"):
            x0, y0, x1, y1 = (float(one.find("bndbox").findtext(edge)) for edge in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[union-attr, arg-type]
            boxes.append((one.findtext("name") or "", (x0 - 1, y0 - 1, x1, y1)))
        if any(kind in kinds for kind, _ in boxes):
            (folder / f"{name}.jpg").symlink_to(DATA / "JPEGImages" / f"{name}.jpg")
            truth[f"{name}.jpg"] = [(kind, box) for kind, box in boxes if kind in kinds]
    return truth


def share(one: Edges, other: Edges) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, wide) * max(0.0, high)
    return both / (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - both)


def figures(truth: Truth, found: dict[str, list[Edges]]) -> dict[str, float]:
    first = [max((share(found[n][0], box) for _, box in boxes), default=0.0) if found.get(n) else 0.0
             for n, boxes in truth.items()]  # fmt: skip
    best = np.array([max((share(each, box) for each in found.get(name, [])[:MOST]), default=0.0)
                     for name, boxes in truth.items() for _, box in boxes])  # fmt: skip
    recall = float(np.mean([np.mean(best >= level) for level in LEVELS]))
    hits = np.array(first) >= 0.5
    return {
        "corloc": round(float(hits.mean()), 3),
        "standard_error": round(float(hits.std() / len(hits) ** 0.5), 3),
        "ar3": round(recall, 3),
        "recall50": round(float(np.mean(best >= 0.5)), 3),
        "pictures": len(truth),
        "objects": len(best),
    }


def by_threshold(folder: Path, value: Callable[[Image.Image], np.ndarray]) -> dict[str, list[Edges]]:
    """The largest parts of the side of Otsu's threshold that touches the border less."""
    found = {}
    for file in sorted(folder.iterdir()):
        grey = gaussian_filter(value(Image.open(file)), 2.0)
        above = grey > threshold_otsu(grey)
        border = np.concatenate([above[0], above[-1], above[:, 0], above[:, -1]]).mean()
        numbers, _ = label(above if border < 0.5 else ~above)
        sizes = np.bincount(numbers.reshape(-1))[1:]
        places = find_objects(numbers)
        best = np.argsort(-sizes, kind="stable")[:MOST]
        sides = [places[i] for i in best]
        found[file.name] = [(float(x.start), float(y.start), float(x.stop), float(y.stop)) for y, x in sides]
    return found


def centred(folder: Path) -> dict[str, list[Edges]]:
    found = {}
    for file in sorted(folder.iterdir()):
        width, height = Image.open(file).size
        found[file.name] = [(width / 4, height / 4, 3 * width / 4, 3 * height / 4)]
    return found


def by_discover(folder: Path, model: object, out: Path, size: int | None) -> dict[str, list[Edges]]:
    selfsight.discover(str(folder), model=model, out=str(out), most=MOST, size=size)  # type: ignore[arg-type]
    images = coco.read((out / "objects.json").read_bytes()).images
    found = {}
    for name, image in images.items():
        clearest = sorted(image.outlines, key=lambda one: -(one.score or 0))
        found[name] = [(one.box.x0, one.box.y0, one.box.x1, one.box.y1) for one in clearest if one.box]
    return found


def random_like_stock() -> object:
    """The architecture of the stock encoder with random weights."""
    stock = load(STOCK)
    return create("efficientnet_lite0", stock.geometry)


def arms(folder: Path, work: Path) -> dict[str, Callable[[], dict[str, list[Edges]]]]:
    return {
        "centred box": lambda: centred(folder),
        "otsu": lambda: by_threshold(folder, lambda picture: np.asarray(picture.convert("L"), np.float64)),
        "colour": lambda: by_threshold(folder, lambda picture: np.asarray(picture.convert("HSV"), np.float64)[..., 1]),
        "random weights": lambda: by_discover(folder, random_like_stock(), work / "random", None),
        "efficientnet_lite0": lambda: by_discover(folder, STOCK, work / "stock", None),
        "efficientnet_lite0, 448 px": lambda: by_discover(folder, STOCK, work / "large", 448),
    }


def whole(work: Path) -> None:
    """Nobody draws a box: clusters of bccd's training pictures are named by what most of their objects cover."""
    kinds = ("WBC", "RBC", "Platelets")
    train, test = smears(work / "train", "trainval", kinds), smears(work / "test", "test", kinds)
    out = work / "found"
    boxes = by_discover(work / "train", STOCK, out, None)
    sheets = open_source(str(out / "clusters"))
    images = coco.read((out / "objects.json").read_bytes()).images
    for row in sheets.usable.select(["id", "uri"]).to_pylist():
        name = Path(row["uri"]).stem
        told = []
        for called, image in images.items():
            for one in image.outlines:
                if one.label == name and one.box:
                    edges = one.box.x0, one.box.y0, one.box.x1, one.box.y1
                    told.append(max(((share(edges, box), kind) for kind, box in train[called]), default=(0.0, "")))
        right = [kind for covers, kind in told if covers >= 0.5]
        if len(right) >= 0.5 * len(told):  # what a person would call it
            sheets.decisions.decide(row["id"], None, "label", max(set(right), key=right.count))
    selfsight.discover(str(work / "train"), out=str(out), named=True)
    given = coco.read((out / "named.json").read_bytes())
    known = sorted(given.classes)
    named = sum(len(image.outlines) for image in given.images.values())
    rows: dict[str, object] = {"found": sum(map(len, boxes.values())), "named": named, "classes": known}
    for arm, labels in (("found", str(out / "named.json")), ("drawn", str(DATA / "Annotations"))):
        head = work / f"{arm}-head"
        shots = ["--shots", "30"] if arm == "drawn" else []
        command = [sys.executable, "-m", "selfsight", "train", "detect", str(work / "train"), "--model", STOCK]
        subprocess.run([*command, "--labels", labels, *shots, "-o", str(head)], check=True)
        figures_ = selfsight.evaluate(str(head), test=str(work / "test"), labels=str(DATA / "Annotations")).to_dict()
        rows[arm] = {"metrics": figures_["metrics"], "classes": figures_["classes"]}
    print(json.dumps(rows, indent=2)[:3000])
    written("whole", "discover, named, train detect", rows | {"pictures": len(test)})


def written(name: str, arm: str, row: dict[str, object]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps({"set": name, "arm": arm, **row, "machine": environment("cpu")}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scenes", "bccd", "whole"))
    what = parser.parse_args().what
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    known = {(row["set"], row["arm"]) for row in done}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if what == "whole":
            whole(work)
            return
        for name in ("one thing", "up to three") if what == "scenes" else ("bccd",):
            place = work / name
            truth = smears(place, "test") if name == "bccd" else composed(place, 1 if name == "one thing" else 3)
            for arm, find in arms(place, work / f"{name}-out").items():
                if (name, arm) not in known:
                    row = figures(truth, find())
                    written(name, arm, row)
                    corloc = f"CorLoc {row['corloc']:.2f} ± {row['standard_error']:.2f}"
                    print(f"{name:12} {arm:28} {corloc}  AR@3 {row['ar3']:.2f}")


if __name__ == "__main__":
    main()
