"""Label-free evidence from the embeddings of one batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred `embeddings` [N, D].

    Roy and Vetterli, EUSIPCO 2007; as a measure of representations: Garrido et al. (RankMe), ICML 2023.
    1 when all lie on a line, at most min(N - 1, D).
    """
    values = torch.linalg.svdvals((embeddings - embeddings.mean(0)).float())
    if float(values.sum()) <= 1e-12:
        return 1.0
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def evidence(embeddings: Tensor, assignments: Tensor | None = None) -> dict[str, float]:
    """What can be seen without labels in `embeddings` [V, B, D].

    effective_rank: of one view's batch. centre_norm: length of the mean of normalised embeddings, 1 when all
    point one way (Jha et al. 2024). spread: mean standard deviation per dimension of normalised
    embeddings times sqrt(D), 1 when they fill the sphere, 0 when collapsed (Chen and He 2021).
    agreement: mean cosine of two views of an item. contrast: agreement minus the mean cosine of
    different items.
    """
    views, batch, dim = embeddings.shape
    z = F.normalize(embeddings.float(), dim=2)  # [V, B, D]
    pair_sum = z.sum(0).square().sum(1)  # [B]: sum over all ordered pairs of views, and V ones
    agreement = ((pair_sum - views) / max(1, views * (views - 1))).mean()
    one = z[0]
    others = (one.sum(0).square().sum() - batch) / max(1, batch * (batch - 1))
    return {
        "effective_rank": effective_rank(embeddings[0]),
        "centre_norm": float(one.mean(0).norm()),
        "spread": float(one.std(0).mean() * dim**0.5),
        "agreement": float(agreement),
        "contrast": float(agreement - others),
    }
