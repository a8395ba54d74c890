"""The eight orientations of EXIF and TIFF: how the pixels that a file stores are turned to stand upright."""

from __future__ import annotations

import numpy as np


def turns(orientation: int) -> tuple[bool, bool, bool]:
    """What an orientation of EXIF or TIFF, 1 to 8, does to the stored image: (are the sides swapped, are then the rows
    in reverse, and the columns)."""
    return orientation >= 5, orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)


def known(orientation: int | None) -> int:
    """What a file states as its orientation, 1 where that is none."""
    return orientation if orientation is not None and orientation in range(1, 9) else 1


def is_unturned(stated: tuple[float, float], width: int, height: int, orientation: int | None) -> bool:
    """Whether `stated` (width, height) is the size of the stored image and not that of the upright one."""
    return turns(orientation or 1)[0] and stated == (height, width) and width != height


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, C] turned by an orientation of EXIF or TIFF, 1 to 8; from 5 on the sides are swapped."""
    swapped, down, across = turns(orientation)
    if swapped:
        pixels = pixels.transpose(1, 0, 2)
    if down:
        pixels = pixels[::-1]
    if across:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
