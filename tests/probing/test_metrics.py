"""Metrics against counts done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from selfsight.probing.metrics import metrics

#                   right         right          second best    last
SCORES = np.array([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.5, 0.3, 0.2]])
TRUTH = np.array([0, 1, 1, 2])


def test_by_hand() -> None:
    found = metrics(SCORES, TRUTH)
    assert found["top1"] == 2 / 4
    assert found["balanced"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["top2"] == 3 / 4
    # F1: class 0 has precision 1/3 and recall 1, class 1 has 1 and 1/2, class 2 nothing.
    assert found["macro_f1"] == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    # Class 0: 0.9 above all others. Class 1: 0.7 and 0.3 against 0.1 and 0.3: 3.5 of 4. Class 2: 0.2 above all.
    assert found["auroc"] == pytest.approx((1 + 3.5 / 4 + 1) / 3)


def test_one_class_in_the_truth_has_no_area() -> None:
    assert metrics(SCORES, np.zeros(4, dtype=int))["auroc"] is None
