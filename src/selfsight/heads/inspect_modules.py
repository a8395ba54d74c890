"""The network of an inspection: pixels → images → levels → patches → distances → a score, a map and a p-value.

Patches are the local averages of an encoder's maps at strides 8 and 16. How far they are from those of normal parts is
told by a memory of them (PatchCore: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022) or
by a Gaussian (PaDiM: Defard et al., ICPR 2020 workshops).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.encoders.encoder import Encoder
from selfsight.heads.modules import Prepare

STRIDES = (8, 16)  # of the maps, or the nearest that the encoder has
AROUND = 3  # patches on a side of a local average
NEIGHBOURS = 9  # b of equation 7 of the paper
SIGMA = 4.0  # px of the input, by which maps are smoothed
REACH = 4  # sigmas to each side that smoothing takes in


def chosen_levels(strides: Sequence[int]) -> tuple[int, ...]:
    """Which of an encoder's levels are used: those whose strides are nearest to 8 and 16. Where all have one stride, as
    in a ViT, those after 1/2 and 3/4 of the blocks."""
    if len(strides) > 2 and len(set(strides)) == 1:
        return tuple(range(len(strides) // 4, len(strides) - 1))
    near = [min(range(len(strides)), key=lambda i: abs(math.log2(strides[i] / want))) for want in STRIDES]
    return tuple(sorted(set(near)))


class Patches(nn.Module):
    """An encoder's levels to patches [B, D, h, w] on the grid of the finest of those that are `chosen`.

    Each map is averaged over 3 x 3 neighbours, with zeros around it as in the paper's code, so that patches at the edge
    count less; and divided by its scale [levels], which is the root mean square length of its vectors on normal parts,
    so that all maps count alike.
    """

    scales: Tensor

    def __init__(self, chosen: Sequence[int], scales: Tensor) -> None:
        super().__init__()
        self.chosen = tuple(chosen)
        self.register_buffer("scales", scales)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        maps = [around(levels[place]) / scale for place, scale in zip(self.chosen, self.scales, strict=True)]
        grid = maps[0].shape[-2:]
        rest = (F.interpolate(each, grid, mode="bilinear") for each in maps[1:])
        return torch.cat([maps[0], *rest], dim=1)


def around(level: Tensor) -> Tensor:
    """The mean of each place of a map [B, C, h, w] and its neighbours, of which those beyond the edge are 0."""
    return F.avg_pool2d(level.float(), AROUND, 1, AROUND // 2)


class PatchMemory(nn.Module):
    """How far patches are from the nearest of a `bank` [M, D] of normal ones.

    patches [B, D, h, w] and which of them count [B, h, w] to the distances [B, h, w] and the scores [B]. With the patch
    p that is farthest from its nearest m of the bank, and the 9 of the bank that are nearest to m, itself among them,
    the score is (1 - exp|p - m| / sum over the 9 of exp|p - m'|) |p - m|: more where m itself is a rare one.
    """

    bank: Tensor

    def __init__(self, bank: Tensor) -> None:
        super().__init__()
        self.register_buffer("bank", bank)

    def forward(self, patches: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        rows = patches.flatten(2).transpose(1, 2)  # [B, N, D]
        short, nearest = shortened(rows.flatten(0, 1), self.bank).min(1)
        far = (short.view(rows.shape[:2]) + rows.square().sum(2)).clamp_min(1e-12).sqrt()  # [B, N]
        nearest = nearest.view(far.shape)
        most, place = torch.where(counts.flatten(1), far, 0.0).max(1)  # [B]
        patch = rows.gather(1, place[:, None, None].expand(-1, 1, rows.shape[2]))  # [B, 1, D]
        known = self.bank[nearest.gather(1, place[:, None])[:, 0]]  # [B, D]
        beside = shortened(known, self.bank).topk(min(NEIGHBOURS, len(self.bank)), dim=1, largest=False).indices
        to_them = torch.linalg.vector_norm(patch - self.bank[beside], dim=2)  # [B, 9], the first of them to m
        weight = 1.0 - torch.softmax(to_them, dim=1)[:, 0] if len(self.bank) > 1 else torch.ones_like(most)
        return far.unflatten(1, patches.shape[2:]), weight * most


def shortened(rows: Tensor, bank: Tensor) -> Tensor:
    """Squared distances [N, M] of rows [N, D] to a bank [M, D], each less the squared length of its row: what tells
    which is nearest, in one pass."""
    return torch.addmm(bank.square().sum(1), rows, bank.T, alpha=-2.0)


class Gaussian(nn.Module):
    """How far patches are from a Gaussian of normal ones: the Mahalanobis distance.

    channels [K]: of the patches, that are looked at. mean: [K, h, w] of each place of the grid, or [K, 1, 1] of all.
    whiten [K, K]: W with W W^T the inverse of the covariance, which all places share. To distances [B, h, w] and the
    scores [B], the largest of them that counts.
    """

    channels: Tensor
    mean: Tensor
    whiten: Tensor

    def __init__(self, channels: Tensor, mean: Tensor, whiten: Tensor) -> None:
        super().__init__()
        self.register_buffer("channels", channels)
        self.register_buffer("mean", mean)
        self.register_buffer("whiten", whiten)

    def forward(self, patches: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        off = patches[:, self.channels] - self.mean  # [B, K, h, w]
        far = torch.einsum("bkhw,kj->bjhw", off, self.whiten).square().sum(1).clamp_min(1e-12).sqrt()
        return far, torch.where(counts, far, 0.0).flatten(1).amax(1)


class Inspect(nn.Module):
    """The part of an inspection that is a task: levels to `score` [B] and `map` [B, H, W].

    size: (H, W) of the input. looked: [B, H, W] bool, the pixels that count, all if not given.
    """

    def __init__(self, patches: Patches, scorer: PatchMemory | Gaussian) -> None:
        super().__init__()
        self.patches, self.scorer = patches, scorer

    def forward(
        self, levels: Sequence[Tensor], size: tuple[int, int], looked: Tensor | None = None
    ) -> dict[str, Tensor]:
        found = self.patches(levels)
        if looked is None:
            looked = found.new_ones((len(found), *size), dtype=torch.bool)
        far, score = self.scorer(found, on_grid(looked, found.shape[2:]))
        return {"score": score, "map": smoothed(far, looked)}


def on_grid(looked: Tensor, grid: Sequence[int]) -> Tensor:
    """Which cells of a grid count [B, h, w]: those of which at least half of the pixels [B, H, W] do; where there is no
    such cell, those with any pixel that counts."""
    down, across = (_cells(side, cells, looked.device) for side, cells in zip(looked.shape[1:], grid, strict=True))
    count = down @ looked.float() @ across.T  # whole numbers, so that half is half
    half = 2.0 * count >= down.sum(1)[:, None] * across.sum(1)
    return half | (~half.flatten(1).any(1)[:, None, None] & (count > 0))


def _cells(side: int, cells: int, device: torch.device) -> Tensor:
    """[cells, side] float32: 1 where a pixel of a side lies in a cell, with a part of it at least."""
    cell, pixel = torch.arange(cells, device=device)[:, None], torch.arange(side, device=device)
    return ((pixel + 1) * cells > cell * side).float() * (pixel * cells < (cell + 1) * side)


def smoothed(far: Tensor, looked: Tensor) -> Tensor:
    """Distances [B, h, w] as a map [B, H, W] of the pixels that are `looked` at [B, H, W], 0 elsewhere: interpolated,
    then a Gaussian mean with sigma 4 over the pixels that count."""
    there = looked[:, None].float()
    full = F.interpolate(far[:, None], looked.shape[1:], mode="bilinear") * there
    return (_blurred(full) / _blurred(there).clamp_min(1e-6) * there)[:, 0]


def _blurred(planes: Tensor) -> Tensor:
    """[B, 1, H, W] with zeros around."""
    reach = int(REACH * SIGMA)
    at = torch.arange(-reach, reach + 1, device=planes.device, dtype=planes.dtype)
    kernel = torch.exp(-0.5 * (at / SIGMA).square())
    kernel = kernel / kernel.sum()
    down = F.conv2d(planes, kernel[None, None, :, None], padding=(reach, 0))
    return F.conv2d(down, kernel[None, None, None], padding=(0, reach))


class Conformal(nn.Module):
    """Scores and maps to what a person may believe.

    held [n]: scores of good parts that were held out, ascending. rate: the share of good parts that may be called a
    defect. threshold: of a map, which no more good parts than that reach anywhere.

    Gives `score`, `p` [B], (1 + good parts that score as high) / (n + 1), a conformal p-value, `defect` [B] bool, p <=
    rate, and, where there is a map, `map` and `mask` [B, H, W] bool.
    """

    held: Tensor
    rate: Tensor
    threshold: Tensor

    def __init__(self, held: Tensor, rate: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self.register_buffer("held", held)
        self.register_buffer("rate", rate)
        self.register_buffer("threshold", threshold)

    def forward(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        score = found["score"]
        below = torch.searchsorted(self.held, score.contiguous()).float()
        p = (1.0 + len(self.held) - below) / (1.0 + len(self.held))
        out = {"score": score, "p": p, "defect": p <= self.rate}
        return out | {"map": found["map"], "mask": found["map"] >= self.threshold} if "map" in found else out


class InspectModule(nn.Module):
    """An inspection as one network: pixels [B, C, H, W] of own depth in, named tensors out, see `Conformal`; `looked`
    [B, H, W] limits where it looks; and `pooled` [B, D], the features, by which drift is told. Of a file in tiles the
    score is the largest of theirs."""

    def __init__(self, encoder: Encoder, task: Inspect, calibrate: Conformal) -> None:
        super().__init__()
        self.prepare = Prepare(encoder.geometry)
        self.encoder, self.task, self.calibrate = encoder, task, calibrate

    def forward(self, pixels: Tensor, looked: Tensor | None = None) -> dict[str, Tensor]:
        found = self.raw(pixels, looked)
        told: dict[str, Tensor] = self.calibrate(found)
        return told | {"pooled": found["pooled"]}

    def raw(self, pixels: Tensor, looked: Tensor | None = None) -> dict[str, Tensor]:
        """`score` and `map` before they are calibrated, and `pooled`."""
        features = self.encoder(self.prepare(pixels), levels=True)
        found: dict[str, Tensor] = self.task(features.levels, tuple(pixels.shape[-2:]), looked)
        return found | {"pooled": features.pooled}
