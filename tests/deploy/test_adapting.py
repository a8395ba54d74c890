"""A head that follows features of a stream: what is folded, what is drift of all classes, labels, and the guard."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_encoder, write_colours
from PIL import Image
from scipy.stats import binom
from torch import nn

import selfsight
from selfsight.data.importers import open_source
from selfsight.deploy.adapted import about_of, read_state, save_adapted, write_state
from selfsight.deploy.adapting import Adapter, follower_of, worse
from selfsight.deploy.drift import Distance
from selfsight.deploy.drifting import Drifting
from selfsight.deploy.figures import Figures
from selfsight.deploy.folded import mixed, shifted
from selfsight.deploy.refit import Said
from selfsight.deploy.running import common, variety
from selfsight.encoders.features import pooled
from selfsight.encoders.store import save
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.fits import Ordinal
from selfsight.heads.head import load_head
from selfsight.heads.modules import Linear, Nearest
from selfsight.heads.voice import Voice
from selfsight.probing.linear import unit_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """heads/ of three colours by two methods, and stream/ with more pictures of them."""
    folder = tmp_path_factory.mktemp("adapting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSIGHT_CACHE", str(folder / "cache"))
        save(tiny_encoder(32), folder / "encoder")
        write_colours(folder / "learn", 30)
        for method in ("linear", "knn"):
            how = {"model": str(folder / "encoder"), "out": str(folder / "heads" / method)}
            selfsight.train.classify(str(folder / "learn"), method=method, **how)
        items = open_source(write_colours(folder / "stream", 64, seed=1))
        rows, features, _ = pooled(load_head(folder / "heads" / "linear").encoder, items)
        np.savez(folder / "stream.npz", x=features, uri=np.array(rows["uri"].to_pylist()))
    return folder


def head_of(place: Path, method: str = "linear") -> ClassifyHead:
    head = load_head(place / "heads" / method)
    assert isinstance(head, ClassifyHead)
    return head


def stream_of(place: Path, head: ClassifyHead, ordered: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, D], class numbers [N]) of new pictures, in no order, or class after class."""
    with np.load(place / "stream.npz") as file:
        names = [uri.split("/")[0] for uri in file["uri"]]
        features, numbers = file["x"], np.array([head.about.classes.index(name) for name in names])
    places = np.argsort(numbers, kind="stable") if ordered else np.random.default_rng(0).permutation(len(numbers))
    return features[places], numbers[places]


def drifted(head: ClassifyHead, features: np.ndarray, much: float = 0.45) -> np.ndarray:
    """Features, moved towards what lies between two classes, and aside."""
    learnt = np.array(head.items["features"].to_pylist(), np.float32)
    label = np.array(head.items["label"].to_pylist())
    first, second = (unit_rows(learnt[label == name]).mean(0) for name in head.about.classes[:2])
    aside = np.random.default_rng(9).normal(size=len(first))
    return unit_rows(features) + much * (second - first) + 0.2 * aside / np.linalg.norm(aside)


# -- closed forms --


def test_a_shift_is_folded_into_the_tensors() -> None:
    rng = np.random.default_rng(0)
    shift = (0.2 * rng.normal(size=6)).astype(np.float32)
    unit = F.normalize(torch.from_numpy(rng.normal(size=(9, 6)).astype(np.float32)), dim=1)
    known = unit - torch.from_numpy(shift)
    weight, bias = torch.from_numpy(rng.normal(size=(3, 6)).astype(np.float32)), torch.tensor([0.5, -1.0, 0.0])
    assert torch.allclose(shifted(Linear(weight, bias), shift)(unit), known @ weight.T + bias, atol=1e-5)
    cuts = torch.tensor([-0.3, 0.4])
    below = torch.sigmoid(cuts - (known @ weight[0])[:, None])
    p = torch.stack([below[:, 0], below[:, 1] - below[:, 0], 1 - below[:, 1]], 1)
    assert torch.allclose(shifted(Ordinal(weight[0], cuts), shift)(unit).exp(), p, atol=1e-5)
    bank = F.normalize(torch.from_numpy(rng.normal(size=(5, 6)).astype(np.float32)), dim=1)
    there = shifted(Nearest(bank, torch.eye(5), "class", 2), shift)
    assert isinstance(there, Nearest)
    assert torch.allclose(there.bank, F.normalize(bank + torch.from_numpy(shift), dim=1), atol=1e-6)
    assert shifted(there, np.zeros(6, np.float32)) is there


