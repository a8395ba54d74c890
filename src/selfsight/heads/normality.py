"""What normal patches are: fitted to good parts in folds, so that each part is judged by what did not learn from it.

Each fold gives a memory its candidates. What is remembered is chosen from those of all folds together, and, without a
fold, anew from those of the others: a memory of the same size that knows nothing of it. The sums of a Gaussian are kept
by fold, likewise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfsight.heads.coreset import k_centre
from selfsight.heads.inspect_modules import Gaussian, PatchMemory, on_grid, smoothed

MEMORY = 2_000  # patches that are remembered
CANDIDATES = 200_000  # patches that they are chosen from
ROUGHLY = 4  # times as many as are remembered, that the folds choose first
SHARE = 0.1  # of the candidates, that is remembered at most
CHANNELS = 256  # that a Gaussian looks at, at most
SHRINK = 0.01  # of the mean variance, added to each channel


class Look(NamedTuple):
    """One input of a part: its patches [D, h, w] in half precision, and the pixels [H, W] bool that are looked at."""

    patches: Tensor
    looked: Tensor

    @property
    def counts(self) -> Tensor:
        """Which of the patches count, [h, w] bool."""
        return on_grid(self.looked[None], self.patches.shape[1:])[0]


Part = list[Look]  # an item: one look, or its tiles


class Memories:
    """Memories of normal patches, by the fold that they leave out; None leaves out none.

    Patches are chosen twice: each fold chooses its own, then all choose among these. It finds nearly what one choice
    from everything would, in a fraction of the time (Mirzasoleiman et al., "Distributed Submodular Maximization",
    NeurIPS 2013).
    """

    setting = ""

    def __init__(self, folds: int, parts: int, seed: int, size: int = MEMORY) -> None:
        self.folds, self.seed, self.size = folds, seed, size
        self.each = max(1, CANDIDATES // parts)  # candidates of one part
        self.kept: list[list[Tensor]] = [[] for _ in range(folds)]
        self.rows, self.of = torch.empty(0), torch.empty(0)  # [N, D] and the fold of each [N]
        self.made: dict[int | None, PatchMemory] = {}

    def add(self, part: Part, fold: int, number: int) -> None:
        """Learn from a part of a fold. number: of the part, from which its patches are drawn."""
        rows = torch.cat([look.patches[:, look.counts].T for look in part])
        if len(rows) > self.each:
            drawn = np.random.default_rng([self.seed, number]).choice(len(rows), self.each, replace=False)
            rows = rows[torch.from_numpy(np.sort(drawn))]
        self.kept[fold].append(rows.half())

    def done(self) -> None:
        """Let each fold choose its candidates."""
        total = sum(len(rows) for fold in self.kept for rows in fold)
        self.size = min(self.size, max(self.folds, int(SHARE * total)))
        share = ROUGHLY * self.size / max(1, total)
        chosen = []
        for fold, rows in enumerate(self.kept):
            if rows:  # else none of its parts can be read
                here = torch.cat(rows)
                chosen.append(taken(here, math.ceil(share * len(here)), self.seed + fold))
        self.rows = torch.cat(chosen)
        folds = [fold for fold, rows in enumerate(self.kept) if rows]
        self.of = torch.tensor(folds).repeat_interleave(torch.tensor([len(rows) for rows in chosen]))
        self.kept = []

    def scorer(self, without: int | None = None) -> PatchMemory:
        """The memory without a fold."""
        if without not in self.made:
            rows = self.rows[(self.of != (-1 if without is None else without)).to(self.rows.device)]
            self.made[without] = PatchMemory(taken(rows, self.size, self.seed).float())
        return self.made[without]


def taken(rows: Tensor, count: int, seed: int) -> Tensor:
    """Rows [count, D] that stand for all rows [N, D]."""
    return rows[torch.from_numpy(k_centre(rows, count, seed)).to(rows.device)]


@dataclass
class Sums:
    """Of the patches of a fold: how many at each place [P], their sum [P, K], and the sum of their squares [K, K]."""

    count: Tensor
    total: Tensor
    squares: Tensor

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.count + other.count, self.total + other.total, self.squares + other.squares)


@dataclass
class Gaussians:
    """Gaussians of normal patches, by the fold that they leave out.

    placed: whether each place of the grid has a mean of its own, which suits parts that always lie the same. The
    covariance is that of all places together, about their means: 200 parts are too few for one of each place.
    """

    folds: int
    seed: int
    placed: bool
    sums: dict[int, Sums] = field(default_factory=dict)
    channels: Tensor | None = None
    grid: tuple[int, int] = (1, 1)
    device: torch.device | str = "cpu"

    def add(self, part: Part, fold: int, number: int) -> None:
        """Learn from a part of a fold."""
        for look in part:
            patches, counts = look.patches.cpu(), look.counts.cpu()  # not every device has float64
            self.device = look.patches.device
            if self.channels is None:
                rng = np.random.default_rng(self.seed)
                drawn = rng.choice(len(patches), min(CHANNELS, len(patches)), replace=False)
                self.channels = torch.from_numpy(np.sort(drawn))
                self.grid = (patches.shape[1], patches.shape[2]) if self.placed else (1, 1)
            rows = patches[self.channels].double() * counts  # [K, h, w], 0 where nothing counts
            flat, there = rows.flatten(1).T, counts.flatten().double()  # [P, K], [P]
            squares = flat.T @ flat
            if not self.placed:
                flat, there = flat.sum(0, keepdim=True), there.sum()[None]
            new = Sums(there, flat, squares)
            self.sums[fold] = self.sums[fold] + new if fold in self.sums else new

    def done(self) -> None:
        """Nothing is left to be done."""

    def scorer(self, without: int | None = None) -> Gaussian:
        """The Gaussian without a fold."""
        parts = [sums for fold, sums in self.sums.items() if fold != without]
        all_ = parts[0]
        for other in parts[1:]:
            all_ = all_ + other
        mean = all_.total / all_.count.clamp_min(1.0)[:, None]  # [P, K]
        freedom = (all_.count.sum() - (all_.count > 0).sum()).clamp_min(1.0)
        covariance = (all_.squares - (mean * all_.count[:, None]).T @ mean) / freedom
        ridge = (SHRINK * covariance.diagonal().mean()).clamp_min(1e-12)
        covariance = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64, device=mean.device)
        whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T  # W W^T = covariance^-1
        assert self.channels is not None
        return Gaussian(self.channels, mean.T.unflatten(1, self.grid).float(), whiten.float()).to(self.device)


Normality = Memories | Gaussians


@torch.inference_mode()
def judged(scorer: PatchMemory | Gaussian, part: Part) -> tuple[float, float]:
    """(score, highest value of the map) of a part: the largest of its inputs."""
    scores, peaks = [], []
    for look in part:
        far, score = scorer(look.patches[None].float(), look.counts[None])
        scores.append(float(score[0]))
        peaks.append(float(smoothed(far, look.looked[None]).max()))
    return max(scores), max(peaks)


def likelihood(model: Gaussians, parts: Iterator[tuple[int, Part]]) -> float:
    """Mean log-likelihood of the patches of (fold, part) pairs under the Gaussian that was made without their fold, up
    to a constant that is the same for all models of the same channels."""
    scorers: dict[int, tuple[Gaussian, float]] = {}
    total, count = 0.0, 0
    for fold, part in parts:
        if fold not in scorers:
            made = model.scorer(fold)
            scorers[fold] = made, float(made.whiten.cpu().double().diagonal().log().sum())
        scorer, log_scale = scorers[fold]
        for look in part:
            far, _ = scorer(look.patches[None].float(), look.counts[None])
            here = far[0][look.counts].cpu().double()
            total += float((log_scale - 0.5 * here.square()).sum())
            count += len(here)
    return total / max(1, count)
