"""Starting from weights, by the command: the start, the resume, the licence, the report, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from helpers import NARROW, SMALL_VIT, write_folder
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

import selfsight
from selfsight.encoders.store import about_of, read_folder
from selfsight.encoders.weights import find_weights, load
from selfsight.errors import SelfsightError
from selfsight.objectives.objective import find
from selfsight.training.checkpoints import read_checkpoint
from selfsight.training.run import Run
from selfsight.verbs.plan import show as show_plan
from selfsight.verbs.pretrain import show
from selfsight.verbs.runs import show as show_runs

RECIPE = """resolved:
  objective_options: {hidden: 32, width: 16}
  size: 32
  canvas_side: 32
  batch_size: 8
  precision: 'no'
  threads: 1
"""


def hub(folder: Path, licence: str | None = "apache-2.0", name: str = "resnet18", **args: Any) -> None:
    """A small model as timm's push_to_hf_hub would write it."""
    torch.manual_seed(7)
    net = timm.create_model(name, num_classes=5, **(args or NARROW))
    net.pretrained_cfg["license"] = licence
    save_for_hf(net, str(folder), safe_serialization=True)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE)
    hub(tmp_path / "hub")
    return str(write_folder(tmp_path / "photos", 24, size=(32, 32)))


def train(photos: str, out: str, **how: Any) -> dict[str, Any]:
    return selfsight.pretrain(photos, out=out, **{"recipe": "small.yaml", "steps": 4, "weights": "hub"} | how)


def test_a_run_begins_with_the_features_of_the_weights_and_keeps_them(photos: str):
    train(photos, "run")
    start, weights = read_folder("run/start"), find_weights("hub")
    net, x = weights.net().eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(start(x).pooled, net.forward_head(net.forward_features(x), pre_logits=True))
    assert start.geometry.mean == pytest.approx((0.485, 0.456, 0.406)) and start.geometry.size == 32
    recipe = Run.open("run").read_recipe()[1]
    assert (recipe.encoder, recipe.weights, recipe.freeze_fraction, recipe.encoder_lr_scale) == (
        "resnet18",
        "hub",
        0.1,
        0.1,
    )
    assert recipe.batch_norm_policy == "kept" and recipe.encoder_args["channels"] == NARROW["channels"]
    rows = Run.open("run").read_metrics()
    assert rows[0]["drift"] == pytest.approx(0.0, abs=1e-9) and rows[-1]["drift"] > 0.0
    kept = json.loads(Path("run/adaptation.json").read_text())
    tried = kept["kept"]["tried"]
    assert kept["images"] == 24 and [one["share"] for one in tried] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert tried[-1]["drift"] == pytest.approx(rows[-1]["drift"], rel=0.5)  # of whole images there, of views here
    assert kept["before"] == {k: v for k, v in tried[0].items() if k != "share"}
    assert kept["before"].keys() == kept["after"].keys() == {"effective_rank", "neighbour_stability", "drift"}
    shutil.rmtree("hub")  # a run needs its start no more
    assert load("run").about["starting_weights"] == "hub"


def test_while_all_is_frozen_the_encoder_is_the_start_but_for_its_whitening(photos: str):
    Path("small.yaml").write_text(RECIPE + "  freeze_fraction: 0.99\n")
    train(photos, "run")
    start, end = (load_file(f"run/{name}/model.safetensors") for name in ("start", "encoder"))
    assert {k for k in end if k not in start} == {"fc.weight", "fc.bias"}
    assert all(torch.equal(start[k], end[k]) for k in start)


@pytest.mark.parametrize("objective", ["simclr", "dino"])
def test_a_stop_before_and_behind_the_frozen_part_changes_no_byte(
    photos: str, objective: str, monkeypatch: pytest.MonkeyPatch
):
    options = "  objective_options: {hidden: 32, width: 16}\n"
    Path("small.yaml").write_text(RECIPE.replace(options, "") + "  freeze_fraction: 0.5\n")
    how = {"steps": 10, "objective": objective}
    train(photos, "whole", **how)
    cls, done = find(objective), 0
    plain = cls.after_step

    def after_step(self: Any, progress: float) -> None:
        nonlocal done
        plain(self, progress)
        done += 1
        if done in (3, 7):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cls, "after_step", after_step)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(photos, "stopped", **how)
        if Path("hub").exists():
            shutil.move("hub", "elsewhere")  # it goes on from what it keeps
    train(photos, "stopped", **how)
    for name in ("encoder/model.safetensors", "start/model.safetensors", "adaptation.json"):
        assert Path("stopped", name).read_bytes() == Path("whole", name).read_bytes(), name
    drifts = [[row.get("drift") for row in Run(Path(out)).read_metrics()] for out in ("whole", "stopped")]
    assert drifts[0] == drifts[1]


