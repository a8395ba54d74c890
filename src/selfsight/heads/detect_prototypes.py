"""Objects found by what regions of each class look like beside the background, for few boxes.

A window is described by 3 x 3 means of the encoder's maps and by those of what lies above, below, left and right of it,
which tell a whole defect of an even texture from a part of one. Each class has a prototype, the mean of the windows
that lie on its boxes, and so have several kinds of background; which of them a window is nearest to, in the metric of
how windows of one kind vary, says what it is, and a linear map of the same brings its edges to those of the object
(after Zhang et al., "Detect Everything with Few Examples", CoRL 2024, which compares regions with prototypes and moves
edges).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.data.spread import spread
from selfsight.heads.detect_fit import Piece
from selfsight.heads.detect_modules import Readout, grid_stride
from selfsight.heads.detect_objects import overlaps

KINDS = 24  # directions of the maps that are kept
SIDE = 3  # parts of a window along each side
AROUND = SIDE + 2  # the same with what lies beside it
SIZES = 8  # of windows, at most
GROUNDS = 12  # kinds of background
ON, OFF = 0.6, 0.4  # overlap from which a window lies on an object, and below which it does not
BEST = 0.9  # of the best overlap of an object with any window, which is enough too
SHRUNK = 0.1  # of the covariance is that of its diagonal
WINDOWS = 24_000  # of the background, and as many on objects, at most: what is learnt from
LOOKED = 128  # inputs, at most, that these are of
RARE = 0.02  # how often a window is of a class, before it is looked at


class Windows(nn.Module):
    """Levels [B, C_l, h_l, w_l] to descriptions [B, D, h, w] of the windows of one size around each place.

    channels, strides: of the levels. mean: [sum of C_l]. axes: [R, sum of C_l], by which standardised levels, brought
    to the grid, are mapped. D: the `regions` of R maps, and of one that says how much lies outside the picture.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int], mean: Tensor, axes: Tensor) -> None:
        super().__init__()
        self.channels, self.stride = tuple(channels), grid_stride(strides)
        self.finer = strides[0] // self.stride
        self.register_buffer("mean", mean)
        self.register_buffer("axes", axes)

    def maps(self, levels: Sequence[Tensor]) -> Tensor:
        """[B, R, h, w]."""
        total: Tensor | None = None
        size = [side * self.finer for side in levels[0].shape[-2:]]
        for level, mean, axes in zip(levels, self.mean.split(self.channels), self.axes.split(self.channels, 1),
                                     strict=True):  # fmt: skip
            own = F.conv2d(level.float() - mean[:, None, None], axes[:, :, None, None])
            own = F.interpolate(own, size, mode="bilinear")
            total = own if total is None else total + own
        assert total is not None
        return total

    def parts(self, maps: Tensor, part: tuple[int, int]) -> Tensor:
        """[B, R + 1, h + 4 height, w + 4 width]: the mean of `part` (height, width) cells around each place, and around
        those up to two parts outside; outside, every map is 0, its mean. The last says how much lies outside."""
        high, wide = part
        beside = (SIDE - 1) * wide, (SIDE - 1) * high
        left, upper = beside[0] + (wide - 1) // 2, beside[1] + (high - 1) // 2
        right, lower = beside[0] + wide // 2, beside[1] + high // 2
        around = left, right, upper, lower
        outside = F.pad(torch.zeros_like(maps[:, :1]), around, value=1.0)
        return F.avg_pool2d(torch.cat([F.pad(maps, around), outside], 1), (high, wide), 1)

    def described(self, maps: Tensor, part: tuple[int, int]) -> Tensor:
        """[B, D, h w] of windows of 3 x 3 such parts."""
        parts = F.unfold(self.parts(maps, part), AROUND, dilation=part).unflatten(1, (-1, AROUND**2))
        return torch.einsum("brpn,dp->brdn", parts, regions().flatten(1)).flatten(1, 2)


def regions() -> Tensor:
    """[13, 5, 5]: what describes a window, as weights of 5 x 5 parts: each of the 3 x 3 within it, and the means of the
    three above, below, left and right."""
    within = torch.eye(SIDE**2).unflatten(1, (SIDE, SIDE))
    beside = torch.zeros(4, AROUND, AROUND)
    beside[0, 0, 1:-1] = beside[1, -1, 1:-1] = beside[2, 1:-1, 0] = beside[3, 1:-1, -1] = 1 / SIDE
    return torch.cat([F.pad(within, (1, 1, 1, 1)), beside])


