"""SimCLR: views of one image are close together, views of different images far apart.

Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020, equation 1 (NT-Xent). Decoupled variant: Yeh et al., "Decoupled
Contrastive Learning", ECCV 2022, equation 6: the positive leaves the denominator.

For V views each of the other V - 1 views of an anchor is its positive in turn, and the mean is taken. With V = 2 this
is the published loss.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Chosen, Facts, Rule
from selfsight.objectives.objective import Loss, Objective, check_views, embed_views, in_float32, projector, register
from selfsight.objectives.shared import BATCH, MEASURED, adamw, batch_of, patches, quarters
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan


@in_float32
def nt_xent(embeddings: Tensor, temperature: float, decoupled: bool = False) -> Tensor:
    """NT-Xent of `embeddings` [V, B, D], a float32 scalar. They are normalised here.

    The chance level is log(V B - V + 1). Raises `ValueError` for one view or one sample.
    """
    check_views(embeddings)
    views, batch, _ = embeddings.shape
    z = F.normalize(embeddings, dim=2).flatten(0, 1)  # [V B, D]
    similarity = z @ z.T / temperature  # [V B, V B]
    item = torch.arange(batch, device=z.device).repeat(views)
    same = item[:, None] == item[None, :]
    negatives = similarity.masked_fill(same, float("-inf")).logsumexp(1)  # [V B]
    positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    scores = similarity[positive].view(len(z), views - 1)
    denominator = negatives[:, None] if decoupled else torch.logaddexp(negatives[:, None], scores)
    return (denominator - scores).mean()


def _many_steps(facts: Facts) -> bool:
    """Whether small batches of many views are taken: they make the most of a short run from random weights. Weights
    that have learnt already are to move slowly. With CUDA it was not measured."""
    return facts.start is None and facts.device != "cuda"


def _optimiser(facts: Facts, chosen: Chosen) -> tuple[str, str]:
    if _many_steps(facts):
        return "muon", f"learns more in the same minutes than AdamW ({MEASURED}; Jordan et al., 2024)"
    return adamw(facts, chosen)


@register("simclr")
class SimCLR(Objective):
    """temperature: of the softmax over similarities.
    decoupled: whether the positive is left out of the denominator, which helps small batches.
    hidden: width of the projector's hidden layer.
    width: of the projector's output, the embeddings.
    """

    family = "contrastive"
    when = "The first to try: learns within minutes, with any batch from 64 on, and costs one encoder."
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": lambda facts, chosen: (patches if _many_steps(facts) else quarters)(facts, chosen),
        "batch_size": lambda facts, chosen: batch_of(64 if _many_steps(facts) else BATCH)(facts, chosen),
        "optimiser": _optimiser,
        "objective_options": lambda facts, chosen: (
            {"decoupled": True, "temperature": 0.2, "hidden": 1024, "width": 128},
            "a positive outside the denominator serves small batches (Yeh et al., ECCV 2022); temperature 0.2 "
            f"beat 0.1 ({MEASURED}); a projector of one hidden layer to 128 (Chen et al., ICML 2020)",
        ),
    }

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        temperature: float = 0.2,
        decoupled: bool = False,
        hidden: int = 1024,
        width: int = 128,
    ) -> None:
        super().__init__(encoder, views)
        self.temperature = temperature
        self.decoupled = decoupled
        self.projector = projector([encoder.dim, hidden, width])

    def forward(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)  # [V, B, D]
        loss = nt_xent(z, self.temperature, self.decoupled)
        return Loss(loss, {"nt_xent": loss.detach()}, z.detach())
