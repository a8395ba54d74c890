"""Whitening of pooled features, kept as the model's classifier so that plain timm reproduces it.

PCA whitening (Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", The American Statistician
2018) divides each principal direction by its standard deviation. That sharpens k-NN, but it also
raises directions of little variance to the rank of the rest, which a handful of labels cannot undo. We go a
third of the way: benchmarks/README.md has the figures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfsight.encoders.encoder import Encoder

POWER = 0.15  # of the variance: 0 leaves features as they are, 0.5 whitens fully
FLOOR = 1e-3  # of the mean variance, added to each, so that empty directions are not blown up


def whitening(features: Tensor, power: float = POWER, floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """Weight [D, D] and bias [D] that turn `features` [N, D] onto their principal directions, centred, each
    divided by (variance + floor * mean variance) ** power; the direction of most variance comes first."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(features))
    variances = variances.clamp(min=0.0)
    scale = (variances + (floor * variances.mean()).clamp(min=1e-12)) ** -power
    weight = (directions * scale).T.flip(0)  # [D, D]
    return weight.float(), (-weight @ mean).float()


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
