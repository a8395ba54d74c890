"""The data of claims.py: parts, mixtures and pieces of the sets in SELFSIGHT_DATA, made once in the working folder."""

from __future__ import annotations

import csv
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from objectives import DATA, Images, _alone, data_folder
from PIL import Image

from selfsight.data.annotations import voc
from selfsight.data.canvases import measure_format
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels


class Made(Images):
    """A folder that was made here, and the test images of another one if it has none."""

    def __init__(self, folder: Path, work: Path, test: Path | None = None) -> None:
        self.name, self.work, self.folder = folder.name, work, folder
        self.train, self.test = (open_source(str(part)) for part in (folder / "train", test or folder / "test"))
        self.format = measure_format(self.train)
        self.classes = Labels.of(self.train).classes


def made(out: Path, fill: Callable[[Path], None]) -> Path:
    """The folder `out`, filled if it is not there yet, in one step."""
    with _alone(out.with_name(f"{out.name}.lock")):
        if not out.exists():
            with tempfile.TemporaryDirectory(dir=out.parent) as partial:
                (Path(partial) / "new").mkdir()
                fill(Path(partial) / "new")
                (Path(partial) / "new").rename(out)
    return out


def link(file: Path, to: Path) -> None:
    """A file under another name, without a copy where the disk can."""
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to)
    except OSError:
        to.write_bytes(file.read_bytes())


def first_of_classes(folder: Path, counts: list[int]) -> list[Path]:
    """So many files of each class, always the first ones in one order: a smaller set is part of a larger one."""
    chosen = []
    for each, count in zip(sorted(p for p in folder.iterdir() if p.is_dir()), counts, strict=True):
        files = sorted(each.iterdir())
        chosen += [files[i] for i in np.random.default_rng(0).permutation(len(files))[:count]]
    return chosen


def photos(count: int, work: Path) -> Path:
    """`count` training images of CIFAR-10, of each class as many, in train/ of a folder."""
    whole = data_folder("cifar10", work) / "train"

    def fill(folder: Path) -> None:
        for file in first_of_classes(whole, [count // 10] * 10):
            link(file, folder / "train" / file.parent.name / file.name)

    return made(work / f"cifar10-{count}", fill)


def uneven_photos(largest: int, ratio: float, junk: float, work: Path) -> tuple[Path, int]:
    """CIFAR-10 with classes from `largest` down to its part of `ratio`, in the order of their names, and a share of
    `junk`: a third each of steel plates (NEU) at 32 px, noise and single colours. And the number of images."""
    whole = data_folder("cifar10", work) / "train"
    counts = [max(1, round(largest * ratio ** (-c / 9))) for c in range(10)]
    total = round(sum(counts) / (1 - junk) / 10) * 10

    def fill(folder: Path) -> None:
        for file in first_of_classes(whole, counts):
            link(file, folder / "train" / file.parent.name / file.name)
        rng, plates = np.random.default_rng(0), sorted((DATA / "neu" / "train").glob("*/*"))
        (folder / "train" / "junk").mkdir()
        for i in range(total - sum(counts)):
            if i % 3 == 0:
                image = Image.open(plates[rng.integers(len(plates))]).convert("RGB").resize((32, 32))
            else:
                shape = (32, 32, 3) if i % 3 == 1 else (1, 1, 3)
                image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).resize((32, 32))
            image.save(folder / "train" / "junk" / f"{i}.png")

    return made(work / f"cifar10-uneven-{largest}-{ratio}-{junk}", fill), total


def quarters(work: Path) -> Path:
    """NEU with each plate cut into four: PART/CLASS/PLATE/0.png to 3.png. Plates stay in their part."""

    def fill(folder: Path) -> None:
        for file in sorted((DATA / "neu").glob("t*/*/*")):
            image = Image.open(file)
            side = image.width // 2
            to = folder / file.relative_to(DATA / "neu").with_suffix("")
            to.mkdir(parents=True)
            for k in range(4):
                left, top = k % 2 * side, k // 2 * side
                image.crop((left, top, left + side, top + side)).save(to / f"{k}.png")

    return made(work / "neu-quarters", fill)


@functools.cache
def patients() -> dict[str, dict[str, str]]:
    """The rows of covid-cxr's metadata, by file."""
    with (DATA / "covid-cxr" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return {row["filename"]: row for row in csv.DictReader(file)}


def radiographs(work: Path) -> Path:
    """covid-cxr as PART/PATIENT/FILE, a third of the patients in test/."""

    def fill(folder: Path) -> None:
        names = sorted({row["patientid"] for row in patients().values()})
        held = {names[i] for i in np.random.default_rng(0).permutation(len(names))[: len(names) // 3]}
        for name, row in patients().items():
            part = "test" if row["patientid"] in held else "train"
            link(DATA / "covid-cxr" / "images" / name, folder / part / row["patientid"] / name)

    return made(work / "cxr-patients", fill)


def radiograph_labels(file: str) -> dict[str, str]:
    """What is known of a radiograph; what is not known is left out."""
    row = patients()[file]
    found = row["finding"] if row["finding"] not in ("", "todo", "Unknown") else ""
    known = {"view": row["view"] if row["view"] in ("PA", "AP", "AP Supine") else "", "sex": row["sex"]}
    known["covid-19"] = ("yes" if found.startswith("COVID-19") else "no") if found else ""
    return {task: label for task, label in known.items() if label}


def white_cells(file: Path) -> np.ndarray:
    """[M, 4] left, top, right and bottom of the white cells of a smear, as parts of its sides."""
    found = voc.read(file.read_bytes())
    edges = [(box.x0, box.y0, box.x1, box.y1) for box in found.boxes if box.label == "WBC"]
    return (np.array(edges).reshape(-1, 4) / np.tile(found.size, 2)).clip(0.0, 1.0)
