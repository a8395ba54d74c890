"""plan: what it shows is what pretrain uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import selfsight
from selfsight.verbs.choices import Choices


def resolved(path: Path) -> dict:
    return yaml.safe_load(path.read_text())["resolved"]


def test_pretrain_uses_exactly_what_plan_shows(images: Callable[..., Path], tmp_path: Path):
    photos, file = str(images(12)), tmp_path / "recipe.yaml"
    shown = selfsight.plan(photos, steps=3, batch_size=4, out=str(file))
    assert resolved(file) == shown.values
    assert set(shown.reasons) == set(shown.values) - {"budget", "batch_size"}  # all that was not asked for
    selfsight.pretrain(photos, out=str(tmp_path / "alone"), steps=3, batch_size=4)
    alone = resolved(tmp_path / "alone" / "recipe.yaml")
    measured = {"threads"}  # anew each time, as it depends on what else the machine does
    assert {k: v for k, v in alone.items() if k not in measured} == {
        k: v for k, v in shown.values.items() if k not in measured
    }
    selfsight.pretrain(photos, out=str(tmp_path / "given"), recipe=str(file))
    assert resolved(tmp_path / "given" / "recipe.yaml") == shown.values


def test_the_estimate_counts_steps_epochs_and_bytes(images: Callable[..., Path]):
    photos = str(images(12, size=(32, 32)))
    shown = selfsight.plan(photos, epochs=4, batch_size=4).estimate
    assert (shown.steps, shown.epochs) == (12, 4.0)
    assert shown.canvas_bytes == 12 * 32 * 32 * 3
    total = shown.seconds_before + 12 * shown.seconds_a_step + shown.seconds_after
    assert shown.seconds == pytest.approx(total)
    minutes = selfsight.plan(photos, minutes=3, batch_size=4).estimate
    assert minutes.seconds == 180
    left = 180 - minutes.seconds_before - minutes.seconds_after
    assert minutes.steps == int(left / minutes.seconds_a_step)


def test_nothing_is_written_but_the_recipe(images: Callable[..., Path], tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SELFSIGHT_CACHE", str(tmp_path / "cache"))
    photos = images(6)
    before = sorted(photos.rglob("*"))
    selfsight.plan(str(photos), steps=1, batch_size=2)
    assert sorted(photos.rglob("*")) == before
    assert not (tmp_path / "cache" / "canvases").exists()
    for out in (str(photos / "recipe.yaml"), str(tmp_path), str(tmp_path / "none" / "r.yaml")):
        with pytest.raises(selfsight.SelfsightError):
            selfsight.plan(str(photos), steps=1, batch_size=2, out=out)


def test_its_parameters_are_those_of_pretrain():
    own, theirs = (inspect.signature(verb).parameters for verb in (selfsight.plan, selfsight.pretrain))
    assert own.keys() - {"source", "out"} == set(Choices.__annotations__)
    rest = theirs.keys() - own.keys()
    assert rest == {"extend", "probe", "track", "energy", "strict"}
    assert all(own[name] == theirs[name] for name in own if name not in ("source", "out"))
    documented = (inspect.getdoc(selfsight.plan) or "").partition("Parameters")[2]
    assert all(f"\n{name}\n" in documented for name in own)
    assert not any(f"\n{name}\n" in documented for name in rest)
