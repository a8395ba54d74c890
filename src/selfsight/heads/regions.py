"""How well maps of abnormality agree with masks of the truth: pixel AUROC and PRO, of pictures of any number and size.

Scores are counted in bins, so that no pixel is kept: nothing grows with the number of pictures but their counts, from
which intervals are drawn picture by picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label

BINS = 1024
MOST_FALSE = 0.3  # false-positive rate up to which PRO is integrated
CONNECTED = np.ones((3, 3), int)  # pixels that touch at a corner are of one region


@dataclass(frozen=True)
class Counts:
    """Of pictures, N: how many pixels that are normal, and that are not, have a score in each bin, [N, BINS]; the sum
    over regions of the share of their pixels in each bin, [N, BINS]; and how many regions there are, [N]."""

    normal: np.ndarray
    abnormal: np.ndarray
    shares: np.ndarray
    regions: np.ndarray


def counted(
    scores: np.ndarray, mask: np.ndarray, scale: float, looked: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(normal [BINS], abnormal [BINS], shares [BINS], regions) of one picture: scores [H, W] of 0 or more, mask [H, W]
    bool, of the pixels that are `looked` at, all if not given. scale: a usual score, to which bins are fitted: the
    bin of a score s is that of s / (s + scale) in [0, 1)."""
    looked = np.ones(mask.shape, bool) if looked is None else looked
    mask = mask & looked
    values = np.asarray(scores, np.float64)
    bins = np.minimum((values / (values + scale) * BINS).astype(np.int64), BINS - 1)
    normal = np.bincount(bins[looked & ~mask], minlength=BINS)
    abnormal = np.bincount(bins[mask], minlength=BINS)
    shares, regions = np.zeros(BINS), 0
    if mask.any():
        numbers, regions = label(mask, CONNECTED)
        flat = numbers[mask] - 1
        table = np.bincount(flat * BINS + bins[mask], minlength=regions * BINS).reshape(regions, BINS)
        shares = (table / table.sum(1, keepdims=True)).sum(0)
    return normal, abnormal, shares, int(regions)


def pixel_auroc(normal: np.ndarray, abnormal: np.ndarray) -> float | None:
    """How often an abnormal pixel scores above a normal one, of counts [..., BINS]; within a bin counted half."""
    good, bad = (np.asarray(each, np.float64).reshape(-1, BINS).sum(0) for each in (normal, abnormal))
    if not good.sum() or not bad.sum():
        return None
    below = np.cumsum(good) - 0.5 * good
    return float((bad * below).sum() / (bad.sum() * good.sum()))


def pro(normal: np.ndarray, shares: np.ndarray, regions: np.ndarray) -> float | None:
    """Per-region overlap: the mean over regions of the share of their pixels that is found, over false-positive rates
    of pixels from 0 to 0.3. 1 is best. Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 6."""
    good, found = (np.asarray(each, np.float64).reshape(-1, BINS).sum(0) for each in (normal, shares))
    count = float(np.sum(regions))
    if not good.sum() or not count:
        return None
    false = np.concatenate([[0.0], np.cumsum(good[::-1]) / good.sum()])  # from the highest scores down
    overlap = np.concatenate([[0.0], np.cumsum(found[::-1]) / count])
    end = float(np.interp(MOST_FALSE, false, overlap))
    inside = false < MOST_FALSE
    x, y = np.append(false[inside], MOST_FALSE), np.append(overlap[inside], end)
    return float(np.trapezoid(y, x) / MOST_FALSE)
