"""Off-topic items, label errors, and how many there are: slow references, and what must hold on average."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from selfsight.curation import off_topic as off
from selfsight.curation.automatic import sure
from selfsight.curation.how_many import cut, how_many
from selfsight.curation.label_errors import doubts, label_errors, worst_regions
from selfsight.curation.off_topic import lateness, meeting_heights, off_topic


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def kinds(sizes: list[int], width: float = 0.35, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(features of unit length, the number of each one's kind): clouds around directions that share a part."""
    rng = np.random.default_rng(seed)
    means = 0.8 * unit(rng.normal(size=(len(sizes), 24))) + 0.8 * np.eye(24)[0]
    number = np.repeat(np.arange(len(sizes)), sizes)
    return unit(means[number] + width * rng.normal(size=(len(number), 24)) / 24**0.5), number


def test_meeting_heights_equal_those_of_a_slow_search() -> None:
    units, _ = kinds([30, 20, 4])
    tree = linkage(pdist(units), "average")
    wanted = np.zeros(len(units))
    for height in [0.0, *tree[:, 2]][::-1]:  # cut the tree at each height, from the top
        branch = fcluster(tree, height * (1 + 1e-9), "distance")
        large = np.bincount(branch)[branch] >= 0.2 * len(units)
        wanted[large] = height
    assert meeting_heights(units, 0.2) == pytest.approx(wanted, abs=1e-4)


def test_strangers_come_first_alone_or_as_a_kind_and_a_rare_kind_does_not() -> None:
    units, number = kinds([120, 100, 80, 10])  # the last kind is rare, and valid
    rng = np.random.default_rng(1)
    alone = unit(rng.normal(size=(5, 24)) - np.eye(24)[0])
    clump = unit(-np.eye(24)[0] + 0.1 * rng.normal(size=(15, 24)) / 24**0.5)
    found = off_topic(np.concatenate([units, alone, clump]))
    assert {*found.numbers[:20].tolist()} == {*range(310, 330)}
    common, rare = (np.flatnonzero(one) for one in (number < 3, number == 3))
    late = lateness(np.concatenate([units, alone, clump]))
    assert late[310:].min() - late[rare].max() > late[rare].max() - late[common].mean()  # far from a rare kind too
    assert found.estimated >= 15 and found.high >= 20 and (np.diff(found.score) <= 0).all()


def test_representatives_say_nearly_what_all_say(monkeypatch: pytest.MonkeyPatch) -> None:
    units, _ = kinds([300, 200, 100])
    units = np.concatenate([units, unit(np.random.default_rng(1).normal(size=(12, 24)) - np.eye(24)[0])])
    units = units[np.random.default_rng(2).permutation(len(units))]
    every = lateness(units)
    monkeypatch.setattr(off, "REPRESENTATIVES", 150)
    monkeypatch.setattr(off, "BLOCK", 10_000)
    few = lateness(units)
    assert {*np.argsort(-few)[:12].tolist()} == {*np.argsort(-every)[:12].tolist()}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_items_have_no_strangers(count: int) -> None:
    assert off_topic(np.eye(3, dtype=np.float32)[:count]).estimated == 0


def test_wrong_labels_come_first_and_the_right_one_is_suggested() -> None:
    units, truth = kinds([80, 80, 80, 60])
    said = truth.copy()
    wrong = np.random.default_rng(3).permutation(len(said))[:15]
    said[wrong] = (said[wrong] + 1 + np.arange(15) % 3) % 4
    said[[0, 299]] = -1  # without a label
    wrong = np.setdiff1d(wrong, [0, 299])
    found = label_errors(units, said, ["a", "b", "c", "d"])
    assert {*found.numbers[: len(wrong)].tolist()} == {*wrong.tolist()} and len(found.numbers) == 298
    assert found.suggested is not None
    assert [found.suggested[at] for at in range(len(wrong))] == ["abcd"[truth[n]] for n in found.numbers[: len(wrong)]]
    assert found.low <= len(wrong) <= found.high


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15])
def test_the_number_of_wrong_labels_is_told(share: float) -> None:
    estimates = []
    for seed in range(3):
        units, truth = kinds([150, 150, 150], 0.9, seed)  # kinds that overlap
        said, rng = truth.copy(), np.random.default_rng(seed)
        wrong = rng.permutation(450)[: int(share * 450)]
        said[wrong] = (said[wrong] + rng.integers(1, 3, len(wrong))) % 3
        found = label_errors(units, said, ["a", "b", "c"])
        estimates.append(found.estimated)
        assert found.low <= len(wrong) <= found.high
    assert np.mean(estimates) == pytest.approx(share * 450, abs=8 + 0.25 * share * 450)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_number_is_told_where_wrong_labels_of_a_class_are_all_of_one_other(share: float) -> None:
    """Kinds overlap; a wrong label is always of the one other."""
    units, truth = kinds([200, 200, 200, 200], 0.8)
    estimates = []
    for seed in range(3):
        wrong = np.random.default_rng(seed).permutation(800)[: int(share * 800)]
        said = truth.copy()
        said[wrong] ^= 1
        found = label_errors(units, said, ["a", "b", "c", "d"])
        estimates.append(found.estimated)
        assert found.low <= len(wrong) <= found.high
    assert np.mean(estimates) == pytest.approx(share * 800, rel=0.3)
    assert label_errors(units, truth, ["a", "b", "c", "d"]).estimated <= 12


