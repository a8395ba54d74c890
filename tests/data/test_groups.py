"""Groups of items: numbers by hand, and splits that keep a group on one side."""

from __future__ import annotations

import numpy as np
import pytest

from selfsight.data.groups import deal, group_numbers, hold_out, members_of


def test_numbers_by_hand() -> None:
    groups = np.array(["b", None, "a", "b", None, "", "a"], dtype=object)
    assert group_numbers(groups, 7).tolist() == [0, 1, 2, 0, 3, 4, 2]
    assert group_numbers(None, 4).tolist() == [0, 1, 2, 3]
    assert group_numbers(np.array([7, 7, 3]), 3).tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="3 groups for 4 items"):
        group_numbers(np.array([7, 7, 3]), 4)


def test_items_that_are_alone_are_held_out_first_come() -> None:
    for items in range(300):
        held = hold_out(np.random.default_rng(items).permutation(items), 1 / 5)
        assert held.tolist() == [i < items // 5 for i in range(items)]


def test_a_group_stays_on_one_side_and_the_share_is_kept() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        numbers = rng.integers(0, 40, 200)
        held = hold_out(numbers, 1 / 5)
        assert not set(numbers[held]) & set(numbers[~held])
        assert 200 / 5 - np.bincount(numbers).max() < held.sum() <= 200 / 5


def test_large_groups() -> None:
    assert hold_out(np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]), 1 / 5).tolist() == [True] * 3 + [False] * 8
    assert not hold_out(np.zeros(20, int), 1 / 5).any()  # one group: nothing would be left
    assert hold_out(np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2]), 1 / 5).tolist() == [False] * 6 + [True] * 2 + [False] * 2


def test_members_by_hand() -> None:
    assert [members.tolist() for members in members_of(np.array([5, 2, 5, 0, 2]))] == [[0, 2], [1, 4], [3]]
    assert members_of(np.zeros(0, int)) == []


def test_groups_are_dealt_by_class_and_share() -> None:
    # The group of three goes first; what is due of its class is then with the other part, and a tie with the emptier.
    numbers, classes = np.array([0, 0, 0, 1, 2, 3, 4]), np.array([0, 0, 0, 0, 1, 1, 1])
    assert deal(numbers, classes, [0.5, 0.5]).tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert deal(numbers, classes, [0.25, 0.75]).tolist() == [1, 1, 1, 0, 1, 0, 1]
    assert deal(np.zeros(4, int), np.zeros(4, int), [0.5, 0.5]).tolist() == [0, 0, 0, 0]  # one group: one part is empty
