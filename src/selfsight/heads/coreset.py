"""A few patches that stand for many: greedy k-centre selection."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PROJECTED = 128  # dimensions in which distances are compared


def k_centre(rows: Tensor, count: int, seed: int = 0) -> np.ndarray:
    """Numbers [count] of rows [N, D] such that no row is far from all of them: after a first one that is drawn, each
    time the row that is farthest from those that are chosen. At most twice as far as the best choice would leave it.

    Distances are of random projections to 128 dimensions (Johnson and Lindenstrauss), as in PatchCore. Gonzalez,
    "Clustering to Minimize the Maximum Intercluster Distance", Theoretical Computer Science 1985.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = rows.float()
    if rows.shape[1] > PROJECTED:
        along = torch.randn(rows.shape[1], PROJECTED, generator=generator) / PROJECTED**0.5
        rows = rows @ along.to(rows.device)
    count = min(count, len(rows))
    chosen = np.empty(count, np.int64)
    squares = rows.square().sum(1)
    nearest = torch.full((len(rows),), float("inf"), device=rows.device)
    place = int(torch.randint(len(rows), (1,), generator=generator))
    for number in range(count):
        chosen[number] = place
        to_it = (squares + squares[place] - 2.0 * (rows @ rows[place])).clamp_min_(0.0)
        nearest = torch.minimum(nearest, to_it)
        nearest[place] = -1.0  # never again, also where all others are its copies
        place = int(nearest.argmax())
    return chosen
