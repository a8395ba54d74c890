"""Faults that pixels and headers show, without any encoder: exact copies, and what is far from the rest of the
collection: dark, bright, blurred, without information, of an odd size, shape or number of channels.

The kinds are those of cleanvision (https://github.com/cleanlab/cleanvision), but nothing is compared with a fixed
threshold: an X-ray is dark and a document bright. Each measure is compared with the median of its collection, in units
of how far usual items lie from it. Pixels are those that our decoder gives, of any depth and source, as they come.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.ndimage import laplace

from selfsight.curation.how_many import LEVEL
from selfsight.curation.ranking import Ranking
from selfsight.data.cache import cache_folder, check_room
from selfsight.data.canvases import decoded, free_bytes
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.pixels import PixelFormat, resize
from selfsight.errors import MachineError

SMALL = 64  # px of a side of the pictures that two items are compared by
SIDE = 256  # px of the shorter side at which items are looked at: of large ones, blur that training would see
LEVELS = 256  # of grey
LEAST_LIGHT = 1 / 64
ROUNDING = (1 / LEVELS) ** 2 / 12  # variance of what rounding to 8 bits adds
# {kind: the least that a usual item is thought to differ by}. Five times as much is odd, however alike the others are:
# half the light, a third of the sharpness, two bits of information, a side of half or twice, a ratio of half or twice.
USUAL = {"dark": 0.22, "bright": 0.22, "blurred": 0.1, "low_information": 0.4, "odd_size": 0.44, "odd_ratio": 0.22}
EXPECTED = 0.9  # the share of items that a usual one is among
MAJORITY = 0.9  # of items that have the usual channels; without it no channels are odd


@dataclass(frozen=True)
class Measures:
    """What pixels show of N items.

    values: {kind: [N]}, higher for what is more at fault, in units that a factor means the same in everywhere:
        octaves of light, decades of sharpness, bits; NaN for an item that was not decoded.
    bad: {number: reason} of items that cannot be decoded.
    pictures: small ones [N, C, S, S] uint8, squashed, through the window of the collection; black where there is none.
    """

    values: dict[str, np.ndarray]
    bad: dict[int, str]
    pictures: np.ndarray


def measure(collection: Collection, rows: pa.Table, format: PixelFormat) -> Measures:
    """Look at the pixels of all `rows`, file by file, in the form `format`."""
    values = {kind: np.full(len(rows), np.nan) for kind in ("dark", "bright", "blurred", "low_information")}
    bad: dict[int, str] = {}
    pictures = _on_disk((len(rows), format.channels, SMALL, SMALL))
    for number, pixels in decoded(collection, rows, format, SIDE, "Looking at pixels"):
        if isinstance(pixels, Unreadable):
            bad[number] = str(pixels)
            continue
        for kind, value in of_pixels(in_grey(pixels, format)).items():
            values[kind][number] = value
        unit = in_unit(resize(pixels, SMALL, SMALL), format)
        pictures[number] = (255 * unit).round().astype(np.uint8).transpose(2, 0, 1)
    height, width = (np.log2(rows[side].to_numpy().astype(np.float64)) for side in ("height", "width"))
    return Measures(values | {"odd_size": height + width, "odd_ratio": width - height}, bad, pictures)


def _on_disk(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros of uint8 in a file that has no name and is gone with them: a million small pictures fit no memory."""
    check_room(cache_folder())
    if (needed := math.prod(shape)) > free_bytes():  # else a page that cannot be written ends the process
        raise MachineError(
            f"Small copies of {shape[0]:,} pictures need {needed / 2**30:.1f} GB in {cache_folder()}, and "
            f"{free_bytes() / 2**30:.1f} GB are free. Make room there, or set SELFSIGHT_CACHE to another folder."
        )
    return np.memmap(tempfile.TemporaryFile(dir=cache_folder()), np.uint8, "w+", shape=shape)


def in_unit(pixels: np.ndarray, format: PixelFormat) -> np.ndarray:
    """Pixels in the form `format`, through its window, as float32 from 0 to 1."""
    low, high = format.window
    return np.asarray(((pixels.astype(np.float32) - low) / (high - low)).clip(0.0, 1.0))


