"""Items as the inputs of a head that says where: each file placed by a geometry, in a bounded number at a time.

Decoding runs ahead of the network by bytes, not by files, so that pictures of any size fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from selfsight.data.canvases import decoded
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.geometry import Geometry
from selfsight.data.masks import other_size
from selfsight.data.placements import Placement

Answer = TypeVar("Answer")

AHEAD = 256 * 2**20  # bytes of decoded pictures, at most, that wait
BATCH = 16 * 224 * 224  # pixels of the inputs that go through the network at once


class Placed(NamedTuple):
    """An item as inputs.

    number: of its row. pixels: [H, W, C] of the file, of own depth. placements: of its inputs, one, or its tiles.
    inputs: [h, w, C] of own depth, one a placement. looked: [h, w] bool, the pixels that count, one a placement.
    """

    number: int
    pixels: np.ndarray
    placements: list[Placement]
    inputs: list[np.ndarray]
    looked: list[np.ndarray]


def placed(
    collection: Collection, rows: pa.Table, geometry: Geometry, stride: int, roi: np.ndarray | None, title: str
) -> Iterator[Placed | tuple[int, str]]:
    """Each of `rows` as inputs, or (number, reason) of one that cannot be read; file by file, not in their order.

    stride: of the encoder. roi: [H, W] bool, where it looks; a file of another size is one that cannot be read.
    """
    channel = {8: 1, 16: 2, 32: 4}[geometry.depth] * geometry.channels
    sides = zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True)
    largest = max((w * h * channel for w, h in sides), default=1)
    ahead = int(min(64, max(1, AHEAD // max(1, largest))))
    for number, pixels in decoded(collection, rows, geometry.format, None, title, ahead=ahead):
        if isinstance(pixels, Unreadable):
            yield number, str(pixels)
        elif roi is not None and pixels.shape[:2] != roi.shape:
            yield number, other_size(pixels.shape[:2], roi)
        else:
            yield place(number, pixels, geometry, stride, roi)


def place(number: int, pixels: np.ndarray, geometry: Geometry, stride: int, roi: np.ndarray | None) -> Placed:
    """The pixels [H, W, C] of an item as inputs. Tiles in which nothing is to be looked at are left out."""
    placements = geometry.placements(pixels.shape[0], pixels.shape[1], stride)
    mask = np.ones(pixels.shape[:2], np.uint8) if roi is None else roi.astype(np.uint8)
    looked = [each.mask_to_input(mask) > 0 for each in placements]
    used = [i for i, some in enumerate(looked) if some.any()] or [0]
    inputs = [placements[i].pixels_to_input(pixels) for i in used]
    return Placed(number, pixels, [placements[i] for i in used], inputs, [looked[i] for i in used])


def batched(items: Iterable[Placed]) -> Iterator[list[Placed]]:
    """The items in lists: of at most `BATCH` pixels of inputs and `AHEAD` bytes of files together, or of one item."""
    some: list[Placed] = []
    pixels, held = 0, 0
    for item in items:
        size = sum(mask.size for mask in item.looked)
        if some and (pixels + size > BATCH or held + item.pixels.nbytes > AHEAD):
            yield some
            some, pixels, held = [], 0, 0
        some.append(item)
        pixels += size
        held += item.pixels.nbytes
    if some:
        yield some


def inputs_of(items: list[Placed]) -> Iterator[tuple[list[tuple[int, int]], np.ndarray, np.ndarray]]:
    """Batches (which they are, as (item, placement); pixels [B, C, h, w]; looked [B, h, w]) of inputs of one shape."""
    shapes: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, item in enumerate(items):
        for j, mask in enumerate(item.looked):
            shapes.setdefault((mask.shape[0], mask.shape[1]), []).append((i, j))
    for (height, width), which in shapes.items():
        most = max(1, BATCH // (height * width))
        for start in range(0, len(which), most):
            part = which[start : start + most]
            pixels = np.stack([items[i].inputs[j] for i, j in part])
            yield part, pixels.transpose(0, 3, 1, 2), np.stack([items[i].looked[j] for i, j in part])


def answered(
    items: list[Placed], answer: Callable[[np.ndarray, np.ndarray], Sequence[Answer]]
) -> Iterator[tuple[Placed, Iterable[Answer]]]:
    """(item, the answers to its inputs in their order) of each item. answer: of pixels [B, C, h, w] and looked
    [B, h, w], one each. Those of one item alone come as they are made, as it may have many; they are to be gone through
    before the next item is asked for."""
    if len(items) == 1:
        yield items[0], (each for _, pixels, looked in inputs_of(items) for each in answer(pixels, looked))
        return
    found: dict[tuple[int, int], Answer] = {}
    for which, pixels, looked in inputs_of(items):
        found.update(zip(which, answer(pixels, looked), strict=True))
    for i, item in enumerate(items):
        yield item, [found.pop((i, j)) for j in range(len(item.inputs))]
