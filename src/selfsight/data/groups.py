"""Items that belong together, as the images of one patient: a split keeps them on one side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def group_numbers(groups: Sequence[str | None] | np.ndarray | None, items: int) -> np.ndarray:
    """Numbers [N] of the groups of `items` items, counted from 0 in the order of their first items.

    groups: a name for each item, or None or "" for an item that is alone; None where all are. Raises `ValueError`
    unless there is one entry an item.
    """
    if groups is None:
        return np.arange(items)
    if len(groups) != items:
        raise ValueError(f"{len(groups)} groups for {items} items: one entry an item is needed")
    known: dict[Any, int] = {}
    names = [("alone", i) if group is None or group == "" else group for i, group in enumerate(groups)]
    return np.array([known.setdefault(name, len(known)) for name in names], dtype=int)


def hold_out(numbers: np.ndarray, share: float) -> np.ndarray:
    """Which [N] of the items, which are in random order, to hold out: whole groups, first come, up to `share` of all.

    A group that would be too much is passed over; where every group is, the smallest is held out, and with one group
    nothing. numbers: as `group_numbers` gives them.
    """
    names, first, of, sizes = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
    held, room = np.zeros(len(names), bool), int(share * len(numbers))
    for group in np.argsort(first):
        if sizes[group] <= room:
            held[group] = True
            room -= int(sizes[group])
    if room and len(names) > 1 and not held.any():
        held[np.argmin(sizes)] = True
    return held[of]
