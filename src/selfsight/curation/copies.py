"""Near duplicates: pairs of items that show one picture, cropped, turned, brightened or compressed anew.

Candidates are near in the encoder's space, or look alike whichever way they are turned, which an encoder does not see.
Small pictures of both, laid over each other (`overlay`), confirm them. So two similar parts are not called one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from selfsight.console import track
from selfsight.curation.overlay import agreement
from selfsight.curation.ranking import Ranking
from selfsight.data.spread import spread
from selfsight.machine import usable_cores
from selfsight.probing.neighbours import Graph, nearest, neighbour_graph

Pictures = Callable[[np.ndarray], np.ndarray]  # numbers of items [n] -> their small pictures [n, C, S, S], squashed
ALIKE = 10  # neighbours by the look of the small pictures
PER_ITEM, FEW, MOST = 3, 5_000, 20_000  # pairs that are looked at: three an item, but no fewer and no more than these
AT_ONCE = 1024  # items or pairs whose pictures are in memory at a time
GRID = 4  # cells a side, whose light is the look of a picture
RANK = 20  # like pictures that are no copies are sought among one in so many items, or MOST_OTHERS,
MOST_OTHERS = 1000
LIKE = 3  # so many an item, not counting the one that agrees most, which may be itself or a copy
FAR = 4.0  # standard deviations above what these agree, at which a pair is as likely a copy as not
LEAST_SPREAD = 0.05  # of theirs
LEAST = float(np.arctanh(0.5))  # the agreement that a copy needs at least
SURE = 0.9  # score of a copy that hardly anybody would doubt
STEEP = 12.0  # how fast doubt falls around that, in log odds a unit of agreement


def near_duplicates(units: np.ndarray, graph: Graph, pictures: Pictures, apart: np.ndarray | None = None) -> Ranking:
    """Pairs [K, 2] of items that may be near duplicates, of features `units` [N, D] of unit length.

    graph: of the features. pictures: gives small pictures of items, uint8 or float, all squashed to one square size.
    apart: a number for each item [N], as of its split: of the pairs that are surely copies, those across come first.

    low counts the sure pairs, high all that are rather copies than not.
    """
    if len(units) < 2:
        return Ranking("near_duplicates", np.empty((0, 2), np.int64), np.empty(0), 0, 0, 0)
    grey, look = _seen(pictures, len(units))
    pairs = candidates(units, graph, look)
    values = _agreements(pairs, grey, "Comparing pictures")
    likely = np.flatnonzero(values > LEAST)
    limit = np.full(len(pairs), LEAST)
    limit[likely] = np.maximum(LEAST, _usual(units, pairs[likely], grey))
    values -= limit
    score = expit(STEEP * values)
    across = np.zeros(len(pairs), bool) if apart is None else apart[pairs[:, 0]] != apart[pairs[:, 1]]
    order = np.lexsort((-values, ~(across & (score >= SURE))))
    low, high = (int((score >= level).sum()) for level in (SURE, 0.5))
    likely_ones = round(float(np.maximum(2.0 * score - 1.0, 0.0).sum()))  # a pair at one half counts as none
    return Ranking("near_duplicates", pairs[order], score[order], min(max(likely_ones, low), high), low, high)


def candidates(units: np.ndarray, graph: Graph, look: np.ndarray) -> np.ndarray:
    """Pairs [K, 2] of items of features `units` [N, D], lower number first, of which near duplicates are the likeliest
    first.

    Pairs of the graph, and of the neighbours by `look` [N, F] of the pictures. The likeliest are near for where they
    lie: by the logarithm of their distance, relative to that of the tenth neighbours of both, twice for features, once
    for looks.
    """
    alike = neighbour_graph(look, ALIKE)
    edges = [(np.repeat(np.arange(len(units)), g.index.shape[1]), g.index.ravel()) for g in (graph, alike)]
    pairs = np.sort(np.concatenate([np.stack(edge, 1) for edge in edges]), axis=1)
    one, other = np.divmod(np.unique(pairs[:, 0] * len(units) + pairs[:, 1]), len(units))
    pairs = np.stack([one, other], 1)
    near = 2.0 * _relative(units, graph.index, pairs) + _relative(look, alike.index, pairs)
    return np.asarray(pairs[np.argsort(near, kind="stable")[: min(MOST, max(FEW, PER_ITEM * len(units)))]])


def _seen(pictures: Pictures, items: int) -> tuple[np.ndarray, np.ndarray]:
    """(the pictures of all items in grey [N, S, S] uint8, their looks [N, F] at unit variance). Each is read once."""
    grey, seen = [], []
    for part in track(_parts(items), "Reading pictures", _count(items)):
        few = pictures(part)
        seen.append(looks(few))
        light = few.mean(1, dtype=np.float32)
        low, high = (edge(light, axis=(1, 2), keepdims=True) for edge in (np.min, np.max))
        grey.append(((light - low) * (255.0 / np.maximum(high - low, 1e-6))).round().astype(np.uint8))
    look = np.concatenate(seen)
    return np.concatenate(grey), (look - look.mean(0)) / np.maximum(look.std(0), 1e-6)


def looks(pictures: np.ndarray) -> np.ndarray:
    """What small pictures [n, C, S, S] look like, the same whichever of the eight ways they are turned: [n, F].

    The light of 4 x 4 cells as cosine waves: a flip changes the sign of odd ones, a quarter turn swaps the two axes.
    """
    count, channels, side, _ = pictures.shape
    cell = side // GRID
    inner = pictures[:, :, : GRID * cell, : GRID * cell].astype(np.float32)
    cells = inner.reshape(count, channels, GRID, cell, GRID, cell).mean((3, 5))
    waves = np.abs(dctn(cells, axes=(2, 3), norm="ortho"))
    down, right = np.triu_indices(GRID)
    one, other = waves[:, :, down, right], waves[:, :, right, down]
    return np.asarray(np.log1p(np.concatenate([one + other, np.abs(one - other)], 2)).reshape(count, -1))


def _relative(vectors: np.ndarray, index: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """[K] log of the distance of each pair, relative to what is usual around both."""
    usual = _distances(vectors, np.stack([np.arange(len(index)), index[:, min(ALIKE, index.shape[1]) - 1]], 1))
    far = np.log(usual + 1e-9)
    return np.asarray(np.log(_distances(vectors, pairs) + 1e-9) - (far[pairs[:, 0]] + far[pairs[:, 1]]) / 2)


def _distances(vectors: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    parts = np.array_split(pairs, -(-len(pairs) // 2**15) or 1)
    return np.concatenate([np.linalg.norm(vectors[part[:, 0]] - vectors[part[:, 1]], axis=1) for part in parts])


def _parts(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), _count(count))


def _count(items: int) -> int:
    return -(-items // AT_ONCE) or 1


def _agreements(pairs: np.ndarray, grey: np.ndarray, what: str) -> np.ndarray:
    """[K] arctanh of the agreement of pairs, in which what is unlike has about one spread everywhere."""

    def of(part: np.ndarray) -> np.ndarray:
        return agreement(grey[pairs[part, 0]], grey[pairs[part, 1]])

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a part each is faster than one part by all
    try:
        with ThreadPoolExecutor(usable_cores()) as pool:
            found = np.concatenate(list(track(pool.map(of, _parts(len(pairs))), what, _count(len(pairs)))))
    finally:
        torch.set_num_threads(threads)
    return np.asarray(np.arctanh(found.astype(np.float64).clip(-0.999, 0.999)))


def _usual(units: np.ndarray, pairs: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """[K] the agreement at which a pair is as likely a copy as not: far above that of both with items that are like
    them, but not the nearest. All pictures of a chest agree; copies of one agree more."""
    items, place = np.unique(pairs, return_inverse=True)
    others = spread(len(units), min(max(len(units) // RANK, LIKE + 1), MOST_OTHERS))
    if len(others) <= LIKE or not len(items):
        return np.full(len(pairs), LEAST)
    like = others[nearest(units[items], units[others], LIKE + 1)[1]]
    asked = np.stack([np.repeat(items, LIKE + 1), like.ravel()], 1)
    found = np.sort(_agreements(asked, grey, "Comparing like pictures").reshape(like.shape), axis=1)[:, :LIKE]
    usual = found.mean(1) + FAR * max(float(np.sqrt(found.var(1, ddof=1).mean())), LEAST_SPREAD)
    return np.asarray(usual[place].reshape(-1, 2).max(1))


def groups_of(pairs: np.ndarray, items: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Number [N] of the group of each item: items that `pairs` [K, 2] link, directly or through others, have one.

    groups: numbers [N] of groups that are there already; those that a pair links become one.
    """
    links = [pairs.reshape(-1, 2)]
    if groups is not None:
        _, first, number = np.unique(groups, return_index=True, return_inverse=True)
        links.append(np.stack([np.arange(items), first[number]], 1))
    one, other = np.concatenate(links).T
    return np.asarray(connected_components(coo_array((np.ones(len(one), bool), (one, other)), (items, items)))[1])
