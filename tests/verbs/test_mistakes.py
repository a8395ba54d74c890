"""What a user types wrong, and runs that fail half way: one sentence, and nothing of before is lost or mixed in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import SMALL_RECIPE, write_folder

import selfsight
from selfsight.data.importers import open_source
from selfsight.encoders.weights import load
from selfsight.errors import SelfsightError
from selfsight.objectives.objective import Objective
from selfsight.training.recipe import Recipe
from selfsight.training.run import Event, Run
from selfsight.training.settle import asked_of, choose, write_recipe
from selfsight.verbs.plan import show


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL_RECIPE)
    return str(write_folder(tmp_path / "photos", 24, size=(32, 32)))


def train(photos: str, out: str, **how: Any) -> dict[str, Any]:
    return selfsight.pretrain(photos, out=out, **{"recipe": "small.yaml", "steps": 2} | how)


NAMES = [
    ({"optimiser": "adam"}, "No optimiser is called 'adam'. There are: adamw, muon, sgd, lars."),
    ({"encoder": "resnet19"}, "timm has no model 'resnet19'"),
    ({"objective": "simple"}, "No objective is called 'simple'"),
    ({"objective": "simclr+nothing"}, "No objective is called 'nothing'"),
    ({"objective": "two*simclr"}, "not WEIGHT\\*NAME"),
    ({"probe": "nowhere"}, "nowhere does not exist"),
    ({"seed": 2**70}, "seed must be a whole number"),
    ({"epochs": float("inf"), "steps": None}, "--epochs must be a number above 0, not inf"),
    ({"recipe": "photos/000.png"}, "not a recipe.yaml"),
    ({"size": 100, "encoder": "vit_tiny_patch16_224", "objective": "simclr"}, "cannot take images of 100 px"),
    ({"objective": "mae"}, "resnet18 has none. Choose a ViT"),
]


@pytest.mark.parametrize(("how", "said"), NAMES, ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_a_wrong_value_is_one_sentence_and_leaves_no_run(photos: str, how: dict[str, Any], said: str):
    with pytest.raises(SelfsightError, match=said) as error:
        train(photos, "run", **how)
    assert "\n" not in str(error.value) and not Path("run", "recipe.yaml").exists()


LINES = [
    ("size: 32", "size: '32'", "size must be a whole number"),
    ("batch_size: 8", "seed: abc", "seed must be a whole number"),
    ("batch_size: 8", "views: {groups: []}", "a view plan has groups"),
    ("batch_size: 8", "views: {groups: [{count: 1, size: 32}]}", "SimCLR compares views and needs 2, not 1"),
    ("batch_size: 8", "budget: {minutes: .inf}", "--minutes must be a number above 0"),
]


@pytest.mark.parametrize(("old", "new", "said"), LINES)
def test_a_recipe_that_cannot_be_is_one_sentence(photos: str, old: str, new: str, said: str):
    Path("small.yaml").write_text(SMALL_RECIPE.replace(old, new))
    with pytest.raises(SelfsightError, match=said):
        train(photos, "run")


OPTIONS = [
    ("dino", "{centring: median}", "The option centring of DINO must be mean or sinkhorn, not 'median'"),
    ("dino", "{prototypes: 0}", "prototypes of DINO must be a whole number of at least 1, not 0"),
    ("dino", "{prototypes: many}", "a whole number of at least 1, not 'many'"),
    ("dino", "{teacher_temperature: 0}", "a number above 0"),
    ("dino", "{teacher_temperature: 1e-2}", "YAML: 1.0e-3"),  # which YAML takes for a word
    ("dino", "{teacher: 1}", "DINO has no option teacher. It has: prototypes, hidden"),
    ("dino", "[1]", "lines of NAME: VALUE"),
    ("simclr", "{decoupled: 1}", "true or false, not 1"),
    ("rotation", "{width: 1}", "Rotation has no option width. It has: none"),
    ("ijepa", "{targets: [3, 4]}", "pairs of whole numbers"),
    ("jigsaw", "{tile: 16.0}", "tile of Jigsaw must be a whole number"),
    ("jigsaw+rotation", "{jigsaw: {tile: 16}}", "Take them from a recipe that selfsight plan --out writes"),
    ("jigsaw+rotation", "{jigsaw: 5, rotation: {groups: [[0, 1]]}}", "Take them from a recipe"),
    ("jigsaw+rotation", "{jigsaw: {tile: 0, groups: []}, rotation: {groups: []}}", "tile of Jigsaw must be"),
]


@pytest.mark.parametrize(("objective", "options", "said"), OPTIONS)
def test_an_option_that_cannot_be_is_one_sentence_before_any_image_is_decoded(
    photos: str, objective: str, options: str, said: str
):
    Path("mine.yaml").write_text(f"resolved: {{objective: {objective}, objective_options: {options}}}")
    with pytest.raises(SelfsightError, match=said) as error:
        train(photos, "run", recipe="mine.yaml")
    assert "\n" not in str(error.value) and not Path("run", "recipe.yaml").exists()


def test_joint_options_for_views_that_there_are_not(photos: str):
    options = "{jigsaw: {groups: [[7, 1]]}, rotation: {groups: [[0, 1]]}}"
    Path("mine.yaml").write_text(f"resolved: {{objective: jigsaw+rotation, objective_options: {options}}}")
    with pytest.raises(
        SelfsightError, match="The options of jigsaw name groups of views that the view plan does not have"
    ):
        train(photos, "run", recipe="mine.yaml")


def test_options_of_kinds_that_are_unknown_here_are_left_to_the_objective():
    class Theirs(Objective):
        def __init__(self, encoder: Any, views: Any, kind: str = "a", widths: list[int] | None = None, free=1) -> None:
            super().__init__(encoder, views)

    class Open(Objective):
        def __init__(self, encoder: Any, views: Any, **options: Any) -> None:
            super().__init__(encoder, views)

    Theirs.check_options({"kind": "b", "widths": [64, 64], "free": -1.0})
    Open.check_options({"tile": 16})
    with pytest.raises(SelfsightError, match=r"Theirs has no option tile. It has: kind, widths, free"):
        Theirs.check_options({"tile": 16})


def test_arguments_that_a_person_wrote_stay_with_their_encoder(photos: str):
    written = "encoder: resnet18, encoder_args: {channels: [8, 8, 8, 8]}, objective: simclr"
    Path("mine.yaml").write_text(f"resolved: {{{written}}}\nreasons: {{encoder: chosen, objective: chosen}}")
    with pytest.raises(SelfsightError, match=r"resnet18 has none. Choose a ViT"):
        selfsight.plan(photos, recipe="mine.yaml", objective="mae", steps=1)


@pytest.mark.parametrize(("options", "said"), [("{tile: 20}", "images of 20 px"), ("{permutations: 16}", "of 32 px")])
def test_a_part_that_the_encoder_cannot_take_names_the_option(photos: str, options: str, said: str):
    """Where the option is not given, the constructor's own value counts."""
    arguments = (
        f"encoder: vit_tiny_patch16_224, encoder_args: {{patch_size: 12}}, size: 96, objective_options: {options}"
    )
    Path("mine.yaml").write_text(f"resolved: {{objective: jigsaw, {arguments}}}")
    with pytest.raises(SelfsightError, match=said) as error:
        train(photos, "run", recipe="mine.yaml")
    assert "another value of the option tile, for ViTs a multiple of the patch size." in str(error.value)


