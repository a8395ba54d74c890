"""The objects and masks of predictions as outlines, which annotation formats hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfsight.data.annotations import coco
from selfsight.data.annotations.masks import read_mask
from selfsight.data.annotations.outlines import Outline, Outlines
from selfsight.data.annotations.rle import encode
from selfsight.data.boxes import Box
from selfsight.errors import SelfsightError
from selfsight.heads.head import Head
from selfsight.heads.segment_head import SegmentAbout


def check_outlines(head: Head, folder: Path | None) -> None:
    """Raise `SelfsightError` if the predictions of a head have no outlines. folder: where its pictures go."""
    about = head.about
    if not isinstance(about, SegmentAbout):
        raise SelfsightError(
            f"--coco is for heads that outline objects or classes, such as those of train segment; this one is of the "
            f"task {about.task}. Leave --coco out."
        )
    if not about.told_apart and folder is None:
        raise SelfsightError(
            "This head does not tell objects apart, so --coco outlines its masks, which need a folder: -o found/"
        )


def coco_of(predictions: pa.Table, items: pa.Table, about: SegmentAbout, folder: Path | None) -> bytes:
    """Predictions as a COCO file that `coco.read` reads: the pictures that could be read, by uri, in pixels of the
    upright file; a file of several pages is called uri.PAGE.

    Of a head that tells objects apart, each object; else one region for each class in the mask, which lies in `folder`,
    with the mean score of its parts. Classes have the numbers that they have in masks. items: with width, height, page.
    """
    columns = ["id", "width", "height", "page"]
    known = {row["id"]: row for row in items.select(columns).to_pylist()}
    rows = [row for row in predictions.to_pylist() if not row["reason"]]
    images: dict[str, Outlines] = {}
    for row in sorted(rows, key=lambda row: (row["uri"], known[row["id"]]["page"] or 0)):
        item = known[row["id"]]
        name = row["uri"] if item["page"] is None else f"{row['uri']}.{item['page']}"
        found = _objects(row) if about.told_apart else _regions(row, about, folder)
        images[name] = Outlines(tuple(found), (item["width"], item["height"]))
    return coco.write(images, dict(zip(about.classes[1:], about.numbers[1:], strict=True)))


def _objects(row: dict[str, Any]) -> list[Outline]:
    found = []
    for one in row["objects"] or ():
        box = Box(one["label"], *(one[edge] for edge in ("x0", "y0", "x1", "y1")))
        found.append(Outline(one["label"], one["rle"], box, score=one["score"]))
    return found


def _regions(row: dict[str, Any], about: SegmentAbout, folder: Path | None) -> list[Outline]:
    """One for each class that the mask of a row has."""
    assert folder is not None
    with (folder / row["mask"]).open("rb") as file:
        mask = read_mask(file)
    found = []
    for name, number in zip(about.classes[1:], about.numbers[1:], strict=True):
        inside = mask == number
        if inside.any():
            (x0, x1), (y0, y1) = _ends(inside.any(0)), _ends(inside.any(1))
            found.append(Outline(name, encode(inside), Box(name, x0, y0, x1, y1), score=_score(row, name)))
    return found


def _ends(inside: np.ndarray) -> tuple[float, float]:
    places = np.flatnonzero(inside)
    return float(places[0]), float(places[-1] + 1)


def _score(row: dict[str, Any], name: str) -> float:
    """The mean over the pixels of a class; of one that has specks alone, that of the picture."""
    parts = [one for one in row["objects"] or () if one["label"] == name]
    if not parts:
        return float(row["score"])
    return float(np.average([one["score"] for one in parts], weights=[one["area"] for one in parts]))
