"""BYOL: predict the output of a slowly moving copy of the network for another view.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, equation 2: the mean squared distance of normalised prediction
and target, 2 - 2 cos, summed over both directions of a pair. For V views the mean over ordered pairs is doubled, so
that V = 2 gives the published loss. Only the predictor and the moving average keep it from collapse.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import (
    EMATeacher,
    Loss,
    Objective,
    cross_view_cosine,
    embed_and_predict,
    projector,
    register,
)
from selfsight.objectives.shared import quarters
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan


def cross_view_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Twice the mean of 2 - 2 cos(prediction of view v, target of view w) over v != w, both [V, B, D].

    0 when they agree, 4 by chance, 8 at most. Raises `ValueError` for one view or one sample.
    """
    distance: Tensor = 4.0 - 4.0 * cross_view_cosine(predictions, targets)
    return distance


@register("byol")
class BYOL(Objective):
    """momentum: of the target at the start; 1 at the end. A short run's target is faster (see `EMATeacher`).
    hidden: width of the hidden layers of projector and predictor.
    width: of their outputs, the embeddings.
    """

    family = "non-contrastive"
    when = "Long runs: no negatives, so images that are much alike do not repel each other; slow in the first minutes."
    least_views = 2
    rate = 0.25
    rules: ClassVar[dict[str, Rule]] = {
        "views": quarters,
        "objective_options": lambda facts, chosen: (
            {"momentum": 0.99, "hidden": 1024, "width": 256},
            "a momentum for hundreds to thousands of steps (0.99 on CIFAR: da Costa et al., solo-learn, JMLR 2022); "
            "a projector a quarter as wide as the paper's",
        ),
    }

    def __init__(
        self, encoder: Encoder, views: ViewPlan, momentum: float = 0.99, hidden: int = 1024, width: int = 256
    ) -> None:
        super().__init__(encoder, views)
        self.projector = projector([encoder.dim, hidden, width])
        self.predictor = projector([width, hidden, width])
        self.target = EMATeacher(encoder, self.projector, base=momentum)

    def forward(self, views: list[View], progress: float) -> Loss:
        z, predictions = embed_and_predict(self.encoder, self.projector, self.predictor, views)  # [V, B, D]
        targets = self.target.embed(views)
        loss = cross_view_distance(predictions, targets)
        return Loss(loss, {"distance": loss.detach()}, z.detach())

    def after_step(self, progress: float) -> None:
        self.target.follow((self.encoder, self.projector), progress)
