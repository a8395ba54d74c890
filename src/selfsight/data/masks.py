"""Masks of items: read from wherever labels say, with their classes, and their objects where these are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy.ndimage import label

from selfsight.data.annotations.masks import IGNORE, read_mask, upright_mask
from selfsight.data.annotations.outlines import (
    BACKGROUND,
    IGNORED,
    Aside,
    MaskValue,
    Numbered,
    drawn,
    is_polygons,
    part_of,
    tells_apart,
    value_of,
)
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.labels import Labels
from selfsight.errors import DataError

Row: TypeAlias = dict[str, Any]  # of a collection
OBJECT = "object"  # the class of objects that have numbers and no class
MOST_CLASSES = 255
RARE = 1e-4  # share of all pixels, below which a class is doubted
_WHOLE = 0.95  # share of numbers whose pixels hang together, from which they are taken for objects


@dataclass(frozen=True)
class Masks:
    """The items that have a mask.

    labels: of these items. values: of each, see `annotations.outlines`. names: the classes, first the background.
    told_apart: whether the masks tell objects apart. aside: masks that are not used, and why. notes: what a user must
    know. roi: [H, W] bool, where is looked, None for everywhere; pixels elsewhere are left out.
    """

    labels: Labels
    values: tuple[MaskValue, ...]
    names: tuple[str, ...]
    told_apart: bool
    aside: tuple[Aside, ...] = ()
    notes: tuple[str, ...] = ()
    roi: np.ndarray | None = None

    @classmethod
    def of(cls, items: Collection, labels: Labels, objects: bool | None = None, roi: np.ndarray | None = None) -> Masks:
        """The masks of the labelled items. objects: whether the numbers in masks are of objects and not of classes; by
        how those in files look if None. roi: where is looked; a picture of another size is set aside.

        Raises `SelfsightError` where no mask can be used, or all are background.
        """
        if labels.kind == "none":
            raise DataError(
                f"No item of {labels.location} has a mask. Name a COCO file or a folder of masks: --labels PATH"
            )
        labels = labels.labelled()
        found: list[MaskValue | None] = []
        aside = list(labels.aside)
        for row, value in zip(labels.rows.to_pylist(), labels.values, strict=True):
            try:
                if roi is not None and (row["height"], row["width"]) != roi.shape:
                    raise ValueError(other_size((row["height"], row["width"]), roi))
                found.append(_checked(items, row, value))
            except (Unreadable, ValueError, OSError) as error:
                found.append(None)
                aside.append(Aside(row["uri"], str(error)))
        places = [place for place, value in enumerate(found) if value is not None]
        if not places:
            raise DataError(f"No mask of {labels.location} can be used: {aside[-1].where}: {aside[-1].reason}.")
        values = [value for value in found if value is not None]
        notes: list[str] = []
        told = any(tells_apart(value) for value in values)
        numbers = [value for value in values if isinstance(value, Numbered)]
        if not told and (looks_like_objects(numbers) if objects is None else objects):
            values, told = [_as_objects(value) for value in values], True
            notes = ["the numbers in the masks are taken for those of objects, as each is in one piece"] * (
                objects is None
            )
        names = {name for value in values for name in value} - {BACKGROUND, IGNORED}
        if len(names) > MOST_CLASSES:
            raise DataError(
                f"The masks of {labels.location} have {len(names):,} classes, of which {MOST_CLASSES} can be told "
                "apart. If their numbers are those of objects: --objects"
            )
        return cls(
            labels.take(places), tuple(values), (BACKGROUND, *ordered(names)), told and objects is not False,
            tuple(aside), tuple(notes), roi,
        ).without_empty()  # fmt: skip

    def __len__(self) -> int:
        return len(self.values)

    def take(self, places: Sequence[int] | np.ndarray) -> Masks:
        """The masks at these places, with all classes."""
        chosen = np.asarray(places, dtype=np.int64)
        return replace(self, labels=self.labels.take(chosen), values=tuple(self.values[i] for i in chosen))

    def size(self, place: int) -> tuple[int, int]:
        """(height, width) of an item."""
        return self.labels.rows["height"][place].as_py(), self.labels.rows["width"][place].as_py()

    def at(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes [H, W] int32, places in `names` or `IGNORE`, and objects [H, W] int32, from 1, of an item."""
        classes, objects = drawn(self.values[place], self.names, *self.size(place))
        if self.roi is not None and not self.roi.all():
            classes[~self.roi], objects[~self.roi] = IGNORE, 0
            objects = np.unique(objects, return_inverse=True)[1].reshape(objects.shape).astype(np.int32)
        return classes, objects

    def with_names(self, names: tuple[str, ...]) -> Masks:
        """With the classes of a head; pixels of others are left out, with a note. Raises `DataError` where no mask has
        a class that is known."""
        strange = {*self.names} - {*names}
        if not strange:
            return replace(self, names=names)
        if strange >= {*self.names[1:]}:
            raise DataError(
                f"{self.labels.location} has masks of classes that are not known: {_listed(strange)}. "
                f"Known are {', '.join(names[1:])}."
            )
        told = f"pixels of classes that are not known are left out: {_listed(strange)}"
        values = tuple(_without(value, strange) for value in self.values)
        return replace(self, values=values, names=names, notes=(*self.notes, told))

    def without_empty(self) -> Masks:
        """Without classes of which no mask has a pixel. Raises `DataError` if all are background."""
        counts = np.zeros(len(self.names), np.int64)
        for place in range(len(self)):
            classes, _ = self.at(place)
            counts += np.bincount(classes[classes >= 0], minlength=len(self.names))
        if not counts[1:].any():
            where = "" if self.roi is None else " where --roi looks"
            raise DataError(
                f"The masks of {self.labels.location} hold background alone{where}. Outline what is to be found in one."
            )
        rare = [f"{name} ({count:,} px)" for name, count in zip(self.names[1:], counts[1:], strict=True)
                if 0 < count < RARE * counts.sum()]  # fmt: skip
        notes = self.notes
        if rare:
            notes = (*notes, f"classes of nearly no pixels, which may be strays: {', '.join(rare[:8])}")
        empty = {name for name, count in zip(self.names[1:], counts[1:], strict=True) if not count}
        if not empty:
            return replace(self, notes=notes)
        values = tuple({name: of for name, of in value.items() if name not in empty} for value in self.values)
        told = f"no mask has a pixel of {', '.join(ordered(empty))}, so there is no such class"
        names = tuple(name for name in self.names if name not in empty)
        return replace(self, values=values, names=names, notes=(*notes, told))


