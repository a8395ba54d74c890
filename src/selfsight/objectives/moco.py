"""MoCo v3: pick one's own image out of the batch, whose keys come from a slowly moving copy of the network.

Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021, equation 1 and
algorithm 1: InfoNCE of predictions against the copy's embeddings of another view, negatives from the same batch,
times 2 tau. The mean over ordered pairs of views is doubled, so that V = 2 gives the published symmetric loss.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import (
    EMATeacher,
    Loss,
    Objective,
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
def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """2 tau times the cross-entropy of each query's own key among the keys of another view, both [V, B, D]; twice the
    mean over ordered pairs of different views.

    The chance level is 4 tau log(B). Raises `ValueError` for one view or one sample.
    """
    check_views(queries)
    views = len(queries)
    q, k = F.normalize(queries, dim=2), F.normalize(keys.detach().float(), dim=2)
    similarity = torch.einsum("vbd,wcd->vwbc", q, k) / temperature  # [V, V, B, B]
    own = similarity.diagonal(dim1=2, dim2=3)  # [V, V, B]
    entropy = (similarity.logsumexp(3) - own).mean(2)  # [V, V]
    between = ~torch.eye(views, dtype=torch.bool, device=q.device)
    return 4.0 * temperature * entropy[between].mean()


@register("moco")
class MoCo(Objective):
    """temperature: of the softmax over keys.
    momentum: of the teacher at the start; 1 at the end. A short run's teacher is faster (see `EMATeacher`).
    hidden: width of the hidden layers of projector and predictor.
    width: of their outputs, the embeddings.
    """

    family = "contrastive"
    when = "ViTs and small batches: SimCLR's task with a steadier teacher, at the cost of a second forward pass."
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": quarters,
        "objective_options": lambda facts, chosen: (
            {"temperature": 0.2, "momentum": 0.99, "hidden": 1024, "width": 128},
            f"temperature of the paper; chance is {0.8 * math.log(max(2, chosen['batch_size'])):.1f} here",
        ),
    }

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        temperature: float = 0.2,
        momentum: float = 0.99,
        hidden: int = 1024,
        width: int = 128,
    ) -> None:
        super().__init__(encoder, views)
        self.temperature = temperature
        self.projector = projector([encoder.dim, hidden, width])
        self.predictor = projector([width, hidden, width])
        self.teacher = EMATeacher(encoder, self.projector, base=momentum)

    def forward(self, views: list[View], progress: float) -> Loss:
        z, queries = embed_and_predict(self.encoder, self.projector, self.predictor, views)  # [V, B, D]
        keys = self.teacher.embed(views)
        loss = info_nce(queries, keys, self.temperature)
        return Loss(loss, {"info_nce": loss.detach()}, z.detach())

    def after_step(self, progress: float) -> None:
        self.teacher.follow((self.encoder, self.projector), progress)
