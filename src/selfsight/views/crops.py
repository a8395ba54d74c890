"""Random resized crops with flips, of a whole batch, as one sampling grid from a pyramid level."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.views.plan import ViewGroup


def crop_affines(draws: np.ndarray, shapes: np.ndarray, group: ViewGroup) -> np.ndarray:
    """Affines [B, 2, 3] from view to canvas coordinates for crops of random area, ratio, place, flip.

    draws: [B, 5] uniform. shapes: [B, 2] canvas height and width. Coordinates are continuous: pixel i
    covers [i, i + 1). A part that would leave the canvas is cut to it, side by side.
    """
    height, width = shapes[:, 0].astype(np.float64), shapes[:, 1].astype(np.float64)
    low, high = group.scale
    area = (low + (high - low) * draws[:, 0]) * height * width
    log_low, log_high = math.log(group.ratio[0]), math.log(group.ratio[1])
    ratio = np.exp(log_low + (log_high - log_low) * draws[:, 1])
    w = np.clip(np.sqrt(area * ratio), 1.0, width)
    h = np.clip(np.sqrt(area / ratio), 1.0, height)
    x, y = draws[:, 2] * (width - w), draws[:, 3] * (height - h)
    flipped = draws[:, 4] < group.flip
    affine = np.zeros((len(draws), 2, 3))
    affine[:, 0, 0] = np.where(flipped, -w, w) / group.size
    affine[:, 0, 2] = np.where(flipped, x + w, x)
    affine[:, 1, 1] = h / group.size
    affine[:, 1, 2] = y
    return affine


def pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """`images` [B, C, H, W] and `levels` halvings of it, each the mean of 2 x 2 pixels."""
    out = [images]
    for _ in range(levels):
        odd = (0, out[-1].shape[3] % 2, 0, out[-1].shape[2] % 2)
        padded = F.pad(out[-1], odd, mode="replicate") if any(odd) else out[-1]
        out.append(F.avg_pool2d(padded, 2))
    return out


def levels_of(affines: np.ndarray) -> np.ndarray:
    """[B] pyramid level of each affine: the coarsest that is still at least as fine as the view."""
    step = np.maximum(np.abs(affines[:, 0, 0]), np.abs(affines[:, 1, 1]))  # canvas pixels per view pixel
    levels: np.ndarray = np.floor(np.log2(np.maximum(step, 1.0) + 1e-9)).astype(np.int64)
    return levels


def sample(levels: list[Tensor], affines: np.ndarray, size: int) -> Tensor:
    """Views [B, C, size, size] of images given as a pyramid [B, C, H, W], bilinear, borders repeated.

    `grid_sample` does not antialias, so each view reads the level whose pixels are within a factor
    of two of its own.
    """
    chosen = np.minimum(levels_of(affines), len(levels) - 1)
    first = levels[0]
    out = first.new_empty(len(affines), first.shape[1], size, size)
    centres = torch.arange(size, device=first.device, dtype=torch.float32) + 0.5
    for level in np.unique(chosen):
        where = np.flatnonzero(chosen == level)
        source = levels[level]
        if len(where) < len(affines):
            source = source[torch.as_tensor(where, device=first.device)]
        theta = torch.as_tensor(affines[where] / 2.0**level, dtype=torch.float32, device=first.device)
        height, width = source.shape[2:]
        # Axis-aligned: x depends on the column only and y on the row only.
        xs = (theta[:, 0, :1] * centres + theta[:, 0, 2:]) * (2.0 / width) - 1.0  # [b, size]
        ys = (theta[:, 1, 1:2] * centres + theta[:, 1, 2:]) * (2.0 / height) - 1.0
        grid = torch.stack(
            [xs[:, None, :].expand(-1, size, -1), ys[:, :, None].expand(-1, -1, size)], dim=3
        )  # [b, size, size, 2]
        views = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if len(where) == len(affines):
            return views
        out[torch.as_tensor(where, device=first.device)] = views
    return out
