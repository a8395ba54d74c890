"""From views to embeddings: the encoder, the projector and the predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.encoder import Encoder, Features
from selfsight.views.make import View


def encode(encoder: Encoder, images: Tensor) -> Features:
    """The encoder's features of `images` [B, C, H, W], which are brought into the fastest memory layout first."""
    if images.device.type != "mps" and images.shape[1] > 1:
        images = images.contiguous(memory_format=torch.channels_last)
    return encoder(images)  # type: ignore[no-any-return]


def embed_views(encoder: Encoder, projector: Callable[[Tensor], Tensor], views: Sequence[View]) -> Tensor:
    """Projected pooled features [V, B, D], float32, of the items of all processes.

    Views of one size pass the encoder together.
    """
    out: list[Tensor | None] = [None] * len(views)
    for size in {view.pixels.shape[-1] for view in views}:
        which = [i for i, view in enumerate(views) if view.pixels.shape[-1] == size]
        pixels = torch.cat([views[i].pixels for i in which])
        embedded = projector(encode(encoder, pixels).pooled).float()
        for i, rows in zip(which, embedded.chunk(len(which)), strict=True):
            out[i] = rows
    return gather(torch.stack([rows for rows in out if rows is not None]))


def embed_and_predict(
    encoder: Encoder, projector: nn.Module, predictor: nn.Module, views: Sequence[View]
) -> tuple[Tensor, Tensor]:
    """(embeddings, predictions), both [V, B, D] and float32, of the items of all processes.

    `predictor` keeps the width. It sees only the process's own items, so its batch norm counts each item once.
    """

    def both(pooled: Tensor) -> Tensor:
        z = projector(pooled)
        return torch.cat([z, predictor(z)], 1)

    z, predictions = embed_views(encoder, both, views).chunk(2, dim=2)
    return z, predictions


def projector(widths: Sequence[int], last_norm: bool = False) -> nn.Sequential:
    """Linear layers of `widths` with batch norm and ReLU between them: [N, widths[0]] to [N, widths[-1]].

    As Chen et al. 2020, section 4.2. last_norm: batch norm also after the last layer (Chen and He 2021, section 3).
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(a, b, bias=last and not last_norm))
        if not last:
            layers += [nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(b))
    return nn.Sequential(*layers)
