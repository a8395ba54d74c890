"""Intermediate maps of an encoder: which of timm's maps are its levels, with their strides and channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from selfsight.encoders.tokens import is_token_model
from selfsight.errors import SelfsightError

PROBE = 64  # pixels: a multiple of every stride, so that a map's side tells its stride


@dataclass(frozen=True)
class Levels:
    """An encoder's levels, finest first.

    indices: of the levels among the maps of timm's `forward_intermediates`; of a ViT, after how many blocks.
    strides: of each, in input pixels.
    channels: of each.
    norm: whether the network's last norm is applied to the maps that can take it.
    """

    indices: tuple[int, ...]
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    norm: bool = True


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Context with `module` in eval mode. Afterwards, also after an exception, each part is back in its former mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def quarters(count: int) -> tuple[int, ...]:
    """The numbers of blocks that are 1/4, 1/2, 3/4 and all of `count`."""
    return tuple(math.ceil(count * done / 4) for done in (1, 2, 3, 4))


def levels_of(net: nn.Module, channels: int, size: int) -> Levels:
    """The levels of the timm model `net`, which takes `channels` and, if it takes only one size, `size` pixels.

    There is one map per distinct stride, the deepest. Where all maps have one stride, as in a ViT or a mixer, there are
    four: after 1/4, 1/2, 3/4 and all of the blocks. They are found by encoding an image of zeros, as timm's own list
    also counts stages without blocks. Raises `SelfsightError` for a model that gives no maps.
    """
    model: Any = net
    if is_token_model(net):
        after = quarters(len(model.blocks))
        return Levels(after, (int(model.patch_embed.feat_ratio()),) * 4, (int(model.embed_dim),) * 4)
    if not hasattr(model, "forward_intermediates"):
        raise SelfsightError(f"{type(net).__name__} gives no intermediate maps. Choose another --encoder.")
    fixed = model.pretrained_cfg.get("fixed_input_size", False)
    side = size if fixed else PROBE * math.ceil(size / PROBE)
    maps, norm = _tried(model, channels, side)
    strides = [round(side / level.shape[-1]) for level in maps]
    if len(maps) > 1 and len(set(strides)) == 1:
        chosen = [after - 1 for after in quarters(len(maps))]
    else:
        chosen = sorted({stride: index for index, stride in enumerate(strides)}.values(), key=lambda i: strides[i])
    of = tuple(int(maps[index].shape[1]) for index in chosen)
    return Levels(tuple(chosen), tuple(strides[index] for index in chosen), of, norm)


@torch.inference_mode()
def _tried(model: Any, channels: int, side: int) -> tuple[list[torch.Tensor], bool]:
    """(all maps [1, C, h, w] of an image of zeros, whether the model can apply its last norm to them)."""
    image = torch.zeros(1, channels, side, side, device=next(model.parameters()).device)
    with evaluating(model):
        try:
            return model.forward_intermediates(image, norm=True, intermediates_only=True), True
        except AssertionError:  # Hiera's way to say that it cannot
            return model.forward_intermediates(image, intermediates_only=True), False