def test_what_was_chosen_for_another_value_is_chosen_anew(photos: str):
    items = open_source(photos)
    Path("mine.yaml").write_text(SMALL_RECIPE + "  optimiser: adamw\n  learning_rate: 0.5\n  weight_decay: 0.25\n")

    def recipe(**asked: Any) -> Recipe:
        return choose(asked_of(asked | {"steps": 1}), "mine.yaml", items)[0]

    same = recipe(objective="simclr", optimiser="adamw")
    assert (same.learning_rate, same.weight_decay, same.objective_options["hidden"]) == (0.5, 0.25, 64)
    other = recipe(objective="vicreg", optimiser="sgd")
    assert other.objective_options["covariance"] == 1.0 and other.weight_decay == 5e-4 and other.learning_rate < 0.1
    assert recipe(batch_size=4).learning_rate < 0.01 and recipe(batch_size=4).weight_decay == 0.25
    assert recipe(encoder="resnet34").encoder_args == {}
    assert recipe(size=64).views.largest == 32
    many = recipe(batch_size=1_000_000)
    assert many.batch_size == 24 and "1,000,000 were asked for" in many.reasons["batch_size"]


def test_the_size_of_a_saved_recipe_follows_other_minutes(tmp_path: Path):
    items = open_source(write_folder(tmp_path / "large", 3, size=(200, 200)))
    short, _ = choose(asked_of({"minutes": 0.005}), None, items)
    write_recipe(tmp_path / "short.yaml", short)
    same, _ = choose(asked_of({"seed": 1}), str(tmp_path / "short.yaml"), items)
    longer, _ = choose(asked_of({"minutes": 1000.0}), str(tmp_path / "short.yaml"), items)
    assert [(each.size, each.views.largest) for each in (short, same, longer)] == [(32, 16), (32, 16), (128, 64)]


def test_a_recipe_counts_by_what_it_says(photos: str):
    train(photos, "run")
    shutil.rmtree("run/encoder")  # as if it had been stopped before its end
    shutil.copy("small.yaml", "renamed.yaml")
    assert train(photos, "run", recipe="renamed.yaml").steps == 2
    shutil.rmtree("run/encoder")
    Path("small.yaml").write_text(SMALL_RECIPE + "  learning_rate: 0.1\n")
    with pytest.raises(SelfsightError, match="other values of recipe_digest"):
        train(photos, "run")


