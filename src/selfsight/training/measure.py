"""What a pretraining measures of its data: the normalisation before, the features to whiten after."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.data.batches import Batches
from selfsight.data.canvases import Canvases, nothing_decoded
from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import BATCH, encode
from selfsight.views.make import make_views
from selfsight.views.plan import ViewGroup, ViewPlan

WHITENING_ITEMS = 4096  # with 1,000 to 10,000, k-NN and probes on CIFAR-10 differed by 0.1 points


def measure_normalisation(canvases: Canvases, items: int = 256) -> Geometry:
    """The geometry with mean and standard deviation per channel, over `items` canvases spread evenly over the
    collection."""
    low, high = canvases.unit
    channels = canvases.format.channels
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for _, pixels in canvases.sample(items):
        unit = ((pixels.reshape(-1, channels).astype(np.float64) - low) / (high - low)).clip(0.0, 1.0)
        count += len(unit)
        total += unit.sum(0)
        squares += (unit**2).sum(0)
    if not count:
        raise nothing_decoded(canvases.collection, list(canvases.set_aside.values()))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-6))
    return canvases.geometry(tuple(mean.tolist()), tuple(std.tolist()))


def canvas_features(encoder: Encoder, batches: Batches, normalise: Geometry, items: int = WHITENING_ITEMS) -> Tensor:
    """Pooled features [N, D] float32 of up to `items` whole canvases at the encoder's size."""
    inputs = _squares(batches, normalise, min(items, len(batches.ids)), encoder.geometry.size, encoder.device)
    return torch.from_numpy(np.concatenate([features for _, features in encode(encoder, inputs)]))


def _squares(
    batches: Batches, normalise: Geometry, items: int, size: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Whole canvases [B, C, S, S] of the first `items` places, squashed to `size` and normalised."""
    for start in range(0, items, BATCH):
        batch = batches.gather(np.arange(start, min(start + BATCH, items)), 0)
        pixels = normalise.to_unit(batch.pixels[:, 0].to(device))
        squares = [
            F.interpolate(p[None, :, :h, :w], (size, size), mode="bicubic", antialias=True).clamp_(0.0, 1.0)
            for p, (h, w) in zip(pixels, batch.shapes[:, 0].tolist(), strict=True)
        ]
        yield start, normalise.normalise(torch.cat(squares))


def view_features(
    encoder: Encoder, batches: Batches, normalise: Geometry, views: int, places: np.ndarray, step: int
) -> Tensor:
    """Pooled features [V, N, D], float32, of `views` crops, at the encoder's size, of the items at `places` of the
    order. `step` items are encoded at a time."""
    plan = ViewPlan((ViewGroup(views, encoder.geometry.size, scale=(0.3, 1.0)),))

    def inputs() -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(places), step):
            batch = batches.gather(places[start : start + step], 0)
            for number, view in enumerate(make_views(batch, plan, normalise, 0, encoder.device)):
                yield number, view.pixels

    parts: list[list[np.ndarray]] = [[] for _ in range(views)]
    for number, features in encode(encoder, inputs()):
        parts[number].append(features)
    return torch.from_numpy(np.stack([np.concatenate(part) for part in parts]))


def whitening_items(encoder: Encoder, adapted: bool) -> int:
    """The images to whiten by: of adapted weights, often large and slow, twice as many as there are directions."""
    return min(WHITENING_ITEMS, max(1024, 2 * encoder.dim)) if adapted else WHITENING_ITEMS


def seconds_to_whiten(
    encoder: Encoder, batches: Batches, normalise: Geometry, margin: float = 1.3, whiten_by: int = WHITENING_ITEMS
) -> float:
    """Seconds that whitening by so many images, and saving, will take, from one measured batch, times `margin`."""
    items = min(BATCH, len(batches.ids))
    canvas_features(encoder, batches, normalise, items)  # the first pass is slower than the rest
    began = time.monotonic()
    canvas_features(encoder, batches, normalise, items)
    return 2.0 + margin * (time.monotonic() - began) * min(whiten_by, len(batches.ids)) / items
