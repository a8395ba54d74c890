"""Criteria that rank runs by their features, without labels."""

from __future__ import annotations

import math

import numpy as np

SMALL = 1e-7


def _entropy(values: np.ndarray) -> float:
    """How many of the non-negative `values` count: exp of the entropy of their shares of the sum."""
    share = values / max(float(values.sum()), 1e-300) + SMALL
    return float(np.exp(-(share * np.log(share)).sum()))


def rankme(features: np.ndarray) -> float:
    """RankMe of `features` [N, D]: exp of the entropy of their singular values. Higher is better.

    Garrido et al., "RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their
    Rank", ICML 2023, equation 1. At most min(N, D).
    """
    return _entropy(np.linalg.svd(features.astype(np.float64), compute_uv=False))


def lidar(features: np.ndarray, delta: float = 1e-4) -> float:
    """LiDAR of `features` [V, N, D], V views of N items: in how many directions items differ more than the views of one
    item do. Higher is better.

    Thilak et al., "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures", ICLR 2024,
    equations 1 to 4, with one change. The paper has 50 views. With few views, the means over views differ by chance,
    and equally in all directions, so features that tell no image apart would get the highest LiDAR. Here a direction
    counts only if it exceeds the largest value that chance gives, and by what exceeds the chance share (Wachter, "The
    limiting empirical measure of multiple discriminant ratios", Annals of Statistics 1980). LiDAR is 1 where N (V - 1)
    <= D: too few views to tell. Raises `ValueError` for one view.
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
    """The exponent alpha with which the eigenvalues of the covariance of `features` [N, D] fall, like i ** -alpha.
    Values near 1 are best.

    Agrawal et al., "alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by Measuring Eigenspectrum
    Decay", NeurIPS 2022. It is the slope of a least-squares line through the logarithms of the eigenvalues, without the
    first tenth and the last half, where batch and noise decide.
    """
    x = features.astype(np.float64)
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2 / max(1, len(x) - 1)
    count = int((values > values[0] * 1e-12).sum())
    first, last = max(1, count // 10), max(3, count // 2)
    index = np.arange(1, count + 1)[first:last]
    if len(index) < 2:
        return float("inf")  # all in one or two directions
    return float(-np.polyfit(np.log(index), np.log(values[first:last]), 1)[0])
