"""Whether two small pictures show the same: one is laid over the other, turned, shrunk and shifted, and compared in
detail.

Coarsely first, over the eight flips and quarter turns, sizes and places (normalised cross-correlation); then the best
of these is moved until it fits (Lucas and Kanade, "An iterative image registration technique", IJCAI 1981, with gain
and offset of brightness). What counts is how well fine structure agrees, place by place: two similar parts agree in
their outlines, copies also in their grain.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COARSE = 16  # pixels a side, at which all turns, sizes and places are tried
SIDES = (16, 14, 12, 11)  # of these, that the smaller picture may have
MIDDLE = 32  # pixels a side, at which most pairs are told apart
CONTRAST = 50.0  # standard deviation of grey that each picture is brought to
NOISE = 2.0  # of these greys: structure weaker than that says little
DETAIL = 1 / 16  # of a side: what is coarser than that is left out
UNLIKE = 0.5  # agreement at the middle size, below which nothing finer is looked at
AT_ONCE = 64  # larger tensors are given back to the system and zeroed anew each time, which doubles the time


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How well pictures agree [K], from about 0 for two unlike ones to 1 for the same, once laid over each other.

    first, second: grey pictures [K, S, S] of any type, of any brightness and contrast.
    """
    found = [
        _agreement(_even(first[start : start + AT_ONCE]), _even(second[start : start + AT_ONCE])).numpy()
        for start in range(0, len(first), AT_ONCE)
    ]
    return np.concatenate([np.empty(0, np.float32), *found])


def _agreement(one: Tensor, other: Tensor) -> Tensor:
    inside, way = _best_place(_small(one, COARSE), _small(other, COARSE))
    swapped, back = _best_place(_small(other, COARSE), _small(one, COARSE))
    swap = swapped > inside  # the first lies inside the second
    way = torch.where(swap[:, None, None], back, way)
    large = torch.where(swap[:, None, None], other, one)
    small = torch.where(swap[:, None, None], one, other)
    size = min(MIDDLE, one.shape[-1])
    big, little = _small(large, size), _small(small, size)
    way = _fitted(big, little, way, 6)
    found = _alike(big, little, way)
    if size < one.shape[-1] and (fine := found > UNLIKE).any():
        closer = _fitted(large[fine], small[fine], way[fine], 4)
        found[fine] = _alike(large[fine], small[fine], closer)
    return found


def _even(pictures: np.ndarray) -> Tensor:
    """[K, S, S] of one contrast."""
    grey = torch.from_numpy(np.ascontiguousarray(pictures)).float()
    grey = grey - grey.mean((1, 2), keepdim=True)
    return grey * (CONTRAST / grey.std((1, 2), keepdim=True).clamp_min(1e-6))


def _small(pictures: Tensor, size: int) -> Tensor:
    return F.interpolate(pictures[:, None], (size, size), mode="area")[:, 0]


def _turned(pictures: Tensor) -> Tensor:
    """[K, 8, S, S]: each of the flips and quarter turns."""
    turns = [torch.rot90(pictures, quarter, (1, 2)) for quarter in range(4)]
    return torch.stack([*turns, *(one.flip(2) for one in turns)], 1)


