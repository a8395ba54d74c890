"""Pictures inside the page: small JPEGs as data URIs, so that the page is one file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from selfsight.data.decoding import Unreadable, open_image

QUALITIES = (80, 65, 50, 35)  # of JPEG; the first whose pictures fit is used
GREY = (200, 200, 200)


def thumbnail(path: Path, window: tuple[float, float], side: int) -> Image.Image:
    """The upright image of a file, at most `side` px long, 8 bits. `window` (low, high) is the intensity that maps
    to black and white of 16-bit images. A grey square stands for a file that cannot be read."""
    try:
        image = open_image(path)
    except Unreadable:
        return Image.new("RGB", (side, side), GREY)
    if image.mode == "I;16":
        low, high = window
        unit = (np.asarray(image, dtype=np.float32) - low) / max(high - low, 1e-6)
        image = Image.fromarray((unit.clip(0.0, 1.0) * 255).round().astype(np.uint8))
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    return image


def data_uri(image: Image.Image, quality: int = QUALITIES[0]) -> str:
    """The image as a JPEG in a `data:` address."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def data_uris(images: list[Image.Image], most_bytes: int) -> list[str]:
    """The images as data URIs of together about `most_bytes` at most, in the best quality that fits."""
    out: list[str] = []
    for quality in QUALITIES:
        out = [data_uri(image, quality) for image in images]
        if sum(map(len, out)) <= most_bytes:
            break
    return out


def sheet_uri(path: Path) -> str | None:
    """The view sheet of a run as a data URI; None where there is none or it cannot be read."""
    try:
        return data_uri(open_image(path))
    except Unreadable:
        return None
