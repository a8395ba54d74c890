"""Pictures with the mask of a segmentation, beside the same with the true one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.labels import Labels
from selfsight.data.masks import mask_of
from selfsight.errors import SelfsightError
from selfsight.heads.segment_head import SegmentHead
from selfsight.heads.segment_pictures import overlay
from selfsight.report.pictures import data_uri

THUMBNAIL = 240  # px
FINER = 4  # times a thumbnail, what it is drawn from


class Beside(NamedTuple):
    """A picture with the mask of the head, and with the true one, as `data:` addresses; "" where there is none."""

    said: str
    true: str


def pictures_of(head: SegmentHead, place: str, labels: str, ids: Sequence[str]) -> tuple[dict[str, Beside], str]:
    """({id: pictures} of the items in the collection at `place`, why some are missing). labels: where the true masks
    are, "" for the collection itself."""
    if not place:
        return {}, "The pictures are missing, as lineage.json does not say where they are."
    try:
        items = Collection.open(place)
        items.source  # noqa: B018
    except SelfsightError as error:
        return {}, f"The pictures are not there any more: {error}"
    rows = items.table.filter([item in ids for item in items.table["id"].to_pylist()])
    truth, missing = _truth(items, rows, labels)
    names, found, bad = rows["id"].to_pylist(), dict[str, Beside](), dict[int, str]()
    for one in head.segment(items, rows, bad, "Pictures"):
        row = rows.slice(one.number, 1).to_pylist()[0]
        true, value = "", truth.get(names[one.number])
        if value is not None:
            try:
                masks = mask_of(items, row, value, head.about.classes, head.about.told_apart)
                true = drawn(one.grey, *masks)
            except (Unreadable, ValueError, OSError):
                missing = missing or "Some true masks cannot be read any more."
        found[names[one.number]] = Beside(drawn(one.grey, one.mask, one.objects), true)
    if len(found) < len(ids):
        missing = missing or "Some pictures are not there any more."
    return found, missing


def _truth(items: Collection, rows: Any, labels: str) -> tuple[dict[str, Any], str]:
    """({id: what is known of its mask}, why it is not known)."""
    try:
        known = Labels.of(items, rows, path=labels or None, kind="masks")
    except SelfsightError as error:
        return {}, f"The true masks are not there any more: {error}"
    return {item: value for item, value in zip(known.ids, known.values, strict=True) if value is not None}, ""


def drawn(grey: np.ndarray, mask: np.ndarray, objects: np.ndarray) -> str:
    """A thumbnail of the overlay of a mask and objects [H, W] on a picture [H, W], a large one thinned."""
    step = max(1, max(grey.shape) // (FINER * THUMBNAIL))
    picture = overlay(*(np.ascontiguousarray(each[::step, ::step]) for each in (grey, mask, objects)))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(picture)
