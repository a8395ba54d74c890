"""Masks: pictures whose pixels are class numbers."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from selfsight.data.formats.common import check_size
from selfsight.data.formats.format import Unreadable
from selfsight.data.orientation import is_unturned, upright
from selfsight.errors import SelfsightError

IGNORE = -1  # of pixels that belong to no class: the border of VOC masks, what lies outside the picture
_FORMATS = ("PNG", "TIFF", "GIF", "BMP")  # without loss
_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_BITS_PER_SAMPLE = 258  # of TIFF


def read_mask(file: BinaryIO) -> np.ndarray:
    """Class numbers [H, W] int32 of a mask, upright: 0 is background, each other value a class of its own.

    1 bit gives 0 and 1, grey of 2 to 16 bits the values as they are stored, a palette the numbers of its colours;
    there, and only there, 255 is `IGNORE`. Raises `Unreadable` with the reason for a file that holds no class numbers.
    """
    file.seek(0)
    head = file.read(25)
    file.seek(0)
    try:
        image = Image.open(file, formats=_FORMATS)
        check_size(*image.size)
        if image.mode not in _MODES:
            raise Unreadable(f"a mask of {image.mode}, which holds colours and no class numbers")
        bits = head[24] if image.format == "PNG" else int(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))[0])
        ids: np.ndarray = np.asarray(ImageOps.exif_transpose(image)).astype(np.int32)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # Pillow raises many kinds on hostile bytes
        raise Unreadable(f"no mask of {', '.join(_FORMATS)} ({type(error).__name__})") from None
    if image.mode == "P":
        ids[ids == 255] = IGNORE
    if image.mode == "L" and bits < 8:  # Pillow spreads few bits over 0 to 255
        ids //= 255 // (2**bits - 1)
    return ids


def write_mask(ids: np.ndarray) -> bytes:
    """The PNG that `read_mask` turns into these class numbers [H, W]: of 1 bit where there are 0 and 1 alone, with a
    palette where pixels are `IGNORE`, else grey of 8 or 16 bits.

    Raises `SelfsightError` for numbers that no such file holds.
    """
    ids = np.asarray(ids)
    low, high = int(ids.min()), int(ids.max())
    palette = low == IGNORE
    if low < IGNORE or high > (254 if palette else 65535):
        raise SelfsightError(
            f"A mask of classes {low} to {high} fits no PNG: it holds 0 to 65535, or 0 to 254 and pixels to ignore."
        )
    if palette:
        image = Image.fromarray(np.where(ids == IGNORE, 255, ids).astype(np.uint8))
        image.putpalette([channel for number in range(256) for channel in colour_of(number)])
    else:
        image = Image.fromarray(ids > 0 if high <= 1 else ids.astype(np.uint8 if high < 256 else np.uint16))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour that the devkit of VOC gives to a class: the bits of its number dealt to red, green and blue."""
    bits = [(number >> 3 * k, 7 - k) for k in range(8)]
    red, green, blue = (sum((rest >> channel & 1) << place for rest, place in bits) for channel in range(3))
    return red, green, blue


def upright_mask(mask: np.ndarray, height: int, width: int, orientation: int | None = 1) -> np.ndarray:
    """A mask [H, W] as one of the upright image of this size; `orientation` is the image's, of EXIF or TIFF, 1 to 8.

    As for boxes: where it swaps the sides and the mask has those of the unturned image, the mask is turned with it.
    Raises `Unreadable` for a mask of another size.
    """
    if mask.shape == (height, width):
        return mask
    if is_unturned(mask.shape[::-1], width, height, orientation):
        return upright(mask[:, :, None], orientation or 1)[:, :, 0]
    raise Unreadable(f"a mask of {mask.shape[1]} x {mask.shape[0]} for an image of {width} x {height}")
