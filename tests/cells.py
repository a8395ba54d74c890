"""Pictures of cells with their exact masks, composed by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from selfsight.data.annotations import coco
from selfsight.data.annotations.masks import write_mask
from selfsight.data.annotations.outlines import Outline, Outlines
from selfsight.data.annotations.rle import encode

SIDE = 64


def cells(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture [H, W, 3] uint8 of bright discs, some of which touch, and their numbers [H, W]."""
    y, x = np.mgrid[:SIDE, :SIDE]
    ids, pixels = np.zeros((SIDE, SIDE), np.int32), rng.normal(40, 5, (SIDE, SIDE, 3))
    wanted, number = int(rng.integers(4, 9)), 0
    while number < wanted:
        radius, (cy, cx) = rng.uniform(5, 8), rng.uniform(4, SIDE - 4, 2)
        far = np.hypot(y - cy, x - cx)
        disc = far < radius
        if (ids[disc] > 0).mean() < 0.1:
            number += 1
            disc &= ids == 0
            ids[disc] = number
            pixels[disc] += (150 * (1 - 0.6 * (far[disc] / radius) ** 2))[:, None]
    return pixels.clip(0, 255).astype(np.uint8), ids


def write_cells(folder: Path, count: int, seed: int) -> Path:
    """images/, masks/ of classes, ids/ of objects, and a COCO file of the same."""
    rng = np.random.default_rng(seed)
    images: dict[str, Outlines] = {}
    for number in range(count):
        pixels, ids = cells(rng)
        for kind, data in (("masks", write_mask((ids > 0).astype(np.int32))), ("ids", write_mask(ids))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"{number}.png").write_bytes(data)
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        outlines = (Outline("cell", encode(ids == n)) for n in range(1, ids.max() + 1))
        images[f"{number}.png"] = Outlines(tuple(outlines), (SIDE, SIDE))
    (folder / "cells.json").write_bytes(coco.write(images))
    return folder
