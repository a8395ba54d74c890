"""Rotation: predict by how many quarter turns the image was turned.

Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018,
equations 2 and 3: the loss is the mean of -log p(k | turned by k quarter turns) over all four turns of each
image, which are all in the batch.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from selfsight.distributed import all_mean, gather
from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import Loss, Objective, register
from selfsight.objectives.patches import only_group
from selfsight.objectives.pretext import encode_parts, guess
from selfsight.objectives.shared import one_crop
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan

TURNS = 4


def turns(images: Tensor) -> list[Tensor]:
    """`images` [B, C, S, S] turned by 0, 90, 180 and 270 degrees, counter-clockwise."""
    return [torch.rot90(images, k, (2, 3)) for k in range(TURNS)]


@register("rotation")
class Rotation(Objective):
    """Four turns of each view; a linear layer on the pooled features names the turn. It has no options."""

    family = "classic pretext"
    when = (
        "Photographs of things with an upright position, such as animals, products or streets. Meaningless for "
        "microscopy, textures and aerial images, and where a caption or light from above gives the turn away."
    )
    rules: ClassVar[dict[str, Rule]] = {
        "views": one_crop(),
        "objective_options": lambda facts, chosen: (
            {},
            "none to choose: all four turns in the batch and a linear layer (Gidaris et al., ICLR 2018)",
        ),
    }

    def __init__(self, encoder: Encoder, views: ViewPlan) -> None:
        super().__init__(encoder, views)
        only_group(views, draws=0)
        self.head = nn.Linear(encoder.dim, TURNS)

    def forward(self, views: list[View], progress: float) -> Loss:
        (view,) = views
        z = encode_parts(self.encoder, turns(view.pixels))  # [4, B, D]
        turn = torch.arange(TURNS, device=z.device)[:, None].expand(z.shape[:2])  # [4, B]
        loss, accuracy = all_mean(guess(self.head(z), turn))
        return Loss(loss, {"cross_entropy": loss.detach(), "accuracy": accuracy.detach()}, gather(z.detach()[:1]))
