"""What features say of their own worth without labels: criteria by which runs can be ranked."""

from __future__ import annotations

import math

import numpy as np

SMALL = 1e-7


def _entropy(values: np.ndarray) -> float:
    """exp of the entropy of non-negative `values` made to sum to one: how many of them count."""
    share = values / max(float(values.sum()), 1e-300) + SMALL
    return float(np.exp(-(share * np.log(share)).sum()))


def rankme(features: np.ndarray) -> float:
    """RankMe of `features` [N, D]: exp of the entropy of their singular values. Higher is better.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their
    Rank", ICML 2023, equation 1. At most min(N, D).
    """
    return _entropy(np.linalg.svd(features.astype(np.float64), compute_uv=False))


def lidar(features: np.ndarray, delta: float = 1e-4) -> float:
    """LiDAR of `features` [V, N, D], V views of N items: in how many directions items differ, measured against how much
    the views of one item differ. Higher is better.

    Thilak et al., "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures", ICLR 2024,
    equations 1 to 4, with one change. The means of few views differ by what views differ by, alike in all directions,
    so that features which tell no image apart had the highest LiDAR of all; the paper has 50 views. Here a direction
    counts by what is above that share, if it is above the largest that chance gives (Wachter, "The limiting empirical
    measure of multiple discriminant ratios", Annals of Statistics 1980). It is 1 where N (V - 1) is no more than D: too
    few to tell. Raises `ValueError` for one view.
    """
    views, items, dim = features.shape
    if views < 2:
        raise ValueError("LiDAR needs at least two views of each item")
    x = features.astype(np.float64)
    means = x.mean(0)  # [N, D]
    centred = means - means.mean(0)
    between = centred.T @ centred / (items - 1)
    rest = (x - means).reshape(-1, dim)
    within = rest.T @ rest / (items * (views - 1)) + delta * np.eye(dim)
    values, vectors = np.linalg.eigh(within)
    root = vectors / np.sqrt(values) @ vectors.T
    found = np.linalg.eigvalsh(root @ between @ root)
    a, b = dim / items, dim / (items * (views - 1))
    chance = ((1.0 + math.sqrt(a + b - a * b)) / (1.0 - b)) ** 2 / views if b < 1.0 else math.inf
    return _entropy(np.where(found > chance, found - 1.0 / views, 0.0))


def alpha_req(features: np.ndarray) -> float:
    """The exponent alpha of eigenvalues of the covariance of `features` [N, D] that fall like i ** -alpha. Best near 1.

    Agrawal et al., "alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by Measuring Eigenspectrum
    Decay", NeurIPS 2022. A least-squares line through the logarithms of the eigenvalues, without the first tenth and
    the last half, where batch and noise decide.
    """
    x = features.astype(np.float64)
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2 / max(1, len(x) - 1)
    count = int((values > values[0] * 1e-12).sum())
    first, last = max(1, count // 10), max(3, count // 2)
    index = np.arange(1, count + 1)[first:last]
    if len(index) < 2:
        return float("inf")  # all in one or two directions
    return float(-np.polyfit(np.log(index), np.log(values[first:last]), 1)[0])
