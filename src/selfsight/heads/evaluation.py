"""A head on items that it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from selfsight.data.collection import Collection
from selfsight.data.labels import Kind, Labels
from selfsight.encoders.features import pooled_labelled
from selfsight.errors import SelfsightError, meant
from selfsight.heads.fits import Targets
from selfsight.heads.head import Head, written_label
from selfsight.heads.metrics import Answers, figures, recall
from selfsight.probing.evaluation import Interval
from selfsight.results import Result

SUREST = 24  # mistakes that are named
BINS = 10  # of the reliability diagram
MOST_VALUES = 50  # of the column of `by`


@dataclass(frozen=True)
class Mistake(Result):
    """An item that the head is wrong about: its id, uri, truth, answer, and the probability of the answer."""

    id: str
    uri: str
    truth: str
    answer: str
    probability: float


@dataclass(frozen=True)
class HeadEvaluation(Result):
    """The figures of a head on test items.

    task: of the head. kind: of its labels. head: its digest. metrics: by name, with 95 % intervals (over groups where
    there are groups). by: {value of the column: metrics}. recall: {class: sensitivity and specificity}. classes: in the
    order of the confusion matrix. confusion: items by true class (rows) and answer. reliability: (mean probability of
    the answer, share that is right, items) of each bin. mistakes: the surest first. items: that were measured. notes:
    what a reader must know.
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
    notes: list[str] = field(default_factory=list)


def tested(head: Head, items: Collection, labels: Labels) -> tuple[Labels, Targets, Answers, list[str]]:
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
    notes = [f"{items.uri_of(item)} {reason}" for item, reason in sorted(bad.items())]
    notes += _seen(head, known)
    said = head.answers(head.tensors(features))
    return known, Targets.of(known, head.about.classes or None), said, notes


def _seen(head: Head, labels: Labels) -> list[str]:
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


def evaluate_head(head: Head, items: Collection, labels: Labels, by: str | None = None) -> HeadEvaluation:
    """Measure a head on the labelled items of a collection, also by each value of the column `by`."""
    known, targets, said, notes = tested(head, items, labels)
    groups: Sequence[str | None] | None = known.groups if any(known.groups) else None
    parts: dict[str, dict[str, Interval]] = {}
    if by is not None:
        for value, places in _parts(known, by).items():
            mine = None if groups is None else [groups[i] for i in places]
            parts[value] = figures(targets.take(places), said.take(places), mine)
    single = targets.kind in ("class", "grade")
    return HeadEvaluation(
        head.about.task, targets.kind, head.digest, figures(targets, said, groups), parts,
        recall(targets, said, groups), list(targets.classes), _confusion(targets, said) if single else [],
        _reliability(targets, said) if single else [], _mistakes(known, targets, said) if single else [], len(known),
        notes,
    )  # fmt: skip


def _parts(labels: Labels, by: str) -> dict[str, np.ndarray]:
    """{value: places} of a column."""
    if by not in labels.rows.column_names:
        there = sorted(labels.rows.column_names)
        raise SelfsightError(f"{labels.location} has no column {by}.{meant(by, there)} It has {', '.join(there)}.")
    values = np.array([written_label("" if value is None else value) for value in labels.rows[by].to_pylist()])
    names = sorted(set(values.tolist()))
    if len(names) > MOST_VALUES:
        raise SelfsightError(f"The column {by} has {len(names):,} values; --by takes one of at most {MOST_VALUES}.")
    return {name or "(none)": np.flatnonzero(values == name) for name in names}


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


def _mistakes(labels: Labels, targets: Targets, said: Answers) -> list[Mistake]:
    p = said.probabilities[np.arange(len(said.decided)), said.decided]
    wrong = np.flatnonzero(said.decided != targets.numbers)
    surest = sorted(wrong.tolist(), key=lambda place: (-p[place], labels.ids[place]))[:SUREST]
    uris = labels.rows["uri"].to_pylist()
    names = targets.classes
    return [
        Mistake(labels.ids[i], uris[i], names[targets.numbers[i]], names[said.decided[i]], float(p[i])) for i in surest
    ]
