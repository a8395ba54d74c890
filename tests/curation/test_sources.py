"""Sources that harm and sources that are only different: against slow references, and where the truth is known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from selfsight.curation.sources import RIDGE, Judgement, agreement, comparable, explained, judge
from selfsight.curation.summaries import (
    LEAST_OF_CLASS,
    STIFFNESS,
    Summary,
    directions,
    from_json,
    summarise,
    to_json,
)
from selfsight.errors import DataError

DIM, CLASSES = 40, 4
NAMES = [f"class {i}" for i in range(CLASSES)]


class World:
    """Pictures as features: a mean of each class, and what varies between pictures along directions of unlike size."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.scale = np.linspace(2.0, 0.5, DIM)
        self.means = self.rng.normal(0, 0.6, (CLASSES, DIM)) * self.scale
        self.up = self.rng.normal(0, 0.4, DIM) * self.scale  # half of the way from a negative to its picture

    def source(self, name: str, kind: str = "honest", items: int = 120) -> Summary:
        rng = self.rng
        numbers = rng.choice(CLASSES, items, p=rng.dirichlet([10] * CLASSES))
        content = self.means[numbers] + rng.normal(size=(items, DIM)) * self.scale
        content += rng.normal(0, 0.15, DIM) * self.scale  # no two sources are quite alike
        noise, side = 0.01 * np.exp(rng.normal(0, 0.3)), 1.0
        if kind == "another stain":
            content = 1.3 * content + 3.0 * rng.normal(size=DIM) * self.scale
        if kind == "another kind":  # with a structure and labels of its own
            content = content[:, ::-1] + 20.0
        if kind == "blank":
            content *= 0.1
        if kind == "inverted":
            side = -1.0
        if kind == "noisy":
            noise = 0.3
        if kind == "flipped":
            numbers = (numbers + rng.integers(1, CLASSES, items)) % CLASSES
        if kind == "swapped":  # each class bears the name of the next
            numbers = (numbers + 1) % CLASSES
        if kind == "wrong":  # another kind, with labels by chance
            content, numbers = content[:, ::-1] + 20.0, rng.permutation(numbers)
        both = content + side * self.up, content - side * self.up
        labels = None if kind == "unlabelled" else [NAMES[number] for number in numbers]
        return summarise(name, "digest", both[0], labels, both, np.full(9, noise))


def judged(*kinds: str, seed: int = 0, honest: int = 8) -> dict[str, Judgement]:
    """Each of these kinds, one source of it beside so many honest ones."""
    world = World(seed)
    every = [world.source(f"honest {i}") for i in range(honest)] + [world.source(kind, kind) for kind in kinds]
    return {one.source: one for one in judge(every)}


# -- where the truth is known --


@pytest.mark.parametrize(
    ("kind", "cause"),
    [("flipped", "labels"), ("swapped", "labels"), ("wrong", "labels"), ("inverted", "inverted"), ("noisy", "noise"),
     ("blank", "spread")],
)  # fmt: skip
def test_each_harm_is_found_by_its_cause_and_no_honest_source_is_removed(kind: str, cause: str) -> None:
    found = judged(kind, "another stain")
    harmful = found[kind]
    assert next(iter(found)) == kind and harmful.verdict == "remove"
    assert harmful.harm is not None and harmful.harm.low > 0 and harmful.evidence[cause].low > 0
    assert all(one.verdict != "remove" for name, one in found.items() if name != kind)


def test_difference_and_harm_are_two_axes() -> None:
    found = judged("flipped", "another stain", "another kind")
    usual = max(one.difference.high for name, one in found.items() if name.startswith("honest"))
    stain, kind, flipped = found["another stain"], found["another kind"], found["flipped"]
    assert stain.difference.low > 2 * usual and kind.difference.low > 2 * usual
    assert flipped.difference.value < usual
    for honest in (stain, kind):
        assert honest.harm is not None and flipped.harm is not None
        assert honest.harm.high < flipped.harm.low and honest.verdict != "remove"
    assert stain.why == "different, and no harm is seen"


