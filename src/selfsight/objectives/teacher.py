"""The EMA teacher: a copy of the network that follows it slowly."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.embedding import embed_views
from selfsight.views.make import View


class EMATeacher(nn.Module):
    """Copies of modules, without gradients, that follow them by an exponential moving average.

    The momentum rises from `base` to 1 along half a cosine of progress (Grill et al., BYOL, 2020, section 3.2). In a
    step from progress p to q it is also at most (p / q) ** 9 (the power function of Karras et al., CVPR 2024, section
    3.1): however few steps a run has, its teacher remembers the last tenth of them, not the random weights of the
    start. An extension begins after the end of its run; there only the momentum counts.

    base: momentum at the start. slow: whether the limit (p / q) ** 9 is left out. A teacher centred by a running mean
    needs this, as the mean does not
        keep up otherwise.
    """

    last: Tensor  # progress of its furthest step

    def __init__(self, *modules: nn.Module, base: float = 0.99, slow: bool = False) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(module).requires_grad_(False) for module in modules)
        self.base = base
        self.slow = slow
        self.register_buffer("last", torch.zeros(()))

    @torch.no_grad()
    def embed(self, views: Sequence[View]) -> Tensor:
        """The teacher's embeddings [V, B, D] of `views`, as `embed_views`. Its modules are an encoder and a
        projector."""
        encoder, head = self.copies
        return embed_views(cast(Encoder, encoder), head, views)

    @torch.no_grad()
    def follow(self, modules: Sequence[nn.Module], progress: float) -> None:
        """Take a step towards the parameters of `modules`, which come in the constructor's order."""
        least = (1.0 - self.base) * (math.cos(math.pi * min(progress, 1.0)) + 1.0) / 2.0
        weight = least if self.slow else (1.0 - (self.last / max(progress, 1e-9)) ** 9).clamp_min(least)
        self.last.clamp_(min=progress)
        for mine, theirs in zip(self.copies, modules, strict=True):
            for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
                p.lerp_(q, weight)
