"""Two heads on the same items: by how much one is better, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from selfsight.data.collection import Collection
from selfsight.data.labels import Kind, Labels
from selfsight.errors import SelfsightError
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.evaluation import tested
from selfsight.heads.metrics import LESS, difference, figures, leading
from selfsight.probing.evaluation import Interval
from selfsight.results import Result


@dataclass(frozen=True)
class HeadComparison(Result):
    """Two heads, measured on the same items.

    heads: as they were given. kind: of their labels. items: that both answered. metrics: of each head by name, with
    95 % intervals (over groups where there are groups). difference: how much larger each is for the first head, with
    its paired interval. leading: the metric that tells most. better: 0 for the first head, 1 for the second, None where
    the interval of the leading metric holds 0. notes: what a reader must know.
    """

    heads: tuple[str, str]
    kind: Kind
    items: int
    metrics: tuple[dict[str, Interval], dict[str, Interval]]
    difference: dict[str, Interval]
    leading: str
    better: int | None
    notes: list[str] = field(default_factory=list)


def compare_heads(
    heads: tuple[ClassifyHead, ClassifyHead], names: tuple[str, str], items: Collection, labels: Labels
) -> HeadComparison:
    """Measure two heads on the labelled items of a collection.

    Raises `SelfsightError` for heads of other kinds or classes, and as `tested` does.
    """
    check_alike(heads, names)
    (one, targets, said, notes), (other, _, said_too, more) = (tested(head, items, labels) for head in heads)
    places = {item: place for place, item in enumerate(other.ids)}  # a file may be readable for one of them only
    mine = np.array([place for place, item in enumerate(one.ids) if item in places], dtype=np.int64)
    its = np.array([places[one.ids[place]] for place in mine], dtype=np.int64)
    targets, answers = targets.take(mine), (said.take(mine), said_too.take(its))
    groups = [one.groups[place] for place in mine] if any(one.groups) else None
    found = difference(targets, *answers, groups)
    leads = leading(targets.kind, targets.values.sum(0))
    sign = found[leads].sign * (-1 if leads in LESS else 1)
    return HeadComparison(
        names, targets.kind, len(targets), (figures(targets, answers[0], groups), figures(targets, answers[1], groups)),
        found, leads, {1: 0, -1: 1}.get(sign), told(names, notes, more),
    )  # fmt: skip


def check_alike(heads: tuple[ClassifyHead, ClassifyHead], names: tuple[str, str]) -> None:
    """Raise `SelfsightError` for two heads that do not answer the same question."""
    one, other = (head.about for head in heads)
    if one.kind != other.kind:
        raise SelfsightError(
            f"{names[0]} is for labels of the kind {one.kind}, {names[1]} for {other.kind}. Compare heads of one kind."
        )
    check_classes((one.classes, other.classes), names)


def check_classes(classes: tuple[Sequence[str], Sequence[str]], names: tuple[str, str]) -> None:
    """Raise `SelfsightError` for two heads that do not know the same classes in the same order."""
    one, other = (list(each) for each in classes)
    if one != other:
        alone = sorted(set(one) ^ set(other))
        raise SelfsightError(
            f"{names[0]} and {names[1]} do not know the same classes: {', '.join(alone[:5]) or 'their order differs'}. "
            "Train them on the same classes."
        )


def told(names: tuple[str, str], notes: list[str], more: list[str]) -> list[str]:
    """The notes of both, of one alone with its name."""
    both = [note for note in notes if note in more]
    sides = zip(names, (notes, more), strict=True)
    return both + [f"{name}: {note}" for name, side in sides for note in side if note not in both]
