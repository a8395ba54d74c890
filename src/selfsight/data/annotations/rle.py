"""Run lengths, as COCO writes a mask: column by column, how many pixels are outside, inside, outside, …

`counts` is a list, or a text in which each length is a difference to the one but one before it, in letters of five
bits. Format: pycocotools, `maskApi.c`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict, cast

import numpy as np


class Runs(TypedDict):
    """A mask: its height and width, and its run lengths."""

    size: list[int]
    counts: str | list[int]


def encode(mask: np.ndarray, compressed: bool = True) -> Runs:
    """A mask [H, W] bool as {"size": [H, W], "counts": …}."""
    flat = np.asarray(mask, dtype=bool).T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat, prepend=False, append=~flat[-1:]))
    counts = np.diff(edges, prepend=0).tolist()
    return {"size": list(mask.shape), "counts": to_text(counts) if compressed else counts}


def encode_part(part: np.ndarray, y0: int, x0: int, height: int, width: int) -> Runs:
    """A mask [H, W] whose pixels are those of `part` [h, w] bool, its upper left one at (y0, x0), without making it."""
    x, y = np.nonzero(part.T)
    flat = (x + x0).astype(np.int64) * height + y + y0
    breaks = np.flatnonzero(np.diff(flat, prepend=-2) != 1)
    starts, ends = flat[breaks], flat[np.append(breaks[1:], len(flat)) - 1] + 1 if len(flat) else flat
    edges = np.stack([starts, ends], axis=1).reshape(-1)
    counts = np.diff(edges, prepend=0, append=height * width).tolist()
    return {"size": [height, width], "counts": to_text(counts if counts[-1] else counts[:-1])}


class Part(NamedTuple):
    """The pixels of an object, and no more of the image than is around them: mask [h, w] bool, whose upper left pixel
    is at (y0, x0)."""

    mask: np.ndarray
    y0: int
    x0: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Where it is in the image."""
        height, width = self.mask.shape
        return slice(self.y0, self.y0 + height), slice(self.x0, self.x0 + width)


def decode(rle: Mapping[str, object]) -> np.ndarray:
    """The mask [H, W] bool. Raises `ValueError` for lengths that are not those of an image of this size."""
    height, width, counts = lengths(rle)
    inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(width, height).T)


def decode_part(rle: Mapping[str, object]) -> Part:
    """What is inside, without the mask of the whole image. Raises as `decode` does."""
    height, _, counts = lengths(rle)
    edges = np.cumsum(counts)
    starts, ends = edges[:-1:2], edges[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return Part(np.zeros((0, 0), bool), 0, 0)
    left, right = int(starts[0]) // height, (int(ends[-1]) - 1) // height + 1
    steps = np.zeros(height * (right - left) + 1, np.int8)
    steps[starts - left * height] += 1
    steps[ends - left * height] -= 1  # where the next one starts at once, nothing changes
    mask = np.cumsum(steps[:-1], dtype=np.int8).reshape(right - left, height).T > 0
    rows = np.flatnonzero(mask.any(1))
    return Part(np.ascontiguousarray(mask[rows[0] : rows[-1] + 1]), int(rows[0]), left)


def lengths(rle: Mapping[str, object]) -> tuple[int, int, list[int]]:
    """(height, width, run lengths). Raises `ValueError` for lengths that are not those of an image of this size."""
    try:
        runs = cast(Runs, rle)
        height, width = (int(side) for side in runs["size"])
        stated = runs["counts"]
        counts = from_text(stated) if isinstance(stated, str) else [int(count) for count in stated]
    except (KeyError, TypeError, IndexError):
        raise ValueError("run lengths without a size or counts") from None
    if min(height, width) < 1 or min(counts, default=-1) < 0 or sum(counts) != height * width:
        raise ValueError(f"run lengths that do not make up {width} x {height} pixels")
    return height, width, counts


def area_of(rle: Runs) -> int:
    """How many pixels are inside."""
    counts = rle["counts"]
    return sum((from_text(counts) if isinstance(counts, str) else counts)[1::2])


def to_text(counts: Sequence[int]) -> str:
    """Lengths as letters."""
    letters = bytearray()
    for place, count in enumerate(counts):
        rest, more = count - counts[place - 2] if place > 2 else count, True
        while more:
            bits, rest = rest & 0x1F, rest >> 5
            more = rest != (-1 if bits & 0x10 else 0)
            letters.append(48 + (bits | 0x20 if more else bits))
    return letters.decode("ascii")


def from_text(text: str) -> list[int]:
    """Letters as lengths. Raises `ValueError` for a text that ends within one, or holds other letters."""
    counts: list[int] = []
    value, shift = 0, 0
    for letter in text.encode("utf-8", "replace"):
        bits = letter - 48
        if not 0 <= bits < 64:
            raise ValueError("run lengths with letters that are none of theirs")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (1 << shift) if bits & 0x10 else 0
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
        elif shift > 60:
            raise ValueError("run lengths that never end")
    if shift:
        raise ValueError("run lengths that end within one")
    return counts
