"""Temperatures, sets that cover and operating points, against closed forms and simulations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import betabinom

from selfsight.errors import DataError, SelfsightError
from selfsight.heads import calibration as cal
from selfsight.heads.targets import Targets


def drawn(rng: np.random.Generator, p: np.ndarray) -> Targets:
    """Classes drawn by the probabilities themselves."""
    numbers = np.array([rng.choice(p.shape[1], p=row) for row in p])
    return Targets("class", tuple("abcdefgh"[: p.shape[1]]), np.eye(p.shape[1], dtype=np.float32)[numbers])


@pytest.mark.parametrize("sharper", [0.25, 1.0, 3.0])
def test_the_temperature_that_was_applied_is_found(sharper: float) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 4)) * 2
    targets = drawn(rng, cal.probabilities("class", scores))
    assert cal.fit_temperature(targets, scores * sharper) == pytest.approx(sharper, rel=0.1)


def test_the_temperature_of_a_few_items_stays_near_one() -> None:
    targets = Targets("class", ("a", "b"), np.eye(2, dtype=np.float32))
    assert 0.3 < cal.fit_temperature(targets, np.array([[9.0, 0.0], [0.0, 9.0]])) < 1.0  # both right: not without bound


def test_ranked_probability_score_of_a_grade() -> None:
    targets = Targets("grade", ("0", "1", "2"), np.array([[0, 0, 1]], np.float32))
    p = np.log(np.array([[0.5, 0.3, 0.2]]))
    assert cal.losses(targets, p)[0] == pytest.approx(0.5**2 + 0.8**2)  # cumulated 0.5, 0.8 against 0, 0


def test_sets_cover_as_split_conformal_theory_says() -> None:
    """Coverage of m new items by n calibrating ones is beta-binomial(m, k, n + 1 - k), k = ceil((n + 1) 0.9)."""
    rng = np.random.default_rng(1)
    n, m, k = 99, 400, 90
    law = betabinom(m, k, n + 1 - k)
    hits = []
    for _ in range(200):
        scores = rng.normal(size=(n + m, 3))
        p = cal.probabilities("class", scores)
        targets = drawn(rng, cal.probabilities("class", scores * 0.5))  # the head is too sure
        threshold = cal.set_threshold(targets.take(np.arange(n)), p[:n], 0.9)
        assert threshold is not None
        hits.append(int((targets.values[n:] * (p[n:] >= threshold)).sum()))
    assert np.mean(hits) == pytest.approx(law.mean(), abs=4 * law.std() / np.sqrt(200))
    assert np.std(hits) == pytest.approx(law.std(), rel=0.2)


def test_too_few_items_promise_nothing() -> None:
    assert cal.conformal_rank(8, 0.9) is None and cal.conformal_rank(9, 0.9) == 9 and cal.conformal_rank(99, 0.9) == 90
    few = Targets("class", ("a", "b"), np.eye(2, dtype=np.float32))
    assert cal.set_threshold(few, np.full((2, 2), 0.5), 0.9) is None


def test_sets_of_several_classes_hold_their_share() -> None:
    rng = np.random.default_rng(2)
    shares = []
    for _ in range(60):
        p = rng.uniform(size=(300, 5))
        values = (rng.uniform(size=p.shape) < p).astype(np.float32)
        targets = Targets("classes", tuple("abcde"), values)
        threshold = cal.set_threshold(targets.take(np.arange(100)), p[:100], 0.9)
        assert threshold is not None
        new = values[100:]
        some = new.sum(1) > 0
        shares.append(((new * (p[100:] >= threshold)).sum(1)[some] / new.sum(1)[some]).mean())
    assert 0.895 < np.mean(shares) < 0.93  # at least 0.9 on average, and not much more


def test_the_interval_of_a_number_covers() -> None:
    rng = np.random.default_rng(3)
    inside = []
    for _ in range(200):
        truth, value = rng.normal(size=200), np.zeros(200)
        width = cal.half_width(truth[:99], value[:99], 0.9)
        assert width is not None
        inside.append((np.abs(truth[99:]) <= width).mean())
    assert np.mean(inside) == pytest.approx(0.9, abs=0.01)


def test_miss_rate_holds_for_new_items_and_is_priced() -> None:
    rng = np.random.default_rng(4)
    missed = []
    for _ in range(300):
        truth = rng.uniform(size=600) < 0.3
        odds = rng.normal(size=600) + 2 * truth
        p = np.stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))], 1)
        targets = Targets("class", ("good", "bad"), np.stack([~truth, truth], 1).astype(np.float32))
        rule = cal.at_miss_rate(targets.take(np.arange(300)), p[:300], 0.05, "bad")
        said = rule.answers(targets.classes, p[300:])
        missed.append((said[truth[300:]] == 0).mean())
        alarms = (p[:300][~truth[:300], 1] >= rule.threshold).mean()
        assert rule.price["false_alarms"].value == pytest.approx(alarms)
    assert 0.035 < np.mean(missed) <= 0.052  # at most what was promised, on average over calibrations


def test_a_miss_rate_that_cannot_be_promised_says_how_many_are_needed() -> None:
    targets = Targets("class", ("good", "bad"), np.eye(2, dtype=np.float32)[np.array([0] * 50 + [1] * 40)])
    with pytest.raises(DataError, match=r"40 labelled items of bad cannot promise .* 1 % are missed: 99 are needed"):
        cal.at_miss_rate(targets, np.full((90, 2), 0.5), 0.01, "bad")


def test_costs_choose_the_least_expected_cost(tmp_path: Path) -> None:
    (tmp_path / "costs.csv").write_text("truth,answer,cost\nbad,good,10\n")
    costs = cal.read_costs(str(tmp_path / "costs.csv"), ("bad", "good"))
    assert costs.tolist() == [[0.0, 10.0], [1.0, 0.0]]
    rule = cal.Decision("costs", costs=costs.tolist())
    p = np.array([[0.08, 0.92], [0.1, 0.9], [0.5, 0.5]])
    assert rule.answers(("bad", "good"), p).tolist() == [1, 0, 0]  # bad from a probability of 1 / 11 on
    for text, message in (
        ("truth,answer\nbad,good\n", "has no column cost"),
        ("truth,answer,cost\nbaad,good,1\n", "no class 'baad'"),
        ("truth,answer,cost\nbad,good,much\n", "'much' is not a number"),
    ):
        (tmp_path / "costs.csv").write_text(text)
        with pytest.raises(SelfsightError, match=message):
            cal.read_costs(str(tmp_path / "costs.csv"), ("bad", "good"))


def test_uneven_classes_are_decided_against_their_shares_where_that_pays() -> None:
    rng = np.random.default_rng(5)
    rare = rng.uniform(size=2000) < 0.1
    odds = rng.normal(size=2000) + 2.0 * rare - 2.0 - np.log(9.0)  # log-odds of the model that drew them
    p = cal.probabilities("class", np.stack([np.zeros(2000), 2.0 * odds + 2.0 + np.log(9.0)], 1))
    targets = Targets("class", ("a", "b"), np.eye(2, dtype=np.float32)[rare.astype(int)])
    rule = cal.balanced(targets, p, targets)
    assert rule.rule == "balanced" and rule.weights[1] > rule.weights[0]
    found = [(said[rare] == 1).mean() for said in (rule.answers(targets.classes, p), p.argmax(1))]
    assert found[0] > found[1] + 0.1


def test_a_handful_of_a_class_that_nothing_tells_is_not_called_everywhere() -> None:
    rng = np.random.default_rng(6)
    numbers = np.array([0] * 300 + [1] * 3 + [2] * 2)
    targets = Targets("class", ("a", "b", "c"), np.eye(3, dtype=np.float32)[numbers])
    p = np.tile(targets.values.mean(0), (305, 1)) * rng.uniform(0.7, 1.3, (305, 3))
    rule = cal.balanced(targets, p / p.sum(1, keepdims=True), targets)
    assert (rule.answers(targets.classes, p) == numbers).mean() > 0.9


def test_wilson_interval() -> None:
    found = cal.share_of(np.array([True] * 5 + [False] * 15))
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.1119, 0.4687), abs=1e-4)  # Newcombe 1998
