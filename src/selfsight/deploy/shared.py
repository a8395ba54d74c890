"""Encoders of heads that are served: where several heads stand on one encoder, it runs once for an image."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selfsight.encoders.encoder import Encoder, Features
from selfsight.heads.head import Head
from selfsight.heads.voice import Voice

MOST_BYTES = 64 * 2**20  # of features that are remembered


class _Kept(NamedTuple):
    """The features of one image: pooled, patches and levels, and the grid of its patches."""

    parts: list[Tensor]
    grid: tuple[int, int]


class Remembering(Encoder):
    """An encoder that remembers the features of the last images, so that the next head gets them for nothing.

    runs: how many images it computed.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.net, encoder.geometry, encoder.about)
        self._encoder = [encoder]  # in a list: it is no part of this module, but the same network
        self._known: OrderedDict[bytes, _Kept] = OrderedDict()
        self._bytes = self.runs = 0
        self._lock = threading.Lock()  # a version is tried while others answer

    def forward(
        self, images: Tensor, *, keep: Tensor | None = None, replace: tuple[Tensor, Tensor] | None = None,
        levels: bool = False,
    ) -> Features:  # fmt: skip
        """Features of `images` [B, C, H, W], each of them computed unless it is remembered."""
        rows = images.detach().cpu().contiguous().numpy()
        asked = f"{levels} {rows.shape[1:]}".encode()  # pictures of two shapes may have the same bytes
        keys = [hashlib.blake2b(row.data, digest_size=16, key=asked).digest() for row in rows]
        with self._lock:
            return self._of(keys, images, levels)

    def _of(self, keys: list[bytes], images: Tensor, levels: bool) -> Features:
        new = list({key: number for number, key in enumerate(keys) if key not in self._known}.values())
        found = {key: self._known[key] for key in keys if key in self._known}
        if new:
            features = self._encoder[0](images[new], levels=levels)
            self.runs += len(new)
            for place, number in enumerate(new):
                parts = (features.pooled, features.patches, *(features.levels or ()))
                found[keys[number]] = _Kept([part[place].clone() for part in parts], features.grid)
                self._remember(keys[number], found[keys[number]])
        pooled, patches, *maps = (torch.stack(parts) for parts in zip(*(found[key].parts for key in keys), strict=True))
        return Features(pooled, patches, found[keys[0]].grid, maps if levels else None)

    def _remember(self, key: bytes, kept: _Kept) -> None:
        self._bytes += sum(part.nbytes for part in kept.parts)
        self._known[key] = kept
        while self._bytes > MOST_BYTES and self._known:
            self._bytes -= sum(part.nbytes for part in self._known.popitem(last=False)[1].parts)


def share(heads: Sequence[Voice]) -> None:
    """Let heads whose encoders are the same, weights and geometry, use one that remembers. Those that answer by an
    export have theirs in its graph."""
    alike: dict[str, list[Head]] = {}
    for head in heads:
        if isinstance(head, Head):
            alike.setdefault(head.about.encoder, []).append(head)
    for some in alike.values():
        one = next((head.encoder for head in some if isinstance(head.encoder, Remembering)), None)
        if len(some) > 1:
            one = one or Remembering(some[0].encoder).eval()
            for head in some:
                head.module.encoder = one
