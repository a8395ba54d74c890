"""I-JEPA: from a part of an image, predict a teacher's features of its other parts.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun and Ballas, "Self-Supervised Learning from Images with a
Joint-Embedding Predictive Architecture", CVPR 2023, section 3. The encoder sees the context: the tokens of one large
block, without the target blocks. A predictor gets its output and the positions of one target block at a time, and
predicts the features there of a teacher that sees the whole image. The loss is the smooth L1 to the layer-normalised
teacher features, as in the paper.

Before that, each dimension of the teacher's features is standardised over the patches of an image. Without this all
patches of an image may get the same feature, which is easiest to predict: after 350 steps a fortieth of the variance
was within images, from two thirds at first (benchmarks/README.md).

Each target block has one size for all items. The context is cut at random to the number of tokens left in the worst
case, so shapes never change. The predictor also gets the pooled features of the context as one more token, so that they
are trained too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.encoder import Encoder, Features
from selfsight.encoders.tokens import take
from selfsight.errors import SelfsightError
from selfsight.objectives.facts import Chosen, Facts, Options, Rule
from selfsight.objectives.objective import EMATeacher, Loss, Objective, in_float32, register
from selfsight.objectives.patches import (
    mask_token,
    only_group,
    only_view,
    patches_a_side,
    positions,
    token_grid,
    transformer,
)
from selfsight.objectives.shared import MEASURED, one_crop
from selfsight.views.make import View
from selfsight.views.masks import block
from selfsight.views.plan import ViewPlan


@in_float32
def standardised(patches: Tensor) -> Tensor:
    """Features [B, N, D] with mean 0 and deviation 1 in each dimension over the N patches of an image."""
    over_patches: Tensor = F.layer_norm(patches.transpose(1, 2), patches.shape[1:2])
    return over_patches.transpose(1, 2)


@in_float32
def smooth_l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over items, patches and dimensions of d^2 / 2 where d = |prediction - target| [B, N, D] is below 1, else
    d - 1/2, in float32; `target` is layer-normalised (without weights) first."""
    target = F.layer_norm(target.float(), target.shape[-1:])
    return F.smooth_l1_loss(prediction, target)


def choose(
    draws: Tensor, grid: int, targets: Sequence[Sequence[int]], context: int, kept: int
) -> tuple[Tensor, list[Tensor]]:
    """(visible patches [B, kept], patches of each target block [B, h w]), indices in ascending order.

    draws [B, 2 + 2 T + grid ** 2]: the place of the context block (`context` patches a side), the places of the T
    target blocks (h, w), and the order in which the context's patches outside all targets are taken.
    """
    masks = [block(draws[:, 2 + 2 * i : 4 + 2 * i], grid, h, w) for i, (h, w) in enumerate(targets)]
    free = block(draws[:, :2], grid, context, context) & ~torch.stack(masks).any(0)  # [B, N]
    order = draws[:, 2 + 2 * len(targets) :].masked_fill(~free, 2.0)  # draws are below 1
    seen = order.argsort(dim=1, stable=True)[:, :kept].sort(1).values
    return seen, [mask.nonzero()[:, 1].view(len(mask), -1) for mask in masks]


def sizes(grid: int) -> tuple[list[list[int]], int]:
    """Heights and widths of four target blocks, and the side of the context block, on a grid of patches.

    The middle of the paper's ranges: 0.175 of the image, heights over widths from 3/4 to 3/2; a context of 0.925.
    """
    side, most = (0.175 * grid**2) ** 0.5, max(1, grid - 1)
    ratios = [0.75 * 2 ** (i / 3) for i in range(4)]
    targets = [[min(most, max(1, round(side * a**0.5))), min(most, max(1, round(side / a**0.5)))] for a in ratios]
    return targets, min(grid, round(0.925**0.5 * grid))


