"""A few items that stand for all."""

from __future__ import annotations

import numpy as np


def spread(count: int, most: int) -> np.ndarray:
    """Places [n], ascending, of up to `most` of `count` items, evenly over their order, with the first and the last."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)
