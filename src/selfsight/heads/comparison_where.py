"""Two heads that say where, two inspections or two segmentations, on the same pictures: which is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.errors import SelfsightError
from selfsight.heads.comparison import HeadComparison, check_classes, told
from selfsight.heads.inspect_evaluation import figures, measures, spanned, tested_parts
from selfsight.heads.inspect_head import InspectHead
from selfsight.heads.metrics import LESS
from selfsight.heads.objects import Matched, ap50, count_error
from selfsight.heads.segment import miou, object_metrics
from selfsight.heads.segment_evaluation import tested_pictures
from selfsight.heads.segment_head import SegmentHead
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import interval

One = TypeVar("One")
OBJECT_DRAWS = 200  # resamplings of objects


def compare_inspections(
    heads: tuple[InspectHead, InspectHead], names: tuple[str, str], items: Collection, labels: str | None,
    masks: str | None,
) -> HeadComparison:  # fmt: skip
    """Measure two inspections on the labelled items of a collection; what either learnt as good is good.

    Raises `SelfsightError` as `evaluate_inspection` does.
    """
    known = Labels.of(items, path=labels)
    normal = sorted({*heads[0].about.normal, *heads[1].about.normal})
    sides = [tested_parts(head, items, known, masks, labels is not None, normal) for head in heads]
    (one, notes), (other, more) = sides
    mine, its = _shared(one.rows["id"].to_pylist(), other.rows["id"].to_pylist())
    one, other = one.take(mine), other.take(its)
    first, second = measures(one), measures(other)
    gaps = {name: spanned([first[name], second[name]], one.groups) for name in first if name in second}
    both = (figures(one), figures(other))
    return _compared(names, "class", len(mine), both, gaps, "auroc", told(names, notes, more))


def compare_segmentations(
    heads: tuple[SegmentHead, SegmentHead], names: tuple[str, str], items: Collection, path: str | None
) -> HeadComparison:
    """Measure two segmentations of the same classes on the items with a mask. path: of the masks, None for those of the
    collection.

    Raises `SelfsightError` for heads of other classes, and as `SegmentHead.evaluate` does.
    """
    check_classes((heads[0].about.classes, heads[1].about.classes), names)
    masks = [head.true_masks(items, path) for head in heads]
    (one, notes), (other, more) = (tested_pictures(*pair) for pair in zip(heads, [items] * 2, masks, strict=True))
    labels = [mask.labels.take(side.places) for mask, side in zip(masks, (one, other), strict=True)]
    mine, its = _shared(labels[0].ids, labels[1].ids)
    named = [labels[0].groups[place] for place in mine]
    groups = np.array(named, dtype=object) if any(named) else None
    pixels = one.confusions[mine], other.confusions[its]
    both = tuple({"miou": interval(miou, [each], groups)} for each in pixels)
    gaps = {"miou": interval(lambda a, b: miou(a) - miou(b), pixels, groups)}
    if all(head.about.told_apart for head in heads):
        objects = [one.pictures[place] for place in mine], [other.pictures[place] for place in its]
        both = tuple(found | object_metrics(each, groups) for found, each in zip(both, objects, strict=True))
        gaps |= _object_gaps(*objects, groups)
    return _compared(names, "masks", len(mine), (both[0], both[1]), gaps, "miou", told(names, notes, more))


def _object_gaps(one: Sequence[Matched], other: Sequence[Matched], groups: np.ndarray | None) -> dict[str, Interval]:
    def precision(places: np.ndarray) -> float | None:
        pair = ap50([one[i] for i in places]), ap50([other[i] for i in places])
        return None if pair[0] is None or pair[1] is None else pair[0] - pair[1]

    def off(places: np.ndarray) -> float:
        return count_error([one[i] for i in places]) - count_error([other[i] for i in places])

    rows = [np.arange(len(one))]
    return {
        "ap50": interval(precision, rows, groups, OBJECT_DRAWS),
        "count_error": interval(off, rows, groups),
    }


def _compared(
    names: tuple[str, str], kind: str, count: int, metrics: tuple[dict[str, Interval], dict[str, Interval]],
    gaps: dict[str, Interval], leads: str, notes: list[str],
) -> HeadComparison:  # fmt: skip
    sign = gaps[leads].sign * (-1 if leads in LESS else 1)
    return HeadComparison(names, kind, count, metrics, gaps, leads, {1: 0, -1: 1}.get(sign), notes)  # type: ignore[arg-type]


def _shared(one: Sequence[str], other: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the items that both have: among the one's, and among the other's. Raises `SelfsightError` for none."""
    places = {item: place for place, item in enumerate(other)}
    mine = [place for place, item in enumerate(one) if item in places]
    if not mine:
        raise SelfsightError("There is no picture that both heads can look at, so nothing can be compared.")
    return np.array(mine, np.int64), np.array([places[one[place]] for place in mine], np.int64)
