"""Optimisers and the one learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypedDict

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from selfsight.errors import SelfsightError, meant


class LARS(torch.optim.Optimizer):
    """SGD with momentum in which each weight's step is scaled to the weight's norm.

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


def _muon(groups: Iterable[Group], lr: float) -> torch.optim.Optimizer:
    """Steps of matrices and convolutions made orthogonal, with the root mean square of AdamW's; for all other
    parameters AdamW with Nesterov's momentum.

    Jordan et al., "Muon", 2024; scaled as in Liu et al., "Muon is Scalable for LLM Training", 2025, equation 4.
    """
    from timm.optim.muon import Muon

    return Muon([dict(group) for group in groups], lr=lr, nesterov=True)


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95)),
    "muon": _muon,
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
    "lars": lambda groups, lr: LARS(groups, lr=lr),
}


def check_optimiser(name: str) -> None:
    """Raise `SelfsightError`, with the names there are, if none is called so."""
    if name not in OPTIMISERS:
        raise SelfsightError(
            f"No optimiser is called {name!r}. There are: {', '.join(OPTIMISERS)}.{meant(name, OPTIMISERS)}"
        )


class Group(TypedDict):
    """Parameters with one weight decay.

    params: the parameters.
    weight_decay: theirs; 0 for biases and norms.
    """

    params: list[nn.Parameter]
    weight_decay: float


def make_optimiser(groups: Iterable[Group], name: str, learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser called `name` for the `groups` that have parameters. Other keys of a group stay in the optimiser's
    group. Raises `SelfsightError` for an unknown name."""
    check_optimiser(name)
    return OPTIMISERS[name]([group for group in groups if group["params"]], learning_rate)


def learning_rate_factor(progress: float, warmup: float) -> float:
    """The learning rate at `progress` as a share of its peak: linear from 0 to 1 over the first `warmup` of the budget,
    then half a cosine down to 0.

    Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, without restarts.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - warmup) / (1.0 - warmup))))
