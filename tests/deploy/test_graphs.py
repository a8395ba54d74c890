"""An exported network gives what the network itself gives: encoders of five families, in three kinds of pixels."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import picture, shuffled, tiny_encoder
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from selfsight.data.geometry import Geometry
from selfsight.deploy.engine import Engine
from selfsight.deploy.graphs import EncoderModule, inputs_of, write_graph
from selfsight.deploy.precision import halved
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import create
from selfsight.encoders.whitening import unwhitened, whiten
from selfsight.errors import DataError, SelfsightError

SMALL_VIT = {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
SHORT = {"layers": [1, 1, 0, 0], "channels": [8, 16, 16, 16]}
GREY16, FIVE = (1, 16, (200.0, 60_000.0)), (5, 32, (-1.0, 2.0))
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, int, tuple[float, float]]]] = {
    "ours": ("resnet18", {"layers": [1, 1, 1, 0], "channels": [64, 128, 256, 256]}, (3, 8, (0.0, 255.0))),
    "resnet26": ("resnet26", SHORT, GREY16),
    "vit": ("vit_tiny_patch16_224", SMALL_VIT, FIVE),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}, (3, 8, (0.0, 255.0))),
    "efficientnet": ("tf_efficientnet_lite0", {}, GREY16),
}


def encoder_of(family: str, whitened: bool, **changes: Any) -> Encoder:
    """An encoder with random weights, also in its norms; its size is none that its strides go into."""
    name, args, (channels, depth, window) = FAMILIES[family]
    torch.manual_seed(0)
    geometry = Geometry(channels, 72, window, (0.4,) * channels, (0.3,) * channels, depth)
    encoder = create(name, replace(geometry, **changes), args)
    for stage in encoder.net.blocks if family == "efficientnet" else ():  # the first block of each is enough
        del stage[1:]
    shuffled(encoder.net)
    if whitened:
        assert whiten(encoder, torch.randn(200, encoder.dim))
    return encoder.eval()


def pixels_of(encoder: Encoder, size: tuple[int, int], count: int = 3) -> np.ndarray:
    """[B, C, H, W] of own depth."""
    geometry, rng = encoder.geometry, np.random.default_rng(1)
    unit = np.stack([picture(rng, *size, max(2, geometry.channels)) for _ in range(count)]) / 255.0
    unit = unit[..., : geometry.channels].transpose(0, 3, 1, 2)
    low, high = geometry.window
    values = low - 0.1 * (high - low) + 1.2 * (high - low) * unit  # beyond the window too
    return values.clip(0, 2**geometry.depth - 1).astype({8: np.uint8, 16: np.uint16, 32: np.float32}[geometry.depth])


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_encoder(family: str, tmp_path: Path) -> None:
    encoder = encoder_of(family, whitened=family in ("ours", "vit"))
    takes = write_graph(encoder, tmp_path / "a.onnx", about={"task": '"encode"'})
    assert takes == inputs_of(encoder) and takes.size == (72, 72) and not takes.free
    check_file(tmp_path / "a.onnx")
    engine = Engine(tmp_path / "a.onnx", threads=1)
    pixels = pixels_of(encoder, (72, 72))
    want = encoder.encode(encoder.geometry.to_input(pixels.transpose(0, 2, 3, 1))).pooled.numpy()
    found = engine(pixels)
    assert found["pooled"] == pytest.approx(want, abs=1e-4, rel=1e-4)
    assert engine(pixels[:1])["pooled"] == pytest.approx(want[:1], abs=1e-4, rel=1e-4)
    assert engine.metadata == {"task": '"encode"'} and engine.inputs["pixels"] == pixels.dtype
    if encoder.net.num_classes:
        raw = unwhitened(copy.deepcopy(encoder))
        before = raw.encode(encoder.geometry.to_input(pixels.transpose(0, 2, 3, 1))).pooled.numpy()
        assert found["unwhitened"] == pytest.approx(before, abs=1e-4, rel=1e-4)
        assert np.abs(before - want).max() > 0.1
        check_half(tmp_path / "a.onnx", pixels)


def check_file(file: Path) -> None:
    """It is one file, in which pixels are cast before all else, and that names no place of this machine."""
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    model = onnx.load(file)
    first = {node.op_type for node in model.graph.node if "pixels" in node.input} - {"Shape"}
    kind = model.graph.input[0].type.tensor_type.elem_type
    assert first == {"Cast"} or kind == onnx.TensorProto.FLOAT
    assert model.graph.output[0].name == "pooled"
    assert b"/selfsight" not in file.read_bytes() and b".py" not in file.read_bytes()
    assert {each.value for node in model.graph.node for each in node.metadata_props} == {"encoder"}


def check_half(file: Path, pixels: np.ndarray) -> None:
    """In half precision the layers of the encoder but for the first, and nothing else, compute so."""
    halved(file, file.with_name("half.onnx"))
    before, after = (Engine(file.with_name(name))(pixels)["unwhitened"] for name in ("a.onnx", "half.onnx"))
    assert after.dtype == np.float32 and 0 < np.abs(after - before).max() < 0.01 * np.abs(before).max()
    model = onnx.load(file.with_name("half.onnx"))
    kinds = {each.name: each.data_type for each in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    weights = [kinds[node.input[1]] for node in layers if node.input[1] in kinds]
    single, half = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    assert weights[0] == weights[-1] == single and set(weights[1:-1]) == {half}  # the last is the whitening
    norms = {name for node in model.graph.node if node.op_type == "LayerNormalization" for name in node.input[1:]}
    assert {kinds[name] for name in norms} <= {single}


def test_sides_are_free_under_fit_where_the_network_can(tmp_path: Path) -> None:
    encoder = tiny_encoder(64, layers=[1, 1, 0, 0])
    encoder.net.conv1 = Conv2dSame(3, 64, 7, stride=2, bias=False)  # pads as TensorFlow does, by the size of the input
    shuffled(encoder.net)
    encoder = Encoder(encoder.net, replace(encoder.geometry, rule="fit")).eval()
    takes = write_graph(encoder, tmp_path / "a.onnx")
    assert takes.free
    for size in ((64, 64), (32, 96), (160, 64)):
        pixels = pixels_of(encoder, size, count=2)
        want = encoder.encode(encoder.geometry.to_input(pixels.transpose(0, 2, 3, 1))).pooled.numpy()
        assert Engine(tmp_path / "a.onnx")(pixels)["pooled"] == pytest.approx(want, abs=1e-4, rel=1e-4)


class Unusual(nn.Module):
    """A network with an operator that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"architecture": "resnet18"}
        self.num_classes = 0

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(images)

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return maps.mean((2, 3))


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    encoder = Encoder(Unusual(), Geometry(3, 8, (0.0, 255.0), (0.5,) * 3, (0.5,) * 3)).eval()
    with pytest.raises(SelfsightError, match=r"prims\.bessel_j0, which ONNX does not have"):
        write_graph(encoder, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no network")
    with pytest.raises(DataError, match=r"a\.onnx cannot be read as an ONNX network"):
        Engine(tmp_path / "a.onnx")


def test_whitening_is_a_part_of_its_own() -> None:
    encoder = encoder_of("ours", whitened=True)
    module = EncoderModule(encoder)
    assert module.whiten is not None and not module.encoder.net.num_classes and encoder.net.num_classes
