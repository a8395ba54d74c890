"""Label-free evidence from the embeddings of one batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10  # at most, of which the stability is measured; a quarter of the batch where that is fewer
TIED = 1e-6  # cosines closer than this differ by float32's rounding only


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


def uniformity(z: Tensor) -> float:
    """log of the mean of exp(-2 |a - b|^2) over pairs of different rows of normalised `z` [B, D].

    Wang and Isola, ICML 2020, section 4.1.2, with t = 2. 0 when all are equal. -4 when all are orthogonal, as random
    rows of many dimensions nearly are. Raises `ValueError` for one row.
    """
    if len(z) < 2:
        raise ValueError("uniformity needs at least two embeddings")
    squares = (2.0 - 2.0 * (z @ z.T)).clamp_min(0.0)  # [B, B]
    squares.fill_diagonal_(float("inf"))
    pairs = len(z) * (len(z) - 1)
    return float((-2.0 * squares).flatten().logsumexp(0)) - math.log(pairs)


def neighbour_stability(one: Tensor, other: Tensor) -> float:
    """How far two views agree on which items are near an item: the mean of `shared_neighbours`, 1 fully, 0 as much as
    by chance."""
    return float(shared_neighbours(one, other).mean())


def shared_neighbours(one: Tensor, other: Tensor) -> Tensor:
    """[B] how far two views of each item agree on which items are near it: 1 fully, 0 as much as by chance.

    With s the share of the k nearest items that `one` and `other` (both [B, D], normalised) have in common, and c = k /
    (B - 1) its chance level, it is (s - c) / (1 - c). k is a quarter of the batch, at most 10. Items tied for the last
    places share them, so embeddings that are all equal give 0. Raises `ValueError` for fewer than three items.
    """
    batch = len(one)
    if batch < 3:
        raise ValueError("neighbour stability needs at least three items")
    k = min(NEIGHBOURS, max(1, (batch - 1) // 4))
    common = (_nearest(one, k) * _nearest(other, k)).sum(1) / k
    chance = k / (batch - 1)
    return (common - chance) / (1.0 - chance)


def _nearest(z: Tensor, k: int) -> Tensor:
    """Weights [B, B]: 1 for the k items nearest to each item; items tied for the last places share these."""
    cosine = (z @ z.T).fill_diagonal_(float("-inf"))
    last = cosine.topk(k, dim=1).values[:, -1:]
    above = cosine > last + TIED
    tied = (cosine >= last - TIED) & ~above
    places = (k - above.sum(1, keepdim=True)) / tied.sum(1, keepdim=True)
    return above.float() + tied * places


def assignment_entropies(assignments: Tensor) -> tuple[float, float]:
    """(assignment entropy, cluster entropy) of probabilities [N, K], each from 0 to 1.

    assignment entropy: mean entropy of the rows over log K. 0: each item is in one cluster for certain. 1: rows are
        uniform.
    cluster entropy: entropy of the mean row over log min(N, K), at most 1. 0: all items share one cluster. 1: clusters
        are used evenly.

    Their difference is what a cluster tells of an item. Caron et al., DINO, ICCV 2021, section 5.3, tell both collapses
    of a teacher by its entropy.
    """
    rows = assignments.float()
    each = torch.special.entr(rows).sum(1).mean()
    used = torch.special.entr(rows.mean(0)).sum()
    most = max(math.log(min(rows.shape)), 1e-12)
    return float(each) / max(math.log(rows.shape[1]), 1e-12), min(1.0, float(used) / most)


@torch.no_grad()
def evidence(embeddings: Tensor, assignments: Tensor | None = None) -> dict[str, float]:
    """{name: figure} of what `embeddings` [V, B, D] show without labels, and `assignments` [N, K] if there are any.
    Figures that compare views are left out where V = 1.

    effective_rank: of one view's batch. rank_share: effective rank over its largest possible value, min(B - 1, D).
    centre_norm: length of the mean of normalised embeddings; 1 when all point one way (Jha et al. 2024). spread: mean
    standard deviation per dimension of normalised embeddings, times sqrt(D); 1 when they fill the sphere, 0
        when collapsed (Chen and He 2021).
    scale: standard deviation per dimension before normalising. A loss of distances can shrink it to zero without
    turning
        a single embedding.
    agreement: mean cosine of two views of an item.
    contrast: agreement minus the mean cosine of different items.
    alignment: mean squared distance of two views of an item; the lower, the better (Wang and Isola 2020).
    uniformity: see `uniformity`; the lower, the better.
    neighbour_stability: of the first two views, for three items or more.
    assignment_entropy: see `assignment_entropies`.
    cluster_entropy: see `assignment_entropies`.
    """
    views, batch, dim = embeddings.shape
    with torch.autocast(embeddings.device.type, enabled=False):
        z = F.normalize(embeddings.float(), dim=2)  # [V, B, D]
        one = z[0]
        rank = effective_rank(embeddings[0].float())
        figures = {
            "effective_rank": rank,
            "rank_share": rank / max(1, min(batch - 1, dim)),
            "centre_norm": float(one.mean(0).norm()),
            "spread": float(one.std(0).mean() * dim**0.5),
            "scale": float(embeddings[0].float().var(0).mean().sqrt()),
        }
        if views > 1:
            pair_sum = z.sum(0).square().sum(1)  # [B]: sum over all ordered pairs of views, and V ones
            agreement = float(((pair_sum - views) / (views * (views - 1))).mean())
            others = float((one.sum(0).square().sum() - batch) / max(1, batch * (batch - 1)))
            figures |= {"agreement": agreement, "contrast": agreement - others, "alignment": 2.0 - 2.0 * agreement}
        if batch > 1:
            figures["uniformity"] = uniformity(one)
        if batch > 2 and views > 1:
            figures["neighbour_stability"] = neighbour_stability(one, z[1])
        if assignments is not None:
            figures["assignment_entropy"], figures["cluster_entropy"] = assignment_entropies(assignments)
    return figures
