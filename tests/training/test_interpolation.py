"""What a run from given weights keeps: between two encoders in closed form, the choice, and whole runs both ways."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import NARROW, tiny_encoder
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor

import selfsight
from selfsight.encoders.store import read_folder
from selfsight.training.adaptation import kept_of
from selfsight.training.checkpoints import read_checkpoint
from selfsight.training.interpolation import Tried, chosen, interpolated
from selfsight.training.run import Run
from selfsight.verbs.pretrain import show

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


# -- between two encoders --


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_weights_and_statistics_between_two_encoders_in_closed_form(share: float):
    start, trained = tiny_encoder().eval(), tiny_encoder(seed=5).train()
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(9.0)
            module.num_batches_tracked.fill_(7)
    before = copy.deepcopy((start.state_dict(), trained.state_dict()))
    between = interpolated(start, trained, share)
    assert trained.training and not any(module.training for module in between.modules())
    for name, tensor in between.state_dict().items():
        one, other = (state[name] for state in before)
        if share in (0.0, 1.0) or not tensor.is_floating_point():
            assert torch.equal(tensor, other if share else one)
        else:
            assert torch.allclose(tensor, one + share * (other - one), atol=1e-6)
    for encoder, state in zip((start, trained), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


def test_halfway_between_two_linear_maps_are_the_mean_features():
    """Of a network that is linear, what lies between the weights gives what lies between the features."""
    start, trained = tiny_encoder().eval(), tiny_encoder().eval()
    with torch.no_grad():
        for encoder, lift in ((start, 1.0), (trained, 3.0)):  # before a sum and a ReLU: linear where it is positive
            last = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)][-1]
            last.bias += lift
        x = torch.randn(2, start.geometry.channels, 32, 32)
        low, high = start(x).patches, trained(x).patches
        middle = interpolated(start, trained, 0.5)(x).patches
    positive = (low > 0) & (high > 0)
    assert positive.any() and torch.allclose(middle[positive], ((low + high) / 2)[positive], atol=1e-4)


# -- the choice --


def tried_of(*agreement: Tensor) -> list[Tried]:
    return [Tried(share, 9.0, float(one.mean()), share) for share, one in zip(SHARES, agreement, strict=True)]


def scores(*means: float, noise: float = 0.0) -> list[Tensor]:
    """[100] for each mean, with noise that is the same for an image throughout, and noise that is not."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(100, generator=generator)
    return [mean + 0.3 * image + noise * torch.randn(100, generator=generator) for mean in means]


@pytest.mark.parametrize(
    ("means", "noise", "share"),
    [
        ((0.3, 0.4, 0.5, 0.4, 0.3), 0.01, 0.5), ((0.3, 0.4, 0.5, 0.6, 0.7), 0.01, 1.0),
        ((0.7, 0.6, 0.5, 0.4, 0.3), 0.01, 0.0), ((0.5, 0.5, 0.5, 0.5, 0.5), 0.0, 0.0),
        ((0.3, 0.5, 0.5, 0.5, 0.5), 0.0, 0.25),
    ],
)  # fmt: skip
def test_the_nearest_to_the_start_of_those_that_chance_cannot_tell_from_the_best(means, noise: float, share: float):
    agreement = scores(*means, noise=noise)
    kept = chosen(tried_of(*agreement), agreement)
    assert kept.share == share and kept.drift == share and len(kept.tried) == 5
    words = {0.0: "The starting weights", 0.25: "A quarter", 0.5: "Half", 1.0: "The trained weights are kept"}[share]
    assert kept.why.startswith(words) and f"{kept.tried[0].neighbour_stability:.2f}" in kept.why
    assert ("were better" in kept.why) == (means[-1] < means[0])


