"""From a file to pixels: uint8 or uint16 arrays in the item's own channels and depth."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from selfsight.errors import SelfsightError

# The file types of this first form, by PIL's name of the format.
FORMATS = ("JPEG", "PNG")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png"}
# A decompression bomb is stopped by its header, before any pixel is decoded.
MAX_PIXELS = 200_000_000
MOST_ELONGATED = 3
Image.MAX_IMAGE_PIXELS = None  # our own limit above, with our own sentence

_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "I;16B": 1, "I": 1, "P": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3, "LA": 1}


class Unreadable(Exception):
    """An item that is set aside; the message is the reason."""


def read_header(data: bytes) -> dict[str, Any]:
    """Format, width, height, channels, depth of an encoded image. Raises `Unreadable` with the reason."""
    import io

    if not data:
        raise Unreadable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:  # Pillow raises many kinds on hostile bytes
        raise Unreadable("not a readable JPEG or PNG header") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} is above the limit of {MAX_PIXELS:,} pixels")
    if image.mode not in _CHANNELS:
        raise Unreadable(f"pixel mode {image.mode} is not supported")
    # Cameras append films and notes behind the end, so it is looked for after the last scan, not at the very end.
    if image.format == "JPEG" and data.find(b"\xff\xd9", data.find(b"\xff\xda")) < 0:
        raise Unreadable("truncated JPEG: no end marker")
    if image.format == "PNG" and b"IEND" not in data:
        raise Unreadable("truncated PNG: no end chunk")
    try:
        if image.getexif().get(0x0112, 1) >= 5:  # orientations 5 to 8 swap the sides
            width, height = height, width
    except Exception:  # broken EXIF says nothing of the pixels
        image.info.pop("exif", None)
    depth = 16 if image.mode.startswith("I") else 8
    return {
        "format": str(image.format),
        "width": width,
        "height": height,
        "channels": _channels(image),
        "depth": depth,
    }


def _channels(image: Image.Image) -> int:
    if image.mode == "P":  # a palette of greys is a grey image
        palette = np.asarray(image.getpalette() or [0, 0, 0]).reshape(-1, 3)
        return 1 if (palette == palette[:, :1]).all() else 3
    return _CHANNELS[image.mode]


def open_image(path: Path) -> Image.Image:
    """The upright image in mode L, RGB or I;16. Raises `Unreadable` with the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(path, formats=FORMATS)
            if image.size[0] * image.size[1] > MAX_PIXELS:
                raise Unreadable(f"{image.size[0]} x {image.size[1]} is above the limit of {MAX_PIXELS:,} pixels")
            image.load()
    except FileNotFoundError:
        raise Unreadable("file vanished since import") from None
    except PermissionError:
        raise Unreadable("no permission to read") from None
    except Unreadable:
        raise
    except Exception as error:  # Pillow raises many kinds on hostile bytes
        raise Unreadable(f"cannot be decoded: {error}") from None
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return image if image.mode == "I;16" else Image.fromarray(np.asarray(image).clip(0, 65535).astype(np.uint16))
    return image.convert("L" if _channels(image) == 1 else "RGB")


def decode(
    path: Path, channels: int, short_side: int | None = None, square: int | None = None, deep: bool = False
) -> np.ndarray:
    """Pixels [H, W, C] of a file, in `channels` (1 grey, 3 RGB), uint8, or uint16 if `deep`, white staying white.

    `short_side` shrinks (never enlarges) to that shorter side with the aspect kept, up to 3 to 1: of a longer
    strip the middle is taken, or one panorama would make every batch as large as itself; `square`
    resizes to exactly (square, square), as `timm`'s "squash" transform does. Both use Pillow's
    antialiased bicubic filter.
    """
    image = open_image(path)
    if channels == 3 and image.mode != "RGB":
        image = _to_8_bit(image).convert("RGB")
    elif channels == 1 and image.mode == "RGB":
        image = image.convert("L")
    elif channels not in (1, 3):
        raise SelfsightError(f"{channels} channels cannot be read from {path}: JPEG and PNG give 1 or 3.")
    width, height = image.size
    if square is not None:
        image = _resize(image, (square, square))
    elif short_side is not None:
        most = MOST_ELONGATED * min(width, height)
        left, top = max(0, width - most) // 2, max(0, height - most) // 2
        if left or top:
            image = image.crop((left, top, left + min(width, most), top + min(height, most)))
            width, height = image.size
        if min(width, height) > short_side:
            factor = short_side / min(width, height)
            image = _resize(image, (max(1, round(width * factor)), max(1, round(height * factor))))
    pixels = np.asarray(image)
    if deep and pixels.dtype == np.uint8:
        pixels = pixels.astype(np.uint16) * 257  # 255 * 257 = 65535
    elif not deep and pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    if image.mode == "I;16":  # Pillow resizes 16 bits only as float
        floats = Image.fromarray(np.asarray(image, dtype=np.float32)).resize(size, Image.Resampling.BICUBIC)
        return Image.fromarray(np.asarray(floats).round().clip(0, 65535).astype(np.uint16))
    return image.resize(size, Image.Resampling.BICUBIC)


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode != "I;16":
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
