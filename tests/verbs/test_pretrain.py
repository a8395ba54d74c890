"""pretrain: what must not go wrong around the training itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import selfsight
from selfsight.data.importers import open_source
from selfsight.training.recipe import Budget
from selfsight.training.settle import choose, write_recipe

FEW = {"steps": 2, "batch_size": 4}


def test_dark_sixteen_bit_images_stay_different(tmp_path: Path) -> None:
    # All of their light is in the low byte, which an 8-bit decoder would drop.
    rng = np.random.default_rng(0)
    (tmp_path / "dark").mkdir()
    for i in range(8):
        coarse = rng.integers(0, 200, (5, 5)).astype(np.uint16)
        Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(tmp_path / "dark" / f"{i}.png")
    selfsight.pretrain(str(tmp_path / "dark"), out=str(tmp_path / "run"), **FEW)
    features = selfsight.embed(str(tmp_path / "dark"), model=str(tmp_path / "run")).features
    assert len(np.unique(features.round(4), axis=0)) == 8


@pytest.mark.parametrize(
    "encoder", ["vit_tiny_patch16_224", "convnext_atto", "mixer_s32_224", "deit_tiny_distilled_patch16_224"]
)
def test_other_families_train_with_the_defaults(images: Callable[..., Path], tmp_path: Path, encoder: str) -> None:
    size = 64 if encoder.startswith(("vit", "conv", "deit")) else 224
    photos = images(4, size=(size, size))
    run = str(tmp_path / "run")
    told = selfsight.pretrain(str(photos), out=run, encoder=encoder, size=size, **FEW).notes
    assert [text[:30] for text in told] == ["Features are kept as they are:"] * encoder.startswith("deit")  # two heads
    assert np.isfinite(selfsight.embed(str(photos), model=run).features).all()


def test_what_speaks_against_the_images_is_said_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "white").mkdir()
    for i in range(6):
        Image.new("RGB", (24, 24), (255, 255, 245 + i)).save(tmp_path / "white" / f"{i}.jpg")
    cut = tmp_path / "white" / "0.jpg"
    cut.write_bytes(cut.read_bytes()[:-2])
    result = selfsight.pretrain(str(tmp_path / "white"), out=str(tmp_path / "run"), **FEW)
    white = "4 of 4 images that were looked at are white all over. See views.png."
    assert result.notes == ["1 of the images used: JPEG without its end marker; its pixels are all there.", white]
    assert "are white all over" in capsys.readouterr().err


def test_a_run_has_one_trainer(images: Callable[..., Path], tmp_path: Path) -> None:
    photos, run = images(6), tmp_path / "run"
    run.mkdir()
    parent = psutil.Process(os.getppid())
    (run / "lock").write_text(f"{parent.pid} {parent.create_time()}")
    with pytest.raises(selfsight.SelfsightError, match=f"process {os.getppid()}"):
        selfsight.pretrain(str(photos), out=str(run), **FEW)
    (run / "lock").write_text(f"{parent.pid} 12345.6")  # of a killed process whose number was given out again
    selfsight.pretrain(str(photos), out=str(run), **FEW)
    assert not (run / "lock").exists()


def test_checkpoints_are_not_continued_under_another_recipe(images: Callable[..., Path], tmp_path: Path) -> None:
    photos, run = images(6), tmp_path / "run"
    selfsight.pretrain(str(photos), out=str(run), **FEW)
    (run / "recipe.yaml").unlink()
    with pytest.raises(selfsight.SelfsightError, match="no recipe"):
        selfsight.pretrain(str(photos), out=str(run), seed=5, **FEW)
    shutil.rmtree(run / "encoder")
    with pytest.raises(selfsight.SelfsightError, match="no recipe"):
        selfsight.pretrain(str(photos), out=str(run), optimiser="sgd", **FEW)


def test_a_finished_run_with_another_budget_says_what_it_had(images: Callable[..., Path], tmp_path: Path) -> None:
    photos, run = images(6), tmp_path / "run"
    selfsight.pretrain(str(photos), out=str(run), **FEW)
    with pytest.raises(selfsight.SelfsightError, match=r"run is finished \(--steps 2\)\. Give --extend"):
        selfsight.pretrain(str(photos), out=str(run), **FEW | {"steps": 9})


def test_a_typing_slip_does_not_occupy_the_folder(images: Callable[..., Path], tmp_path: Path) -> None:
    photos, run = images(6), tmp_path / "run"
    with pytest.raises(selfsight.SelfsightError, match=r"simclr.*vicreg"):
        selfsight.pretrain(str(photos), out=str(run), objective="simcrl", **FEW)
    assert selfsight.pretrain(str(photos), out=str(run), objective="simclr", **FEW).steps == 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"batch_size": 1}, "batch size"),
        ({"batch_size": 0}, "batch size"),
        ({"accumulate": 0}, "accumulate"),
        ({"size": 0}, "size"),
        ({"learning_rate": -1.0}, "learning rate"),
        ({"encoder": "resnet19"}, "resnet19"),
        ({"optimiser": "adamv"}, "adamv"),
    ],
)
def test_values_without_meaning(
    images: Callable[..., Path], tmp_path: Path, asked: dict[str, object], said: str
) -> None:
    with pytest.raises(selfsight.SelfsightError, match=said):
        selfsight.pretrain(str(images(6)), out=str(tmp_path / "run"), steps=2, **{"batch_size": 4} | asked)


def test_too_few_minutes_are_told_with_what_took_them(images: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(selfsight.SelfsightError, match=r"0.0001 minutes are too few: \d+ s went by .* in the end"):
        selfsight.pretrain(str(images(6)), out=str(tmp_path / "run"), minutes=1e-4, batch_size=4)


def test_nothing_is_written_among_the_images(images: Callable[..., Path]) -> None:
    photos = images(6)
    with pytest.raises(selfsight.SelfsightError, match="stays as it is"):
        selfsight.pretrain(str(photos), out=str(photos / "run"), **FEW)
    assert sorted(p.suffix for p in photos.rglob("*") if p.is_file()) == [".png"] * 6


def test_a_recipe_written_by_hand(images: Callable[..., Path], tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("resolved: {objective: vicreg, views: {groups: [{count: 3, size: 16, flip: 0.0}]}}")
    selfsight.pretrain(str(images(6)), out=str(tmp_path / "run"), recipe=str(recipe), **FEW)
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "objective: vicreg" in text and "count: 3" in text
    for bad in ("resolved: hello", "resolved: {nonsense: 1}", "a: [", "resolved: {views: {groups: [{count: 2}]}}"):
        recipe.write_text(bad)
        with pytest.raises(selfsight.SelfsightError):
            selfsight.pretrain(str(tmp_path / "photos"), out=str(tmp_path / "other"), recipe=str(recipe), **FEW)


def test_options_that_follow_the_size_are_chosen_anew_with_it(images: Callable[..., Path], tmp_path: Path) -> None:
    items, file = open_source(images(6)), tmp_path / "r.yaml"
    asked = {"objective": "mae+jigsaw", "size": 64, "budget": Budget(steps=1), "batch_size": 4}
    recipe, _ = choose(asked, None, items)
    write_recipe(file, recipe)
    same, _ = choose({"size": 64}, str(file), items)
    larger, _ = choose({"size": 96}, str(file), items)
    assert same.objective_options == recipe.objective_options
    assert (recipe.objective_options["jigsaw"]["tile"], larger.objective_options["jigsaw"]["tile"]) == (16, 24)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ({"objective": "dino"}, {"batch_size": 8}),
        ({"objective": "barlow"}, {"batch_size": 8}),
        ({"objective": "emp"}, {"batch_size": 8}),
        ({"objective": "simclr"}, {"objective": "dino"}),
        ({"objective": "dino"}, {"objective": "jigsaw"}),
        ({"objective": "simclr"}, {"objective": "mae"}),
        ({"objective": "ijepa"}, {"objective": "mae"}),
        ({"objective": "mae"}, {"size": 128}),
        ({"objective": "simclr"}, {"encoder": "resnet34"}),
        ({"objective": "simclr", "optimiser": "sgd"}, {"optimiser": "adamw"}),
        ({"objective": "simclr", "encoder": "resnet34"}, {"objective": "dino", "size": 96}),
    ],
)
def test_a_recipe_with_another_value_is_what_the_rules_give_with_it(
    images: Callable[..., Path], tmp_path: Path, first: dict[str, Any], other: dict[str, Any]
) -> None:
    items, files = open_source(images(40, size=(80, 90))), [tmp_path / "1.yaml", tmp_path / "2.yaml"]
    common: dict[str, Any] = {"budget": Budget(steps=1), "threads": 1}
    write_recipe(files[0], choose(common | first, None, items)[0])
    write_recipe(files[1], choose({"seed": 1}, str(files[0]), items)[0])  # what rules chose stays theirs
    fresh, _ = choose(common | first | other | {"seed": 1}, None, items)
    again, _ = choose(other, str(files[1]), items)
    assert replace(again, reasons={}) == replace(fresh, reasons={})


def test_what_a_person_wrote_stays_with_another_size_or_batch(images: Callable[..., Path], tmp_path: Path) -> None:
    items, file = open_source(images(6)), tmp_path / "mine.yaml"
    file.write_text("resolved: {objective: dino, size: 64, objective_options: {prototypes: 48}, budget: {steps: 1}}")
    for other in ({"size": 96}, {"batch_size": 4}):
        assert choose(other, str(file), items)[0].objective_options["prototypes"] == 48


def test_one_elongated_image_does_not_blow_up_a_batch(images: Callable[..., Path], tmp_path: Path) -> None:
    photos = images(4)
    Image.fromarray(np.zeros((5, 4000, 3), np.uint8)).save(photos / "flat.png")
    Image.fromarray(np.zeros((4000, 5, 3), np.uint8)).save(photos / "tall.png")
    assert selfsight.pretrain(str(photos), out=str(tmp_path / "run"), steps=2, batch_size=6).items == 6
