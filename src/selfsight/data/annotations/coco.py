"""COCO: one JSON file for many images: boxes [x, y, width, height], polygons and run lengths, in pixels.
What a model found has a score too, as in files of COCO's results.

An annotation that cannot be used is set aside with the reason, and the others of its image count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from selfsight.data.annotations.outlines import Aside, Outline, Outlines, Region, around, problem_of, problem_of_box
from selfsight.data.annotations.rle import area_of
from selfsight.data.boxes import Box


@dataclass(frozen=True)
class Coco:
    """What a file holds.

    images: {file name: what is known of it}, in the order of the file; an image without annotations has no object.
    classes: the names of its categories, in the order of the file, with the numbers that it gives them.
    aside: annotations that are not used.
    """

    images: dict[str, Outlines]
    classes: dict[str, int]
    aside: tuple[Aside, ...] = ()

    @property
    def outlined(self) -> bool:
        """Whether any object has a region, and not a box alone."""
        return any(outline.region is not None for image in self.images.values() for outline in image.outlines)


def read(data: bytes) -> Coco:
    """Raises `ValueError`, with the reason, for anything but a COCO file of images."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error)[:100]})") from None
    if not isinstance(root, dict) or not isinstance(root.get("images"), list):
        raise ValueError("not a COCO file: it has no list of images")
    if not isinstance(root.get("annotations"), list) or not isinstance(root.get("categories"), list):
        raise ValueError("not a COCO file of objects: it has no list of annotations or categories")
    try:
        names = {one["id"]: str(one["name"]) for one in root["categories"]}
        stated = {one["id"]: (str(one["file_name"]), (one["width"], one["height"])) for one in root["images"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"an image or category without {error}") from None
    if len({name for name, _ in stated.values()}) < len(root["images"]):
        raise ValueError("two images have one id or one file_name")
    return _gathered(root["annotations"], names, stated)


def _gathered(annotations: list[Any], names: dict[Any, str], stated: dict[Any, tuple[str, Any]]) -> Coco:
    found: dict[Any, list[Outline]] = {number: [] for number in stated}
    unsure: dict[Any, list[Region]] = {number: [] for number in stated}
    aside: list[Aside] = []
    for place, one in enumerate(annotations):
        one = one if isinstance(one, dict) else {}
        number = one.get("image_id")
        called, size = stated.get(number, ("", (0, 0))) if isinstance(number, int | str) else ("", (0, 0))
        where = f"{called or f'image {number}'}, annotation {one.get('id', place)}"
        outline = _outline(one, names, size) if called else "an image that is not in the file"
        if isinstance(outline, str):
            aside.append(Aside(where, outline))
            if called:
                unsure[number] += _around(one, size)
        else:
            found[number].append(outline)
    images = {
        called: Outlines(tuple(found[number]), size, tuple(unsure[number])) for number, (called, size) in stated.items()
    }
    return Coco(images, {name: number for number, name in names.items()}, tuple(aside))


def _around(one: Mapping[str, Any], size: Any) -> tuple[Region, ...]:
    """The rectangle around an annotation that is not used; () where that is not known."""
    if not all(isinstance(side, int | float) and side > 0 for side in size):
        return ()
    polygons, box = one.get("segmentation"), one.get("bbox")
    listed = polygons if isinstance(polygons, list) else []
    flat = [edge for polygon in listed if isinstance(polygon, list) for edge in polygon]
    if len(flat) >= 4 and len(flat) % 2 == 0 and (found := around(flat, size)):
        return found
    if isinstance(box, list) and len(box) == 4 and all(isinstance(edge, int | float) for edge in box):
        return around([box[:2], [box[0] + box[2], box[1] + box[3]]], size)
    return ()


def _outline(one: Mapping[str, Any], names: Mapping[Any, str], size: Any) -> Outline | str:
    """The object of an annotation, or the reason why there is none."""
    if not all(isinstance(side, int | float) and side > 0 for side in size):
        return "an image without a size"
    category = one.get("category_id")
    if not isinstance(category, int | str) or category not in names:
        return f"an unknown class {category}"
    label, crowd = names[category], bool(one.get("iscrowd"))
    if not label:
        return "a class without a name"
    box = None
    region: Any = one.get("segmentation") or None
    if (edges := one.get("bbox")) is not None:
        try:
            x, y, width, height = (float(edge) for edge in edges)
        except (TypeError, ValueError):
            return "a box that is not x, y, width and height"
        box = Box(label, x, y, x + width, y + height, iscrowd=crowd)
        if problem := problem_of_box(box, size):
            return problem
    if region is None and box is None:
        return "neither a box nor a mask"
    if region is not None and not isinstance(region, dict | list):
        return "a mask that is neither polygons nor run lengths"
    problem = problem_of(cast(Region, region), size) if region else ""
    return problem or Outline(label, cast(Region | None, region), box, crowd, _score(one))


def _score(one: Mapping[str, Any]) -> float | None:
    """The score of an annotation; None where it has none that is a number."""
    score = one.get("score")
    known = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    return float(cast(float, score)) if known else None


def write(images: Mapping[str, Outlines], classes: Iterable[str] | Mapping[str, int] = ()) -> bytes:
    """The file that `read` turns into these images. classes: those that need not occur, with their numbers if any."""
    given = dict(classes) if isinstance(classes, Mapping) else {name: n for n, name in enumerate(classes, 1)}
    for outline in (one for image in images.values() for one in image.outlines):
        given.setdefault(outline.label, max(given.values(), default=0) + 1)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (called, image) in enumerate(images.items(), 1):
        listed.append({"id": number, "file_name": called, "width": image.size[0], "height": image.size[1]})
        for outline in image.outlines:
            head = {"id": len(annotations) + 1, "image_id": number, "category_id": given[outline.label]}
            annotations.append(head | _written(outline))
    categories = [{"id": number, "name": name} for name, number in given.items()]
    return json.dumps({"images": listed, "annotations": annotations, "categories": categories}).encode()


def _written(outline: Outline) -> dict[str, Any]:
    cells: dict[str, Any] = {"iscrowd": int(outline.iscrowd or bool(outline.box and outline.box.iscrowd))}
    if (box := outline.box) is not None:
        cells["bbox"] = [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]
        cells["area"] = (box.x1 - box.x0) * (box.y1 - box.y0)
    if (region := outline.region) is not None:
        cells["segmentation"] = region
        if isinstance(region, Mapping):
            cells["area"] = area_of(region)
    return cells | ({"score": outline.score} if outline.score is not None else {})
