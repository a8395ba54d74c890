"""Items least like the others: those whose nearest neighbours are far away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfsight.probing.neighbours import nearest

NEIGHBOURS = 10  # more than an odd item has near-copies, such as exposures of one part, which would hide it


def least_alike(features: np.ndarray, contents: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Items with their scores, the least like the others first.

    The score is the mean cosine distance of an item's `features` [N, D] to its 10 nearest others, or to all others if
    there are fewer. It is 0 for an item like its neighbours, about 1 for an item with nothing in common with any. Items
    with equal `contents` [N] are exact copies and count as one, the first of them: so copies neither hide each other
    nor come twice.

    Returns (numbers [M] of items, their scores [M]); both empty if all items are copies of one.
    """
    distinct = np.sort(np.unique(np.asarray(contents), return_index=True)[1])
    if len(distinct) < 2:
        return np.empty(0, np.int64), np.empty(0)
    cosines, _ = nearest(features[distinct], features[distinct], NEIGHBOURS + 1)
    scores = 1.0 - cosines[:, 1:].astype(np.float64).mean(1)  # the nearest of all is the item itself
    order = np.argsort(-scores, kind="stable")
    return distinct[order], scores[order].clip(0.0)
