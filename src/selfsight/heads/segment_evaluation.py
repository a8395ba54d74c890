"""A segmentation on pictures that it did not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from selfsight.data.collection import Collection
from selfsight.data.masks import Masks
from selfsight.data.sources.annotated import told
from selfsight.errors import DataError, SelfsightError
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
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import interval
from selfsight.results import Result

SHOWN = 12  # pictures that are named, the worst and the best
MOST_VALUES = 50


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
    if by is not None and by not in masks.labels.rows.column_names:
        raise SelfsightError(
            f"{items.about.location} has no column {by!r} for --by. It has {', '.join(masks.labels.rows.column_names)}."
        )
    bad: dict[int, str] = {}
    tested = _tested(head, items, masks, bad)
    if not len(tested.places):
        raise DataError(f"No picture of {items.about.location} with a mask can be read ({next(iter(bad.values()))}).")
    labels = masks.labels.take(tested.places)
    groups = np.array(labels.groups, dtype=object) if any(labels.groups) else None
    named = labels.rows[by].to_pylist() if by else []
    values = [value for value in dict.fromkeys(named) if value is not None][:MOST_VALUES]
    parts = {str(value): [i for i, one in enumerate(named) if one == value] for value in values}
    scored = _scored(tested, labels.ids, labels.rows["uri"].to_pylist())
    learnt = set(head.items["content_hash"].to_pylist())
    known = sum(content in learnt for content in labels.rows["content_hash"].to_pylist())
    notes = list(masks.notes)
    notes += [f"{known:,} of the pictures are among those that it learnt from; the figures flatter"] if known else []
    notes += [told(masks.aside)] if masks.aside else []
    notes += [f"{len(bad):,} pictures cannot be read ({next(iter(bad.values()))})"] if bad else []
    return SegmentEvaluation(
        "segment", head.digest, _metrics(head, tested, list(range(len(tested.places))), groups),
        {value: _metrics(head, tested, some, groups) for value, some in parts.items()},
        class_ious(tested.confusions, masks.names, groups), pixels_of_classes(tested.confusions, masks.names),
        len(tested.places), scored[:SHOWN], scored[::-1][:SHOWN], str(items.path), location, notes,
    )  # fmt: skip


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


def _metrics(head: SegmentHead, tested: Tested, some: list[int], groups: np.ndarray | None) -> dict[str, Interval]:
    own = None if groups is None else groups[some]
    metrics = {"miou": interval(miou, [tested.confusions[some]], own)}
    return metrics | (object_metrics([tested.pictures[i] for i in some], own) if head.about.told_apart else {})


def _scored(tested: Tested, ids: list[str], uris: list[str]) -> list[Scored]:
    """The pictures, from the lowest mIoU to the highest."""
    each = each_miou(tested.confusions)
    order = [place for place in np.argsort(each, kind="stable").tolist() if each[place] == each[place]]
    return [Scored(ids[place], uris[place], each[place], float(tested.scores[place])) for place in order]
