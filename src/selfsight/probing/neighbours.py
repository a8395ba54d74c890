"""The k-nearest-neighbour probe of frozen features, which needs no training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

TEMPERATURE = 0.07
BLOCK = 2**25  # similarities in memory at a time: 128 MB


def nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(cosine similarities [N, k], indices into `bank` [N, k]) of the `k` rows of `bank` [M, D] nearest to each of
    `queries` [N, D], nearest first."""
    q = F.normalize(torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)), dim=1)
    b = F.normalize(torch.from_numpy(np.ascontiguousarray(bank, dtype=np.float32)), dim=1)
    tops = [(block @ b.T).topk(min(k, len(b)), dim=1) for block in q.split(max(1, BLOCK // len(b)))]
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
class KNNProbe:
    """Items of known classes, among which the nearest vote.

    bank: features [M, D].
    labels: class numbers [M].
    classes: number of classes.
    k: neighbours that vote.
    """

    bank: np.ndarray
    labels: np.ndarray
    classes: int
    k: int

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Votes [N, C] for the classes of `features` [N, D], by the k nearest items of the bank.

        A vote is weighted by exp(cosine / 0.07). Votes do not sum to one: their sum tells how near the neighbours are.
        """
        similarity, index = nearest(features, self.bank, self.k)
        weights = np.exp((similarity.astype(np.float64) - 1.0) / TEMPERATURE)
        scores = np.zeros((len(features), self.classes))
        np.add.at(scores, (np.arange(len(features))[:, None], self.labels[index]), weights)
        return scores


def fit_knn(features: np.ndarray, labels: np.ndarray, classes: int, k: int = 20) -> KNNProbe:
    """The k-NN probe of `features` [M, D] and class numbers `labels` [M], each below `classes`.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
    section 3.4; k and temperature as in DINO (Caron et al., ICCV 2021). Raises `ValueError` unless there are
    items, with a label for each.
    """
    if not len(labels) or len(labels) != len(features):
        raise ValueError(f"{len(labels)} labels for {len(features)} items: one per item is needed, and one item")
    return KNNProbe(features, labels, classes, k)
