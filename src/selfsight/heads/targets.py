"""What a head is taught of its items, as numbers and as cells of a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from selfsight.data.labels import Kind, Labels
from selfsight.errors import SelfsightError


@dataclass(frozen=True)
class Targets:
    """What is to be learnt of N items.

    kind: "class", "classes", "grade" or "number".
    classes: their names in order; none for numbers.
    values: [N, K] float32: 1 for each class of an item, or its number.
    """

    kind: Kind
    classes: tuple[str, ...]
    values: np.ndarray

    @classmethod
    def of(cls, labels: Labels, classes: tuple[str, ...] | None = None) -> Targets:
        """Those of items that all have a label. Raises `SelfsightError` for a class that is not among `classes`."""
        if labels.kind == "number":
            return cls("number", (), np.array(labels.values, dtype=np.float32)[:, None])
        names = tuple(labels.classes) if classes is None else classes
        if strange := sorted(set(labels.classes) - set(names)):
            raise SelfsightError(
                f"{labels.location} has classes that the head does not know: {', '.join(strange[:5])}. It knows "
                f"{', '.join(names)}. Train it again with them, or leave these items without a label."
            )
        places = {name: i for i, name in enumerate(names)}
        values = np.zeros((len(labels), len(names)), np.float32)
        for row, value in enumerate(labels.values):
            several = value if isinstance(value, tuple) else (value,)
            values[row, [places[str(name)] for name in several]] = 1.0
        return cls(labels.kind, names, values)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def numbers(self) -> np.ndarray:
        """[N] int64, the class number of each item."""
        return np.asarray(self.values.argmax(1), np.int64)

    def take(self, places: np.ndarray) -> Targets:
        """Those of the items at these places."""
        return replace(self, values=self.values[places])


def written_label(value: object) -> str:
    """A label as a cell of a table: several as `a|b`."""
    return "|".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def read_label(cell: str, kind: str) -> str | float | tuple[str, ...]:
    """The inverse of `written_label`."""
    if kind == "number":
        return float(cell)
    return tuple(filter(None, cell.split("|"))) if kind == "classes" else cell
