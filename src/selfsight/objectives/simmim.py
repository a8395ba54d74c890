"""SimMIM: one linear layer on the features fills in hidden squares of an image.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai and Hu, "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022,
section 3: L = |y_M - x_M|_1 / Ω(x_M), with x_M the hidden pixels, y_M the predicted ones and Ω their number.

Squares are hidden in the image itself, by a learned value for each channel, not in its tokens, so any encoder will do.
The pooled features add one patch of pixels to the prediction of every cell, so that they are trained too.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.encoder import Encoder, Features
from selfsight.encoders.levels import evaluating
from selfsight.objectives.facts import Chosen, Rule
from selfsight.objectives.objective import Loss, Objective, encode, in_float32, register
from selfsight.objectives.patches import join, only_group, only_view, patch_side
from selfsight.objectives.shared import one_crop
from selfsight.views.make import View
from selfsight.views.masks import as_mask, random_patches
from selfsight.views.plan import ViewPlan


@in_float32
def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of `prediction` to `target` [B, C, H, W] where `mask` [B, 1, H, W] is true: over an item's
    hidden pixels, then over items. A float32 scalar. Raises `ValueError` where an item has no hidden pixel."""
    if not mask.flatten(1).any(1).all():
        raise ValueError("needs at least one hidden pixel in every item")
    error = (prediction - target).abs() * mask
    return (error.sum((1, 2, 3)) / (target.shape[1] * mask.sum((1, 2, 3)))).mean()


def squares_mask(draws: Tensor, squares: int, count: int, size: int) -> Tensor:
    """[B, 1, size, size] bool: true in `count` of `squares` ** 2 squares, which `draws` [B, squares ** 2] choose."""
    mask = as_mask(random_patches(draws, count), squares**2).view(-1, 1, squares, squares)
    at = torch.arange(size, device=draws.device) * squares // size  # [size] the square of each pixel
    return mask[:, :, at[:, None], at[None, :]]


def squares_a_side(chosen: Chosen) -> int:
    """Squares along a side of a view: 4 to 8, so that each is of whole patches (8 px for a convolutional encoder)."""
    cells = chosen["size"] // patch_side(chosen, otherwise=8)
    return max((n for n in range(4, 9) if cells % n == 0), default=8)


@register("simmim")
class SimMIM(Objective):
    """hidden: share of the image that is hidden.
    squares: squares along a side of the image; each is hidden or shown as a whole.
    """

    family = "masked image modelling"
    when = "A start for fine-tuning, with colours and scale untouched, for convolutional encoders and ViTs."
    rules: ClassVar[dict[str, Rule]] = {
        "views": one_crop(draws=lambda chosen: squares_a_side(chosen) ** 2),  # one for each square
        "objective_options": lambda facts, chosen: (
            {"hidden": 0.6, "squares": squares_a_side(chosen)},
            "0.6 of the image hidden, in squares of about a seventh of its side: too large to be copied from their "
            "surroundings (Xie et al., CVPR 2022, table 1)",
        ),
    }

    def __init__(self, encoder: Encoder, views: ViewPlan, hidden: float = 0.6, squares: int = 8) -> None:
        super().__init__(encoder, views)
        self.squares = squares
        only_group(views, squares**2)
        self.count = min(squares**2, max(1, round(hidden * squares**2)))
        self.channels = encoder.geometry.channels
        self.value = nn.Parameter(torch.zeros(self.channels))
        pixels = self.channels * _cell(encoder, views.largest) ** 2
        self.predict = nn.Linear(encoder.patch_dim, pixels)
        self.predict_pooled = nn.Linear(encoder.dim, pixels, bias=False)

    def forward(self, views: list[View], progress: float) -> Loss:
        view, _ = only_view(views)
        mask = self.hidden(view)
        features = encode(self.encoder, self.hide(view.pixels, mask))
        loss = masked_l1(self.image(features, view.pixels.shape[-1]), view.pixels, mask)
        return Loss(loss, {"absolute_error": loss.detach()}, gather(features.pooled.detach().float()[None]))

    def hidden(self, view: View) -> Tensor:
        """[B, 1, H, W] bool: the hidden pixels."""
        _, draws = only_view([view])
        return squares_mask(draws[:, : self.squares**2], self.squares, self.count, view.pixels.shape[-1])

    def hide(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """`pixels` [B, C, H, W] with the learned value of each channel where `mask` is set."""
        return torch.where(mask, self.value.to(pixels.dtype)[:, None, None], pixels)

    def image(self, features: Features, size: int) -> Tensor:
        """[B, C, size, size] predicted pixels. Cells that reach over the right or lower border are cut there."""
        cells = self.predict(features.patches) + self.predict_pooled(features.pooled)[:, None]  # [B, N, C p p]
        return join(cells, features.grid, self.channels)[:, :, :size, :size]

    @torch.no_grad()
    def reconstruct(self, view: View) -> Tensor:
        """[B, C, H, W] the view's normalised pixels, the hidden ones as they are predicted."""
        mask = self.hidden(view)
        guess = self.image(encode(self.encoder, self.hide(view.pixels, mask)), view.pixels.shape[-1])
        return torch.where(mask, guess.float(), view.pixels)

    def masked(self, view: View) -> Tensor:
        """[B, C, H, W] the view's normalised pixels, the hidden ones 0."""
        return view.pixels.masked_fill(self.hidden(view), 0.0)


@torch.no_grad()
def _cell(encoder: Encoder, size: int) -> int:
    """Side, in pixels, of a cell of the encoder's features on an image of `size`, found by encoding a blank image."""
    blank = torch.zeros(1, encoder.geometry.channels, size, size, device=next(encoder.parameters()).device)
    with evaluating(encoder):
        grid: tuple[int, int] = encoder(blank).grid
    return math.ceil(size / min(grid))
