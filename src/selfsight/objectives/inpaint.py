"""Inpaint: predict the pixels hidden by a few blocks.

Pathak, Krahenbuhl, Donahue, Darrell and Efros, "Context Encoders: Feature Learning by Inpainting", CVPR 2016,
equation 1 and section 3.3 (random blocks): with M = 1 where pixels are hidden, |M (x - F((1 - M) x))|^2, here a mean
over an item's hidden pixels, then over items. The adversarial loss is left out: it sharpens pictures, and the paper
finds that features do not need it. Hidden pixels are 0, the mean colour. In place of the paper's layer that connects
every place to every other, the pooled features are added to each cell's own, so that they are trained too.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import all_mean, gather
from selfsight.encoders.encoder import Encoder, Features
from selfsight.errors import SelfsightError
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import Loss, Objective, encode, in_float32, register
from selfsight.objectives.patches import only_group, only_view
from selfsight.objectives.shared import one_crop
from selfsight.views.make import View
from selfsight.views.masks import block
from selfsight.views.plan import ViewPlan

BLOCKS = 4


def hidden(draws: Tensor, size: int, grid: int, side: int) -> Tensor:
    """[B, 1, size, size] bool: true where blocks of `side` x `side` cells of a grid hide pixels. `draws` [B, 2 blocks]
    choose their places; blocks may overlap."""
    cells = torch.stack([block(two, grid, side, side) for two in draws.split(2, dim=1)]).any(0)
    mask = cells.float().view(-1, 1, grid, grid)
    return F.interpolate(mask, (size, size), mode="nearest") > 0.5


@in_float32
def hidden_error(predicted: Tensor, images: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of `predicted` and `images` [B, C, H, W] where `mask` [B, 1, H, W] is true: over an
    item's hidden pixels and channels, then over items. Raises `ValueError` where an item hides nothing."""
    count = mask.flatten(1).sum(1)  # [B]
    if not bool((count > 0).all()):
        raise ValueError("an item hides no pixel")
    squares = (predicted - images.float()).square().mean(1, keepdim=True).masked_fill(~mask, 0.0)
    return (squares.flatten(1).sum(1) / count).mean()


class Decoder(nn.Module):
    """From features to images [B, channels, size, size]: three steps up to the view, narrower at each."""

    def __init__(self, encoder: Encoder, channels: int, width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(encoder.patch_dim, width)
        self.whole = nn.Linear(encoder.dim, width, bias=False)
        widths = (width, width // 2, width // 4, channels)
        self.steps = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))

    def forward(self, features: Features, size: int) -> Tensor:
        x: Tensor = self.cells(features.patches) + self.whole(features.pooled)[:, None]  # [B, N, width]
        x = x.transpose(1, 2).unflatten(2, features.grid)
        for factor, step in zip((4, 2, 1), self.steps, strict=True):
            up = (size // factor, size // factor)
            x = step(F.interpolate(F.relu(x), up, mode="bilinear", align_corners=False))
        return x


@register("inpaint")
class Inpaint(Objective):
    """blocks: how many blocks hide pixels.
    grid: cells along a side of the view, on which blocks lie.
    side: cells along a side of a block.
    width: of the decoder's first layer, in channels.
    """

    family = "classic pretext"
    when = (
        "Small sets, any number of channels, and images that need reconstruction or a map of what is odd. Features "
        "favour colours and smooth shapes, which predict pixels, over what things are."
    )
    rules: ClassVar[dict[str, Rule]] = {
        "views": one_crop(draws=2 * BLOCKS),
        "objective_options": lambda facts, chosen: (
            {"blocks": BLOCKS, "grid": 8, "side": 2, "width": 64},
            "blocks of a quarter of the side that hide up to a quarter of the view (Pathak et al., CVPR 2016); a "
            "decoder that costs a fraction of the encoder",
        ),
    }

    def __init__(
        self, encoder: Encoder, views: ViewPlan, blocks: int = BLOCKS, grid: int = 8, side: int = 2, width: int = 64
    ) -> None:
        super().__init__(encoder, views)
        if blocks < 1 or not 1 <= side <= grid:
            raise SelfsightError(f"{blocks} blocks of {side} cells a side do not fit a grid of {grid} a side.")
        only_group(views, 2 * blocks)
        self.blocks, self.grid, self.side = blocks, grid, side
        self.decoder = Decoder(encoder, encoder.geometry.channels, width)

    def mask(self, view: View) -> Tensor:
        """[B, 1, H, W] bool: true where pixels are hidden."""
        _, draws = only_view([view])
        return hidden(draws[:, : 2 * self.blocks], view.pixels.shape[-1], self.grid, self.side)

    def masked(self, view: View) -> Tensor:
        """What the encoder sees [B, C, H, W]: hidden pixels are 0."""
        return view.pixels.masked_fill(self.mask(view), 0.0)

    @torch.no_grad()
    def reconstruct(self, view: View) -> Tensor:
        """The view [B, C, H, W] with its hidden pixels as they are predicted."""
        predicted = self.decoder(encode(self.encoder, self.masked(view)), view.pixels.shape[-1])
        return torch.where(self.mask(view), predicted.to(view.pixels.dtype), view.pixels)

    def forward(self, views: list[View], progress: float) -> Loss:
        (view,) = views
        features = encode(self.encoder, self.masked(view))
        predicted = self.decoder(features, view.pixels.shape[-1])  # [B, C, H, W]
        loss = all_mean(hidden_error(predicted, view.pixels, self.mask(view)))
        return Loss(loss, {"hidden_error": loss.detach()}, gather(features.pooled.detach().float()[None]))
