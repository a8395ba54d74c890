"""The metrics of heads, against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from selfsight.heads.metrics import STATISTICS, Answers, difference, figures, recall
from selfsight.heads.targets import Targets
from selfsight.probing.metrics import kappa


@pytest.fixture
def three() -> tuple[Targets, Answers]:
    rng = np.random.default_rng(0)
    numbers = rng.choice(3, 300, p=[0.6, 0.3, 0.1])
    scores = rng.normal(size=(300, 3)) + 1.5 * np.eye(3)[numbers]
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    said = Answers(p, p.argmax(1), p >= 0.2, np.zeros(300, bool))
    return Targets("grade", ("0", "1", "2"), np.eye(3, dtype=np.float32)[numbers]), said


def test_they_are_scikit_learns(three: tuple[Targets, Answers]) -> None:
    targets, said = three
    truth, p, decided = targets.numbers, said.probabilities, said.decided
    found = {name: value.value for name, value in figures(targets, said).items()}
    assert found["top1"] == pytest.approx(sk.accuracy_score(truth, decided))
    assert found["balanced"] == pytest.approx(sk.balanced_accuracy_score(truth, decided))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, decided, average="macro"))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, p, multi_class="ovr"))
    assert found["kappa"] == pytest.approx(kappa(p, truth))
    assert found["top2"] == pytest.approx(sk.top_k_accuracy_score(truth, p, k=2))
    assert found["coverage"] == pytest.approx(np.mean([p[i, c] >= 0.2 for i, c in enumerate(truth)]))


def test_several_and_numbers() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(size=(200, 4))
    values = (rng.uniform(size=p.shape) < p).astype(np.float32)
    said = Answers(p, p >= 0.5, None, np.zeros(200, bool))
    found = figures(Targets("classes", tuple("abcd"), values), said)
    assert found["map"].value == pytest.approx(sk.average_precision_score(values, p, average="macro"))
    assert found["macro_f1"].value == pytest.approx(sk.f1_score(values, p >= 0.5, average="macro"))
    truth, value = rng.normal(size=(50, 1)), rng.normal(size=(50, 1))
    ends = np.concatenate([value - 1, value + 1], 1)
    found = figures(Targets("number", (), truth), Answers(value, value, ends, np.zeros(50, bool)))
    assert found["mae"].value == pytest.approx(sk.mean_absolute_error(truth, value))
    assert found["r2"].value == pytest.approx(sk.r2_score(truth, value))
    assert found["coverage"].value == pytest.approx((np.abs(truth - value) <= 1).mean())


def test_what_is_left_open_is_counted_and_the_rest_is_measured(three: tuple[Targets, Answers]) -> None:
    targets, said = three
    left = said.probabilities.max(1) < 0.6
    found = figures(targets, Answers(said.probabilities, said.decided, None, left))
    right = said.decided == targets.numbers
    assert found["abstained"].value == pytest.approx(left.mean())
    assert found["top1_of_the_rest"].value == pytest.approx(right[~left].mean())


def test_groups_widen_the_interval(three: tuple[Targets, Answers]) -> None:
    targets, said = three
    twice = Targets(targets.kind, targets.classes, np.repeat(targets.values, 4, 0))
    many = Answers(*(np.repeat(part, 4, 0) for part in (said.probabilities, said.decided, said.sets, said.abstained)))  # type: ignore[arg-type]
    alone = figures(twice, many)["top1"]
    grouped = figures(twice, many, [str(i // 4) for i in range(1200)])["top1"]
    width = [float(found.high or 0) - float(found.low or 0) for found in (alone, grouped)]
    assert width[1] == pytest.approx(2 * width[0], rel=0.2)  # four copies tell no more than one


def test_a_difference_is_paired(three: tuple[Targets, Answers]) -> None:
    targets, said = three
    right = targets.numbers
    better = said.decided.copy()
    better[:30] = right[:30]
    found = difference(targets, Answers(said.probabilities, better, None, said.abstained), said)
    gained = (better == right).mean() - (said.decided == right).mean()
    assert found["top1"].value == pytest.approx(gained) and found["top1"].sign == 1
    assert found["auroc"].value == 0 and found["auroc"].low == 0  # of the same probabilities


def test_recall_of_each_class(three: tuple[Targets, Answers]) -> None:
    targets, said = three
    found = recall(targets, said)["2"]
    truth, chosen = targets.numbers == 2, said.decided == 2
    assert found["sensitivity"].value == pytest.approx(chosen[truth].mean())
    assert found["specificity"].value == pytest.approx((~chosen[~truth]).mean())


def test_names_are_those_of_the_design() -> None:
    assert set(STATISTICS["class"]) | {"coverage"} == {
        "top1",
        "top2",
        "balanced",
        "macro_f1",
        "auroc",
        "ece",
        "coverage",
    }
    assert set(STATISTICS["number"]) == {"mae", "r2"} and "map" in STATISTICS["classes"]