def test_prototypes_share_in_the_scores() -> None:
    rng = np.random.default_rng(1)
    scorer = Linear(torch.from_numpy(rng.normal(size=(3, 4)).astype(np.float32)), torch.zeros(3))
    middles, u = (
        rng.normal(size=(3, 4)),
        F.normalize(torch.from_numpy(rng.normal(size=(7, 4)).astype(np.float32)), dim=1),
    )
    near = -((u.numpy()[:, None] - middles[None]) ** 2).sum(2) / 2 + 0.5  # as |u| = 1
    expected = 0.7 * scorer(u).numpy() + 0.3 * 5.0 * near
    assert mixed(scorer, middles, 0.3, 5.0)(u).numpy() == pytest.approx(expected, abs=1e-4)
    other = nn.Identity()
    assert mixed(other, middles, 0.3, 5.0) is other


def test_only_what_classes_have_in_common_is_a_shift() -> None:
    rng, counts = np.random.default_rng(2), np.array([20.0, 20.0, 20.0, 20.0])
    shift = np.zeros(50)
    shift[0] = 0.5
    noise = 0.1 * rng.normal(size=(4, 50)) / np.sqrt(20)
    assert common((shift + noise) * counts[:, None], counts)[0] == pytest.approx(0.5, abs=0.1)
    assert np.linalg.norm(common(noise * counts[:, None], counts)) < 0.5 * np.linalg.norm(noise.mean(0))
    one = noise.copy()
    one[2] += 2 * shift  # a class alone has moved, as a new one beside it would do
    assert np.linalg.norm(common(one * counts[:, None], counts)) < 0.15
    lonely = np.array([20.0, 0.0, 1.0, 0.0])
    assert not common((shift + noise) * lonely[:, None], lonely).any()


def test_what_is_worse_than_chance() -> None:
    pairs = ((6, 0), (7, 0), (9, 2), (14, 2), (3, 3), (0, 9), (3000, 100))
    p = np.linspace(0.5, 1.0, 200_001)
    for lost, gained in pairs:
        with np.errstate(divide="ignore", invalid="ignore"):
            odds = np.nan_to_num(lost * np.log(2 * p) + (np.log(2 * (1 - p)) * gained if gained else 0.0), nan=-1e9)
        ratio = 2 * np.trapezoid(np.exp(np.minimum(odds, 700.0)), p)  # the mean over all p from 1/2 to 1
        assert worse(lost, gained) == (lost > gained and ratio >= 20), (lost, gained, ratio)
    assert [worse(*pair) for pair in pairs] == [False, True, False, True, False, False, True]


def test_a_guard_that_looks_often_is_wrong_as_rarely_as_it_says() -> None:
    """Labels of which either head is right by chance, ten a look, 40 looks: at most 5 % of walks go back."""
    rng, back = np.random.default_rng(0), 0
    for _ in range(200):
        lost = np.cumsum(rng.binomial(10, 0.5, 40)).tolist()
        back += any(worse(count, 10 * look - count) for look, count in enumerate(lost, 1))
    assert 0 < back <= binom.ppf(0.999, 200, 0.05)


# -- a stream --


def walked(adapter: Adapter, features: np.ndarray, numbers: np.ndarray) -> tuple[float, float, int]:
    """(error, error of the shadow, windows with drift) over windows of 32."""
    wrong, shadow, alarms = 0, 0, 0
    for start in range(0, len(features), 32):
        told = adapter.window(features[start : start + 32])
        truth = numbers[start : start + 32]
        wrong, shadow = wrong + int((told.answers != truth).sum()), shadow + int((told.shadow != truth).sum())
        alarms += told.drift.alarm
    return wrong / len(features), shadow / len(features), alarms


@pytest.mark.parametrize("ordered", [False, True])
def test_without_drift_nothing_is_changed(place: Path, tmp_path: Path, ordered: bool) -> None:
    head = head_of(place)
    adapter = Adapter(head, false_alarms=0.001)
    error, shadow, alarms = walked(adapter, *stream_of(place, head, ordered))
    assert (error, alarms) == (shadow, 0)
    same = save_adapted(adapter, tmp_path / "same", {})
    assert same.digest == head.digest and same.about == head.about


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_a_drift_is_followed_and_let_go(place: Path, tmp_path: Path, method: str) -> None:
    head = head_of(place, method)
    features, numbers = stream_of(place, head)
    adapter, moved = Adapter(head), drifted(head, features)
    error, shadow, alarms = walked(adapter, moved[:160], numbers[:160])
    assert alarms == 5 and shadow > 0.2 and error <= 0.5 * shadow
    made = save_adapted(adapter, tmp_path / "made", {"parent": head.digest})
    assert isinstance(made, ClassifyHead) and made.digest != head.digest
    wrong = [(one.answers(one.tensors(moved)).decided != numbers).mean() for one in (made, head)]
    assert wrong[0] <= 0.6 * wrong[1]
    told = np.array(adapter._decided(adapter.current, unit_rows(moved[160:].astype(np.float32))))
    alike = made.answers(made.tensors(unit_rows(moved[160:].astype(np.float32)))).decided == told
    assert alike.mean() > 0.9  # the folder renews what is of unit length
    novel = [one.tensors(moved[160:])["novel"].mean() for one in (made, head)]
    assert novel[0] > novel[1]  # what has drifted is less new to it
    adapter.window(features[:32])
    assert not adapter.running.drifts and adapter.current is adapter.scorer


