"""What to learn from and what to measure on: two sources, or one collection that is split by a column, which says
which is which or whose values stay together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.data.labels import TEST, TRAIN, Labels
from selfsight.data.sources.columns import listed
from selfsight.errors import DataError, SelfsightError

TEST_SHARE = 0.2


class Side(NamedTuple):
    """Labelled items of a collection, to learn from or to measure on."""

    items: Collection
    labels: Labels


def open_sides(
    train: str | None, test: str | None, data: str | None, split_by: str | None
) -> tuple[list[Side], list[str]]:
    """What to learn from and what to measure on, as a user names it: --train and --test, or --data and --split-by. And
    a note where one collection was split.

    Raises `SelfsightError` for anything else.
    """
    if train is not None and test is not None and data is None and split_by is None:
        opened = [open_source(train), open_source(test)]
        return [Side(items, Labels.of(items)) for items in opened], []
    if data is not None and split_by is not None and train is None and test is None:
        items = open_source(data)
        *labels, note = train_and_test(items, split_by)
        return [Side(items, side) for side in labels], [note]
    two = {"--train": train, "--test": test}, {"--data": data, "--split-by": split_by}
    given = [any(value is not None for value in one.values()) for one in two]
    missing = [name for name, value in two[given[1]].items() if value is None]
    said = "--train and --test go without --data and --split-by" if all(given) else f"{missing[0]} is missing"
    raise SelfsightError(
        f"{said}. Name labelled images to learn from and to measure on: --train FOLDER --test FOLDER, or --data SOURCE "
        "--split-by COLUMN."
    )


def train_and_test(items: Collection, column: str, seed: int = 0) -> tuple[Labels, Labels, str]:
    """The labels of `items` to learn from and to measure on, and a note that says how they were divided.

    A column whose values are the names of splits (`train`, and `test` or else `val`) says which is which; other items
    are left out. Of any other column, such as `group`, all items with one value go to one side, about a fifth of the
    labelled ones to test, drawn by `seed`. An item without a value is alone. Raises `SelfsightError` for a column that
    does not exist, and if one side were empty.
    """
    rows = items.usable
    if column not in rows.column_names:
        raise SelfsightError(
            f"The collection of {items.about.location} has no column {column}. It has {listed(rows.column_names)}. "
            f"Name one of these, or bring it in: selfsight import --columns {column}={column}"
        )
    values = [None if value in (None, "") else str(value) for value in rows[column].to_pylist()]
    if not any(values):
        raise DataError(f"The column {column} of {items.about.location} is empty, so it cannot make a split.")
    named = [value.strip().lower() if value else "" for value in values]
    if column == "split" or (set(named) & set(TRAIN) and set(named) & set(TEST)):
        return _as_named(items, column, named)
    grouped = rows.set_column(rows.column_names.index("group"), "group", pa.array(values, pa.string()))
    labels = Labels.of(items, grouped)
    kept, held = labels.hold_out(TEST_SHARE, seed)
    sides = labels.take(kept), labels.take(held)
    train, test = (len({value for value in side.groups if value}) for side in sides)
    note = f"train and test are split by {column}: {train} values in train, {test} in test, none in both"
    left = len(labels) - sum(len(side) for side in sides)
    return *sides, note + (f"; {left} images without a label are left out" if left else "")


def _as_named(items: Collection, column: str, named: list[str]) -> tuple[Labels, Labels, str]:
    """The sides as a column names them."""
    there = np.array(named)
    test = next((name for name in TEST if name in named), "test")
    sides = []
    for side, names in (("train", TRAIN), ("test", (test,))):
        chosen = np.flatnonzero(np.isin(there, names))
        if not len(chosen):
            found = listed(sorted({name for name in named if name}))
            raise DataError(f"The column {column} of {items.about.location} names no {side} items. It has {found}.")
        sides.append(Labels.of(items, items.usable.take(pa.array(chosen))))
    left = len(named) - sum(len(side) for side in sides)
    note = f"train and test are those of the column {column}, where test is {test!r}"
    return sides[0], sides[1], note + (f"; {left} other images are left out" if left else "")