def test_several_harmful_sources_do_not_hide_each_other() -> None:
    kinds = ["flipped", "inverted", "noisy", "wrong"]
    found = judged(*kinds)
    assert [*found][:4] != kinds and {*[*found][:4]} == {*kinds}
    assert {name for name, one in found.items() if one.verdict == "remove"} == {*kinds}


def test_what_cannot_be_known_without_labels_is_said() -> None:
    world = World(1)
    every = [replace(world.source(f"honest {i}"), classes={}, own=None) for i in range(8)]
    every.append(replace(world.source("of another kind", "wrong"), classes={}, own=None))
    every.append(replace(world.source("inverted", "inverted"), classes={}, own=None))
    found = {one.source: one for one in judge(every)}
    assert found["inverted"].verdict == "remove"
    other = found["of another kind"]
    assert other.verdict == "look" and other.harm is not None and other.harm.low == 0 < 0.5 < other.harm.high
    assert "labels" not in other.evidence and other.gain is None
    assert [*found][:2] == ["inverted", "of another kind"]


def test_of_two_sources_nobody_can_say_which_is_at_fault() -> None:
    found = judged("flipped", honest=1)
    assert all(one.harm is None and one.verdict == "keep" for one in found.values())
    assert "of two sources" in found["flipped"].why


def test_no_more_than_half_are_removed() -> None:
    world = World(3)
    kinds = ["noisy"] * 3 + ["honest"] * 2 + ["inverted"] * 2
    found = judge([world.source(f"{i} {kind}", kind) for i, kind in enumerate(kinds)])
    assert sum(one.verdict == "remove" for one in found) <= len(kinds) / 2


def test_honest_sources_are_removed_no_more_often_than_stated() -> None:
    """Error rate 5 %: of 60 collections, 8 or more would be seen in 1 of 400 times."""
    wrong = 0
    for seed in range(60):
        world = World(100 + seed)
        kinds = ["honest"] * 5 + ["another stain"] * 2
        found = judge([world.source(str(i), kind, 40 + 20 * i) for i, kind in enumerate(kinds)])
        wrong += any(one.verdict == "remove" for one in found)
    assert wrong < 8


def test_removing_flipped_labels_helps_a_probe_of_the_others_and_removing_honest_ones_does_not() -> None:
    found = judged("flipped", seed=5)
    gains = {name: one.gain for name, one in found.items()}
    flipped = gains.pop("flipped")
    assert flipped is not None and flipped.low > 0
    assert all(gain is not None and gain.value < flipped.low for gain in gains.values())


# -- against slow references --


