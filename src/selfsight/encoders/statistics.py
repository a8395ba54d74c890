"""The statistics of a collection, for networks with random weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from selfsight.data.collection import Collection
from selfsight.data.geometry import Geometry
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import input_batches
from selfsight.encoders.levels import evaluating

NORM_ITEMS = 512  # whose statistics a network with random weights takes for its batch norms


def some_inputs(collection: Collection, geometry: Geometry) -> Iterator[Tensor]:
    """Batches of inputs [B, C, S, S] of at most 512 items, spread evenly over the order of the collection."""
    rows = collection.usable
    rows = rows.take(spread(len(rows), NORM_ITEMS))
    for numbers, pixels, _ in input_batches(collection, rows, geometry, "Statistics"):
        if numbers:
            yield geometry.to_input(pixels)


@torch.inference_mode()
def measure_batch_norm(encoder: Encoder, inputs: Iterable[Tensor]) -> None:
    """Set the batch norm statistics of `encoder`, in place, to those of `inputs`, batches [B, C, H, W].

    They are means over batches, weighted by images, as the last batch may be small; a batch of one is left out. A
    control with random weights needs this: training gives an encoder these statistics even if it learns nothing, and
    its features get better by it (3 points of k-NN on steel surfaces).
    """
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(encoder):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        seen = 0
        for images in inputs:
            if len(images) > 1:
                seen += len(images)
                for norm in norms:
                    norm.momentum = len(images) / seen
                encoder(images.to(encoder.device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
