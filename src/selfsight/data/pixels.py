"""The form in which a collection's pixels meet: one mode and one depth, chosen from what the items have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from selfsight.data.formats.format import Unreadable, channels_of

# An item's canvas is cut in the middle to this ratio of sides: one panorama would make every batch as large as itself.
MOST_ELONGATED = 3
_MOST = 0.9  # of the items decide for all
_WHITE = {8: 255.0, 16: 65535.0}


@dataclass(frozen=True)
class PixelFormat:
    """The form of pixels.

    mode: as `Header.mode`.
    depth: 8 (uint8), 16 (uint16) or 32 (float32) bits.
    window: the intensities, at a depth of 32, that stand for black and white where 8 and 16 bits must be converted.
    """

    mode: str
    depth: int
    window: tuple[float, float] = (0.0, 1.0)

    @property
    def channels(self) -> int:
        """Channels of the mode."""
        return channels_of(self.mode)

    def takes(self, mode: str) -> bool:
        """Whether an item of `mode` can be brought into this one: colours into each other, others only if the
        number of channels is the same."""
        if mode.isdigit() or self.mode.isdigit():
            return channels_of(mode) == self.channels
        return True

    def __str__(self) -> str:
        return f"{describe_mode(self.mode)}, {'float' if self.depth == 32 else f'{self.depth} bit'}"


def describe_mode(mode: str) -> str:
    """A mode in words."""
    words = {"L": "grey", "LA": "grey with alpha", "RGBA": "RGB with alpha"}
    return words.get(mode, f"{mode} channels" if mode.isdigit() else mode)


def common_format(modes: Iterable[str], depths: Iterable[int]) -> PixelFormat:
    """What nine in ten of the items have, so that a few odd ones do not change it for all; without such
    a majority, grey if there is no colour, else RGB, or the most common number of channels if most
    items are no colours at all. The depth is the deepest that a tenth of the items have."""
    counts, deep = Counter(modes), Counter(depths)
    total = sum(counts.values())
    mode, most = max(counts.items(), key=lambda pair: (pair[1], pair[0]))
    others = {m: n for m, n in counts.items() if m.isdigit()}
    if most < _MOST * total:
        if 2 * sum(others.values()) > total:
            mode = max(others, key=lambda m: (others[m], m))
        else:
            mode = "L" if set(counts) - set(others) <= {"L", "LA"} else "RGB"
    depth = max(d for d, n in deep.items() if n >= (1 - _MOST) * sum(deep.values()) - 1e-9)
    return PixelFormat(mode, depth)


def convert(pixels: np.ndarray, mode: str, want: PixelFormat) -> np.ndarray:
    """Pixels [H, W, C] of `mode` in the form `want`. Raises `Unreadable` where there is no way."""
    if not want.takes(mode):
        raise Unreadable(f"{describe_mode(mode)}, not {describe_mode(want.mode)}")
    if mode != want.mode and not (mode.isdigit() or want.mode.isdigit()):
        pixels = _change_mode(pixels, mode, want.mode)
    return _change_depth(pixels, want)


def _change_mode(pixels: np.ndarray, mode: str, want: str) -> np.ndarray:
    if pixels.dtype == np.uint8:  # Pillow's arithmetic, as everyone else's
        image = Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels, mode=mode)
        if "CMYK" in (mode, want):  # which has ways to and from RGB only
            image = image.convert("RGB")
        return _channels_last(np.asarray(image.convert(want)))
    white = np.float32(65535 if pixels.dtype == np.uint16 else 1)
    planes = pixels.astype(np.float32)
    alpha = planes[:, :, -1:] if mode in ("LA", "RGBA") else np.full_like(planes[:, :, :1], white)
    if mode == "CMYK":
        planes = (white - planes[:, :, :3]) * ((white - planes[:, :, 3:]) / white)
    colour = planes[:, :, :1] if mode in ("L", "LA") else planes[:, :, :3]
    if want in ("L", "LA") and colour.shape[2] == 3:
        colour = colour @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)  # ITU-R BT.601
    elif want in ("RGB", "RGBA", "CMYK") and colour.shape[2] == 1:
        colour = colour.repeat(3, axis=2)
    if want == "CMYK":
        colour, alpha = white - colour, np.zeros_like(alpha)
    if want in ("LA", "RGBA", "CMYK"):
        colour = np.concatenate([colour, alpha], axis=2)
    return _rounded(colour, pixels.dtype)


def _change_depth(pixels: np.ndarray, want: PixelFormat) -> np.ndarray:
    have = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}.get(pixels.dtype, 32)
    low, high = want.window
    if have == 32:
        if not np.isfinite(pixels).any():
            raise Unreadable("no value in it is finite")
        if want.depth == 32:
            return np.nan_to_num(pixels.astype(np.float32, copy=False), nan=low, posinf=high, neginf=low)
        # No common scale is known for floats among integers: 0 to 1 if they keep to it, else their own range.
        finite = pixels[np.isfinite(pixels)]
        darkest, brightest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        if darkest >= 0.0 and brightest <= 1.0:
            darkest, brightest = 0.0, 1.0
        unit = np.nan_to_num(pixels, nan=darkest, posinf=brightest, neginf=darkest).astype(np.float64) - darkest
        unit /= max(brightest - darkest, np.finfo(np.float64).tiny)
        return _rounded(unit * _WHITE[want.depth], np.dtype(np.uint8 if want.depth == 8 else np.uint16))
    if want.depth == 32:
        return np.float32(low) + pixels.astype(np.float32) * np.float32((high - low) / _WHITE[have])
    if have == 8 and want.depth == 16:
        return pixels.astype(np.uint16) * 257  # 255 * 257 = 65535
    if have == 16 and want.depth == 8:
        return (pixels >> 8).astype(np.uint8)
    return pixels


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels [H, W, C] at another size by Pillow's antialiased bicubic filter, each channel on its own."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3, 4):
        # CMYK stands for any four channels: Pillow would weigh the colours of RGBA by their alpha
        mode = {1: "L", 3: "RGB", 4: "CMYK"}[pixels.shape[2]]
        image = Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels, mode=mode)
        return _channels_last(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)))
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
        for plane in pixels.transpose(2, 0, 1).astype(np.float32)
    ]
    return _rounded(np.stack(planes, axis=2), pixels.dtype)


def fit(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """The middle of `pixels`, at most 3 to 1, its shorter side brought down (never up) to `short_side`."""
    height, width = pixels.shape[:2]
    most = MOST_ELONGATED * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    pixels = pixels[top : top + most, left : left + most]
    height, width = pixels.shape[:2]
    factor = min(1.0, short_side / min(height, width))
    return resize(pixels, max(1, round(height * factor)), max(1, round(width * factor)))


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float values in an integer type, rounded and clipped; in a float type as they are."""
    if dtype.kind == "f":
        return values.astype(dtype, copy=False)
    rounded: np.ndarray = values.round().clip(0, np.iinfo(dtype).max).astype(dtype)
    return rounded
