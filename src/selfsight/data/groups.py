"""Items that belong together, as the images of one patient: every split keeps them on one side."""

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


def members_of(numbers: np.ndarray) -> list[np.ndarray]:
    """The places of the items of each group, ascending, the groups in the order of their first items. numbers: that of
    each item's group, [N]."""
    order = np.argsort(numbers, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []
    return sorted(groups, key=lambda members: int(members[0]))


def hold_out(numbers: np.ndarray, share: float) -> np.ndarray:
    """Which [N] of the items, which are in random order, to hold out: whole groups, first come, up to `share` of all.

    A group that would be too much is passed over; where every group is, the smallest is held out (of several the
    one of the lowest number), and with one group nothing. numbers: that of each item's group.
    """
    held, room = np.zeros(len(numbers), bool), int(share * len(numbers))
    groups = members_of(numbers)
    for members in groups:
        if len(members) <= room:
            held[members] = True
            room -= len(members)
    if room and len(groups) > 1 and not held.any():
        held[min(groups, key=lambda members: (len(members), numbers[members[0]]))] = True
    return held


def deal(numbers: np.ndarray, classes: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """The part [N] that each item goes to, from 0 on, so that each part has about its share of the items and of each
    class: groups one by one, the largest first, of those the first to come, each where the sum over classes of (items
    of the class)^2 / (items that are due) then grows least. With few groups a part may stay empty.

    numbers: that of each item's group. classes: a number for each item, from 0 on.
    """
    due = np.array(shares)
    totals = np.bincount(classes)
    filled, sizes = np.zeros((len(totals), len(due))), np.zeros(len(due))
    parts = np.zeros(len(numbers), dtype=np.int64)
    for members in sorted(members_of(numbers), key=len, reverse=True):
        here, n = np.unique(classes[members], return_counts=True)
        grows = (2 * filled[here] * n[:, None] + (n * n)[:, None]) / (due * totals[here, None])
        part = int(np.lexsort((sizes / due, np.round(grows.sum(0), 9)))[0])
        parts[members] = part
        sizes[part] += len(members)
        filled[here, part] += n
    return parts