def _turns() -> Tensor:
    """[8, 2, 2]: where `_turned` puts a point (x, y), from the middle."""
    corner = torch.zeros(2, 3, 3)
    corner[0, 1, 2] = corner[1, 2, 1] = 1.0  # one step right, one step down
    places = _turned(corner).flatten(2).argmax(2)  # [2, 8]
    return torch.stack([places % 3 - 1, places // 3 - 1], 1).permute(2, 1, 0).float()


def _best_place(large: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
    """(correlation [K], way [K, 2, 3]) of the turn, size and place at which `small` [K, S, S] fits best into `large`.

    A way takes a point (x, y, 1) of the small picture to one of the large, both from -1 to 1 over a side.
    """
    side, turned = large.shape[-1], _turned(small)
    best = torch.full((len(large),), -torch.inf)
    way = torch.zeros(len(large), 2, 3)
    for height in SIDES:
        for width in SIDES:
            shrunk = F.interpolate(turned, (height, width), mode="area").flatten(2)
            windows = F.unfold(large[:, None], (height, width))  # [K, h w, places]
            found, at = (_unit(shrunk, 2) @ _unit(windows, 1)).flatten(1).max(1)  # [K, 8 places]
            turn, place = at // windows.shape[2], at % windows.shape[2]
            down, right = place // (side - width + 1), place % (side - width + 1)
            middle = torch.stack([right + width / 2, down + height / 2], 1) / side * 2 - 1
            scale = torch.tensor([width / side, height / side])
            here = torch.cat([scale[:, None] * _turns()[turn], middle[:, :, None]], 2)
            better = found > best
            best = torch.where(better, found, best)
            way = torch.where(better[:, None, None], here, way)
    return best, way


def _unit(values: Tensor, dim: int) -> Tensor:
    return F.normalize(values - values.mean(dim, keepdim=True), dim=dim)


def _laid(pictures: Tensor, way: Tensor) -> tuple[Tensor, Tensor]:
    """(`pictures` [K, C, S, S] seen where the small picture lies, which of it is inside [K, S, S])."""
    grid = F.affine_grid(way, [len(pictures), 1, *pictures.shape[2:]], align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False), (grid.abs() <= 1).all(-1).float()


def _fitted(large: Tensor, small: Tensor, way: Tensor, steps: int) -> Tensor:
    """The ways [K, 2, 3] after `steps` of Gauss and Newton, which move, stretch and brighten to fit."""
    count, side = len(large), large.shape[-1]
    slopes = torch.zeros(count, 3, side, side)
    slopes[:, 0] = large
    slopes[:, 1, :, 1:-1] = (large[:, :, 2:] - large[:, :, :-2]) * (side / 4)
    slopes[:, 2, 1:-1] = (large[:, 2:] - large[:, :-2]) * (side / 4)
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    x, y = line.expand(side, side), line[:, None].expand(side, side)
    for _ in range(steps):
        seen, inside = _laid(slopes, way)
        value, across, down = seen.unbind(1)
        moves = [across * x, across * y, across, down * x, down * y, down, value, torch.ones_like(value)]
        terms = torch.stack(moves, -1).flatten(1, 2)  # [K, S S, 8]
        weighted = (terms * inside.flatten(1)[..., None]).transpose(1, 2)
        normal = weighted @ terms
        normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * 1e-3 + 1e-4)
        solved = torch.linalg.solve(normal, weighted @ small.flatten(1)[..., None])[..., 0]
        gain = solved[:, 6:7]
        step = torch.where(gain.abs() > 0.1, solved[:, :6] / gain, torch.zeros(1)).clamp(-0.1, 0.1)
        way = way + step.reshape(count, 2, 3)
    return way


def _alike(large: Tensor, small: Tensor, way: Tensor) -> Tensor:
    """[K]: the mean correlation of fine structure around each place, weighted by how much of it there is."""
    seen, inside = _laid(large[:, None], way)
    known = _blurred(inside).clamp_min(1e-6)

    def around(values: Tensor) -> Tensor:
        return _blurred(values * inside) / known

    one, other = seen[:, 0] - around(seen[:, 0]), small - around(small)
    power = (around(one * one) * around(other * other)).clamp_min(0.0).sqrt()
    weight = inside * power.sqrt().clamp_max(4 * NOISE)
    return (around(one * other) / (power + NOISE**2) * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-6)


def _blurred(pictures: Tensor) -> Tensor:
    width = DETAIL * pictures.shape[-1]
    reach = min(int(3 * width + 0.5), pictures.shape[-1] - 1)
    bell = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * width**2))
    bell = bell / bell.sum()
    wide = F.pad(pictures[:, None], [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(wide, bell[None, None, None]), bell[None, None, :, None])[:, 0]
