"""What heads suggest to those who label: classes, masks or objects of an item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from selfsight.errors import SelfsightError

if TYPE_CHECKING:
    import pyarrow as pa

    from selfsight.data.annotations.outlines import MaskValue
    from selfsight.data.collection import Collection
    from selfsight.heads.head import Head
    from selfsight.pages.drawn import Objects
    from selfsight.pages.neighbours import Suggest


def of_head(items: Collection, head: str | Head) -> Suggest:
    """What a head says of the items. Raises `SelfsightError` for a head of numbers."""
    from selfsight.encoders.features import pooled
    from selfsight.heads.classify_head import ClassifyHead

    opened = _opened(head)
    if not isinstance(opened, ClassifyHead) or not opened.about.classes:
        of = "numbers" if isinstance(opened, ClassifyHead) else opened.gives
        raise SelfsightError(f"{opened.path} is a head of {of}, and the page asks for classes. Give another --head.")
    rows, features, _ = pooled(opened.encoder, items)
    probabilities = opened.tensors(features)["probabilities"]
    places = {item: place for place, item in enumerate(rows["id"].to_pylist())}

    def suggest(ids: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
        known = [item for item in ids if item in places]
        said = {item: zip(opened.about.classes, probabilities[places[item]].tolist(), strict=True) for item in known}
        return {item: sorted(pairs, key=lambda pair: -pair[1]) for item, pairs in said.items()}

    return suggest


def masks_of(items: Collection, head: str | Head) -> Callable[[str], MaskValue | None]:
    """What a head of `train segment` makes of an item. Raises `SelfsightError` for another head."""
    import numpy as np

    from selfsight.data.annotations.rle import encode
    from selfsight.heads.segment_head import SegmentHead

    opened = _opened(head)
    if not isinstance(opened, SegmentHead):
        raise SelfsightError(f"{opened.path} says no masks. Give a head of selfsight train segment, or none.")
    row = _rows(items)

    def guess(item: str) -> MaskValue | None:
        for found in opened.segment(items, row(item), {}):
            classes = opened.about.classes
            if opened.about.told_apart:
                told: MaskValue = {}
                for thing in found.things:
                    told.setdefault(classes[thing.label], []).append(dict(thing.runs))
                return told
            there = [place for place in np.unique(found.mask).tolist() if place > 0]
            return {classes[place]: dict(encode(found.mask == place)) for place in there}
        return None

    return guess


def boxes_of(
    items: Collection, head: str | Head, classes: Sequence[str] = ()
) -> tuple[Callable[[str], Objects], list[str]]:
    """(what a head of `train detect` finds in an item, of these classes, of all if none are named; these classes).
    Raises `SelfsightError` for another head, and for a class that it does not know."""
    from selfsight.heads.detect_head import DetectHead

    opened = _opened(head)
    if not isinstance(opened, DetectHead):
        raise SelfsightError(
            f"{opened.path} is a head of {opened.gives or 'classes'}, and finds no boxes. Give a head of selfsight "
            "train detect, or none."
        )
    known = opened.about.classes
    if strange := [name for name in classes if name not in known]:
        raise SelfsightError(
            f"{opened.path} knows no class {', '.join(strange)}, of --classes; it finds {', '.join(known)}. Correct "
            "--classes, or leave it out: new classes can be made on the page."
        )
    row, wanted = _rows(items), list(classes) or known

    def guess(item: str) -> Objects:
        bad: dict[int, str] = {}
        objects: Objects = []
        for found in opened.detect(items, row(item), bad):
            objects = [one for one in opened.said(found.found)["objects"] if one["label"] in wanted]
        if bad:
            raise SelfsightError(f"The picture cannot be read: {bad[0]}.")
        return [{name: one[name] for name in ("label", "score", "x0", "y0", "x1", "y1")} for one in objects]

    return guess, wanted


def _opened(head: str | Head) -> Head:
    """A head, where it computes."""
    from selfsight.heads.head import Head, load_head
    from selfsight.machine import best_device

    opened = head if isinstance(head, Head) else load_head(head)
    opened.module.to(best_device())
    return opened


def _rows(items: Collection) -> Callable[[str], pa.Table]:
    """The row of an item by its id, as a table."""
    places = {item: place for place, item in enumerate(items.usable["id"].to_pylist())}
    return lambda item: items.usable.take([places[item]])