def test_a_licence_is_inherited_over_generations_and_told(photos: str, capsys: pytest.CaptureFixture[str]):
    hub(Path("closed"), "cc-by-nc-4.0")
    result = train(photos, "runs/child", weights="closed")
    show(result)
    show(train(photos, "runs/grandchild", weights="runs/child"))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("forbids commercial use, of this encoder too") == 2
    assert "It started from child, which started from closed" in said
    for run, origin in (("runs/child", "closed"), ("runs/grandchild", "child, which started from closed")):
        about = about_of(f"{run}/encoder")
        assert (about["licence"], about["starting_weights"]) == ("cc-by-nc-4.0", origin)
        page = Path(selfsight.report(run).report).read_text()
        assert f"-o {run}-2 --recipe {run}/recipe.yaml" in page
        assert Run.open(run).read_recipe()[1].weights == ("closed" if run == "runs/child" else "runs/child")
        assert "Before and after" in page and "forbids commercial use" in page and f"started from {origin}" in page
    show_runs(selfsight.runs())
    listed = "".join(capsys.readouterr().out.split())
    assert "(fromclosed:cc-by-nc-4.0)" in listed and "(fromruns/child:cc-by-nc-4.0)" in listed
    show(train(photos, "runs/free", weights="hub"))
    assert "apache-2.0" in (said := capsys.readouterr().out) and "forbids" not in said and "unknown" not in said
    hub(Path("mystery"), None)
    shutil.rmtree("runs/child")
    show(train(photos, "runs/child", weights="mystery"))
    assert "unknown: ask their makers" in capsys.readouterr().out


def test_a_run_from_random_weights_gives_none_of_it(photos: str, capsys: pytest.CaptureFixture[str]):
    result = train(photos, "run", weights=None, encoder="resnet18")
    show(result)
    assert "licence" not in capsys.readouterr().out and result.licence == "none: trained from random weights"
    assert not Path("run/start").exists() and not Path("run/adaptation.json").exists()
    assert "drift" not in Run.open("run").read_metrics()[0]
    assert "Before and after" not in Path(selfsight.report("run").report).read_text()
    child = train(photos, "child", weights="run")
    assert child.licence == "none: trained from random weights" and child.starting_weights == "run"


def test_an_evaluation_has_the_start_beside_it_without_any_download(photos: str, tmp_path: Path):
    for split in ("train", "test"):
        for seed, name in enumerate(("good", "bad")):
            write_folder(tmp_path / "labelled" / split / name, 6, seed=seed + 10 * (split == "test"))
    train(photos, "run")
    shutil.rmtree("hub")
    result = selfsight.evaluate("run", train="labelled/train", test="labelled/test", shots="1,all", seeds=2)
    assert list(result.sides) == ["encoder", "random", "start", "pixels", "commonest"]
    page = Path(selfsight.report("run").report).read_text()
    assert "k-NN, %" in page and "over starting weights" in page
    shutil.rmtree("run/start")
    notes = selfsight.evaluate("run", train="labelled/train", test="labelled/test", shots="all").about.notes
    assert any("no folder start" in note for note in notes)


def test_grey_images_and_a_vit(photos: str, tmp_path: Path):
    hub(tmp_path / "vit", name="vit_tiny_patch16_224", img_size=48, **SMALL_VIT)
    grey = write_folder(tmp_path / "grey", 12, size=(32, 32), channels=1)
    Path("small.yaml").write_text(RECIPE.replace("{hidden: 32, width: 16}", "{depth: 1, width: 16}"))
    train(str(grey), "run", weights="vit", objective="mae")
    encoder = load("run")
    assert encoder.geometry.channels == 1 and encoder.net.patch_embed.grid_size == (4, 4)
    assert encoder.geometry.mean == pytest.approx(((0.5 * 3) / 3,), abs=0.05)


