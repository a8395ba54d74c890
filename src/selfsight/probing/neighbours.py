"""The k-nearest-neighbour probe: what the geometry of frozen features says without any training."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

TEMPERATURE = 0.07
BLOCK = 1024


def nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities [N, k], descending, and indices [N, k] into `bank` [M, D] of `queries` [N, D]."""
    q = F.normalize(torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)), dim=1)
    b = F.normalize(torch.from_numpy(np.ascontiguousarray(bank, dtype=np.float32)), dim=1)
    tops = [(block @ b.T).topk(min(k, len(b)), dim=1) for block in q.split(BLOCK)]
    return torch.cat([t.values for t in tops]).numpy(), torch.cat([t.indices for t in tops]).numpy()


def knn_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, k: int = 20) -> np.ndarray:
    """Votes [N, C] of the k nearest of `train` for each of `test`, each weighted by exp(cosine / 0.07).

    Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018,
    section 3.4; k and temperature as in DINO (Caron et al., ICCV 2021).
    """
    similarity, index = nearest(test, train, k)
    weights = np.exp((similarity.astype(np.float64) - 1.0) / TEMPERATURE)
    scores = np.zeros((len(test), classes))
    np.add.at(scores, (np.arange(len(test))[:, None], labels[index]), weights)
    return scores
