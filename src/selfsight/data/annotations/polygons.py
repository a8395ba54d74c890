"""Polygons and pixels. Pixel i covers [i, i + 1) and belongs to a polygon if its centre does.

A centre that lies on an edge belongs to what is to its right or below, so polygons that share an edge share no pixel
and leave none between them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from selfsight.data.annotations.rle import Part

_PAIRS = 4_000_000  # of edges compared at a time


def filled(polygons: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """[H, W] bool, the pixels in any of the polygons, each [N, 2] (x, y)."""
    inside = np.zeros((height, width), dtype=bool)
    part = filled_part(polygons, height, width)
    inside[part.place] = part.mask
    return inside


def filled_part(polygons: Iterable[np.ndarray], height: int, width: int) -> Part:
    """The pixels in any of the polygons, without the mask of the whole image."""
    every = [np.asarray(polygon, dtype=np.float64) for polygon in polygons]
    if not sum(map(len, every)):
        return Part(np.zeros((0, 0), bool), 0, 0)
    points = np.concatenate(every)
    x0, y0 = np.floor(points.min(0)).clip(0, (width, height)).astype(int).tolist()
    x1, y1 = np.ceil(points.max(0)).clip(0, (width, height)).astype(int).tolist()
    inside = np.zeros((y1 - y0, x1 - x0), dtype=bool)
    for polygon in every:
        inside |= _filled(polygon, (y0, y1), (x0, x1))
    return Part(inside, y0, x0)


def _filled(points: np.ndarray, down: tuple[int, int], across: tuple[int, int]) -> np.ndarray:
    """The pixels of some rows and columns from whose centre a line to the left crosses the polygon an odd number of
    times."""
    (top, height), (left, width) = down, across
    turns = np.zeros((height - top, width - left + 1), dtype=np.int32)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        if y0 > y1:  # the same edge gives the same numbers in both directions
            x0, y0, x1, y1 = x1, y1, x0, y0
        first, last = (int(np.ceil(np.clip(y, -1, height + 1) - 0.5)) for y in (y0, y1))
        rows = np.arange(max(first, top), min(last, height))
        x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
        columns = np.ceil(np.clip(x, 0, width + 1) - 0.5).astype(np.int64)
        np.add.at(turns, (rows - top, columns.clip(left, width) - left), 1)
    odd: np.ndarray = np.cumsum(turns[:, :-1], axis=1) % 2 == 1
    return odd


def crosses_itself(points: np.ndarray) -> bool:
    """Whether two edges of a polygon [N, 2] cross. Edges that only touch do not."""
    start = np.asarray(points, dtype=np.float64)
    end = np.roll(start, -1, axis=0)
    step = max(1, _PAIRS // max(1, len(start)))
    for first in range(0, len(start), step):
        a, b = start[first : first + step, None], end[first : first + step, None]  # [n, 1, 2]
        apart = (_side(a, b, start) * _side(a, b, end) < 0) & (_side(start, end, a) * _side(start, end, b) < 0)
        if apart.any():
            return True
    return False


def _side(a: np.ndarray, b: np.ndarray, p: np.ndarray) -> np.ndarray:
    """On which side of the line from a to b the point p lies: -1, 0 or 1."""
    cross = (b[..., 0] - a[..., 0]) * (p[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (p[..., 0] - a[..., 0])
    signs: np.ndarray = np.sign(cross)
    return signs


def traced(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons [N, 2] along the edges of the pixels of a mask [H, W] bool, which `filled` turns back into it.

    A part with holes or branches becomes several polygons that share edges.
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    runs = []  # [x0, x1) of each row; a part is cut into pieces of rows that follow on each other without a branch
    open_runs: list[tuple[int, int, list[tuple[int, int, int]]]] = []
    for y in range(1, padded.shape[0]):
        edges = np.flatnonzero(np.diff(padded[y].astype(np.int8)))
        now = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        following: list[tuple[int, int, list[tuple[int, int, int]]]] = []
        for x0, x1 in now:
            above = [run for run in open_runs if run[0] < x1 and x0 < run[1]]
            if len(above) == 1 and sum(above[0][0] < b and a < above[0][1] for a, b in now) == 1:
                rows = above[0][2]
            else:
                rows = []
                runs.append(rows)
            rows.append((y - 1, x0, x1))
            following.append((x0, x1, rows))
        open_runs = following
    return [_around(rows) for rows in runs]


def _around(rows: list[tuple[int, int, int]]) -> np.ndarray:
    """The polygon around runs (y, x0, x1), one a row, of rows that follow on each other."""
    right = [point for y, _, x1 in rows for point in ((x1, y), (x1, y + 1))]
    left = [point for y, x0, _ in reversed(rows) for point in ((x0, y + 1), (x0, y))]
    points = np.array(right + left, dtype=np.float64)
    before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
    straight = _side(before, after, points) == 0
    return points[~straight] if (~straight).sum() >= 3 else points
