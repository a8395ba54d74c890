"""SimSiam: predict what the network itself says of another view, without a gradient there.

Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, equation 2: half the negative cosine of
prediction and target, summed over both directions of a pair; for V views the mean over all pairs. Without the
predictor, or with a gradient through the target, it collapses: the loss goes to -1 and the spread to 0.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.objective import (
    Loss,
    Objective,
    Rule,
    check_views,
    embed_and_predict,
    in_float32,
    projector,
    register,
)
from selfsight.objectives.shared import quarters
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan


@in_float32
def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean of -cos(prediction of view v, target of view w) over v != w, both [V, B, D]; -1 at best.

    Raises `ValueError` for one view or one sample.
    """
    check_views(predictions)
    views, batch, _ = predictions.shape
    p, t = F.normalize(predictions, dim=2), F.normalize(targets.detach().float(), dim=2)
    return -((p.sum(0) * t.sum(0)).sum() - (p * t).sum()) / (views * (views - 1) * batch)


@register("simsiam")
class SimSiam(Objective):
    """hidden: width of the projector; bottleneck: of the predictor's hidden layer, a quarter of it in the paper."""

    family = "non-contrastive"
    when = "Small batches and little memory: no negatives, no second network; watch its spread, which is what fails."
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": quarters,
        "objective_options": lambda f, r: (
            {"hidden": 512, "bottleneck": 128},
            "projector and predictor a quarter as wide as the paper's, in its proportion; several views make it learn "
            "sooner (Pototzky et al., FastSiam, GCPR 2022)",
        ),
    }

    def __init__(self, encoder: Encoder, views: ViewPlan, hidden: int = 512, bottleneck: int = 128) -> None:
        super().__init__(encoder, views)
        self.projector = projector([encoder.dim, hidden, hidden], last_norm=True)
        self.predictor = projector([hidden, bottleneck, hidden])

    def forward(self, views: list[View], progress: float) -> Loss:
        z, predictions = embed_and_predict(self.encoder, self.projector, self.predictor, views)  # [V, B, D]
        loss = negative_cosine(predictions, z)
        return Loss(loss, {"negative_cosine": loss.detach()}, z.detach())