def in_grey(pixels: np.ndarray, format: PixelFormat) -> np.ndarray:
    """Pixels [H, W, C] in the form `format` as grey [H, W], from 0 to 1."""
    colours = in_unit(pixels[:, :, :3], format)
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    grey: np.ndarray = colours @ weights if colours.shape[2] == 3 else colours.mean(2)
    return 1.0 - grey if format.mode == "CMYK" else grey


def of_pixels(grey: np.ndarray) -> dict[str, float]:
    """The measures of grey [H, W] from 0 to 1.

    dark: how few octaves of light the brightest hundredth has. bright: how few the darkest twentieth lacks. blurred:
    how small the variance of the Laplacian is beside that of the picture, so that contrast does not count.
    low_information: how small the entropy of the levels of grey is.
    """
    counts = np.bincount((grey * (LEVELS - 1)).round().astype(np.int64).ravel(), minlength=LEVELS)
    shares = counts / counts.sum()
    below = np.cumsum(shares)
    bright, dark = np.searchsorted(below, 0.99) / (LEVELS - 1), np.searchsorted(below, 0.05) / (LEVELS - 1)
    sharp = (laplace(grey, mode="nearest").var() + ROUNDING) / (grey.var() + ROUNDING)
    there = shares[shares > 0]
    return {
        "dark": -float(np.log2(bright + LEAST_LIGHT)),
        "bright": -float(np.log2(1.0 - dark + LEAST_LIGHT)),
        "blurred": -float(np.log10(sharp)),
        "low_information": float((there * np.log2(there)).sum()),
    }


def pixel_faults(measures: Measures, level: float = LEVEL) -> list[Ranking]:
    """The rankings of what the measures show."""
    found = []
    for kind, usual in USUAL.items():
        values = measures.values[kind]
        known = np.flatnonzero(np.isfinite(values))
        tail = tail_above(values[known], usual)
        if kind in ("odd_size", "odd_ratio"):  # in either direction
            tail = np.minimum(1.0, 2.0 * np.minimum(tail, tail_above(-values[known], usual)))
        found.append(ranked(kind, known, tail, level))
    return found


def tail_above(values: np.ndarray, usual: float) -> np.ndarray:
    """Share of sound items [N] that lie beyond each of `values` [N], if they are spread about the median as a logistic
    distribution whose width is that of the upper side of the values, and at least `usual`."""
    if not len(values):
        return np.empty(0)
    centre, far = np.quantile(values, [0.5, EXPECTED])
    width = max((far - centre) / np.log(EXPECTED / (1.0 - EXPECTED)), usual)
    return np.asarray(1.0 / (1.0 + np.exp(np.minimum((values - centre) / width, 700.0))))


def ranked(kind: str, numbers: np.ndarray, tail: np.ndarray, level: float) -> Ranking:
    """Items, the least likely to be sound first. Of those beyond the level, at most `level` of the sound ones, as many
    are thought to be at fault as are more than chance brings there."""
    order = np.lexsort((numbers, tail))
    beyond = tail[order]
    there = int((beyond <= level).sum())
    expected = len(numbers) * beyond[:there]
    excess = np.arange(1, there + 1) - expected
    sure = excess > 2.0 * np.sqrt(expected)
    estimated = round(float(excess[sure].max())) if sure.any() else 0
    doubt = 2.0 * float(np.sqrt(expected[estimated - 1])) if estimated else 0.0
    low, high = max(0, int(estimated - doubt)), min(len(numbers), int(np.ceil(estimated + doubt)))
    return Ranking(kind, numbers[order], 1.0 - beyond, estimated, low, high)


def odd_channels(modes: Sequence[str]) -> Ranking:
    """Items whose channels are not those that nine in ten have; none without such a majority."""
    names, numbers, counts = np.unique(np.array(modes), return_inverse=True, return_counts=True)
    odd = numbers != counts.argmax() if len(names) and counts.max() >= MAJORITY * len(modes) else numbers < 0
    found = np.flatnonzero(odd)
    return Ranking("odd_channels", found, np.ones(len(found)), len(found), len(found), len(found))


def exact_duplicates(contents: Sequence[str]) -> Ranking:
    """Pairs [K, 2] of items of one content: each with the first of them."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(content, n), n) for n, content in enumerate(contents)]
    found = np.array([pair for pair in pairs if pair[0] != pair[1]], np.int64).reshape(-1, 2)
    return Ranking("exact_duplicates", found, np.ones(len(found)), len(found), len(found), len(found))
