"""The network of a detector: pixels → images → levels → where the centres of objects are, and how far their edges.

A heat map has a peak at the centre of each object, and tells there the distances to its edges, so there are no anchors
(Zhou et al., "Objects as Points", 2019; Liu et al., "Training-Time-Friendly Network for Real-Time Object Detection",
AAAI 2020).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.encoders.encoder import Encoder
from selfsight.heads.modules import Prepare

WIDTH = 48  # channels
FINEST = 8  # px of the input: levels of a smaller stride are left out, as they cost most and tell least
COARSE = 8  # px: above it, the grid of what is told is twice as fine as the finest level
FOUND = 300  # objects that an input tells, the surest
NOTHING = -1e4  # log-odds of what is no object
PRIOR = 0.01  # how likely a centre is before anything is learnt
FAR = 6.0  # logarithm of the largest distance to an edge, in those of the usual object


def used_levels(strides: Sequence[int]) -> tuple[int, ...]:
    """The places of the levels that a detector looks at; the finest of all where none is coarse enough."""
    return tuple(place for place, stride in enumerate(strides) if stride >= FINEST) or (len(strides) - 1,)


def grid_stride(strides: Sequence[int]) -> int:
    """Pixels of the input between two places of the heat map."""
    finest = strides[used_levels(strides)[0]]
    return finest // 2 if finest > COARSE else finest


class Readout(nn.Module, ABC):
    """What finds objects in levels. stride: of its grid, px of the input."""

    stride: int

    @abstractmethod
    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Levels [B, C_l, h_l, w_l] to `heat` [B, K, h, w], log-odds of an object of each class around each place, and
        `edges` [B, 4, h, w], how far its left, upper, right and lower edge lie from there in pixels of the input."""


class Centres(Readout):
    """A small network that finds the centres of objects.

    Each level is normalised and brought to `WIDTH` channels, and added from the coarsest to the finest.

    channels, strides: of the levels that it looks at. classes: K. mean, scale: [sum of C_l]. usual: [2], half the
    width and height of the usual object in pixels of the input.
    """

    mean: Tensor
    scale: Tensor
    usual: Tensor

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], classes: int, mean: Tensor, scale: Tensor, usual: Tensor
    ) -> None:
        super().__init__()
        self.channels, self.classes = tuple(channels), classes
        self.stride, self.finer = grid_stride(strides), strides[0] // grid_stride(strides)
        for name, value in (("mean", mean), ("scale", scale), ("usual", usual)):
            self.register_buffer(name, value)
        self.across = nn.ModuleList(nn.Conv2d(count, WIDTH, 1) for count in channels)
        self.steps = nn.ModuleList(_step() for _ in channels)
        self.last = _step()
        self.heat = nn.Conv2d(WIDTH, classes, 1)
        self.edges = nn.Conv2d(WIDTH, 4, 1)
        nn.init.constant_(self.heat.bias, torch.tensor(PRIOR / (1 - PRIOR)).log().item())  # type: ignore[arg-type]
        nn.init.zeros_(self.edges.weight)
        nn.init.zeros_(self.edges.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        means, scales = self.mean.split(self.channels), self.scale.split(self.channels)
        found: Tensor | None = None
        for place in reversed(range(len(levels))):
            unit = (levels[place].float() - means[place][:, None, None]) / scales[place][:, None, None]
            here = self.across[place](unit)
            if found is not None:
                here = here + F.interpolate(found, here.shape[-2:], mode="bilinear")
            found = self.steps[place](here)
        assert found is not None
        if self.finer > 1:
            found = F.interpolate(found, scale_factor=float(self.finer), mode="bilinear")
        deep = self.last(found)
        usual = self.usual.repeat(2)[:, None, None]
        return {"heat": self.heat(deep), "edges": self.edges(deep).clamp(-FAR, FAR).exp() * usual}


def _step() -> nn.Module:
    """A convolution of each channel, then one across them; its groups see one image alone, so batches do not matter."""
    deep = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
    return nn.Sequential(deep, nn.Conv2d(WIDTH, WIDTH, 1), nn.GroupNorm(8, WIDTH), nn.GELU())


def boxes_at(edges: Tensor, stride: int) -> Tensor:
    """Boxes [B, 4, h, w] x0 y0 x1 y1 in pixels of the input, from the distances to their edges of each place, whose
    centre is that of a cell of `stride` pixels."""
    y = (torch.arange(edges.shape[2], device=edges.device) + 0.5) * stride
    x = (torch.arange(edges.shape[3], device=edges.device) + 0.5) * stride
    down, across = y[:, None].expand(edges.shape[2:]), x[None].expand(edges.shape[2:])
    at = torch.stack([across, down])
    return torch.cat([at - edges[:, :2], at + edges[:, 2:]], 1)


class Detect(nn.Module):
    """The part of a detector that is a task: levels to its surest `FOUND` objects, or another number of them.

    Gives `scores` [B, T], log-odds, `labels` [B, T] int64 and `boxes` [B, T, 4] in pixels of the input; where there are
    fewer places than T, the rest have scores of `NOTHING`. used: places of the levels that it looks at. An object
    is a place whose score is the highest of the 3 x 3 around it, for its class.
    """

    def __init__(self, readout: Readout, used: Sequence[int], found: int = FOUND) -> None:
        super().__init__()
        self.readout, self.used, self.found = readout, tuple(used), found

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        return self.surest([levels[place] for place in self.used])

    def surest(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """The same, from the levels that it looks at."""
        told = self.readout(levels)
        heat, boxes = told["heat"], boxes_at(told["edges"], self.readout.stride)
        peaks = torch.where(F.max_pool2d(heat, 3, 1, 1) == heat, heat, NOTHING).flatten(1)
        scores, places = F.pad(peaks, (0, self.found), value=NOTHING).topk(self.found)
        kinds = torch.arange(heat.shape[1], device=heat.device)[None, :, None].expand_as(heat.flatten(2)).flatten(1)
        every = boxes.flatten(2).transpose(1, 2)[:, None].expand(-1, heat.shape[1], -1, -1).flatten(1, 2)
        every = F.pad(every, (0, 0, 0, self.found))  # no division by the size of the grid: exports do not know it
        return {
            "scores": scores,
            "labels": F.pad(kinds, (0, self.found)).gather(1, places),
            "boxes": every.gather(1, places[:, :, None].expand(-1, -1, 4)),
        }


class Calibrate(nn.Module):
    """Log-odds of objects to what a person may believe: that it is there, with half of the box or more in common.

    slope, offset: [K], by which those of each class are multiplied, and what is added.
    """

    slope: Tensor
    offset: Tensor

    def __init__(self, slope: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)
        self.register_buffer("offset", offset)

    def forward(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        labels = found["labels"]
        scores = (self.slope[labels] * found["scores"] + self.offset[labels]).sigmoid()
        return {"scores": scores, "labels": labels, "boxes": found["boxes"]}


class DetectModule(nn.Module):
    """A detector as one network: pixels [B, C, H, W] of own depth in, `scores` [B, T] in [0, 1], `labels` and `boxes`
    out, see `Detect`, and `pooled` [B, D], the features. What is left is to drop boxes of one object but the surest."""

    def __init__(self, encoder: Encoder, task: Detect, calibrate: Calibrate) -> None:
        super().__init__()
        self.prepare = Prepare(encoder.geometry)
        self.encoder, self.task, self.calibrate = encoder, task, calibrate

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.encoder(self.prepare(pixels), levels=True)
        found: dict[str, Tensor] = self.calibrate(self.task(features.levels))
        return found | {"pooled": features.pooled}
