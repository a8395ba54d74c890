"""From the random numbers that a view carries (`ViewGroup.draws`) to sets of patches."""

from __future__ import annotations

import torch
from torch import Tensor


def random_patches(draws: Tensor, count: int) -> Tensor:
    """[B, count] indices of patches, ascending, from `draws` [B, N]. All subsets are equally likely."""
    return draws.argsort(dim=1, stable=True)[:, :count].sort(dim=1).values


def as_mask(index: Tensor, patches: int) -> Tensor:
    """[B, N] bool: true at the patches of `index` [B, K]."""
    mask = torch.zeros(len(index), patches, dtype=torch.bool, device=index.device)
    return mask.scatter_(1, index, True)


def others(index: Tensor, patches: int) -> Tensor:
    """[B, N - K] the patches that are not among `index` [B, K], ascending."""
    return (~as_mask(index, patches)).nonzero()[:, 1].view(len(index), patches - index.shape[1])


def block(draws: Tensor, grid: int, height: int, width: int) -> Tensor:
    """[B, grid ** 2] bool: a block of `height` x `width` patches, at a place that `draws` [B, 2] chooses."""
    top = (draws[:, 0] * (grid - height + 1)).long()[:, None]
    left = (draws[:, 1] * (grid - width + 1)).long()[:, None]
    at = torch.arange(grid, device=draws.device)
    rows, columns = (at >= top) & (at < top + height), (at >= left) & (at < left + width)
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)
