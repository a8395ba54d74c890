"""Whitening: unit covariance, shrunk as declared, kept in the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers import tiny_encoder

from selfsight.encoders.store import read_folder, save
from selfsight.encoders.whitening import FLOOR, SHARE, power_for, whiten, whitening


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
    x = torch.randn(50, 3) @ torch.randn(3, 10)
    for power in (None, 0.5):
        weight, bias = whitening(x, power)
        spread = (x @ weight.T + bias).std(0)
        assert torch.isfinite(weight).all() and spread[3:].max() < 1e-3 < 0.5 < spread[:3].min()
    constant = whitening(torch.ones(5, 4))
    assert torch.isfinite(constant[0]).all() and torch.isfinite(constant[1]).all()


def effective_rank(x: torch.Tensor) -> float:
    values = np.linalg.eigvalsh(np.cov(x.numpy().T.astype(np.float64), bias=True)).clip(1e-30)
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def test_it_goes_until_an_eighth_of_the_directions_count_and_no_further():
    # Closed form of two directions, 1 and e: their shares are 1 / (1 + e ** -t) and the rest, with t = 1 - 2 p.
    variances = torch.tensor([1.0, float(np.e)], dtype=torch.float64)
    for power in (0.1, 0.3):
        share = 1.0 / (1.0 + np.exp(-(1.0 - 2.0 * power)))
        rank = np.exp(-share * np.log(share) - (1 - share) * np.log(1 - share))
        assert abs(power_for(variances, rank) - power) < 1e-4
    few = torch.randn(2000, 200) * torch.logspace(0, -8, 200)
    few_items = few[:161]  # 160 directions are all that they can have
    for x, wanted in ((few, SHARE * 200), (few_items, SHARE * 160)):
        weight, bias = whitening(x)
        assert effective_rank(x) < 0.9 * wanted
        assert abs(effective_rank(x @ weight.T + bias) - wanted) < 0.15 * wanted  # the floor takes a part
    many = torch.randn(2000, 64)
    weight, bias = whitening(many)  # all directions count already: they are turned, and no more
    assert torch.allclose((many @ weight.T + bias).norm(dim=1), (many - many.mean(0)).norm(dim=1), rtol=1e-3)


def test_the_encoder_whitens_its_own_features_and_keeps_it(tmp_path: Path):
    encoder = tiny_encoder().eval()
    x = torch.randn(300, 3, 32, 32) * torch.rand(300, 3, 1, 1) * 3
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
    shrunk = variances / raised ** (2 * power_for(torch.from_numpy(raised), SHARE * 32))
    assert np.abs(covariance - np.diag(shrunk)).max() < 0.02
    assert encoder.dim == 32 and np.abs(white.mean(0).numpy()).max() < 1e-2