def options(facts: Facts, chosen: Chosen) -> tuple[Options, str]:
    """Blocks for the encoder's grid; a predictor in proportion to the encoder that the rules choose for the device."""
    targets, context = sizes(patches_a_side(chosen))
    width = 192 if facts.device == "cuda" else 128
    return (
        {"targets": targets, "context": context, "width": width, "depth": 4, "heads": 4, "momentum": 0.99},
        "four targets of 0.15 to 0.2 of the image and nearly all of it as context (Assran et al., CVPR 2023); a "
        f"predictor as wide as the small ViT ({MEASURED}); a teacher of momentum 0.99, not "
        "their 0.996, as runs of minutes have few steps",
    )


@register("ijepa")
class IJEPA(Objective):
    """targets: [height, width] of each target block, in patches.
    context: side of the context block, in patches.
    width: of the predictor.
    depth: of the predictor, in blocks.
    heads: attention heads of the predictor.
    momentum: of the teacher at the start; 1 at the end. A short run's teacher is faster (see `EMATeacher`).
    """

    family = "joint-embedding prediction"
    when = "Learns what is where, without colour changes. Needs a ViT, many images and a long run."
    tokens = True
    pool = "avg"
    positions: Tensor
    rules: ClassVar[dict[str, Rule]] = {
        "views": one_crop(draws=lambda chosen: 10 + patches_a_side(chosen) ** 2),  # of five blocks, of patches
        "objective_options": options,
    }

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        targets: Sequence[Sequence[int]] = ((3, 4), (3, 3), (4, 3), (4, 3)),
        context: int = 8,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(encoder, views)
        rows, columns = token_grid(encoder, views.largest)
        only_group(views, 2 + 2 * len(targets) + rows * columns)
        self.grid, self.targets, self.context = rows, targets, context
        self.kept = context**2 - sum(h * w for h, w in targets)
        if rows != columns or not targets or max(context, *(max(size) for size in targets)) > rows or self.kept < 1:
            raise SelfsightError(
                f"A context of {context} x {context} patches and targets of {[list(size) for size in targets]} do not "
                f"fit {rows} x {columns} patches with some context left. Choose smaller blocks or patches."
            )
        self.teacher = EMATeacher(encoder, base=momentum)
        self.embed = nn.Linear(encoder.patch_dim, width)
        self.embed_pooled = nn.Linear(encoder.dim, width)
        self.token = mask_token(width)
        self.register_buffer("positions", positions((rows, columns), width), persistent=False)
        self.predictor = transformer(width, depth, heads)
        self.predict = nn.Linear(width, encoder.patch_dim)

    @property
    def trained(self) -> Encoder:
        """The teacher's encoder."""
        return cast(Encoder, self.teacher.copies[0])

    def forward(self, views: list[View], progress: float) -> Loss:
        view, draws = only_view(views)
        seen, targets = choose(draws, self.grid, self.targets, self.context, self.kept)
        with torch.no_grad():
            whole = self.trained(view.pixels)
            wanted = take(standardised(whole.patches), torch.cat(targets, 1))  # [B, M, Dp], M patches of all targets
        features = self.encoder(view.pixels, keep=seen)
        loss = smooth_l1(self.guess(features, seen, targets), wanted)
        return Loss(loss, {"smooth_l1": loss.detach()}, gather(whole.pooled.detach().float()[None]))

    def guess(self, features: Features, seen: Tensor, targets: list[Tensor]) -> Tensor:
        """[B, M, Dp] predicted features of the patches of all `targets`, from those `seen`. One target never sees
        another."""
        known = self.embed(features.patches) + self.positions[seen]  # [B, K, W]
        pooled = self.embed_pooled(features.pooled)[:, None]
        context = torch.cat([pooled.to(known.dtype), known], 1)
        out = []
        for target in targets:
            asked = (self.token + self.positions[target]).to(context.dtype)  # [B, h w, W]
            out.append(self.predictor(torch.cat([context, asked], 1))[:, context.shape[1] :])
        return self.predict(torch.cat(out, 1))  # type: ignore[no-any-return]

    def after_step(self, progress: float) -> None:
        self.teacher.follow([self.encoder], progress)
