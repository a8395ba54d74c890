"""EMP-SSL: many small patches of one image agree with their mean, and the means of all images spread out.

Tong, Chen, Ma and LeCun, "EMP-SSL: Towards Self-Supervised Learning in One Training Epoch", 2023, equations 1 and 2:
the total coding rate R = 1/2 logdet(I + d / (B eps) Z^T Z) of normalised embeddings is made large for every view, and
the cosine of each view with the mean over views is made large too.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Chosen, Rule
from selfsight.objectives.objective import Loss, Objective, check_views, embed_views, in_float32, projector, register
from selfsight.objectives.shared import patches
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan


@in_float32
def coding_rate(z: Tensor, eps: float = 0.2) -> Tensor:
    """1/2 logdet(I + d / (B eps) Z^T Z) of each of `z` [V, B, D], normalised: [V].

    B/2 log(1 + d / (B eps)) for B orthogonal rows, 1/2 log(1 + d / eps) where all rows are equal. Computed on the
    smaller of the two Gram matrices, whose determinants are the same.
    """
    _, batch, dim = z.shape
    gram = z @ z.transpose(1, 2) if batch < dim else z.transpose(1, 2) @ z
    identity = torch.eye(gram.shape[1], device=z.device)
    return 0.5 * torch.logdet(identity + dim / (batch * eps) * gram)


@in_float32
def agreement(z: Tensor) -> Tensor:
    """The mean cosine of normalised `z` [V, B, D] with their mean over views."""
    return (z * F.normalize(z.mean(0), dim=1)).sum(2).mean()


@register("emp")
class EMP(Objective):
    """weight: of the agreement, against the coding rate (paper: 200).
    eps: of the coding rate.
    hidden: width of the projector's hidden layer.
    width: of the projector's output, the embeddings.
    """

    family = "many small patches"
    when = "Textures and surfaces, short runs: sees many small parts of every image. Not where position matters."
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": patches,
        "objective_options": lambda facts, chosen: (
            {"weight": 200.0, "eps": 0.2, "hidden": 1024, "width": _width(chosen)},
            "weight and eps of the paper; a projector no wider than the batch, as its coding rate needs",
        ),
    }

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        weight: float = 200.0,
        eps: float = 0.2,
        hidden: int = 1024,
        width: int = 256,
    ) -> None:
        super().__init__(encoder, views)
        self.weight, self.eps = weight, eps
        self.projector = projector([encoder.dim, hidden, width])

    def forward(self, views: list[View], progress: float) -> Loss:
        embeddings = embed_views(self.encoder, self.projector, views)  # [V, B, D]
        check_views(embeddings)
        z = F.normalize(embeddings, dim=2)
        rate, agreed = coding_rate(z, self.eps).mean(), agreement(z)
        total = -rate - self.weight * agreed
        return Loss(total, {"coding_rate": rate.detach(), "cosine": agreed.detach()}, embeddings.detach())


def _width(chosen: Chosen) -> int:
    return int(min(256, max(64, chosen["batch_size"] // 32 * 32)))
