"""The modules that a head is made of: pixels → images → features → scores → calibrated tensors, differentiable from the
pixels on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder

VOTE = 0.07  # temperature of a neighbour's vote, as of the k-NN probe
LEAST_SHARE = 1e-4  # of the votes, for a class without a neighbour
NEAREST = 10  # neighbours whose distance tells how new an item is


def as_tensor(pixels: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device. Of uint16 torch knows little, so it becomes int32."""
    return torch.from_numpy(pixels.astype(np.int32) if pixels.dtype == np.uint16 else pixels).to(device)


class Prepare(nn.Module):
    """Pixels [B, C, H, W] of own depth, of the encoder's input size, to the images that it takes."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    def forward(self, pixels: Tensor) -> Tensor:
        return self.geometry.normalise(self.geometry.to_unit(pixels))


class Linear(nn.Module):
    """Scores [B, K] that are linear in features [B, D] of unit length: weight [K, D], bias [K]. A bias of minus
    infinity is of a class without examples."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=1) @ self.weight.T + self.bias


class Nearest(nn.Module):
    """Scores [B, K] by the k nearest of the items that were learnt from.

    bank: their features [M, D] of unit length. targets: [M, K], 1 for each class of an item, or its number. kind: of
    the labels. A class has the logarithm of its share of the votes, one of several classes the log-odds of it, a number
    is the weighted mean. A vote weighs exp((cosine - 1) / 0.07).
    """

    bank: Tensor
    targets: Tensor

    def __init__(self, bank: Tensor, targets: Tensor, kind: str, k: int) -> None:
        super().__init__()
        self.kind, self.k = kind, min(k, len(bank))
        self.register_buffer("bank", bank)
        self.register_buffer("targets", targets)

    def forward(self, features: Tensor) -> Tensor:
        similarity, index = (F.normalize(features, dim=1) @ self.bank.T).topk(self.k, dim=1)
        votes = torch.softmax(similarity / VOTE, dim=1)  # [B, k]
        shares = (votes[:, :, None] * self.targets[index]).sum(1)  # [B, K]
        if self.kind == "number":
            return shares
        if self.kind == "classes":
            return torch.logit(shares.clamp(LEAST_SHARE, 1.0 - LEAST_SHARE))
        return torch.log(shares.clamp_min(LEAST_SHARE))


class Memory(nn.Module):
    """How far features [B, D] are from what was learnt from: the mean cosine distance [B] to the 10 nearest of the bank
    [M, D], whose rows have unit length."""

    bank: Tensor

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        self.register_buffer("bank", bank)

    def forward(self, features: Tensor) -> Tensor:
        similarity = F.normalize(features, dim=1) @ self.bank.T
        return 1.0 - similarity.topk(min(NEAREST, len(self.bank)), dim=1).values.mean(1)


class Scores(nn.Module):
    """The part of a head that is a task: features [B, D] to scores [B, K] and the distance [B] to what was learnt."""

    def __init__(self, scorer: nn.Module, memory: Memory) -> None:
        super().__init__()
        self.scorer, self.memory = scorer, memory

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"scores": self.scorer(features), "distance": self.memory(features)}


class Calibrate(nn.Module):
    """Scores to what a person may believe.

    kind: of the labels. temperature: that scores are divided by. width: half of the interval of a number. distances:
    of held-out items to what was learnt, ascending, [M]. Gives `probabilities` [B, K], or `value`, `low` and `high`
    [B], and `novel` [B]: the share of items like those learnt from that lie as far away, a conformal p-value.
    """

    temperature: Tensor
    width: Tensor
    distances: Tensor

    def __init__(self, kind: str, temperature: Tensor, width: Tensor, distances: Tensor) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("temperature", temperature)
        self.register_buffer("width", width)
        self.register_buffer("distances", distances)

    def forward(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nearer = torch.searchsorted(self.distances, found["distance"].contiguous()).float()
        count = len(self.distances)
        out = {"novel": (1.0 + count - nearer) / (1.0 + count)}
        if self.kind == "number":
            value = found["scores"][:, 0]
            return out | {"value": value, "low": value - self.width, "high": value + self.width}
        return out | {"probabilities": probabilities(self.kind, found["scores"] / self.temperature)}


def probabilities(kind: str, scores: Tensor) -> Tensor:
    """[B, K]: of each class if an item has one, or of each class by itself if it may have several."""
    return torch.sigmoid(scores) if kind == "classes" else torch.softmax(scores, dim=1)


class HeadModule(nn.Module):
    """A head as one network: pixels [B, C, H, W] of own depth in, named tensors out, see `Calibrate`, and `pooled`
    [B, D], the features, by which examples that are alike are found."""

    def __init__(self, encoder: Encoder, task: nn.Module, calibrate: nn.Module) -> None:
        super().__init__()
        self.prepare = Prepare(encoder.geometry)
        self.encoder, self.task, self.calibrate = encoder, task, calibrate

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        pooled = self.encoder(self.prepare(pixels)).pooled
        return self.of_features(pooled) | {"pooled": pooled}

    def of_features(self, features: Tensor) -> dict[str, Tensor]:
        """The tensors of pooled features [B, D], which are the same as of the pixels."""
        found: dict[str, Tensor] = self.calibrate(self.task(features))
        return found
