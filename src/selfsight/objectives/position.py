"""Position: predict on which side of the first patch the second one was.

Doersch, Gupta and Efros, "Unsupervised Visual Representation Learning by Context Prediction", ICCV 2015, sections 3
and 3.1. Two patches of a 3 x 3 arrangement, the middle one and one of its eight neighbours, with a gap and a
random shift, so that no line runs on from one into the other. The loss is -log p(neighbour | features of the two).
Against chromatic aberration, which tells where in the lens a patch was, colours lose the axis from green to magenta:
p (I - a'a / aa') with a = (-1, 2, -1). The paper's random coarsening of patches is left out.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from selfsight.distributed import all_mean, gather
from selfsight.encoders.encoder import Encoder
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import Loss, Objective, projector, register
from selfsight.objectives.patches import only_group, only_view
from selfsight.objectives.pretext import arrangement, cut, encode_parts, guess, part_size, resize, up_to
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan

# Rows and columns from the middle patch to its neighbours, in reading order.
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
DRAWS = 5


def layout(size: int) -> tuple[int, int, int]:
    """(side, gap, shift) in pixels of patches in a view of `size`: the arrangement and its largest shifts fill it."""
    side, shift = size // 4, max(1, size // 64)
    return side, (size - 3 * side - 2 * shift) // 2, shift


def pair(images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """(middle patch and its neighbour [B, 2, C, side, side], which neighbour [B]) of `images` [B, C, S, S].

    `draws` [B, 5] choose the neighbour, then the shifts down and to the right of each patch, from -shift to shift.
    """
    side, gap, shift = layout(images.shape[-1])
    label = up_to(draws[:, 0], len(NEIGHBOURS))
    step = torch.tensor(NEIGHBOURS, device=images.device)[label] * (side + gap)  # [B, 2]
    place = torch.stack([torch.zeros_like(step), step], dim=1) + shift + side + gap  # [B, 2 patches, 2]
    place = place + up_to(draws[:, 1:DRAWS], 2 * shift + 1).unflatten(1, (2, 2)) - shift
    return cut(images, place[:, :, 0], place[:, :, 1], side), label


def without_green(unit: Tensor) -> Tensor:
    """RGB [..., 3, H, W] projected onto what is at right angles to the axis from green to magenta."""
    axis = torch.tensor([-1.0, 2.0, -1.0], device=unit.device).view(3, 1, 1)
    return unit - axis * (unit * axis).sum(-3, keepdim=True) / 6.0


@register("position")
class Position(Objective):
    """patch: side, in pixels, to which each patch is resized for the encoder.
    hidden: width of the layer before the last.
    project: whether the green of RGB images is taken away.
    """

    family = "classic pretext"
    when = (
        "Images of objects with parts in typical places. Of little use for textures. Colour fringes of lenses are "
        "removed, but a vignette, a frame or a fixed scene still gives places away."
    )
    resized = "patch"
    rules: ClassVar[dict[str, Rule]] = {
        "views": arrangement(DRAWS),
        "objective_options": lambda facts, chosen: (
            {"patch": part_size(chosen, 2), "hidden": 512, "project": facts.format.channels == 3},
            "patches of a quarter of the view, enlarged, so that the encoder's last map has a few cells"
            + ("; without green, against colour fringes (Doersch et al., ICCV 2015)" * (facts.format.channels == 3)),
        ),
    }

    def __init__(
        self, encoder: Encoder, views: ViewPlan, patch: int = 32, hidden: int = 512, project: bool = True
    ) -> None:
        super().__init__(encoder, views)
        only_group(views, DRAWS)
        self.geometry = encoder.geometry
        self.patch, self.project = patch, project and encoder.geometry.channels == 3
        self.head = projector([2 * encoder.dim, hidden, len(NEIGHBOURS)])

    def patches(self, view: View, draws: Tensor) -> tuple[Tensor, Tensor]:
        """(the two patches [B, 2, C, patch, patch] that the encoder sees, which neighbour the second one is [B])."""
        parts, label = pair(view.pixels, draws)
        if self.project:
            parts = self.geometry.normalise(without_green(self.geometry.undo(parts)))
        return resize(parts, self.patch), label

    def forward(self, views: list[View], progress: float) -> Loss:
        parts, label = self.patches(*only_view(views))
        z = encode_parts(self.encoder, parts.unbind(1))  # [2, B, D]
        loss, accuracy = all_mean(guess(self.head(z.transpose(0, 1).flatten(1)), label))
        return Loss(loss, {"cross_entropy": loss.detach(), "accuracy": accuracy.detach()}, gather(z.detach()[:1]))
