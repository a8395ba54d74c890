"""A head on items that it did not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa

from selfsight.data.collection import Collection
from selfsight.data.labels import Kind, Labels
from selfsight.encoders.features import pooled_labelled
from selfsight.errors import SelfsightError
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.metrics import Answers, figures, recall, with_intervals
from selfsight.heads.targets import Targets, read_label
from selfsight.heads.tested import places_by
from selfsight.probing.evaluation import Interval
from selfsight.results import Result

SUREST = 24  # mistakes that are named
BINS = 10  # of the reliability diagram


@dataclass(frozen=True)
class Mistake(Result):
    """An item that the head is wrong about: its id, uri, truth, answer, and the probability of the answer; of several
    classes, how sure it was of the worst mistake among them; None of a number."""

    id: str
    uri: str
    truth: str
    answer: str
    probability: float | None


@dataclass(frozen=True)
class HeadEvaluation(Result):
    """The figures of a head on test items.

    task: of the head. kind: of its labels. head: its digest. metrics: by name, with 95 % intervals (over groups where
    there are groups). by: {value of the column: metrics}. recall: {class: sensitivity and specificity}. classes: in the
    order of the confusion matrix. confusion: items by true class (rows) and answer. reliability: (mean probability of
    the answer, share that is right, items) of each bin. mistakes: the surest first, of numbers the farthest off. items:
    that were measured. of_class: how many of them each class has. collection: the table that they are from. notes: what
    a reader must know.
    """

    task: str
    kind: Kind
    head: str
    metrics: dict[str, Interval]
    by: dict[str, dict[str, Interval]]
    recall: dict[str, dict[str, Interval]]
    classes: list[str]
    confusion: list[list[int]]
    reliability: list[tuple[float, float, int]]
    mistakes: list[Mistake]
    items: int
    of_class: dict[str, int]
    collection: str
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, object]) -> HeadEvaluation:
        """From what evaluation.json holds. Raises `KeyError` or `TypeError` for anything else."""
        values: dict[str, Any] = {f.name: with_intervals(content[f.name]) for f in fields(cls)}
        bins = [(said, right, count) for said, right, count in values["reliability"]]
        return cls(**values | {"reliability": bins, "mistakes": [Mistake(**each) for each in values["mistakes"]]})


def tested(head: ClassifyHead, items: Collection, labels: Labels) -> tuple[Labels, Targets, Answers, list[str]]:
    """(labels, targets, answers, notes) of the labelled items that can be read.

    Raises `SelfsightError` for labels of another kind, and for classes that the head does not know.
    """
    known = labels.labelled()
    if known.kind != head.about.kind:
        raise SelfsightError(
            f"{labels.location} has labels of the kind {known.kind}, the head is for {head.about.kind}. Test it on "
            "labels of its own kind."
        )
    Targets.of(known, head.about.classes or None)  # before the long part
    known, features, bad = pooled_labelled(head.encoder, items, known)
    notes = [known.doubt] if known.doubt else []
    notes += [f"{items.uri_of(item)} {reason}" for item, reason in sorted(bad.items())]
    notes += _seen(head, known)
    said = head.answers(head.tensors(features))
    return known, Targets.of(known, head.about.classes or None), said, notes


def _seen(head: ClassifyHead, labels: Labels) -> list[str]:
    """Notes on test items that the head has learnt from, or that belong to a group that it has learnt from."""
    notes = []
    contents = set(head.items["content_hash"].to_pylist()) & set(labels.rows["content_hash"].to_pylist())
    if contents:
        these = "1 test image was" if len(contents) == 1 else f"{len(contents):,} test images were"
        notes.append(f"{these} learnt from, byte for byte; the figures flatter")
    groups = (set(head.items["group"].to_pylist()) & set(labels.groups)) - {None}
    if groups:
        such = min(map(str, groups))
        notes.append(f"{len(groups):,} groups of the test, such as {such}, were learnt from; the figures flatter")
    return notes


def evaluate_head(head: ClassifyHead, items: Collection, labels: Labels, by: str | None = None) -> HeadEvaluation:
    """Measure a head on the labelled items of a collection, also by each value of the column `by`."""
    places_by(labels.labelled().rows, by, labels.location)  # raises before the long part
    known, targets, said, notes = tested(head, items, labels)
    groups: Sequence[str | None] | None = known.groups if any(known.groups) else None
    parts: dict[str, dict[str, Interval]] = {}
    for value, places in places_by(known.rows, by, known.location).items():
        mine = None if groups is None else [groups[i] for i in places]
        parts[value] = figures(targets.take(places), said.take(places), mine)
    found = figures(targets, said, groups), recall(targets, said, groups)
    return _evaluation(head, known.rows, targets, said, found, parts, str(items.path), notes)


def held_out_from(head: ClassifyHead) -> tuple[pa.Table, Targets, Answers]:
    """(items, targets, answers) of what a head learnt from, as it answered when they were held out in turn."""
    rows = head.items.filter(head.items["held_out"].is_valid())
    values = tuple(read_label(label, head.about.kind) for label in rows["label"].to_pylist())
    held = np.array(rows["held_out"].to_pylist(), np.float64).reshape(len(rows), max(1, len(head.about.classes)))
    width = float(head.module.calibrate.state_dict()["width"])
    found = {"probabilities": held, "value": held[:, 0], "low": held[:, 0] - width, "high": held[:, 0] + width}
    targets = Targets.of(Labels(head.about.kind, rows, values, str(head.path)), head.about.classes)
    return rows, targets, head.answers(found)


def evaluate_held_out(head: ClassifyHead) -> HeadEvaluation | None:
    """The figures of the items that a head was held out from, as it recorded them; None where nothing was."""
    rows, targets, said = held_out_from(head)
    if not len(rows) or not head.about.metrics["held_out"]:
        return None
    return _evaluation(head, rows, targets, said, (head.about.metrics["held_out"], head.about.metrics["recall"]))


def _evaluation(
    head: ClassifyHead, rows: pa.Table, targets: Targets, said: Answers,
    found: tuple[dict[str, Interval], dict[str, dict[str, Interval]]],
    parts: dict[str, dict[str, Interval]] | None = None, collection: str = "", notes: Sequence[str] = (),
) -> HeadEvaluation:  # fmt: skip
    """The figures that were `found`, metrics and recall, with what the answers themselves show."""
    single = targets.kind in ("class", "grade")
    sizes = dict(zip(targets.classes, map(int, targets.values.sum(0)), strict=True)) if targets.classes else {}
    return HeadEvaluation(
        head.about.task, targets.kind, head.digest, found[0], parts or {}, found[1], list(targets.classes),
        _confusion(targets, said) if single else [], _reliability(targets, said) if single else [],
        _mistakes(rows, targets, said), len(rows), sizes, collection, list(notes),
    )  # fmt: skip


def _confusion(targets: Targets, said: Answers) -> list[list[int]]:
    count = len(targets.classes)
    table = np.bincount(targets.numbers * count + said.decided, minlength=count * count).reshape(count, count)
    return [list(map(int, row)) for row in table]


def _reliability(targets: Targets, said: Answers) -> list[tuple[float, float, int]]:
    p = said.probabilities.max(1)
    right = said.probabilities.argmax(1) == targets.numbers
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    found = [(p[place == b], right[place == b]) for b in range(BINS)]
    return [(float(some.mean()), float(hits.mean()), len(some)) for some, hits in found if len(some)]


def _mistakes(rows: pa.Table, targets: Targets, said: Answers) -> list[Mistake]:
    truth, numbers = targets.values, targets.kind == "number"
    one = said.decided.ndim == 1
    decided = np.eye(truth.shape[1])[said.decided] if one else said.decided  # [N, K]
    wrong = decided != truth
    counts = wrong & (decided > 0) if one else wrong  # of one class, that of the answer
    far = np.where(counts, np.abs(truth - said.probabilities), 0.0).max(1)
    ids, uris = rows["id"].to_pylist(), rows["uri"].to_pylist()
    surest = sorted(np.flatnonzero(wrong.any(1)).tolist(), key=lambda place: (-far[place], ids[place]))[:SUREST]

    def named(row: np.ndarray) -> str:
        if numbers:
            return f"{row[0]:.4g}"
        return "|".join(name for name, there in zip(targets.classes, row, strict=True) if there) or "(none)"

    return [
        Mistake(ids[i], uris[i], named(truth[i]), named(decided[i]), None if numbers else float(far[i])) for i in surest
    ]
