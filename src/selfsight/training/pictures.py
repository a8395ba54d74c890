"""Pictures of a run: a contact sheet of views, a gallery of nearest neighbours, and reconstructions of hidden
pixels."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image

from selfsight.data.batches import Batch, Batches
from selfsight.data.geometry import Geometry
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.levels import evaluating
from selfsight.objectives.objective import Joint, Objective
from selfsight.probing.neighbours import nearest_others
from selfsight.training.measure import canvas_features
from selfsight.views.make import make_views
from selfsight.views.plan import ViewPlan

ITEMS, TILE, GAP = 8, 96, 4
ASKED = 1024  # items among which neighbours are looked for


def contact_sheet(batches: Batches, plan: ViewPlan, normalise: Geometry, seed: int, path: Path) -> None:
    """Draw the first items of the first batch into `path`, one per row: the canvas, then its views."""
    batch = batches.gather(np.arange(min(batches.batch_size, ITEMS)), 0)
    rows = [[tile] for tile in _canvas_tiles(batch, normalise)]
    for view in make_views(batch, plan, normalise, seed):
        pixels = view.pixels if view.pixels.ndim == 4 else view.pixels[:, 1]
        for row, picture in zip(rows, normalise.undo(pixels), strict=True):
            row.append(_tile(picture))
    _draw(rows, path)


def neighbour_gallery(encoder: Encoder, batches: Batches, normalise: Geometry, path: Path) -> None:
    """Draw a few items into `path`, one per row, each followed by the items with the nearest features."""
    count = min(ASKED, len(batches.ids))
    features = canvas_features(encoder, batches, normalise, count).numpy()
    asked = spread(count, ITEMS)
    rows = []
    for item, others in zip(asked, nearest_others(features, asked, ITEMS), strict=True):
        shown = np.array([item, *(other for other, _ in others)])
        rows.append(_canvas_tiles(batches.gather(shown, 0), normalise))
    _draw(rows, path)


def reconstructions(objective: Objective, batches: Batches, normalise: Geometry, seed: int, path: Path) -> None:
    """Draw a few views into `path`, one per row: whole, masked, reconstructed. Nothing is written for an objective that
    reconstructs no pixels."""
    members = cast(list[Objective], objective.members if isinstance(objective, Joint) else [objective])
    hiding = next((m for m in members if hasattr(m, "reconstruct")), None)
    if hiding is None:
        return
    batch = batches.gather(np.arange(min(len(batches.ids), ITEMS)), 0)
    view = make_views(batch, hiding.views, normalise, seed, next(objective.parameters()).device)[0]
    with evaluating(objective), torch.no_grad():
        shown = [view.pixels, hiding.masked(view), hiding.reconstruct(view)]  # type: ignore[operator]
    columns = [normalise.undo(pixels.float()).cpu() for pixels in shown]
    _draw([[_tile(picture) for picture in row] for row in zip(*columns, strict=True)], path)


def _canvas_tiles(batch: Batch, normalise: Geometry) -> list[Image.Image]:
    """The canvas of each item of a batch; of several frames the middle one."""
    middle = (batch.pixels.shape[1] - 1) // 2
    sizes = batch.shapes[:, middle].tolist()
    tiles = zip(batch.pixels[:, middle], sizes, strict=True)
    return [_tile(normalise.to_unit(pixels[:, :h, :w])) for pixels, (h, w) in tiles]


def _draw(rows: list[list[Image.Image]], path: Path) -> None:
    """Write rows of tiles to `path`, the first tile of each row a little apart."""
    step = TILE + GAP
    sheet = Image.new("RGB", (step * len(rows[0]) + 3 * GAP, step * len(rows) + GAP), "white")
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet.paste(tile, (GAP + x * step + (2 * GAP if x else 0), GAP + y * step))
    sheet.save(path)


def _tile(picture: torch.Tensor) -> Image.Image:
    """`picture` [C, H, W] in [0, 1] as an RGB tile of the same aspect: one channel as grey, of several the first
    three."""
    pixels = (picture.numpy() * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) < 3 else pixels[:3].transpose(1, 2, 0)).convert("RGB")
    factor = TILE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    tile = Image.new("RGB", (TILE, TILE), (235, 235, 235))
    tile.paste(image.resize(size, Image.Resampling.NEAREST), ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return tile
