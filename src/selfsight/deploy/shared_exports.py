"""Exports of heads that are served: where several stand on one encoder, it is held once, and runs once for an image."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from selfsight.deploy.cut import cut
from selfsight.deploy.engine import Engine
from selfsight.deploy.exported import Exported

MOST_BYTES = 64 * 2**20  # of what is remembered
CLOSE = 1e-4  # between what an export says whole and cut


class SharedEncoder:
    """The encoder of several exports, which remembers what it made of the last images.

    runs: how many images it computed.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: OrderedDict[bytes, dict[str, np.ndarray]] = OrderedDict()
        self._bytes = self.runs = 0
        self._lock = threading.Lock()  # a version is tried while others answer

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """What it makes of pixels [B, C, H, W], by name; each image is computed unless it is remembered."""
        shape = str(pixels.shape[1:]).encode()
        keys = [hashlib.blake2b(np.ascontiguousarray(one).data, digest_size=16, key=shape).digest() for one in pixels]
        with self._lock:
            new = list({key: place for place, key in enumerate(keys) if key not in self._known}.values())
            found = {key: self._known[key] for key in keys if key in self._known}
            if new:
                made = self._engine.run({"pixels": pixels[new]})
                self.runs += len(new)
                for place, number in enumerate(new):
                    found[keys[number]] = {name: values[place].copy() for name, values in made.items()}
                    self._remember(keys[number], found[keys[number]])
        return {name: np.stack([found[key][name] for key in keys]) for name in found[keys[0]]}

    def _remember(self, key: bytes, made: dict[str, np.ndarray]) -> None:
        self._known[key] = made
        self._bytes += sum(values.nbytes for values in made.values())
        while self._bytes > MOST_BYTES and self._known:
            self._bytes -= sum(values.nbytes for values in self._known.popitem(last=False)[1].values())


class Rest:
    """An export behind its encoder: it says of pixels what the whole one says."""

    def __init__(self, encoder: SharedEncoder, engine: Engine) -> None:
        self.encoder, self._engine = encoder, engine

    def __call__(self, pixels: np.ndarray, looked: np.ndarray) -> dict[str, np.ndarray]:
        given = {**self.encoder(pixels), "pixels": pixels, "looked": looked}
        return self._engine.run({name: given[name] for name in self._engine.inputs})


def share_exports(heads: Sequence[Exported]) -> None:
    """Let exports of one encoder, with the same inputs, share it, where that says the same."""
    alike: dict[tuple[str, str], list[Exported]] = {}
    for head in heads:
        alike.setdefault((head.about.encoder, str(head.takes)), []).append(head)
    for some in alike.values():
        whole = [isinstance(head.engine, Engine) for head in some]
        if len(some) < 2 or not any(whole):
            continue
        found = cut([head.file for head in some])
        if found is None:
            continue
        encoder = SharedEncoder(found.encoder)
        rests = [Rest(encoder, engine) for engine in found.rests]
        if all(_same(head, rest) for head, rest in zip(some, rests, strict=True)):
            for head, rest in zip(some, rests, strict=True):
                head.engine = rest


def _same(head: Exported, rest: Rest) -> bool:
    """Whether a cut export says what the whole one does, of two images at once."""
    takes, geometry = head.takes, head.geometry
    low, high = geometry.window
    unit = np.random.default_rng(0).random((2, geometry.channels, takes["height"], takes["width"]))
    pixels = (low + (high - low) * unit).astype({8: np.uint8, 16: np.uint16, 32: np.float32}[geometry.depth])
    looked = np.ones((2, *pixels.shape[2:]), bool)
    one, other = head.engine(pixels, looked), rest(pixels, looked)
    return all(np.allclose(one[name], other[name], rtol=CLOSE, atol=CLOSE, equal_nan=True) for name in one)