class Prototypes(Readout):
    """Prototypes of regions, over windows of several sizes.

    sizes: [S, 2] (height, width) of a part of the windows, in cells. weight, bias: [K + G, D], [K + G], the
    prototypes of classes and of kinds of background as linear scores. moves: [4, D + 1], how far the edges lie from
    those of the window, as part of its sides.
    """

    weight: Tensor
    bias: Tensor
    moves: Tensor
    sizes: Tensor

    def __init__(
        self, windows: Windows, classes: int, sizes: Tensor, weight: Tensor, bias: Tensor, moves: Tensor
    ) -> None:
        super().__init__()
        self.windows, self.classes, self.stride = windows, classes, windows.stride
        self.parts = [(high, wide) for high, wide in sizes.tolist()]
        for name, value in (("sizes", sizes), ("weight", weight), ("bias", bias), ("moves", moves)):
            self.register_buffer(name, value)

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        maps = self.windows.maps(levels)
        heats, edges = [], []
        around = regions().to(maps.device)
        linear = torch.cat([self.weight, self.moves[:, :-1]]).unflatten(1, (-1, len(around)))  # [K + G + 4, R + 1, 13]
        kernel = (linear @ around.flatten(1)).unflatten(2, (AROUND, AROUND))
        offset = torch.cat([self.bias, self.moves[:, -1]])
        for high, wide in self.parts:
            told = F.conv2d(self.windows.parts(maps, (high, wide)), kernel, offset, dilation=(high, wide))
            scores, moves = told[:, : len(self.bias)], told[:, len(self.bias) :]
            heats.append(log_odds(scores, self.classes))
            half = torch.tensor([wide, high, wide, high], device=maps.device)[:, None, None] * (SIDE * self.stride / 2)
            edges.append(half * (1 + 2 * moves).clamp_min(0.1))
        heat, best = torch.stack(heats).max(0)  # [B, K, h, w], over sizes
        surest = best.gather(1, heat.argmax(1, keepdim=True))  # [B, 1, h, w]
        return {"heat": heat, "edges": torch.stack(edges).gather(0, surest.expand(-1, 4, -1, -1)[None])[0]}


def log_odds(scores: Tensor, classes: int) -> Tensor:
    """Log-odds [B, K, h, w] of each class, of scores [B, K + G, h, w] whose exponentials are to one another as how
    likely each is."""
    rest = [torch.cat([scores[:, :kind], scores[:, kind + 1 :]], 1).logsumexp(1) for kind in range(classes)]
    return scores[:, :classes] - torch.stack(rest, 1)


class Drawn(NamedTuple):
    """Windows of labelled inputs: descriptions [N, D], kinds [N] (-1: background) and moves [N, 4] of their edges."""

    described: Tensor
    kinds: np.ndarray
    moves: np.ndarray


