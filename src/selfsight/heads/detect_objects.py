"""Objects from what a detector tells of inputs: gathered over tiles, with one box for each object, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from selfsight.data.boxed import Truth
from selfsight.data.placements import Placement

SAME = 0.5  # overlap, less how far apart the centres are, from which two boxes of a class are of one object
LEAST = 0.01  # of a probability, below which nothing is kept
RIGHT = 0.5  # intersection over union from which an object is found


class Found(NamedTuple):
    """Objects of a picture, the surest first. boxes: [N, 4] in pixels of the file. kinds: [N] places of classes.
    scores: [N] probabilities, or log-odds before they are calibrated."""

    boxes: np.ndarray
    kinds: np.ndarray
    scores: np.ndarray

    def at(self, some: np.ndarray) -> Found:
        """Some of them."""
        return Found(self.boxes[some], self.kinds[some], self.scores[some])


def gathered(
    answers: Sequence[Mapping[str, np.ndarray]], placements: Sequence[Placement], least: float = LEAST
) -> Found:
    """The objects of a file from the answers to its inputs: `scores`, `labels` [T] and `boxes` [T, 4] of each.

    An object is taken from the tile in which its centre lies farthest inside, as it is cut by the edges of others.
    """
    boxes, kinds, scores = [], [], []
    for which, (told, place) in enumerate(zip(answers, placements, strict=True)):
        sure = np.flatnonzero(told["scores"] >= least)
        moved = place.boxes_to_file(told["boxes"][sure])
        moved = moved.clip(0, (place.file[1], place.file[0]) * 2)
        centres = (moved[:, :2] + moved[:, 2:]) / 2
        own = (_owner(centres, placements) == which) & ((moved[:, 2:] - moved[:, :2]).min(1, initial=np.inf) > 0)
        boxes.append(moved[own])
        kinds.append(told["labels"][sure][own].astype(np.int64))
        scores.append(told["scores"][sure][own].astype(np.float64))
    found = Found(np.concatenate(boxes), np.concatenate(kinds), np.concatenate(scores))
    order = np.argsort(-found.scores, kind="stable")
    found = found.at(order)
    return found.at(kept(found))


def _owner(points: np.ndarray, placements: Sequence[Placement]) -> np.ndarray:
    """[N]: of the inputs that hold a point (x, y) of the file, the one with the nearest centre."""
    owner, nearest = np.zeros(len(points), np.int64), np.full(len(points), np.inf)
    for which, place in enumerate(placements):
        x0, y0, x1, y1 = place.source
        inside = ((points >= (x0, y0)) & (points <= (x1, y1))).all(1)
        distance = ((points - ((x0 + x1) / 2, (y0 + y1) / 2)) ** 2).sum(1)
        nearer = inside & (distance < nearest)
        owner[nearer], nearest[nearer] = which, distance[nearer]
    return owner


def kept(found: Found) -> np.ndarray:
    """[M] places of one box for each object, of objects in the order of their scores.

    A box goes where a surer one of its class overlaps it by more than `SAME`, less the squared distance of their
    centres as part of that across both: so objects that touch, whose centres are apart, stay (Zheng et al.,
    "Distance-IoU Loss", AAAI 2020, equation 12).
    """
    alive, some = np.ones(len(found.boxes), bool), []
    for place in range(len(found.boxes)):
        if not alive[place]:
            continue
        some.append(place)
        rest = np.flatnonzero(alive[place + 1 :] & (found.kinds[place + 1 :] == found.kinds[place])) + place + 1
        one, others = found.boxes[place], found.boxes[rest]
        around = np.maximum(one[2:], others[:, 2:]) - np.minimum(one[:2], others[:, :2])
        apart = (one[:2] + one[2:] - others[:, :2] - others[:, 2:]) / 2
        penalty = (apart**2).sum(1) / (around**2).sum(1)
        alive[rest[overlaps(one[None], others)[0] - penalty > SAME]] = False
    return np.array(some, np.int64)


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[N, M] intersection over union of boxes [N, 4] and [M, 4] that have an area."""
    shared = _shared(one, other)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return np.asarray(shared / (areas[0][:, None] + areas[1] - shared))


def _shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    low, high = np.maximum(one[:, None, :2], other[:, :2]), np.minimum(one[:, None, 2:], other[:, 2:])
    return np.asarray((high - low).clip(0).prod(2))


def matched(found: Found, truth: Truth) -> np.ndarray:
    """[N] 1.0 where an object covers a true one of its class, by `RIGHT`, that no surer one covers; 0.0 where none;
    nan where half of it lies in one that is unsure, and so is neither."""
    right = np.zeros(len(found.boxes))
    sure = ~truth.unsure
    quality = overlaps(found.boxes, truth.boxes[sure])
    quality = np.where(found.kinds[:, None] == truth.kinds[sure], quality, 0.0)
    free = np.ones(quality.shape[1], bool)
    for place in range(len(found.boxes)):
        best = np.where(free, quality[place], 0.0)
        if best.size and best.max() >= RIGHT:
            right[place], free[best.argmax()] = 1.0, False
    if truth.unsure.any():
        areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1)
        within = _shared(found.boxes, truth.boxes[truth.unsure]).max(1) >= 0.5 * areas
        right[within & (right == 0)] = np.nan
    return right


def counted(found: Found, thresholds: np.ndarray) -> np.ndarray:
    """[K] objects of each class that reach its threshold."""
    sure = found.scores >= thresholds[found.kinds]
    return np.bincount(found.kinds[sure], minlength=len(thresholds))
