"""Off-topic: items that do not belong, alone or a few of a kind, as they join the rest late.

Gröger et al. ("Intrinsic Self-Supervision for Data Quality Audits", NeurIPS 2024) look where an item sits in the tree
of single linkage. That tree follows chains, and a handful of strangers of one kind sits in it as a class does. Here the
tree is of average linkage, over representatives, and what counts is how far one has to go to meet a fifth of all: by
the tree, and directly. benchmarks/curation.py compares them.
"""

from __future__ import annotations

import numpy as np

from selfsight.curation.how_many import how_many
from selfsight.curation.ranking import Ranking
from selfsight.data.spread import spread

REPRESENTATIVES = 2000  # items that the tree is made of, spread evenly over all
SHARE = 0.2  # of the items, that an item has to meet; a kind that is rarer than this is not yet the collection
BLOCK = 2**24  # distances in memory at a time


def off_topic(units: np.ndarray) -> Ranking:
    """All items, of features `units` [N, D] of unit length, those that belong least first."""
    value = lateness(units)
    order = np.argsort(-value, kind="stable")
    count = how_many(value)
    score = (value[order] - value.min(initial=np.inf)) / max(float(np.ptp(value)) if len(value) else 0.0, 1e-12)
    return Ranking("off_topic", order, score, count.estimated, count.low, count.high)


def lateness(units: np.ndarray) -> np.ndarray:
    """[N] how far an item, of `units` [N, D], is from a fifth of all: the mean of two distances.

    One is direct. The other is the height in the tree of average linkage at which its branch holds a fifth of the
    representatives; an item that is none has that of the nearest, or its distance to it, whichever is larger.
    """
    if len(units) < 3:
        return np.zeros(len(units))
    chosen = spread(len(units), REPRESENTATIVES)
    heights = meeting_heights(units[chosen], SHARE)
    found = np.zeros(len(units))
    place = max(1, int(SHARE * len(chosen)))
    for part in np.array_split(np.arange(len(units)), -(-len(units) * len(chosen) // BLOCK) or 1):
        far = _distances(units[part], units[chosen])
        nearest = far.argmin(1)
        tree = np.maximum(heights[nearest], far[np.arange(len(part)), nearest])
        found[part] = (tree + np.partition(far, place, axis=1)[:, place]) / 2
    return found


def meeting_heights(units: np.ndarray, share: float) -> np.ndarray:
    """[M] the height in the tree of average linkage of `units` [M, D] at which the branch of each holds `share` of
    all."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    count, enough = len(units), share * len(units)
    far = _distances(units, units)
    np.fill_diagonal(far, 0.0)
    tree = linkage(squareform((far + far.T) / 2, checks=False), "average")
    heights = np.zeros(2 * count - 1)
    for node in range(len(tree) - 1, -1, -1):  # from the root down: a branch that is too small has its parent's height
        one, other, height, size = tree[node]
        if size >= enough:
            heights[count + node] = height
        heights[[int(one), int(other)]] = heights[count + node]
    return heights[:count]


def _distances(units: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.maximum(2.0 - 2.0 * (units @ others.T), 0.0)))
