"""Where in pictures something is that looks like a marked part of one: patches of an encoder, compared by cosine.

What is wanted is the mean patch in the box, less the usual patch of the collection: else what all pictures have in
common hides what is marked. A picture is as like it as the patch that is most like it. Patches are those of inspection
(`inspect_modules.Patches`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from scipy.ndimage import label
from torch import Tensor

from selfsight.data.collection import Collection
from selfsight.data.placements import Placement, strips_to_file
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.heads.inspect import takes
from selfsight.heads.normality import Look
from selfsight.heads.placed import place
from selfsight.heads.view import View

LARGER = 2  # times the encoder's own size, at which pictures are looked at, so that small things have a patch
SMALLEST = 0.75  # of that size: smaller pictures are looked at in the encoder's own
SAMPLE = 32  # items whose mean patch is the usual one

Edges = tuple[float, float, float, float]  # x0, y0, x1, y1


class Spot(NamedTuple):
    """Where a picture is most like what is wanted.

    likeness: of its best patch, a cosine. box: around that patch, in pixels of the upright file. heat: the likeness of
    every patch, [h, w]. at: the input that these patches span.
    """

    likeness: float
    box: Edges
    heat: np.ndarray
    at: Placement

    def map(self) -> np.ndarray:
        """The likeness at every pixel of the file, [H, W]."""
        return np.concatenate([rows for _, rows in strips_to_file(self.heat, self.at)])

    @property
    def level(self) -> float:
        """The likeness from which patches around the best one belong to the box."""
        return float((self.heat.max() + np.median(self.heat)) / 2)


class Wanted:
    """What a box marks in a picture, to be looked for in others."""

    def __init__(self, encoder: Encoder, items: Collection, rows: pa.Table, pixels: np.ndarray, box: Edges) -> None:
        """rows: of the items, which say how large pictures are and what is usual. pixels [H, W, C]: of the marked
        picture, of own depth, as the encoder's geometry reads it. box: in its pixels."""
        self.view = view_of(encoder, rows)
        self.view.measure(items, rows)
        some = rows.take(pa.array(spread(len(rows), SAMPLE)))
        means = [self._unit(part[0]).flatten(1).mean(1) for _, part in self.view.parts(items, some, {}, "Measuring")]
        marked = place(0, pixels, self.view.encoder.geometry, self.view.stride, None)
        patches = self._unit(self.view.part(marked)[0])
        inside = torch.from_numpy(cells_in(box, marked.placements[0], patches.shape[1:]))
        self.usual = torch.stack(means).mean(0) if means else torch.zeros(len(patches))
        self.patch = F.normalize(patches[:, inside].mean(1) - self.usual, dim=0)

    def spots(self, items: Collection, rows: pa.Table, bad: dict[int, str]) -> dict[int, Spot]:
        """{number of the row: spot} of each of `rows`; the reasons of those that cannot be read go into `bad`."""
        geometry, found = self.view.encoder.geometry, {}
        sizes = list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
        for number, part in self.view.parts(items, rows, bad, "Looking"):
            [at] = geometry.placements(*sizes[number], self.view.stride)
            heat = torch.einsum("d,dhw->hw", self.patch, F.normalize(self._centred(part[0]), dim=0)).cpu().numpy()
            found[number] = spot(np.where(part[0].counts.cpu().numpy(), heat, heat.min()), at)
        return found

    def _unit(self, look: Look) -> Tensor:
        return F.normalize(look.patches.float().cpu(), dim=0)

    def _centred(self, look: Look) -> Tensor:
        return self._unit(look) - self.usual[:, None, None]


def view_of(encoder: Encoder, rows: pa.Table) -> View:
    """How pictures are looked at: whole, with their aspect, at twice the encoder's own size where most have that many
    pixels; squashed to its own size where it takes no other."""
    size = encoder.geometry.size
    longer = np.median(np.maximum(rows["width"].to_numpy(), rows["height"].to_numpy()))
    if not takes(encoder, LARGER * size):
        return View(encoder, size, "squash", None)
    return View(encoder, LARGER * size if longer >= SMALLEST * LARGER * size else size, "fit", None)


def cells_in(box: Edges, at: Placement, grid: tuple[int, ...]) -> np.ndarray:
    """Which cells of a `grid` (h, w) that spans an input have their centre in a box of the file, [h, w] bool; of a box
    without one, the cell that its own centre is in."""
    x0, y0, x1, y1 = at.points_to_input(np.reshape(box, (2, 2))).ravel() / np.tile(np.divide(at.size, grid)[::-1], 2)
    rows, columns = (np.arange(side) + 0.5 for side in grid)
    inside: np.ndarray = ((rows >= y0) & (rows <= y1))[:, None] & ((columns >= x0) & (columns <= x1))
    if not inside.any():
        inside[min(int((y0 + y1) / 2), grid[0] - 1), min(int((x0 + x1) / 2), grid[1] - 1)] = True
    return inside


def spot(heat: np.ndarray, at: Placement) -> Spot:
    """The spot of a `heat` [h, w]: the box holds the patches that touch the best one and lie above half of the way from
    the median to it."""
    found = Spot(float(heat.max()), (0.0, 0.0, 0.0, 0.0), heat, at)
    numbers, _ = label(heat >= found.level)
    rows, columns = np.nonzero(numbers == numbers[np.unravel_index(heat.argmax(), heat.shape)])
    cell = np.divide(at.size, heat.shape)
    corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) * cell[::-1]
    height, width = at.file
    (x0, y0), (x1, y1) = at.points_to_file(corners).clip(0, (width, height)).tolist()
    return found._replace(box=(x0, y0, x1, y1))
