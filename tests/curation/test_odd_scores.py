"""The score of what is least like the others: against a slow loop, and where copies would hide it."""

from __future__ import annotations

import numpy as np
import pytest

from selfsight.curation.odd import NEIGHBOURS, least_alike
from selfsight.probing import neighbours


def slow(features: np.ndarray, contents: list[str], k: int) -> list[tuple[float, int]]:
    """(score, number) of the first item of each content, highest score first."""
    first = [i for i, content in enumerate(contents) if content not in contents[:i]]
    found = []
    for i in first:
        a = features[i] / np.linalg.norm(features[i])
        distances = sorted(1 - float(a @ features[j]) / float(np.linalg.norm(features[j])) for j in first if j != i)
        found.append((sum(distances[:k]) / len(distances[:k]), i))
    return sorted(found, key=lambda each: (-round(each[0], 9), each[1]))


@pytest.mark.parametrize("count", [2, 7, 60])
@pytest.mark.parametrize("block", [1, 2**25])
def test_scores_equal_a_slow_loop(count: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)  # one row at a time, and all at once
    features = np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32)
    contents = [f"{i % 40}" for i in range(count)]
    features[40:] = features[: max(0, count - 40)]
    numbers, scores = least_alike(features, contents)
    wanted = slow(features.astype(np.float64), contents, NEIGHBOURS)
    assert numbers.tolist() == [number for _, number in wanted]
    assert scores == pytest.approx([score for score, _ in wanted], abs=1e-6)


def crowd(*odd: np.ndarray) -> np.ndarray:
    """40 features near one direction of 8, then those given."""
    alike = np.eye(8)[0] + np.random.default_rng(0).normal(0, 0.05, (40, 8))
    return np.concatenate([alike, *(row[None] for row in odd)]).astype(np.float32)


def test_exact_copies_neither_hide_an_odd_item_nor_show_it_twice() -> None:
    features = crowd(*[np.eye(8)[1]] * 30)  # more copies than neighbours
    contents = [str(i) for i in range(40)] + ["copy"] * 30
    numbers, scores = least_alike(features, contents)
    assert numbers[0] == 40 and scores[0] == pytest.approx(1.0, abs=0.1) and scores[1] < 0.05
    assert len(numbers) == 41 and not {*range(41, 70)} & {*numbers.tolist()}
    hidden, _ = least_alike(features, [str(i) for i in range(70)])  # the control: unknown as copies they are hidden
    assert hidden[0] < 40


def test_a_few_near_copies_do_not_hide_an_odd_item() -> None:
    near = [np.eye(8)[1] + 0.01 * np.eye(8)[2 + i] for i in range(6)]  # as exposures of one part
    numbers, _ = least_alike(crowd(*near), [str(i) for i in range(46)])
    assert {*numbers[:6].tolist()} == {*range(40, 46)}


def test_one_picture_is_not_unlike_others() -> None:
    assert [part.tolist() for part in least_alike(np.ones((3, 2), np.float32), ["a", "a", "a"])] == [[], []]
