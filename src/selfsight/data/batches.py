"""Which items make up step t, and their pixels: a function of (seed, ids), never of row position."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from selfsight.data.canvases import Canvases, nothing_decoded
from selfsight.data.formats.format import Unreadable
from selfsight.data.groups import group_numbers, members_of
from selfsight.data.randomness import item_keys, uniform
from selfsight.errors import SelfsightError

AHEAD = 2  # batches whose items are decoded while a step computes


@dataclass
class Batch:
    """The pixels of one step's items.

    pixels: [B, T, C, H, W] in the canvases' own depth, padded to the largest canvas of the batch by repeating edges. T
    is
        1, or 3 for frames t-1, t, t+1.
    shapes: [B, T, 2] height and width before padding.
    keys: [B] uint64, from the item ids.
    ids: of the items.
    epoch: number of the pass over the data.
    indices: [B] of the items among the canvases.
    """

    pixels: Tensor
    shapes: Tensor
    keys: np.ndarray
    ids: list[str]
    epoch: int
    indices: np.ndarray


class Batches:
    """`steps_per_epoch` full batches an epoch; what is left over waits for the next order.

    The order is over all items. The place of one that cannot be read is taken by the next readable one at a
    fixed stride in the same order, so it does not matter when the failure was found.

    Of several processes, `world` of them, each gathers its own part of a step's items, `rank` by `rank`; the
    batch size is that of all together.
    """

    def __init__(
        self,
        canvases: Canvases,
        batch_size: int,
        seed: int,
        companion: str | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.canvases = canvases
        self.ids = canvases.ids
        self.keys = item_keys(self.ids)
        self.batch_size = min(batch_size, len(canvases))
        self.seed = seed
        check_share(self.batch_size, len(canvases), world)
        share = self.batch_size // world
        self._own = slice(rank * share, (rank + 1) * share)
        self.steps_per_epoch = len(canvases) // self.batch_size
        self.companion = companion
        self._neighbours = _frame_neighbours(canvases) if companion == "frames" else None
        self._groups = _group_members(canvases) if companion == "group" else None
        self._stride = self.batch_size  # beyond the batch, and coming by every place
        while math.gcd(self._stride, len(canvases)) > 1:
            self._stride += 1

    def order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch, shuffled by a hash of (seed, epoch, item id)."""
        return np.argsort(uniform(self.seed, epoch, self.keys, "order", 1)[:, 0], kind="stable")

    def steps(self, first: int = 0) -> Generator[Batch, None, None]:
        """Batches without end, from step `first` on: a resumed run takes up where it stopped."""
        coming = self._places(first)
        try:
            yield from self._ahead(coming)
        finally:
            self.canvases.cancel()

    def _ahead(self, coming: Iterator[tuple[np.ndarray, np.ndarray, int]]) -> Iterator[Batch]:
        """Batches of what is coming, while the items of the next ones are being decoded."""
        waiting: deque[tuple[np.ndarray, np.ndarray, int]] = deque()
        while True:
            for order, places, epoch in islice(coming, AHEAD + 1 - len(waiting)):
                own = self._clips(order[places[self._own]], epoch)
                self.canvases.prefetch(own.reshape(-1).tolist())
                waiting.append((order, places, epoch))
            yield self._gather(*waiting.popleft(), self._own)

    def gather(self, places: np.ndarray, epoch: int) -> Batch:
        """The batch of these places in the order of an epoch; a plan with companions gets T frames, or T = 2
        items of a group."""
        return self._gather(self.order(epoch), places, epoch)

    def _places(self, first: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        epoch, at = divmod(first, self.steps_per_epoch)
        while True:
            order = self.order(epoch)
            for step in range(at, self.steps_per_epoch):
                yield order, np.arange(step * self.batch_size, (step + 1) * self.batch_size), epoch
            epoch, at = epoch + 1, 0

    def _gather(self, order: np.ndarray, places: np.ndarray, epoch: int, own: slice = slice(None)) -> Batch:
        """The batch of the `own` ones of a step's places, padded as that of all of them: views are the same to the bit
        only if their canvases are padded alike, since coordinates are fractions of the padded size."""
        room = self.canvases.sides[self._clips(order[places], epoch).reshape(-1)].max(0).tolist()
        places = places[own]
        self.canvases.prefetch(self._clips(order[places], epoch).reshape(-1).tolist())
        read = [self._read(order, place, epoch) for place in places.tolist()]
        indices = np.array([index for index, _ in read])
        # A stand-in that is larger is cut, below and to the right: other processes would not know to make room for it.
        flat, shapes = collate([canvas[: room[0], : room[1]] for _, clip in read for canvas in clip], room)
        frames = len(read[0][1])
        pixels, shapes = flat.unflatten(0, (-1, frames)), shapes.unflatten(0, (-1, frames))
        return Batch(pixels, shapes, self.keys[indices], [self.ids[i] for i in indices], epoch, indices)

    def _read(self, order: np.ndarray, place: int, epoch: int) -> tuple[int, list[np.ndarray]]:
        """The item at a place of the order, or the one that stands in for it, and its frames."""
        for tried in range(len(order)):
            index = int(order[(place + tried * self._stride) % len(order)])
            try:
                own = self.canvases[index]
            except Unreadable:
                continue
            clip = []
            for companion in self._clips(np.array([index]), epoch)[0].tolist():
                try:
                    clip.append(own if companion == index else self.canvases[companion])
                except Unreadable:  # the item stands in for a companion that cannot be read
                    clip.append(own)
            return index, clip
        raise nothing_decoded(self.canvases.collection, list(self.canvases.set_aside.values()))

    def _clips(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """[B, T] the items that make up each item's clip."""
        if self._neighbours is not None:
            return np.asarray(self._neighbours[indices])
        if self._groups is not None:
            return np.stack([indices, self._partners(indices, epoch)], 1)
        return indices[:, None]

    def _partners(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        assert self._groups is not None
        draws = uniform(self.seed, epoch, self.keys[indices], "partner", 1)[:, 0]
        partners = []
        for i, draw in zip(indices, draws, strict=True):
            others = [j for j in self._groups[i] if j != i]
            partners.append(others[int(draw * len(others))] if others else i)
        return np.array(partners)


def check_share(batch_size: int, items: int, world: int) -> None:
    """Raise `SelfsightError` if a step's items, `batch_size` of all `items`, cannot be shared evenly by `world`
    processes."""
    if items < world:
        raise SelfsightError(f"{items} images cannot be shared by {world} processes. Start at most {items}.")
    if batch_size % world:
        raise SelfsightError(
            f"A batch of {batch_size} items cannot be shared evenly by {world} processes. "
            f"Give --batch-size {max(world, batch_size // world * world)}."
        )


def collate(canvases: list[np.ndarray], least: Sequence[int] = (0, 0)) -> tuple[Tensor, Tensor]:
    """[H_i, W_i, C] arrays to pixels [B, C, H, W], edge-padded to the largest and to `least`, and shapes [B, 2]."""
    shapes = np.array([c.shape[:2] for c in canvases], dtype=np.int64)
    height, width = np.maximum(shapes.max(0), least)
    out = np.empty((len(canvases), height, width, canvases[0].shape[2]), dtype=canvases[0].dtype)
    for target, canvas in zip(out, canvases, strict=True):
        h, w = canvas.shape[:2]
        target[:h, :w] = canvas
        target[h:, :w] = canvas[-1:]
        target[:, w:] = target[:, w - 1 : w]
    return torch.from_numpy(out).permute(0, 3, 1, 2), torch.from_numpy(shapes)


def _frame_neighbours(canvases: Canvases) -> np.ndarray:
    """[N, 3] indices of frames t-1, t, t+1 of the same sequence; at an end the frame itself stands in."""
    sequences, frames = canvases.rows["sequence"].to_pylist(), canvases.rows["frame"].to_pylist()
    at = {key: i for i, key in enumerate(zip(sequences, frames, strict=True)) if key[1] is not None}
    triplets = [
        [at.get((s, f + d), i) if f is not None else i for d in (-1, 0, 1)]
        for i, (s, f) in enumerate(zip(sequences, frames, strict=True))
    ]
    return np.array(triplets)


def _group_members(canvases: Canvases) -> list[list[int]]:
    """For each item the indices of its group, itself included; an item without a group is alone."""
    numbers = group_numbers(canvases.rows["group"].to_pylist(), len(canvases))
    members = [indices.tolist() for indices in members_of(numbers)]
    return [members[number] for number in numbers]
