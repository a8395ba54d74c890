"""All probes of one set of features, and what they say of two sets, on features whose worth is known."""

from __future__ import annotations

import numpy as np
import pytest

from selfsight.probing.linear import draw_half
from selfsight.probing.probes import Labelled, gains, measure, measure_commonest, more_labels

CLASSES = ["a", "b", "c"]


def side(count: int, noise: float, seed: int, shares: tuple[float, ...] = (0.6, 0.3, 0.1)) -> Labelled:
    """Items around one corner of a cube for each class, as far off as `noise` says."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(shares), size=count, p=shares)
    return Labelled(np.eye(8)[labels] + rng.normal(0, noise, (count, 8)), labels, [None] * count)


def test_a_half_has_half_of_each_class_and_the_larger_half_of_an_odd_number() -> None:
    labels = np.array([0] * 10 + [1] * 5 + [2])
    half = draw_half(labels, 0)
    assert np.bincount(labels[half]).tolist() == [5, 3, 1] and len(set(half)) == 9
    assert set(half) != set(draw_half(labels, 1))


def test_the_commonest_class_is_that_of_train_and_has_the_closed_form() -> None:
    train, test = side(500, 0.1, 0), side(400, 0.1, 1, (0.2, 0.3, 0.5))
    found = measure_commonest(train, test, CLASSES, ["1", "all"]).probes
    share = np.bincount(test.labels) / 400
    assert found.linear["top1"] == found.few_shot["1"].mean == found.few_shot["all"].mean == share[0]
    assert found.linear["top2"] == pytest.approx(share[0] + share[1])  # the two commonest of train
    assert found.linear["auroc"] == 0.5 and found.linear["balanced"] == pytest.approx(1 / 3)
    assert found.recall == {"a": 1.0, "b": 0.0, "c": 0.0} and found.few_shot["1"].std == 0.0 and found.knn == {}


def test_a_gain_is_proven_for_better_features_and_not_for_the_same() -> None:
    noise = (0.25, 0.8)
    trains, tests = [side(150, some, 0) for some in noise], [side(300, some, 1) for some in noise]
    clear, blurred = (measure(train, test, CLASSES, ["2", "all"], 4) for train, test in zip(trains, tests, strict=True))
    even = tests[0]._replace(labels=np.arange(300) % 3)  # so that top-1 leads
    found = gains(clear, blurred, even)
    assert list(found) == ["knn", "2", "all"]
    for count, gain in found.items():
        assert gain.sign == 1
        mine, theirs = (
            m.probes.knn["top1"] if count == "knn" else m.probes.few_shot[count].mean for m in (clear, blurred)
        )
        assert gain.value == pytest.approx(mine - theirs)
    assert all((gain.value, gain.sign) == (0.0, 0) for gain in gains(clear, clear, tests[0]).values())
    assert clear.hits["2"].shape == (4, 300) and clear.probes.few_shot["2"].std > 0
    for name, share in clear.probes.recall.items():
        members = tests[0].labels == CLASSES.index(name)
        assert share == pytest.approx(clear.hits["all"][0][members].mean())


def test_where_classes_are_uneven_gains_are_of_balanced_accuracy() -> None:
    train, test = side(300, 0.5, 0), side(400, 0.5, 1)
    good, blind = measure(train, test, CLASSES, ["2", "all"], 3), measure_commonest(train, test, CLASSES, ["2", "all"])
    for count, gain in gains(good, blind, test).items():
        mine, theirs = good.probes.few_shot[count], blind.probes.few_shot[count]
        assert mine.balanced and theirs.balanced and theirs.auroc
        assert gain.value == pytest.approx(mine.balanced.mean - theirs.balanced.mean)
        assert theirs.balanced.mean == pytest.approx(1 / 3) and theirs.auroc.mean == 0.5
    few = good.probes.few_shot
    assert few["all"].balanced and few["all"].balanced.mean == good.probes.linear["balanced"]
    assert few["all"].auroc and few["all"].auroc.mean == good.probes.linear["auroc"]
    recalls = [[hits[test.labels == c].mean() for c in range(3)] for hits in good.hits["2"]]
    draws = np.mean(recalls, axis=1)  # [S]
    assert few["2"].balanced and few["2"].balanced.mean == pytest.approx(draws.mean())
    assert few["2"].balanced.std == pytest.approx(draws.std(ddof=1))
    more = more_labels(good, train, test, 3)["2"]
    assert more.value == pytest.approx(few["all"].balanced.mean - few["2"].balanced.mean)


def test_more_labels_help_where_two_are_too_few() -> None:
    train, test = (side(n, 0.8, seed, (1 / 3, 1 / 3, 1 / 3)) for n, seed in ((150, 0), (600, 1)))
    measured = measure(train, test, CLASSES, ["2", "all"], 4)
    more = more_labels(measured, train, test, 4)
    assert list(more) == ["2", "half"]
    assert more["2"].sign == 1 and more["2"].value > more["half"].value
    assert more["2"].value == pytest.approx(measured.probes.few_shot["all"].mean - measured.probes.few_shot["2"].mean)
    one_each = Labelled(np.eye(8)[:3], np.arange(3), [None] * 3)  # has no half
    assert list(more_labels(measure(one_each, test, CLASSES, ["all"], 2), one_each, test, 2)) == []


def test_the_figures_say_how_far_neighbours_were_whitened() -> None:
    train, test = side(200, 0.3, 0), side(200, 0.3, 1)
    drowning = np.diag([1.0, 1.0, 1.0, 9.0, 9.0, 9.0, 4.0, 4.0])  # what does not tell classes apart drowns the rest
    drowned = [some._replace(features=some.features @ drowning) for some in (train, test)]
    found = measure(*drowned, CLASSES, ["all"], 1).probes.knn
    assert found["whitening"] == 0.5 and found["top1"] > 0.9
    clear = side(200, 0.02, 0)
    assert measure(clear, clear, CLASSES, ["all"], 1).probes.knn["whitening"] == 0.0
