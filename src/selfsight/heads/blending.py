"""The maps of a file's inputs as one of the file, as they come: tiles without seams, in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from selfsight.data.placements import Placement, strips_to_file

MARGIN = (
    1 / 16
)  # of a tile, next to another: there an encoder saw the edge as much as the picture, so it counts nothing
LITTLE = 1e-6  # what it does count, where no other tile lies


class Blend:
    """Maps of a file's inputs, given in the order of its `placements`, as one map of the file.

    Where tiles overlap each counts the less the nearer its edge is, as it saw less around, so that there is no seam. Of
    the file no more rows are held than those of a row of tiles.
    """

    def __init__(self, placements: Sequence[Placement]) -> None:
        self.placements = list(placements)
        self._next = 0
        self._top = 0  # the first row of the file that is held
        self._total = np.zeros((0, 0, 0), np.float32)  # [..., rows, W]
        self._weight = np.zeros((0, 0), np.float32)  # [rows, W]

    def add(self, scores: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Take the map [..., h', w'] that spans the next input. Gives (rows, map [..., rows, W] float32) of what no
        later input changes, from the top of the file to its end: nan where no input lies. To be gone through."""
        place = self.placements[self._next]
        self._next += 1
        if len(self.placements) == 1:
            for rows, found in strips_to_file(scores, place):
                yield rows, found.astype(np.float32)
            return
        x0, y0, x1, y1 = place.source
        if not len(self._weight):
            self._top = y0
        self._hold(scores.shape[:-2], y1)
        down, across = (_weights(place, axis) for axis in (0, 1))
        for rows, found in strips_to_file(scores, place):
            here = np.s_[rows.start - self._top : rows.stop - self._top, x0:x1]
            weight = np.outer(down[rows.start - y0 : rows.stop - y0], across)
            self._total[..., *here] += found * weight
            self._weight[here] += weight
        last = self._next == len(self.placements)
        yield from self._done(place.file[0] if last else self.placements[self._next].source[1])

    def _hold(self, leading: tuple[int, ...], stop: int) -> None:
        """Make room for the rows up to `stop`."""
        width, have = self.placements[0].file[1], self._weight.shape[0]
        more = stop - self._top - have
        if more > 0:
            total, weight = self._total, self._weight
            self._total = np.zeros((*leading, have + more, width), np.float32)
            self._weight = np.zeros((have + more, width), np.float32)
            if have:
                self._total[..., :have, :], self._weight[:have] = total, weight

    def _done(self, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
        """The rows above `stop`, which are then no longer held."""
        count = min(stop - self._top, len(self._weight))
        if count <= 0:
            return
        with np.errstate(invalid="ignore"):  # no input may lie there
            yield slice(self._top, self._top + count), self._total[..., :count, :] / self._weight[:count]
        self._total, self._weight = self._total[..., count:, :].copy(), self._weight[count:].copy()
        self._top += count


def _weights(place: Placement, axis: int) -> np.ndarray:
    """How much the pixels of a tile count along an axis: the less the nearer an edge is that is not one of the file."""
    start, stop = place.source[1 - axis], place.source[3 - axis]
    at, side = np.arange(stop - start) + 0.5, stop - start
    before = at if start > 0 else np.full(side, float(side))
    after = side - at if stop < place.file[axis] else np.full(side, float(side))
    return np.asarray((np.minimum(before, after) / side - MARGIN).clip(LITTLE))
