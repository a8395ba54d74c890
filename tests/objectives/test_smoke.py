"""One row an objective: with its own views, finite loss, gradients everywhere, and a loss that falls on one batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import batch_of, default_objective, picture

from selfsight.data.geometry import Geometry
from selfsight.objectives.objective import registry
from selfsight.report.charts import KNOWN
from selfsight.views.make import make_views

# name: the part of its first loss that it must come below on one batch in 30 steps
OBJECTIVES = {
    "barlow": 0.9,
    "byol": 0.9,
    "emp": 1.0,
    "lejepa": 0.9,
    "moco": 0.9,
    "simclr": 0.9,
    "simsiam": 0.9,
    "vicreg": 0.9,
    "swav": 0.85,
    "dino": 0.8,
    "dinov2": 0.9,
    "mae": 0.8,
    "simmim": 0.92,
    "ijepa": 0.8,
    "rotation": 0.75,
    "jigsaw": 0.05,
    "position": 0.05,
    "inpaint": 0.6,
    "colour": 0.5,
}


def test_every_objective_has_a_row() -> None:
    assert set(registry()) == set(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_learns_one_batch(name: str) -> None:
    torch.manual_seed(0)
    objective = default_objective(name).train()
    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, 32, 32) for _ in range(16)], [f"{i * 7919:016x}{0:016x}" for i in range(16)])
    views = make_views(batch, objective.views, Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), 0)
    optimiser = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(30):
        loss = objective(views, 0.5)  # progress stands still, so that schedules do not change the loss
        optimiser.zero_grad()
        loss.total.backward()
        for parameter_name, parameter in objective.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), parameter_name
        optimiser.step()
        objective.after_step(0.5)
        losses.append(loss.total.item())
    assert losses[-1] < OBJECTIVES[name] * losses[0], losses
    assert loss.total.dtype == torch.float32 and not loss.embeddings.requires_grad
    assert not set(loss.parts) & KNOWN, "a part of the loss would hide a figure of the same name"
    assert torch.isfinite(loss.embeddings).all() and loss.embeddings.shape[1] == 16
