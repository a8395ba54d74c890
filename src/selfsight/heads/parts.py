"""Which items are good parts and which have a defect, by their labels."""

from __future__ import annotations

from collections.abc import Collection as Names
from dataclasses import dataclass, replace

import numpy as np

from selfsight.data.labels import Labels
from selfsight.errors import DataError, meant

GOOD = ("good", "normal", "ok")  # in any case


@dataclass(frozen=True)
class Parts:
    """Items by what they are: `good` ones, those with `defects`, whose labels are the names of these, and how many
    without a label are left out. notes: what a user must know."""

    good: Labels
    defects: Labels
    unlabelled: int
    notes: tuple[str, ...] = ()


def is_good(value: object, normal: Names[str]) -> bool:
    """Whether a label, one class or several, is that of a good part. normal: names of good ones, beside the usual."""
    names = value if isinstance(value, tuple) else (value,)
    return all(str(name).casefold() in GOOD or name in normal for name in names)


def parts_of(labels: Labels, normal: Names[str] = (), table: bool = False) -> Parts:
    """The items by their labels: all are good where none has a label.

    table: whether the labels are of a table that the user gave. If that names defects alone, the items that it leaves
    out are the good ones. Raises `DataError` for a name that is none of the classes, and if none is one of good parts.
    """
    if missing := [name for name in normal if labels.kind != "none" and name not in labels.classes]:
        have = ", ".join(labels.classes[:8])
        raise DataError(
            f"{labels.location} has no class {missing[0]!r} for --normal; it has {have}."
            f"{meant(missing[0], labels.classes)}"
        )
    known, good = labels.known, np.array([value is not None and is_good(value, normal) for value in labels.values])
    notes: tuple[str, ...] = ()
    if labels.kind == "none":
        good = np.ones(len(labels), bool)
    elif not good.any() and table and not known.all():
        good = ~known
        notes = (f"the labels name defects alone, so the {int(good.sum()):,} items without a label are the good parts",)
    elif not good.any():
        named = ", ".join(labels.classes[:5]) + (", …" if len(labels.classes) > 5 else "")
        raise DataError(
            f"{labels.location} has no good part: its classes are {named}, and good parts are called "
            f"{', '.join(GOOD[:-1])} or {GOOD[-1]}. Name the class of the good ones: --normal NAME"
        )
    bad = known & ~good
    taught = labels.take(np.flatnonzero(good))
    taught = replace(taught, kind="class", values=("good",) * len(taught))
    return Parts(taught, labels.take(np.flatnonzero(bad)), int((~known & ~good).sum()), notes)