WRONG = [
    ({"objective": "mae"}, "resnet18 has none"),
    ({"encoder": "resnet50"}, "are of resnet18, not of resnet50"),
    ({"weights": "nowhere"}, "There are no weights nowhere"),
    ({"weights": "timm:resnet19"}, "timm has no model"),
    ({"weights": "hub/config.json"}, "There are no weights"),
]


@pytest.mark.parametrize(("how", "said"), WRONG)
def test_what_cannot_be_is_one_sentence_and_leaves_no_run(photos: str, how: dict[str, Any], said: str):
    with pytest.raises(SelfsightError, match=said) as error:
        train(photos, "run", **how)
    assert "\n" not in str(error.value) and not Path("run", "recipe.yaml").exists()
    with pytest.raises(SelfsightError, match=said):
        selfsight.plan(photos, **{"weights": "hub", "steps": 1, "recipe": "small.yaml"} | how)


def test_weights_are_tried_before_any_image_is_read(photos: str):
    with pytest.raises(SelfsightError, match="There are no weights nowhere"):
        selfsight.pretrain("no such folder", out="run", weights="nowhere")


def test_weights_of_a_recipe_are_tried_before_any_image_is_read_too(photos: str):
    shutil.copy("hub/model.safetensors", "cut.safetensors")
    Path("cut.safetensors").write_bytes(Path("cut.safetensors").read_bytes()[:1000])
    for weights, said in (("nowhere", "There are no weights nowhere"), ("cut.safetensors", "cannot be read as")):
        Path("small.yaml").write_text(RECIPE + f"  encoder: resnet18\n  weights: {weights}\n")
        for verb, how in ((selfsight.pretrain, {"out": "run"}), (selfsight.plan, {})):
            with pytest.raises(SelfsightError, match=said):
                verb("no such folder", recipe="small.yaml", **how)
    with pytest.raises(SelfsightError, match="no such folder"):  # the next mistake
        selfsight.plan("no such folder", recipe="small.yaml", weights="random")


def test_the_encoder_of_a_recipe_says_of_which_model_a_file_is(photos: str):
    net = timm.create_model("resnet18", num_classes=5)
    save_file(net.state_dict(), "alone.safetensors")
    Path("small.yaml").write_text(RECIPE + "  encoder: resnet18\n")
    assert selfsight.plan(photos, weights="alone.safetensors", steps=1, recipe="small.yaml").reasons["encoder"]


def test_a_recipe_with_weights_keeps_their_encoder_with_another_task(photos: str):
    net = timm.create_model("resnet18", num_classes=5)
    save_file(net.state_dict(), "alone.safetensors")
    selfsight.plan(photos, weights="alone.safetensors", encoder="resnet18", steps=1, recipe="small.yaml", out="w.yaml")
    values = selfsight.plan(photos, recipe="w.yaml", objective="vicreg", steps=1).values
    assert (values["encoder"], values["weights"], values["objective"]) == ("resnet18", "alone.safetensors", "vicreg")


def test_plan_gives_the_reasons_and_the_licence(photos: str, capsys: pytest.CaptureFixture[str]):
    hub(Path("closed"), "cc-by-nc-4.0")
    result = selfsight.plan(photos, weights="closed", steps=2, recipe="small.yaml", out="mine.yaml")
    show_plan(result)
    said = result.reasons
    assert "cc-by-nc-4.0" in said["weights"] and "forbids" in said["weights"] and "Kumar" in said["freeze_fraction"]
    assert "Howard and Ruder" in said["encoder_lr_scale"] and said["batch_norm_policy"]
    assert result.values["encoder"] == "resnet18"
    train(photos, "run", weights=None, recipe="mine.yaml", steps=1)
    assert Run.open("run").read_recipe()[1].weights == "closed"
    other = selfsight.plan(photos, weights="random", steps=2, recipe="mine.yaml").values
    assert (other["freeze_fraction"], other["encoder_lr_scale"], other["batch_norm_policy"]) == (0.0, 1.0, "batch")


