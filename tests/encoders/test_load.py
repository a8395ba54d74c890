"""`load`: whatever a model is named by, its own features; fitted to the data, or as it was saved."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers import NARROW, hub_folder, pooled_by_timm, shuffled, tiny_encoder

import selfsight
from selfsight.data.geometry import Geometry
from selfsight.data.pixels import PixelFormat
from selfsight.encoders.store import save
from selfsight.encoders.weights import find_weights, load
from selfsight.encoders.whitening import whiten
from selfsight.errors import SelfsightError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = (sum(IMAGENET[0]) / 3,), (sum(IMAGENET[1]) / 3,)


@pytest.fixture
def downloaded(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """What the hub would give for any model of resnet10t."""
    net = shuffled(timm.create_model("resnet10t"))
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(net.state_dict()))
    return net


@pytest.mark.parametrize("name", ["resnet10t", "timm/resnet10t", "timm:resnet10t", "resnet10t.c3_in1k"])
def test_a_name_alone_is_timms(downloaded: torch.nn.Module, name: str) -> None:
    encoder, x = load(name), torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder.encode(x).pooled, pooled_by_timm(downloaded, x))
    assert encoder.geometry == Geometry(3, 176, (0.0, 255.0), *IMAGENET) and not encoder.training
    assert encoder.about == {"starting_weights": "timm:resnet10t.c3_in1k", "licence": "apache-2.0"}


def test_grey_images_are_seen_as_grey_in_colour(downloaded: torch.nn.Module) -> None:
    encoder, x = load("resnet10t", PixelFormat("L", 16, (9.0, 900.0))), torch.randn(2, 1, 64, 64)
    wanted = pooled_by_timm(downloaded, x.expand(2, 3, 64, 64))
    torch.testing.assert_close(encoder.encode(x).pooled, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert encoder.geometry == Geometry(1, 176, (9.0, 900.0), *GREY, depth=16)


@pytest.mark.parametrize(
    ("mode", "channels", "taken"),
    [("L", 1, "L"), ("LA", 1, "L"), ("RGBA", 3, "RGB"), ("CMYK", 3, "RGB"), ("5", 5, "5")],
)
def test_weights_are_fitted_to_the_data(tmp_path: Path, mode: str, channels: int, taken: str) -> None:
    net = hub_folder(tmp_path / "hub", **NARROW)
    encoder = load(tmp_path / "hub" / "model.safetensors", PixelFormat(mode, 8, (0.0, 255.0)))
    mean, std = IMAGENET if channels == 3 else (GREY[0] * channels, GREY[1] * channels)
    assert encoder.geometry == Geometry(channels, 224, (0.0, 255.0), mean, std, 8, taken)
    rgb, filters = net.conv1.weight, encoder.net.conv1.weight
    wanted = {1: rgb.sum(1, keepdim=True), 3: rgb, 5: rgb[:, [0, 1, 2, 0, 1]] * 3 / 5}[channels]
    torch.testing.assert_close(filters, wanted)
    assert torch.equal(encoder.net.layer3[0].conv1.weight, net.layer3[0].conv1.weight)


@pytest.mark.parametrize("channels", [1, 4])
def test_without_data_weights_keep_their_own_channels(tmp_path: Path, channels: int) -> None:
    net, x = hub_folder(tmp_path / "hub", in_chans=channels, **NARROW), torch.randn(2, channels, 64, 64)
    encoder = load(tmp_path / "hub")
    assert encoder.geometry.channels == channels
    assert torch.equal(encoder.encode(x).pooled, pooled_by_timm(net, x))


def test_a_folder_of_the_hub_and_its_file_are_one_model_without_its_classes(tmp_path: Path) -> None:
    net, x = hub_folder(tmp_path / "hub", **NARROW), torch.randn(2, 3, 64, 64)
    for source in (tmp_path / "hub", str(tmp_path / "hub"), tmp_path / "hub" / "model.safetensors"):
        encoder = load(source)
        assert torch.equal(encoder.encode(x).pooled, pooled_by_timm(net, x)) and encoder.net.num_classes == 0
        assert encoder.about == {"starting_weights": "hub", "licence": "mit"}
    (tmp_path / "hub" / "model.safetensors").rename(tmp_path / "hub" / "other.safetensors")
    assert load(tmp_path / "hub" / "other.safetensors").digest == encoder.digest


def test_an_encoder_of_ours_is_as_it_was_saved_whatever_the_data(tmp_path: Path) -> None:
    encoder = tiny_encoder(channels=1).eval()
    encoder.geometry = Geometry(1, 32, (100.0, 3000.0), (0.3,), (0.1,), 16, "L", "fit")
    whiten(encoder, torch.randn(50, 32))
    save(encoder, tmp_path / "run" / "encoder")
    for part in ("", "encoder", "encoder/model.safetensors"):
        again = load(tmp_path / "run" / part, PixelFormat("RGB", 8, (0.0, 255.0)))
        assert again.geometry == encoder.geometry and again.digest == encoder.digest and again.about == encoder.about
    (tmp_path / "run" / "encoder").rename(tmp_path / "run" / "encoder.before")  # while it is being extended
    assert load(tmp_path / "run").digest == encoder.digest


def test_a_folder_named_like_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder in it comes first, here and in a pretraining; a folder of anything else does not."""
    monkeypatch.chdir(tmp_path)
    encoder = tiny_encoder()
    save(encoder, "timm:resnet18/encoder")
    hub_folder(Path("package:theirs"), **NARROW)
    Path("torchvision:resnet19").mkdir()
    assert load("timm:resnet18").digest == load("./timm:resnet18").digest == encoder.digest
    assert find_weights("timm:resnet18").origin == "timm:resnet18" and find_weights("timm:resnet18").size == 32
    assert load("package:theirs").about["starting_weights"] == "package:theirs"
    with pytest.raises(SelfsightError, match=r"torchvision:resnet19 cannot be used"):
        load("torchvision:resnet19")
    Path("resnet18").mkdir()  # of images
    with pytest.raises(SelfsightError, match=r"There are no weights resnet18\. Did you mean timm:resnet18\?"):
        load("resnet18")
    save(encoder, "package")
    assert load("package").digest == encoder.digest and find_weights("package").origin == "package"
    Path("timm").mkdir()
    with pytest.raises(SelfsightError, match="There are no weights timm"):
        load("timm")
    with pytest.raises(SelfsightError, match="There are no weights timm/resnt18"):
        load("timm/resnt18")


