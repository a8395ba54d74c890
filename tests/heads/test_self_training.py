"""Self-training: it gains where guesses are right, and says that they are; it keeps off where they are not."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import tiny_encoder
from PIL import Image
from scipy.stats import binomtest

import selfsight
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.store import save
from selfsight.errors import SelfsightError
from selfsight.heads.classify import Learnt, Wish, learn
from selfsight.heads.fits import scored
from selfsight.heads.head import load_head
from selfsight.heads.self_training import (
    Asked,
    Guessing,
    SelfTraining,
    graph_of,
    propagated,
    self_trained,
    taken_from,
)


def labels_of(names: np.ndarray | list[str | None], groups: list[str] | None = None, first: int = 0) -> Labels:
    ids = [hashlib.md5(str(first + i).encode()).hexdigest() for i in range(len(names))]
    columns = {"id": ids, "uri": [f"{i[:8]}.png" for i in ids], "content_hash": ids}
    values = tuple(None if name is None else str(name) for name in names)
    return Labels("class", pa.table(columns | ({"group": groups} if groups else {})), values, "here")


def sheets(each: int = 60, seed: int = 0, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features [8 * each, 11] of eight classes and their numbers: each class is a square sheet, wider than the sheets
    are apart, so that few labels leave open along what they differ, while neighbours do not."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(8), each)
    features = np.concatenate([apart * np.eye(8)[numbers], rng.uniform(-1.5, 1.5, (len(numbers), 2))], 1)
    features = np.concatenate([features, np.ones((len(numbers), 1))], 1)
    return (features + rng.normal(size=features.shape) * 0.1).astype(np.float32), numbers


def drawn(
    features: np.ndarray, numbers: np.ndarray, shots: int, wish: Wish, wrong: float = 0.0
) -> tuple[Learnt, Labels, np.ndarray, Labels, np.ndarray, np.ndarray]:
    """A plain head from `shots` labels a class, a share of them wrong, and what self-training needs beside it."""
    rng, count = np.random.default_rng(wish.seed), int(numbers.max()) + 1
    some = np.concatenate([rng.choice(np.flatnonzero(numbers == c), shots, replace=False) for c in range(count)])
    given = numbers[some].copy()
    spoilt = rng.choice(len(some), round(wrong * len(some)), replace=False)
    given[spoilt] = (given[spoilt] + rng.integers(1, count, len(spoilt))) % count
    rest = np.setdiff1d(np.arange(len(numbers)), some)
    labels = labels_of([f"c{n}" for n in given])
    pool = labels_of([None] * len(rest), first=len(some))
    learnt = learn(labels, features[some], wish)
    return learnt, labels, features[some], pool, features[rest], numbers[rest]


def right(learnt: Learnt, features: np.ndarray, numbers: np.ndarray) -> float:
    said = np.array(learnt.targets.classes)[scored(learnt.scorer, features).argmax(1)]
    return float((said == np.array([f"c{n}" for n in numbers])).mean())


def share_true(rows: pa.Table, pool: Labels, numbers: np.ndarray) -> float:
    truth = dict(zip(pool.ids, numbers, strict=True))
    pairs = zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True)
    return float(np.mean([f"c{truth[item]}" == label for item, label in pairs]))


def test_labels_spread_as_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 6)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    near = np.zeros((50, 50))
    for i in range(50):
        others = [j for j in np.argsort(-cosines[i]) if j != i][:7]
        near[i, others] = np.maximum(cosines[i, others], 0) ** 3
    both = near + near.T
    scale = np.diag(1 / np.sqrt(both.sum(1)))
    dense = scale @ both @ scale
    assert np.abs(graph_of(features, 7).toarray() - dense).max() < 1e-6
    given = np.zeros((50, 3))
    given[[0, 1, 2, 3], [0, 1, 2, 0]] = 1
    wanted = 0.05 * np.linalg.inv(np.eye(50) - 0.95 * dense) @ given
    assert np.abs(propagated(graph_of(features, 7), given, 0.95) - wanted).max() < 1e-5


def test_two_labels_a_class_are_enough() -> None:
    features, numbers = sheets()
    test, truth = sheets(seed=1)
    for seed in range(3):
        learnt, *rest, hidden = drawn(features, numbers, 2, Wish(seed=seed))
        new, done, rows = self_trained(learnt, *rest, Wish(seed=seed))
        assert right(new, test, truth) > right(learnt, test, truth) + 0.05
        assert done.kept and rows is not None and share_true(rows, rest[2], hidden) > 0.95
        assert (done.precision.value or 0.0) >= 0.95 and sum(done.guessed.values()) == len(rows) > 400
        assert 0 < min(rows["weight"].to_pylist()) <= max(rows["weight"].to_pylist()) < 1
        assert done.rounds[0].by == "propagation" and (done.gain.value or 0.0) > 0


def test_shuffled_labels_are_left_alone() -> None:
    features, numbers = sheets()
    _, labels, known, pool, of_pool, _ = drawn(features, numbers, 4, Wish())
    mixed = replace(labels, values=tuple(np.random.default_rng(0).permutation(list(labels.values))))
    plain = learn(mixed, known, Wish())
    new, done, rows = self_trained(plain, mixed, known, pool, of_pool, Wish())
    assert new is plain and rows is None and not done.kept
    assert "Labels may be wrong" in done.why and done.rounds[0].right < 0.5 and not done.rounds[0].taken


def test_with_thirty_percent_wrong_labels_nothing_is_added() -> None:
    features, numbers = sheets(each=40)
    for seed in range(8):
        wish = Wish("prototypes", seed=seed)
        learnt, *rest, _ = drawn(features, numbers, 4, wish, wrong=0.3)
        new, done, rows = self_trained(learnt, *rest, wish)
        assert new is learnt and rows is None and not done.guessed, done


def test_the_interval_of_the_precision_holds_the_truth() -> None:
    """Of sheets that touch, so that some guesses would be wrong if all were taken."""
    features, numbers = sheets(apart=0.75)
    held = []
    for seed in range(12):
        wish = Wish("prototypes", seed=seed)
        learnt, *rest, hidden = drawn(features, numbers, 6, wish)
        _, done, rows = self_trained(learnt, *rest, wish)
        if rows is not None:
            assert done.precision.low is not None and done.precision.high is not None
            held.append(done.precision.low <= share_true(rows, rest[2], hidden) <= done.precision.high)
    assert len(held) >= 4 and np.mean(held) >= 0.8


def test_a_label_is_not_known_where_it_is_held_out() -> None:
    """Without anything to learn, and with a copy of each labelled item in the pool, only a leak would be right."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=(60, 16)).astype(np.float32)
    labels, pool = labels_of([f"c{n}" for n in rng.integers(0, 4, 60)]), labels_of([None] * 60, first=60)
    plain = learn(labels, known, Wish())
    _, done, rows = self_trained(plain, labels, known, pool, known.copy(), Wish())
    assert rows is None and done.rounds[0].right < 0.45


