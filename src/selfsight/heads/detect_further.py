"""More than a detector on a frozen encoder: the encoder tuned by the boxes, or objects of unlabelled pictures guessed.

Both are kept only where they find more in pictures that neither learnt from.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from selfsight.data.boxed import Boxed, Truth
from selfsight.data.spread import spread
from selfsight.heads.detect_fit import fit_calibration, uncalibrated
from selfsight.heads.detect_learnt import Held, Learnt, Work, calibrated, fitted, judged, said_of, said_whole
from selfsight.heads.detect_metrics import ap50_of
from selfsight.heads.detect_modules import Calibrate, Centres, Detect
from selfsight.heads.detect_objects import Found, matched
from selfsight.heads.detect_scenes import BoxScene, BoxSight, piece_of
from selfsight.heads.detect_tuning import BATCH, tuned_detector
from selfsight.results import duration
from selfsight.training.recipe import Budget

PASSES, LEAST_STEPS, MOST_STEPS = 12, 100, 1500  # of a budget that is not given
WANTED = 0.8  # share of the guesses that are to be right
HIDDEN = 0.05  # share of the objects that are found, which may be taken for background


# -- the encoder tuned --


def usual_budget(inputs: int) -> Budget:
    """The budget for a number of inputs, where none was given."""
    return Budget(steps=int(np.clip(round(PASSES * inputs / BATCH), LEAST_STEPS, MOST_STEPS)))


def tuned(
    work: Work, frozen: Learnt, budget: Budget | None, folder: Path | None, started: float | None
) -> Learnt:  # fmt: skip
    """`frozen` with its encoder tuned, or as it is where that finds no more in a part of the pictures that tuning does
    not see.

    budget: `usual_budget` if not given. folder: for checkpoints, from which the same call goes on. started:
    `time.monotonic()` of the command, from which minutes count.
    """
    if frozen.held is None:
        return replace(frozen, notes=[*frozen.notes, "nothing could be held out, so the encoder was not tuned"])
    before = frozen.held.part(frozen.held.folds == frozen.held.folds.min())
    hidden, boxed, sight = set(before.places.tolist()), work.boxed, work.sight
    shown = [scene for scene in work.scenes if scene.place not in hidden]
    start = fitted("centres", work, shown, "Learning from boxes before tuning")
    assert isinstance(start.readout, Centres)
    seen = boxed.take([scene.place for scene in shown])
    pieces = sight.inputs(work.items, seen, "Reading pictures")
    budget, started = budget or usual_budget(len(pieces)), time.monotonic() if started is None else started
    ready = time.monotonic()
    made = tuned_detector(sight, start.readout, pieces, budget, work.seed, folder, seen.labels.digest, started)
    if made is None:
        why = f"the frozen encoder is kept: {duration(ready - started)} went by before the first step of tuning"
        return replace(frozen, notes=[*frozen.notes, f"{why}, so give more minutes, or steps"])
    encoder, net = made
    sharp = BoxSight(encoder, sight.encoder.geometry.size, sight.encoder.geometry.rule)
    task = Detect(net, sharp.used, start.found)
    part = boxed.take(before.places)
    scenes = sharp.scenes(work.items, part, False, {}, "Looking at pictures held out")
    other = Work(work.items, sharp, scenes, part, work.seed)
    said = {int(before.places[scene.place]): said_whole(other, task, scene) for scene in scenes}
    held = Held.of(boxed, said, before.folds[[scene.place for scene in scenes]])
    after, plain = (ap50_of(each.found, each.truths, len(boxed.names), task.found) for each in (held, before))
    told = f"AP50 {after:.3f} tuned and {plain:.3f} frozen, in {len(said):,} pictures that tuning did not see"
    tried = frozen.tried | {"finetune": after}
    if after <= plain:
        return replace(frozen, tried=tried, notes=[*frozen.notes, f"the frozen encoder is kept, as {told}"])
    notes = [f"the encoder is tuned: {told}", f"tuning saw {len(shown):,} of {len(work.scenes):,} pictures"]
    return judged(replace(
        frozen, sight=sharp, method="finetune", task=task, held=held, calibrate=uncalibrated(len(boxed.names)),
        tried=tried, notes=[*frozen.notes, *notes],
    ))  # fmt: skip


# -- objects guessed --


def self_trained(work: Work, learnt: Learnt, pool: Boxed) -> Learnt:
    """A detector that also learns from pictures without boxes, or `learnt` where that finds no more in held-out ones.

    What it is sure of in these, by the share of such objects that is right in held-out pictures, is taken for an
    object, what it is sure is none for background, and nothing is learnt where it is not sure (after Sohn et al., "A
    Simple Semi-Supervised Learning Framework for Object Detection", 2020). For each part that is held out all of this
    is made without it.
    """
    if learnt.held is None or not len(pool):
        why = "nothing could be held out to test guesses" if len(pool) else "every picture has known boxes"
        return replace(learnt, notes=[*learnt.notes, f"self-training: {why}, so nothing was guessed"])
    held, classes = learnt.held, len(work.boxed.names)
    pool = pool.take(spread(len(pool), work.sight.room(pool, 1)))
    open_ = work.sight.scenes(work.items, pool, False, learnt.bad, "Looking at pictures without boxes")
    tested = tested_guesses(work, learnt.method, held, open_)
    plain = held.part(np.isin(held.places, tested.places))
    after, before = (ap50_of(each.found, each.truths, classes, learnt.task.found) for each in (tested, plain))
    told = f"AP50 in {len(tested.found):,} held-out pictures {after:.3f} with guesses and {before:.3f} without"
    if after <= before:
        why = f"self-training: nothing is kept of it, as it does not help: {told}"
        return replace(learnt, notes=[*learnt.notes, why])
    guessed = guessed_scenes(learnt.task, open_, held, classes)
    task = fitted("centres", work, [*work.scenes, *guessed], "Learning from boxes and guesses")
    count = sum(len(piece.boxes) for scene in guessed for piece in scene.pieces)
    why = f"self-training: {count:,} objects were guessed in {len(open_):,} pictures without boxes; {told}"
    return judged(replace(
        learnt, method="centres", task=task, held=tested, calibrate=uncalibrated(classes),
        notes=[*learnt.notes, why], tried=learnt.tried | {"self-trained": after},
    ))  # fmt: skip


def tested_guesses(work: Work, method: str, held: Held, open_: list[BoxScene]) -> Held:
    """What a detector says of held-out pictures that has learnt from the rest, by a method, and from its guesses in
    `open_` ones."""
    by_place = {scene.place: scene for scene in work.scenes}
    said: dict[int, Found] = {}
    folds: list[int] = []
    for fold in np.unique(held.folds).tolist():
        mine = held.folds == fold
        others = ~mine
        if not others.any():  # one part alone: half of it sets the bounds, the other half tests
            others = mine & (np.arange(len(mine)) % 2 == 0)
            mine &= ~others
        hidden = set(held.places[held.folds == fold].tolist())
        shown = [scene for scene in work.scenes if scene.place not in hidden]
        teacher = fitted(method, work, shown, "Learning from boxes")
        guessed = guessed_scenes(teacher, open_, held.part(others), len(work.boxed.names))
        student = fitted("centres", work, [*shown, *guessed], "Learning from boxes and guesses")
        for place in held.places[mine].tolist():
            said[place] = said_whole(work, student, by_place[place])
            folds.append(fold)
    return Held.of(work.boxed, said, np.array(folds))


def guessed_scenes(task: Detect, scenes: list[BoxScene], held: Held, classes: int) -> list[BoxScene]:
    """Pictures with the objects that are guessed in them. held: pictures that tell which guesses are right."""
    calibrate, low, high = bounds(held, classes)
    found = []
    for scene in scenes:
        said = calibrated(said_of(task, scene), calibrate)
        some = said.at(np.flatnonzero(said.scores >= low[said.kinds]))
        truth = Truth(some.boxes, some.kinds, some.scores < high[some.kinds])
        pieces = [
            piece_of(piece.levels, placement, truth, False)
            for piece, placement in zip(scene.pieces, scene.placements, strict=True)
        ]
        found.append(BoxScene(scene.place, scene.placements, pieces, []))
    return found


def bounds(held: Held, classes: int) -> tuple[Calibrate, np.ndarray, np.ndarray]:
    """(calibration, low [K], high [K]): from `high` on `WANTED` of the objects of a class that are told in held-out
    pictures are right, by Laplace's rule of succession, infinite where that is not shown; below `low` lie at most
    `HIDDEN` of the right ones."""
    right = np.concatenate([matched(found, truth) for found, truth in zip(held.found, held.truths, strict=True)])
    scores, kinds = (np.concatenate([getattr(found, name) for found in held.found]) for name in ("scores", "kinds"))
    known = ~np.isnan(right)
    scores, kinds, right = scores[known], kinds[known], right[known]
    calibrate = fit_calibration(scores, kinds, right, classes)
    slope, offset = calibrate.slope.numpy(), calibrate.offset.numpy()
    sure = 1 / (1 + np.exp(-(slope[kinds] * scores + offset[kinds])))
    low, high = np.zeros(classes), np.full(classes, np.inf)
    for kind in range(classes):
        own, hits = sure[kinds == kind], right[kinds == kind]
        if not hits.any():
            continue
        low[kind] = np.quantile(own[hits == 1], HIDDEN)
        order = np.argsort(-own, kind="stable")
        enough = np.flatnonzero((np.cumsum(hits[order]) + 1) / (np.arange(len(order)) + 3) >= WANTED)
        if len(enough):
            high[kind] = max(own[order][enough[-1]], low[kind])
    return calibrate, low, high
