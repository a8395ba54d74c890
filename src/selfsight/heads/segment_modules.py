"""The network of a segmentation: pixels → images → levels → scores of every pixel → calibrated probabilities.

Scores are linear in all levels of the encoder at once, or come from a light decoder. A guided filter (He, Sun and Tang,
"Guided Image Filtering", ECCV 2010) brings their edges to those of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.encoders.encoder import Encoder
from selfsight.heads.modules import Prepare

EPS = 1e-3  # of the guided filter: the variance of grey, in [0, 1], that counts as an edge
WIDTH = 48  # channels of the decoder
APART = 2  # channels beside the classes where objects are told apart: centre and boundary


class Readout(nn.Module):
    """Scores [B, K, H, W] that are linear in all levels [B, C_l, h_l, w_l], brought to the input's (H, W) bilinearly.

    weight: [K, sum of C_l], of levels as they are. bias: [K]. As interpolation is linear too, each level is first
    brought to K channels: this is the same and needs no map of all channels.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, channels: Sequence[int], weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        total = self.bias[None, :, None, None]
        for level, weight in zip(levels, self.weight.split(self.channels, dim=1), strict=True):
            scores = F.conv2d(level.float(), weight[:, :, None, None])
            total = total + F.interpolate(scores, size, mode="bilinear")
        return total


class Decoder(nn.Module):
    """Scores [B, K, H, W] from levels: each normalised and brought to `WIDTH` channels, added from the coarsest to the
    finest, with a convolution of 3 x 3 at each step, and two at the end."""

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: Sequence[int], outputs: int, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.register_buffer("mean", mean)  # [sum of C_l]
        self.register_buffer("scale", scale)
        self.across = nn.ModuleList(nn.Conv2d(count, WIDTH, 1) for count in channels)
        self.steps = nn.ModuleList(_step() for _ in channels)
        self.last = nn.Sequential(_step(), nn.Conv2d(WIDTH, outputs, 1))

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        means, scales = self.mean.split(self.channels), self.scale.split(self.channels)
        found: Tensor | None = None
        for place in reversed(range(len(levels))):
            unit = (levels[place].float() - means[place][:, None, None]) / scales[place][:, None, None]
            here = self.across[place](unit)
            if found is not None:
                here = here + F.interpolate(found, here.shape[-2:], mode="bilinear")
            found = self.steps[place](here)
        assert found is not None
        return F.interpolate(self.last(found), size, mode="bilinear")


def _step() -> nn.Module:
    """A convolution of each channel, then one across them; its groups see one image alone, so batches do not matter."""
    deep = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
    return nn.Sequential(deep, nn.Conv2d(WIDTH, WIDTH, 1), nn.GroupNorm(8, WIDTH), nn.GELU())


def guided(planes: Tensor, grey: Tensor, radius: int, eps: float = EPS) -> Tensor:
    """`planes` [B, K, H, W] smoothed where `grey` [B, 1, H, W] in [0, 1] is, with its edges (equations 5, 6 and 8).

    In each window of side 2 radius + 1, a plane is taken for a grey + b, with least squares and a penalty eps a²; each
    pixel has the mean of all windows that it is in. Planes that add up to 1 still do.
    """
    mean, many = mean_around(grey, radius), mean_around(planes, radius)
    variance = mean_around(grey * grey, radius) - mean * mean
    a = (mean_around(grey * planes, radius) - mean * many) / (variance + eps)
    b = many - a * mean
    return mean_around(a, radius) * grey + mean_around(b, radius)


def mean_around(planes: Tensor, radius: int) -> Tensor:
    """The mean of each pixel's window, of which at the edges less is there: from running sums, whatever the radius."""
    return _mean_along(_mean_along(planes, radius, 2), radius, 3)


def _mean_along(planes: Tensor, radius: int, axis: int) -> Tensor:
    at = torch.arange(planes.shape[axis], device=planes.device)
    first, last = (at - radius).clamp_min(0), (at + radius).clamp_max(planes.shape[axis] - 1)
    sums = planes.cumsum(axis)
    before = sums.index_select(axis, first) - planes.index_select(axis, first)
    shape = [-1 if place == axis else 1 for place in range(4)]
    return (sums.index_select(axis, last) - before) / (last - first + 1).to(planes.dtype).reshape(shape)


class Segment(nn.Module):
    """The part of a segmentation that is a task: levels and the image's grey [B, 1, H, W] to `scores` [B, K, H, W],
    logarithms of probabilities, and, where objects are told apart, `centre` and `boundary` [B, H, W] in [0, 1].

    classes: K. radius: of the guided filter, 0 for none.
    """

    def __init__(self, readout: Readout | Decoder, classes: int, radius: int) -> None:
        super().__init__()
        self.readout, self.classes, self.radius = readout, classes, radius

    def forward(self, levels: Sequence[Tensor], grey: Tensor) -> dict[str, Tensor]:
        size = (grey.shape[2], grey.shape[3])
        return self.filtered(self.readout(levels, size), grey)

    def filtered(self, scores: Tensor, grey: Tensor) -> dict[str, Tensor]:
        """The same, from the scores [B, K or K + 2, H, W] of the readout."""
        logits, apart = scores[:, : self.classes], scores[:, self.classes :].sigmoid()
        found = {"scores": logits.log_softmax(1)}
        if self.radius:
            smooth = guided(logits.softmax(1), grey, self.radius).clamp(1e-4, 1.0)
            found["scores"] = (smooth / smooth.sum(1, keepdim=True)).log()
        return found | ({"centre": apart[:, 0], "boundary": apart[:, 1]} if apart.shape[1] else {})


class Calibrate(nn.Module):
    """Scores to what a person may believe.

    slope: by which scores are multiplied, one over the temperature. offset [K]: added to those of each class. lean [K]:
    what is added before the likeliest class is chosen, as where classes of few pixels are to be found too.

    Gives `probabilities` [B, K, H, W], `mask` [B, H, W] int64, and `centre` and `boundary` as they are.
    """

    slope: Tensor
    offset: Tensor
    lean: Tensor

    def __init__(self, slope: Tensor, offset: Tensor, lean: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)
        self.register_buffer("offset", offset)
        self.register_buffer("lean", lean)

    def forward(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logs = (self.slope * found["scores"] + self.offset[:, None, None]).log_softmax(1)
        told = {"probabilities": logs.exp(), "mask": (logs + self.lean[:, None, None]).argmax(1)}
        return told | {name: found[name] for name in ("centre", "boundary") if name in found}


class SegmentModule(nn.Module):
    """A segmentation as one network: pixels [B, C, H, W] of own depth in, named tensors out, see `Calibrate`, and
    `pooled` [B, D], the features, by which drift is told."""

    def __init__(self, encoder: Encoder, task: Segment, calibrate: Calibrate) -> None:
        super().__init__()
        self.prepare = Prepare(encoder.geometry)
        self.encoder, self.task, self.calibrate = encoder, task, calibrate

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.encoder(self.prepare(pixels), levels=True)
        found: dict[str, Tensor] = self.calibrate(self.task(features.levels, self.grey(pixels)))
        return found | {"pooled": features.pooled}

    def grey(self, pixels: Tensor) -> Tensor:
        """[B, 1, H, W] in [0, 1]."""
        return self.prepare.geometry.to_unit(pixels).mean(1, keepdim=True)
