"""Suggestions against a slow reference, and how much labels change them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from plates import write_plates

from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.pages.answers import Answers
from selfsight.pages.neighbours import WINDOW, Change, K, Neighbours, Watch


def slow(features: np.ndarray, labels: dict[int, tuple[str, ...]], asked: int) -> dict[str, float]:
    """The formula of the docstring, item by item."""
    classes = sorted({name for names in labels.values() for name in names})
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    near = sorted(((float(unit[asked] @ unit[i]), names) for i, names in labels.items() if i != asked), reverse=True)[
        :K
    ]
    weights = [math.exp((cosine - near[0][0]) / 0.07) for cosine, _ in near]
    votes = {c: sum(w for w, (_, names) in zip(weights, near, strict=True) if c in names) for c in classes}
    return {c: (vote + 1 / len(classes)) / (sum(weights) + 1) for c, vote in votes.items()}


@pytest.mark.parametrize("kind", ["class", "classes"])
def test_as_the_formula_says(tmp_path: Path, kind: str) -> None:
    items = open_source(write_plates(tmp_path / "plates", 40, size=(8, 8)))
    answers = Answers(items, kind=kind)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 5)).astype(np.float32)
    suggest = Neighbours(answers.ids[::-1], features[::-1].copy(), answers)
    assert suggest(answers.ids) == {}
    answers.give(answers.ids[0], ["a"])
    assert suggest(answers.ids) == {}  # one class: nothing to choose from
    labels = {0: ("a",)}
    for i in range(1, 25):
        labels[i] = ("a", "c") if kind == "classes" and i % 3 == 0 else ("abc"[i % 3],)
        answers.give(answers.ids[i], labels[i])
    found = suggest([*answers.ids, "unknown"])
    assert found.keys() == set(answers.ids)
    for place, item in enumerate(answers.ids):
        wanted = slow(features, labels, place)
        assert dict(found[item]) == pytest.approx(wanted, abs=1e-5)
        assert [share for _, share in found[item]] == sorted(dict(found[item]).values(), reverse=True)
        if kind == "class":
            assert sum(dict(found[item]).values()) == pytest.approx(1.0)
    assert max(share for said in found.values() for _, share in said) < 1.0


def test_an_item_of_two_classes_that_is_alone_says_nothing_of_itself(items: Collection) -> None:
    answers = Answers(items, kind="classes")
    answers.give(answers.ids[0], ["a", "b"])
    suggest = Neighbours(answers.ids, np.eye(12, dtype=np.float32), answers)
    assert dict(suggest([answers.ids[0]])[answers.ids[0]]) == {"a": 0.5, "b": 0.5}


def test_labels_that_change_nothing_are_noticed(tmp_path: Path) -> None:
    """Two tight groups: the first labels decide everything, the next twenty nothing, a third group something."""
    items = open_source(write_plates(tmp_path / "plates", 100, size=(8, 8)))
    answers = Answers(items)
    rng = np.random.default_rng(0)
    centres = np.array([[1, 0, 0], [0, 1, 0], [0.3, 0, 1]])[np.repeat([0, 1, 2], [40, 40, 20])]
    features = (centres + rng.normal(0, 0.01, (100, 3))).astype(np.float32)
    suggest = Neighbours(answers.ids, features, answers)
    watch = Watch(suggest, answers)

    def label(places: range, name: str) -> None:
        for place in places:
            answers.give(answers.ids[place], [name])
            watch.answered()

    label(range(0, 10), "a")
    label(range(40, 49), "b")
    assert watch.change is None  # nineteen answers
    label(range(49, 50), "b")
    assert watch.change == Change(WINDOW, 1.0, 80, False)  # nothing was suggested before
    label(range(10, 20), "a")
    label(range(50, 60), "b")
    assert watch.change == Change(WINDOW, 0.0, 60, True)
    label(range(80, 85), "c")
    label(range(20, 35), "a")
    assert watch.change == Change(WINDOW, 15 / 40, 40, False)  # the third group
    for _ in range(20):
        answers.undo()
        watch.answered()
    assert watch.change == Change(WINDOW, 15 / 40, 40, False)  # taking back is no answer


def test_no_hint_where_a_new_class_came_or_nothing_is_left(items: Collection) -> None:
    answers = Answers(items)
    watch = Watch(lambda ids: {item: [("a", 0.9)] for item in ids}, answers)

    for i in range(WINDOW):
        answers.give(answers.ids[i % 6], [("a", "b")[i // 6 % 2]])
        watch.answered()
    assert watch.change == Change(WINDOW, 0.0, 6, False)  # two classes more than at the start
    for name in "aba":
        for item in answers.ids:
            answers.give(item, [name])
            watch.answered()
    assert watch.change is None
