"""A detector on pictures that it did not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from selfsight.data.boxed import Boxed, Truth
from selfsight.data.collection import Collection
from selfsight.errors import DataError
from selfsight.heads.detect_head import DetectHead
from selfsight.heads.detect_metrics import (
    Precisions,
    class_precisions,
    count_error,
    precisions,
    true_counts,
)
from selfsight.heads.detect_objects import counted, matched
from selfsight.heads.detect_voice import Detected, between
from selfsight.heads.metrics import with_intervals
from selfsight.heads.tested import places_by, to_know
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import interval
from selfsight.results import Result

SHOWN = 12  # pictures that are named, the worst and the best


@dataclass(frozen=True)
class Scored(Result):
    """A picture that was tested: its id, uri, how many objects are there, how many were missed, and how many were told
    that are not there."""

    id: str
    uri: str
    objects: int
    missed: int
    false: int


@dataclass(frozen=True)
class Counting(Result):
    """How well a class is counted. error: by how many a picture is off, the mean. inside: how often the interval holds
    the true count; None where the head has none. without: pictures in which there is none of it. alarms: of these, the
    share in which some are told."""

    error: Interval
    inside: Interval | None
    without: int
    alarms: Interval | None


@dataclass(frozen=True)
class DetectEvaluation(Result):
    """The figures of a detector on test pictures.

    task: "detect". head: its digest. metrics: by name, with 95 % intervals (over groups where there are groups): ap,
    ap50, and count_error, by how many objects a picture's count is off. by: {value of the column: metrics}. classes:
    {class: AP50}. counts: {class: how well it is counted}. boxes: {class: how many there are}. items: that were
    measured. worst, best: pictures with the most and the fewest mistakes. collection: the table that they are from.
    labels: where their boxes are, "" for the table itself. notes: what a reader must know.
    """

    task: str
    head: str
    metrics: dict[str, Interval]
    by: dict[str, dict[str, Interval]]
    classes: dict[str, Interval]
    counts: dict[str, Counting]
    boxes: dict[str, int]
    items: int
    worst: list[Scored]
    best: list[Scored]
    collection: str
    labels: str
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, object]) -> DetectEvaluation:
        """From what evaluation.json holds. Raises `KeyError` or `TypeError` for anything else."""
        values: dict[str, Any] = {f.name: with_intervals(content[f.name]) for f in fields(cls)}
        for name in ("worst", "best"):
            values[name] = [Scored(**each) for each in values[name]]
        values["counts"] = {name: Counting(**each) for name, each in values["counts"].items()}
        return cls(**values)


def evaluate_detection(
    head: DetectHead, items: Collection, boxed: Boxed, by: str | None, location: str = ""
) -> DetectEvaluation:
    """The figures of a head on the items with boxes. by: a column, for whose values they are given apart. location: of
    the boxes, "" for the collection itself."""
    places_by(boxed.labels.rows, by, items.about.location)  # raises before the long part
    bad: dict[int, str] = {}
    said = sorted(head.detect(items, boxed.labels.rows, bad), key=lambda one: one.number)
    said = [one._replace(grey=np.empty(0)) for one in said]
    if not said:
        raise DataError(f"No picture of {items.about.location} with a box can be read ({next(iter(bad.values()))}).")
    boxed = boxed.take([one.number for one in said])
    truths = [boxed.at(place) for place in range(len(said))]
    groups = np.array(boxed.labels.groups, dtype=object) if any(boxed.labels.groups) else None
    parts = places_by(boxed.labels.rows, by, items.about.location)
    thresholds = np.array(head.about.thresholds)
    counts, true = np.array([counted(one.found, thresholds) for one in said]), true_counts(truths, len(boxed.names))
    measured = _measured(head, said, truths)

    def figures(some: np.ndarray) -> dict[str, Interval]:
        own = None if groups is None else groups[some]
        part = (
            measured if len(some) == len(said) else _measured(head, [said[i] for i in some], [truths[i] for i in some])
        )
        return precisions(part, own) | {"count_error": count_error(counts[some], true[some], own)}

    scored = _scored(head, said, truths, boxed)
    return DetectEvaluation(
        "detect", head.digest, figures(np.arange(len(said))), {value: figures(some) for value, some in parts.items()},
        class_precisions(measured, boxed.names, groups), _countings(head, counts, true, groups),
        dict(zip(boxed.names, true.sum(0).tolist(), strict=True)), len(said), scored[:SHOWN], scored[::-1][:SHOWN],
        str(items.path), location, to_know(head, boxed, bad),
    )  # fmt: skip


def _measured(head: DetectHead, said: Sequence[Detected], truths: Sequence[Truth]) -> Precisions:
    return Precisions([one.found for one in said], truths, len(head.about.classes), head.about.found)


def _countings(
    head: DetectHead, counts: np.ndarray, true: np.ndarray, groups: np.ndarray | None
) -> dict[str, Counting]:
    found = {}
    for kind, (name, width) in enumerate(zip(head.about.classes, head.about.widths, strict=True)):
        told_, there = counts[:, kind], true[:, kind]
        inside = None
        if width is not None:
            ends = np.array([between(int(count), width) for count in told_])
            held = (ends[:, 0] <= there) & (there <= ends[:, 1])
            inside = interval(lambda one: float(one.mean()), [held], groups)
        without = there == 0
        own = None if groups is None else groups[without]
        alarms = interval(lambda one: float(one.mean()), [told_[without] > 0], own) if without.any() else None
        found[name] = Counting(
            count_error(told_[:, None], there[:, None], groups), inside, int(without.sum()), alarms
        )  # fmt: skip
    return found


def _scored(head: DetectHead, said: Sequence[Detected], truths: Sequence[Truth], boxed: Boxed) -> list[Scored]:
    """The pictures, from the most mistakes to the fewest."""
    thresholds, found = np.array(head.about.thresholds), []
    ids, uris = boxed.labels.ids, boxed.labels.rows["uri"].to_pylist()
    for place, (one, truth) in enumerate(zip(said, truths, strict=True)):
        sure = one.found.at(np.flatnonzero(one.found.scores >= thresholds[one.found.kinds]))
        right = matched(sure, truth)
        many = int((~truth.unsure).sum())
        found.append(Scored(ids[place], uris[place], many, many - int(np.nansum(right)), int((right == 0).sum())))
    return sorted(found, key=lambda each: (-(each.missed + each.false), each.uri))
