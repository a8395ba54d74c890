"""Whitening of pooled features, kept as the model's classifier so that plain timm reproduces it.

PCA whitening (Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", The American Statistician
2018) divides each principal direction by its standard deviation. That sharpens k-NN, but it also
raises directions of little variance to the rank of the rest, which a handful of labels cannot undo. How far to
go depends on the encoder: features that lie in a few directions gain by it, features that lie in many lose. So we go
until an eighth of the directions count: benchmarks/README.md has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfsight.encoders.encoder import Encoder

SHARE = 0.125  # of the directions count in the end, as the effective rank has it
FLOOR = 1e-3  # of the mean variance, added to each, so that empty directions are not blown up


def whitening(features: Tensor, power: float | None = None, floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """Weight [D, D] and bias [D] that turn `features` [N, D] onto their principal directions, centred, each
    divided by (variance + floor * mean variance) ** power; the direction of most variance comes first.

    power: 0 leaves features as they are, 0.5 whitens fully; without one it is `power_for` them.
    """
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(features))
    variances = variances.clamp(min=0.0)
    raised = variances + (floor * variances.mean()).clamp(min=1e-12)
    if power is None:
        power = power_for(raised, SHARE * min(features.shape[1], len(features) - 1))
    weight = (directions * raised**-power).T.flip(0)  # [D, D]
    return weight.float(), (-weight @ mean).float()


def power_for(variances: Tensor, rank: float) -> float:
    """The power, from 0 to 0.5, at which directions of `variances` [D] have this effective rank once each is divided
    by variance ** power: exp of the entropy of their shares of the variance (Roy and Vetterli, EUSIPCO 2007). It
    rises with the power; 0 if it is above already."""
    low, high = 0.0, 0.5
    for _ in range(20):
        power = (low + high) / 2.0
        log_share = (variances.log() * (1.0 - 2.0 * power)).log_softmax(0)
        if float((-log_share.exp() * log_share).sum().exp()) < rank:
            low = power
        else:
            high = power
    return low


@torch.no_grad()
def whiten(encoder: Encoder, features: Tensor) -> Encoder:
    """Give `encoder`, in place, the whitening of its own `features` [N, D] as classifier."""
    weight, bias = whitening(features)
    net: Any = encoder.net
    net.reset_classifier(len(weight))
    classifier = net.get_classifier()
    classifier.weight.copy_(weight)
    classifier.bias.copy_(bias)
    return encoder
