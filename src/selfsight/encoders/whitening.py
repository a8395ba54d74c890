"""Whitening of pooled features, kept as the model's classifier so that plain timm reproduces it.

PCA whitening (Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", The American Statistician
2018) divides each principal direction by its standard deviation. That sharpens k-NN, but it also
raises directions of little variance to the rank of the rest, which a handful of labels cannot undo. So we go a third
of the way, and further where features lie in a few directions, as those of a small ViT do, until an eighth of them
count. The floor counts too, so that the power stays below 0.3, and features in one or two directions end with fewer.
benchmarks/README.md has the figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfsight.encoders.encoder import Encoder

POWER = 0.15  # of the variance, at least: 0 leaves features as they are, 0.5 whitens fully
SHARE = 0.125  # of the directions, or of the images if they are fewer, are to count, with the floor
FLOOR = 1e-3  # of the mean variance, added to each, so that empty directions are not blown up


def whitening(features: Tensor, power: float | None = None, floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """Weight [D, D] and bias [D] that turn `features` [N, D] onto their principal directions, centred, each
    divided by (variance + floor * mean variance) ** power; the direction of most variance comes first.

    Without a power it is `POWER`, or what is needed that a `SHARE` of the directions (or of the images, if they are
    fewer) count, with the floor, if that is more.
    """
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(features))
    variances = variances.clamp(min=0.0)
    raised = variances + (floor * variances.mean()).clamp(min=1e-12)
    if power is None:
        power = max(POWER, power_for(raised, SHARE * min(features.shape[1], len(features) - 1)))
    weight = (directions * raised**-power).T.flip(0)  # [D, D]
    return weight.float(), (-weight @ mean).float()


def power_for(variances: Tensor, count: float) -> float:
    """The power, from 0 to 0.5, at which `count` of the directions of `variances` [D] count once each is divided by
    variance ** power: exp of the entropy of their shares of the variance. It rises with the power; 0 if more do
    already."""
    low, high = 0.0, 0.5
    for _ in range(20):
        power = (low + high) / 2.0
        log_share = (variances.log() * (1.0 - 2.0 * power)).log_softmax(0)
        if float((-log_share.exp() * log_share).sum().exp()) < count:
            low = power
        else:
            high = power
    return low


@torch.no_grad()
def whiten(encoder: Encoder, features: Tensor) -> bool:
    """Give `encoder`, in place, the whitening of its own `features` [N, D] as classifier. False, with the encoder as it
    was, if its classifier is more than a linear layer, as that of a distilled DeiT."""
    weight, bias = whitening(features)
    net: Any = encoder.net
    net.reset_classifier(len(weight))
    classifier = net.get_classifier()
    if not isinstance(classifier, nn.Linear):
        net.reset_classifier(0)
        return False
    classifier.weight.copy_(weight)
    classifier.bias.copy_(bias)
    return True


def whitened(features: list[np.ndarray]) -> list[np.ndarray]:
    """Features [N, D] of several sets whitened as a finished encoder whitens its own, by all of them together: it saw
    thousands of images, and a few to learn from would make too little of a control."""
    weight, bias = whitening(torch.from_numpy(np.concatenate(features)))
    return [(torch.from_numpy(some) @ weight.T + bias).numpy() for some in features]


def unwhitened(encoder: Encoder) -> Encoder:
    """`encoder`, in place, without its whitening, if it has one."""
    if encoder.net.num_classes:
        encoder.net.reset_classifier(0)  # type: ignore[operator]
    return encoder
