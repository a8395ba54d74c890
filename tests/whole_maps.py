"""Maps of a file's inputs as one of the whole file, all at once: what the tests compare with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfsight.data.placements import Placement, strips_to_file
from selfsight.heads.blending import Blend


def scores_to_file(maps: Sequence[np.ndarray], placements: Sequence[Placement]) -> np.ndarray:
    """Scores [..., h', w'] that span the inputs of a file's placements, as float32 [..., H, W] of the file: the plain
    mean where tiles overlap."""
    height, width = placements[0].file
    total = np.zeros((*maps[0].shape[:-2], height, width), dtype=np.float32)
    count = np.zeros((height, width), dtype=np.float32)
    for scores, place in zip(maps, placements, strict=True):
        x0, _, x1, _ = place.source
        for rows, found in strips_to_file(scores, place):
            total[..., rows, x0:x1] += found
            count[rows, x0:x1] += 1
    total /= count
    return total


def blended(maps: Sequence[np.ndarray], placements: Sequence[Placement]) -> np.ndarray:
    """Maps [..., h, w] of all inputs of a file as one [..., H, W] float32, as `Blend` gives it; nan where no input
    lies."""
    blend = Blend(placements)
    whole = np.full((*maps[0].shape[:-2], *placements[0].file), np.nan, np.float32)
    for scores in maps:
        for rows, found in blend.add(scores):
            whole[..., rows, :] = found
    return whole
