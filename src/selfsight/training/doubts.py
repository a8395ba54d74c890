"""Doubts about the images: what the first images and their views say against training on them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.data.batches import Batches
from selfsight.data.geometry import Geometry
from selfsight.views.make import make_views
from selfsight.views.plan import ViewPlan

ITEMS = 16
SAME = 2 / 255  # no mean of a 64th of an image differs by more, where images are the same
PLAIN = 0.01  # deviation of the values of a picture, from 0 to 1, below which it shows nothing
END = 0.05  # how near to 0 or 1 black and white are
MOST = 0.5  # of the pictures that show nothing, above which that is said


def doubts(batches: Batches, plan: ViewPlan, normalise: Geometry, seed: int) -> list[str]:
    """Sentences, without their full stop, about up to `ITEMS` images drawn at random: that most of them,
    or of their views, are of one colour, or that all are the same."""
    batch = batches.gather(np.arange(min(batches.batch_size, ITEMS)), 0)
    sizes = batch.shapes[:, 0].tolist()
    images = [normalise.to_unit(p[:, :h, :w]) for p, (h, w) in zip(batch.pixels[:, 0], sizes, strict=True)]
    if said := _plain(images, "images that were looked at"):
        low, high = batches.canvases.format.window
        shown = f", where {low:g} is shown as black and {high:g} as white" if normalise.depth > 8 else ""
        return [f"{said}{shown}. See views.png"]
    count = len(np.unique(batch.indices))  # one that can be read may stand in for others
    small = torch.stack([F.adaptive_avg_pool2d(image, 8) for image in images])  # [B, C, 8, 8]
    if count > 1 and float((small - small[0]).abs().max()) < SAME:
        return [f"The {count} images that were looked at look the same, so there may be nothing to tell apart"]
    views = [normalise.undo(pixels) for view in make_views(batch, plan, normalise, seed) for pixels in view.pixels]
    if said := _plain(views, "views of the first images"):
        return [f"{said}, although the images are not. See views.png"]
    return []


def _plain(pictures: list[Tensor], called: str) -> str:
    """`15 of 16 images are white all over`, where more than `MOST` of the pictures in [0, 1] are of one colour."""
    levels = [float(p.mean()) for p in pictures if float(p.flatten(1).std(1, unbiased=False).max()) < PLAIN]
    if len(levels) <= MOST * len(pictures):
        return ""
    level = float(np.median(levels))
    colour = "white" if level > 1 - END else "black" if level < END else "of one colour"
    return f"{len(levels)} of {len(pictures)} {called} are {colour} all over"
