"""Boxes of items, ready to learn from and to be compared with: within their picture, with an area, of known classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from selfsight.data.annotations.outlines import Aside
from selfsight.data.boxes import Box
from selfsight.data.labels import Labels
from selfsight.data.masks import ordered
from selfsight.errors import DataError

LEAST_SIDE = 1.0  # px: what is narrower within its picture is a stray click
MOST_CLASSES = 255


class Truth(NamedTuple):
    """The objects of a picture. boxes: [N, 4] float64, x0 y0 x1 y1 in pixels of the upright file. kinds: [N] int64,
    places in the classes. unsure: [N] bool, of a crowd or hard to recognise: neither an object nor background."""

    boxes: np.ndarray
    kinds: np.ndarray
    unsure: np.ndarray


@dataclass(frozen=True)
class Boxed:
    """The items whose boxes are known; one without any object is known to be background.

    labels: of these items. values: the boxes of each, within their picture. names: of the classes. aside: boxes that
    are not used, and why. notes: what a user must know.
    """

    labels: Labels
    values: tuple[tuple[Box, ...], ...]
    names: tuple[str, ...]
    aside: tuple[Aside, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, labels: Labels) -> Boxed:
        """The boxes of the labelled items, cut to their pictures. Those without an area there are set aside. Raises
        `DataError` where no box can be used."""
        if labels.kind == "none":
            raise DataError(
                f"No item of {labels.location} has a box. Name a COCO file or a folder of VOC or YOLO files, "
                "--labels PATH, or draw boxes: selfsight label SOURCE --kind box"
            )
        labels = labels.labelled()
        aside = list(labels.aside)
        values: list[tuple[Box, ...]] = []
        sides = zip(labels.rows["uri"].to_pylist(), *(labels.rows[side].to_pylist() for side in ("width", "height")),
                    strict=True)  # fmt: skip
        for (uri, width, height), boxes in zip(sides, labels.values, strict=True):
            kept, gone = within(uri, boxes, width, height)  # type: ignore[arg-type]
            values.append(tuple(kept))
            aside += gone
        known = {box.label for boxes in values for box in boxes if not is_unsure(box)}
        if not known:
            why = f": {aside[-1].where}: {aside[-1].reason}" if aside else ""
            raise DataError(f"{labels.location} has no box of an object that can be used{why}.")
        if len(known) > MOST_CLASSES:
            raise DataError(
                f"The boxes of {labels.location} have {len(known):,} classes, and {MOST_CLASSES} can be told apart."
            )
        return cls(labels, tuple(values), tuple(ordered(known)), tuple(aside))

    def __len__(self) -> int:
        return len(self.values)

    def take(self, places: Sequence[int] | np.ndarray) -> Boxed:
        """The items at these places, with all classes."""
        chosen = np.asarray(places, dtype=np.int64)
        return replace(self, labels=self.labels.take(chosen), values=tuple(self.values[i] for i in chosen))

    def size(self, place: int) -> tuple[int, int]:
        """(height, width) of an item."""
        return self.labels.rows["height"][place].as_py(), self.labels.rows["width"][place].as_py()

    def at(self, place: int) -> Truth:
        """The objects of an item. A crowd of a class that is not known is unsure of class 0."""
        boxes = self.values[place]
        places = {name: number for number, name in enumerate(self.names)}
        edges = np.array([(box.x0, box.y0, box.x1, box.y1) for box in boxes], np.float64).reshape(-1, 4)
        kinds = np.array([places.get(box.label, 0) for box in boxes], np.int64)
        unsure = np.array([is_unsure(box) or box.label not in places for box in boxes], bool)
        return Truth(edges, kinds, unsure)

    def rest_of(self, labels: Labels) -> Boxed:
        """The other items of a collection, whose boxes are not known, or not used."""
        here = set(self.labels.ids)
        rest = labels.take([place for place, item in enumerate(labels.ids) if item not in here])
        return replace(self, labels=rest, values=((),) * len(rest), aside=(), notes=())

    def counts(self) -> np.ndarray:
        """[N, K] int64: the objects of each class in each item, without those that are unsure."""
        found = np.zeros((len(self), len(self.names)), np.int64)
        for place in range(len(self)):
            truth = self.at(place)
            found[place] = np.bincount(truth.kinds[~truth.unsure], minlength=len(self.names))
        return found

    def with_names(self, names: Sequence[str]) -> Boxed:
        """With the classes of a head: boxes of others are set aside. Raises `DataError` where no box has a class that
        is known."""
        strange = [name for name in self.names if name not in names]
        if not strange:
            return replace(self, names=tuple(names))
        if len(strange) == len(self.names):
            raise DataError(
                f"{self.labels.location} has boxes of classes that are not known: {_listed(strange)}. "
                f"Known are {_listed(names)}."
            )
        uris = self.labels.rows["uri"].to_pylist()
        gone = [
            Aside(uri, f"an unknown class {box.label}")
            for uri, boxes in zip(uris, self.values, strict=True)
            for box in boxes
            if box.label not in names
        ]
        values = tuple(tuple(box for box in boxes if box.label in names) for boxes in self.values)
        return replace(self, values=values, names=tuple(names), aside=(*self.aside, *gone))

    def shots(self, least: int, seed: int) -> Boxed:
        """Whole pictures, drawn one by one until each class has `least` boxes; a picture that adds none to a class
        that lacks some is passed over. All boxes of those that are drawn count; a note says how many there are.

        Raises `DataError` where a class has fewer boxes in all.
        """
        counts = self.counts()
        if (short := counts.sum(0) < least).any():
            few = ", ".join(f"{self.names[k]} has {counts[:, k].sum():,}" for k in np.flatnonzero(short))
            raise DataError(f"--shots {least} asks for {least} boxes of each class, and {few}. Ask for fewer.")
        order = np.array(sorted(range(len(self)), key=lambda place: self.labels.ids[place]))
        drawn: list[int] = []
        have = np.zeros(len(self.names), np.int64)
        for place in np.random.default_rng(seed).permutation(order).tolist():
            if counts[place][have < least].any():
                drawn.append(place)
                have += counts[place]
            if (have >= least).all():
                break
        many = ", ".join(f"{count:,} {name}" for name, count in zip(self.names, have, strict=True))
        pictures = "1 picture was" if len(drawn) == 1 else f"{len(drawn):,} pictures were"
        told = f"{pictures} drawn for --shots {least}, and all of their boxes are learnt from: {many}"
        return replace(self.take(sorted(drawn)), notes=(*self.notes, told))


def is_unsure(box: Box) -> bool:
    """Whether a box is neither one object that is to be found, nor background."""
    return box.iscrowd or box.difficult


def within(where: str, boxes: Iterable[Box], width: int, height: int) -> tuple[list[Box], list[Aside]]:
    """(boxes cut to their picture, of what is left nothing or less than a pixel, and why)."""
    kept, aside = list[Box](), list[Aside]()
    for box in boxes:
        cut = replace(
            box, x0=max(0.0, box.x0), y0=max(0.0, box.y0), x1=min(float(width), box.x1), y1=min(float(height), box.y1)
        )
        if cut.x1 <= cut.x0 or cut.y1 <= cut.y0:
            empty = box.x1 <= box.x0 or box.y1 <= box.y0
            aside.append(Aside(where, "a box of no area" if empty else "a box outside its image"))
        elif min(cut.x1 - cut.x0, cut.y1 - cut.y0) < LEAST_SIDE:
            aside.append(Aside(where, "a box of less than a pixel"))
        else:
            kept.append(cut)
    return kept, aside


def _listed(names: Sequence[str]) -> str:
    return ", ".join(list(names)[:8]) + (", …" if len(names) > 8 else "")
