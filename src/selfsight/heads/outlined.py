"""The objects and masks of predictions as outlines, which annotation formats hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from selfsight.data.annotations import coco
from selfsight.data.annotations.masks import read_mask
from selfsight.data.annotations.outlines import Outline, Outlines
from selfsight.data.annotations.rle import encode
from selfsight.data.boxes import Box
from selfsight.errors import SelfsightError
from selfsight.heads.detect_voice import DetectAbout
from selfsight.heads.predictions import Row
from selfsight.heads.segment_voice import SegmentAbout
from selfsight.heads.voice import Voice

OutlinedAbout: TypeAlias = SegmentAbout | DetectAbout


def check_outlines(head: Voice, folder: Path | None) -> None:
    """Raise `SelfsightError` if the predictions of a head have no outlines. folder: where its pictures go."""
    about = head.about
    if not isinstance(about, SegmentAbout | DetectAbout):
        raise SelfsightError(
            f"--coco is for heads that find objects or outline classes, such as those of train detect and train "
            f"segment; this one is of the task {about.task}. Leave --coco out."
        )
    if needs_masks(about) and folder is None:
        raise SelfsightError(
            "This head does not tell objects apart, so --coco outlines its masks, which need a folder: -o found/"
        )


def needs_masks(about: OutlinedAbout) -> bool:
    """Whether the outlines of a head are those of its masks, as it does not tell objects apart."""
    return isinstance(about, SegmentAbout) and not about.told_apart


def coco_of(predictions: pa.Table, items: pa.Table, about: OutlinedAbout, folder: Path | None) -> bytes:
    """Predictions as a COCO file that `coco.read` reads: the pictures that could be read, by uri, in pixels of the
    upright file; a file of several pages is called uri.PAGE.

    Of a head that finds objects or tells them apart, each object; else one region for each class in the mask, which
    lies in `folder`, with the mean score of its parts. Classes have the numbers that they have in masks. items: with
    width, height, page.
    """
    columns = ["id", "width", "height", "page"]
    known = {row["id"]: row for row in items.select(columns).to_pylist()}
    rows = [row for row in predictions.to_pylist() if not row["reason"]]
    images: dict[str, Outlines] = {}
    for row in sorted(rows, key=lambda row: (row["uri"], known[row["id"]]["page"] or 0)):
        item = known[row["id"]]
        name = row["uri"] if item["page"] is None else f"{row['uri']}.{item['page']}"
        images[name] = outlines_of(row, about, (item["width"], item["height"]), _drawn(row, about, folder))
    return coco.write(images, numbered(about))


def numbered(about: OutlinedAbout) -> dict[str, int]:
    """{class: its number in a COCO file}."""
    if isinstance(about, DetectAbout):
        return {name: number for number, name in enumerate(about.classes, 1)}
    return dict(zip(about.classes[1:], about.numbers[1:], strict=True))


def _drawn(row: dict[str, Any], about: OutlinedAbout, folder: Path | None) -> np.ndarray | None:
    """The mask of a row, where its objects are not told apart."""
    if not needs_masks(about):
        return None
    assert folder is not None
    with (folder / row["mask"]).open("rb") as file:
        return read_mask(file)


def outlines_of(row: Row, about: OutlinedAbout, size: tuple[int, int], mask: np.ndarray | None) -> Outlines:
    """The outlines of a row of predictions: its objects, or the regions of a mask [H, W] of numbers. size: width and
    height of the picture."""
    found = _objects(row) if mask is None or isinstance(about, DetectAbout) else _regions(row, about, mask)
    return Outlines(tuple(found), size)


def _objects(row: dict[str, Any]) -> list[Outline]:
    found = []
    for one in row["objects"] or ():
        box = Box(one["label"], *(one[edge] for edge in ("x0", "y0", "x1", "y1")))
        found.append(Outline(one["label"], one["rle"], box, score=one["score"]))
    return found


def _regions(row: dict[str, Any], about: SegmentAbout, mask: np.ndarray) -> list[Outline]:
    """One for each class that the mask of a row has."""
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