def roi_of(path: str) -> np.ndarray:
    """The mask [H, W] bool of --roi. Raises `DataError` for a file that is none, or that is 0 everywhere."""
    try:
        with Path(path).expanduser().open("rb") as file:
            looked = read_mask(file) > 0
    except (OSError, Unreadable) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{path} cannot be used for --roi: {why}. Give a PNG that is white where to look.") from None
    if not looked.any():
        raise DataError(
            f"The mask {path} of --roi is 0 everywhere, so there is nothing to look at. Paint it where to look."
        )
    return looked


def other_size(shape: tuple[int, ...], roi: np.ndarray) -> str:
    """Why a picture of another size than the mask of --roi is not looked at."""
    return f"{shape[1]} x {shape[0]} px, where the mask of --roi is {roi.shape[1]} x {roi.shape[0]}"


def mask_of(
    items: Collection, labels: Labels, place: int, names: Sequence[str], told_apart: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Classes and objects [H, W] of one labelled item, as `Masks.at` gives them, with the classes `names` of a head,
    which may tell objects apart: what is of no such class is left out. Raises `Unreadable`, `OSError` or `ValueError`
    for a mask that cannot be used."""
    row = labels.rows.slice(place, 1).to_pylist()[0]
    found = _checked(items, row, labels.values[place])
    if told_apart and OBJECT in names and not tells_apart(found):
        found = _as_objects(found)
    found = _without(found, {*found} - {*names, IGNORED})
    return drawn(found, names, row["height"], row["width"])


def _listed(names: set[str]) -> str:
    shown = ordered(names)
    return ", ".join(shown[:8]) + (", …" if len(shown) > 8 else "")


def _without(value: MaskValue, strange: set[str]) -> MaskValue:
    """A value whose pixels of these classes are left out."""
    regions = [region for name in strange & {*value} for region in _regions(value[name])]
    if not regions:
        return value
    known = {name: of for name, of in value.items() if name not in strange}
    return known | {IGNORED: [*_regions(known.get(IGNORED, [])), *regions]}


def _regions(of: Any) -> list[Any]:
    """The regions of a class: one, or several."""
    return list(of) if isinstance(of, list) and not is_polygons(of) else [of]


def ordered(names: set[str]) -> list[str]:
    """Names of classes in order: numbers by their value."""
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name))


def numbers_of(names: tuple[str, ...]) -> list[int]:
    """The number of each class in a mask that is written: its own where all are called by numbers, else its place."""
    own = all(name.isdigit() and 0 < int(name) < 2**16 for name in names[1:])
    return [0, *(int(name) for name in names[1:])] if own else list(range(len(names)))


def looks_like_objects(values: Sequence[MaskValue]) -> bool:
    """Whether the classes of masks are numbers of objects: from 1 on without a gap, of different counts in different
    masks, three or more in one, and nearly each in one piece."""
    counts = [len({*value} - {IGNORED}) for value in values]
    if len(set(counts)) < 2 or max(counts) < 3:
        return False
    pairs = zip(values, counts, strict=True)
    gapless = [{*value} - {IGNORED} == {str(n) for n in range(1, count + 1)} for value, count in pairs]
    if sum(gapless) < 0.9 * len(values):
        return False
    several = [region for value in values for name, region in value.items() if name != IGNORED]
    whole = [label(part_of(region, *region["size"]).mask, np.ones((3, 3)))[1] == 1 for region in several]
    return bool(sum(whole) >= _WHOLE * len(whole))


def _as_objects(value: MaskValue) -> MaskValue:
    told = [region for name, region in value.items() if name not in (IGNORED, BACKGROUND)]
    rest = {name: region for name, region in value.items() if name in (IGNORED, BACKGROUND)}
    return ({OBJECT: told} if told else {}) | rest


def _checked(items: Collection, row: Row, value: Any) -> MaskValue:
    """The value of a mask: of a path, what the file holds. Raises `Unreadable` or `ValueError` where it does not
    fit."""
    height, width = row["height"], row["width"]
    if isinstance(value, str):
        with items.source.open(value) as file:
            return value_of(upright_mask(read_mask(file), height, width, row["exif_orientation"]))
    drawn(value, sorted({*value} - {BACKGROUND, IGNORED}), height, width)  # raises
    return value if isinstance(value, Numbered) else dict(value)
