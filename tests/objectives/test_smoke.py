"""One row an objective: finite loss, finite gradients everywhere, and a loss that falls on one batch."""

from __future__ import annotations

import pytest
import torch

from selfsight.encoders.encoder import Preprocessing
from selfsight.encoders.store import create
from selfsight.objectives.objective import find, registry
from selfsight.views.make import View
from selfsight.views.plan import ViewGroup, ViewPlan

# name: (model, arguments of the model)
CNN = ("resnet18", {"layers": [1, 1, 1, 0], "channels": [16, 32, 64, 64]})
OBJECTIVES = {
    "simclr": CNN,
    "vicreg": CNN,
}


def test_every_objective_has_a_row() -> None:
    assert set(registry()) == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_learns_one_batch(name: str) -> None:
    torch.manual_seed(0)
    model, arguments = OBJECTIVES[name]
    encoder = create(model, Preprocessing(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), arguments)
    plan = ViewPlan((ViewGroup(count=2, size=32),))
    objective = find(name)(encoder, plan).train()
    items = torch.randn(16, 3, 32, 32)
    views = [
        View(items + 0.3 * torch.randn_like(items), torch.zeros(16, 2, 3), [f"{i:032x}" for i in range(16)], 0)
        for _ in range(2)
    ]
    optimiser = torch.optim.Adam(objective.parameters(), lr=1e-3)
    losses = []
    for step in range(15):
        loss = objective(views, step / 15)
        optimiser.zero_grad()
        loss.total.backward()
        for parameter_name, parameter in objective.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name
        optimiser.step()
        objective.after_step(step / 15)
        losses.append(loss.total.item())
    assert losses[-1] < 0.9 * losses[0]
    assert loss.total.dtype == torch.float32
    assert not loss.embeddings.requires_grad
