"""Whitening of pooled features, kept as the model's classifier so that plain timm reproduces it.

PCA whitening (Kessy, Lewin and Strimmer, "Optimal whitening and decorrelation", The American Statistician 2018) divides
each principal direction by its standard deviation. That sharpens k-NN, but it also lets directions of little variance
count as much as the rest, which a handful of labels cannot undo. So whitening goes a third of the way. It goes further
where features lie in few directions, as a small ViT's do, until an eighth of the directions count. The floor counts
too: the power stays below 0.3, and features in one or two directions end with fewer that count. benchmarks/README.md
has the figures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from selfsight.encoders.encoder import Encoder

POWER = 0.15  # of the variance, at least: 0 leaves features as they are, 0.5 whitens fully
SHARE = 0.125  # of the directions, or of the images if they are fewer, are to count, with the floor
FLOOR = 1e-3  # of the mean variance, added to each, so that empty directions are not blown up


def whitening(features: Tensor, power: float | None = None, floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """(weight [D, D], bias [D]) of the linear map that whitens `features` [N, D].

    It turns them onto their principal directions, most variance first, centres them, and divides each direction by
    (variance + floor * mean variance) ** power. The default power is `POWER`, or a higher one if that is needed for a
    `SHARE` of the directions (or of the images, if they are fewer) to count.
    """
    axes = axes_of(features, floor)
    if power is None:
        power = max(POWER, power_for(axes.variances, SHARE * min(features.shape[1], len(features) - 1)))
    return axes.map(power)


class Axes(NamedTuple):
    """The principal directions of features.

    mean: of the features, [D].
    variances: along each direction, the least first, with the floor, [D].
    directions: a column each, [D, D].
    """

    mean: Tensor
    variances: Tensor
    directions: Tensor

    def map(self, power: float) -> tuple[Tensor, Tensor]:
        """(weight [D, D], bias [D]), float32, that centre features, turn them onto the directions, most variance first,
        and divide each by its variance ** power."""
        weight = (self.directions * self.variances**-power).T.flip(0)  # [D, D]
        return weight.float(), (-weight @ self.mean).float()


def axes_of(features: Tensor, floor: float = FLOOR) -> Axes:
    """The principal directions of `features` [N, D], in float64. `floor` times their mean variance is added to each
    variance."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(features))
    variances = variances.clamp(min=0.0)
    return Axes(mean, variances + (floor * variances.mean()).clamp(min=1e-12), directions)


def power_for(variances: Tensor, count: float) -> float:
    """The power, 0 to 0.5, at which `count` directions count once each of `variances` [D] is divided by its variance **
    power; 0 if more count already. How many count is exp of the entropy of their shares of the variance; it rises with
    the power."""
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
    """Give `encoder`, in place, the whitening of its own `features` [N, D] as classifier. Returns whether it could: not
    if its classifier is more than a linear layer, as in a distilled DeiT."""
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
    """`features`, several sets [N, D], whitened by all of them together, as a finished encoder whitens its own. A
    finished encoder saw thousands of images; a control whitened by a few alone would be too weak."""
    weight, bias = whitening(torch.from_numpy(np.concatenate(features)))
    return [(torch.from_numpy(some) @ weight.T + bias).numpy() for some in features]


def unwhitened(encoder: Encoder) -> Encoder:
    """`encoder` itself, with its whitening, if any, removed in place."""
    if encoder.net.num_classes:
        encoder.net.reset_classifier(0)  # type: ignore[operator]
    return encoder
