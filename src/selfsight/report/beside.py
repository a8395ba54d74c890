"""Pictures with the mask of a segmentation, beside the same with the true one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

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
    places = np.array([n for n, item in enumerate(items.usable["id"].to_pylist()) if item in ids], np.int64)
    rows = items.usable.take(pa.array(places))
    known, missing = _truth(items, places, labels)
    names, found = rows["id"].to_pylist(), dict[str, Beside]()
    for one in head.segment(items, rows, {}, "Pictures"):
        true = ""
        if known is not None and known.values[one.number] is not None:
            try:
                true = drawn(one.grey, *mask_of(items, known, one.number, head.about.classes, head.about.told_apart))
            except (Unreadable, ValueError, OSError):
                missing = "Some true masks cannot be read any more."
        found[names[one.number]] = Beside(drawn(one.grey, one.mask, one.objects), true)
    if len(found) < len(ids):
        missing = missing or "Some pictures are not there any more."
    return found, missing


def _truth(items: Collection, places: np.ndarray, labels: str) -> tuple[Labels | None, str]:
    """(what is known of the masks of the usable items at `places`, why it is not known)."""
    try:  # of all items, as a mask is matched to the one that is named like it among all
        return Labels.of(items, path=labels or None, kind="masks").take(places), ""
    except SelfsightError as error:
        return None, f"The true masks are not there any more: {error}"


def drawn(grey: np.ndarray, mask: np.ndarray, objects: np.ndarray) -> str:
    """A thumbnail of the overlay of a mask and objects [H, W] on a picture [H, W], a large one thinned."""
    step = max(1, max(grey.shape) // (FINER * THUMBNAIL))
    picture = overlay(*(np.ascontiguousarray(each[::step, ::step]) for each in (grey, mask, objects)))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(picture)
