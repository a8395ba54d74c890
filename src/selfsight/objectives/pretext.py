"""What the classic pretext tasks share: cut parts out of a view, encode them, and classify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import is_fixed_size, takes_any_size
from selfsight.objectives.facts import Chosen, Facts, ViewRule
from selfsight.objectives.objective import encode, in_float32
from selfsight.objectives.shared import PLAIN, part_side
from selfsight.views.plan import ViewGroup, ViewPlan


def arrangement(draws: int, grey: float = 0.0) -> ViewRule:
    """A rule for one view whose parts have to be placed: most of the image, never mirrored.

    draws: its random numbers. grey: share of the views that are turned grey.
    """

    def rule(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
        colour = replace(PLAIN, grey=grey)
        group = ViewGroup(count=1, size=chosen["size"], scale=(0.5, 1.0), flip=0.0, colour=colour, draws=draws)
        return ViewPlan((group,)), "one crop of half to all of the image, not mirrored: the task is where its parts are"

    return rule


def part_size(chosen: Chosen, parts: int) -> int:
    """Side in pixels to which a part is resized for the encoder: about its size over `parts`, in whole patches of a
    ViT.

    A convolutional encoder gets at least 32, or half of its size if that is less, as most end with a stride of 32. The
    rules' narrow ResNet has no last stage and ends with 16.
    """
    name = chosen["encoder"]
    if not is_fixed_size(name):
        layers = chosen["encoder_args"].get("layers")
        narrow = isinstance(layers, list | tuple) and list(layers)[-1:] == [0]
        return max(part_side(chosen, parts), 0 if narrow else min(32, part_side(chosen, 2)))
    return part_side(chosen, parts) if takes_any_size(name) else int(chosen["size"])


def up_to(draws: Tensor, count: int) -> Tensor:
    """Whole numbers from 0 to `count` - 1, all equally likely, from `draws` in [0, 1) of any shape."""
    return (draws * count).long().clamp_(max=count - 1)  # float32 may round the product up


def cut(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Squares [B, K, C, side, side] of `images` [B, C, H, W] whose corners are at `top` and `left` [B, K]."""
    at = torch.arange(side, device=images.device)
    rows, columns = top[:, :, None, None] + at[:, None], left[:, :, None, None] + at
    item = torch.arange(len(images), device=images.device)[:, None, None, None]
    squares: Tensor = images.permute(0, 2, 3, 1)[item, rows, columns]  # [B, K, side, side, C]
    return squares.permute(0, 1, 4, 2, 3)


def resize(parts: Tensor, size: int) -> Tensor:
    """Parts [B, K, C, h, w] as [B, K, C, size, size], bilinear."""
    flat: Tensor = F.interpolate(parts.flatten(0, 1), (size, size), mode="bilinear", align_corners=False)
    return flat.view(*parts.shape[:2], *flat.shape[1:])


def encode_parts(encoder: Encoder, parts: Sequence[Tensor]) -> Tensor:
    """Pooled features [K, B, D], float32, of K `parts` [B, C, H, W] of this process's items, in one pass."""
    pooled: Tensor = encode(encoder, torch.cat(list(parts))).pooled.float()
    return pooled.view(len(parts), -1, pooled.shape[1])


@in_float32
def guess(logits: Tensor, labels: Tensor) -> Tensor:
    """(mean cross-entropy, accuracy) of `logits` [..., K] for `labels` [...], a float32 tensor [2].

    The chance levels are log K and 1 / K.
    """
    flat, wanted = logits.flatten(0, -2), labels.flatten()
    right = (flat.argmax(1) == wanted).float().mean()
    return torch.stack([F.cross_entropy(flat, wanted), right])
