"""What is measured of data before an encoder is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from helpers import tiny_encoder
from PIL import Image

from selfsight.data.importers import open_source
from selfsight.encoders.statistics import measure_batch_norm, some_inputs


def test_batch_norms_get_the_statistics_of_the_data(images: Callable[..., Path]) -> None:
    folder = images(20)
    encoder = tiny_encoder().eval()
    size, before = encoder.geometry.size, encoder.net.bn1.momentum
    first = encoder.net.bn1
    measure_batch_norm(encoder, some_inputs(open_source(str(folder)), encoder.geometry))
    files = sorted(folder.rglob("*.png"))
    squares = [np.asarray(Image.open(f).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)) for f in files]
    with torch.no_grad():
        seen = encoder.net.conv1(encoder.geometry.to_input(np.stack(squares))).double()  # [N, C, H, W]
    assert torch.allclose(first.running_mean.double(), seen.mean((0, 2, 3)), atol=2e-3)
    assert torch.allclose(first.running_var.double(), seen.var((0, 2, 3)), rtol=2e-2)
    assert not encoder.training and not first.training and first.momentum == before
    with torch.no_grad():  # which is what eval mode now takes away
        normalised = torch.nn.functional.batch_norm(seen.float(), first.running_mean, first.running_var)
    assert torch.allclose(normalised.mean((0, 2, 3)), torch.zeros(seen.shape[1]), atol=2e-2)


def test_weights_stay_as_they_are(images: Callable[..., Path]) -> None:
    encoder = tiny_encoder().eval()
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    measure_batch_norm(encoder, some_inputs(open_source(str(images(6))), encoder.geometry))
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_parameters())


def test_a_last_batch_of_a_few_counts_as_a_few() -> None:
    inputs = torch.randn(34, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    inputs[32:] = 3.0 * inputs[32:] + 5.0
    encoder = tiny_encoder().eval()
    measure_batch_norm(encoder, [inputs[:32], inputs[32:]])
    with torch.no_grad():
        seen = encoder.net.conv1(inputs)  # [N, C, H, W]
    assert torch.allclose(encoder.net.bn1.running_mean, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    within = (32 * seen[:32].var((0, 2, 3)) + 2 * seen[32:].var((0, 2, 3))) / 34
    assert torch.allclose(encoder.net.bn1.running_var, within, rtol=1e-4)
