"""What a detector draws and lists of each item: an overlay with boxes, and tables of objects and of counts.

`overlays/NAME.png` is the picture in grey, with a box of its class's colour around each object. `objects.csv` has a row
an object, `counts.csv` a row a picture.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from selfsight.heads.pictures import JOURNAL, Pictures
from selfsight.heads.predictions import Row
from selfsight.heads.segment_pictures import COLOURS, NAMES, in_order


class BoxPictures(Pictures):
    """The pictures of some rows in a folder. classes: in the order of their colours."""

    shown: ClassVar[str] = "overlay"

    def __init__(self, folder: Path, rows: pa.Table, head: str, classes: Sequence[str]) -> None:
        super().__init__(folder, rows, head, (0.0, 0.0))
        self.classes = list(classes)

    def draw_boxes(self, number: int, grey: np.ndarray, row: Row) -> Row:
        """Draw the overlay of a row, of the picture in `grey` [H, W] uint8; returns its predictions with the path of
        the overlay, relative to the folder."""
        name = self.names[number]
        self._write("overlays", name, overlay(grey, row["objects"], self.classes))
        told = {**row, "overlay": f"overlays/{name}.png"}
        line = {"id": self.ids[number], "content": self.contents[self.ids[number]], "head": self.head} | told
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return told


def overlay(grey: np.ndarray, objects: Sequence[Row], classes: Sequence[str]) -> Image.Image:
    """A picture [H, W] uint8 with a box around each object, the surest on top."""
    image = Image.fromarray(grey).convert("RGB")
    draw, thick = ImageDraw.Draw(image), 1 + max(grey.shape) // 400
    for one in sorted(objects, key=lambda each: each["score"]):
        x0, y0, x1, y1 = (round(one[edge]) for edge in ("x0", "y0", "x1", "y1"))
        box = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
        draw.rectangle(box, outline=COLOURS[classes.index(one["label"]) % len(COLOURS)], width=thick)
    return image


def objects_csv(table: pa.Table, items: pa.Table, size: float, unit: str) -> bytes:
    """A row an object: its picture, class, probability and box in px, and its centre, width and height in the unit."""
    text = io.StringIO()
    writer = csv.writer(text)
    own = [] if unit == "px" else [f"{name}_{unit}" for name in ("x", "y", "width", "height")]
    writer.writerow([*NAMES, "object", "label", "score", "x0", "y0", "x1", "y1", *own])
    for row in in_order(table, items):
        for number, one in enumerate(row["objects"] or (), 1):
            x0, y0, x1, y1 = edges = [one[name] for name in ("x0", "y0", "x1", "y1")]
            cells = [*(row[name] for name in NAMES), number, one["label"], f"{one['score']:.4f}"]
            cells += [f"{edge:.2f}" for edge in edges]
            if own:
                cells += [f"{value * size:.6g}" for value in ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)]
            writer.writerow(cells)
    return text.getvalue().encode()


def counts_csv(table: pa.Table, items: pa.Table, names: Sequence[str]) -> bytes:
    """A row a picture: how many objects of each class there are, and between which numbers."""
    counts = dict(zip(table["id"].to_pylist(), table["counts"].to_pylist(), strict=True))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*NAMES, "objects", *(f"{name}_{what}" for name in names for what in ("count", "low", "high"))])
    for row in in_order(table, items):
        own = {one["label"]: one for one in counts[row["id"]] or ()}
        cells = [own[name][what] if name in own else None for name in names for what in ("count", "low", "high")]
        writer.writerow([*(row[name] for name in NAMES), len(row["objects"] or ()), *cells])
    return text.getvalue().encode()