def test_prototypes_are_for_mixed_classes(place: Path) -> None:
    head = head_of(place)
    for ordered in (False, True):
        features, numbers = stream_of(place, head, ordered)
        adapter = Adapter(head)
        adapter.window(drifted(head, features, 0.2)[:32])  # the head still knows most of them
        assert adapter.running.drifts and any(adapter.running.supports) != ordered
        assert (len(np.unique(numbers[:32])) == 1) == ordered


def test_the_variety_of_a_window() -> None:
    assert variety(np.array([3, 3, 3])) == pytest.approx(1.0)
    assert variety(np.array([0, 1, 2, 7] * 5)) == pytest.approx(4.0)
    assert 1.0 < variety(np.array([0] * 30 + [1] * 2)) < 1.3


def said_of(names: list[str], numbers: Iterator[int] = itertools.count()) -> list[Said]:  # noqa: B008
    """What was said of pictures that are new each time."""
    return [Said(f"{i:032x}", f"{i}.png", f"h{i}", name) for i, name in zip(numbers, names, strict=False)]


def test_poisoned_labels_are_forgotten(place: Path) -> None:
    head = head_of(place)
    features, numbers = stream_of(place, head)
    adapter, classes = Adapter(head), head.about.classes
    back = 0
    for start in range(0, 192, 32):
        adapter.window(features[start : start + 32])
        wrong = [classes[(number + 1) % 3] for number in numbers[start : start + 32]]
        did = adapter.learn(said_of(wrong), features[start : start + 32])
        if any("back to the head as it was" in one for one in did):
            back += 1
            assert adapter.scorer is adapter._original and adapter.classes == classes and adapter.labels == []
        assert len(adapter.labels) <= 96  # and so never more than three windows of poison
    assert adapter.counts.rollbacks >= back >= 1 and len(adapter.counts.notes) == adapter.counts.rollbacks


def test_labels_are_learnt_and_a_new_class_too(place: Path, tmp_path: Path) -> None:
    head = head_of(place)
    features, numbers = stream_of(place, head)
    adapter, classes = Adapter(head), head.about.classes
    adapter.learn(said_of([classes[number] for number in numbers[:32]]), features[:32])
    assert adapter.fitted and adapter.counts.rollbacks == 0 and len(adapter.labels) == 32
    new = -features[40:44]
    adapter.learn(said_of(["grey"] * 4), new)
    assert "grey" not in adapter.classes
    adapter.learn(said_of(["grey"] * 12), -features[44:56])
    assert adapter.classes == (*classes, "grey") == about_of(adapter).classes
    made = save_adapted(adapter, tmp_path / "made", {})
    assert isinstance(made, ClassifyHead) and made.about.items == head.about.items + 48
    decided = made.answers(made.tensors(np.concatenate([-features[60:80], features[60:80]]))).decided
    assert (decided[:20] == 3).mean() > 0.9 and (decided[20:] == numbers[60:80]).mean() >= 0.85
    assert len(made.items) == made.about.items and set(made.items["label"].to_pylist()) == {*classes, "grey"}


def test_late_labels_are_learnt_as_their_window_was(place: Path) -> None:
    head = head_of(place)
    features, numbers = stream_of(place, head)
    adapter, moved = Adapter(head), drifted(head, features)
    adapter.window(moved[:32])
    then = adapter.running.shift
    names = [head.about.classes[number] for number in numbers[:4]]
    soon = said_of(names)
    adapter.learn(soon, moved[:4])
    adapter.window(features[32:64])
    assert then.any() and not adapter.running.shift.any()
    late = said_of(names)
    adapter.learn(late, moved[:4], np.stack([then] * 4))
    first, second = adapter.labels[:4], adapter.labels[4:]
    assert all(np.array_equal(one.known, other.known) for one, other in zip(first, second, strict=True))
    assert adapter.unlearn({each.id for each in soon}) == ["4 labels unlearnt"]
    assert [each.said for each in adapter.labels] == late and adapter.unlearn({"0"}) == []
    adapter.unlearn({each.id for each in late})
    assert not adapter.fitted and adapter.labels == []


