"""Outlined objects of an image, as files hold them, and the masks that they make.

A region is {"size": [H, W], "counts": …} (run lengths) or a list of polygons [x, y, x, y, …], as COCO writes them. What
is known of an item's mask is {class: region} or, where objects are told apart, {class: [region of each object]}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy.ndimage import find_objects

from selfsight.data.annotations.masks import IGNORE
from selfsight.data.annotations.polygons import crosses_itself, filled_part
from selfsight.data.annotations.rle import Part, Runs, decode, decode_part, encode, encode_part, lengths
from selfsight.data.boxes import OUTSIDE, Box, Boxes, turned
from selfsight.data.orientation import is_unturned, upright

Region: TypeAlias = Runs | list[list[float]]
MaskValue: TypeAlias = dict[str, Any]  # {class: region or list of regions}
BACKGROUND = "background"
IGNORED = "ignore"  # the class of pixels that are left out


class Numbered(dict[str, Any]):
    """A `MaskValue` of a file of numbers: nobody named its classes, so the numbers may be those of objects."""


@dataclass(frozen=True)
class Outline:
    """One object.

    label: its class.
    region: its pixels, in those of the file; None where only its box is known.
    box: around it; None where only its region is known.
    iscrowd: many things in one region (COCO).
    score: how sure a model is of it; None of what is known.
    """

    label: str
    region: Region | None = None
    box: Box | None = None
    iscrowd: bool = False
    score: float | None = None


@dataclass(frozen=True)
class Aside:
    """An annotation, or a file of them, that is not used. where: what it is of. reason: why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Outlines:
    """What a file says of one image.

    outlines: the objects.
    size: (width, height) of the image as the file states it.
    unsure: what lies around annotations that are not used: in a mask these pixels are no background.
    """

    outlines: tuple[Outline, ...]
    size: tuple[float, float]
    unsure: tuple[Region, ...] = ()

    @property
    def boxes(self) -> Boxes:
        """The boxes, in the units of the file; of an object that has none, the one around its region."""
        return Boxes(tuple(outline.box or _around(outline) for outline in self.outlines), self.size)

    def mask(self, width: int, height: int, orientation: int | None = 1) -> MaskValue:
        """{class: [region of each object]} in pixels of the upright image of this size, see `Boxes.upright`. Of a
        crowd, in which nobody told objects apart, the pixels are `IGNORED`, as are those `unsure` and, beside objects
        with a region, those of a box alone."""
        regions = [
            (IGNORED if outline.iscrowd else outline.label, outline.region)
            for outline in self.outlines
            if outline.region is not None
        ]
        boxes = [outline.box for outline in self.outlines if outline.region is None and outline.box] if regions else []
        regions += [(IGNORED, region) for region in (*self.unsure, *map(corners, boxes))]
        found: MaskValue = {}
        for label, region in regions:
            found.setdefault(label, []).append(_upright(region, self.size, width, height, orientation))
        return found


def mask_cell(stated: Outlines | str | None, width: int | None, height: int | None, turn: int | None) -> str | None:
    """What the column `mask` holds of an upright image of this size: the path of a file as it is, outlines as JSON."""
    if not isinstance(stated, Outlines):
        return stated
    return json.dumps(stated.mask(width, height, turn)) if width and height else None


def problem_of(region: Region, size: tuple[float, float]) -> str:
    """Why a region cannot be one of an image of this (width, height); "" if it can."""
    if isinstance(region, Mapping):
        try:
            height, width, _ = lengths(region)
        except ValueError as error:
            return str(error)
        return "" if (width, height) == size else f"a mask of {width} x {height}, which does not fit its image"
    for polygon in region:
        try:
            points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        except (ValueError, TypeError):
            return "a polygon that is not a list of x and y"
        if len(points) < 3:
            return "a polygon of fewer than 3 points"
        beyond = np.concatenate([points / size, 1 - points / size])
        if not (beyond >= -OUTSIDE).all() or not ((points < size) & (points >= 0)).any():
            return "a polygon outside its image"
        if crosses_itself(points):
            return "a polygon that crosses itself"
    return "" if region else "no polygon"


def around(points: Sequence[Sequence[float]], size: tuple[float, float]) -> tuple[Region, ...]:
    """The rectangle around points [x, y], as far as it lies in an image of this (width, height); () if it does not."""
    try:
        places = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        (x0, y0), (x1, y1) = places.min(0).clip(0, size).tolist(), places.max(0).clip(0, size).tolist()
    except (ValueError, TypeError):
        return ()
    return (corners(Box("", x0, y0, x1, y1)),) if x1 > x0 and y1 > y0 else ()


def corners(box: Box) -> Region:
    """A box as a polygon."""
    return [[box.x0, box.y0, box.x1, box.y0, box.x1, box.y1, box.x0, box.y1]]


def problem_of_box(box: Box, size: tuple[float, float]) -> str:
    """Why a box cannot be one of an image of this (width, height); "" if it can."""
    try:
        Boxes((box,), size)
    except ValueError as error:
        return str(error)
    return ""


