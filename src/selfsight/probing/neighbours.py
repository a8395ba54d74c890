"""The k-nearest-neighbour probe: what the geometry of frozen features says without any training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

TEMPERATURE = 0.07
BLOCK = 2**25  # similarities in memory at a time: 128 MB


def nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities [N, k], descending, and indices [N, k] into `bank` [M, D] of `queries` [N, D]."""
    q = F.normalize(torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)), dim=1)
    b = F.normalize(torch.from_numpy(np.ascontiguousarray(bank, dtype=np.float32)), dim=1)
    tops = [(block @ b.T).topk(min(k, len(b)), dim=1) for block in q.split(max(1, BLOCK // len(b)))]
    return torch.cat([t.values for t in tops]).numpy(), torch.cat([t.indices for t in tops]).numpy()


def nearest_others(features: np.ndarray, asked: np.ndarray, k: int) -> list[list[tuple[int, float]]]:
    """For each of the items `asked`, by their numbers among `features` [N, D], up to `k` (number, cosine similarity) of
    the others nearest to it, nearest first."""
    similarity, index = nearest(features[asked], features, k + 1)
    return [
        [(i, cosine) for i, cosine in zip(found, cosines, strict=True) if i != item][:k]
        for item, found, cosines in zip(asked.tolist(), index.tolist(), similarity.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class KNNProbe:
    """Items whose classes are known, to be asked for the k nearest.

    bank: features [M, D]. labels: class numbers [M], each below `classes`.
    """

    bank: np.ndarray
    labels: np.ndarray
    classes: int
    k: int

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Votes [N, C] of the k nearest of the bank for each of `features` [N, D], each weighted by exp(cosine / 0.07).

        Votes do not sum to one: their sum tells how near the neighbours are.
        """
        similarity, index = nearest(features, self.bank, self.k)
        weights = np.exp((similarity.astype(np.float64) - 1.0) / TEMPERATURE)
        scores = np.zeros((len(features), self.classes))
        np.add.at(scores, (np.arange(len(features))[:, None], self.labels[index]), weights)
        return scores


def fit_knn(features: np.ndarray, labels: np.ndarray, classes: int, k: int = 20) -> KNNProbe:
    """The k-NN probe of `features` [M, D] and class numbers `labels` [M], each below `classes`.

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
    section 3.4; k and temperature as in DINO (Caron et al., ICCV 2021). Raises `ValueError` unless there is a label
    for each of one or more items.
    """
    if not len(labels) or len(labels) != len(features):
        raise ValueError(f"{len(labels)} labels for {len(features)} items: one an item is needed, and one item")
    return KNNProbe(features, labels, classes, k)
