"""A few of many, evenly."""

from __future__ import annotations

import numpy as np

from selfsight.data.spread import spread


def test_by_hand() -> None:
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(10, 3).tolist() == [0, 4, 9]
    assert spread(1, 5).tolist() == [0]
    assert spread(0, 5).tolist() == []


def test_all_of_a_few_and_as_many_as_asked_for_of_many() -> None:
    for count in range(2, 200):
        assert spread(count, 200).tolist() == list(range(count))
        for most in (2, 3, 7, count):
            chosen = spread(count, most)
            gaps = np.diff(chosen)
            assert (chosen[0], chosen[-1], len(chosen)) == (0, count - 1, min(count, most))
            assert gaps.max() - gaps.min() <= 1
