"""NT-Xent against a double loop over algorithm 1, closed forms, and numbers of another library."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import batch_of, picture, tiny_encoder, two_views

from selfsight.objectives.simclr import SimCLR, nt_xent


def slow_nt_xent(z: torch.Tensor, temperature: float, decoupled: bool) -> float:
    """Chen et al. 2020, algorithm 1, in Python floats; every other view of the anchor's item is a positive in turn,
    and only views of other items are negatives. Decoupled: Yeh et al. 2022, equation 6."""
    views, batch, _ = z.shape
    rows = {(v, i): [float(x) for x in z[v, i]] for v in range(views) for i in range(batch)}

    def similarity(a: tuple[int, int], b: tuple[int, int]) -> float:
        x, y = rows[a], rows[b]
        dot = math.fsum(p * q for p, q in zip(x, y, strict=True))
        return dot / math.sqrt(math.fsum(p * p for p in x)) / math.sqrt(math.fsum(q * q for q in y))

    losses = []
    for anchor in rows:
        negatives = [math.exp(similarity(anchor, k) / temperature) for k in rows if k[1] != anchor[1]]
        for positive in ((v, anchor[1]) for v in range(views) if v != anchor[0]):
            s = similarity(anchor, positive) / temperature
            below = math.fsum(negatives) + (0.0 if decoupled else math.exp(s))
            losses.append(-s + math.log(below))
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("views, batch, dim", [(2, 2, 3), (2, 7, 5), (4, 5, 8), (3, 2, 1)])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 10.0])
def test_equals_the_double_loop(views: int, batch: int, dim: int, temperature: float, decoupled: bool):
    z = torch.randn(views, batch, dim, dtype=torch.float64)
    assert nt_xent(z, temperature, decoupled).item() == pytest.approx(slow_nt_xent(z, temperature, decoupled), abs=2e-5)


def test_equals_lightly():
    # lightly 1.6.0 (MIT), NTXentLoss(0.5) and DCLLoss(0.5)-like decoupling on these embeddings: peers.md, E.2.
    torch.manual_seed(0)
    z = torch.stack([torch.randn(8, 16), torch.randn(8, 16)])
    assert nt_xent(z, 0.5).item() == pytest.approx(2.593192, abs=2e-6)


def test_live_parity_with_lightly():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z = torch.randn(2, 9, 12)
    for t in (0.1, 0.5, 2.0):
        assert nt_xent(z, t).item() == pytest.approx(loss.NTXentLoss(t)(z[0], z[1]).item(), abs=1e-5)


@pytest.mark.parametrize("views, batch", [(2, 2), (2, 64), (4, 16)])
@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_collinear_embeddings_give_the_chance_level(views: int, batch: int, temperature: float):
    z = torch.rand(views, batch, 1) * torch.randn(1, 1, 6).abs() + 0.01 * torch.ones(6)
    z = z.sign() * torch.randn(6).abs() * (torch.rand(views, batch, 1) + 0.1)  # one direction, many lengths
    assert nt_xent(z, temperature).item() == pytest.approx(math.log(views * batch - views + 1), abs=1e-4)
    decoupled = nt_xent(z, temperature, decoupled=True).item()
    assert decoupled == pytest.approx(math.log(views * (batch - 1)), abs=1e-4)


def test_orthogonal_items_have_a_closed_form():
    # Positives at cosine 1, the 2 (B - 1) negatives at 0: log(1 + 2 (B - 1) exp(-1/t)).
    batch, t = 6, 0.3
    z = torch.eye(batch).expand(2, -1, -1) * 3.0
    wanted = math.log(1 + 2 * (batch - 1) * math.exp(-1 / t))
    assert nt_xent(z, t).item() == pytest.approx(wanted, abs=1e-6)
    assert nt_xent(z, t, True).item() == pytest.approx(math.log(2 * (batch - 1)) - 1 / t, abs=1e-6)


def test_random_embeddings_of_many_dimensions_are_near_chance():
    z = torch.randn(2, 64, 4096)
    assert nt_xent(z, 1.0).item() == pytest.approx(math.log(2 * 64 - 1), abs=0.02)


def test_length_order_and_naming_of_views_do_not_matter():
    z = torch.randn(3, 6, 8)
    base = nt_xent(z, 0.2).item()
    assert nt_xent(z * (torch.rand(3, 6, 1) + 0.5), 0.2).item() == pytest.approx(base, abs=1e-5)
    assert nt_xent(z[:, torch.randperm(6)], 0.2).item() == pytest.approx(base, abs=1e-5)
    assert nt_xent(z[[2, 0, 1]], 0.2).item() == pytest.approx(base, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 4), (2, 1, 4)])
def test_one_view_or_one_sample_is_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="at least 2 views and 2 samples"):
        nt_xent(torch.randn(shape), 0.5)


def test_float32_inside_under_bf16():
    z = torch.randn(2, 16, 32)
    wanted = nt_xent(z, 0.1).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = nt_xent(z, 0.1)
    assert got.dtype == torch.float32 and got.item() == wanted
    half = z.bfloat16()
    assert nt_xent(half, 0.1).item() == pytest.approx(slow_nt_xent(half.double(), 0.1, False), abs=1e-4)


@pytest.mark.parametrize("decoupled", [False, True])
def test_gradient_equals_finite_differences(decoupled: bool):
    z = torch.randn(3, 4, 5, requires_grad=True)
    nt_xent(z, 0.5, decoupled).backward()
    exact = z.detach().double()
    for index in [(0, 0, 0), (1, 2, 3), (2, 3, 4)]:
        step = torch.zeros_like(exact)
        step[index] = 1e-5
        slope = (slow_nt_xent(exact + step, 0.5, decoupled) - slow_nt_xent(exact - step, 0.5, decoupled)) / 2e-5
        assert z.grad[index].item() == pytest.approx(slope, abs=2e-5)


def test_the_gradient_is_finite_for_equal_views_and_low_temperature():
    z = torch.randn(1, 8, 4).repeat(2, 1, 1).requires_grad_()
    nt_xent(z, 0.01).backward()
    assert torch.isfinite(z.grad).all()


def test_the_objective_is_the_loss_of_its_projected_features():
    import numpy as np

    from selfsight.data.geometry import Geometry
    from selfsight.views.make import make_views

    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, 32, 32) for _ in range(4)], [f"{i:032x}" for i in range(4)])
    plan = two_views()
    views = make_views(batch, plan, Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), 0)
    task = SimCLR(tiny_encoder(), plan, temperature=0.3, hidden=16, width=8).eval()  # eval: views may pass one by one
    got = task(views, 0.0)
    z = torch.stack([task.projector(task.encoder(v.pixels).pooled) for v in views])
    assert got.total.item() == pytest.approx(slow_nt_xent(z.detach(), 0.3, False), abs=1e-4)
    assert torch.allclose(got.embeddings, z, atol=1e-5) and not got.embeddings.requires_grad
    assert got.parts["nt_xent"].item() == got.total.item()
    decoupled = SimCLR(task.encoder, plan, temperature=0.3, decoupled=True, hidden=16, width=8).eval()
    decoupled.projector = task.projector
    assert decoupled(views, 0.0).total.item() == pytest.approx(slow_nt_xent(z.detach(), 0.3, True), abs=1e-4)
