"""MAE: from a quarter of the patches, predict the pixels of the others.

He, Chen, Xie, Li, Dollár and Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 3:
the encoder sees only the visible patches. A light decoder sees its output, with a mask token for each hidden patch. The
loss is the mean over hidden patches of the squared error to their pixels, which are normalised by each patch's own mean
and standard deviation (over all its pixels and channels, dividing by their number).

The decoder also gets the pooled features as one more token, as the paper's gets the class token, so that they are
trained too.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.encoder import Encoder, Features
from selfsight.objectives.facts import Chosen, Facts, Options, Rule
from selfsight.objectives.objective import Loss, Objective, in_float32, register
from selfsight.objectives.patches import (
    cut,
    join,
    mask_token,
    only_group,
    only_view,
    patches_a_side,
    positions,
    token_grid,
    transformer,
)
from selfsight.objectives.shared import one_crop
from selfsight.views.make import View
from selfsight.views.masks import as_mask, random_patches
from selfsight.views.plan import ViewPlan


def normalised(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`patches` [B, N, P] as (x - mean) / std, the means and the stds [B, N, 1], in float32."""
    patches = patches.float()
    mean = patches.mean(2, keepdim=True)
    std = (patches.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return (patches - mean) / std, mean, std


@in_float32
def masked_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of `prediction` to `target` [B, N, P] where `mask` [B, N] is true: over an item's hidden
    patches, then over items. A float32 scalar. Raises `ValueError` where an item has no hidden patch."""
    if not mask.any(1).all():
        raise ValueError("needs at least one hidden patch in every item")
    error = (prediction - target).square().mean(2)  # [B, N]
    return ((error * mask).sum(1) / mask.sum(1)).mean()


def options(facts: Facts, chosen: Chosen) -> tuple[Options, str]:
    """The paper's ratio; a decoder in proportion to the encoder that the rules choose for the device."""
    width, depth = (256, 4) if facts.device == "cuda" else (64, 2)
    return (
        {"hidden": 0.75, "width": width, "depth": depth, "heads": 4},
        "three quarters hidden (He et al., CVPR 2022, figure 5); a decoder narrower than the encoder, as it sees four "
        "times the patches and is not kept",
    )


@register("mae")
class MAE(Objective):
    """hidden: share of the patches that is hidden.
    width: of the decoder.
    depth: of the decoder, in blocks.
    heads: attention heads of the decoder.
    """

    family = "masked image modelling"
    when = "To fine-tune, to fill gaps or to find what does not belong. Frozen, its nearest neighbours are weak."
    tokens = True
    positions: Tensor
    rules: ClassVar[dict[str, Rule]] = {
        "views": one_crop(draws=lambda chosen: patches_a_side(chosen) ** 2),  # one for each patch
        "objective_options": options,
    }

    def __init__(
        self, encoder: Encoder, views: ViewPlan, hidden: float = 0.75, width: int = 64, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__(encoder, views)
        size, channels = views.largest, encoder.geometry.channels
        self.grid = token_grid(encoder, size)
        self.patches = self.grid[0] * self.grid[1]
        only_group(views, self.patches)
        self.kept = min(self.patches - 1, max(1, round((1.0 - hidden) * self.patches)))
        self.embed = nn.Linear(encoder.patch_dim, width)
        self.embed_pooled = nn.Linear(encoder.dim, width)
        self.token = mask_token(width)
        self.register_buffer("positions", positions(self.grid, width), persistent=False)
        self.decoder = transformer(width, depth, heads)
        self.predict = nn.Linear(width, channels * (size // self.grid[0]) * (size // self.grid[1]))

    def forward(self, views: list[View], progress: float) -> Loss:
        view, _ = only_view(views)
        keep, mask = self.split(view)
        features = self.encoder(view.pixels, keep=keep)  # patches [B, K, Dp]
        target, _, _ = normalised(cut(view.pixels, self.grid))  # [B, N, P]
        loss = masked_error(self.decode(features, keep), target, mask)
        return Loss(loss, {"squared_error": loss.detach()}, gather(features.pooled.detach().float()[None]))

    def split(self, view: View) -> tuple[Tensor, Tensor]:
        """(indices of the visible patches [B, K], mask [B, N], true where patches are hidden)."""
        _, draws = only_view([view])
        keep = random_patches(draws[:, : self.patches], self.kept)
        return keep, ~as_mask(keep, self.patches)

    def decode(self, features: Features, keep: Tensor) -> Tensor:
        """Normalised pixels [B, N, P] of all patches, from the features of those at `keep` [B, K]."""
        seen = self.embed(features.patches)  # [B, K, W]
        everywhere = self.token.to(seen.dtype).expand(len(seen), self.patches, -1)
        index = keep[:, :, None].expand_as(seen)
        tokens = everywhere.scatter(1, index, seen) + self.positions  # [B, N, W]
        pooled = self.embed_pooled(features.pooled)[:, None]
        decoded = self.decoder(torch.cat([pooled.to(tokens.dtype), tokens], 1))
        return self.predict(decoded[:, 1:])  # type: ignore[no-any-return]

    @torch.no_grad()
    def reconstruct(self, view: View) -> Tensor:
        """[B, C, H, W] the view's normalised pixels with hidden patches as predicted. Each predicted patch is shown
        with its true mean and deviation, which the network does not know."""
        keep, mask = self.split(view)
        patches = cut(view.pixels, self.grid)
        _, mean, std = normalised(patches)
        guess = self.decode(self.encoder(view.pixels, keep=keep), keep).float() * std + mean
        return join(torch.where(mask[:, :, None], guess, patches), self.grid, view.pixels.shape[1])

    def masked(self, view: View) -> Tensor:
        """[B, C, H, W] the view's normalised pixels, its hidden patches 0."""
        _, mask = self.split(view)
        patches = cut(view.pixels, self.grid)
        return join(patches.masked_fill(mask[:, :, None], 0.0), self.grid, view.pixels.shape[1])
