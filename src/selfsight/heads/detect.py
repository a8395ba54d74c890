"""Detect: which objects are where, learnt from few boxes, or many, on the maps of a frozen encoder.

What was not asked for is chosen by the boxes at hand: the size of the input by how small objects are, and by
cross-validation, with groups on one side, the method, the calibration and how sure an object of each class must be.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfsight.data.boxed import Boxed
from selfsight.data.collection import Collection
from selfsight.data.geometry import Rule
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.detect_fit import uncalibrated
from selfsight.heads.detect_further import self_trained, tuned
from selfsight.heads.detect_learnt import COVERAGE, MANY, UNKNOWN, Held, Learnt, Work, fitted, judged, said_whole
from selfsight.heads.detect_metrics import ap50_of, check_installed
from selfsight.heads.detect_objects import Found
from selfsight.heads.detect_scenes import BoxSight
from selfsight.heads.inspect import FACTORS, LARGE, longer_side, takes
from selfsight.heads.segment import groups_of
from selfsight.training.recipe import Budget

METHODS = ("prototypes", "centres")
TUNED = "finetune"
FOLDS = 3
EVEN = 0.01  # of AP50
FEW_HELD = 20  # held-out pictures, below which a note says that they are few
MIRRORED = 40  # pictures, up to which their mirror images are learnt from too
CELLS = 2  # of the grid, that the usual object of the smallest class is to be wide and high
MOST_ENLARGED = 3.0  # times a file's longer side, above which no input size is chosen


@dataclass(frozen=True)
class Wish:
    """What a user asked of a detector: method, size (px of the input) and rule are chosen if None. seed: of folds, and
    of what is learnt. budget, folder, started: of a tuning, see `detect_further.tuned`."""

    method: str | None = None
    size: int | None = None
    rule: Rule | None = None
    seed: int = 0
    budget: Budget | None = None
    folder: Path | None = None
    started: float | None = None


def learn(encoder: Encoder, items: Collection, boxed: Boxed, wish: Wish, pool: Boxed | None = None) -> Learnt:
    """Fit a detector to the boxes of a collection. pool: pictures whose objects are guessed and learnt from too, if
    given. Raises `SelfsightError` for a wish that cannot be had."""
    check_installed()
    notes = list(boxed.notes)
    size, rule, told = size_for(encoder, boxed, wish)
    notes += [told] if told else []
    sight = BoxSight(encoder, size, rule)
    mirror = len(boxed) <= MIRRORED
    room = sight.room(boxed, 1 + mirror)
    if len(boxed) > room:
        notes.append(f"it learnt from {room:,} of {len(boxed):,} pictures, spread evenly: more do not fit in memory")
        boxed = boxed.take(spread(len(boxed), room))
    bad: dict[str, str] = {}
    scenes = sight.scenes(items, boxed, mirror, bad, "Looking at pictures")
    if not scenes:
        raise DataError(f"No picture of {boxed.labels.location} with a box can be read ({next(iter(bad.values()))}).")
    work = Work(items, sight, scenes, boxed, wish.seed)
    learnt = frozen(work, wish, notes, bad)
    if wish.method == TUNED:
        return tuned(work, learnt, wish.budget, wish.folder, wish.started)
    return learnt if pool is None else self_trained(work, learnt, pool)


def frozen(work: Work, wish: Wish, notes: list[str], bad: dict[str, str]) -> Learnt:
    """A detector on the encoder as it is, by the method that is asked for, or that finds more in held-out pictures."""
    asked = None if wish.method == TUNED else wish.method
    boxed, tried = work.boxed, dict[str, float]()
    held, method = None, asked or METHODS[-1]
    if groups_of(boxed.labels) > 1 and len(work.scenes) > 1:
        held, method = chosen(work, asked, tried)
    if held is not None and len(held.found) < FEW_HELD:
        notes.append(f"{len(held.found)} pictures are few to measure on: figures and their intervals flatter")
    if held is None:
        why = "one picture only" if len(work.scenes) == 1 else "all boxes are of one group"
        notes.append(f"{why}, so nothing could be held out: how good it is, and how sure it may be, is not known")
    task = fitted(method, work, work.scenes, "Learning from boxes")
    return judged(Learnt(
        work.sight, method, task, uncalibrated(len(boxed.names)), boxed, held, np.full(len(boxed.names), UNKNOWN),
        np.full(len(boxed.names), np.nan), COVERAGE, tried=tried, bad=bad, notes=notes,
    ))  # fmt: skip


def size_for(encoder: Encoder, boxed: Boxed, wish: Wish) -> tuple[int, Rule, str]:
    """(size of the input, the rule of the geometry, a note or ""): the smallest of the sizes at which the usual object
    of the smallest class is `CELLS` cells of the grid wide and high."""
    if wish.method not in (None, *METHODS, TUNED):
        raise SelfsightError(f"There is no method {wish.method!r}. Choose one of {', '.join(METHODS)}, {TUNED}.")
    if wish.size is not None and wish.size < 32:
        raise SelfsightError(f"--size is the side of the input in px, 32 or more, not {wish.size}.")
    size, longer = encoder.geometry.size, longer_side(boxed.labels)
    if not takes(encoder, 2 * size):
        if wish.size not in (None, size) or wish.rule not in (None, "squash"):
            raise SelfsightError(f"This encoder takes inputs of {size} x {size} px alone. Leave --size and --rule out.")
        return size, "squash", f"the encoder takes inputs of {size} x {size} px alone, so no other size is chosen"
    rule: Rule = wish.rule or ("tiles" if longer > LARGE * size else "fit")
    if wish.size is not None:
        return wish.size, rule, ""
    if rule == "tiles":
        return 2 * size, rule, f"the files, of {longer:,.0f} px, are looked at in tiles at their own scale"
    grid = BoxSight(encoder, size, rule).grid
    small = min(float(np.median(shares)) for shares in sides_of(boxed) if len(shares))
    sizes = [size * factor for factor in FACTORS if factor == 1 or size * factor <= MOST_ENLARGED * longer]
    enough = [each for each in sizes if small * each >= CELLS * grid]
    return (enough or sizes[-1:])[0], rule, ""


def sides_of(boxed: Boxed) -> list[np.ndarray]:
    """The shorter side of each object of each class, as part of the longer side of its picture."""
    found: list[list[float]] = [[] for _ in boxed.names]
    for place in range(len(boxed)):
        truth = boxed.at(place)
        sides = (truth.boxes[:, 2:] - truth.boxes[:, :2]).min(1) / max(boxed.size(place))
        for side, kind in zip(sides[~truth.unsure].tolist(), truth.kinds[~truth.unsure].tolist(), strict=True):
            found[kind].append(side)
    return [np.array(shares) for shares in found]


# -- cross-validation --


def chosen(work: Work, asked: str | None, tried: dict[str, float]) -> tuple[Held | None, str]:
    """(what was said of held-out pictures, the method that said it best). `tried` is filled. None where one part, which
    cannot be held out, has all boxes."""
    scenes, boxed = work.scenes, work.boxed
    labels = boxed.labels.take([scene.place for scene in scenes])
    many = len(scenes) >= MANY
    folds = labels.folds(min(2 * FOLDS if many else FOLDS, groups_of(labels), len(scenes)), work.seed)
    parts = [0] if many else list(range(int(folds.max()) + 1))
    kept: dict[str, Held] = {}
    for method in [asked] if asked else METHODS:
        found: dict[int, Found] = {}
        for fold in parts:
            some = [scene for scene, own in zip(scenes, folds, strict=True) if own != fold]
            if not any(len(piece.boxes) for scene in some for piece in scene.pieces):
                continue  # all boxes are in the part held out: nothing to learn from
            task = fitted(method, work, some, f"Holding out part {fold + 1} of {len(parts)}")
            for number in np.flatnonzero(folds == fold).tolist():
                found[number] = said_whole(work, task, scenes[number])
        if not any(len(boxed.at(scenes[number].place).boxes) for number in found):
            return None, method
        numbers = sorted(found)
        held = Held.of(boxed, {scenes[number].place: found[number] for number in numbers}, folds[numbers])
        tried[method] = ap50_of(held.found, held.truths, len(boxed.names), task.found)
        kept[method] = held
    best = best_of(tried, many)
    return kept[best], best


def best_of(tried: dict[str, float], many: bool) -> str:
    """The method of the highest AP50. With `many` pictures the last of those that are even with it, as `centres` learns
    from all of them."""
    even = EVEN if many else 0.0
    return [method for method, ap50 in tried.items() if ap50 >= max(tried.values()) - even][-1 if many else 0]
