"""compare: encoders of known worth come in the right order, checkpoints count as runs, and labels only look on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NARROW, SMALL_RECIPE, hub_folder, tiny_encoder, write_folder
from PIL import Image

import selfsight
from selfsight.encoders.store import save
from selfsight.verbs.compare import show


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL_RECIPE)
    return str(write_folder(tmp_path / "photos", 40, size=(40, 40)))


def narrowed(name: str, keep: int) -> None:
    """An encoder of which all but `keep` features say nothing."""
    encoder = tiny_encoder()
    with torch.no_grad():
        last = encoder.net.layer3[-1].bn2
        last.weight[keep:] = 0.0
        last.bias[keep:] = 0.0
        encoder.net.layer3[-1].downsample[1].weight[keep:] = 0.0
        encoder.net.layer3[-1].downsample[1].bias[keep:] = 0.0
    save(encoder, name)


def test_the_more_directions_the_better(photos: str):
    for keep in (2, 8, 32):
        narrowed(f"keep{keep}", keep)
    result = selfsight.compare("keep2", "keep32", "keep8", images=photos)
    assert result.runs[-1].run == "keep2"
    ranks = {row.run: row.rankme for row in result.runs}
    assert ranks["keep2"] <= 2.001 < ranks["keep8"] <= 8.001 and ranks["keep8"] < ranks["keep32"]
    assert result.correlations is None and result.runs[0].knn is None


def test_runs_checkpoints_and_labels(photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    for i in range(24):  # two classes that colour tells apart
        folder = tmp_path / "labelled" / ("red", "blue")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
        pixels[..., 2 * (i % 2)] += 150
        Image.fromarray(pixels).save(folder / f"{i}.png")
    selfsight.pretrain(photos, out="run", recipe="small.yaml", steps=3)
    narrowed("flat", 1)
    checkpoint = "run/checkpoints/step-00000003"
    result = selfsight.compare("run", checkpoint, "flat", probe="labelled")
    by_name = {row.run: row for row in result.runs}
    assert result.images == photos and result.runs[-1].run == "flat"
    assert by_name[checkpoint].rankme != by_name["flat"].rankme
    for figure in ("rankme", "lidar", "alpha_req", "neighbour_stability", "knn"):  # the run whitened what it ended with
        assert getattr(by_name["run"], figure) == pytest.approx(getattr(by_name[checkpoint], figure), rel=1e-3)
    assert all(0 <= row.knn <= 1 for row in result.runs)
    assert set(result.correlations) == {"rankme", "lidar", "alpha_req", "neighbour_stability", "mean_rank"}
    show(result)
    assert "ranks as k-NN does" in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_sentence(photos: str):
    narrowed("flat", 1)
    with pytest.raises(selfsight.SelfsightError, match="two or more runs"):
        selfsight.compare("flat")
    with pytest.raises(selfsight.SelfsightError, match="does not say which images to compare on"):
        selfsight.compare("flat", "flat")


def test_weights_are_compared_like_runs(photos: str):
    narrowed("flat", 2)
    hub_folder(Path("hub"), **NARROW)
    config = json.loads(Path("hub/config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 32, 32]  # soon done
    Path("hub/config.json").write_text(json.dumps(config))
    with pytest.raises(selfsight.SelfsightError, match=r"hub/model\.safetensors is not a run.*Name them: --images"):
        selfsight.compare("hub/model.safetensors", "flat")
    result = selfsight.compare("hub/model.safetensors", "flat", "hub", images=photos)
    rows = {row.run: replace(row, run="") for row in result.runs}
    assert rows["hub"] == rows["hub/model.safetensors"] and rows["hub"].rankme > rows["flat"].rankme
