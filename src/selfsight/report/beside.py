"""Pictures with the masks or boxes of a head, beside the same with the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.data.boxes import Box
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.labels import Labels
from selfsight.data.masks import mask_of
from selfsight.errors import SelfsightError
from selfsight.heads.detect_head import DetectHead
from selfsight.heads.detect_pictures import overlay as boxes_overlay
from selfsight.heads.predictions import Row
from selfsight.heads.segment_head import SegmentHead
from selfsight.heads.segment_pictures import overlay
from selfsight.report.pictures import data_uri

THUMBNAIL = 240  # px
FINER = 4  # times a thumbnail, what it is drawn from


class Beside(NamedTuple):
    """A picture with what the head says, and with the truth, as `data:` addresses; "" where there is none."""

    said: str
    true: str


def pictures_of(head: SegmentHead, place: str, labels: str, ids: Sequence[str]) -> tuple[dict[str, Beside], str]:
    """({id: pictures} of the items in the collection at `place`, why some are missing). labels: where the true masks
    are, "" for the collection itself."""
    items = _items_at(place)
    if isinstance(items, str):
        return {}, items
    places = np.array([n for n, item in enumerate(items.usable["id"].to_pylist()) if item in ids], np.int64)
    rows = items.usable.take(pa.array(places))
    known, missing = _truth(items, places, labels, "masks")
    names, found = rows["id"].to_pylist(), dict[str, Beside]()
    for one in head.segment(items, rows, {}, "Pictures"):
        true = ""
        if known is not None and known.values[one.number] is not None:
            try:
                mask, objects = mask_of(items, known, one.number, head.about.classes, head.about.told_apart)
                if head.roi is not None:  # where it does not look nothing is to be found
                    mask, objects = mask * head.roi, objects * head.roi
                true = drawn(one.grey, mask, objects)
            except (Unreadable, ValueError, OSError):
                missing = "Some true masks cannot be read any more."
        found[names[one.number]] = Beside(drawn(one.grey, one.mask, one.objects), true)
    if len(found) < len(ids):
        missing = missing or "Some pictures are not there any more."
    return found, missing


def boxed_pictures(head: DetectHead, place: str, labels: str, ids: Sequence[str]) -> tuple[dict[str, Beside], str]:
    """The same of a detector. labels: where the true boxes are, "" for the collection itself."""
    items = _items_at(place)
    if isinstance(items, str):
        return {}, items
    places = np.array([n for n, item in enumerate(items.usable["id"].to_pylist()) if item in ids], np.int64)
    rows, classes = items.usable.take(pa.array(places)), head.about.classes
    known, missing = _truth(items, places, labels, "boxes")
    names, found = rows["id"].to_pylist(), dict[str, Beside]()
    for one in head.detect(items, rows, {}, "Pictures"):
        true = known.values[one.number] if known is not None else None
        boxes = true if isinstance(true, tuple) else ()
        there = [{**asdict(box), "score": 1.0} for box in boxes if isinstance(box, Box) and box.label in classes]
        said = drawn_boxes(one.grey, head.said(one.found)["objects"], classes)
        found[names[one.number]] = Beside(said, "" if true is None else drawn_boxes(one.grey, there, classes))
    if len(found) < len(ids):
        missing = missing or "Some pictures are not there any more."
    return found, missing


def _items_at(place: str) -> Collection | str:
    """The collection at a place, or why its pictures are missing."""
    if not place:
        return "The pictures are missing, as lineage.json does not say where they are."
    try:
        items = Collection.open(place)
        items.source  # noqa: B018
    except SelfsightError as error:
        return f"The pictures are not there any more: {error}"
    return items


def _truth(
    items: Collection, places: np.ndarray, labels: str, kind: Literal["masks", "boxes"]
) -> tuple[Labels | None, str]:
    """(what is known of the masks or boxes of the usable items at `places`, why it is not known)."""
    try:  # of all items, as a mask is matched to the one that is named like it among all
        return Labels.of(items, path=labels or None, kind=kind).take(places), ""
    except SelfsightError as error:
        return None, f"The true {kind} are not there any more: {error}"


def drawn_boxes(grey: np.ndarray, objects: Sequence[Row], classes: Sequence[str]) -> str:
    """A thumbnail of a picture [H, W] with boxes, a large one thinned."""
    step = max(1, max(grey.shape) // (2 * THUMBNAIL))
    edges = ("x0", "y0", "x1", "y1")
    smaller = [{**one, **{edge: one[edge] / step for edge in edges}} for one in objects]
    picture = boxes_overlay(np.ascontiguousarray(grey[::step, ::step]), smaller, classes)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(picture)


def drawn(grey: np.ndarray, mask: np.ndarray, objects: np.ndarray) -> str:
    """A thumbnail of the overlay of a mask and objects [H, W] on a picture [H, W], a large one thinned."""
    step = max(1, max(grey.shape) // (FINER * THUMBNAIL))
    picture = overlay(*(np.ascontiguousarray(each[::step, ::step]) for each in (grey, mask, objects)))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(picture)
