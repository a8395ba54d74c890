"""Where the pixels of a file lie in an encoder's input, and the way back: for pixels, points, boxes, masks, scores.

Coordinates are continuous, pixel i covers [i, i + 1); those of a file are of the upright picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from selfsight.data.annotations.masks import IGNORE
from selfsight.data.pixels import resize

# Of a tile's side, at least so much lies in its neighbour: anything narrower than this is whole in one of them, as a
# detector needs it. An eighth would cost 1.3 times the pixels of the picture, a quarter costs 1.8 times.
OVERLAP = 0.25
STRIP = 256  # rows of a file that are interpolated at a time


@dataclass(frozen=True)
class Placement:
    """One input of an encoder: a rectangle of a file, brought to `valid` pixels at the top left of the input.

    file: (H, W) of the whole file.
    source: the rectangle (x0, y0, x1, y1) in pixels of the file.
    size: (h, w) of the input.
    valid: (h, w) of the part of the input that shows the source. The rest, to the right and below, is padding.
    """

    file: tuple[int, int]
    source: tuple[int, int, int, int]
    size: tuple[int, int]
    valid: tuple[int, int]

    @property
    def affine(self) -> np.ndarray:
        """[2, 3] float64: (x, y, 1) of the file to (x, y) of the input."""
        (scale_x, scale_y), (x0, y0) = self._scale(), self.source[:2]
        return np.array([[scale_x, 0.0, -scale_x * x0], [0.0, scale_y, -scale_y * y0]])

    def pixels_to_input(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [H, W, C] of the file as the input [h, w, C], resized as `pixels.resize` does.

        The padding repeats the last row and column: this needs no mean, and makes no edge that is not in the
        picture. Raises `ValueError` for pixels of another size than the file's.
        """
        self._check(pixels)
        x0, y0, x1, y1 = self.source
        shown = resize(pixels[y0:y1, x0:x1], *self.valid)
        below, right = self.size[0] - self.valid[0], self.size[1] - self.valid[1]
        return np.ascontiguousarray(np.pad(shown, ((0, below), (0, right), (0, 0)), mode="edge"))

    def mask_to_input(self, mask: np.ndarray) -> np.ndarray:
        """Class ids [H, W] of the file as [h, w] int32: each pixel takes the class that is at its centre in the file.

        The padding is `IGNORE`. Raises `ValueError` for a mask of another size than the file's.
        """
        self._check(mask)
        x0, y0, x1, y1 = self.source
        rows, columns = _centres(self.valid[0], y1 - y0), _centres(self.valid[1], x1 - x0)
        carried = np.full(self.size, IGNORE, dtype=np.int32)
        carried[: self.valid[0], : self.valid[1]] = mask[np.ix_(rows + y0, columns + x0)]
        return carried

    def points_to_input(self, points: np.ndarray) -> np.ndarray:
        """Points [N, 2] (x, y) of the file in the input, float64; those outside the source land outside `valid`."""
        moved: np.ndarray = (_rows(points, 2) - self.source[:2]) * self._scale()
        return moved

    def points_to_file(self, points: np.ndarray) -> np.ndarray:
        """Points [N, 2] (x, y) of the input in the file, float64."""
        moved: np.ndarray = _rows(points, 2) / self._scale() + self.source[:2]
        return moved

    def boxes_to_input(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes [N, 4] (x0, y0, x1, y1) of the file, clipped to the source, in the input.

        Returns the boxes [M, 4] of which something is left, which of the N they are [M], and how much of the area of
        each is left [M], above 0 and at most 1. A box without an area is not among them.
        """
        boxes = _rows(boxes, 4)
        x0, y0, x1, y1 = self.source
        clipped = boxes.clip((x0, y0, x0, y0), (x1, y1, x1, y1))
        whole, seen = _areas(boxes), _areas(clipped)
        left = np.flatnonzero((whole > 0) & (seen > 0))
        moved = self.points_to_input(clipped[left].reshape(-1, 2)).reshape(-1, 4)
        return moved, left, seen[left] / whole[left]

    def boxes_to_file(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] of the input in the file, float64; they are not clipped."""
        return self.points_to_file(_rows(boxes, 4).reshape(-1, 2)).reshape(-1, 4)

    def _scale(self) -> tuple[float, float]:
        """(x, y): pixels of the input to one of the file."""
        x0, y0, x1, y1 = self.source
        return self.valid[1] / (x1 - x0), self.valid[0] / (y1 - y0)

    def _check(self, picture: np.ndarray) -> None:
        if picture.shape[:2] != self.file:
            raise ValueError(f"a picture of (height, width) {picture.shape[:2]} where the file has {self.file}")


def strips_to_file(scores: np.ndarray, place: Placement) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows of the file, scores [..., rows, w] float64 of the source there) of scores [..., h', w'] that span an input,
    some rows at a time, so that a large file takes little memory.

    Scores may be coarser than the input, as a grid of patches is. They are interpolated linearly between the centres of
    what they belong to, never with the padding.
    """
    _, y0, _, y1 = place.source
    across = _interpolated(np.asarray(scores, dtype=np.float64), place, 1)
    for top in range(y0, y1, STRIP):
        rows = slice(top, min(top + STRIP, y1))
        yield rows, _interpolated(across, place, 0, slice(rows.start - y0, rows.stop - y0))


def mask_to_file(masks: Sequence[np.ndarray], placements: Sequence[Placement]) -> np.ndarray:
    """Class ids [h', w'] that span the inputs of a file's placements, as int32 [H, W] of the file.

    Each pixel of the file takes the class that is at its centre in the input; where tiles overlap, in the one whose
    centre is nearest, as what is far from an edge was seen with the most around it.
    """
    height, width = placements[0].file
    merged = np.full((height, width), IGNORE, dtype=np.int32)
    nearest = np.full((height, width), np.inf)
    for mask, place in zip(masks, placements, strict=True):
        x0, y0, x1, y1 = place.source
        here = np.s_[y0:y1, x0:x1]
        rows, columns = (_span(mask.shape[axis], place, axis).astype(np.int64) for axis in (0, 1))
        y, x = (np.arange(side) + 0.5 - side / 2 for side in (y1 - y0, x1 - x0))
        distance = y[:, None] ** 2 + x**2
        nearer = distance < nearest[here]
        merged[here][nearer] = mask[np.ix_(rows, columns)][nearer]
        nearest[here][nearer] = distance[nearer]
    return merged


def squash(height: int, width: int, size: int, stride: int) -> list[Placement]:
    """The whole file on size x size, whatever its aspect, as `timm`'s "squash" transform; no padding."""
    return [Placement((height, width), (0, 0, width, height), (size, size), (size, size))]


