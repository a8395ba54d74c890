"""Pixel AUROC and PRO from counts, against slow references on every pixel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label
from sklearn.metrics import roc_auc_score

from selfsight.heads.regions import BINS, counted, pixel_auroc, pro


def pictures(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(4):
        mask = np.zeros((30, 40), bool)
        mask[5:10, 5:12] = True
        mask[20:22, 30:33] = True
        mask[22, 33] = True  # touches the second at a corner
        scores = rng.gamma(2.0, size=mask.shape) + 1.5 * mask
        found.append((scores, mask))
    return [*found, (rng.gamma(2.0, size=(30, 40)), np.zeros((30, 40), bool))]


def slow_pro(several: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The mean overlap over thresholds at each normal pixel, up to 30 % of them."""
    normal = np.sort(np.concatenate([scores[~mask] for scores, mask in several]))[::-1]
    regions = []
    for scores, mask in several:
        numbers, count = label(mask, np.ones((3, 3)))
        regions += [scores[numbers == number] for number in range(1, count + 1)]
    most = int(0.3 * len(normal))
    points = [np.mean([(region >= normal[k]).mean() for region in regions]) for k in range(0, most, 5)]
    return float(np.mean(points))


def test_both_are_those_of_all_pixels() -> None:
    several = pictures()
    *arrays, regions = (np.array(each) for each in zip(*(counted(s, m, 2.0) for s, m in several), strict=True))
    normal, abnormal, shares = arrays
    truth = np.concatenate([mask.ravel() for _, mask in several])
    scores = np.concatenate([scores.ravel() for scores, _ in several])
    assert pixel_auroc(normal, abnormal) == pytest.approx(roc_auc_score(truth, scores), abs=1e-3)
    assert regions.tolist() == [2, 2, 2, 2, 0]
    assert pro(normal, shares, regions) == pytest.approx(slow_pro(several), abs=5e-3)


def test_only_what_is_looked_at_counts() -> None:
    scores, mask = pictures()[0]
    looked = np.zeros_like(mask)
    looked[:15] = True
    normal, abnormal, shares, regions = counted(scores, mask, 2.0, looked)
    assert normal.sum() + abnormal.sum() == looked.sum() and abnormal.sum() == 35 and regions == 1
    assert shares.sum() == pytest.approx(1.0)


def test_perfect_and_missing() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:4, 2:4] = True
    normal, abnormal, shares, regions = counted(np.where(mask, 5.0, 0.1), mask, 1.0)
    assert pixel_auroc(normal, abnormal) == 1.0 and pro(normal, shares, np.array([regions])) == pytest.approx(1.0)
    assert pixel_auroc(normal, np.zeros(BINS)) is None and pro(normal, np.zeros(BINS), np.array([0])) is None
