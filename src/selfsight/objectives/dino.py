"""DINO: predict the output of a teacher, the student's own moving average, for another view.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski and Joulin, "Emerging Properties in Self-Supervised Vision
Transformers", ICCV 2021, equations 1 to 4 and algorithm 1. The teacher sees the large views, or all of them where
they have one size. Its scores are centred, so that no single cluster takes every image, and sharpened, so that they do
not become uniform.

Scores are centred by their running mean, as in the paper, or by Sinkhorn's codes of each view (as in SwAV; Ruan et al.,
ICLR 2023). Sinkhorn's codes need no memory, so the teacher may be fast, which a short run needs. The head has batch
norm, an option of the authors': without it the teacher became uniform within 30 steps, with a ResNet and with a ViT.
The last layer is followed by batch norm too: without it nine tenths of an embedding soon were the same for all images.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Chosen, Facts, Options, Rule
from selfsight.objectives.objective import EMATeacher, Loss, Objective, embed_views, in_float32, projector, register
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

FIRST_TEMPERATURE, WARM = 0.04, 0.3  # of the teacher, at the start, and the part of the budget in which it rises
CENTRE_MOMENTUM = 0.9


def teacher_temperature(last: float, progress: float) -> float:
    """The teacher's temperature at `progress`. It goes from 0.04, or `last` if that is less, to `last` in a straight
    line over the first 0.3 of progress (appendix C: 30 epochs of 100)."""
    first = min(FIRST_TEMPERATURE, last)
    return first + (last - first) * min(1.0, progress / WARM)


@in_float32
def dino_targets(scores: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's probabilities [L, B, K], from its `scores` [L, B, K] and the `centre` [K], in float32."""
    return torch.softmax((scores - centre.float()) / temperature, dim=2)


def _options(facts: Facts, chosen: Chosen) -> tuple[Options, str]:
    count, why = prototype_count(facts.items, chosen["batch_size"])
    options = {"prototypes": count, "hidden": 512, "bottleneck": 128, "centring": "sinkhorn", "momentum": 0.99}
    options |= {"temperature": 0.1, "teacher_temperature": 0.015}
    reason = f"centred by Sinkhorn's codes, so the teacher may forget its random weights at once ({MEASURED}); "
    reason += "sharper than in Caron et al., ICCV 2021, as at 0.04 it may stay uniform"
    return options, f"{why}; {reason}"


@register("dino")
class DINO(Objective):
    """prototypes: outputs of the head.
    hidden: width of the head's hidden layers.
    bottleneck: width of the head's last layer before the prototypes.
    centring: of the teacher's scores. "mean": by their running mean, which needs a slow teacher. "sinkhorn": by
        Sinkhorn's codes, which do not.
    momentum: of the teacher at the start; 1 at the end. With "sinkhorn" a short run's teacher is faster (see
        `EMATeacher`).
    temperature: of the student.
    teacher_temperature: of the teacher once it is warm.
    """

    family = "self-distillation"
    when = (
        "Good nearest neighbours, within minutes even with a ViT. Not for images whose parts have little in common, "
        "such as smears of cells: its teacher cannot decide there."
    )
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": quick_crops,
        "objective_options": _options,
        "clip": lambda facts, chosen: (3.0, "the norm at which Caron et al., ICCV 2021, clip gradients"),
    }

    centre: Tensor

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        prototypes: int = 1024,
        hidden: int = 512,
        bottleneck: int = 128,
        centring: Literal["mean", "sinkhorn"] = "mean",
        momentum: float = 0.99,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
    ) -> None:
        super().__init__(encoder, views)
        self.large = views.groups[0].count
        self.centring = centring
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.head = projector([encoder.dim, hidden, hidden, bottleneck], last_norm=True)
        self.prototypes = Prototypes(prototypes, bottleneck)
        self.teacher = EMATeacher(encoder, self.head, self.prototypes, base=momentum, slow=centring == "mean")
        self.register_buffer("centre", torch.zeros(prototypes))
        self.batch_mean = torch.zeros(prototypes)

    @property
    def trained(self) -> Encoder:
        return cast(Encoder, self.teacher.copies[0])

    def forward(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.head, views)  # [V, B, D]
        scores = self.prototypes(z, frozen=progress < FROZEN)  # [V, B, K]
        with torch.no_grad():
            encoder, head, prototypes = self.teacher.copies
            said = prototypes(embed_views(cast(Encoder, encoder), head, views[: self.large]))  # [L, B, K]
            self.batch_mean = said.mean((0, 1))  # [K], of the items of all processes
            warmth = teacher_temperature(self.teacher_temperature, progress)
            if self.centring == "sinkhorn":
                targets = torch.stack([sinkhorn(view, warmth) for view in said])  # [L, B, K]
            else:
                targets = dino_targets(said, self.centre, warmth)
        loss = swapped_prediction(scores, targets, self.temperature)
        return Loss(loss, {"dino": loss.detach()}, z.detach(), targets.flatten(0, 1))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.teacher.follow([self.encoder, self.head, self.prototypes], progress)
        if self.centring == "mean":
            self.centre.lerp_(self.batch_mean, 1.0 - CENTRE_MOMENTUM)
