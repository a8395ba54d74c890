"""Whitening of pooled features, kept as the model's classifier so that plain timm reproduces it.

Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", The American Statistician 2018 (PCA
whitening), with the eigenvalues shrunk so that directions of little variance are not blown up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfsight.encoders.encoder import Encoder

SHRINKAGE = 0.5  # of the mean eigenvalue: less sharpens k-NN a little, more helps a handful of labels a lot


def whitening(features: Tensor, shrinkage: float = SHRINKAGE) -> tuple[Tensor, Tensor]:
    """Weight [D, D] and bias [D] with which `features` [N, D] get zero mean and no correlation:
    an eigendirection of variance e comes out with e / (e + shrinkage * mean(e))."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(features))
    variances = variances.clamp(min=0.0)
    scale = (variances + shrinkage * variances.mean().clamp(min=1e-12)).rsqrt()
    weight = (directions * scale).T.flip(0)  # [D, D], the direction of most variance first
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
