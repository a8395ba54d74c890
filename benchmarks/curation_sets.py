"""Sets of images with faults of known truth: near duplicates, off-topic images and wrong labels, all in one folder."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance
from speedrun import DATA, data_folder

SETS = ("things", "cifar10-train", "cifar10", "steel", "xray", "tiles", "cells")
DEVELOPMENT = SETS[:2]  # choices were made on these only
STRANGERS = {  # where off-topic images come from: one of these a draw, in turn
    "things": ("cells", "xray"),
    "cifar10-train": ("xray", "things"),
    "cifar10": ("things", "cells"),
    "steel": ("tiles", "cifar10"),
    "xray": ("steel", "things"),
    "tiles": ("steel", "xray"),
    "cells": ("cifar10", "tiles"),
}
CHANGES = ("crop", "flip", "rotate", "jpeg", "brightness", "resize")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


class Item(NamedTuple):
    """A file of a set; label: the class that it is said to be of; truth: the class it is of, "" for a stranger's.

    original: the name that this is a near duplicate of; changes: how it was made. flip: uniform or similar.
    """

    name: str
    label: str
    truth: str
    original: str = ""
    changes: str = ""
    flip: str = ""


def sources(name: str, work: Path) -> list[tuple[Path, str]]:
    """(file, class) of all images of a set."""
    if name == "cells":
        found = []
        for folder in sorted((DATA / "wbc").glob("site1")):
            with (folder / "labels.csv").open() as file:
                for row in csv.reader(file):
                    path = next((folder / "images").glob(f"{Path(row[0]).stem.zfill(3)}.*"), None)
                    if path is not None:
                        found.append((path, row[1]))
        return found
    if name == "tiles":
        root = DATA / "magnetic-tile" / "images"
    elif name.startswith("cifar10"):
        root = data_folder("cifar10", work) / ("train" if name.endswith("train") else "test")
    else:
        root = data_folder(name, work) / "train"
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [(path, path.parent.name) for path in files]


def make(name: str, rate: float, draw: int, most: int, work: Path) -> tuple[Path, list[Item]]:
    """The folder of the images of a draw, and its items. It is made once."""
    place = work / f"{name}-{rate:g}-{draw}-{most}"
    if not (place / "truth.json").exists():
        shutil.rmtree(place, ignore_errors=True)
        (place / "images").mkdir(parents=True)
        items = _items(name, rate, np.random.default_rng([draw, 7]), draw, most, place / "images", work)
        (place / "truth.json").write_text(json.dumps(items))
    return place / "images", [Item(*row) for row in json.loads((place / "truth.json").read_text())]


def _items(
    name: str, rate: float, rng: np.random.Generator, draw: int, most: int, folder: Path, work: Path
) -> list[Item]:
    every = sources(name, work)
    some = [every[i] for i in rng.permutation(len(every))[:most]]
    count = round(rate * len(some))
    strangers = STRANGERS[name]
    others = sources(strangers[draw % len(strangers)], work)
    classes = sorted({label for _, label in some})
    files, items = [], []
    for path, label in some:
        files.append(path.read_bytes())
        items.append(Item(path.suffix, label, label))
    for place in rng.permutation(len(some))[:count]:
        path, label = some[place]
        content, changes = changed(Image.open(path), rng)
        files.append(content)
        items.append(Item(".jpg" if "jpeg" in changes else ".png", label, label, str(place), "+".join(changes)))
    for place in rng.permutation(len(others))[:count]:
        files.append(others[place][0].read_bytes())
        items.append(Item(others[place][0].suffix, str(rng.choice(classes)), ""))
    names = [f"{number:05d}{item.name}" for number, item in zip(rng.permutation(len(items)), items, strict=True)]
    for each, content in zip(names, files, strict=True):
        (folder / each).write_bytes(content)
    items = [
        item._replace(name=each, original=names[int(item.original)] if item.original else "")
        for each, item in zip(names, items, strict=True)
    ]
    return sorted(_flipped(items, [path for path, _ in some], rate, rng))


def _flipped(items: list[Item], files: list[Path], rate: float, rng: np.random.Generator) -> list[Item]:
    """With wrong labels: of half of them any other class, of half the class that is most alike by small pictures."""
    truth = [item.truth for item in items[: len(files)]]
    classes = sorted(set(truth))
    small = np.stack([np.asarray(Image.open(file).convert("RGB").resize((16, 16))).ravel() for file in files]) / 255.0
    means = np.stack([small[[one == label for one in truth]].mean(0) for label in classes])
    far = ((means[:, None] - means) ** 2).sum(-1) + np.diag([np.inf] * len(classes))
    own = [place for place, item in enumerate(items) if item.truth]
    for number, place in enumerate(rng.permutation(own)[: round(rate * len(files))]):
        label = items[place].truth
        if number % 2:
            wrong = classes[int(far[classes.index(label)].argmin())]
        else:
            wrong = str(rng.choice([one for one in classes if one != label]))
        items[place] = items[place]._replace(label=wrong, flip="similar" if number % 2 else "uniform")
    return items


def changed(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, list[str]]:
    """(file, names of the changes) of a near duplicate: one to three of `CHANGES`, drawn at random."""
    picture = picture.convert("RGB" if picture.mode not in ("L", "RGB") else picture.mode)
    changes = [str(one) for one in rng.permutation(CHANGES)[: rng.integers(1, 4)]]
    for change in changes:
        width, height = picture.size
        if change == "crop":
            w, h = (max(8, round(side * rng.uniform(0.7, 0.95))) for side in (width, height))
            x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            picture = picture.crop((x, y, x + w, y + h))
        elif change == "flip":
            picture = picture.transpose(Image.Transpose(int(rng.integers(0, 2))))
        elif change == "rotate":
            picture = picture.transpose(Image.Transpose(int(rng.integers(2, 5))))
        elif change == "brightness":
            picture = ImageEnhance.Brightness(picture).enhance(
                rng.choice([rng.uniform(0.6, 0.85), rng.uniform(1.15, 1.5)])
            )
            picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.8, 1.2))
        elif change == "resize":
            scale = rng.uniform(0.5, 0.9)
            picture = picture.resize(
                (max(8, round(width * scale)), max(8, round(height * scale))), Image.Resampling.BICUBIC
            )
    out = io.BytesIO()
    if "jpeg" in changes:
        picture.save(out, "JPEG", quality=int(rng.integers(30, 76)))
    else:
        picture.save(out, "PNG")
    return out.getvalue(), changes


def pictures_of(folder: Path, items: list[Item], size: int = 64) -> np.ndarray:
    """Small pictures [N, 3, size, size] uint8 of all items."""
    few = [Image.open(folder / item.name).convert("RGB").resize((size, size), Image.Resampling.BOX) for item in items]
    return np.stack([np.asarray(one) for one in few]).transpose(0, 3, 1, 2)