def test_a_recipe_of_the_former_format_is_read(photos: str):
    train(photos, "run", weights=None, encoder="resnet18")
    file = Path("run/recipe.yaml")
    content = yaml.safe_load(file.read_text())
    content["format_version"] = 2
    for name in ("weights", "freeze_fraction", "encoder_lr_scale", "batch_norm_policy"):
        del content["resolved"][name]
    content["resolved"]["pretrained"] = False
    file.write_text(yaml.safe_dump(content))
    assert Run.open("run").read_recipe()[1].weights == "random"
    assert selfsight.report("run") and train(photos, "again", recipe="run/recipe.yaml", weights=None).steps == 4
    shutil.rmtree("run/encoder")  # stopped before its end, it goes on
    assert train(photos, "run", weights=None, encoder="resnet18").steps == 4
    content["resolved"]["pretrained"] = content["asked"]["pretrained"] = True
    file.write_text(yaml.safe_dump(content))
    asked, recipe, _ = Run.open("run").read_recipe()
    assert recipe.weights == asked["weights"] == "timm:resnet18" and "pretrained" not in asked
    as_it_was_then = (0.0, 1.0, "batch")
    assert (recipe.freeze_fraction, recipe.encoder_lr_scale, recipe.batch_norm_policy) == as_it_was_then


def test_former_names_of_values_are_read(photos: str):
    """In a recipe that a user wrote, whose hash is still that of format 3, and in the recipe of a run."""
    text = RECIPE + "  frozen: 0.25\n  statistics: batch\n"
    Path("small.yaml").write_text(text)
    train(photos, "run")
    content = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert content["format_version"] == 4 and content["resolved"]["freeze_fraction"] == 0.25
    digest = hashlib.blake2b(repr(yaml.safe_load(text)["resolved"]).encode(), digest_size=8).hexdigest()
    assert content["asked"]["recipe_digest"] == digest
    _, wanted, _ = Run.open("run").read_recipe()
    former = {"freeze_fraction": "frozen", "encoder_lr_scale": "encoder_rate", "batch_norm_policy": "statistics"}
    for part in ("resolved", "reasons"):
        content[part] = {former.get(name, name): value for name, value in content[part].items()}
    Path("run/recipe.yaml").write_text(yaml.safe_dump(content | {"format_version": 3}))
    _, recipe, _ = Run.open("run").read_recipe()
    assert recipe == wanted and "Howard" in recipe.reasons["encoder_lr_scale"] and "frozen" not in recipe.reasons
    with pytest.raises(SelfsightError, match=r"run is finished \(--steps 4\)"):  # the same request, another budget
        train(photos, "run", steps=5)


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_an_extension_does_not_freeze_again(photos: str, rate: float):
    """At a rate of 1 nothing but the frozen part sets the encoder apart, and the optimiser's state still fits."""
    Path("small.yaml").write_text(RECIPE + f"  freeze_fraction: 0.5\n  encoder_lr_scale: {rate}\n")
    train(photos, "run")
    ended = {k: v for k, v in read_checkpoint(Run(Path("run")).checkpoints)[2].items() if k.endswith(".step")}
    train(photos, "run", extend=True, steps=2)
    run = Run.open("run")
    steps = {k: v for k, v in read_checkpoint(run.checkpoints)[2].items() if k.endswith(".step")}
    assert steps.keys() == ended.keys() and {float(v) for v in ended.values()} == {2.0, 4.0}
    assert all(float(v) == float(ended[k]) + 2 for k, v in steps.items())  # of the encoder's as of the heads'
    assert run.start.exists() and run.read_metrics()[-1]["drift"] > 0.0


def test_two_processes_are_one(photos: str, tmp_path: Path):
    Path("small.yaml").write_text(RECIPE + "  freeze_fraction: 0.4\n")
    two = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "selfsight")
    ends = {}
    for out, how in (("one", (sys.executable, "-m", "selfsight")), ("two", two)):
        command = [*how, "pretrain", "photos", "-o", out, "--recipe", "small.yaml", "--steps", "10", "--weights", "hub"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, "--json"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=480)
        assert done.returncode == 0, done.stderr
        ends[out] = load_file(f"{out}/encoder/model.safetensors")
    starts = [Path(out, "start/model.safetensors").read_bytes() for out in ends]
    assert starts[0] == starts[1]
    rows = {out: Run(Path(out)).read_metrics() for out in ends}
    assert [r["step"] for r in rows["two"]] == [1, 10]
    for mine, theirs in zip(rows["two"], rows["one"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["drift"] == pytest.approx(theirs["drift"], rel=1e-2, abs=1e-6)
    trained = [k for k in ends["one"] if not k.startswith("fc.") and ends["one"][k].is_floating_point()]
    assert max(float((ends["two"][k] - ends["one"][k]).abs().max()) for k in trained) < 1e-3