def pixels_of(region: Region, height: int, width: int) -> np.ndarray:
    """[H, W] bool. Raises `ValueError` for run lengths of another size."""
    inside = np.zeros((height, width), bool)
    part = part_of(region, height, width)
    inside[part.place] = part.mask
    return inside


def part_of(region: Region, height: int, width: int) -> Part:
    """The same, without the mask of the whole image."""
    if not isinstance(region, Mapping):
        return filled_part([np.asarray(one, dtype=np.float64).reshape(-1, 2) for one in region], height, width)
    if (size := lengths(region)[:2]) != (height, width):
        raise ValueError(f"a mask of {size[1]} x {size[0]} for an image of {width} x {height}")
    return decode_part(region)


def drawn(value: MaskValue, names: Sequence[str], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes [H, W] int32, places in `names` (0 is the background) or `IGNORE`, and objects [H, W] int32, from 1, 0
    where no object is told from others.

    Where regions overlap, the smaller lies on top. A value that names `BACKGROUND` is of a person who painted a part:
    what nobody painted is then `IGNORE`. Raises `ValueError` for a region of another size, `KeyError` for a class that
    is not among `names`.
    """
    places = {name: place for place, name in enumerate(names)} | {IGNORED: IGNORE, BACKGROUND: 0}
    painted: list[tuple[int, int, int, Part]] = []  # no mask of the whole image for each: there may be thousands
    number = 0
    for label, regions in value.items():
        several = isinstance(regions, list) and not is_polygons(regions)
        told = several and label not in (IGNORED, BACKGROUND)
        for region in regions if several else [regions]:
            part = part_of(region, height, width)
            number += told
            painted.append((int(part.mask.sum()), number if told else 0, places[label], part))
    classes = np.full((height, width), IGNORE if BACKGROUND in value else 0, dtype=np.int32)
    objects = np.zeros((height, width), dtype=np.int32)
    for _, this, place, part in sorted(painted, key=lambda one: -one[0]):
        classes[part.place][part.mask] = place
        objects[part.place][part.mask] = this
    return classes, objects


def tells_apart(value: MaskValue) -> bool:
    """Whether a value tells one object from another."""
    objects = [regions for label, regions in value.items() if label not in (IGNORED, BACKGROUND)]
    return any(isinstance(regions, list) and not is_polygons(regions) for regions in objects)


def value_of(ids: np.ndarray) -> Numbered:
    """The mask that class numbers [H, W] make, each value a class of its own, 0 the background."""
    numbers, places = np.unique(ids, return_inverse=True)
    places = places.reshape(ids.shape) + 1
    found = Numbered()
    for number, (place, around) in zip(numbers.tolist(), enumerate(find_objects(places), 1), strict=True):
        if number > 0:
            rows, columns = around
            found[str(number)] = encode_part(places[around] == place, rows.start, columns.start, *ids.shape)
    if (ids == IGNORE).any():
        found[IGNORED] = encode(ids == IGNORE)
    return found


def is_polygons(regions: Sequence[object]) -> bool:
    """Whether a list is one region of polygons, and not a list of regions."""
    first = regions[0] if regions else None
    return isinstance(first, list) and bool(first) and not isinstance(first[0], list)


def _upright(region: Region, size: tuple[float, float], width: int, height: int, orientation: int | None) -> Region:
    """A region of an image of the stated size, in the upright one of this size."""
    unturned = is_unturned(size, width, height, orientation)
    if isinstance(region, Mapping):
        if unturned:
            return encode(upright(decode(region)[:, :, None], orientation or 1)[:, :, 0])
        if size == (width, height):
            return region
        mask = decode(region)
        old, sides = mask.shape, (height, width)
        rows, columns = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(sides, old, strict=True))
        return encode(mask[np.ix_(rows, columns)])
    if not unturned and size == (width, height):
        return region
    points = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in region]
    if unturned:
        moved = [[_turned(x, y, height, width, orientation or 1) for x, y in polygon] for polygon in points]
        return [[float(value) for point in polygon for value in point] for polygon in moved]
    return [(polygon * (width / size[0], height / size[1])).reshape(-1).tolist() for polygon in points]


def _around(outline: Outline) -> Box:
    """The box around a region; of one without pixels an empty one."""
    if isinstance(outline.region, Mapping):
        rows, columns = decode_part(outline.region).place
        edges = [columns.start, rows.start, columns.stop, rows.stop]
    else:
        points = np.concatenate([np.asarray(part, np.float64).reshape(-1, 2) for part in outline.region or [[0, 0]]])
        edges = [*points.min(axis=0), *points.max(axis=0)]
    x0, y0, x1, y1 = (float(edge) for edge in edges)
    return Box(outline.label, x0, y0, x1, y1, iscrowd=outline.iscrowd)


def _turned(x: float, y: float, width: int, height: int, orientation: int) -> tuple[float, float]:
    box = turned(Box("", x, y, x, y), width, height, orientation)
    return box.x0, box.y0
