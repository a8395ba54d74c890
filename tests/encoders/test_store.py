"""What is saved loads again, with us and without us, and gives the same features."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_encoder
from PIL import Image

from selfsight.data.geometry import Geometry
from selfsight.data.importers import open_source
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import pooled
from selfsight.encoders.store import create, random_like, read_folder, save
from selfsight.encoders.weights import load
from selfsight.encoders.whitening import whiten
from selfsight.errors import SelfsightError

PLAIN_TIMM = """
import sys
import numpy as np, timm, torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
for folder, mode, out, *files in [job.split("|") for job in sys.argv[1:]]:
    net = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    with torch.no_grad():
        x = torch.stack([transform(Image.open(f).convert(mode)) for f in files])
        np.save(out, net(x).numpy())
assert "selfsight" not in sys.modules
"""


def normal_statistics(encoder: Encoder) -> Encoder:
    """Batch norm statistics as after training: eval mode must use and keep them."""
    generator = torch.Generator().manual_seed(3)
    for module in encoder.net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            with torch.no_grad():  # timm starts the last norm of a block at nought
                module.weight.copy_(torch.rand(module.weight.shape, generator=generator) + 0.5)
            module.running_mean.copy_(torch.rand(module.bias.shape, generator=generator) * 0.2 - 0.1)
            module.running_var.copy_(torch.rand(module.bias.shape, generator=generator) + 0.5)
    return encoder.eval()


def test_plain_timm_gives_the_same_features_without_us(images: Callable[..., Path], tmp_path: Path):
    jobs, wanted = [], []
    for channels, mode in ((3, "RGB"), (1, "L")):
        folder = images(24, name=f"in-{channels}", channels=channels, size=(50, 70))
        collection = open_source(folder)
        for name in ("resnet18", "vit_tiny_patch16_224", "whitened"):
            encoder = normal_statistics(
                tiny_encoder(channels=channels, name="resnet18" if name == "whitened" else name)
            )
            encoder.geometry = Geometry(
                channels, 32, (0.0, 255.0), (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
            )
            if name == "whitened":
                _, features, _ = pooled(encoder, collection)
                whiten(encoder, torch.from_numpy(features))
                encoder.eval()
            rows, features, bad = pooled(encoder, collection)
            assert not bad and len(rows) == 24
            saved = tmp_path / f"{name}-{channels}"
            save(encoder, saved)
            files = [str(folder / uri) for uri in rows["uri"].to_pylist()]
            jobs.append("|".join([str(saved), mode, str(saved) + ".npy", *files]))
            wanted.append((saved, features))
            again = read_folder(saved)
            assert again.digest == encoder.digest and again.geometry == encoder.geometry
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", PLAIN_TIMM, *jobs], check=True, env=env, cwd=tmp_path)
    for saved, features in wanted:
        got = np.load(str(saved) + ".npy")
        assert np.abs(got - features).max() <= 1e-5 * max(1.0, np.abs(features).max()), saved
        assert features.std(0).mean() > 1e-4, "features of all images alike would prove nothing"


def test_what_is_saved_is_read_back(tmp_path: Path):
    encoder = tiny_encoder(channels=1).eval()
    encoder.geometry = Geometry(1, 32, (100.0, 3000.0), (0.3,), (0.1,))
    encoder.about |= {"view_size": 16}
    save(encoder, tmp_path / "run" / "encoder")
    for path in (tmp_path / "run", tmp_path / "run" / "encoder"):  # a run folder, or the encoder's own
        again = load(path)
        assert again.geometry == encoder.geometry and again.about == encoder.about
        assert again.digest == encoder.digest and not again.training
        x = torch.randn(2, 1, 32, 32)
        assert torch.equal(again(x).pooled, encoder(x).pooled)
    assert sorted(p.name for p in (tmp_path / "run" / "encoder").iterdir()) == ["config.json", "model.safetensors"]
    assert encoder.about["licence"] == "none: trained from random weights"


def test_others_may_read_what_is_saved_and_random_weights_name_nobody(tmp_path: Path):
    save(tiny_encoder(), tmp_path)
    kinds = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    (tmp_path / "plain").write_text("")
    assert set(kinds.values()) == {stat.S_IMODE((tmp_path / "plain").stat().st_mode)}
    content = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert not {"tag", "license", "origin_url", "paper_ids"} & content.keys() and content["first_conv"] == "conv1"
    encoder = tiny_encoder()
    encoder.about["licence"] = "apache-2.0"  # of weights that it started from
    save(encoder, tmp_path)
    assert "tag" in json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]


def test_saving_moves_and_reformats_nothing(tmp_path: Path):
    encoder = tiny_encoder().train().to(memory_format=torch.channels_last)
    before = {name: (value.data_ptr(), value.stride()) for name, value in encoder.state_dict().items()}
    save(encoder, tmp_path / "e")
    assert {name: (value.data_ptr(), value.stride()) for name, value in encoder.state_dict().items()} == before
    assert encoder.training
    save(tiny_encoder(), tmp_path / "contiguous")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "e" / name).read_bytes() == (tmp_path / "contiguous" / name).read_bytes()


def test_saving_again_replaces(tmp_path: Path):
    save(tiny_encoder(seed=0), tmp_path / "e")
    save(tiny_encoder(seed=1), tmp_path / "e")
    assert read_folder(tmp_path / "e").digest == tiny_encoder(seed=1).digest


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_random_like_is_the_same_architecture_with_other_reproducible_weights(tmp_path: Path, name: str):
    encoder = tiny_encoder(channels=1, name=name).eval()
    save(encoder, tmp_path / "e")
    for source in (encoder, read_folder(tmp_path / "e")):
        state = torch.get_rng_state()
        one, two, other = random_like(source, 1), random_like(source, 1), random_like(source, 2)
        assert one.digest == two.digest and len({encoder.digest, one.digest, other.digest}) == 3
        shapes = {k: v.shape for k, v in encoder.net.state_dict().items()}
        assert {k: v.shape for k, v in one.net.state_dict().items()} == shapes
        assert one.geometry == encoder.geometry and not one.training
        assert torch.equal(torch.get_rng_state(), state)  # the control does not disturb what comes after


def test_random_like_a_whitened_encoder_has_no_whitening(tmp_path: Path):
    encoder = tiny_encoder().eval()
    whiten(encoder, torch.randn(50, 32))
    save(encoder, tmp_path / "e")
    fresh = random_like(read_folder(tmp_path / "e"))
    assert fresh.net.num_classes == 0 and fresh.dim == encoder.dim == 32


def test_unknown_names_are_one_sentence(tmp_path: Path):
    with pytest.raises(SelfsightError, match="timm has no model 'resnt18'"):
        load("resnt18")
    for source in (str(tmp_path), "runs/nowhere"):
        with pytest.raises(SelfsightError, match=f"There are no weights {re.escape(source)}. Give a run, a folder"):
            load(source)
    with pytest.raises(SelfsightError, match="Cannot make 'resnet18'"):
        create("resnet18", Geometry(3, 32, (0, 255), (0.5,) * 3, (0.5,) * 3), {"no_such_argument": 1})


def test_an_unknown_tag_of_a_known_model_is_one_sentence():
    with pytest.raises(SelfsightError, match="nonsense"):
        load("resnet18.nonsense")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_weights_file_is_one_sentence(tmp_path: Path, keep: int):
    save(tiny_encoder(), tmp_path / "e")
    path = tmp_path / "e" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SelfsightError, match="cannot be read"):
        read_folder(tmp_path / "e")


@pytest.mark.parametrize("text", ["", "{}", "{broken", '{"pretrained_cfg": {}}', "[]"])
def test_a_damaged_configuration_is_one_sentence(tmp_path: Path, text: str):
    save(tiny_encoder(), tmp_path / "e")
    (tmp_path / "e" / "config.json").write_text(text)
    with pytest.raises(SelfsightError):
        read_folder(tmp_path / "e")


def test_features_are_encoded_once_and_broken_items_are_named(images: Callable[..., Path]):
    folder = images(6)
    path = folder / "000.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    path.write_bytes(data)
    collection = open_source(folder)
    encoder = tiny_encoder().eval()
    rows, features, bad = pooled(encoder, collection)
    assert len(rows) == 5 and next(iter(bad.values())).startswith("cannot be decoded")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "002.png")  # not seen: the features are kept by id
    again = pooled(encoder, collection)
    assert (again[1] == features).all() and again[0].equals(rows)
    alone = pooled(tiny_encoder().eval(), open_source(folder), rows.take([3]))[1]
    assert np.allclose(alone[0], features[3], atol=1e-6)
    with torch.no_grad():
        for uri, row in zip(rows["uri"].to_pylist(), features, strict=True):
            if uri == "002.png":
                continue
            squashed = np.asarray(Image.open(folder / uri).resize((32, 32), Image.Resampling.BICUBIC))
            x = torch.from_numpy(squashed.copy()).permute(2, 0, 1)[None] / 255
            assert np.allclose(encoder((x - 0.5) / 0.25).pooled[0].numpy(), row, atol=1e-5)
