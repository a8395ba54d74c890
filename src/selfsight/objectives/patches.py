"""What objectives that hide parts of an image share: patches of pixels, grids, positions, small transformers."""

from __future__ import annotations

import re

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selfsight.encoders.encoder import Encoder
from selfsight.errors import SelfsightError
from selfsight.objectives.facts import Chosen
from selfsight.views.make import View
from selfsight.views.plan import ViewGroup, ViewPlan


def patch_side(chosen: Chosen, otherwise: int = 16) -> int:
    """Side in pixels of a patch of the recipe's encoder; `otherwise` if it has no patches."""
    named = re.search(r"patch(\d+)", chosen["encoder"])
    return int((chosen.get("encoder_args") or {}).get("patch_size") or (named[1] if named else otherwise))


def patches_a_side(chosen: Chosen) -> int:
    """Patches along a side of a view of the recipe's size."""
    return int(max(1, chosen["size"] // patch_side(chosen)))


def token_grid(encoder: Encoder, size: int) -> tuple[int, int]:
    """(h, w) of a ViT's tokens on a view of `size` pixels a side."""
    height, width = encoder.net.patch_embed.dynamic_feat_size((size, size))  # type: ignore[operator, union-attr]
    return int(height), int(width)


def only_group(plan: ViewPlan, draws: int) -> ViewGroup:
    """The group of a plan of one view. Raises `SelfsightError` for more views, or fewer random numbers than `draws`."""
    if plan.count != 1:
        raise SelfsightError(f"This objective takes one view of each item, and its view plan has {plan.count}.")
    (group,) = plan.groups
    if group.draws < draws:
        raise SelfsightError(
            f"Views of {group.size} px need {draws} draws to choose what is hidden, and the view plan has "
            f"{group.draws}. Set draws to {draws}, or leave the views out of the recipe."
        )
    return group


def only_view(views: list[View]) -> tuple[View, Tensor]:
    """The one view of a batch, and its draws [B, n]."""
    (view,) = views
    assert view.draws is not None
    return view, view.draws


def cut(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, C, H, W] to patches [B, h w, C H/h W/w] in reading order. `grid` (h, w) divides the image."""
    batch, channels, height, width = images.shape
    rows, columns = grid
    cells = images.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def join(patches: Tensor, grid: tuple[int, int], channels: int) -> Tensor:
    """Square patches [B, h w, C p p] back to images [B, C, h p, w p]."""
    rows, columns = grid
    side = round((patches.shape[2] / channels) ** 0.5)
    cells = patches.reshape(len(patches), rows, columns, channels, side, side)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), channels, rows * side, columns * side)


def positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed position embeddings [h w, width] of a grid (h, w).

    Sines and cosines of the row, then of the column, at width / 4 frequencies from 1 towards 1 / 10,000 (Vaswani et al.
    2017, section 3.5, for two axes). Raises `SelfsightError` if `width` is not a multiple of 4.
    """
    if width % 4:
        raise SelfsightError(f"width must be a multiple of 4, not {width}: sine and cosine of row and column.")
    frequencies = 1e-4 ** (torch.arange(width // 4) * 4 / width)
    where = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1]))  # [h w, 2]
    angles = where[:, :, None] * frequencies  # [h w, 2, width / 4]
    return torch.cat([angles.sin(), angles.cos()], 2).flatten(1)


def transformer(width: int, depth: int, heads: int) -> nn.Sequential:
    """`depth` ViT blocks and a norm, [B, N, width] to the same. Weights are drawn from a normal distribution of
    standard deviation 0.02 (Dosovitskiy et al., ViT, 2021). Raises `SelfsightError` if `heads` does not divide
    `width`."""
    if width % heads:
        raise SelfsightError(f"width must be a multiple of heads; {width} is not a multiple of {heads}.")
    blocks = [Block(width, heads, qkv_bias=True) for _ in range(depth)]
    net = nn.Sequential(*blocks, nn.LayerNorm(width))
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return net


def mask_token(width: int) -> nn.Parameter:
    """The learned token [width] that stands for a hidden patch."""
    return nn.Parameter(0.02 * torch.randn(width))