def test_thresholds_lie_above_the_mistakes_and_the_estimate_is_clopper_pearsons() -> None:
    sure = np.linspace(0.01, 1.0, 100)
    truth, said = np.zeros(100, int), np.zeros(100, int)
    said[:20] = 1  # the least sure fifth is wrong
    asked = Asked(said, sure, truth, np.arange(100) % 10, np.ones(100))
    taken = taken_from(asked, 2)
    assert taken.good and np.isinf(taken.thresholds[1]) == (taken.thresholds[0] > sure[19])
    passed = sure >= taken.thresholds[0]
    assert (said == truth)[passed].mean() >= 0.95 and passed.sum() >= 80
    hits = round((taken.precision.value or 0.0) * taken.asked)
    exact = binomtest(hits, taken.asked).proportion_ci(0.9, "exact")
    assert (taken.precision.low, taken.precision.high) == pytest.approx((exact.low, exact.high))
    # Where what is wrong stands for most of the pool, one of them would be too many.
    heavy = taken_from(replace(asked, weights=np.where(said == truth, 1.0, 20.0)), 2)
    assert heavy.thresholds[0] > sure[19]


def refused(labels: Labels, pool: int, features: int = 6) -> SelfTraining:
    rng = np.random.default_rng(0)
    known, rest = rng.normal(size=(len(labels), features)), rng.normal(size=(pool, features))
    learnt = learn(labels, known.astype(np.float32), Wish())
    new, done, rows = self_trained(
        learnt, labels, known.astype(np.float32), labels_of([None] * pool, first=len(labels)),
        rest.astype(np.float32), Wish(),
    )  # fmt: skip
    assert new is learnt and rows is None and not done.kept and not done.rounds
    return done


