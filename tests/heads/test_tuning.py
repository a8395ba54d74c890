"""Tuning an encoder by labels: it learns what frozen features cannot tell, and is measured on labels it never saw."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from helpers import SMALL_VIT, tiny_encoder
from PIL import Image
from safetensors.torch import load_file

import selfsight
from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import pooled_labelled
from selfsight.encoders.store import save
from selfsight.errors import SelfsightError
from selfsight.heads.calibration import losses
from selfsight.heads.fits import fit_linear, methods, scored
from selfsight.heads.head import load_head
from selfsight.heads.lora import adapted, merged
from selfsight.heads.targets import Targets
from selfsight.heads.tuning import may_mirror, tuned, usual_budget
from selfsight.heads.tuning_task import norms_of
from selfsight.training.loop import Stopped
from selfsight.training.recipe import Budget

DIRECTIONS = {"across": (1.0, 0.0), "down": (0.0, 1.0), "rising": (0.7, 0.7), "falling": (0.7, -0.7)}


def write_stripes(folder: Path, count: int, seed: int = 0, side: int = 32) -> Path:
    """Stripes of four directions, in random colours, widths and places, with noise: CLASS/NNN.png."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    for name, (a, b) in DIRECTIONS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            waves = np.sin(rng.uniform(0.7, 1.1) * (a * x + b * y) + rng.uniform(0, 6.3))
            pixels = 127 + waves[..., None] * rng.uniform(-100, 100, 3) + rng.normal(0, 25, (side, side, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i:03d}.png")
    return folder


def labelled(folder: Path) -> tuple[Collection, Labels]:
    items = open_source(str(folder))
    return items, Labels.of(items).labelled()


def small(name: str = "resnet18", seed: int = 0) -> Encoder:
    return tiny_encoder(32, seed=seed, name=name).eval()


def tensors(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.net.state_dict().items()}


def accuracy(encoder: Encoder, train: Path, test: Path) -> float:
    """Of the linear head with the best of two strengths, fitted to train and measured on test."""
    (_, features, _), (labels, of_test, _) = (pooled_labelled(encoder, *labelled(side)) for side in (train, test))
    targets = Targets.of(labelled(train)[1])
    truth = Targets.of(labels).numbers
    heads = [fit_linear(features, targets, strength) for strength in (10.0, 1000.0)]
    return max(float((scored(head, of_test).argmax(1) == truth).mean()) for head in heads)


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stripes")
    write_stripes(folder / "train", 24)
    write_stripes(folder / "test", 24, seed=1)
    return folder


def test_it_learns_what_frozen_features_cannot_tell(stripes: Path) -> None:
    encoder = small()
    items, labels = labelled(stripes / "train")
    before = tensors(encoder)
    made = tuned(encoder, items, labels, "finetune", Budget(steps=120))
    frozen, now = (accuracy(each, stripes / "train", stripes / "test") for each in (encoder, made))
    assert now > 0.9 and now > frozen + 0.3, (frozen, now)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(encoder).items())  # as it was
    assert made.digest != encoder.digest and not made.training


def test_norm_changes_no_other_tensor(stripes: Path) -> None:
    items, labels = labelled(stripes / "train")
    for name in ("resnet18", "vit_tiny_patch16_224"):
        encoder = small(name)
        made = tensors(tuned(encoder, items, labels, "norm", Budget(steps=3)))
        changed = {key for key, tensor in tensors(encoder).items() if not torch.equal(tensor, made[key])}
        norms = {id(p) for norm in norms_of(encoder.net) for p in norm.parameters(recurse=False)}
        assert changed == {key for key, p in encoder.net.named_parameters() if id(p) in norms} and changed