def items_of(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    numbers = np.concatenate([np.arange(CLASSES).repeat(LEAST_OF_CLASS), rng.choice(CLASSES, count)])
    x = np.random.default_rng(7).normal(size=(CLASSES, DIM))[numbers] + rng.normal(size=(len(numbers), DIM))
    return x + rng.normal(size=DIM), numbers


def onehot(numbers: np.ndarray) -> np.ndarray:
    return (numbers[:, None] == np.arange(CLASSES)).astype(float)


def test_sums_of_parts_give_the_probe_and_the_losses_of_all_items() -> None:
    parts = [items_of(seed, 30 + 10 * seed) for seed in range(4)]
    told = [summarise(str(i), "d", x, [NAMES[n] for n in numbers]) for i, (x, numbers) in enumerate(parts)]
    centred = [(x - x.mean(0), onehot(numbers) - onehot(numbers).mean(0)) for x, numbers in parts]
    x, y = (np.concatenate([part[i] for part in centred[1:]]) for i in (0, 1))
    counts = [len(part) for part, _ in centred[1:]]
    scatter = sum(n / (n - 1) * (part.T @ part) for n, (part, _) in zip(counts, centred[1:], strict=True))
    ridge = RIDGE * np.trace(scatter) / DIM
    # As it is solved by gradient: the normal equations hold for the weights that the sums give.
    weights = np.linalg.lstsq(np.asarray(scatter) + ridge * np.eye(DIM), x.T @ y, rcond=None)[0]
    guessed = centred[0][0] @ weights
    n = len(guessed)
    size = np.sqrt((guessed**2).sum() * (centred[0][1] ** 2).sum())
    assert agreement(told[0], told[1:], NAMES) == pytest.approx((guessed * centred[0][1]).sum() / size, abs=1e-9)
    residual = ((centred[0][1] - guessed) ** 2).sum()
    assert explained(told[0], told[1:], NAMES) == pytest.approx(1 - residual / (centred[0][1] ** 2).sum(), abs=1e-9)
    assert n == told[0].items == told[0].labelled


def test_own_agreement_leaves_each_item_out() -> None:
    x, numbers = items_of(3, 15)
    y, guessed = onehot(numbers), []
    strength = STIFFNESS * ((x - x.mean(0)) ** 2).sum() / len(x)
    for i in range(len(x)):
        rest = np.arange(len(x)) != i
        middle, usual = x[rest].mean(0), y[rest].mean(0)
        a = x[rest] - middle
        weights = np.linalg.solve(a.T @ a + strength * np.eye(DIM), a.T @ (y[rest] - usual))
        guessed.append((x[i] - middle) @ weights + usual)
    said = np.array(guessed) - np.mean(guessed, 0)
    truth = y - y.mean(0)
    wanted = (said * truth).sum() / np.sqrt((said**2).sum() * (truth**2).sum())
    assert summarise("a", "d", x, [NAMES[n] for n in numbers]).own == pytest.approx(wanted, abs=1e-9)


def test_directions_come_from_the_digest_alone_and_keep_distances() -> None:
    taken = directions("a digest", 600)
    bits = bin(int.from_bytes(b"\1" + hashlib.shake_256(b"a digest").digest(600 * 16), "big"))[3:]
    assert "".join("1" if sign > 0 else "0" for sign in taken.ravel()) == bits
    points = np.random.default_rng(0).normal(size=(50, 600))
    kept = ((points @ taken) ** 2).sum(1) / (points**2).sum(1)
    assert kept.mean() == pytest.approx(1.0, abs=0.05) and kept.std() == pytest.approx(np.sqrt(2 / 128), rel=0.35)
    assert (directions("another", 600) != taken).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "lie",
    [
        {"covariance": np.zeros((DIM, DIM))},
        {"covariance": 60.0 * np.eye(DIM)},  # about 40 times the usual
        {"covariance": 1e29 * np.eye(DIM)},
        {"mean": np.full(DIM, 1e29), "classes": {}},
        {"items": 10**11},
        {"items": 10**11, "own": 1.0},
        {"items": 10**11, "covariance": 1e29 * np.eye(DIM)},
        {"upside": np.full(DIM, -1e29), "noise": 1.0},
    ],
)
def test_one_false_summary_hides_no_harmful_source_and_has_no_honest_one_removed(lie: dict[str, object]) -> None:
    world = World(0)
    every = [world.source(f"honest {i}") for i in range(6)]
    every += [world.source(kind, kind) for kind in ("inverted", "flipped")]
    false = replace(world.source("false"), **lie)  # type: ignore[arg-type]
    found = {one.source: one for one in judge(comparable([*every, false])[0])}
    removed = {name for name, one in found.items() if one.verdict == "remove"}
    assert {"inverted", "flipped"} <= removed <= {"inverted", "flipped", "false"}
    assert all(np.isfinite([one.difference.low, one.difference.high]).all() for one in found.values())


# -- as files --


def told(**changes: object) -> str:
    world = World(0)
    return json.dumps(json.loads(to_json(world.source("north"))) | changes)


