"""The encoder contract: normalised images in, `Features` out, with the geometry it was trained with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from selfsight.data.geometry import Geometry
from selfsight.encoders.convolutions import with_written_gradients
from selfsight.encoders.levels import Levels, evaluating, levels_of
from selfsight.encoders.licences import UNKNOWN
from selfsight.encoders.tokens import forward_tokens, is_token_model
from selfsight.errors import SelfsightError

FORMAT_VERSION = 1


@dataclass
class Features:
    """What an encoder makes of a batch of images.

    pooled: [B, D].
    patches: [B, N, Dp] in reading order, N = h w. Dp may differ from D.
    grid: (h, w) of the patches.
    levels: intermediate maps [B, C, H, W], finest first, if asked for: the deepest of each stride; of a ViT the maps
        after 1/4, 1/2, 3/4 and all of its blocks.
    """

    pooled: Tensor
    patches: Tensor
    grid: tuple[int, int]
    levels: list[Tensor] | None = None


class Encoder(nn.Module):
    """A timm model with the interface of selfsight.

    net: the timm model. It has no classifier while it trains. After `whiten` its classifier is the whitening, so plain
        timm gives the same pooled features.
    geometry: how pixels become its input.
    about: what is saved with the weights, such as the licence of the starting weights.
    """

    __call__: Callable[..., Features]  # what forward gives, which torch does not say

    def __init__(self, net: nn.Module, geometry: Geometry, about: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.net = with_written_gradients(net)
        self.geometry = geometry
        self.about = dict(about or {})

    @property
    def dim(self) -> int:
        """D of the pooled features."""
        return int(self.net.num_classes or self.net.head_hidden_size)  # type: ignore[arg-type]

    @property
    def patch_dim(self) -> int:
        """Dp of the patch features."""
        return int(self.net.num_features)  # type: ignore[arg-type]

    @property
    def licence(self) -> str:
        """The licence of the starting weights, which holds for what is made with them."""
        return str(self.about.get("licence") or UNKNOWN)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.parameters()).device

    @property
    def level_strides(self) -> tuple[int, ...]:
        """The stride of each level in input pixels, finest first."""
        return self._levels.strides

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return self._levels.channels

    def encode(self, images: Tensor, levels: bool = False) -> Features:
        """Features of `images` [B, C, H, W] in eval mode, without gradients, on the encoder's device. Afterwards every
        module is back in the mode it was in."""
        with evaluating(self), torch.inference_mode():
            features: Features = self(images.to(self.device), levels=levels)
            return features

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        levels: bool = False,
    ) -> Features:
        """Features of `images` [B, C, H, W].

        keep: indices [B, K] of the only tokens to compute; patches are then [B, K, Dp].
        replace: (mask [B, N] bool, token [Dt]). The token stands where the mask is set, before positions are added.
        levels: whether to give the intermediate maps too. They need all tokens and cannot be combined with `keep`.

        Raises `SelfsightError` for `keep` or `replace` with a model that has no tokens (not a ViT).
        """
        net: Any = self.net
        if levels and keep is not None:
            raise SelfsightError("levels are maps of all tokens, and keep leaves some out. Give one of the two.")
        if is_token_model(net):
            after = self._levels.indices if levels else ()
            tokens, grid, between = forward_tokens(net, images, keep, replace, after)  # [B, P + N, Dp]
            prefix = net.num_prefix_tokens
            maps = [some[:, prefix:].transpose(1, 2).unflatten(2, grid) for some in between] if levels else None
            return Features(net.forward_head(tokens), tokens[:, prefix:], grid, maps)
        if keep is not None or replace is not None:
            raise SelfsightError(
                f"{type(net).__name__} has no tokens to keep or replace. Choose a ViT, for example "
                "--encoder vit_tiny_patch16_224."
            )
        maps = None
        if levels:
            final, maps = net.forward_intermediates(images, indices=list(self._levels.indices), norm=self._levels.norm)
        else:
            final = net.forward_features(images)
        patches, grid = self._in_reading_order(final)
        return Features(net.forward_head(final), patches, grid, maps)

    def _in_reading_order(self, final: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(patches [B, N, Dp], grid (h, w)) from the last output of a network that does not go through
        `forward_tokens`."""
        if final.ndim == 3:  # tokens of another family: mixers and hybrids, on a square grid
            patches = final[:, getattr(self.net, "num_prefix_tokens", 0) :]
            side = math.isqrt(patches.shape[1])
            return patches, (side, side)
        if getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            return final.flatten(1, 2), (final.shape[1], final.shape[2])
        return final.flatten(2).transpose(1, 2), (final.shape[2], final.shape[3])

    @cached_property
    def grid(self) -> tuple[int, int]:
        """The grid (h, w) of the patches of one input."""
        side = self.geometry.size
        return self.encode(torch.zeros(1, self.geometry.channels, side, side)).grid

    @cached_property
    def _levels(self) -> Levels:
        return levels_of(self.net, self.geometry.channels, self.geometry.size)

    @property
    def digest(self) -> str:
        """Hash of the weights and the geometry, the key under which features are stored."""
        architecture = getattr(self.net, "pretrained_cfg", {}).get("architecture")  # two can share their weights
        made_of = [self.geometry.facts, architecture, FORMAT_VERSION]
        digest = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=8)
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