def test_within_one_standard_error_of_the_best_and_no_further():
    """The best is 0.01 above the start on average; the standard error of the difference is s / sqrt(N)."""
    away = torch.tensor([-1.0, 1.0]).repeat(50)  # of deviation sqrt(100 / 99)
    for spread, share in ((0.11, 0.0), (0.09, 1.0)):
        agreement = [torch.full((100,), 0.5)] * 4 + [0.51 + spread * away]
        assert chosen(tried_of(*agreement), agreement).share == share


def test_features_that_lost_most_of_their_directions_are_not_kept_however_well_they_agree():
    agreement = scores(0.3, 0.4, 0.5, 0.6, 0.7)
    tried = [Tried(s, rank, s, s) for s, rank in zip(SHARES, (100.0, 80.0, 51.0, 49.0, 1.0), strict=True)]
    kept = chosen(tried, agreement)
    assert kept.share == 0.5


# -- whole runs --

RECIPE = """resolved:
  objective_options: {hidden: 32, width: 16}
  size: 32
  canvas_side: 32
  batch_size: 16
  encoder_lr_scale: 1.0
  batch_norm_policy: batch
  precision: 'no'
  threads: 1
"""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pictures of 64 grounds and stripes, which even random weights tell apart in part."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE)
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(64):
        stripes = np.sin(np.arange(32) * rng.uniform(0.2, 2.5))[None, :, None]
        pixels = rng.uniform(30, 225, 3) + stripes * rng.uniform(-60, 60, 3) + rng.normal(0, 4, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(f"photos/{i:02d}.png")
    return "photos"


def hub(statistics: float = 0.0) -> None:
    """Random weights in hub/, whose batch norms expect means of `statistics`."""
    torch.manual_seed(7)
    net = timm.create_model("resnet18", num_classes=5, **NARROW)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.fill_(statistics)
    save_for_hf(net, "hub", safe_serialization=True)


def test_where_adaptation_helps_it_is_kept(photos: str):
    """It gives the batch norms the statistics of these pictures, where those of the start let nothing through."""
    hub(statistics=4.0)
    result = selfsight.pretrain(photos, steps=40, out="run", weights="hub", recipe="small.yaml")
    figures = {one.share: one.neighbour_stability for one in result.kept.tried}
    assert result.kept.share >= 0.5 and figures[result.kept.share] > figures[0.0] + 0.1
    assert result.kept == kept_of(Run(Path("run"))) and result.kept.drift > 0.0
    start, kept = read_folder("run/start"), read_folder("run/encoder")
    assert not torch.equal(start.net.bn1.running_mean, kept.net.bn1.running_mean)


def test_destroyed_weights_are_not_kept_and_an_extension_goes_on_from_them(photos: str, capsys):
    hub()
    Path("small.yaml").write_text(RECIPE.replace("batch_norm_policy: batch", "batch_norm_policy: kept"))
    how = {"out": "run", "weights": "hub", "recipe": "small.yaml", "learning_rate": 0.3}
    result = selfsight.pretrain(photos, steps=12, **how)
    assert result.kept.share == 0.0 and "were better and are kept" in result.kept.why
    start, end = (load_file(f"run/{name}/model.safetensors") for name in ("start", "encoder"))
    assert all(torch.equal(start[name], end[name]) for name in start) and "fc.weight" in end
    show(result)
    assert result.kept.why in " ".join(capsys.readouterr().out.split())
    run = Run(Path("run"))
    assert [event.text for event in run.read_log() if event.kind == "kept"] == [result.kept.why]
    assert json.loads(run.adaptation_file.read_text())["after"]["drift"] == result.kept.drift == 0.0
    assert result.kept.why in Path(selfsight.report("run").report).read_text()
    trained = read_checkpoint(run.checkpoints)[1]["encoder.net.conv1.weight"]
    selfsight.pretrain(photos, steps=2, extend=True, **how)
    further = read_checkpoint(run.checkpoints)[1]["encoder.net.conv1.weight"]
    assert 0.0 < float((further - trained).norm()) < float((trained - start["conv1.weight"]).norm())
