"""Pictures inside the page: small JPEGs as data URIs, so that the page is one file."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from selfsight.data.canvases import decoded
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder

QUALITIES = (80, 65, 50, 35)  # of JPEG; the first whose pictures fit is used
GREY = (200, 200, 200)


def thumbnails_of(collection: Collection, rows: pa.Table, encoder: Encoder, side: int) -> dict[int, Image.Image]:
    """{row number: picture of the item}, at most `side` px long, 8 bits, through the encoder's intensity window.

    An item that cannot be read is a grey square. Of more than three channels the first three are shown.
    """
    return pictures_of(collection, rows, encoder.geometry, side)


def pictures_of(collection: Collection, rows: pa.Table, geometry: Geometry, side: int) -> dict[int, Image.Image]:
    """As `thumbnails_of`, without an encoder."""
    out = {}
    for number, pixels in decoded(collection, rows, geometry.format, 2 * side, "Thumbnails"):
        unread = Image.new("RGB", (side, side), GREY)
        out[number] = unread if isinstance(pixels, Unreadable) else as_picture(pixels, geometry)
        out[number].thumbnail((side, side), Image.Resampling.BICUBIC)
    return dict(sorted(out.items()))


def as_picture(pixels: np.ndarray, geometry: Geometry) -> Image.Image:
    """Pixels [H, W, C] of own depth as a picture of 8 bits, grey or RGB, through the geometry's intensity window. Of
    more than three channels the first three are shown."""
    unit = geometry.to_unit(torch.from_numpy(pixels.astype(np.float32)))
    small = (unit * 255).round().to(torch.uint8).numpy()
    if geometry.mode == "CMYK":
        return Image.fromarray(small, mode="CMYK").convert("RGB")
    return Image.fromarray(small[:, :, :3]) if small.shape[2] >= 3 else Image.fromarray(small[:, :, 0])


def data_uri(image: Image.Image, quality: int = QUALITIES[0]) -> str:
    """The image as a JPEG in a `data:` address."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def data_uris(images: list[Image.Image], most_bytes: int) -> list[str]:
    """The images as data URIs of at most about `most_bytes` together, in the best quality that fits."""
    out: list[str] = []
    for quality in QUALITIES:
        out = [data_uri(image, quality) for image in images]
        if sum(map(len, out)) <= most_bytes:
            break
    return out


def sheet_uri(path: Path) -> str | None:
    """The picture at `path` as a data URI; None if it is missing or cannot be read."""
    try:
        with Image.open(path, formats=["PNG"]) as sheet:
            return data_uri(sheet.convert("RGB"))
    except (OSError, ValueError):
        return None
