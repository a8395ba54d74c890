"""Colour: from lightness alone, predict the colour of each cell of the image.

Zhang, Isola and Efros, "Colorful Image Colorization", ECCV 2016, sections 2.1 and 2.2. The a and b of CIE Lab fall into
the Q bins that sRGB can show. The loss is the mean over cells of -v(q) log p(q | lightness), where q is the bin of the
cell's mean a and b. Rare colours count more: v(q) ~ 1 / ((1 - m) f(q) + m / Q) with m = 1/2, f the frequency of the
bins, and the sum of f v equal to 1. f is a running mean over batches; the paper's soft bins and its smoothing of f are
left out. The pooled features are added to each cell's own, so that they are trained too.

Lab: CIE 15:2004 section 8.2.1, of sRGB by IEC 61966-2-1, with the white of D65.
"""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import all_mean, gather
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError, SelfsightError
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import Loss, Objective, encode, in_float32, register
from selfsight.objectives.patches import only_group
from selfsight.objectives.shared import one_crop
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan

TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
WHITE = (0.95047, 1.0, 1.08883)
REACH = 128  # no a or b of sRGB is further from 0
MEMORY = 0.02  # the share of a batch in the running frequency of bins


def to_lab(unit: Tensor) -> Tensor:
    """sRGB [..., 3, H, W] in [0, 1] to CIE Lab: L in [0, 100], a and b in about [-108, 99]."""
    linear = torch.where(unit > 0.04045, ((unit + 0.055) / 1.055).clamp_min(0.0) ** 2.4, unit / 12.92)
    red, green, blue = linear.unbind(-3)
    xyz = [(m[0] * red + m[1] * green + m[2] * blue) / w for m, w in zip(TO_XYZ, WHITE, strict=True)]
    x, y, z = (
        torch.where(t > (6 / 29) ** 3, t.clamp_min(1e-6) ** (1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29) for t in xyz
    )
    return torch.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], dim=-3)


@functools.cache
def gamut(step: int) -> Tensor:
    """The bins [Q, 2] (a, b), multiples of `step`, into which the colours of sRGB fall, tried at 33 levels per
    channel."""
    level = torch.linspace(0.0, 1.0, 33)
    rgb = torch.cartesian_prod(level, level, level).T[:, :, None]  # [3, n, 1]
    bins: Tensor = (to_lab(rgb)[1:, :, 0].T / step).round().unique(dim=0) * step
    return bins


@functools.cache
def bin_table(step: int) -> Tensor:
    """[n, n]: for a and b at multiples of `step` from -REACH to REACH, the number of the nearest bin of `gamut`."""
    at = torch.arange(-(REACH // step), REACH // step + 1) * float(step)
    distance = (torch.cartesian_prod(at, at)[:, None] - gamut(step)).square().sum(2)  # [n n, Q]
    return distance.argmin(1).view(len(at), len(at))


def bins_of(ab: Tensor, table: Tensor, step: int) -> Tensor:
    """The bin [B, N] of each colour `ab` [B, 2, N]."""
    a, b = ((ab / step).round().long() + len(table) // 2).clamp(0, len(table) - 1).unbind(1)
    return table[a, b]


def rebalancing(frequency: Tensor, mix: float = 0.5) -> Tensor:
    """Weights v [Q] of the bins: the inverse of their `frequency` [Q] mixed with the uniform one. Their mean is 1."""
    weights = 1.0 / ((1.0 - mix) * frequency + mix / len(frequency))
    return weights / (frequency * weights).sum()


@in_float32
def rebalanced(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """The mean over items and cells of v(q) times the cross-entropy of `logits` [B, N, Q] for `labels` q [B, N]."""
    entropies = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # [B, N]
    return (weights[labels] * entropies).mean()


@register("colour")
class ColourBins(Objective):
    """step: side of a bin, in units of a and b.
    mix: share of the uniform distribution in the frequencies of bins; 1 for no rebalancing.
    """

    family = "classic pretext"
    when = (
        "RGB photographs whose colours tell things apart, such as plants, food or animals. Not where the instrument "
        "makes the colour, as stains and lamps do. The encoder learns from lightness and sees colour only in use."
    )
    rules: ClassVar[dict[str, Rule]] = {
        "views": one_crop(),
        "objective_options": lambda facts, chosen: (
            {"step": 10, "mix": 0.5},
            "bins of 10 by 10 and half of the uniform frequency, as in the paper (Zhang et al., ECCV 2016)",
        ),
    }
    frequency: Tensor
    table: Tensor

    def __init__(self, encoder: Encoder, views: ViewPlan, step: int = 10, mix: float = 0.5) -> None:
        super().__init__(encoder, views)
        only_group(views, draws=0)
        if not 1 <= step <= 64:
            raise SelfsightError(f"step must be 1 to 64, not {step}: a and b reach about 100.")
        self.geometry = encoder.geometry
        self.step, self.mix = step, mix
        count = len(gamut(step))
        self.register_buffer("table", bin_table(step).clone(), persistent=False)
        self.register_buffer("frequency", torch.full((count,), 1.0 / count))
        self.cells = nn.Linear(encoder.patch_dim, count)
        self.whole = nn.Linear(encoder.dim, count, bias=False)

    @classmethod
    def check(cls, encoder: str, channels: int, views: ViewPlan) -> None:
        super().check(encoder, channels, views)
        if channels != 3:
            raise DataError(
                f"colour predicts the colours of RGB images, and these have {channels} channel{'s' * (channels > 1)}: "
                "choose another --objective, for example inpaint."
            )

    @torch.no_grad()
    def task(self, view: View) -> tuple[Tensor, Tensor]:
        """(lightness as the encoder takes it [B, 3, H, W], a and b [B, 2, H, W])."""
        lab = to_lab(self.geometry.undo(view.pixels))
        return self.geometry.normalise((lab[:, :1] / 100.0).expand(-1, 3, -1, -1)), lab[:, 1:]

    def bins(self, ab: Tensor, grid: tuple[int, int]) -> Tensor:
        """The bin [B, N] of the mean `ab` [B, 2, H, W] of each cell of the grid (h, w), in reading order."""
        return bins_of(F.adaptive_avg_pool2d(ab, grid).flatten(2), self.table, self.step)

    def forward(self, views: list[View], progress: float) -> Loss:
        (view,) = views
        light, ab = self.task(view)
        features = encode(self.encoder, light)
        labels = self.bins(ab, features.grid)  # [B, N]
        logits = self.cells(features.patches) + self.whole(features.pooled)[:, None]  # [B, N, Q]
        loss = all_mean(rebalanced(logits, labels, rebalancing(self.frequency, self.mix)))
        accuracy = all_mean((logits.argmax(2) == labels).float().mean())
        seen = labels.flatten().bincount(minlength=len(self.frequency))
        self.seen = all_mean(seen / labels.numel())
        parts = {"cross_entropy": loss.detach(), "accuracy": accuracy}
        return Loss(loss, parts, gather(features.pooled.detach().float()[None]))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.frequency.lerp_(self.seen, MEMORY)
