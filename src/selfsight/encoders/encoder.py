"""The encoder contract: normalised images in, `Features` out, with the geometry it was trained with."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfsight.data.geometry import Geometry
from selfsight.encoders.tokens import forward_tokens, is_token_model
from selfsight.errors import SelfsightError

FORMAT_VERSION = 1


@dataclass
class Features:
    """pooled [B, D]; patches [B, N, Dp] in reading order, N = h w of `grid` (h, w); Dp may differ
    from D; levels: intermediate maps [B, C, H, W], finest first, if asked for."""

    pooled: Tensor
    patches: Tensor
    grid: tuple[int, int]
    levels: list[Tensor] | None = None


class Encoder(nn.Module):
    """A timm model behind the contract.

    net: a timm model. While it trains it has no classifier; after `whiten` its classifier is the
    whitening, so plain timm gives the same pooled features. `about` is saved with the weights: the
    licence of the starting weights, the view size of training.
    """

    def __init__(self, net: nn.Module, geometry: Geometry, about: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.net = net
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

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        replace: tuple[Tensor, Tensor] | None = None,
        levels: bool = False,
    ) -> Features:
        """Features of `images` [B, C, H, W].

        keep: [B, K] token indices, the only tokens computed; patches are then [B, K, Dp].
        replace: (mask [B, N] bool, token [Dt]) puts the token, before position is added, where the
        mask is set. Both need a model with tokens (a ViT) and raise `SelfsightError` otherwise.
        """
        net: Any = self.net
        if is_token_model(net):
            tokens, grid = forward_tokens(net, images, keep, replace)  # [B, P + N, Dp]
            maps = None
            if levels:
                maps = net.forward_intermediates(images, intermediates_only=True)
            patches = tokens[:, net.num_prefix_tokens :]
            return Features(net.forward_head(tokens), patches, grid, maps)
        if keep is not None or replace is not None:
            raise SelfsightError(
                f"{type(net).__name__} has no tokens to keep or replace. Choose a ViT, for example "
                "--encoder vit_tiny_patch16_224."
            )
        maps = None
        if levels:
            final, maps = net.forward_intermediates(images)
        else:
            final = net.forward_features(images)
        if final.ndim == 3:  # tokens of another family: mixers and hybrids, on a square grid
            patches = final[:, getattr(net, "num_prefix_tokens", 0) :]
            height = width = math.isqrt(patches.shape[1])
        elif getattr(net, "output_fmt", "NCHW") == "NHWC":
            height, width, patches = final.shape[1], final.shape[2], final.flatten(1, 2)
        else:
            height, width = final.shape[2:]
            patches = final.flatten(2).transpose(1, 2)
        return Features(net.forward_head(final), patches, (height, width), maps)

    @property
    def digest(self) -> str:
        """Hash of the weights and the geometry: features are kept under it."""
        architecture = getattr(self.net, "pretrained_cfg", {}).get("architecture")  # two can share their weights
        made_of = [asdict(self.geometry), architecture, FORMAT_VERSION]
        digest = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=8)
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
