"""Randomness without state: a draw is a function of (seed, epoch, item id, purpose).

Resume, streaming that equals resident, and two processes that equal one all follow from this. The
generator is SplitMix64 used as a counter-based hash (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def item_keys(ids: Sequence[str]) -> np.ndarray:
    """[N] uint64 keys from hexadecimal item ids."""
    return np.array([int(i[:16], 16) for i in ids], dtype=np.uint64)


def uniform(seed: int, epoch: int, keys: np.ndarray, purpose: str, n: int) -> np.ndarray:
    """[B, n] independent draws in [0, 1) for items `keys` [B]; `purpose` names what they decide."""
    stream = int.from_bytes(hashlib.blake2b(f"{seed} {epoch} {purpose}".encode(), digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        base = _mix(_mix(keys + _GAMMA) ^ np.uint64(stream))
        counters = np.arange(1, n + 1, dtype=np.uint64) * _GAMMA
        bits = _mix(base[:, None] + counters[None, :])
    draws: np.ndarray = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