def test_the_public_load_is_this_one() -> None:
    assert selfsight.load is load


MISTAKES = [
    ("alone.safetensors", r"alone\.safetensors has no config\.json beside it.*Put timm's config\.json there"),
    ("absent.safetensors", r"There are no weights absent\.safetensors"),
    ("net.pth", "a pickle can run code"),
    ("absent.pth", "a pickle can run code"),
    ("unended", "is a run that has not ended"),
    ("empty", "There are no weights empty. Give a run, a folder"),
    ("damaged", "is not the config.json that timm writes"),
    ("half", r"no model\.safetensors"),
    ("resnt18", r"timm has no model 'resnt18'\. Did you mean resnet18\?"),
    ("timm:resnt18", "timm has no model 'resnt18'"),
    ("timm:resnet18.a1_in1", r"timm has no weights 'resnet18\.a1_in1'.* Did you mean timm:resnet18\.a1_in1k\?"),
    ("resnet18.a1_in1", r"timm has no weights 'resnet18\.a1_in1'"),
    ("resnet20t", "timm has no model"),
    ("resnet-18", r"timm has no model 'resnet-18'\. Did you mean resnet18\?"),
    ("timm:vit_tiny", r"timm has no model 'vit_tiny'\. There are: vit_tiny_patch16_224, "),
    ("Timm:resnet18", r"There are no weights Timm:resnet18\. Did you mean timm:resnet18\?"),
    ("torchvison:resnet18", r"weights torchvison:resnet18\. Did you mean torchvision:resnet18\?"),
    ("torchvision:resnet19", r"Of torchvision's models these can: resnet18, .* Did you mean torchvision:resnet18\?"),
    ("torchvision:resnet18.IMAGENET", r"torchvision has no weights 'resnet18\.IMAGENET'"),
    ("torchvision:resnet18.", r"torchvision has no weights 'resnet18\.'"),
    ("package:efficientnet", "No package of weights is called 'efficientnet'"),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The hosts whose addresses are asked for; there is no network."""
    hosts: list[Any] = []

    def getaddrinfo(host: Any, *_: Any, **__: Any) -> Any:
        hosts.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return hosts


@pytest.mark.parametrize(("model", "said"), MISTAKES)
def test_a_mistake_is_one_sentence_and_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Any], model: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("unended", "empty", "damaged", "half"):
        Path(folder).mkdir()
    Path("alone.safetensors").write_bytes(b"anything")
    Path("net.pth").write_bytes(b"pickle")
    Path("unended/recipe.yaml").write_text("")
    Path("damaged/config.json").write_text('{"selfsight": []}')
    save(tiny_encoder(), "whole")
    hub_folder(Path("hub"), **NARROW)
    Path("half/config.json").write_text(Path("hub/config.json").read_text())
    with pytest.raises(SelfsightError, match=said) as error:
        load(model)
    assert "\n" not in str(error.value) and "--" not in str(error.value) and not asked


def test_without_a_network_it_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any], tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # which else would try for a minute
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("resnet10t", "timm:resnet10t", "torchvision:resnet18"):
        with pytest.raises(SelfsightError, match="not in the cache, and the network cannot be reached") as error:
            load(name)
        assert "\n" not in str(error.value) and name.partition(":")[2] in str(error.value)
    assert asked == ["download.pytorch.org"]  # so that one would have been seen above


def test_one_file_in_two_places_is_one_model_and_of_other_tensors_another(tmp_path: Path) -> None:
    """Features are kept by the digest, of tensors and geometry."""
    hub_folder(tmp_path / "one", **NARROW)
    hub_folder(tmp_path / "two", **NARROW)
    grey, colour = PixelFormat("L", 8, (0.0, 255.0)), PixelFormat("RGB", 8, (0.0, 255.0))
    one = load(tmp_path / "one", colour).digest
    assert load(tmp_path / "two", colour).digest == one != load(tmp_path / "one", grey).digest
    state = (tmp_path / "two" / "model.safetensors").read_bytes()
    changed = np.frombuffer(state[-4:], np.float32) + 1
    (tmp_path / "two" / "model.safetensors").write_bytes(state[:-4] + changed.tobytes())
    assert load(tmp_path / "two", colour).digest != one
