"""Jigsaw: predict the order in which the nine tiles of an image were laid out.

Noroozi and Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles", ECCV 2016,
sections 3 and 4. Each tile has a random place in its cell, so that edges do not continue from tile to tile. Each is
normalised by its own mean and deviation, so that brightness and contrast do not give its place away; these are taken
over all channels together, as colours are worth learning. Each tile passes the encoder by itself. The loss is
-log p(permutation | features of the tiles in that order), over K permutations that are far apart (algorithm 1, here
without its random first choice).
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from selfsight.distributed import all_mean, gather
from selfsight.encoders.encoder import Encoder
from selfsight.errors import SelfsightError
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import Loss, Objective, projector, register
from selfsight.objectives.patches import only_group, only_view
from selfsight.objectives.pretext import arrangement, cut, encode_parts, guess, part_size, resize, up_to
from selfsight.objectives.shared import MEASURED
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan

TILES = 9
DRAWS = 1 + 2 * TILES


@functools.cache
def far_apart(count: int, tiles: int = TILES) -> Tensor:
    """`count` permutations [K, tiles] that differ in many places (Hamming distance), always the same ones.

    The first leaves all in place. Each next one is the furthest from its nearest neighbour among those chosen. Ties are
    broken by the distance to all of these together, then by lexical order. Raises `SelfsightError` for an impossible
    `count`.
    """
    if not 2 <= count <= math.factorial(tiles):
        raise SelfsightError(f"there are 2 to {math.factorial(tiles)} permutations to choose, not {count}.")
    every = np.array(list(itertools.permutations(range(tiles))), dtype=np.int8).T.copy()  # [tiles, tiles!]
    nearest = np.full(every.shape[1], tiles, dtype=np.int8)
    total = np.zeros(every.shape[1], dtype=np.int32)
    chosen = [0]
    while len(chosen) < count:
        distance = np.zeros_like(nearest)
        for places in every:
            distance += places != places[chosen[-1]]
        np.minimum(nearest, distance, out=nearest)
        total += distance
        furthest = np.flatnonzero(nearest == nearest.max())
        chosen.append(int(furthest[total[furthest].argmax()]))
    return torch.from_numpy(every[:, chosen].T.astype(np.int64))


def tiles_of(images: Tensor, draws: Tensor, fill: float = 64 / 75) -> Tensor:
    """The 3 x 3 tiles [B, 9, C, t, t] of `images` [B, C, S, S], in reading order.

    A tile fills `fill` of the side of its cell, at a place that `draws` [B, 18] choose.
    """
    cell = images.shape[-1] // 3
    side = int(cell * fill)
    margin = (images.shape[-1] - 3 * cell) // 2
    corner = margin + cell * torch.arange(3, device=images.device)
    shift = up_to(draws, cell - side + 1)  # [B, 18]
    top, left = shift[:, :TILES] + corner.repeat_interleave(3), shift[:, TILES:] + corner.repeat(3)
    return cut(images, top, left, side)


def normalised(tiles: Tensor) -> Tensor:
    """Each tile [..., C, h, w] with mean 0 and deviation 1 (0 where all its values are one)."""
    variance, mean = torch.var_mean(tiles, dim=(-3, -2, -1), keepdim=True, unbiased=False)
    return (tiles - mean) * (variance + 1e-3).rsqrt()


def shuffled(tiles: Tensor, order: Tensor) -> Tensor:
    """Tiles [B, 9, ...] in the `order` [B, 9]: place k shows tile order[k]."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order]


@register("jigsaw")
class Jigsaw(Objective):
    """permutations: how many there are to tell apart.
    tile: side, in pixels, to which each tile is resized for the encoder.
    width: of a tile's features before the tiles are put together.
    hidden: width of the layer after that.
    """

    family = "classic pretext"
    when = (
        "Images of objects or scenes with parts in typical places. Of little use for textures, where any order looks "
        "right; lens errors or a vignette can give places away."
    )
    resized = "tile"
    rules: ClassVar[dict[str, Rule]] = {
        "views": arrangement(DRAWS, grey=0.3),
        "objective_options": lambda facts, chosen: (
            {"permutations": 64, "tile": part_size(chosen, 3), "width": 128, "hidden": 512},
            "64 permutations instead of 1000, for runs of minutes; a tile keeps 64 of 75 pixels of its cell's side "
            "(Noroozi and Favaro, ECCV 2016) and is enlarged no more than the encoder needs, as small tiles are cheap "
            f"({MEASURED})",
        ),
    }
    orders: Tensor

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        permutations: int = 64,
        tile: int = 32,
        width: int = 128,
        hidden: int = 512,
    ) -> None:
        super().__init__(encoder, views)
        only_group(views, DRAWS)
        self.tile = tile
        self.register_buffer("orders", far_apart(permutations), persistent=False)
        self.neck = nn.Sequential(nn.Linear(encoder.dim, width), nn.ReLU())
        self.head = projector([TILES * width, hidden, permutations])

    def puzzle(self, view: View, draws: Tensor) -> tuple[Tensor, Tensor]:
        """(tiles [B, 9, C, tile, tile] as they are laid out, number of the permutation [B])."""
        label = up_to(draws[:, 0], len(self.orders))
        tiles = normalised(resize(tiles_of(view.pixels, draws[:, 1:DRAWS]), self.tile))
        return shuffled(tiles, self.orders[label]), label

    def forward(self, views: list[View], progress: float) -> Loss:
        tiles, label = self.puzzle(*only_view(views))
        z = encode_parts(self.encoder, tiles.unbind(1))  # [9, B, D]
        together = self.neck(z).transpose(0, 1).flatten(1)  # [B, 9 width]
        loss, accuracy = all_mean(guess(self.head(together), label))
        return Loss(loss, {"cross_entropy": loss.detach(), "accuracy": accuracy.detach()}, gather(z.detach()[:1]))
