"""Distances of a stream from a reference: closed forms, a stated rate of false alarms, and shifts that are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from selfsight.deploy.drift import Drift
from selfsight.errors import DataError, SelfsightError
from selfsight.probing.linear import unit_rows

CLASSES, DIM = 4, 24


def world(rng: np.random.Generator) -> np.ndarray:
    """Middles [K, D] of classes that lie apart."""
    return 2.0 * rng.normal(size=(CLASSES, DIM))


def pictures(rng: np.random.Generator, middles: np.ndarray, classes: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """Features [N, D] of unit length of items of these classes. Classes spread differently."""
    noise = rng.normal(size=(len(classes), DIM)) * (0.5 + 0.25 * classes[:, None])
    return unit_rows(middles[classes] + noise + shift * np.eye(DIM)[0])


def test_distances_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    reference, window = unit_rows(rng.normal(size=(60, 5))), unit_rows(rng.normal(size=(20, 5)) + 0.5)
    found = Drift(reference, np.zeros(60, int)).far(window, np.zeros(20, int))
    assert found.mean == pytest.approx(float(np.linalg.norm(window.mean(0) - reference.mean(0))), abs=1e-5)
    squares = sorted(((a - b) ** 2).sum() for i, a in enumerate(reference) for b in reference[i + 1 :])
    width = float(np.median(squares))

    def mean_kernel(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean([np.exp(-((a - b) ** 2).sum() / (2 * width)) for a in one for b in other]))

    slow = mean_kernel(window, window) - 2 * mean_kernel(window, reference) + mean_kernel(reference, reference)
    assert found.mmd == pytest.approx(np.sqrt(slow), abs=1e-4)


def test_the_reference_is_weighted_to_the_classes_of_the_window() -> None:
    rng = np.random.default_rng(1)
    classes = np.arange(200) % CLASSES
    reference = pictures(rng, world(rng), classes)
    window, of = reference[:80][classes[:80] < 2], classes[:80][classes[:80] < 2]  # 20 of each of two classes
    found = Drift(reference, classes).far(window, of)
    expected = window.mean(0) - (reference[classes == 0].mean(0) + reference[classes == 1].mean(0)) / 2
    assert found.mean == pytest.approx(float(np.linalg.norm(expected)), abs=1e-5) and found.judged == 40


@pytest.mark.parametrize("ordered", [False, True])
def test_false_alarms_are_as_rare_as_promised(ordered: bool) -> None:
    """400 windows without drift, against 10 references, at 5 %: within the central 99.9 % of the binomial law, widened
    by what a reference of 160 items is off by itself."""
    alarms, rate, windows = 0, 0.05, 40
    for seed in range(10):
        rng = np.random.default_rng(seed)
        middles, classes = world(rng), np.arange(160) % CLASSES
        drift = Drift(pictures(rng, middles, classes), classes, rate)
        for number in range(windows):
            of = np.full(16, number % CLASSES) if ordered else np.repeat(np.arange(CLASSES), 4)
            alarms += drift.far(pictures(rng, middles, of), of).alarm
    low, high = binom.interval(0.999, 10 * windows, rate)
    assert low / 2 <= alarms <= high + 4, alarms


def test_a_shift_is_found_and_a_spread_too() -> None:
    rng = np.random.default_rng(3)
    middles, classes = world(rng), np.arange(160) % CLASSES
    drift, of = Drift(pictures(rng, middles, classes), classes), np.arange(32) % CLASSES
    assert all(drift.far(pictures(rng, middles, of, shift=2.0), of).alarm for _ in range(20))
    wider = [unit_rows(middles[of] + 2.5 * rng.normal(size=(32, DIM))) for _ in range(20)]
    assert all(drift.far(each, of).alarm for each in wider)


def test_what_cannot_be_promised_is_said() -> None:
    reference = unit_rows(np.random.default_rng(0).normal(size=(60, 5)))
    with pytest.raises(DataError, match=r"39 items .* and 40 are needed"):
        Drift(reference[:39], np.zeros(39, int))
    with pytest.raises(SelfsightError, match="--false-alarms lies from"):
        Drift(reference, np.zeros(60, int), 0.5)
    few = Drift(reference, np.zeros(60, int)).far(reference[:5], np.zeros(5, int))
    assert (few.judged, few.alarm) == (5, False)
    strangers = Drift(reference, np.zeros(60, int)).far(reference, np.ones(60, int))  # of a class that was never found
    assert (strangers.judged, strangers.alarm) == (0, False)
