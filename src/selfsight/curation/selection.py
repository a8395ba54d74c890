"""Which items to label first.

Items that cover all others well: a ball around each, as in ProbCover (Yehuda et al., "Active Learning Through a
Covering Lens", NeurIPS 2022), but with a soft edge, so that no radius is to be chosen (Bae et al., "Generalized
Coverage for More Robust Low-Budget Active Learning", ECCV 2024). Once there are labels, an item weighs more in it if a
classifier of these labels doubts it. Or the most typical item of each cluster (TypiClust: Hacohen, Dekel and Weinshall,
"Active Learning on a Budget", ICML 2022). Near-copies of what was chosen are passed over, and groups take turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from selfsight.console import track
from selfsight.data.spread import spread
from selfsight.errors import SelfsightError, meant
from selfsight.probing.linear import FEW_SHOT_STRENGTH, fit_linear
from selfsight.probing.neighbours import Graph, nearest

Method = Literal["cover", "doubt", "typical"]
METHODS: tuple[Method, ...] = ("cover", "doubt", "typical")
MOST_CLUSTERS = 500
LEAST_IN_CLUSTER = 6  # smaller clusters are strays; they are asked for last
CLUSTERED = 20_000  # items that clusters are made of; all others are assigned
COVERED = 5_000  # items that are to be covered and may be chosen for it, spread evenly over all
CHOICE = 4  # times the budget, that may be chosen at least
AT_ONCE = 128  # items whose worth is computed at a time
COPY = 0.1  # times the usual distance of an item to the nearest other, below which two are near-copies
BLOCK = 2**24  # similarities in memory at a time


@dataclass(frozen=True)
class Pool:
    """The items to choose from.

    features: [N, D], of unit length. graph: of them. groups: group numbers [N]; an item that is alone has its own.
    labels: class numbers [N], -1 where there is none.
    """

    features: np.ndarray
    graph: Graph
    groups: np.ndarray
    labels: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        """Numbers of the items that have a label."""
        return np.flatnonzero(self.labels >= 0)

    def take(self, numbers: np.ndarray) -> Pool:
        """Only these items. What their graph's `index` means is as before."""
        graph = Graph(self.graph.index[numbers], self.graph.cosine[numbers])
        return Pool(self.features[numbers], graph, self.groups[numbers], self.labels[numbers])


def choose(pool: Pool, budget: int, method: Method | None = None, seed: int = 0) -> tuple[np.ndarray, Method]:
    """(numbers of up to `budget` items to label, in the order of their worth; the method that was taken). They are
    fewer where all others are near-copies.

    method: cover, doubt or typical (see above); None takes doubt where two classes are labelled, else cover. Raises
    `SelfsightError` for a method that there is not, or that needs labels.
    """
    classes = len(np.unique(pool.labels[pool.labelled]))
    if method is None:
        method = "doubt" if classes > 1 else "cover"
    if method not in METHODS:
        raise SelfsightError(
            f"There is no method {method!r}. Choose one of {', '.join(METHODS)}.{meant(method, METHODS)}"
        )
    if method == "doubt" and classes < 2:
        raise SelfsightError("--method doubt needs labels of two classes. Without them: cover, or typical.")
    if method == "typical":
        count = min(len(pool.labelled) + budget, MOST_CLUSTERS)
        found = _typical(pool, clusters(pool.features, count, seed))
    else:
        targets = spread(len(pool.features), COVERED)
        weights = 1.0 + _doubt(pool, targets) if method == "doubt" else np.ones(len(targets))
        found = _covering(pool, targets, weights.astype(np.float32), budget)
    chosen = [number for number, _ in zip(found, track(range(budget), "Choosing", budget), strict=False)]
    return np.array(chosen, dtype=np.int64), method