def fit(height: int, width: int, size: int, stride: int) -> list[Placement]:
    """The whole file, its longer side brought to `size`, the sides of the input padded to a multiple of `stride`.

    Small files are enlarged, as `squash` does: what an encoder has learnt to see in a picture of `size` should not
    depend on how many pixels the file has. The shorter side is rounded to whole pixels, so that its scale may differ
    from the other by half a pixel of the input.
    """
    longer = max(height, width)
    valid = _side(height, size, longer), _side(width, size, longer)
    return [Placement((height, width), (0, 0, width, height), _padded(valid, stride), valid)]


def tiles(height: int, width: int, size: int, stride: int) -> list[Placement]:
    """Tiles of size x size at the scale of the file, row by row, `OVERLAP` or more in the next.

    They begin at multiples of `stride`, so that the grid of an encoder goes on from tile to tile as it would in the
    whole file; but for the last ones, which end with the file. A file no larger than a tile is placed as `fit` does it;
    where one side alone is shorter than a tile, so are the tiles. Their sides are padded to a multiple of `stride`.
    """
    if max(height, width) <= size:
        return fit(height, width, size, stride)
    h, w = min(height, size), min(width, size)
    padded = _padded((h, w), stride)
    return [
        Placement((height, width), (x, y, x + w, y + h), padded, (h, w))
        for y in _starts(height, h, stride)
        for x in _starts(width, w, stride)
    ]


# The rules of a geometry: (height, width of the file, size, stride) to its placements.
RULES: dict[str, Callable[[int, int, int, int], list[Placement]]] = {"squash": squash, "fit": fit, "tiles": tiles}


def _side(side: int, size: int, longer: int) -> int:
    """side * size / longer, rounded, at least 1."""
    return max(1, (2 * side * size + longer) // (2 * longer))


def _padded(valid: tuple[int, int], stride: int) -> tuple[int, int]:
    height, width = (-(-side // stride) * stride for side in valid)
    return height, width


def _starts(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles begin along a side, the first at 0, the last at length - tile."""
    step = max(1, int(tile * (1 - OVERLAP)))
    step -= step % stride if step > stride else 0
    return [*range(0, length - tile, step), length - tile]


def _rows(values: np.ndarray, width: int) -> np.ndarray:
    """[N, width] float64, also of an empty list."""
    return np.asarray(values, dtype=np.float64).reshape(-1, width)


def _areas(boxes: np.ndarray) -> np.ndarray:
    """[N]; 0 for a box whose edges are in the wrong order."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas: np.ndarray = width.clip(min=0) * height.clip(min=0)
    return areas


def _centres(count: int, length: int) -> np.ndarray:
    """Which of `length` pixels each of `count` that share their extent has its centre in; in integers, thus exact."""
    return (2 * np.arange(count) + 1) * length // (2 * count)


def _span(cells: int, place: Placement, axis: int) -> np.ndarray:
    """Where the centres of the source's pixels lie along a map of `cells` that spans the whole input."""
    x0, y0, x1, y1 = place.source
    length = (y1 - y0, x1 - x0)[axis]
    at: np.ndarray = (2 * np.arange(length) + 1) * (place.valid[axis] * cells) / (2 * length * place.size[axis])
    return at


def _interpolated(values: np.ndarray, place: Placement, axis: int, some: slice = slice(None)) -> np.ndarray:
    """`values` [..., h', w'] that span the input, at the centres of the source's pixels along `axis` 0 or 1; `some`
    of them."""
    cells = values.shape[axis - 2]
    last = -(-place.valid[axis] * cells // place.size[axis]) - 1  # the cells beyond show nothing but padding
    at = (_span(cells, place, axis) - 0.5).clip(0, last)[some]
    lower = at.astype(np.int64)
    part = (at - lower).reshape((-1, 1) if axis == 0 else (-1,))
    upper = np.minimum(lower + 1, last)
    mixed: np.ndarray = values.take(lower, axis - 2) * (1 - part) + values.take(upper, axis - 2) * part
    return mixed
