"""VICReg: views agree, every dimension keeps its variance, no two dimensions are correlated.

Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning", ICLR 2022, equations 1 to 6. For V views the invariance is the mean over all pairs of views.
With V = 2 the three terms are as in the authors' implementation, which the published weights are for: the variance is
averaged over the two views, the covariance summed.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import Loss, Objective, check_views, embed_views, in_float32, projector, register
from selfsight.objectives.shared import quarters
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan


@in_float32
def vicreg_terms(embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(invariance, variance, covariance) of `embeddings` [V, B, D], in float32.

    invariance: mean squared difference over pairs of views, items and dimensions. variance: mean
    of max(0, 1 - std), a mean over views. covariance: twice the mean over views of the sum of squared
    off-diagonal covariances over D. std and covariance divide by B - 1. Raises `ValueError` for one view or one sample.
    """
    check_views(embeddings)
    views, batch, dim = embeddings.shape
    # The mean over ordered pairs of |z_v - z_w|^2 is twice the unbiased variance over the views.
    invariance = 2.0 * embeddings.var(dim=0, unbiased=True).mean()
    centred = embeddings - embeddings.mean(dim=1, keepdim=True)
    covariances = centred.transpose(1, 2) @ centred / (batch - 1)  # [V, D, D]
    variances = covariances.diagonal(dim1=1, dim2=2)  # [V, D]
    variance = F.relu(1.0 - (variances + 1e-4).sqrt()).mean()
    covariance = 2.0 * (covariances.square().sum() - variances.square().sum()) / (dim * views)
    return invariance, variance, covariance


@register("vicreg")
class VICReg(Objective):
    """invariance: weight of the invariance term (paper: 25).
    variance: weight of the variance term (paper: 25).
    covariance: weight of the covariance term (paper: 1).
    hidden: width of the projector's hidden layer.
    width: of the projector's output, the embeddings.
    """

    family = "non-contrastive"
    when = "Small batches and textures: needs no negatives, matches SimCLR with few labels, and has readable terms."
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": quarters,
        "objective_options": lambda facts, chosen: (
            {"invariance": 25.0, "variance": 25.0, "covariance": 1.0, "hidden": 1024, "width": 512},
            "weights 25, 25, 1 (Bardes et al., ICLR 2022); a projector a sixteenth as wide as theirs, as a batch of "
            f"{chosen['batch_size']} cannot decorrelate thousands of dimensions",
        ),
    }

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        hidden: int = 1024,
        width: int = 512,
    ) -> None:
        super().__init__(encoder, views)
        self.weights = (invariance, variance, covariance)
        self.projector = projector([encoder.dim, hidden, width])

    def forward(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)  # [V, B, D]
        terms = torch.stack(vicreg_terms(z))
        total = (terms * terms.new_tensor(self.weights)).sum()
        names = ("invariance", "variance", "covariance")
        return Loss(total, dict(zip(names, terms.detach(), strict=True)), z.detach())
