"""SwAV: from one view of an image, predict the cluster of another.

Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, "Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments", NeurIPS 2020. Each large view gets codes by Sinkhorn's algorithm over the batch (section 3.1);
where all views have one size, every view does. The loss is equations 1, 2 and 6: every view predicts the codes of all
other views that have codes.

There is no queue of earlier features (section 4.2); instead there are at most four prototypes per image of a batch. The
projector ends with batch norm: without it, nine tenths of an embedding were soon the same for all images.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Chosen, Facts, Options, Rule
from selfsight.objectives.objective import Loss, Objective, embed_views, projector, register
from selfsight.objectives.prototypes import (
    FROZEN,
    Prototypes,
    prototype_count,
    sinkhorn,
    swapped_prediction,
)
from selfsight.objectives.shared import MEASURED, quick_crops
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan


def swav_loss(scores: Tensor, large: int, temperature: float, epsilon: float) -> tuple[Tensor, Tensor]:
    """(loss, codes [large, B, K]) of `scores` [V, B, K], in float32: cosines of the whole batch to the prototypes.

    The first `large` views give codes. The chance level is log K. Raises `ValueError` for one view or one sample.
    """
    codes = torch.stack([sinkhorn(view, epsilon) for view in scores[:large].detach()])
    return swapped_prediction(scores, codes, temperature), codes


def _options(facts: Facts, chosen: Chosen) -> tuple[Options, str]:
    count, why = prototype_count(facts.items, chosen["batch_size"])
    options = {"prototypes": count, "temperature": 0.1, "epsilon": 0.03, "hidden": 512, "width": 128}
    return options, (
        f"{why}; no queue; codes harder than the paper's (Caron et al., NeurIPS 2020), which hardly moved in a short "
        f"run ({MEASURED}); a smaller projector"
    )


@register("swav")
class SwAV(Objective):
    """prototypes: their number.
    temperature: of the predictions.
    epsilon: of the codes; the lower, the harder they are.
    hidden: width of the projector's hidden layer.
    width: of the projector's output, the embeddings.
    """

    family = "clustering"
    when = "Data in natural groups: learns fast, and gives soft clusters of the images beside the features."
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {"views": quick_crops, "objective_options": _options}

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        prototypes: int = 512,
        temperature: float = 0.1,
        epsilon: float = 0.03,
        hidden: int = 512,
        width: int = 128,
    ) -> None:
        super().__init__(encoder, views)
        self.large = views.groups[0].count
        self.temperature = temperature
        self.epsilon = epsilon
        self.projector = projector([encoder.dim, hidden, width], last_norm=True)
        self.prototypes = Prototypes(prototypes, width)

    def forward(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)  # [V, B, D]
        scores = self.prototypes(z, frozen=progress < FROZEN)  # [V, B, K]
        loss, codes = swav_loss(scores, self.large, self.temperature, self.epsilon)
        return Loss(loss, {"swapped": loss.detach()}, z.detach(), codes.flatten(0, 1))

    def after_step(self, progress: float) -> None:
        self.prototypes.normalise()