def stands_for(features: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How many items [M] are most like each of the `chosen`, itself among them."""
    _, index = nearest(features, features[chosen], 1)
    return np.asarray(np.bincount(index[:, 0], minlength=len(chosen)))


def clusters(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The cluster [N] of each item, of at most `count`, by k-means of `features` [N, D] of unit length."""
    from sklearn.cluster import MiniBatchKMeans

    some = features[spread(len(features), CLUSTERED)]
    count = min(count, len(np.unique(some, axis=0)) if len(some) < 2 * count else count)
    made = MiniBatchKMeans(count, random_state=seed, batch_size=2048, n_init=3, max_iter=50).fit(some)
    nearer = [(part @ made.cluster_centers_.T - 0.5 * (made.cluster_centers_**2).sum(1)).argmax(1)
              for part in np.array_split(features, -(-len(features) * count // BLOCK) or 1)]  # fmt: skip
    return np.asarray(np.unique(np.concatenate(nearer), return_inverse=True)[1])


class _Open:
    """Which items may still be chosen: those without a label that are no near-copies of what was chosen or labelled."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.copy = COPY * float(np.median(_distance(pool.graph.cosine[:, 0]))) if pool.graph.cosine.size else 0.0
        self.free = pool.labels < 0
        self.used = np.bincount(pool.groups[pool.labelled], minlength=int(pool.groups.max()) + 1)
        for part in np.array_split(pool.labelled, -(-len(pool.labelled) * len(self.free) // BLOCK) or 1):
            if len(part):
                self.free &= _distance(pool.features @ pool.features[part].T).min(1) > self.copy

    def take(self, number: int) -> None:
        """The item was chosen."""
        self.free &= _distance(self.pool.features @ self.pool.features[number]) > self.copy
        self.free[number] = False
        self.used[self.pool.groups[number]] += 1

    def turn(self, numbers: np.ndarray) -> np.ndarray:
        """Those of the items, all free, whose groups were chosen from least often."""
        used = self.used[self.pool.groups[numbers]]
        return np.asarray(numbers[used == used.min()])


def _distance(cosine: np.ndarray) -> np.ndarray:
    """Euclidean distance of vectors of unit length."""
    return np.asarray(np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0)))


def _typical(pool: Pool, cluster: np.ndarray) -> Iterator[int]:
    """Of the cluster that has fewest labels, of several the largest, the item whose neighbours are nearest."""
    far = _distance(pool.graph.cosine).mean(1) if pool.graph.cosine.size else np.zeros(len(cluster))
    open_, size = _Open(pool), np.bincount(cluster)
    known = np.bincount(cluster[pool.labelled], minlength=len(size))
    while open_.free.any():
        turn = open_.turn(np.flatnonzero(open_.free))
        left = np.bincount(cluster[turn], minlength=len(size)) > 0
        large = left & (size >= LEAST_IN_CLUSTER)
        asked = np.flatnonzero(large if large.any() else left)
        best = asked[np.lexsort((-size[asked], known[asked]))[0]]
        inside = turn[cluster[turn] == best]
        number = int(inside[far[inside].argmin()])
        known[best] += 1
        open_.take(number)
        yield number


def _covering(pool: Pool, targets: np.ndarray, weights: np.ndarray, budget: int) -> Iterator[int]:
    """The item that adds most to the cover of the `targets` [M], numbers of items that weigh `weights` [M].

    An item covers another by exp(-d^2), d the distance of their features of unit length; of several the nearest counts.
    What an item adds only falls as others are chosen (the sum is submodular), so most need not be asked again (Minoux,
    "Accelerated greedy algorithms", 1978).
    """
    units = pool.features[targets]
    numbers = np.union1d(spread(len(pool.features), max(COVERED, CHOICE * budget)), pool.labelled)
    few = pool.take(numbers)
    open_, covered = _Open(few), _nearest_of(units, few.features[few.labelled])
    parts = np.array_split(few.features, -(-len(numbers) * len(units) // BLOCK))
    most = np.concatenate([_adds(part, units, weights, covered) for part in parts])  # that an item can add
    while open_.free.any():
        turn = open_.turn(np.flatnonzero(open_.free))
        turn = turn[np.argsort(-most[turn], kind="stable")]
        best, chosen = -1.0, -1
        for part in np.array_split(turn, -(-len(turn) // AT_ONCE)):
            if best >= most[part[0]]:
                break
            most[part] = _adds(few.features[part], units, weights, covered)
            if most[part].max() > best:
                best, chosen = float(most[part].max()), int(part[most[part].argmax()])
        covered = np.maximum(covered, _kernel(units @ few.features[chosen]))
        open_.take(chosen)
        yield int(numbers[chosen])


def _kernel(cosine: np.ndarray) -> np.ndarray:
    """exp(-d^2) of vectors of unit length."""
    return np.asarray(np.exp(2.0 * cosine - 2.0))


def _nearest_of(units: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[M] how far `units` [M, D] are covered by the `chosen` [K, D]; 0 where there are none."""
    return _kernel(nearest(units, chosen, 1)[0][:, 0]) if len(chosen) else np.zeros(len(units), np.float32)


def _adds(features: np.ndarray, units: np.ndarray, weights: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """[K] how much weight of `units` [M, D], `covered` [M] until now, items of `features` [K, D] would cover more."""
    return np.asarray(np.maximum(_kernel(features @ units.T) - covered, 0.0) @ weights)


def _doubt(pool: Pool, asked: np.ndarray) -> np.ndarray:
    """[M] how little a classifier of the labels prefers its first guess to its second, of the items `asked`: from 0 to
    1."""
    known = pool.labelled
    classes, numbers = np.unique(pool.labels[known], return_inverse=True)
    probe = fit_linear(pool.features[known], numbers, len(classes), FEW_SHOT_STRENGTH)
    first = np.sort(probe.scores(pool.features[asked]), axis=1)
    return np.asarray(1.0 - (first[:, -1] - first[:, -2]))
