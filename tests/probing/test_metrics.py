"""Metrics against counts done by hand and by loops; intervals against closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import binom

from selfsight.probing.metrics import (
    Interval,
    balancing,
    brier,
    ece,
    interval,
    kappa,
    leading,
    metrics,
    nll,
    paired_gain,
    paired_interval,
    sensitivity,
    specificity,
)

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


def probabilities(rng: np.random.Generator, items: int, classes: int, sharp: float = 2.0) -> np.ndarray:
    odds = np.exp(sharp * rng.normal(size=(items, classes)))
    return odds / odds.sum(1, keepdims=True)


def drawn(rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
    """Truth [N] that comes true with exactly these probabilities."""
    return (rng.random((len(p), 1)) > p.cumsum(1)).sum(1).clip(max=p.shape[1] - 1)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_ece_equals_a_loop(bins: int) -> None:
    rng = np.random.default_rng(bins)
    p, truth = probabilities(rng, 300, 4), rng.integers(0, 4, 300)
    p[:3] = [[1, 0, 0, 0], [0.25] * 4, [0.2, 0.8, 0, 0]]  # on edges of bins
    total = 0.0
    for i in range(bins):
        members = [j for j in range(300) if i / bins < max(p[j]) <= (i + 1) / bins]
        if members:
            accuracy = sum(p[j].tolist().index(max(p[j])) == truth[j] for j in members) / len(members)
            total += len(members) / 300 * abs(accuracy - sum(max(p[j]) for j in members) / len(members))
    assert ece(p, truth, bins) == pytest.approx(total, abs=1e-12)


def test_ece_of_perfect_and_of_too_sure_probabilities() -> None:
    rng = np.random.default_rng(0)
    p = probabilities(rng, 200_000, 5)
    truth = drawn(rng, p)
    assert ece(p, truth) < 0.005  # of 15 bins, each with a deviation of about 0.5 / sqrt(N / 15)
    sure = np.eye(5)[p.argmax(1)]
    assert ece(sure, truth) == pytest.approx(1.0 - (p.argmax(1) == truth).mean(), abs=1e-12)


def test_nll_and_brier_by_loops_and_at_their_ends() -> None:
    rng = np.random.default_rng(1)
    p, truth = probabilities(rng, 50, 3), rng.integers(0, 3, 50)
    assert nll(p, truth) == pytest.approx(-sum(math.log(p[i, t]) for i, t in enumerate(truth)) / 50)
    loop = sum((p[i, c] - (c == t)) ** 2 for i, t in enumerate(truth) for c in range(3)) / 50
    assert brier(p, truth) == pytest.approx(loop)
    right, wrong = np.eye(3)[truth], np.eye(3)[(truth + 1) % 3]
    assert (brier(right, truth), brier(wrong, truth)) == (0.0, 2.0)
    assert nll(right, truth) == pytest.approx(0.0, abs=1e-12)
    assert nll(wrong, truth) == pytest.approx(-math.log(np.finfo(float).eps))
    uniform = np.full((50, 3), 1 / 3)
    assert nll(uniform, truth) == pytest.approx(math.log(3)) and brier(uniform, truth) == pytest.approx(2 / 3)
    assert nll(p[:, :2] / p[:, :2].sum(1, keepdims=True), np.zeros(50, int)) > 0  # a class absent from the truth


@pytest.mark.parametrize("measure", [ece, nll, brier])
def test_votes_are_not_probabilities(measure: Callable[..., float]) -> None:
    for scores in (np.array([[3.0, 1.0]]), np.array([[1.5, -0.5]]), np.array([[math.nan, 1.0]])):
        with pytest.raises(ValueError, match="not probabilities"):
            measure(scores, np.array([0]))


def test_kappa_equals_a_loop_and_has_known_values() -> None:
    rng = np.random.default_rng(2)
    scores, truth = rng.random((80, 4)), rng.integers(0, 4, 80)
    guess = scores.argmax(1)
    seen = sum((g - t) ** 2 for g, t in zip(guess, truth, strict=True)) / 80
    chance = sum((g - t) ** 2 for g in guess for t in truth) / 80**2
    assert kappa(scores, truth) == pytest.approx(1 - seen / chance)
    assert kappa(np.eye(4)[truth], truth) == 1.0
    assert kappa(np.eye(3)[[2, 1, 0]], np.array([0, 1, 2])) == pytest.approx(-1.0)
    grades = np.repeat(np.arange(4), 20)
    near, far = np.eye(4)[grades ^ 1], np.eye(4)[(grades + 2) % 4]  # both wrong everywhere, by one grade and by two
    assert kappa(near, grades) > 0 > kappa(far, grades)
    assert math.isnan(kappa(np.eye(3)[[1, 1]], np.array([1, 1])))


def test_sensitivity_and_specificity_by_hand() -> None:
    # Guesses are 0, 1, 0, 0 for 0, 1, 1, 2: class 0 is found and twice mistaken, 1 half found, 2 never guessed.
    assert sensitivity(SCORES, TRUTH).tolist() == [1.0, 0.5, 0.0]
    assert specificity(SCORES, TRUTH).tolist() == pytest.approx([1 / 3, 1.0, 1.0])
    one = np.zeros(4, dtype=int)
    assert sensitivity(SCORES, one)[0] == 3 / 4 and np.isnan(sensitivity(SCORES, one)[1:]).all()
    assert np.isnan(specificity(SCORES, one)[0]) and specificity(SCORES, one)[1:].tolist() == [3 / 4, 1.0]
    rng = np.random.default_rng(3)
    scores, truth = rng.random((60, 5)), rng.integers(0, 5, 60)
    assert sensitivity(scores, truth).mean() == pytest.approx(metrics(scores, truth)["balanced"])


def test_the_bootstrap_covers_a_share_as_often_as_it_says() -> None:
    """200 data sets of 100 throws at 0.3: as many intervals hold 0.3 as those of endless draws, which are binomial,
    within four deviations; and these hold it about as often as they say."""
    held = [k for k in range(101) if binom.ppf(0.05, 100, k / 100) <= 30 <= binom.ppf(0.95, 100, k / 100)]
    wanted = sum(binom.pmf(k, 100, 0.3) for k in held)
    assert wanted == pytest.approx(0.9, abs=0.03)
    hits = 0
    for seed in range(200):
        throws = (np.random.default_rng(seed).random(100) < 0.3).astype(float)
        found = interval(lambda x: float(x.mean()), [throws], draws=200, seed=seed, level=0.9)
        assert found.value == throws.mean() and found.low <= found.value <= found.high
        hits += found.low <= 0.3 <= found.high
    assert abs(hits - 200 * wanted) < 4 * math.sqrt(200 * wanted * (1 - wanted))


def test_the_width_of_a_mean_is_the_closed_form() -> None:
    values = np.random.default_rng(4).normal(size=400)
    found = interval(lambda x: float(x.mean()), [values], draws=4000)
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def test_groups_of_one_are_items_and_groups_move_together() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=60)
    names = np.array([f"{i}" for i in range(60)])
    alone = np.array([None] * 60, dtype=object)
    wanted = interval(mean, [values], draws=100)
    assert interval(mean, [values], names, draws=100) == interval(mean, [values], alone, draws=100) == wanted
    assert interval(mean, [values], draws=100, seed=1) != wanted
    # 20 patients, each with 9 images that are the same: as sure as 20 images, not as 180.
    patients = np.repeat(rng.normal(size=20), 9)
    found = interval(mean, [patients], np.repeat(np.arange(20), 9), draws=300)
    twenty = interval(mean, [patients[::9]], draws=300)
    assert (found.low, found.high) == pytest.approx((twenty.low, twenty.high), abs=1e-12)
    naive = interval(mean, [patients], draws=300)
    assert (found.high - found.low) / (naive.high - naive.low) == pytest.approx(3.0, rel=0.2)
    one = interval(mean, [values], np.full(60, "one patient"), draws=10)
    assert one == Interval(values.mean(), None, None)
    assert interval(mean, [values[:1]]) == Interval(values[0], None, None)
    assert json.dumps(asdict(one), allow_nan=False) == f'{{"value": {values.mean()}, "low": null, "high": null}}'


def test_draws_of_which_nothing_can_be_said_are_left_out() -> None:
    """Of four items with one of the second class, about a third of the draws have one class only and no area."""
    scores, truth = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]]), np.array([0, 0, 0, 1])
    found = interval(lambda s, t: metrics(s, t)["auroc"], [scores, truth], draws=50)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    for nothing in (None, math.nan):
        assert interval(lambda x, nothing=nothing: nothing, [truth], draws=5) == Interval(None, None, None)


def test_a_paired_interval_is_that_of_the_difference_of_each_item() -> None:
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 2, 200)
    hard = rng.random(200) < 0.4  # both are wrong there, one is wrong on some more
    one, other = np.where(hard, 1 - truth, truth), np.where(hard | (np.arange(200) < 12), 1 - truth, truth)

    def accuracy(guess: np.ndarray, truth: np.ndarray) -> float:
        return float((guess == truth).mean())

    found = paired_interval(accuracy, one, other, [truth], draws=500)
    gain = (one == truth).astype(float) - (other == truth)
    each = interval(mean, [gain], draws=500)
    assert (found.value, found.low, found.high) == pytest.approx((each.value, each.low, each.high))
    assert found.low > 0  # sure, though either alone is not known as well
    alone = interval(accuracy, [one, truth], draws=500)
    assert found.high - found.low < 0.6 * (alone.high - alone.low)
    assert paired_interval(accuracy, one, one, [truth], draws=50) == Interval(0.0, 0.0, 0.0)


def test_a_gain_over_draws_of_labels_has_the_width_of_both_kinds_of_chance() -> None:
    """Hits are of an item's own ease and of a draw's own luck: the variance of the mean is the sum of that of 400 items
    and of that of 10 draws. The bootstrap of 10 draws sees nine tenths of the latter."""
    rng = np.random.default_rng(7)
    ease, luck = rng.normal(0.3, 1.0, (1, 400)), rng.normal(0.0, 0.2, (10, 1))
    one, other = ease + luck, np.zeros((10, 400))
    found = paired_gain(one, other, draws=4000)
    assert found.value == pytest.approx(one.mean())
    error = math.sqrt(ease.var() / 400 + luck.var() / 10)
    assert found.low == pytest.approx(one.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(one.mean() + 1.96 * error, abs=0.15 * error)
    # What both have in common, items or draws, widens nothing.
    shifted = paired_gain(one + 0.1, one)
    assert (shifted.value, shifted.low, shifted.high) == pytest.approx((0.1, 0.1, 0.1))
    # One draw against ten: the ten are drawn alone.
    alone = paired_gain(ease, one, draws=4000)
    assert (alone.high - alone.low) / 2 == pytest.approx(1.96 * luck.std() / math.sqrt(10), rel=0.15)


def test_a_gain_of_balanced_accuracy_is_that_of_a_slow_bootstrap() -> None:
    rng = np.random.default_rng(9)
    truth = np.array([0] * 40 + [1] * 15 + [2] * 5)
    one, other = rng.random((3, 60)) < np.array([0.9, 0.7, 0.6])[truth], rng.random((3, 60)) < 0.6
    patients = rng.integers(0, 25, 60)
    names = [f"p{number}" for number in patients]
    found = paired_gain(one, other, names, draws=3000, weights=balancing(truth))
    mine, theirs = (np.mean([side[:, truth == c].mean() for c in range(3)]) for side in (one, other))
    assert found.value == pytest.approx(mine - theirs)
    members, weight = [np.flatnonzero(patients == p) for p in np.unique(patients)], [1 / 120, 1 / 45, 1 / 15]
    drawn = []
    for _ in range(1500):  # patients and draws of the labels, with replacement; each image counts by its class
        images = [i for p in rng.integers(0, len(members), len(members)) for i in members[p]]
        rows = rng.integers(0, 3, 3)
        every = sum(weight[truth[i]] for i in images)
        parts = [sum(weight[truth[i]] * (float(one[r, i]) - other[r, i]) for i in images) / every for r in rows]
        drawn.append(sum(parts) / 3)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_the_rule_for_uneven_classes() -> None:
    assert leading(np.repeat([0, 1], [30, 20])) == "top1" and leading(np.repeat([0, 1], [31, 20])) == "balanced"
    assert leading(np.repeat([0, 2], [20, 20])) == "top1"  # a class without items does not count
    truth = np.repeat([0, 2], [30, 10])
    assert balancing(truth)[[0, 39]] == pytest.approx([1 / 60, 1 / 20]) and balancing(truth).sum() == pytest.approx(1)


def test_the_groups_of_a_gain_move_together() -> None:
    patients = np.repeat(np.random.default_rng(8).random((3, 20)) < 0.5, 9, axis=1)  # 9 images each, all alike
    nothing = np.zeros_like(patients)
    found = paired_gain(patients, nothing, np.repeat(np.arange(20), 9), draws=300)
    twenty = paired_gain(patients[:, ::9], nothing[:, ::9], draws=300)
    assert (found.low, found.high) == pytest.approx((twenty.low, twenty.high), abs=1e-12)
    one = paired_gain(patients, nothing, np.full(180, "one patient"))
    assert one == Interval(float(patients.mean()), None, None)
    with pytest.raises(ValueError, match="180 and 20 items"):
        paired_gain(patients, patients[:, ::9])


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\] items"):
        interval(mean, [np.zeros(3), np.zeros(4)])
    with pytest.raises(ValueError, match=r"\[0\] items"):
        interval(mean, [np.zeros(0)])
    with pytest.raises(ValueError, match="level must be between 0 and 1, not 95"):
        interval(mean, [np.zeros(3)], level=95)
    with pytest.raises(ValueError, match="2 groups for 3 items"):
        interval(mean, [np.zeros(3)], np.array(["a", "b"]))