def test_a_state_is_read_as_it_was_written(place: Path, tmp_path: Path) -> None:
    head = head_of(place)
    features, numbers = stream_of(place, head)
    one, moved = Adapter(head), drifted(head, features)
    for start in (0, 32):
        one.window(moved[start : start + 32])
        one.learn(said_of([head.about.classes[n] for n in numbers[start : start + 4]]), moved[start : start + 4])
    write_state(tmp_path / "state", one, {"seen": 64}, {"features": moved[:3]})
    other = Adapter(head)
    more, arrays = read_state(tmp_path / "state", other)
    assert more == {"seen": 64} and np.array_equal(arrays["features"], moved[:3])
    first, second = one.window(moved[64:96]), other.window(moved[64:96])
    assert first.drift == second.drift and np.array_equal(first.answers, second.answers)
    assert np.array_equal(one.running.shift, other.running.shift) and one.counts == other.counts
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-50])
    with pytest.raises(DataError, match="is damaged"):
        read_state(tmp_path / "state", Adapter(head))


def test_a_head_of_numbers_is_watched(place: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(place / "learn").as_posix() for path in (place / "learn").rglob("*.png"))
    lines = ["path,label", *(f"{name},{i}" for i, name in enumerate(names))]
    (tmp_path / "numbers.csv").write_text("\n".join(lines))
    how = {"labels": str(tmp_path / "numbers.csv"), "kind": "number", "out": str(tmp_path / "head")}
    selfsight.train.classify(str(place / "learn"), model=str(place / "encoder"), **how)
    head = load_head(tmp_path / "head")
    assert isinstance(head, ClassifyHead)
    with pytest.raises(SelfsightError, match="of the kind number"):
        Adapter(head)
    watcher = follower_of(head, 0.001)
    features, _ = stream_of(place, head_of(place))
    told = [
        watcher.window(each) for each in (features[:32], drifted(head_of(place), features[32:64], 1.5), features[64:96])
    ]
    assert [each.drift.alarm for each in told] == [False, True, False]
    assert [each.did for each in told] == [[], ["drift"], ["the drift is over"]]
    assert (watcher.counts.windows, watcher.counts.alarms) == (3, 1) and "watched, not adapted" in watcher.notes[0]


def answer(head: Voice, pixels: list[np.ndarray]) -> None:
    """Let a head say something of pictures, eight at a time."""
    for start in range(0, len(pixels), 8):
        head.say([head.place(number, each) for number, each in enumerate(pixels[start : start + 8])])


def test_a_service_tells_the_drift_of_what_it_answered(place: Path) -> None:
    head = head_of(place)
    told: list[tuple[str, Distance]] = []
    drifting = Drifting(lambda name, found: told.append((name, found)))
    drifting.watch([("colours", head)])
    drifting.watch([("colours", head)])  # again, as after a switch of another head
    files = sorted((place / "stream").rglob("*.png"))[::3]
    pixels = [np.asarray(Image.open(file)) for file in files]  # 64
    answer(head, [*pixels, *(each // 4 for each in pixels)])
    again = head_of(place)  # the same folder read again is watched, and the one before it no more
    drifting.watch([("colours", again)])
    answer(again, pixels)
    answer(head, pixels)
    drifting.close()
    assert [name for name, _ in told] == ["colours"] * 3 and [found.alarm for _, found in told] == [False, True, False]
    figures = Figures(lambda: 0)
    figures.drifted(*told[1])
    text = figures.text().decode()
    assert 'selfsight_drift_alarms_total{head="colours"} 1.0' in text and 'selfsight_drift{head="colours"}' in text


def test_the_drift_of_what_says_where_is_told_by_whole_pictures(place: Path, tmp_path: Path) -> None:
    """An inspection keeps features of what it learnt from, and new good parts are like them."""
    red, how = place / "stream" / "red", {"model": str(place / "encoder"), "size": 32, "false_alarms": 0.2}
    selfsight.train.inspect(str(red), out=str(tmp_path / "parts"), **how)
    head = load_head(tmp_path / "parts")
    kept = {row["uri"]: row["features"] for row in head.items.to_pylist()}
    assert len(kept) == 64 and all(kept.values())
    heard: list[np.ndarray] = []
    head.listener = lambda pooled, rows: heard.extend(pooled)
    names = sorted(kept)
    answer(head, [np.asarray(Image.open(red / name)) for name in names])
    assert np.stack(heard) == pytest.approx(np.array([kept[name] for name in names]), abs=1e-4)
    told: list[Distance] = []
    drifting = Drifting(lambda name, found: told.append(found))
    drifting.watch([("parts", head)])
    files = sorted((write_colours(tmp_path / "more", 64, seed=2) / "red").iterdir())
    pixels = [np.asarray(Image.open(file)) for file in files]
    answer(head, [*pixels, *(each // 4 for each in pixels)])
    head.items = head.items.slice(0, 39)
    drifting.watch([("few", head)])
    drifting.close()
    assert [found.alarm for found in told] == [False, True] and told[0].judged == 32
    assert "39 items to compare with, and 40 are needed" in drifting.lacking["few"]
