"""LabelMe: one JSON file per image. Polygons and rectangles in pixels; those of one group and class are one object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from selfsight.data.annotations.outlines import Aside, Outline, Outlines, Region, around, corners, problem_of
from selfsight.data.boxes import Box
from selfsight.errors import SelfsightError


def read(data: bytes) -> tuple[Outlines, tuple[Aside, ...]]:
    """The objects of a file, and the shapes that are not used. Raises `ValueError` for anything but a LabelMe file."""
    try:
        root = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error)[:100]})") from None
    if not isinstance(root, dict) or not isinstance(root.get("shapes"), list):
        raise ValueError("not a LabelMe file: it has no list of shapes")
    size: tuple[Any, Any] = root.get("imageWidth"), root.get("imageHeight")
    if not all(isinstance(side, int | float) and side > 0 for side in size):
        raise ValueError("no size of the image")
    found: list[Outline] = []
    groups: dict[tuple[str, Any], int] = {}  # the place of an object that is made of several shapes
    aside: list[Aside] = []
    unsure: list[Region] = []
    for number, shape in enumerate(root["shapes"], 1):
        outline = _outline(shape if isinstance(shape, dict) else {}, size)
        if isinstance(outline, str):
            aside.append(Aside(f"shape {number}", outline))
            unsure += _around(shape, size) if isinstance(shape, dict) else ()
            continue
        group = shape.get("group_id")
        place = groups.setdefault((outline.label, group), len(found)) if group is not None else len(found)
        if place < len(found):
            outline = _joined(found[place], outline)
        found[place : place + 1] = [outline]
    return Outlines(tuple(found), size, tuple(unsure)), tuple(aside)


def write(image: Outlines, filename: str = "") -> bytes:
    """The file that `read` turns into these objects: it has polygons, and rectangles for what is a box alone.

    Raises `SelfsightError` for run lengths, of which `polygons.traced` makes polygons.
    """
    shapes: list[dict[str, Any]] = []
    for number, outline in enumerate(image.outlines, 1):
        if isinstance(outline.region, Mapping):
            raise SelfsightError(f"LabelMe has no run lengths, as object {number} of {filename} has. Trace it first.")
        parts: list[tuple[str, list[float]]] = [("polygon", flat) for flat in outline.region or ()]
        if (box := outline.box) is not None and outline.region in (None, corners(box)):
            parts = [("rectangle", [box.x0, box.y0, box.x1, box.y1])]
        for kind, flat in parts:
            points = [list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
            group = number if len(parts) > 1 else None
            shape: dict[str, Any] = {
                "label": outline.label,
                "points": points,
                "group_id": group,
                "shape_type": kind,
                "flags": {},
            }
            shapes.append(shape)
    head: dict[str, Any] = {"version": "5.0.0", "flags": {}, "shapes": shapes, "imagePath": filename, "imageData": None}
    return json.dumps(head | {"imageWidth": image.size[0], "imageHeight": image.size[1]}, indent=1).encode()


def _around(shape: dict[str, Any], size: tuple[Any, Any]) -> tuple[Region, ...]:
    """The rectangle around a shape that is not used; () where that is not known."""
    try:
        points = [[float(x), float(y)] for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError):
        return ()
    if shape.get("shape_type") == "circle" and len(points) == 2:  # its centre, and a point on it
        (x, y), (edge_x, edge_y) = points
        r = math.hypot(edge_x - x, edge_y - y)
        points = [[x - r, y - r], [x + r, y + r]]
    return around(points, size) if points else ()


def _outline(shape: dict[str, Any], size: tuple[Any, Any]) -> Outline | str:
    """The object of a shape, or the reason why there is none."""
    label, kind = shape.get("label"), shape.get("shape_type", "polygon")
    if not isinstance(label, str) or not label:
        return "no class"
    if kind not in ("polygon", "rectangle"):
        return f"a {kind}, neither a polygon nor a rectangle"
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError):
        return "points that are not x and y"
    if kind == "rectangle":
        if len(points) != 2:
            return "a rectangle of other than 2 points"
        (x0, y0), (x1, y1) = points
        box = Box(label, min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        problem = problem_of(corners(box), size)
        return problem.replace("polygon", "rectangle") if problem else Outline(label, corners(box), box)
    region: Region = [[value for point in points for value in point]]
    return problem_of(region, size) or Outline(label, region)


def _joined(one: Outline, other: Outline) -> Outline:
    """An object of several shapes."""
    return Outline(one.label, [*(one.region or ()), *(other.region or ())])  # run lengths are not among them
