"""Objects in a mask: from centres and boundaries by a watershed, measured, and compared with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt, find_objects, label

from selfsight.data.annotations.rle import Runs, encode_part

CORNERS = np.ones((3, 3), int)  # pixels that touch at a corner hang together
NEAR = 1.5  # px, within which two objects have a boundary
OVERLAP = 0.5  # intersection over union from which an object is found


class Thing(NamedTuple):
    """An object: the place of its class, its probability, box (pixel i covers [i, i + 1)), area in px, centroid (x, y)
    and the mean grey of the picture there, in [0, 1]."""

    label: int
    score: float
    box: tuple[int, int, int, int]
    area: int
    centroid: tuple[float, float]
    intensity: float
    runs: Runs


def targets(objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(centre, boundary) [H, W] float32 of objects [H, W], from 1: how far a pixel is from the outside of its object,
    as part of what its innermost one is; and 1 where another object is near."""
    centre, boundary = (np.zeros(objects.shape, np.float32) for _ in range(2))
    for number, place in enumerate(find_objects(objects), 1):
        if place is None:
            continue
        around = tuple(slice(max(0, side.start - 2), side.stop + 2) for side in place)
        mine = objects[around] == number
        depth = distance_transform_edt(np.pad(mine, 1))[1:-1, 1:-1]
        centre[around][mine] = (depth / depth.max())[mine]
        others = (objects[around] > 0) & ~mine
        if others.any():
            boundary[around][mine & (distance_transform_edt(~others) <= NEAR)] = 1.0
    return centre, boundary


def apart(
    mask: np.ndarray, centre: np.ndarray | None, boundary: np.ndarray | None, threshold: float, least: int
) -> np.ndarray:
    """Objects [H, W] int32, from 1, of a mask [H, W] of classes, 0 the background.

    With centre and boundary [H, W]: a watershed from where the one, without the other, is above the threshold; what
    holds no such place is an object too. Without: the parts of each class that hang together. Objects of fewer than
    `least` pixels are left out.
    """
    from skimage.segmentation import watershed

    found = np.zeros(mask.shape, np.int32)
    if centre is None or boundary is None:
        for name in np.unique(mask[mask > 0]):
            parts, _ = label(mask == name, CORNERS)
            np.copyto(found, parts + found.max(), where=parts > 0)
    else:
        inside = mask > 0
        depth = -centre.astype(np.float32) * (1.0 - boundary)
        seeds, count = label((-depth > threshold) & inside)
        parts, most = label(inside, CORNERS)
        lonely = np.ones(most + 1, bool)
        lonely[parts[seeds > 0]] = False
        lonely[0] = False
        np.copyto(seeds, parts + count, where=lonely[parts])
        del parts
        found = watershed(depth, seeds, mask=inside).astype(np.int32, copy=False)
    return renumbered(found, least)


def renumbered(objects: np.ndarray, least: int = 1) -> np.ndarray:
    """Objects of `least` pixels or more, numbered from 1 without a gap."""
    counts = np.bincount(objects.reshape(-1))
    keep = counts >= max(1, least)
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    return np.asarray(numbers[objects])


def things_of(objects: np.ndarray, mask: np.ndarray, probabilities: np.ndarray, grey: np.ndarray) -> list[Thing]:
    """The objects [H, W], each with the class that most of its pixels have in `mask` [H, W]; its score is the mean of
    the probabilities [K, H, W] of that class. grey: [H, W] in [0, 1], or uint8."""
    found, white = [], 255 if grey.dtype == np.uint8 else 1
    for number, place in enumerate(find_objects(objects), 1):
        if place is None:
            continue
        mine = objects[place] == number
        kind = int(np.bincount(mask[place][mine]).argmax())
        rows, columns = place
        down, across = (np.count_nonzero(mine, axis=axis) for axis in (1, 0))
        area = int(down.sum())
        y, x = (float(each @ np.arange(len(each))) / area for each in (down, across))
        found.append(
            Thing(
                kind,
                float(probabilities[kind][place][mine].mean(dtype=np.float64)),
                (columns.start, rows.start, columns.stop, rows.stop),
                area,
                (x + columns.start + 0.5, y + rows.start + 0.5),
                float(grey[place][mine].mean(dtype=np.float64)) / white,
                encode_part(mine, rows.start, columns.start, *objects.shape),
            )
        )
    return found


# -- beside the truth --


@dataclass(frozen=True)
class Matched:
    """The objects of one picture beside the true ones. labels, scores [N], and whether each is right [N]: it covers a
    true one of its class, with at least half of their union, that no surer one covers. true: labels of the true ones
    [M]."""

    labels: np.ndarray
    scores: np.ndarray
    right: np.ndarray
    true: np.ndarray


def matched(
    found: np.ndarray, labels: Sequence[int], scores: Sequence[float], true: np.ndarray, classes: np.ndarray
) -> Matched:
    """Objects [H, W] with their labels and scores, numbered alike, beside the true ones [H, W] in masks of classes."""
    kinds = _commonest(true, classes)
    labels_, scores_ = np.asarray(labels, np.int64), np.asarray(scores, np.float64)
    right = np.zeros(len(labels_), bool)
    if len(labels_) and len(kinds):
        both = np.zeros((found.max() + 1, true.max() + 1), np.int64)
        np.add.at(both, (found.reshape(-1), true.reshape(-1)), 1)
        shared = both[1:, 1:]
        union = np.bincount(found.reshape(-1), minlength=len(labels_) + 1)[1:, None]
        union = union + np.bincount(true.reshape(-1), minlength=len(kinds) + 1)[None, 1:] - shared
        covers = (shared >= OVERLAP * union) & (labels_[:, None] == kinds)
        quality = np.where(covers, shared / union, 0.0)
        taken = np.zeros(len(kinds), bool)
        for place in np.argsort(-scores_, kind="stable"):
            free = np.where(taken, 0.0, quality[place])
            if free.max() > 0:
                right[place] = taken[free.argmax()] = True
    return Matched(labels_, scores_, right, kinds)


def _commonest(objects: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """[N] the class that most pixels of each object have, in one pass."""
    inside = objects > 0
    most = int(classes.max(initial=0)) + 1
    flat = (objects[inside].astype(np.int64) - 1) * most + classes[inside].clip(0)
    counts = np.bincount(flat, minlength=int(objects.max(initial=0)) * most)
    return np.asarray(counts.reshape(-1, most).argmax(1))


def ap50(pictures: Sequence[Matched]) -> float | None:
    """Average precision of the objects of pictures, the mean over classes that occur: the area under the precision that
    is reached at each recall or above (as COCO's, at every recall); None where there is no true object."""
    labels = np.concatenate([one.labels for one in pictures])
    scores, right = (np.concatenate([getattr(one, name) for one in pictures]) for name in ("scores", "right"))
    true = np.concatenate([one.true for one in pictures])
    areas = []
    for kind in np.unique(true):
        mine = labels == kind
        hits = right[mine][np.argsort(-scores[mine], kind="stable")]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        areas.append(float(best[hits].sum() / (true == kind).sum()))
    return float(np.mean(areas)) if areas else None


def count_error(pictures: Sequence[Matched]) -> float:
    """By how many objects a picture's count is off, the mean."""
    return float(np.mean([abs(len(one.labels) - len(one.true)) for one in pictures]))