def test_a_run_written_before_views_had_draws_is_read(photos: str):
    train(photos, "run")
    file = Path("run/recipe.yaml")
    content = yaml.safe_load(file.read_text())
    content["format_version"] = 1
    for group in content["resolved"]["views"]["groups"]:
        del group["draws"]
        group |= {"grid": 0, "keep": 0}
    file.write_text(yaml.safe_dump(content))
    assert Run.open("run").read_recipe()[1].views.groups[0].draws == 0
    assert Path(selfsight.report("run").report).exists()
    assert train(photos, "again", recipe="run/recipe.yaml", steps=1).steps == 1


def test_what_an_attempt_measured_of_other_images_is_measured_again(photos: str, tmp_path: Path):
    train(photos, "run")
    dark = tmp_path / "dark"
    shutil.copytree(photos, dark)
    (tmp_path / "new").mkdir()
    for name in ("normalisation.json", "run.log", "energy.json"):  # of an attempt that did no step
        Path("new", name).write_text('{"window": [0, 1], "mean": [9, 9, 9], "std": [9, 9, 9]}')
    train(str(dark), "new")
    new, own = (json.loads(Path(run, "normalisation.json").read_text()) for run in ("new", "run"))
    assert new["mean"] == pytest.approx(own["mean"]) and new["std"] == pytest.approx(own["std"])
    assert "9, 9" not in Path("new/run.log").read_text() and not Path("new/energy.json").exists()


def test_an_encoder_of_no_numbers_is_not_kept_and_skipped_steps_are_told(photos: str):
    with pytest.raises(SelfsightError, match=r"gives values that are not finite, and is not kept.*--learning-rate"):
        train(photos, "run", learning_rate=1e30, steps=5)
    assert not Path("run/encoder").exists()
    assert [event.kind for event in Run(Path("run")).read_log()].count("skipped") > 0


def test_an_extension_that_is_refused_leaves_the_encoder(photos: str):
    train(photos, "run")
    before = load("run").digest
    with pytest.raises(SelfsightError, match="nowhere does not exist"):
        train(photos, "run", extend=True, probe="nowhere")
    assert Path("run/encoder/config.json").exists()
    shutil.move("run/encoder", "run/encoder.before")  # what a failure behind that point leaves
    assert load("run").digest == before


def test_an_extension_begins_at_the_newest_whole_checkpoint(photos: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("selfsight.training.loop.CHECKPOINT_SECONDS", 0.0)
    train(photos, "run", steps=3)
    newest = Path("run/checkpoints/step-00000003")
    data = bytearray((newest / "module.safetensors").read_bytes())
    data[-9] ^= 1
    (newest / "module.safetensors").write_bytes(data)
    result = train(photos, "run", steps=2, extend=True)
    rows = Run(Path("run")).read_metrics()
    assert result.steps == 4
    assert [row["step"] for row in rows] == [1, 4] and all(0 <= row["learning_rate"] < 1 for row in rows)
    assert [e.kind for e in Run(Path("run")).read_log()].count("damaged") == 1


def test_what_a_resumed_run_does_again_is_told_once(tmp_path: Path):
    run = Run(tmp_path)
    for kind, step in (("alarm", 10), ("skipped", 11), ("skipped", 12), ("alarm", 20), ("resumed", 30)):
        run.log(kind, "why", step)
    run.go_back_to(12)
    assert [(e.kind, e.step) for e in run.read_log()] == [("alarm", 10), ("skipped", 11), ("resumed", 30)]
    assert isinstance(run.read_log()[0], Event)


def test_plan_prints_what_can_be_typed(photos: str, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(photos, "photos [raw]")
    show(selfsight.plan("photos [raw]", steps=1, recipe="small.yaml", out="r.yaml"))
    said = capsys.readouterr().out
    assert "selfsight pretrain 'photos [raw]' -o runs/first --recipe r.yaml" in said
    assert selfsight.runs("list", ".").runs == []  # a recipe is no run


def test_images_set_aside_by_an_earlier_start_stay_named(images: Callable[..., Path], photos: str):
    train(photos, "run", canvases="stream", steps=1)
    shutil.rmtree("run/encoder")
    item = next(iter(Path("run").glob("set_aside.json")))
    item.write_text('{"0123": "gone for a moment"}')  # as older versions wrote it
    train(photos, "run", canvases="stream", steps=1)
    named = {"id": "0123", "uri": "", "reason": "gone for a moment", "at": "decoding"}
    assert json.loads(item.read_text()) == [named]
    assert torch.isfinite(load("run")(torch.zeros(2, 3, 32, 32)).pooled).all()
