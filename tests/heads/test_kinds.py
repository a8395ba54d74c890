"""What is learnt of classes, several classes, grades and numbers: constructed data with known answers, and patients."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import tiny_encoder

import selfsight
from selfsight.data.labels import Kind, Labels, Value
from selfsight.encoders.store import save
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.calibration import Decision
from selfsight.heads.classify import Learnt, Wish, learn
from selfsight.heads.classify_voice import answers
from selfsight.heads.metrics import Answers

DATA = Path(os.environ.get("SELFSIGHT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def labels_of(values: list[Value | None], kind: Kind = "class", groups: list[str] | None = None) -> Labels:
    ids = [f"{i:04d}" for i in range(len(values))]
    columns = {"id": ids, "content_hash": ids} | ({"group": groups} if groups else {})
    return Labels(kind, pa.table(columns), tuple(values), "made")


def said(learnt: Learnt, features: np.ndarray) -> Answers:
    with torch.inference_mode():
        found = learnt.calibrate(
            {"scores": learnt.scorer(torch.from_numpy(features)), "distance": torch.zeros(len(features))}
        )
    arrays = {name: tensor.double().numpy() for name, tensor in found.items() if name != "novel"}
    return answers(learnt.targets.kind, learnt.targets.classes, arrays, learnt.decision, learnt.threshold)


def directions(rng: np.random.Generator, count: int, wide: int = 8) -> np.ndarray:
    """[count, wide] float32, random points on the sphere."""
    x = rng.normal(size=(count, wide)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_several_classes_with_known_probabilities() -> None:
    rng = np.random.default_rng(0)
    x = directions(rng, 3000)
    truth = 1 / (1 + np.exp(-(12 * x[:, :3] - [0.0, 1.0, 2.0])))
    has = rng.uniform(size=truth.shape) < truth
    values: list[Value | None] = [
        tuple(name for name, there in zip("abc", row, strict=True) if there) for row in has[:2000]
    ]
    learnt = learn(labels_of(values, "classes"), x[:2000], Wish())
    found = said(learnt, x[2000:])
    assert learnt.method == "linear" and np.abs(found.probabilities - truth[2000:]).mean() < 0.03
    assert found.sets is not None
    new = has[2000:]
    some = new.any(1)
    share = ((found.sets & new).sum(1)[some] / new.sum(1)[some]).mean()
    assert 0.87 < share < 0.95


def test_grades_know_their_order() -> None:
    """Grades along a line with noise: the ordinal model is chosen, and its mistakes are by one grade."""
    rng = np.random.default_rng(1)
    x = directions(rng, 700)
    numbers = np.digitize(8 * x[:, 0] + rng.logistic(size=700), [-3, -1, 1, 3])
    learnt = learn(labels_of([str(n) for n in numbers[:200]], "grade"), x[:200], Wish())
    assert learnt.method == "ordinal" and learnt.targets.classes == ("0", "1", "2", "3", "4")
    found = said(learnt, x[200:])
    away = np.abs(found.decided - numbers[200:])
    assert (away <= 1).mean() > 0.85 and found.probabilities.sum(1) == pytest.approx(1.0)


def test_grades_are_in_the_order_of_their_value() -> None:
    assert labels_of(["10", "9", "2"], "grade").classes == ["2", "9", "10"]


def test_a_number_and_its_interval() -> None:
    rng = np.random.default_rng(2)
    x = directions(rng, 2000)
    truth = 500 + 100 * x[:, 0] + rng.normal(size=2000) * 5
    learnt = learn(labels_of([float(value) for value in truth[:300]], "number"), x[:300], Wish())
    found = said(learnt, x[300:])
    assert np.abs(found.probabilities[:, 0] - truth[300:]).mean() == pytest.approx(5 * np.sqrt(2 / np.pi), rel=0.1)
    assert found.sets is not None
    inside = (found.sets[:, 0] <= truth[300:]) & (truth[300:] <= found.sets[:, 1])
    assert 0.85 < inside.mean() < 0.95
    assert found.sets[:, 1] - found.sets[:, 0] == pytest.approx(2 * 1.645 * 5, rel=0.15)


def test_probabilities_of_classes_are_calibrated() -> None:
    rng = np.random.default_rng(3)
    x = directions(rng, 6000)
    logits = 6 * x[:, :4]
    truth = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    numbers = np.array([rng.choice(4, p=row) for row in truth])
    learnt = learn(labels_of([f"c{n}" for n in numbers[:500]]), x[:500], Wish())
    found = said(learnt, x[500:])
    best = found.probabilities.max(1)
    assert best.mean() == pytest.approx((found.decided == numbers[500:]).mean(), abs=0.03)
    assert found.sets is not None
    covered = found.sets[np.arange(5500), numbers[500:]].mean()
    assert 0.86 < covered < 0.94


def test_a_method_that_is_named_is_taken_and_one_that_cannot_be_is_refused() -> None:
    rng = np.random.default_rng(4)
    x = directions(rng, 60)
    values: list[Value | None] = [("a", "b")[int(row[0] > 0)] for row in x]
    assert learn(labels_of(values), x, Wish("knn")).method == "knn"
    with pytest.raises(SelfsightError, match="--method ordinal cannot be had for 60 labels of the kind class"):
        learn(labels_of(values), x, Wish("ordinal"))
    with pytest.raises(SelfsightError, match="Did you mean b"):
        learn(labels_of(values), x, Wish(miss_rate=0.1, positive="B"))
    with pytest.raises(SelfsightError, match=r"from 0\.5 to below 1, not at 1"):
        learn(labels_of(values), x, Wish(coverage=1.0))
    with pytest.raises(DataError, match="All numbers of made are 3"):
        learn(labels_of([3.0] * 10, "number"), x[:10], Wish())


def test_the_miss_rate_is_of_the_rarer_class_unless_one_is_named() -> None:
    rng = np.random.default_rng(5)
    x = directions(rng, 400)
    values: list[Value | None] = [("common", "rare")[int(row[0] > 0.3)] for row in x]
    rule: Decision = learn(labels_of(values), x, Wish("linear", miss_rate=0.05)).decision
    assert (rule.rule, rule.positive) == ("threshold", "rare") and rule.price["miss_rate"].value <= 0.05


def test_labels_of_one_group_cannot_be_measured() -> None:
    rng = np.random.default_rng(6)
    x = directions(rng, 40)
    values: list[Value | None] = [("a", "b")[i % 2] for i in range(40)]
    learnt = learn(labels_of(values, groups=["patient"] * 40), x, Wish())
    assert (learnt.folds == -1).all() and learnt.threshold is None
    assert any("all labels are of one group" in note for note in learnt.notes)


def test_groups_stay_together_and_their_labels_do_not_leak() -> None:
    """Labels are noise, but the same for all pictures of a patient, whose features are alike: a split that tears
    patients apart looks perfect, one that does not looks like chance."""
    rng = np.random.default_rng(7)
    patients = directions(rng, 40, 60)
    x = np.repeat(patients, 5, 0) + 0.01 * directions(rng, 200, 60)
    values: list[Value | None] = [("a", "b")[n] for n in np.repeat(rng.integers(0, 2, 40), 5)]
    groups = [f"P{i // 5}" for i in range(200)]
    torn = learn(labels_of(values), x, Wish("linear"))
    kept = learn(labels_of(values, groups=groups), x, Wish("linear"))
    right = [(one.held.argmax(1) == one.targets.numbers).mean() for one in (torn, kept)]
    assert right[0] == 1.0 and right[1] < 0.75
    assert all(len({kept.folds[i] for i in range(p * 5, p * 5 + 5)}) == 1 for p in range(40))


def test_no_patient_of_a_real_table_is_on_both_sides(tmp_path: Path) -> None:
    if not (DATA / "covid-cxr").is_dir():
        pytest.skip(f"there is no {DATA / 'covid-cxr'}; SELFSIGHT_DATA names another folder")
    save(tiny_encoder(32, channels=1), tmp_path / "encoder")
    table, columns = DATA / "covid-cxr" / "metadata.csv", "path=filename,group=patientid,label=finding"
    selfsight.import_(
        str(table), out=str(tmp_path / "c.lance"), root=str(DATA / "covid-cxr" / "images"), columns=columns
    )
    result = selfsight.train.classify(
        str(tmp_path / "c.lance"), model=str(tmp_path / "encoder"), out=str(tmp_path / "h")
    )
    items = pq.read_table(tmp_path / "h" / "items.parquet").to_pylist()
    folds: dict[str, set[int]] = {}
    for row in items:
        if row["fold"] >= 0:
            folds.setdefault(row["group"], set()).add(row["fold"])
    assert len(folds) > 200 and all(len(some) == 1 for some in folds.values())
    assert len({row["fold"] for row in items} - {-1}) == 5
    low = result.metrics["top1"].low
    assert low is not None and low < (result.commonest or 0.0) + 0.02  # a network that learnt nothing is no better


def test_few_labels_are_held_out_one_of_each_class() -> None:
    """Features are noise, so that half of the answers are right. Were a class short of a label just where it is asked,
    it would hardly ever be guessed: ten folds are right on 15 % here."""
    right = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        values: list[Value | None] = [("a", "b")[i % 2] for i in range(10)]
        learnt = learn(labels_of(values), directions(rng, 10, 100), Wish("linear"))
        assert sorted(np.bincount(learnt.folds)) == [2] * 5
        right.append((learnt.held.argmax(1) == learnt.targets.numbers).mean())
    assert 0.33 < np.mean(right) < 0.6