def test_lora_merged_is_lora_unmerged(stripes: Path) -> None:
    pytest.importorskip("peft")
    encoder, images = small("vit_tiny_patch16_224"), torch.rand(3, 3, 32, 32)
    before, names, kind = encoder(images).pooled, list(encoder.net.state_dict()), type(encoder.net)
    adapted(encoder.net)
    assert torch.allclose(encoder(images).pooled, before, atol=1e-6)  # it begins as it was
    learning = {key: p for key, p in encoder.net.named_parameters() if p.requires_grad}
    assert learning and all("lora" in key for key in learning) and len(learning) == 2 * 2 * 2  # of two blocks
    for p in learning.values():
        torch.nn.init.normal_(p, std=0.2)
    unmerged = encoder(images).pooled
    assert (unmerged - before).abs().max() > 0.1
    merged(encoder.net)
    assert torch.allclose(encoder(images).pooled, unmerged, atol=1e-5)
    assert list(encoder.net.state_dict()) == names and type(encoder.net) is kind
    assert all(p.requires_grad for p in encoder.net.parameters())


def test_lora_is_saved_as_plain_timm(stripes: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    encoder = small("vit_tiny_patch16_224")
    items, labels = labelled(stripes / "train")
    made = tuned(encoder, items, labels, "lora", Budget(steps=4))
    changed = {key for key, tensor in tensors(encoder).items() if not torch.equal(tensor, tensors(made)[key])}
    layers = ("qkv", "proj")
    assert changed == {f"blocks.{i}.attn.{layer}.weight" for i in range(SMALL_VIT["depth"]) for layer in layers}
    save(made, tmp_path / "encoder")
    plain = timm.create_model(f"local-dir:{tmp_path / 'encoder'}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.allclose(plain(images), made(images).pooled, atol=1e-5)


def test_lora_is_refused_without_attention_or_peft(stripes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, labels = labelled(stripes / "train")
    with pytest.raises(SelfsightError, match="--method lora is for ViTs"):
        tuned(small(), items, labels, "lora", Budget(steps=1))
    monkeypatch.setattr("selfsight.heads.lora.find_spec", lambda name: None)
    with pytest.raises(SelfsightError, match=r"pip install 'selfsight\[lora\]'"):
        tuned(small("vit_tiny_patch16_224"), items, labels, "lora", Budget(steps=1))


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import selfsight.training.loop as loop
from test_tuning import *
loop.CHECKPOINT_SECONDS = 0.0
torch.set_num_threads(1)
items, labels = labelled(Path(sys.argv[2]))
tuned(small(), items, labels, "finetune", Budget(steps=40), folder=Path(sys.argv[3]))
"""


def test_killed_and_begun_again_it_gives_the_same_bytes(stripes: Path, tmp_path: Path) -> None:
    items, labels = labelled(stripes / "train")
    save(tuned(small(), items, labels, "finetune", Budget(steps=40)), tmp_path / "whole")
    folder = tmp_path / "tuning"
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(stripes / "train"), str(folder)]
    path = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while len(list(folder.glob("checkpoints/step-*[0-9]"))) < 2 and time.monotonic() < until and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    said = child.communicate()[1]
    reached = sorted(folder.glob("checkpoints/step-*[0-9]"))
    assert reached and 0 < int(reached[-1].name[5:]) < 40, said
    with pytest.raises(SelfsightError, match="holds a tuning that was stopped, with another seed"):
        tuned(small(), items, labels, "finetune", Budget(steps=40), seed=1, folder=folder)
    save(tuned(small(), items, labels, "finetune", Budget(steps=40), folder=folder), tmp_path / "resumed")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed"))
    assert one == two and tensors(small())["conv1.weight"].ne(load_file(tmp_path / "whole" / "model.safetensors")[
        "conv1.weight"]).any()  # fmt: skip


def test_minutes_and_the_usual_budget(stripes: Path) -> None:
    items, labels = labelled(stripes / "train")
    assert [usual_budget(count).steps for count in (4, 320, 100_000)] == [100, 300, 1000]
    with pytest.raises(SelfsightError, match="too few for a single step"):
        tuned(small(), items, labels, "finetune", Budget(minutes=0.01))


def test_pictures_are_mirrored_only_where_they_mean_the_same(tmp_path: Path) -> None:
    """Of pictures that are bright on one side, the side or the colour is the class."""
    rng = np.random.default_rng(0)
    for kind in ("side", "colour"):
        for which in (0, 1):
            (tmp_path / kind / str(which)).mkdir(parents=True)
            for i in range(20):
                pixels = rng.normal(90, 12, (32, 32, 3))
                half = which if kind == "side" else i % 2
                pixels[:, 16 * half : 16 * half + 16, 2 * which if kind == "colour" else slice(None)] += 90
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / kind / str(which) / f"{i}.png")
    encoder = small("vit_tiny_patch16_224")
    found = {}
    for kind in ("side", "colour"):
        items, labels = labelled(tmp_path / kind)
        _, features, _ = pooled_labelled(encoder, items, labels)
        found[kind] = may_mirror(encoder, items, labels, Targets.of(labels), features)
    assert found == {"side": False, "colour": True}


# -- as a verb --


def test_the_head_of_a_tuned_encoder(stripes: Path, tmp_path: Path) -> None:
    save(small(), tmp_path / "encoder")
    common = {"model": str(tmp_path / "encoder"), "out": str(tmp_path / "head")}
    result = selfsight.train.classify(str(stripes / "train"), **common, method="finetune", steps=120)
    assert result.method.startswith("finetune C=") and (result.over_frozen.value or 0.0) > 0.2  # type: ignore[union-attr]
    assert any(note.startswith("the tuned head is better than the frozen one: accuracy") for note in result.notes)
    head = load_head(tmp_path / "head")
    assert head.about.encoder == head.encoder.digest != small().digest
    items = pq.read_table(tmp_path / "head" / "items.parquet")
    hidden = np.array(items["fold"].to_pylist()) >= 0
    assert len(items) == 96 and 15 <= hidden.sum() <= 25  # a fifth was kept from tuning
    assert [row is not None for row in items["held_out"].to_pylist()] == hidden.tolist()
    evaluated = selfsight.evaluate(str(tmp_path / "head"), test=str(stripes / "test"))
    assert (evaluated.metrics["top1"].value or 0.0) > 0.85  # type: ignore[union-attr]
    assert not (tmp_path / "head.tuning").exists()
    with pytest.raises(SelfsightError, match="--steps is for --method finetune, norm and lora"):
        selfsight.train.classify(str(stripes / "train"), **common, method="linear", steps=10)
    with pytest.raises(SelfsightError, match="one of --minutes"):
        selfsight.train.classify(str(stripes / "train"), **common, method="norm", steps=10, minutes=1)


def test_labels_without_meaning_are_not_learnt_by_heart(stripes: Path, tmp_path: Path) -> None:
    """The encoder tells all that it was tuned on apart; what it says of other items must be no better than chance."""
    names = sorted(path.relative_to(stripes / "train").as_posix() for path in (stripes / "train").rglob("*.png"))
    classes = np.random.default_rng(0).permutation(np.repeat(["a", "b", "c"], 32))
    rows = [f"{name},{label}" for name, label in zip(names, classes, strict=True)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    save(small(), tmp_path / "encoder")
    result = selfsight.train.classify(
        str(stripes / "train"), model=str(tmp_path / "encoder"), out=str(tmp_path / "head"), method="finetune",
        steps=40, labels=str(tmp_path / "labels.csv"),
    )  # fmt: skip
    assert (result.metrics["top1"].low or 0.0) < 1 / 3 + 0.1


def test_the_frozen_head_is_kept_where_tuning_gains_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for place, name in enumerate(("red", "green", "blue")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.normal(90, 10, (32, 32, 3))
            pixels[:, :, place] += 100
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    save(small(), tmp_path / "encoder")
    result = selfsight.train.classify(
        str(tmp_path / "photos"), model=str(tmp_path / "encoder"), out=str(tmp_path / "head"), method="norm", steps=2
    )
    assert result.method.split()[0] in ("prototypes", "linear", "knn")
    assert any(
        note.startswith("the frozen head is kept, as the tuned one is not better: accuracy") for note in result.notes
    )
    head = load_head(tmp_path / "head")
    assert head.about.encoder == small().digest and "tuned_from" not in (tmp_path / "head/lineage.json").read_text()
    assert min(pq.read_table(tmp_path / "head" / "items.parquet")["fold"].to_pylist()) == 0  # all are held out in turn


STEEP = {"across": 0.0, "rising": 1.0, "down": 2.0, "falling": 3.0}


@pytest.mark.parametrize("kind", ["classes", "grade", "number"])
def test_other_kinds_of_labels(stripes: Path, kind: str) -> None:
    """Whether stripes lean and whether they rise, how steep they are as a grade of uneven sizes, and as a number."""
    several = {"across": (), "down": ("rises",), "rising": ("leans", "rises"), "falling": ("leans",)}
    encoder, sides = small(), []
    for side in ("train", "test"):
        items, labels = labelled(stripes / side)
        made = {
            "classes": lambda name: several[name],
            "grade": lambda name: str(int(STEEP[name])),
            "number": lambda name: STEEP[name],
        }[kind]
        labels = replace(labels, kind=kind, values=tuple(made(str(name)) for name in labels.values))  # type: ignore[arg-type]
        uneven = kind == "grade" and side == "train"
        sides.append((items, labels.take(np.arange(len(labels))[10 if uneven else 0 :])))
    tuned_on = tuned(encoder, *sides[0], "finetune", Budget(steps=80))
    lost = []
    for each in (encoder, tuned_on):
        (known, features, _), (asked, of_test, _) = (pooled_labelled(each, *side) for side in sides)
        fits = methods(kind, 96)["linear"].values()
        scores = [scored(fit(features, Targets.of(known)), of_test) for fit in fits]
        lost.append(min(losses(Targets.of(asked), each).mean() for each in scores))
    assert lost[1] < 0.6 * lost[0], lost


def test_a_number_as_a_verb(stripes: Path, tmp_path: Path) -> None:
    names = [path.relative_to(stripes / "train").as_posix() for path in sorted((stripes / "train").rglob("*.png"))]
    rows = [f"{name},{STEEP[name.split('/')[0]]}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    save(small(), tmp_path / "encoder")
    result = selfsight.train.classify(
        str(stripes / "train"), model=str(tmp_path / "encoder"), out=str(tmp_path / "head"), method="finetune",
        steps=40, labels=str(tmp_path / "labels.csv"), kind="number",
    )  # fmt: skip
    assert result.kind == "number" and (result.over_frozen.value or 0.0) > 0  # type: ignore[union-attr]
    assert len(selfsight.predict(str(stripes / "test"), head=str(tmp_path / "head")).table) == 96


def test_ctrl_c_saves_and_the_same_command_goes_on(
    stripes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfsight.heads.tuning_task import Tuning

    save(small(), tmp_path / "encoder")
    schedule = Tuning.schedule

    def interrupted(task: Tuning, progress: float) -> dict[str, float]:
        if progress > 0.5:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does; the step is done first
        return schedule(task, progress)

    def train() -> object:
        return selfsight.train.classify(
            str(stripes / "train"), model=str(tmp_path / "encoder"), out=str(tmp_path / "head"), method="norm", steps=20
        )

    monkeypatch.setattr(Tuning, "schedule", interrupted)
    with pytest.raises(Stopped, match="The same command goes on from here"):
        train()
    assert list((tmp_path / "head.tuning" / "checkpoints").iterdir()) and not (tmp_path / "head").exists()
    monkeypatch.setattr(Tuning, "schedule", schedule)
    train()
    assert (tmp_path / "head" / "head.json").exists() and not (tmp_path / "head.tuning").exists()
    shutil.rmtree(tmp_path / "head")
