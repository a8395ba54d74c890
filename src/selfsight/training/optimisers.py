"""Optimisers and the one learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from selfsight.errors import SelfsightError
from selfsight.objectives.objective import Objective
from selfsight.training.recipe import Recipe


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step for each weight is scaled to the weight's norm.

    You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, equation 6:
    local rate = eta |w| / (|g| + weight_decay |w|). Groups without weight decay (biases, norms) take
    the plain step.
    """

    def __init__(
        self, params: ParamsT, lr: float, weight_decay: float = 0.0, momentum: float = 0.9, eta: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                direction = w.grad
                if group["weight_decay"] > 0:
                    norm, slope = w.norm(), w.grad.norm()
                    direction = direction.add(w, alpha=group["weight_decay"])
                    trust = group["eta"] * norm / (slope + group["weight_decay"] * norm).clamp(min=1e-12)
                    direction = direction * torch.where((norm > 0) & (slope > 0), trust, torch.ones_like(trust))
                state = self.state[w]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(w)
                state["momentum"].mul_(group["momentum"]).add_(direction, alpha=group["lr"])
                w.sub_(state["momentum"])


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95)),
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
    "lars": lambda groups, lr: LARS(groups, lr=lr),
}


def check_optimiser(name: str) -> None:
    """Raise `SelfsightError`, with the names there are, if none is called so."""
    if name not in OPTIMISERS:
        raise SelfsightError(f"No optimiser is called {name!r}. There are: {', '.join(OPTIMISERS)}.")


def make_optimiser(
    objective: Objective, name: str, learning_rate: float, weight_decay: float, encoder_apart: bool = False
) -> torch.optim.Optimizer:
    """The optimiser called `name` over the objective's groups, no weight decay on biases and norms. With
    `encoder_apart` each group is two, of which the second holds what belongs to the encoder."""
    check_optimiser(name)
    encoder = {id(p) for p in objective.encoder.parameters()} if encoder_apart else set()
    groups: list[dict[str, Any]] = []
    for number, g in enumerate(objective.parameter_groups(0.0)):
        for apart in (False, True) if encoder_apart else (False,):
            own = [p for p in g["params"] if (id(p) in encoder) == apart]
            decay = weight_decay * g["weight_decay_scale"]
            groups.append({"params": own, "weight_decay": decay, "number": number, "encoder": apart})
    return OPTIMISERS[name]([g for g in groups if g["params"]], learning_rate)


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear from 0 to 1 over the first `warmup` of the budget, then half a cosine down to 0.

    Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup) / (1.0 - warmup))))


def encoder_factor(progress: float, recipe: Recipe) -> float:
    """The encoder's rate as a part of the peak one: nothing while it is frozen, then `encoder_rate` of the schedule's,
    rising to it over another warm-up, as its gradients are new to the optimiser too."""
    if progress < recipe.frozen:
        return 0.0
    rise = 1.0 if not recipe.frozen or not recipe.warmup else min(1.0, (progress - recipe.frozen) / recipe.warmup)
    return recipe.encoder_rate * rise * learning_rate_factor(progress, recipe.warmup)


def schedule(optimiser: torch.optim.Optimizer, objective: Objective, progress: float, recipe: Recipe) -> float:
    """Set each group's rate and decay for `progress`; returns the base rate in force."""
    rate = recipe.learning_rate * learning_rate_factor(progress, recipe.warmup)
    slow = recipe.learning_rate * encoder_factor(progress, recipe)
    groups = objective.parameter_groups(progress)
    for group in optimiser.param_groups:
        wanted = groups[group["number"]]
        group["lr"] = (slow if group["encoder"] else rate) * wanted["lr_scale"]
        group["weight_decay"] = recipe.weight_decay * wanted["weight_decay_scale"]
    return rate
