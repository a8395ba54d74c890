"""Barlow Twins: the correlations of two views' embeddings are the identity matrix.

Zbontar, Jing, Misra, LeCun and Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021,
equations 1 and 2. For V views the loss is the mean over all pairs of views.
"""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import Loss, Objective, check_views, embed_views, in_float32, projector, register
from selfsight.objectives.shared import quarters
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan


@in_float32
def barlow_terms(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """(invariance, redundancy), two scalars, of `embeddings` [V, B, D].

    invariance: sum of (1 - C_ii)^2. redundancy: sum of C_ij^2 over i != j. C [D, D] are the correlations of two views
    over the batch; both terms are means over pairs of views. Raises `ValueError` for one view or one sample.
    """
    check_views(embeddings)
    views, batch, _ = embeddings.shape
    centred = embeddings - embeddings.mean(dim=1, keepdim=True)
    z = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()  # [V, B, D]
    invariance, redundancy = [], []
    for v, w in combinations(range(views), 2):
        correlations = z[v].T @ z[w] / batch  # [D, D]
        own = correlations.diagonal()
        invariance.append((1.0 - own).square().sum())
        redundancy.append(correlations.square().sum() - own.square().sum())
    return torch.stack(invariance).mean(), torch.stack(redundancy).mean()


@register("barlow")
class BarlowTwins(Objective):
    """redundancy: weight of the second term (paper: 0.0051 at 8192 dimensions).
    scale: factor on the whole loss, as gradients of sums over dimensions are large (solo-learn: 0.1).
    hidden: width of the projector's hidden layer.
    width: of the projector's output, the embeddings.
    """

    family = "non-contrastive"
    when = "Like VICReg, with correlations in place of covariances: indifferent to the scale of the embeddings."
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": quarters,
        "objective_options": lambda facts, chosen: (
            {"redundancy": round(0.0204 * chosen["batch_size"] / 512, 5), "scale": 0.1, "hidden": 1024, "width": 512},
            "chance correlations in a batch of B weigh D / B times this weight against the first term; that product is "
            "the paper's, 0.0204",
        ),
    }

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        redundancy: float = 0.0051,
        scale: float = 0.1,
        hidden: int = 1024,
        width: int = 512,
    ) -> None:
        super().__init__(encoder, views)
        self.redundancy, self.scale = redundancy, scale
        self.projector = projector([encoder.dim, hidden, width])

    def forward(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)  # [V, B, D]
        invariance, redundancy = barlow_terms(z)
        total = self.scale * (invariance + self.redundancy * redundancy)
        return Loss(total, {"invariance": invariance.detach(), "redundancy": redundancy.detach()}, z.detach())
