"""Labels needed to reach a level: closed forms, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.isotonic import IsotonicRegression

from selfsight.probing.curve import Needed, Point, labels_to_reach, needed, never_falling, resampled

LABELS = [2, 4, 8, 16, 32, 64]


def hits(share: float, items: int = 100, draws: int = 1) -> np.ndarray:
    """[draws, items] bool, the first `share` of the items."""
    return np.tile(np.arange(items) < round(share * items), (draws, 1))


def found(shares: list[float], level: float) -> Needed:
    """Of a curve with these accuracies at `LABELS`, all 64 labels at the end, against a level of all 64."""
    points = [Point(count, hits(share, draws=3)) for count, share in zip(LABELS, shares, strict=True)]
    values, draws = resampled([*points, Point(64, hits(level))], np.ones(100), draws=200)
    return needed(LABELS, values[:-1], draws[:, :-1], float(values[-1]), draws[:, -1], 64)


def test_a_curve_that_crosses_at_8_of_64_labels_saves_seven_eighths() -> None:
    got = found([0.5, 0.6, 0.7, 0.8, 0.85, 0.9], 0.7)
    assert got.labels.value == pytest.approx(8) and got.saved.value == pytest.approx(0.875)
    assert got.labels.low == pytest.approx(8) == got.labels.high  # nested hits: every resampling crosses there, too
    assert not got.at_most and got.reached == 1.0 and got.gap.value == pytest.approx(0.2)


def test_between_two_numbers_it_is_linear_in_the_logarithm() -> None:
    assert labels_to_reach([4, 16], np.array([0.4, 0.8]), 0.6) == pytest.approx(8)
    assert labels_to_reach([4, 16], np.array([0.4, 0.8]), 0.5) == pytest.approx(4 * 4**0.25)
    many = labels_to_reach([4, 16], np.array([[0.4, 0.8], [0.4, 0.5], [0.7, 0.8]]), np.array([0.8, 0.6, 0.6]))
    assert many.tolist() == pytest.approx([16, np.inf, 4])


def test_not_reached_is_said_and_by_how_much() -> None:
    got = found([0.3, 0.4, 0.5, 0.55, 0.58, 0.6], 0.7)
    assert got.labels.value is None and got.saved.value is None and got.reached == 0.0 and not got.at_most
    assert got.gap.value == pytest.approx(-0.1) and got.gap.sign == -1


def test_the_fewest_labels_may_be_more_than_enough() -> None:
    got = found([0.9] * 6, 0.7)
    assert got.at_most and got.labels.value == pytest.approx(2) and got.saved.value == pytest.approx(1 - 2 / 64)


def test_a_level_reached_in_some_resamplings_only_has_an_open_end() -> None:
    rng = np.random.default_rng(0)
    points = [Point(count, rng.random((5, 200)) < 0.3 + 0.06 * i) for i, count in enumerate(LABELS)]
    values, draws = resampled([*points, Point(64, rng.random((1, 200)) < 0.6)], np.ones(200), draws=500)
    got = needed(LABELS, values[:-1], draws[:, :-1], float(values[-1]), draws[:, -1], 64)
    assert 0.0 < got.reached < 0.975 and got.labels.low is not None and got.labels.high is None
    assert got.saved.high is not None and got.saved.low is None


def test_curves_that_never_fall_are_those_of_scikit_learn() -> None:
    curves = np.random.default_rng(0).random((50, 7)) + np.linspace(0, 1, 7)
    fitted = [IsotonicRegression().fit_transform(np.arange(7), curve) for curve in curves]
    assert np.allclose(never_falling(curves), fitted)
    assert (np.diff(never_falling(curves)) > -1e-12).all()


def test_a_dip_does_not_count_as_a_crossing_later() -> None:
    assert labels_to_reach([1, 2, 4, 8], np.array([0.2, 0.6, 0.5, 0.9]), 0.55) <= 2 * (1 + 1e-9)


def test_one_item_or_group_has_no_interval() -> None:
    points = [Point(2, hits(0.5, 10)), Point(4, hits(0.8, 10)), Point(4, hits(0.6, 10))]
    values, draws = resampled(points, np.ones(10), ["one"] * 10)
    got = needed([2, 4], values[:2], draws[:, :2], float(values[2]), draws[:, 2], 4)
    assert draws.shape == (0, 3) and got.labels.value is not None and (got.labels.low, got.labels.high) == (None, None)


@pytest.mark.parametrize("level", [0.65, 0.75])
def test_the_interval_holds_the_truth_as_often_as_it_says(level: float) -> None:
    """Items of their own difficulty, draws of the labels better and worse: probit models, whose means are known."""
    rng, shares, spread = np.random.default_rng(1), np.array([0.5, 0.6, 0.7, 0.78, 0.84, 0.88]), 0.1
    truth = float(labels_to_reach(LABELS, shares, level))
    held, trials, items = 0, 120, 250
    for _ in range(trials):
        easy = rng.normal(0, 0.7, items)
        noise = np.sqrt(1 - 0.7**2)
        points = []
        for count, share in zip(LABELS, shares, strict=True):
            cut = norm.ppf(share) * np.sqrt(1 + spread**2) + rng.normal(0, spread, (5, 1))
            points.append(Point(count, easy + rng.normal(0, noise, (5, items)) < cut))
        points.append(Point(64, (easy + rng.normal(0, noise, items) < norm.ppf(level))[None]))
        values, draws = resampled(points, np.ones(items), draws=200)
        got = needed(LABELS, values[:-1], draws[:, :-1], float(values[-1]), draws[:, -1], 64).labels
        held += (got.low or 0.0) <= truth <= (np.inf if got.high is None else got.high)
    print(f"{held} of {trials}")
    assert held / trials >= 0.90
