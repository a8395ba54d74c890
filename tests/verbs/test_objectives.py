"""objectives: the table, one of them, and the pages that are written from the same words."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest
from helpers import write_folder
from PIL import Image

import selfsight
from selfsight.objectives.objective import registry
from selfsight.objectives.options import NOT_OPTIONS
from selfsight.verbs.objectives import Objectives, meanings, show

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_are_those_of_the_docstrings_and_rules(capsys: pytest.CaptureFixture[str]):
    spec = importlib.util.spec_from_file_location("make_objectives", DOCS / "make_objectives.py")
    assert spec and spec.loader
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    written = pages.written()
    assert {f"objectives/{name}.md" for name in registry()} < set(written)
    for file, text in written.items():
        assert (DOCS / file).read_text(encoding="utf-8") == text, "run: python docs/make_objectives.py"
        if file != "objectives.md":
            assert (DOCS / file).with_suffix(".png").stat().st_size > 5000


@pytest.mark.parametrize("name", registry())
def test_each_option_has_one_line(name: str):
    taken = [option for option in inspect.signature(registry()[name]).parameters if option not in NOT_OPTIONS]
    assert list(meanings(registry()[name])) == taken


def test_a_sum_costs_what_its_parts_do_and_one_is_shown_whole(capsys: pytest.CaptureFixture[str]):
    costs = {}
    for name in ("simclr", "rotation", "simclr+rotation"):
        (row,) = selfsight.objectives(name).objectives
        costs[name] = row.cost
    assert costs["simclr"] == 1.0
    assert costs["simclr+rotation"] == pytest.approx(costs["simclr"] + costs["rotation"], rel=0.02)
    (row,) = selfsight.objectives("dino").objectives
    show(Objectives([row]))
    said = capsys.readouterr().out
    assert "Emerging" in said and "teacher_temperature 0.015" in said and "4 of 32 px" in said
    assert "\n  temperature: of the student.\n" in said


def test_one_that_is_not_there_is_one_sentence():
    with pytest.raises(selfsight.SelfsightError, match="No objective is called 'dyno'"):
        selfsight.objectives("dyno")


@pytest.mark.parametrize("name", ["mae", "simmim", "inpaint", "simclr+0.5*mae"])
def test_what_is_filled_in_is_drawn_beside_what_was_there(tmp_path: Path, name: str):
    photos = write_folder(tmp_path / "photos", 12, size=(32, 32))
    (tmp_path / "r.yaml").write_text(
        "resolved: {encoder: vit_tiny_patch16_224, encoder_args: {patch_size: 8, depth: 1, embed_dim: 32, num_heads: 2}"
        ", size: 32, canvas_side: 32, batch_size: 4, threads: 1, precision: 'no'}"
    )
    run = tmp_path / "run"
    selfsight.pretrain(str(photos), out=str(run), objective=name, recipe=str(tmp_path / "r.yaml"), steps=2)
    sheet = np.asarray(Image.open(run / "reconstructions.png").convert("RGB")).astype(int)
    tiles = [sheet[4:100, x : x + 96] for x in (4, 112, 212)]  # of the first item: whole, hidden, filled in
    whole, hidden, filled = tiles
    seen = (whole == hidden).all(2)
    assert 0.1 < seen.mean() < 0.9  # some is hidden, some is not
    assert (filled == whole).all(2)[seen].all() and (filled != hidden).any(2)[~seen].mean() > 0.9
    assert "What it fills in" in Path(selfsight.report(str(run)).report).read_text()
