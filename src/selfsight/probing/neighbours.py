"""Nearest neighbours of frozen features: the graph of a collection, and the k-nearest-neighbour probe.

Nothing is trained; the probe may choose how far to whiten.

Neighbours like features that are whitened further than a few labels do (benchmarks/README.md). The encoder's own
whitening is kept for those, and this probe may go on from there, as the linear probe chooses its strength.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from selfsight.console import console
from selfsight.data.collection import Collection
from selfsight.data.groups import group_numbers
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.errors import MachineError, SelfsightError, in_words

TEMPERATURE = 0.07
BLOCK = 2**25  # similarities in memory at a time: 128 MB
POWERS = (0.0, 0.25, 0.5)  # of the variance, that directions are divided by: not at all, half of the way, fully
CHOICE_ITEMS = 2000  # that are asked to choose one of them, each of all others
AXES_ITEMS = 20000  # whose principal directions those of all items are taken to be
GRAPH_K = 20  # neighbours of an item in the graph of a collection
EXACT = 50_000  # items, up to which each is compared with every other
CELLS_ASKED = 16  # beyond that: cells around an item, of about 2 sqrt(N), in which its neighbours are looked for


def nearest(
    queries: np.ndarray, bank: np.ndarray, k: int, apart: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(cosine similarities [N, k], indices into `bank` [N, k]) of the `k` rows of `bank` [M, D] nearest to each of
    `queries` [N, D], nearest first.

    apart: group numbers of the queries [N] and of the bank [M]. A query and a row of one group are at -infinity.
    """
    q = F.normalize(torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)), dim=1)
    b = F.normalize(torch.from_numpy(np.ascontiguousarray(bank, dtype=np.float32)), dim=1)
    rows = max(1, BLOCK // len(b))
    asked, known = (torch.from_numpy(part) for part in apart) if apart else (None, None)
    tops = []
    for i, block in enumerate(q.split(rows)):
        similarity = block @ b.T
        if asked is not None:
            similarity[asked[i * rows : i * rows + rows, None] == known] = -torch.inf
        tops.append(similarity.topk(min(k, len(b)), dim=1))
    return torch.cat([t.values for t in tops]).numpy(), torch.cat([t.indices for t in tops]).numpy()


def nearest_others(features: np.ndarray, asked: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """For each of the items `asked`, its nearest other items among `features` [N, D]: up to `k` (number, cosine
    similarity), nearest first. `asked` holds numbers of items."""
    similarity, index = nearest(features[asked], features, k + 1)
    return [
        [(i, cosine) for i, cosine in zip(found, cosines, strict=True) if i != item][:k]
        for item, found, cosines in zip(asked.tolist(), index.tolist(), similarity.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Graph:
    """The nearest others of each of N items.

    index: their numbers [N, k] int64, nearest first. cosine: of the features, [N, k] float32.
    """

    index: np.ndarray
    cosine: np.ndarray


def neighbour_graph(features: np.ndarray, k: int = GRAPH_K) -> Graph:
    """The graph of `features` [N, D]: each item with its `k` nearest others, or all of them if there are fewer.

    Exact up to 50,000 items. Beyond, neighbours are looked for in the 16 nearest of about 2 sqrt(N) cells (Jegou et
    al., "Product quantization for nearest neighbor search", PAMI 2011, the inverted file). That needs the extra
    `search`, without which `MachineError` is raised.
    """
    search = nearest if len(features) <= EXACT else _nearest_in_cells
    cosine, index = search(features, features, k + 1)
    own = index == np.arange(len(index))[:, None]
    own[~own.any(1), -1] = True  # hidden by more than k exact copies: one of these goes in its place
    return Graph(index[~own].reshape(len(index), -1), cosine[~own].reshape(len(index), -1))


def graph_of(encoder: Encoder, collection: Collection, rows: pa.Table, features: np.ndarray) -> Graph:
    """The graph of the items `rows` of a collection, by their pooled `features` [N, D]: kept beside the collection, and
    made anew where items or contents are others."""
    about = hashlib.blake2b(digest_size=16)
    for name in ("id", "content_hash"):
        about.update(json.dumps(rows[name].to_pylist()).encode())
    name, items = f"{encoder.digest}-{encoder.geometry.key}", about.hexdigest()
    found = collection.features.read_graph(name, GRAPH_K, items)
    if found is not None:
        return Graph(found["index"], found["cosine"])
    graph = neighbour_graph(features)
    try:
        collection.features.keep_graph(name, GRAPH_K, items, {"index": graph.index, "cosine": graph.cosine})
    except (SelfsightError, OSError) as error:  # no room, or no permission: it is at hand without it
        console().print(
            f"The neighbours are not kept for the next time: {in_words(error)}", soft_wrap=True, style="dim"
        )
    return graph


def _nearest_in_cells(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest`, of the rows of `bank` in the cells nearest to a query."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise MachineError(
            f"Neighbours of {len(bank):,} items need faiss: pip install 'selfsight[search]'. Up to {EXACT:,} items do "
            "not."
        ) from None
    units = F.normalize(torch.from_numpy(np.ascontiguousarray(bank, dtype=np.float32)), dim=1).numpy()
    count = int(2 * len(units) ** 0.5)
    cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(units.shape[1]), units.shape[1], count, faiss.METRIC_INNER_PRODUCT)
    cells.cp.niter = 10
    cells.train(units[spread(len(units), 40 * count)])
    cells.add(units)
    cells.nprobe = CELLS_ASKED
    asked = F.normalize(torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)), dim=1).numpy()
    cosine, index = cells.search(asked, k)
    if (few := (index < 0).any(1)).any():  # cells that hold fewer than k
        cosine[few], index[few] = nearest(asked[few], units, k)
    return cosine, index


@dataclass(frozen=True)
class KNNProbe:
    """Items of known classes, among which the nearest vote.

    bank: features [M, D], whitened.
    labels: class numbers [M].
    classes: number of classes.
    k: neighbours that vote.
    whitening: the power of the variance that directions are divided by; 0 for features as they are.
    map: (weight [D, D], bias [D]) that whiten features; None for features as they are.
    """

    bank: np.ndarray
    labels: np.ndarray
    classes: int
    k: int
    whitening: float = 0.0
    map: tuple[np.ndarray, np.ndarray] | None = None

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Votes [N, C] for the classes of `features` [N, D], by the k nearest items of the bank.

        A vote is weighted by exp(cosine / 0.07). Votes do not sum to one: their sum tells how near the neighbours are.
        """
        return self._votes(*nearest(_mapped(features, self.map), self.bank, self.k))

    def scores_of_own(self, asked: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Votes [N, C] for items of the bank itself, by items of other groups only.

        asked: their numbers in the bank [N].
        groups: group numbers of the bank [M]; an item that is alone has a number of its own.
        """
        return self._votes(*nearest(self.bank[asked], self.bank, self.k, (groups[asked], groups)))

    def _votes(self, similarity: np.ndarray, index: np.ndarray) -> np.ndarray:
        weights = np.exp((similarity.astype(np.float64) - 1.0) / TEMPERATURE)
        scores = np.zeros((len(index), self.classes))
        np.add.at(scores, (np.arange(len(index))[:, None], self.labels[index]), weights)
        return scores


def fit_knn(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    k: int = 20,
    whitening: float | None = 0.0,
    groups: Sequence[str | None] | np.ndarray | None = None,
) -> KNNProbe:
    """The k-NN probe of `features` [M, D] and class numbers `labels` [M], each below `classes`.

    whitening: 0 takes features as they are. Any other power centres them, turns them onto their principal directions
        and divides each by its variance to this power; 0.5 whitens fully. None takes the best of `POWERS`, the least of
        several that are as good: the balanced accuracy of at most 2,000 of the items, spread evenly over their order,
        each classified by all others.
    groups: a name for each item, or None for an item that is alone. Items of its own group do not vote for an item in
        that choice.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
    section 3.4; k and temperature as in DINO (Caron et al., ICCV 2021). The covariance is shrunk as by Ledoit and Wolf,
    "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate Analysis 2004.
    Raises `ValueError` unless there are items, with a label for each.
    """
    if not len(labels) or len(labels) != len(features):
        raise ValueError(f"{len(labels)} labels for {len(features)} items: one per item is needed, and one item")
    plain = KNNProbe(features, labels, classes, k)
    if whitening is None:
        return _chosen(plain, group_numbers(groups, len(labels)))
    return _whitened(plain, (whitening,))[0]


def _chosen(plain: KNNProbe, groups: np.ndarray) -> KNNProbe:
    """The probe with the power of `POWERS` at which items are found best by those of other groups."""
    if not groups.any():  # one group: nobody to ask
        return plain
    asked = spread(len(groups), CHOICE_ITEMS)
    truth = plain.labels[asked]
    weight = 1.0 / np.bincount(truth)[truth]  # balanced: each class counts the same
    probes = _whitened(plain, POWERS)
    found = [weight @ (probe.scores_of_own(asked, groups).argmax(1) == truth) for probe in probes]
    best = max(found)
    return next(probe for probe, share in zip(probes, found, strict=True) if share > best - 1e-9)


def _whitened(plain: KNNProbe, powers: Sequence[float]) -> list[KNNProbe]:
    """The probe `plain` with its bank whitened by each of `powers`."""
    if not any(powers):
        return [plain]
    from sklearn.covariance import ledoit_wolf_shrinkage

    from selfsight.encoders.whitening import axes_of

    some = plain.bank[spread(len(plain.bank), AXES_ITEMS)]
    shrunk = min(float(ledoit_wolf_shrinkage(some)), 1.0 - 1e-6)
    axes = axes_of(torch.from_numpy(some), shrunk / (1.0 - shrunk))

    def by(power: float) -> KNNProbe:
        weight, bias = (part.numpy() for part in axes.map(power))
        return replace(plain, bank=_mapped(plain.bank, (weight, bias)), whitening=power, map=(weight, bias))

    return [by(power) if power else plain for power in powers]


def _mapped(features: np.ndarray, map: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
    return features if map is None else features @ map[0].T + map[1]
