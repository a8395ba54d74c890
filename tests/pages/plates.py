"""Pictures to label: brushed metal, with a scratch, a spot, a dent or nothing. Also what docs/label.png shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

KINDS = ("good", "scratch", "spot", "dent")


def plate(rng: np.random.Generator, kind: str, height: int = 480, width: int = 640) -> Image.Image:
    """A grey plate of brushed metal with one defect of a kind."""
    lines = rng.normal(0, 1, (height, 1)).repeat(width, 1) + rng.normal(0, 0.7, (height, width))
    y, x = np.mgrid[:height, :width]
    light = 26 * np.cos((x / width - rng.uniform(0.2, 0.8)) * 2.4) * np.cos((y / height - 0.5) * 1.6)
    brushed = Image.fromarray((128 + 16 * lines).clip(0, 255).astype(np.uint8))
    pixels = np.asarray(brushed.filter(ImageFilter.BoxBlur((9, 0)))).astype(np.float64) + light
    cy, cx = rng.uniform(0.25, 0.75) * height, rng.uniform(0.25, 0.75) * width
    if kind == "scratch":
        angle, bend = rng.uniform(0.3, 1.2) * rng.choice((-1, 1)), rng.uniform(-0.002, 0.002)
        along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle) - bend * along**2
        inside = (abs(along) < rng.uniform(0.15, 0.35) * width) * (1 + 0.4 * rng.normal(size=(height, width)))
        pixels += inside * (85 * np.exp(-((across / 1.6) ** 2)) - 60 * np.exp(-(((across - 4) / 2) ** 2)))
    elif kind == "spot":
        for _ in range(int(rng.integers(2, 6))):
            oy, ox, r = cy + rng.normal(0, 60), cx + rng.normal(0, 80), rng.uniform(5, 16)
            pixels -= 80 / (1 + np.exp((np.hypot(y - oy, (x - ox) * 0.9) - r) / 1.5))
    elif kind == "dent":
        r = rng.uniform(35, 70)
        away = np.hypot(y - cy, x - cx) / r
        pixels += 70 * ((x - cx) + (y - cy)) / r * np.exp(-(away**2) * 1.6)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_plates(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (480, 640)) -> Path:
    """`count` plates in one folder, named plate-000.png on, their kinds in turn."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        plate(rng, KINDS[i % len(KINDS)], *size).save(folder / f"plate-{i:03d}.png")
    return folder
