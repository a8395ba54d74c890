"""What a segmentation draws of each item: its mask and an overlay, in the file's own pixels.

`masks/NAME.png` holds the number of each pixel's class, as the masks did that were learnt from, else 0 for the
background and the place of the class. `objects/NAME.png`, 16 bits, holds the number of each pixel's object, as in
objects.csv, where the head tells objects apart. `overlays/NAME.png` is the picture in grey, each class in a colour of
its own, and each object outlined. `objects.csv` is the table of objects.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from selfsight.data.annotations.masks import write_mask
from selfsight.errors import SelfsightError
from selfsight.files import write_whole
from selfsight.heads.pictures import JOURNAL, STRIP, Pictures
from selfsight.heads.predictions import Row

# Of classes, in order: seven that people who see fewer colours tell apart (Okabe and Ito, 2008).
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
SHARE = 0.4  # of colour
NAMES = ("id", "uri", "page")  # columns that say which picture a row of a table is of
UNITS = {"um": "um", "µm": "um", "mm": "mm", "nm": "nm", "px": "px"}


class MaskPictures(Pictures):
    """The pictures of some rows in a folder. numbers: of classes in masks that are written. told_apart: whether the
    objects are drawn too."""

    shown: ClassVar[str] = "mask"

    def __init__(self, folder: Path, rows: pa.Table, head: str, numbers: Sequence[int], told_apart: bool) -> None:
        super().__init__(folder, rows, head, (0.0, 0.0))
        self.numbers, self.told_apart = np.array(numbers, np.int32), told_apart

    def draw_mask(
        self, number: int, grey: np.ndarray, mask: np.ndarray, objects: np.ndarray, row: Mapping[str, object]
    ) -> dict[str, object]:
        """Draw the pictures of a row, of the picture in `grey` [H, W] uint8, with its mask and objects [H, W]; returns
        its predictions with the path of the mask, relative to the folder."""
        name = self.names[number]
        path = self.folder / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write_mask(self.numbers[mask]))
        if self.told_apart and objects.max() < 2**16:  # more are in the table alone
            self._write("objects", name, Image.fromarray(objects.astype(np.uint16)))
        self._write("overlays", name, overlay(grey, mask, objects))
        row = {**row, "mask": f"masks/{name}.png"}
        line = {"id": self.ids[number], "content": self.contents[self.ids[number]], "head": self.head} | row
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return row


def overlay(grey: np.ndarray, mask: np.ndarray, objects: np.ndarray) -> Image.Image:
    """A picture [H, W] uint8 with the classes of a mask in colour, and objects [H, W] outlined."""
    colours = np.array([(0, 0, 0), *(COLOURS[place % len(COLOURS)] for place in range(max(1, int(mask.max()))))])
    reach = 1 + max(grey.shape) // 1000  # px to each side of a border
    drawn = np.empty((*grey.shape, 3), np.uint8)
    for start in range(0, len(grey), STRIP):
        above = min(start, reach)  # rows that are looked at, beside those that are drawn
        rows, around = slice(start, start + STRIP), slice(start - above, start + STRIP + reach)
        drawn[rows] = _drawn(grey[around], mask[around], objects[around], colours, reach)[above : above + STRIP]
    return Image.fromarray(drawn)


def _drawn(grey: np.ndarray, mask: np.ndarray, objects: np.ndarray, colours: np.ndarray, reach: int) -> np.ndarray:
    """[H, W, 3] uint8 of some rows of a picture."""
    own = colours[mask]
    share = np.where(mask > 0, SHARE, 0.0)[:, :, None]
    drawn = (1.0 - share) * grey[:, :, None] + share * own
    for values in (mask, objects):
        edge = (maximum_filter(values, 2 * reach + 1) != minimum_filter(values, 2 * reach + 1)) & (mask > 0)
        drawn[edge] = 0.35 * drawn[edge] + 0.65 * (own[edge] if values is mask else 255)
    return np.asarray(drawn.round().clip(0, 255).astype(np.uint8))


def parse_pixel_size(text: str | None) -> tuple[float, str]:
    """`0.5`, `0.5um` or `2 mm` as (side of a pixel, unit); micrometres if none is named; (1, "px") for None. Raises
    `SelfsightError` for anything else."""
    if text is None:
        return 1.0, "px"
    number = text.strip().rstrip("umnpxµμ ")
    unit = text.strip()[len(number) :].strip().replace("μ", "µ") or "um"
    try:
        size = float(number)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf") or unit not in UNITS:
        raise SelfsightError(f"--pixel-size is the side of a pixel, such as 0.5um or 0.02mm, not {text!r}.")
    return size, UNITS[unit]


def objects_csv(table: pa.Table, items: pa.Table, size: float, unit: str) -> bytes:
    """The table of objects of predictions: one row an object, with its place and area in px and in the unit. items: of
    which the predictions are, with their pages."""
    text = io.StringIO()
    writer = csv.writer(text)
    head = [*NAMES, "object", "label", "score", "area_px", "x_px", "y_px", "x0", "y0", "x1", "y1", "intensity"]
    own = [] if unit == "px" else [f"area_{unit}2", f"diameter_{unit}", f"x_{unit}", f"y_{unit}"]
    writer.writerow([*head, *own])
    for row in in_order(table, items):
        for number, one in enumerate(row["objects"] or (), 1):
            area, (x, y) = one["area"], (one["x"], one["y"])
            cells = [
                *(row[name] for name in NAMES),
                number,
                one["label"],
                f"{one['score']:.4f}",
                int(area),
                f"{x:.2f}",
                f"{y:.2f}",
            ]
            cells += [*(int(one[name]) for name in ("x0", "y0", "x1", "y1")), f"{one['intensity']:.4f}"]
            if own:
                across = 2 * (area / np.pi) ** 0.5 * size
                cells += [f"{value:.6g}" for value in (area * size * size, across, x * size, y * size)]
            writer.writerow(cells)
    return text.getvalue().encode()


def counts_csv(table: pa.Table, items: pa.Table, names: Sequence[str], size: float, unit: str) -> bytes:
    """One row a picture: how many objects of each class there are, and how much of the picture they cover."""
    text = io.StringIO()
    writer = csv.writer(text)
    covered = [f"{name}_{'px' if unit == 'px' else unit + '2'}" for name in names]
    writer.writerow([*NAMES, "objects", *(f"{name}_count" for name in names), *covered])
    for row in in_order(table, items):
        found = row["objects"] or []
        counts = [sum(one["label"] == name for one in found) for name in names]
        areas = [sum(one["area"] for one in found if one["label"] == name) * size * size for name in names]
        writer.writerow([*(row[name] for name in NAMES), len(found), *counts, *(f"{area:.6g}" for area in areas)])
    return text.getvalue().encode()


def in_order(table: pa.Table, items: pa.Table) -> list[Row]:
    """The rows of predictions with the page of each, by uri and page."""
    pages = dict(zip(items["id"].to_pylist(), items["page"].to_pylist(), strict=True))
    rows = [row | {"page": pages.get(row["id"])} for row in table.select(["id", "uri", "objects"]).to_pylist()]
    return sorted(rows, key=lambda row: (row["uri"], row["page"] or 0))
