"""Outlines as a folder of files, one an image, in the formats that have one: LabelMe, Pascal VOC, YOLO, masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from selfsight.data.annotations import labelme, voc, yolo
from selfsight.data.annotations.masks import write_mask
from selfsight.data.annotations.outlines import BACKGROUND, IGNORED, Outline, Outlines, Region, drawn
from selfsight.data.annotations.polygons import traced
from selfsight.data.annotations.rle import decode_part

FOLDERS = ("labelme", "voc", "yolo", "masks")
OF_BOXES = ("voc", "yolo")


def names_of(uris: Sequence[str], pages: Sequence[int | None]) -> list[str]:
    """The name of each item's file in a folder, with `/` and without a suffix: its uri without the suffix, and the
    page, if it has one; with the suffix where two would be the same, also for a disk that knows no capitals. It never
    leads out of the folder."""
    parts = [PurePosixPath(*[p for p in PurePosixPath(uri).parts if p not in ("/", "..")]) for uri in uris]
    ends = ["" if page is None else f".{page}" for page in pages]
    short = [f"{part.with_suffix('')}{end}" for part, end in zip(parts, ends, strict=True)]
    times = Counter(name.casefold() for name in short)
    whole = [f"{part}{end}" for part, end in zip(parts, ends, strict=True)]
    return [s if times[s.casefold()] == 1 else w for s, w in zip(short, whole, strict=True)]


def in_files(
    kind: str, images: Mapping[str, Outlines], names: Sequence[str], numbers: Sequence[int]
) -> dict[str, bytes]:
    """{file: what it holds} of images by their names without suffix, in one of `FOLDERS`. names: of the classes, first
    the background. numbers: of these in masks.

    LabelMe keeps every pixel, as polygons along the edges of pixels; VOC and YOLO a box around each object; masks the
    classes. Raises `SelfsightError` for a class that the format cannot write.
    """
    if kind == "labelme":
        return {f"{name}.json": labelme.write(_traced(image), name) for name, image in images.items()}
    if kind == "masks":
        return {f"{name}.png": write_mask(_numbered(image, names, numbers)) for name, image in images.items()}
    found: dict[str, bytes] = {}
    for name, image in images.items():
        width, height = (int(side) for side in image.size)
        boxes = [box for box in image.boxes.boxes if box.label not in (BACKGROUND, IGNORED)]
        if kind == "voc":
            found[f"{name}.xml"] = voc.write(boxes, width, height, name)
        else:
            places = [replace(box, label=str(names.index(box.label) - 1)) for box in boxes]
            found[f"{name}.txt"] = yolo.write(places, width, height)
    return found if kind == "voc" else found | {"classes.txt": "".join(f"{name}\n" for name in names[1:]).encode()}


def _traced(image: Outlines) -> Outlines:
    """The same objects, of polygons alone."""
    return replace(image, outlines=tuple(replace(one, region=_polygons(one)) for one in image.outlines))


def _polygons(one: Outline) -> Region | None:
    if not isinstance(one.region, Mapping):
        return one.region
    part = decode_part(one.region)
    return [np.add(polygon, (part.x0, part.y0)).reshape(-1).tolist() for polygon in traced(part.mask)]


def _numbered(image: Outlines, names: Sequence[str], numbers: Sequence[int]) -> np.ndarray:
    """The mask [H, W] of numbers, -1 where a pixel is of no class."""
    width, height = (int(side) for side in image.size)
    classes, _ = drawn(image.mask(width, height), names, height, width)
    return np.where(classes < 0, classes, np.array(numbers, np.int32)[classes])
