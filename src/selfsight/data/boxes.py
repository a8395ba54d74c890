"""Boxes: edges in pixels of the upright file, pixel i covering [i, i + 1), whatever the format they came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from selfsight.data.orientation import is_unturned, turns

# How a collection holds the boxes of an item.
BOXES_TYPE = pa.list_(
    pa.struct(
        [
            ("label", pa.string()),
            *((name, pa.float64()) for name in ("x0", "y0", "x1", "y1")),
            *((name, pa.bool_()) for name in ("iscrowd", "difficult", "truncated")),
        ]
    )
)
OUTSIDE = 0.5  # how far, as part of the image, a box may reach over its edge before its file is taken for damaged


@dataclass(frozen=True)
class Box:
    """One box.

    label: its class.
    x0: left edge in pixels.
    y0: upper edge.
    x1: right edge.
    y1: lower edge.
    iscrowd: many things in one box (COCO).
    difficult: hard to recognise (VOC).
    truncated: cut off by the image's border (VOC).
    """

    label: str
    x0: float
    y0: float
    x1: float
    y1: float
    iscrowd: bool = False
    difficult: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class Boxes:
    """The boxes of a file, in the units of the file.

    boxes: the boxes.
    size: (width, height) of the image as the file states it; (1, 1) where edges are fractions of the image.

    Raises `ValueError` for an impossible size or box.
    """

    boxes: tuple[Box, ...]
    size: tuple[float, float]

    def __post_init__(self) -> None:
        width, height = self.size
        if not min(self.size) > 0:
            raise ValueError("no size of the image")
        for box in self.boxes:
            beyond = (box.x0 / width, box.y0 / height, 1 - box.x1 / width, 1 - box.y1 / height)
            inside = all(edge >= -OUTSIDE for edge in beyond)  # also NaN is not
            if not (box.label and box.x1 >= box.x0 and box.y1 >= box.y0 and inside):
                raise ValueError("a box outside its image")

    def upright(self, width: int, height: int, orientation: int | None = 1) -> list[Box]:
        """The boxes in pixels of the upright image of this size. `orientation` is that of EXIF, 1 to 8: where it swaps
        the sides and the file states those of the unturned image, the boxes are turned with it. Where the stated size
        is another one, they are scaled."""
        if is_unturned(self.size, width, height, orientation):
            return [turned(box, height, width, orientation or 1) for box in self.boxes]
        return [scaled(box, width / self.size[0], height / self.size[1]) for box in self.boxes]


def turned(box: Box, width: float, height: float, orientation: int) -> Box:
    """A box of the unturned image of this size, in the upright one; `orientation` is that of EXIF or TIFF, 1 to 8."""
    (x0, x1), (y0, y1) = (box.x0, box.x1), (box.y0, box.y1)
    swapped, down, across = turns(orientation)
    if swapped:
        x0, x1, y0, y1, width, height = y0, y1, x0, x1, height, width
    if down:
        y0, y1 = height - y1, height - y0
    if across:
        x0, x1 = width - x1, width - x0
    return replace(box, x0=x0, y0=y0, x1=x1, y1=y1)


def as_cell(
    stated: Boxes | None, width: int | None, height: int | None, orientation: int | None
) -> list[dict[str, str | float | bool]] | None:
    """What the column `boxes` holds of an upright image of this size in pixels, see `Boxes.upright`; None where nothing
    is stated or the size is not known."""
    if stated is None or not width or not height:
        return None
    return [asdict(box) for box in stated.upright(width, height, orientation)]


def converted(boxes: pa.ChunkedArray, widths: list[int | None], heights: list[int | None]) -> pa.Array:
    """A column of boxes as collections of format 2 hold it (centre and size as parts of the image) as one of today."""
    cells: list[list[dict[str, Any]] | None] = []
    for cell, width, height in zip(boxes.to_pylist(), widths, heights, strict=True):
        if cell is None or not width or not height:
            cells.append(None)
            continue
        parts = [centred(box["label"], box["x"], box["y"], box["width"], box["height"]) for box in cell]
        cells.append([asdict(scaled(box, width, height)) for box in parts])
    return pa.array(cells, BOXES_TYPE)


def scaled(box: Box, across: float, down: float) -> Box:
    """The box in an image that is so many times as wide and as high."""
    return replace(box, x0=box.x0 * across, y0=box.y0 * down, x1=box.x1 * across, y1=box.y1 * down)


def centred(label: str, x: float, y: float, width: float, height: float) -> Box:
    """The box with this centre and size."""
    return Box(label, x - width / 2, y - height / 2, x + width / 2, y + height / 2)
