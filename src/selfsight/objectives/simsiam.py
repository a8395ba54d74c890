"""SimSiam: predict the network's own output for another view, with no gradient through that output.

Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021, equation 2: half the negative cosine of
prediction and target, summed over both directions of a pair; for V views the mean over all pairs. The projector ends
with batch norm, as in the paper. Without the predictor, or with a gradient through the target, it collapses: the loss
goes to -1 and the spread to 0. Even a correct run may put most of an embedding into few directions.

With `decorrelated` above 1, groups of so many dimensions are decorrelated in place of that batch norm (Hua et al., "On
Feature Decorrelation in Self-Supervised Learning", ICCV 2021, who also shuffle the dimensions). Training then bears
larger steps; without the predictor it still collapses, but later. The rank in the metrics is of decorrelated
embeddings, and so higher than for other objectives.
"""

from __future__ import annotations

import inspect
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfsight.distributed import all_mean
from selfsight.encoders.encoder import Encoder
from selfsight.errors import SelfsightError
from selfsight.objectives.facts import Options, Rule
from selfsight.objectives.objective import (
    Loss,
    Objective,
    cross_view_cosine,
    embed_and_predict,
    in_float32,
    projector,
    register,
)
from selfsight.objectives.shared import quarters
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean of -cos(prediction of view v, target of view w) over v != w, both [V, B, D]; -1 at best.

    Raises `ValueError` for one view or one sample.
    """
    loss: Tensor = -cross_view_cosine(predictions, targets)
    return loss


@in_float32
def decorrelated(embeddings: Tensor, group: int) -> Tensor:
    """This process's `embeddings` [N, D], centred and with each `group` of dimensions decorrelated: [N, D].

    The covariance of a group over all processes becomes nearly the identity, by its Cholesky factor (as Ermolov et al.,
    "Whitening for Self-Supervised Representation Learning", ICML 2021). A hundredth of the mean variance is added to
    each dimension first, so that the factor of a nearly singular covariance is the same in one process as in several. A
    value that is not finite spoils its group, and the training loop skips the step.
    """
    centred = embeddings - all_mean(embeddings.mean(0))
    parts = centred.unflatten(1, (-1, group)).movedim(0, 2)  # [G, group, N]
    covariance = all_mean(parts @ parts.mT / len(embeddings))  # [G, group, group]
    floor = 1e-2 * covariance.diagonal(dim1=1, dim2=2).mean(1) + 1e-5  # the latter as of batch norm: items may be alike
    factor = torch.linalg.cholesky_ex(covariance + torch.diag_embed(floor[:, None].expand(-1, group))).L
    out: Tensor = torch.linalg.solve_triangular(factor, parts, upper=False).movedim(2, 0).flatten(1)
    return out


class Decorrelation(nn.Module):
    """`decorrelated` as a layer. It is the same in use as in training: nothing but training needs a projector."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, embeddings: Tensor) -> Tensor:
        out: Tensor = decorrelated(embeddings, self.group)
        return out


def group_size(batch: int) -> int:
    """Dimensions per group: the largest power of two that is at most a quarter of the batch, and at most 16. In larger
    groups, chance correlations of a few items would be removed as well."""
    return max(1, min(16, 1 << (batch // 4).bit_length() >> 1))


@register("simsiam")
class SimSiam(Objective):
    """hidden: width of the projector.
    bottleneck: width of the predictor's hidden layer (paper: a quarter of `hidden`).
    decorrelated: how many dimensions of an embedding are decorrelated together; 1 is the paper's batch norm.
    """

    family = "non-contrastive"
    when = "Small batches and little memory: no negatives and no second network. A ViT needs small steps with it."
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": quarters,
        "objective_options": lambda facts, chosen: (
            {"hidden": 512, "bottleneck": 128, "decorrelated": group_size(chosen["batch_size"])},
            "projector and predictor a quarter as wide as the paper's, in its proportion; several views make it learn "
            "sooner (Pototzky et al., FastSiam, GCPR 2022); decorrelated, as embeddings may fall into few directions "
            "otherwise, in groups much smaller than the batch (Hua et al., ICCV 2021; measured, "
            "benchmarks/README.md)",
        ),
    }

    @classmethod
    def check_options(cls, options: Options) -> None:
        super().check_options(options)
        defaults = inspect.signature(cls).parameters
        hidden, group = (options.get(name, defaults[name].default) for name in ("hidden", "decorrelated"))
        if hidden % group:
            raise SelfsightError(f"The option decorrelated of SimSiam must divide hidden, {hidden}; {group} does not.")

    def __init__(
        self, encoder: Encoder, views: ViewPlan, hidden: int = 512, bottleneck: int = 128, decorrelated: int = 1
    ) -> None:
        super().__init__(encoder, views)
        self.check_options({"hidden": hidden, "decorrelated": decorrelated})
        self.projector = projector([encoder.dim, hidden, hidden], last_norm=True)
        if decorrelated > 1:
            self.projector[-1] = Decorrelation(decorrelated)
        self.predictor = projector([hidden, bottleneck, hidden])

    def forward(self, views: list[View], progress: float) -> Loss:
        z, predictions = embed_and_predict(self.encoder, self.projector, self.predictor, views)  # [V, B, D]
        loss = negative_cosine(predictions, z)
        return Loss(loss, {"negative_cosine": loss.detach()}, z.detach())