def test_what_cannot_be_done_is_said() -> None:
    assert "8 labels that can be held out are too few" in refused(labels_of(["a", "b"] * 4), 20).why
    assert refused(labels_of(["a", "b"] * 20), 0).why == "no item is without a label"


def test_groups_of_a_fold_teach_nothing_about_it() -> None:
    """All items of a class are of one patient each half: guesses of the held-out patient's other pictures are left
    out, so that the figures are of new patients."""
    features, numbers = sheets(each=40)
    _, labels, known, pool, of_pool, hidden = drawn(features, numbers, 4, Wish())
    groups = [f"{n}-{i % 2}" for i, n in enumerate(labels.values)]
    labels = replace(labels, rows=labels.rows.append_column("group", pa.array(groups)))
    mates = [f"c{n}-{i % 2}" for i, n in enumerate(hidden)]
    pool = replace(pool, rows=pool.rows.append_column("group", pa.array(mates)))
    plain = learn(labels, known, Wish())
    guessing = Guessing(plain, labels, known, pool, of_pool)
    assert next(guessing.rounds()).taken
    place = {row.tobytes(): i for i, row in enumerate(of_pool)}  # a labelled item would have none
    for fold in sorted(set(plain.folds.tolist())):
        hidden_groups = {group for group, own in zip(groups, plain.folds, strict=True) if own == fold}
        used = {mates[place[row.tobytes()]] for row in guessing.more(fold).features}
        assert used and not used & hidden_groups
    assert {mates[place[row.tobytes()]] for row in guessing.more(None).features} == set(mates)


# -- as a verb --


def write_colours(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for place, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.normal(100, 30, (24, 24, 3))
            pixels[:, :, place] += 70
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:03d}.png")


def test_guesses_are_kept_apart_from_labels(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 30)
    save(tiny_encoder(24), tmp_path / "encoder")
    rows = [f"{name}/{i:03d}.png,{name}" for name in ("red", "green", "blue") for i in range(5)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    common = {"model": str(tmp_path / "encoder"), "out": str(tmp_path / "head"), "labels": str(tmp_path / "labels.csv")}
    result = selfsight.train.classify(str(tmp_path / "photos"), **common, self_train=True)
    done = result.self_training
    assert done is not None and done.kept and result.items == 15 and result.unlabelled == done.unlabelled == 75
    items = pq.read_table(tmp_path / "head" / "items.parquet")
    guessed = items.filter(items["guessed"])
    assert len(items) == 15 + sum(done.guessed.values()) and len(guessed) == sum(done.guessed.values()) > 50
    assert max(guessed["weight"].to_pylist()) < 1 and guessed["features"].null_count == len(guessed)
    assert guessed["fold"].null_count == len(guessed) == guessed["held_out"].null_count
    truth = [
        uri.split("/")[0] == label
        for uri, label in zip(*(guessed[n].to_pylist() for n in ("uri", "label")), strict=True)
    ]
    assert np.mean(truth) >= 0.95
    again = Labels.of(open_source(str(tmp_path / "photos")), path=str(tmp_path / "labels.csv"))
    assert int(again.known.sum()) == 15  # nothing went into the journal
    table = selfsight.predict(str(tmp_path / "photos"), head=str(tmp_path / "head")).table
    right = [
        uri.split("/")[0] == label for uri, label in zip(*(table[n].to_pylist() for n in ("uri", "label")), strict=True)
    ]
    assert np.mean(right) > 0.95
    assert any(note.startswith("self-training: ") for note in result.notes)
    assert len(load_head(tmp_path / "head").labelled) == 15
    with pytest.raises(SelfsightError, match="--self-train does not go with --method knn"):
        selfsight.train.classify(str(tmp_path / "photos"), **common, self_train=True, method="knn")
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows[:-1], f"{rows[-1]}|red"]))
    with pytest.raises(SelfsightError, match="--self-train is for one class an item"):
        selfsight.train.classify(str(tmp_path / "photos"), **common, self_train=True)