def fit_prototypes(
    channels: Sequence[int], strides: Sequence[int], pieces: Sequence[Piece], classes: int, mean: Tensor, scale: Tensor,
    seed: int,
) -> Prototypes:  # fmt: skip
    """The prototypes of classes and backgrounds, in closed form, of at most `LOOKED` of the inputs, spread evenly."""
    from sklearn.cluster import KMeans

    pieces = [pieces[place] for place in spread(len(pieces), LOOKED).tolist()]
    share = torch.cat([torch.full((count,), count**-0.5) for count in channels])  # levels weigh the same
    windows = Windows(channels, strides, mean, torch.eye(sum(channels)) * (share / scale))
    windows.axes = principal(windows, pieces) @ windows.axes
    sizes = sizes_of(pieces, windows.stride)
    drawn = drawn_windows(windows, pieces, sizes, seed)
    x, kinds = drawn.described.double().numpy(), drawn.kinds
    ground = x[kinds < 0]
    groups = KMeans(min(GROUNDS, max(1, len(ground) // 20)), n_init=1, random_state=seed).fit(ground)
    centres = [x[kinds == kind].mean(0) if (kinds == kind).any() else np.zeros(x.shape[1]) for kind in range(classes)]
    means = np.stack([*centres, *groups.cluster_centers_])
    place = kinds.copy()
    place[kinds < 0] = classes + groups.labels_
    rest = x - means[place]
    weigh = np.where(kinds < 0, 0.5 / max(1, (kinds < 0).sum()), 0.5 / max(1, (kinds >= 0).sum()))
    covariance = (rest * weigh[:, None]).T @ rest
    covariance = (1 - SHRUNK) * covariance + SHRUNK * np.diag(np.diag(covariance) + 1e-3)
    weight = np.linalg.solve(covariance, means.T).T
    prior = np.array([RARE / classes] * classes + ((1 - RARE) * np.bincount(groups.labels_) / len(ground)).tolist())
    bias = np.log(np.maximum(prior, 1e-9)) - 0.5 * (weight * means).sum(1)
    bias[:classes][[not (kinds == kind).any() for kind in range(classes)]] = -1e3
    on = kinds >= 0
    ones = np.concatenate([x[on], np.ones((on.sum(), 1))], 1)
    ridge = np.diag([*(1e-3 + np.diag(covariance) * on.sum() * SHRUNK), 1e-3])
    moves = np.linalg.solve(ones.T @ ones + ridge, ones.T @ drawn.moves[on]).T
    return Prototypes(windows, classes, sizes, *(torch.from_numpy(each).float() for each in (weight, bias, moves)))


@torch.no_grad()
def principal(windows: Windows, pieces: Sequence[Piece]) -> Tensor:
    """[R, sum of C_l]: the directions along which the maps vary most, each scaled to vary by 1."""
    every = [windows.maps([level[None] for level in piece.levels])[0].flatten(1)[:, ::7] for piece in pieces]
    flat = torch.cat(every, 1)
    centred = flat - flat.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.T / centred.shape[1])
    some = min(KINDS, len(values))
    axes: Tensor = (vectors[:, -some:] / values[-some:].clamp_min(1e-9).sqrt()).T
    return axes


def sizes_of(pieces: Sequence[Piece], stride: int) -> Tensor:
    """[S, 2] (height, width) of a part of the windows, in cells: sides of boxes, one by one those by which the overlap
    of boxes with the window nearest in size grows most, each class counting alike."""
    kinds = torch.cat([piece.kinds for piece in pieces])
    sides = torch.cat([piece.boxes[:, 2:] - piece.boxes[:, :2] for piece in pieces]).flip(1) / (SIDE * stride)
    some = sides.round().clamp_min(1).unique(dim=0)
    shared = torch.minimum(sides[:, None], some).prod(2)
    overlap = shared / (sides.prod(1)[:, None] + some.prod(1) - shared)  # [N, M], of boxes with a common centre
    weigh = 1.0 / torch.bincount(kinds)[kinds, None]
    best, chosen = torch.zeros(len(sides), 1), []
    for _ in range(min(SIZES, len(some))):
        chosen.append(int((weigh * torch.maximum(best, overlap)).sum(0).argmax()))
        best = torch.maximum(best, overlap[:, chosen[-1:]])
    picked: Tensor = some[sorted(set(chosen))].int()
    return picked


@torch.no_grad()
def drawn_windows(windows: Windows, pieces: Sequence[Piece], sizes: Tensor, seed: int) -> Drawn:
    """Windows on objects, and some of those on the background."""
    rng = np.random.default_rng(seed)
    described, kinds, moved = [], [], []
    most = max(1, WINDOWS // (len(pieces) * len(sizes)))  # of an input and a size
    for piece in pieces:
        maps = windows.maps([level[None] for level in piece.levels])
        boxes = piece.boxes.double().numpy()
        grids = [window_boxes(maps.shape[2:], (high, wide), windows.stride) for high, wide in sizes.tolist()]
        shares = [overlaps(at, boxes) for at in grids]
        enough = np.minimum(ON, BEST * np.stack([each.max(0) for each in shares]).max(0))  # of each object
        for (high, wide), at, share in zip(sizes.tolist(), grids, shares, strict=True):
            every = windows.described(maps, (high, wide))[0].T  # [h w, D]
            unsure = overlaps(at, piece.unsure.double().numpy()).max(1, initial=0.0) > 0
            nearest = np.where(share >= enough, share, 0.0)
            on = np.flatnonzero((nearest.max(1, initial=0.0) > 0) & ~unsure)
            off = np.flatnonzero((share.max(1, initial=0.0) < OFF) & ~unsure)
            on, off = (rng.choice(some, min(len(some), most), replace=False) for some in (on, off))
            best = nearest[on].argmax(1) if len(on) else np.zeros(0, np.int64)
            described.append(every[torch.from_numpy(np.concatenate([on, off]))])
            kinds.append(np.concatenate([piece.kinds.numpy()[best], np.full(len(off), -1)]))
            sides = np.tile(at[on, 2:] - at[on, :2], 2)
            moved += [(boxes[best] - at[on]) * (-1, -1, 1, 1) / sides, np.zeros((len(off), 4))]
    return Drawn(torch.cat(described), np.concatenate(kinds).astype(np.int64), np.concatenate(moved))


def window_boxes(shape: Sequence[int], part: tuple[int, int], stride: int) -> np.ndarray:
    """[h w, 4] the windows around each place of a grid, in pixels of the input."""
    y, x = ((np.arange(side) + 0.5) * stride for side in shape)
    high, wide = (SIDE * stride * side / 2 for side in part)
    across, down = np.meshgrid(x, y)
    return np.stack([across - wide, down - high, across + wide, down + high], 2).reshape(-1, 4)
