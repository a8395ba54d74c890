"""Whitening: unit covariance, shrunk as declared, kept in the model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import tiny_encoder

from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import read_folder, save
from selfsight.encoders.whitening import FLOOR, POWER, SHARE, power_for, whiten, whitening


def correlated(count: int, dim: int) -> torch.Tensor:
    mix = torch.randn(dim, dim) * torch.logspace(0, -1, dim)
    return torch.randn(count, dim) @ mix + 5 * torch.randn(dim)


def test_mean_nought_and_covariance_one():
    x = correlated(4000, 12)
    weight, bias = whitening(x, power=0.5, floor=0.0)
    y = (x @ weight.T + bias).double()
    assert y.mean(0).abs().max() < 1e-3
    assert (y.T @ y / len(y) - torch.eye(12)).abs().max() < 1e-3


def test_a_direction_keeps_what_the_power_and_the_floor_leave():
    # Closed form: a direction of variance e comes out with e / (e + f mean(e)) ** (2 p), the largest first.
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    h2 = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    design = torch.kron(torch.kron(h2, h2), h2)[:, 1:5]  # orthogonal columns of variance 1, mean nought
    variances = torch.tensor([8.0, 3.0, 0.99, 0.01], dtype=torch.float64)
    x = design * variances.sqrt() @ rotation.T + 3.0
    weight, bias = whitening(x, power=0.25, floor=0.01)
    y = x.float() @ weight.T + bias
    covariance = y.T @ y / len(y)
    wanted = variances / (variances + 0.01 * variances.mean()) ** 0.5
    assert torch.allclose(covariance.diagonal().double(), wanted, atol=1e-4)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-4


def test_directions_without_variance_do_not_blow_up():
    x = torch.randn(700, 3) @ torch.randn(3, 64)
    for power in (None, 0.5):
        weight, bias = whitening(x, power)
        spread = (x @ weight.T + bias).std(0)
        assert torch.isfinite(weight).all() and spread[3:].max() < 1e-3 < 0.5 < spread[:3].min()
    constant = whitening(torch.ones(5, 4))
    assert torch.isfinite(constant[0]).all() and torch.isfinite(constant[1]).all()


def slow_power(variances: list[float], count: float) -> float:
    """The least of 5,000 powers at which `count` directions count, by loops."""
    for step in range(5000):
        divided = [v ** (1 - 2 * step / 10000) for v in variances]
        shares = [v / math.fsum(divided) for v in divided]
        if math.exp(-math.fsum(share * math.log(share) for share in shares)) >= count:
            return step / 10000
    return 0.5


def powers_taken(x: torch.Tensor) -> tuple[list[float], list[float]]:
    """The variances of `x` with the floor, largest first, and what `whitening` multiplies each direction by."""
    values = np.linalg.eigvalsh(np.cov(x.numpy().T.astype(np.float64), bias=True))[::-1].clip(0)
    raised = values + FLOOR * values.mean()
    return raised.tolist(), whitening(x)[0].double().norm(dim=1).tolist()


@pytest.mark.parametrize("fall, items", [(1.0, 900), (2.6, 900), (4.0, 900), (2.6, 40), (0.0, 900)])
def test_it_goes_a_third_of_the_way_or_until_an_eighth_of_the_directions_count(fall: float, items: int):
    x = torch.randn(items, 96) * torch.arange(1, 97) ** (-fall / 2)
    raised, scales = powers_taken(x)
    power = max(POWER, slow_power(raised, SHARE * min(96, items - 1)))  # 40 items span 39 directions
    assert scales == pytest.approx([v**-power for v in raised], rel=2e-2)
    assert (power > POWER) == (fall > 2.0 and items > 40) and power < 0.3


def test_two_directions_in_closed_form():
    # Of variances 1 and e a share of 1 / (1 + exp(2 p - 1)) is the second's once each is divided by variance ** p.
    variances = torch.tensor([1.0, math.e], dtype=torch.float64)
    for power in (0.1, 0.3):
        share = 1.0 / (1.0 + math.exp(2.0 * power - 1.0))
        count = math.exp(-share * math.log(share) - (1 - share) * math.log(1 - share))
        assert power_for(variances, count) == pytest.approx(power, abs=1e-5)
    assert power_for(variances, 1.0) == 0.0 and power_for(variances, 2.0) == pytest.approx(0.5, abs=1e-5)


def test_the_encoder_whitens_its_own_features_and_keeps_it(tmp_path: Path):
    encoder = tiny_encoder().eval()
    x = torch.randn(300, 3, 1, 1) * torch.rand(300, 3, 32, 32) * 3  # colours: few directions
    with torch.no_grad():
        plain = encoder(x).pooled
        whiten(encoder, plain)
        white = encoder.eval()(x).pooled
        save(encoder, tmp_path / "e")
        again = read_folder(tmp_path / "e")(x).pooled
    assert torch.equal(white, again)
    weight, bias = whitening(plain)
    assert torch.allclose(white, plain @ weight.T + bias, atol=1e-3)
    covariance = np.cov(white.numpy().T, bias=True)
    variances = np.linalg.eigvalsh(np.cov(plain.numpy().T, bias=True).astype(np.float64))[::-1]
    raised = variances + FLOOR * variances.mean()
    shrunk = variances / raised ** (2 * max(POWER, slow_power(raised.tolist(), SHARE * 32)))
    assert np.abs(covariance - np.diag(shrunk)).max() < 0.02
    assert encoder.dim == 32 and np.abs(white.mean(0).numpy()).max() < 1e-2


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "dla34"])  # two heads; a convolution
def test_an_encoder_that_ends_in_more_than_a_linear_layer_stays_as_it_is(name: str):
    net = timm.create_model(name, num_classes=0, **({"img_size": 32} if "deit" in name else {}))
    encoder = Encoder(net, Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3)).eval()
    images = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        plain = encoder(images).pooled
        assert not whiten(encoder, plain) and torch.equal(encoder(images).pooled, plain)
    assert encoder.dim == plain.shape[1]