@pytest.mark.parametrize(("share", "level", "most"), [(0.1, 0.05, 0.2), (0.3, 0.05, 0.2), (0.3, 0.01, 0.95)])
def test_no_more_right_labels_are_called_wrong_than_stated(share: float, level: float, most: float) -> None:
    """Kinds overlap: about the level at most, and of the wrong ones `most` are missed."""
    false, missed = [], []
    for seed in range(4):
        units, truth = kinds([200, 200, 200, 200], 0.8, seed)
        wrong = np.random.default_rng(seed).permutation(800)[: int(share * 800)]
        said = truth.copy()
        said[wrong] ^= 1
        found = label_errors(units, said, ["a", "b", "c", "d"])
        called = found.numbers[sure(found, level)]
        hit = np.isin(called, wrong).sum()
        false.append((len(called) - hit) / (800 - len(wrong)))
        missed.append(1.0 - hit / len(wrong))
        assert found.alarms is not None and (np.diff(found.alarms) >= 0).all()
    assert np.mean(false) <= 1.5 * level and np.mean(missed) <= most


@pytest.mark.parametrize(("count", "classes"), [(60, 3), (180, 2), (600, 3), (600, 10)])
def test_features_that_tell_no_class_make_no_label_wrong(count: int, classes: int) -> None:
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(size=(count, 32))
        found = label_errors(noise, np.arange(count) % classes, [str(kind) for kind in range(classes)])
        assert found.estimated <= 2 and sure(found, 0.05).sum() <= 2


def test_two_names_of_one_kind_are_no_wrong_labels() -> None:
    """Where features tell other kinds well."""
    units, truth = kinds([150, 150, 300], 0.5)
    said = truth + (np.arange(600) % 2) * (truth == 2)
    assert label_errors(units, said, ["a", "b", "c", "d"]).estimated <= 6


def test_half_of_two_classes_exchanged_is_no_error() -> None:
    """Then nothing tells which label is right, and that is no reason to fail."""
    units, truth = kinds([40, 40, 40])
    said = truth.copy()
    said[:40:2], said[40:80:2] = 1, 0
    found = label_errors(units, said, ["a", "b", "c"])
    assert 0 <= found.low <= found.estimated <= found.high <= 120


def test_a_copy_with_the_same_wrong_label_does_not_hide_it() -> None:
    units, truth = kinds([60, 60])
    copies = np.concatenate([units, units[:5]])
    said = np.concatenate([truth, truth[:5]])
    said[[*range(5), *range(120, 125)]] = 1
    groups = np.concatenate([np.arange(120), np.arange(5)])
    hidden, seen = (doubts(copies, said, each)[0][:5, 1] for each in (np.arange(125), groups))
    assert (seen > hidden).all() and {*label_errors(copies, said, ["a", "b"], groups).numbers[:10].tolist()} == {
        *range(5), *range(120, 125)}  # fmt: skip


def test_of_one_class_nothing_is_wrong() -> None:
    found = label_errors(np.eye(4, dtype=np.float32), np.array([1, 1, -1, 1]), ["a", "b"])
    assert not len(found.numbers) and found.estimated == 0


def test_where_nothing_can_be_compared_no_label_is_called_wrong() -> None:
    """Items of one group, as of one patient, are never asked of each other, so all classes are as likely."""
    units, truth = kinds([20, 20, 20])
    found = label_errors(units, truth, ["a", "b", "c"], np.zeros(60, int))
    assert (found.low, found.estimated, found.high) == (0, 0, 0) and not sure(found, 0.05).any()


def test_items_are_ranked_by_their_worst_region() -> None:
    units, truth = kinds([50, 50, 50])
    said, items = truth.copy(), np.arange(150) % 50  # an item has a region of each class
    said[[7, 57, 20]] = [1, 0, 2]
    ranking, region = worst_regions(label_errors(units, said, ["a", "b", "c"], items), items)
    assert {*ranking.numbers[:2].tolist()} == {7, 20} and {*region[:2].tolist()} <= {7, 57, 20}
    assert sorted(ranking.numbers.tolist()) == [*range(50)] and (items[region] == ranking.numbers).all()


@pytest.mark.parametrize("shape", ["normal", "logistic", "skewed", "exponential"])
def test_no_more_of_sound_items_are_called_faults_than_stated(shape: str) -> None:
    rng = np.random.default_rng(0)
    draw = {
        "normal": rng.standard_normal,
        "logistic": lambda size: rng.logistic(size=size),
        "skewed": lambda size: rng.lognormal(0, 0.5, size),
        "exponential": lambda size: rng.exponential(size=size),
    }[shape]
    for level in (0.01, 0.05):
        called = [cut(draw(size=1000), level) / 1000 for _ in range(30)]
        assert np.mean(called) <= 1.3 * level
    faults = [how_many(np.concatenate([draw(size=950), draw(size=50) / 4 + 20])) for _ in range(20)]
    assert np.mean([one.low <= 50 <= one.high for one in faults]) >= 0.95
    assert np.mean([one.estimated for one in faults]) == pytest.approx(50, rel=0.15)


def test_a_cut_follows_no_unit_and_needs_a_bulk() -> None:
    values = np.random.default_rng(0).lognormal(size=300)
    assert cut(values) == cut(3.0 * values - 7.0) > 0
    assert cut(values[:10]) == 0 and how_many(values[:0]).estimated == 0
