"""Masks that people paint: each counts once it is in the journal, and the journal is all that is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from selfsight.data.annotations.masks import read_mask, upright_mask
from selfsight.data.annotations.outlines import MaskValue, is_polygons, pixels_of, value_of
from selfsight.data.annotations.rle import decode, encode
from selfsight.data.formats.format import Unreadable
from selfsight.errors import SelfsightError
from selfsight.pages.answers import checked_name
from selfsight.pages.marked import Marked

MOST_REGIONS = 2_000  # of a mask
Regions = list[dict[str, Any]]  # each {name, told, counts}: its class, whether it is one object, its run lengths


class Painted(Marked):
    """The masks of the usable items of a collection."""

    field = "mask"

    def regions(self, item: str, height: int, width: int) -> Regions | None:
        """The mask of an item as regions of a picture of this size; None where it has none. Raises `SelfsightError` for
        one that cannot be read."""
        value = self._current.get(item)
        if value is None:
            return None
        try:
            return regions_of(self._read(item, value), self.size(item), (height, width))
        except (Unreadable, ValueError, OSError) as error:
            raise SelfsightError(f"The mask of this item cannot be used: {error}. Paint it anew.") from None

    def give(self, item: str, height: int, width: int, regions: Regions) -> None:
        """Write the mask of an item, painted on a picture of this size: it is on disk when this returns. Without a
        region the item has none.

        Raises `SelfsightError` for an item that is not there, and for what is no mask.
        """
        with self.lock:
            self._known(item)
            self._decide(item, self._value(item, height, width, regions, self._current.get(item)))

    def _value(self, item: str, height: int, width: int, regions: Regions, before: Any) -> Any:
        if len(regions) > MOST_REGIONS:
            raise SelfsightError(f"A mask has at most {MOST_REGIONS:,} objects.")
        kept: dict[tuple[str, str], Any] = {}  # of a large picture, what was not painted over stays as it was
        if isinstance(before, Mapping) and (height, width) != self.size(item):
            for shown, (name, runs) in zip(regions_of(dict(before), self.size(item), (height, width)),
                                           _each(dict(before), self.size(item)), strict=True):  # fmt: skip
                kept[name, shown["counts"]] = runs
        apart = {region["name"].strip() for region in regions if region["told"]}
        found: dict[str, Any] = {}
        for region in regions:
            name = checked_name(region["name"], "class")
            try:
                mask = decode({"size": [height, width], "counts": region["counts"]})
            except ValueError as error:
                raise SelfsightError(f"This is no mask: {error}. Load the page again.") from None
            if not mask.any():
                continue
            runs = kept.get((name, region["counts"])) or dict(encode(_sized(mask, self.size(item))))
            if name in apart:
                found.setdefault(name, []).append(runs)
            elif name in found:
                raise SelfsightError(f"This is no mask: {name} comes twice. Load the page again.")
            else:
                found[name] = runs
        return found or None

    def _read(self, item: str, value: Any) -> MaskValue:
        if isinstance(value, Mapping):
            return dict(value)
        with self._items.source.open(value) as file:
            row = self._rows[item]
            return value_of(upright_mask(read_mask(file), row["height"], row["width"], row["exif_orientation"]))

    @staticmethod
    def _classes(value: Any) -> list[str]:
        """None are named of a mask in a file of its own."""
        return sorted(value) if isinstance(value, Mapping) else []

    @staticmethod
    def _parsed(value: Any) -> Any:
        """A value of the column, which holds outlines as JSON, or the path of a file."""
        return json.loads(value) if isinstance(value, str) and value.startswith("{") else value


def regions_of(value: MaskValue, size: tuple[int, int], shown: tuple[int, int]) -> Regions:
    """What is known of a mask of an image of this (height, width), as regions of a picture of the size `shown`, the
    larger first, as the smaller lies on top."""
    apart = {name for name, of in value.items() if isinstance(of, list) and not is_polygons(of)}
    return [
        {"name": name, "told": name in apart, "counts": encode(_sized(decode(runs), shown))["counts"]}
        for name, runs in _each(value, size)
    ]


def _each(value: MaskValue, size: tuple[int, int]) -> list[tuple[str, dict[str, Any]]]:
    """(class, run lengths) of each region of a mask of an image of this size, the larger first."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    for name, of in value.items():
        for region in of if isinstance(of, list) and not is_polygons(of) else [of]:
            mask = pixels_of(region, *size)
            found.append((int(mask.sum()), name, dict(encode(mask))))
    return [(name, runs) for _, name, runs in sorted(found, key=lambda one: -one[0])]


def _sized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask [H, W] at another size, by the nearest pixel."""
    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
