"""Objects of a picture without any label: a spectral cut of its patches, and cuts of what was cut.

Patches that look alike are joined, and the graph is cut where least is lost (normalised cut: Shi and Malik, "Normalized
Cuts and Image Segmentation", IEEE TPAMI 2000), as TokenCut does with features learnt without labels (Wang et al., CVPR
2022). MaskCut (Wang et al., "Cut and Learn for Unsupervised Object Detection", CVPR 2023) cuts again what was left;
here both sides are cut again, so that an object among many others is found too. What stands out most from what is
around it comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import find_objects, label
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

DIRECTIONS = 10  # of most variance, by which patches are compared
POWER = 0.5  # of the variance, that they are divided by: half of the way to white
DEPTH = 3  # cuts of cuts
FEWEST = 12  # patches that are cut
EDGE = 0.75  # of the way from one side of a cut to the other, from where a pixel is inside
LEAST, MOST = 0.002, 0.5  # of the picture, that an object covers
AROUND = 0.25  # of its longer side: how wide the surroundings are that it is compared with
SAME, WITHIN = 0.3, 0.8  # of the union of two boxes, of the smaller one: from there they are of one object
ALIKE = 1e-6  # between cosines, what is rounding only
APART = 1e-5  # weight of two patches that do not look alike, so that the graph hangs together


class Basis(NamedTuple):
    """What patches are compared by: the mean [D] of the collection's, and its directions [D, K], scaled."""

    mean: np.ndarray
    directions: np.ndarray

    def of(self, patches: np.ndarray) -> np.ndarray:
        """Patches [..., D] as [..., K]."""
        return np.asarray((patches - self.mean) @ self.directions)


class Piece(NamedTuple):
    """What may be an object. place: rows and columns of the input. inside [h, w] bool: which of its pixels there.
    clear: how far it stands out."""

    place: tuple[slice, slice]
    inside: np.ndarray
    clear: float


def basis(patches: np.ndarray, directions: int = DIRECTIONS) -> Basis:
    """The basis of a sample of patches [N, D] of a collection."""
    mean = patches.mean(0)
    variance, vectors = np.linalg.eigh(np.cov((patches - mean).T))
    first = np.argsort(-variance)[:directions]
    scale = np.maximum(variance[first], 1e-4 * variance.max() + 1e-12) ** (POWER / 2)
    return Basis(mean, vectors[:, first] / scale)


def objects_in(patches: np.ndarray, counts: np.ndarray, size: tuple[int, int], most: int) -> list[Piece]:
    """The `most` clearest objects, clearest first.

    patches: [h, w, K] of one input, in a `Basis`. counts: [h, w] bool, those that show the picture. size: (height,
    width) of the input in pixels, which the patches span.
    """
    strange = _over(np.linalg.norm(patches, axis=2), size)  # how unlike the usual patch
    shown = _over(counts, size) > 0.5
    found = sorted(_pieces(patches, counts, strange, shown), key=lambda piece: -piece.clear)
    kept: list[Piece] = []
    for piece in found:
        if piece.clear > 0 and not any(same(piece, other) for other in kept):
            kept.append(piece)
        if len(kept) == most:
            break
    return kept


def same(one: Piece, other: Piece) -> bool:
    """Whether their boxes are of one object: they are nearly the same, or one lies in the other."""
    shared, areas = 1.0, [1.0, 1.0]
    for mine, its in zip(one.place, other.place, strict=True):
        shared *= max(0, min(mine.stop, its.stop) - max(mine.start, its.start))
        areas = [area * (side.stop - side.start) for area, side in zip(areas, (mine, its), strict=True)]
    return shared >= min(SAME * (sum(areas) - shared), WITHIN * min(areas))


def cut(patches: np.ndarray) -> np.ndarray:
    """[N] how far each of the patches [N, K] lies to one side of the normalised cut: the second eigenvector.

    Two patches are joined where their cosine is above a threshold of this picture (Otsu, IEEE Trans. Syst. Man Cybern.
    1979). Where all look alike there is no cut: none lies to a side.
    """
    from skimage.filters import threshold_otsu

    units = patches / np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), 1e-12)
    cosine = (units @ units.T).astype(np.float64)
    upper = cosine[np.triu_indices(len(cosine), 1)]
    if np.ptp(upper) < ALIKE:
        return np.zeros(len(cosine))
    some = upper[:: max(1, len(upper) // 50_000)]
    level = threshold_otsu(some) if np.ptp(some) >= ALIKE else (upper.min() + upper.max()) / 2
    weight = np.where(cosine > level, 1.0, APART)
    root = 1.0 / np.sqrt(weight.sum(1))
    joined = root[:, None] * weight * root[None]
    start = np.random.default_rng(0).standard_normal(len(joined))  # the same picture, the same cut
    try:
        _, vectors = eigsh(joined, k=2, which="LA", v0=start, tol=1e-4)
    except ArpackNoConvergence:
        vectors = np.linalg.eigh(joined)[1][:, -2:]
    return np.asarray(vectors[:, 0] * root)


def _pieces(
    patches: np.ndarray, counts: np.ndarray, strange: np.ndarray, shown: np.ndarray, depth: int = DEPTH
) -> Iterator[Piece]:
    """All pieces of a cut of the patches that count, and of the cuts of both of its sides."""
    which = np.flatnonzero(counts)
    if depth == 0 or len(which) < FEWEST:
        return
    along = cut(patches.reshape(-1, patches.shape[2])[which])
    for side in (along > along.mean(), along <= along.mean()):
        if not (1 < side.sum() < len(side) - 1):
            continue
        here, there = np.median(along[side]), np.median(along[~side])
        level = np.zeros(counts.size)
        level[which] = ((along - there) / (here - there)).clip(-1, 2) if here != there else 0.0
        yield from _parts(_over(level.reshape(counts.shape), strange.shape) > EDGE, strange, shown)
        half = np.zeros(counts.size, bool)
        half[which[side]] = True
        yield from _pieces(patches, half.reshape(counts.shape), strange, shown, depth - 1)


def _parts(inside: np.ndarray, strange: np.ndarray, shown: np.ndarray) -> Iterator[Piece]:
    """The parts of a mask [H, W] that hang together, with how clear they are: how much stranger than what is around
    them, how well they fill their box, and a little how large they are."""
    numbers, _ = label(inside & shown)
    for number, place in enumerate(find_objects(numbers), start=1):
        mine = numbers[place] == number
        if not LEAST * shown.sum() <= mine.sum() <= MOST * shown.sum():
            continue
        margin = max(4, int(AROUND * max(mine.shape)))
        wide = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in place)
        around = shown[wide].copy()
        around[
            tuple(slice(side.start - w.start, side.stop - w.start) for side, w in zip(place, wide, strict=True))
        ] &= ~mine
        if around.any():
            more = float(strange[place][mine].mean() - strange[wide][around].mean())
            yield Piece(place, mine, more * float(mine.mean()) * max(mine.shape) ** 0.5)


def _over(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values [h, w] of patches at every pixel of the input, bilinear."""
    values = torch.from_numpy(np.ascontiguousarray(grid, np.float32))[None, None]
    return np.asarray(F.interpolate(values, size, mode="bilinear", align_corners=False)[0, 0].numpy())
