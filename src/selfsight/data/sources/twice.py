"""Paths that tables list more than once, with different labels."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np

Listed: TypeAlias = tuple[str, str | None, str]  # a path, its label (None for none), and the name of the row


def contradictions(rows: Callable[[], Iterable[Listed]]) -> dict[str, dict[str | None, str]]:
    """{path: {label: the first row that says so}} of the paths to which rows give different labels.

    rows: gone over once, and once more if there is such a path. About 16 bytes per row, besides what is found.
    """
    paths, labels = array("q"), array("q")
    for path, label, _ in rows():
        paths.append(hash(path))
        labels.append(hash(label))
    keys, values = np.array(paths, np.int64), np.array(labels, np.int64)
    order = np.lexsort((values, keys))
    keys, values = keys[order], values[order]
    several = set(keys[1:][(keys[1:] == keys[:-1]) & (values[1:] != values[:-1])].tolist())
    found: dict[str, dict[str | None, str]] = {}
    for path, label, row in rows() if several else ():
        if hash(path) in several:
            found.setdefault(path, {}).setdefault(label, row)
    return found
