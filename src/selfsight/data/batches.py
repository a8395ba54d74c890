"""Which items make up step t, and their pixels: a function of (seed, ids), never of row position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfsight.data.canvases import Canvases
from selfsight.data.randomness import item_keys, uniform


@dataclass
class Batch:
    """The pixels of one step's items.

    `pixels` [B, T, C, H, W] in the canvases' own depth, padded to the largest canvas of the batch by
    repeating its edge; `shapes` [B, 2] the height and width of each before padding; `keys` [B] uint64
    from the item ids; T is 1, or 3 for frames t-1, t, t+1.
    """

    pixels: Tensor
    shapes: Tensor
    keys: np.ndarray
    ids: list[str]
    epoch: int


class Batches:
    """Resident batches. `steps_per_epoch` full batches an epoch; what is left over waits for the next order."""

    def __init__(self, canvases: Canvases, batch_size: int, seed: int, companion: str | None = None) -> None:
        self.canvases = canvases
        self.ids = canvases.ids
        self.keys = item_keys(self.ids)
        self.batch_size = min(batch_size, len(canvases))
        self.seed = seed
        self.steps_per_epoch = len(canvases) // self.batch_size
        self.companion = companion
        self._neighbours = _frame_neighbours(canvases) if companion == "frames" else None
        self._groups = _group_members(canvases) if companion == "group" else None

    def order(self, epoch: int) -> np.ndarray:
        """The indices of an epoch, shuffled by a hash of (seed, epoch, item id)."""
        return np.argsort(uniform(self.seed, epoch, self.keys, "order", 1)[:, 0], kind="stable")

    def steps(self, first: int = 0) -> Iterator[Batch]:
        """Batches without end, from step `first` on: a resumed run takes up where it stopped."""
        epoch, at = divmod(first, self.steps_per_epoch)
        while True:
            order = self.order(epoch)
            for step in range(at, self.steps_per_epoch):
                yield self.gather(order[step * self.batch_size : (step + 1) * self.batch_size], epoch)
            epoch, at = epoch + 1, 0

    def gather(self, indices: np.ndarray, epoch: int) -> Batch:
        """The batch of the given items; a plan with companions gets T frames, or T = 2 items of a group."""
        if self._neighbours is not None:
            clips = self._neighbours[indices]  # [B, 3]
        elif self._groups is not None:
            clips = np.stack([indices, self._partners(indices, epoch)], 1)
        else:
            clips = indices[:, None]
        flat, shapes = collate([self.canvases[i] for i in clips.reshape(-1)])
        pixels = flat.unflatten(0, clips.shape)
        ids = [self.ids[i] for i in indices]
        return Batch(pixels, shapes.unflatten(0, clips.shape), self.keys[indices], ids, epoch)

    def _partners(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        assert self._groups is not None
        draws = uniform(self.seed, epoch, self.keys[indices], "partner", 1)[:, 0]
        partners = []
        for i, draw in zip(indices, draws, strict=True):
            others = [j for j in self._groups[i] if j != i]
            partners.append(others[int(draw * len(others))] if others else i)
        return np.array(partners)


def collate(canvases: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """[H_i, W_i, C] arrays to pixels [B, C, H, W], edge-padded to the largest, and shapes [B, 2]."""
    shapes = np.array([c.shape[:2] for c in canvases], dtype=np.int64)
    height, width = shapes.max(0)
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
    members: dict[str, list[int]] = {}
    groups = canvases.rows["group"].to_pylist()
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    return [members[group] if group else [i] for i, group in enumerate(groups)]
