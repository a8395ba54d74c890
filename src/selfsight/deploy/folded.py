"""A scorer of features that says of drifted ones what it said of those that it learnt from. All is folded into its own
tensors, so that the head stays a head like any other."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.heads.fits import Ordinal
from selfsight.heads.modules import Linear, Nearest


def shifted(scorer: nn.Module, shift: np.ndarray) -> nn.Module:
    """The scorer that says of features u of unit length what `scorer` says of u - shift [D], which is not brought to
    unit length again. Neighbours are moved instead: u is as far from b + shift as u - shift is from b."""
    if not shift.any():
        return scorer
    by = torch.from_numpy(shift.astype(np.float32))
    if isinstance(scorer, Linear):
        return Linear(scorer.weight, scorer.bias - scorer.weight @ by)
    if isinstance(scorer, Ordinal):
        return Ordinal(scorer.weight, scorer.cuts + scorer.weight @ by)
    assert isinstance(scorer, Nearest)
    return Nearest(moved(scorer.bank, shift), scorer.targets, scorer.kind, scorer.k)


def moved(bank: Tensor, shift: np.ndarray) -> Tensor:
    """Features [M, D] of unit length where the drift has carried them, at unit length."""
    return F.normalize(bank + torch.from_numpy(shift.astype(np.float32)), dim=1)


def mixed(scorer: nn.Module, prototypes: np.ndarray, share: float, sharpness: float) -> nn.Module:
    """The linear scorer 1 - share times `scorer` and `share` times the nearest of the prototypes [K, D], whose scores
    are sharpness times (m·u - m·m / 2). A scorer that is not linear stays as it is."""
    if not isinstance(scorer, Linear):
        return scorer
    middle = torch.from_numpy(prototypes.astype(np.float32))
    weight = (1.0 - share) * scorer.weight + share * sharpness * middle
    return Linear(weight, (1.0 - share) * scorer.bias - share * sharpness * (middle**2).sum(1) / 2.0)


def sharpness_of(scorer: nn.Module, prototypes: np.ndarray, features: np.ndarray) -> float:
    """The sharpness at which scores by prototypes [K, D] differ as much between classes as those of `scorer`, over
    features [N, D] of unit length."""
    with torch.inference_mode():
        own = scorer(torch.from_numpy(features)).numpy()
    near = features @ prototypes.T - (prototypes**2).sum(1) / 2.0
    spread = [float(np.median(np.ptp(scores, axis=1))) for scores in (own, near)]
    return spread[0] / max(spread[1], 1e-6)