def test_a_file_says_the_same_and_names_no_item_or_small_class() -> None:
    world = World(2)
    every = [world.source(f"site {i}", kind) for i, kind in enumerate(["honest"] * 6 + ["flipped", "inverted"])]
    read = [from_json(to_json(one), "a file") for one in every]
    for one, other in zip(judge(every), judge(read), strict=True):
        assert (one.source, one.verdict) == (other.source, other.verdict)
        assert one.harm is not None and other.harm is not None
        assert one.harm.value == pytest.approx(other.harm.value, abs=1e-3)
        assert one.difference.value == pytest.approx(other.difference.value, abs=1e-3)
    x, numbers = items_of(0, 60)
    labels = [NAMES[n] for n in numbers]
    labels[:4] = ["rare"] * 4
    kept = json.loads(to_json(summarise("south", "d", x, labels)))
    assert sorted(kept["classes"]) == NAMES and kept["items"] == len(x)
    assert sum(one["count"] for one in kept["classes"].values()) == len(x) - 4


def test_few_items_make_no_summary() -> None:
    with pytest.raises(DataError, match="south has 19 items; a summary is made of 20 or more"):
        summarise("south", "d", np.ones((19, 4)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no summary of a source"),
        ("[1]", "it does not say that it is one"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": "selfsight source summary", "format_version": 9}', "newer selfsight"),
        ('{"format": "selfsight source summary", "format_version": 1}', "it has no mean"),
        (partial(told, mean=[float("nan")] * DIM), "it holds NaN"),
        (partial(told, mean=[1e40] * DIM), "its mean holds what is not a finite number"),
        (partial(told, mean=["1"] * DIM), "its mean holds what is not a finite number"),
        (partial(told, mean=7), "its mean has 0 numbers"),
        (partial(told, mean=[0.0] * 500), "its mean has 500 numbers, not 1 to 128"),
        (partial(told, covariance=[0.0] * 9), "its covariance has 9 numbers, not 820"),
        (partial(told, covariance=[-1.0] * 820), "a variance is negative"),
        (partial(told, items=-5), "its items is -5, not a whole number from 20 on"),
        (partial(told, items=30.5), "its items is 30.5"),
        (partial(told, items=20), "its classes have more items than the 20 that it has"),
        (partial(told, classes={"a": {"count": 2, "mean": [0.0] * DIM}}), "its count is 2, not a whole"),
        (partial(told, classes={"a": {"count": 9, "mean": [0.0]}}), "its mean has 1 numbers, not 40"),
        (partial(told, classes=["a"]), "no summary of a source"),
        (
            partial(told, classes={n: {"count": 9, "mean": [9.0 * (n == "a")] * DIM} for n in "ab"}),
            "its classes lie further apart than its items do",
        ),
        (partial(told, noise=1.5), "its noise is 1.5, not a number from 0 to 1"),
        (partial(told, own=True), "its own is True, not a number from -1 to 1"),
        (partial(told, loss=[1.0]), "its loss has 1 numbers, not 3"),
        (partial(told, source=""), "its source is not a text of 1 to 200 letters"),
        (partial(told, upside=[0.0]), "its upside has 1 numbers, not 40"),
    ],
)  # fmt: skip
def test_a_hostile_file_is_one_sentence(text: object, said: str) -> None:
    with pytest.raises(DataError) as caught:
        from_json(text if isinstance(text, str) else text(), "north.json")  # type: ignore[operator]
    assert said in str(caught.value) and "north.json" in str(caught.value) and "\n" not in str(caught.value)


def test_summaries_that_do_not_go_together_are_refused() -> None:
    north, south = World(0).source("north"), World(1).source("south")
    with pytest.raises(DataError, match="two or more"):
        judge([north])
    with pytest.raises(DataError, match="Two summaries are of a source 'north'"):
        judge([north, south, north])
    with pytest.raises(DataError, match="of the encoder other, that of north of digest\\. Make all with the same run"):
        judge([north, replace(south, encoder="other")])
