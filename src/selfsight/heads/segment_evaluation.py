"""A segmentation on pictures that it did not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from selfsight.data.collection import Collection
from selfsight.data.masks import Masks
from selfsight.errors import DataError
from selfsight.heads.metrics import with_intervals
from selfsight.heads.objects import Matched, matched
from selfsight.heads.segment import (
    class_ious,
    confusion,
    each_miou,
    miou,
    object_metrics,
    pixels_of_classes,
)
from selfsight.heads.segment_head import SegmentHead
from selfsight.heads.tested import places_by, to_know
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import interval
from selfsight.results import Result

SHOWN = 12  # pictures that are named, the worst and the best


@dataclass(frozen=True)
class Scored(Result):
    """A picture that was tested: its id, uri, mIoU over the classes that are in it or in the answer, and how sure the
    head is of a pixel."""

    id: str
    uri: str
    miou: float
    score: float


@dataclass(frozen=True)
class SegmentEvaluation(Result):
    """The figures of a segmentation on test pictures.

    task: "segment". head: its digest. metrics: by name, with 95 % intervals (over groups where there are groups): miou,
    the mean over classes, background among them; where objects are told apart, ap50 and count_error, by how many
    objects a picture's count is off. by: {value of the column: metrics}. classes: {class: intersection over union}.
    pixels: that are truly of each class. items: that were measured. worst, best: pictures with the lowest and the
    highest mIoU. collection: the table that they are from. labels: where their masks are, "" for the table itself.
    notes: what a reader must know.
    """

    task: str
    head: str
    metrics: dict[str, Interval]
    by: dict[str, dict[str, Interval]]
    classes: dict[str, Interval]
    pixels: dict[str, int]
    items: int
    worst: list[Scored]
    best: list[Scored]
    collection: str
    labels: str
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, object]) -> SegmentEvaluation:
        """From what evaluation.json holds. Raises `KeyError` or `TypeError` for anything else."""
        values: dict[str, Any] = {f.name: with_intervals(content[f.name]) for f in fields(cls)}
        for name in ("worst", "best"):
            values[name] = [Scored(**each) for each in values[name]]
        return cls(**values)


@dataclass
class Tested:
    """Test pictures as the head saw them, N: the place of each among the masks, confusions [N, K, K], how sure it is,
    and its objects beside the true ones."""

    places: np.ndarray
    confusions: np.ndarray
    scores: np.ndarray
    pictures: list[Matched]


def evaluate_segmentation(
    head: SegmentHead, items: Collection, masks: Masks, by: str | None, location: str = ""
) -> SegmentEvaluation:
    """The figures of a head on the items with a mask. by: a column, for whose values they are given apart. location:
    of the masks, "" for the collection itself."""
    places_by(masks.labels.rows, by, items.about.location)  # raises before the long part
    tested, notes = tested_pictures(head, items, masks)
    labels = masks.labels.take(tested.places)
    groups = np.array(labels.groups, dtype=object) if any(labels.groups) else None
    parts = places_by(labels.rows, by, items.about.location)
    scored = _scored(tested, labels.ids, labels.rows["uri"].to_pylist())
    return SegmentEvaluation(
        "segment", head.digest, _metrics(head, tested, np.arange(len(tested.places)), groups),
        {value: _metrics(head, tested, some, groups) for value, some in parts.items()},
        class_ious(tested.confusions, masks.names, groups), pixels_of_classes(tested.confusions, masks.names),
        len(tested.places), scored[:SHOWN], scored[::-1][:SHOWN], str(items.path), location, notes,
    )  # fmt: skip


def tested_pictures(head: SegmentHead, items: Collection, masks: Masks) -> tuple[Tested, list[str]]:
    """(the pictures as the head saw them, what a reader must know). Raises `DataError` where none can be read."""
    bad: dict[int, str] = {}
    tested = _tested(head, items, masks, bad)
    if not len(tested.places):
        raise DataError(f"No picture of {items.about.location} with a mask can be read ({next(iter(bad.values()))}).")
    return tested, to_know(head, masks.take(tested.places), bad)


def _tested(head: SegmentHead, items: Collection, masks: Masks, bad: dict[int, str]) -> Tested:
    found: list[tuple[int, np.ndarray, float, Matched]] = []
    for one in head.segment(items, masks.labels.rows, bad):
        classes, objects = masks.at(one.number)
        labels, scores = [thing.label for thing in one.things], [thing.score for thing in one.things]
        beside = matched(one.objects, labels, scores, objects, classes)
        found.append((one.number, confusion(classes, one.mask, len(masks.names)), one.score, beside))
    found.sort(key=lambda each: each[0])
    return Tested(
        np.array([each[0] for each in found], np.int64),
        np.array([each[1] for each in found]),
        np.array([each[2] for each in found]),
        [each[3] for each in found],
    )


def _metrics(head: SegmentHead, tested: Tested, some: np.ndarray, groups: np.ndarray | None) -> dict[str, Interval]:
    own = None if groups is None else groups[some]
    metrics = {"miou": interval(miou, [tested.confusions[some]], own)}
    return metrics | (object_metrics([tested.pictures[i] for i in some], own) if head.about.told_apart else {})


def _scored(tested: Tested, ids: list[str], uris: list[str]) -> list[Scored]:
    """The pictures, from the lowest mIoU to the highest."""
    each = each_miou(tested.confusions)
    order = [place for place in np.argsort(each, kind="stable").tolist() if each[place] == each[place]]
    return [Scored(ids[place], uris[place], each[place], float(tested.scores[place])) for place in order]
