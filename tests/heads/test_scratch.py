"""Supervision from scratch: it learns, it repeats, it chooses its way on labels that it does not learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_encoder
from PIL import Image

from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.data.splits import Side
from selfsight.heads import scratch
from selfsight.heads.scratch import Way, ways
from selfsight.views.plan import Colour, ViewGroup


@pytest.fixture
def side(tmp_path: Path) -> Side:
    """Stripes that lie or stand, 24 of each: no pixel alone tells which, nor does their mean."""
    rng = np.random.default_rng(0)
    for name in ("lie", "stand"):
        (tmp_path / "stripes" / name).mkdir(parents=True)
        for i in range(24):
            wave = 127 + 90 * np.sin(np.arange(32) * rng.uniform(0.8, 1.2) + rng.uniform(0, 6))
            pixels = np.broadcast_to(wave[:, None] if name == "lie" else wave, (32, 32)) + rng.normal(0, 10, (32, 32))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "stripes" / name / f"{i:02d}.png")
    items = open_source(tmp_path / "stripes")
    labels = Labels.of(items)
    return Side(items, labels.take(np.argsort(labels.ids)))


def taught(
    side: Side, chosen: np.ndarray, monkeypatch: pytest.MonkeyPatch, steps: int = 40, minutes: float = 60.0
) -> tuple[np.ndarray, np.ndarray, float]:
    """(answers, truth, passes) of a network that learnt the labels at `chosen` in so many steps; no minutes end it."""
    monkeypatch.setattr(scratch, "MOST_PASSES", 1)
    monkeypatch.setattr(scratch, "LEAST_STEPS", steps)
    train = Side(side.items, side.labels.take(chosen))
    classes = ["lie", "stand"]
    found, passes = scratch.supervised_answers(tiny_encoder(channels=1), train, side, classes, minutes)
    return found, side.labels.numbers(classes), passes


def test_it_learns_what_it_was_given_and_repeats_it(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = side.labels.numbers(["lie", "stand"])
    chosen = np.sort(np.r_[np.flatnonzero(truth == 0)[:4], np.flatnonzero(truth == 1)[:4]])  # too few to hold any out
    (one, _, passes), (two, _, _) = (taught(side, chosen, monkeypatch) for _ in range(2))
    assert passes == 40 and (one == two).all()
    others = np.setdiff1d(np.arange(len(truth)), chosen)
    assert (one == truth)[others].mean() > 0.9


def test_the_way_that_does_best_on_labels_held_out_is_taken(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first way learns nothing: if it were taken, half of the answers would be right."""
    still = Way("learns nothing", ViewGroup(1, 32), rate=0.0)
    monkeypatch.setattr(scratch, "ways", lambda size, view: [still, *ways(size, view)[:1]])
    found, truth, _ = taught(side, np.arange(48), monkeypatch, steps=30)
    assert (found == truth).mean() > 0.9


def test_minutes_end_it(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, passes = taught(side, np.arange(6), monkeypatch, steps=1_000_000, minutes=0.5 / 60)
    assert 1 <= passes < 1000


def test_augmentations_are_those_of_the_pretraining_and_larger_parts() -> None:
    quarters = ViewGroup(8, 32, scale=(0.25, 0.25), flip=0.0, colour=Colour(hue=0.3), draws=4)
    large, own, plain = ways(64, quarters)
    assert own.view == replace(quarters, count=1, draws=0) and own.name == "views of the pretraining"
    assert (large.view.size, large.view.flip, large.view.colour) == (64, 0.0, quarters.colour)
    assert plain.view.colour.hue == plain.view.colour.jitter == 0 and plain.view.scale == (0.3, 1.0)
    assert [way.name for way in ways(64, None)] == ["large parts", "large parts, colours unchanged"]
    assert len(ways(64, large.view)) == 2  # the same is not tried twice
