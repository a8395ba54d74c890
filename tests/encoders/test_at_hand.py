"""Weights at hand: packages, and caches of the hub and of torch, laid out as their owners lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import SMALL_RECIPE, needs_package, write_folder

import selfsight
from selfsight.encoders import at_hand as module
from selfsight.encoders.at_hand import AtHand, at_hand, in_words
from selfsight.verbs.plan import show

COMMIT = "767268603ca0cb0bfe326fa87277f19c419566ef"


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and no package."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(module, "PACKAGES", {})
    return tmp_path


def on_the_hub(cache: Path, repository: str, file: str | None = "model.safetensors") -> None:
    """A repository as huggingface_hub keeps it: the bytes by their hash, a snapshot that links to them, a branch."""
    folder = cache / "hub" / f"models--{repository.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    if file is not None:
        (folder / "blobs" / "0badcafe").write_bytes(b"not read")
        (folder / "snapshots" / COMMIT / file).symlink_to("../../blobs/0badcafe")


def test_nothing_is_at_hand_where_there_is_no_cache_and_where_it_is_empty(caches: Path):
    assert at_hand() == []
    (caches / "hub").mkdir()
    (caches / "torch" / "checkpoints").mkdir(parents=True)
    assert at_hand() == []


def test_the_hubs_cache_is_named_by_what_timm_would_load_from_it(caches: Path):
    on_the_hub(caches, "timm/resnet18.a1_in1k")
    on_the_hub(caches, "timm/vit_small_patch16_224.dino", "pytorch_model.bin")
    on_the_hub(caches, "timm/resnet50.a1_in1k", None)  # a download that was stopped
    on_the_hub(caches, "timm/resnet34.a1_in1k", "README.md")
    on_the_hub(caches, "somebody/bert")
    (caches / "hub" / ".locks").mkdir()
    found = {one.weights: one for one in at_hand()}
    assert set(found) == {"timm:resnet18.a1_in1k", "timm:vit_small_patch16_224.dino"}
    assert found["timm:resnet18.a1_in1k"] == AtHand("timm:resnet18.a1_in1k", "apache-2.0", "resnet18")


def test_torchs_cache_is_named_by_the_files_that_torchvision_downloads(caches: Path):
    (caches / "torch" / "checkpoints").mkdir(parents=True)
    for name in ("resnet18-f37072fd.pth", "resnet50-11ad3fa6.pth", "mine.pth"):
        (caches / "torch" / "checkpoints" / name).touch()
    found = at_hand()
    assert [one.weights for one in found] == [
        "torchvision:resnet18.IMAGENET1K_V1",
        "torchvision:resnet50.IMAGENET1K_V2",
    ]
    assert {one.architecture for one in found} == {"resnet18", "resnet50"} and "unknown" in found[0].licence


@needs_package
def test_an_installed_package_is_at_hand(caches: Path, monkeypatch: pytest.MonkeyPatch):
    from selfsight.encoders.weights import PACKAGES

    monkeypatch.setattr(module, "PACKAGES", PACKAGES)
    assert at_hand() == [AtHand("package:efficientnet_lite0", "apache-2.0", "tf_efficientnet_lite0")]


def test_the_sentence_names_licences_and_says_no_more_than_was_measured():
    mine = AtHand("timm:resnet18.a1_in1k", "apache-2.0", "resnet18")
    text = in_words([mine], 3)
    assert (
        text.startswith("On this machine: timm:resnet18.a1_in1k (apache-2.0). --weights NAME") and "45 points" in text
    )
    assert "small defects" in in_words([mine], 1) and "45 points" not in in_words([mine], 1)
    other = AtHand("timm:vit_small_patch14_dinov2.lvd142m", "apache-2.0", "vit_small_patch14_dinov2")
    assert "ImageNet" not in in_words([other], 3)
    assert "and 2 more" in in_words([mine] * 7, 3)


def test_plan_and_a_run_from_random_weights_name_them(caches: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(caches)
    Path("small.yaml").write_text(SMALL_RECIPE)
    photos = str(write_folder(caches / "photos", 8, size=(32, 32)))
    how = {"recipe": "small.yaml", "steps": 1}
    plan = selfsight.plan(photos, **how)
    selfsight.pretrain(photos, out="without", **how)
    show(plan)
    said = capsys.readouterr()
    assert plan.at_hand == [] and "On this machine" not in said.out + said.err
    on_the_hub(caches, "timm/resnet18.a1_in1k")
    plan = selfsight.plan(photos, **how)
    expected = {"weights": "timm:resnet18.a1_in1k", "licence": "apache-2.0", "architecture": "resnet18"}
    assert plan.to_dict()["at_hand"] == [expected]
    show(plan)
    line = in_words(plan.at_hand, 3)
    assert line in capsys.readouterr().out
    result = selfsight.pretrain(photos, out="with", **how)
    assert line in capsys.readouterr().err and result.starting_weights is None and result.kept is None
    selfsight.pretrain(photos, out="adapted", weights="with", **how)
    assert "On this machine" not in capsys.readouterr().err
