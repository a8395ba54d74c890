"""Tuning an encoder by labels: all of it, the weights of its norms, or low-rank changes of its attention.

The linear head before it starts from a fit to frozen features: from a random one, the first steps would spoil them
(Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022).
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsight.console import console
from selfsight.data.batches import Batches
from selfsight.data.canvases import Canvases, Resident, Streamed, canvas_bytes, free_bytes
from selfsight.data.collection import Collection
from selfsight.data.geometry import Geometry
from selfsight.data.labels import Labels
from selfsight.data.spread import spread
from selfsight.distributed import start_processes
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import encode, input_batches, pooled_labelled
from selfsight.errors import SelfsightError, TrainingError
from selfsight.heads import calibration as cal
from selfsight.heads.fits import methods, scored
from selfsight.heads.lora import check_lora, merged
from selfsight.heads.targets import Targets
from selfsight.heads.tuning_run import tuning_run
from selfsight.heads.tuning_task import WAYS, TunedModule, Tuning, aims_of, norms_of
from selfsight.machine import usable_cores
from selfsight.results import duration
from selfsight.training.clock import Clock
from selfsight.training.loop import fit
from selfsight.training.recipe import Budget
from selfsight.training.recorder import Recorder
from selfsight.training.show import Show

START = "C=10"  # of the linear fit that the head starts from
BATCH = 32
PASSES, LEAST_STEPS, MOST_STEPS = 30, 100, 1000  # of a budget that is not given
ROOM = 1.2  # times the encoder's input, that canvases are wide: room for crops
MIRRORED = 512  # items, at most, that say whether pictures may be mirrored
MIRROR_FOLDS = 5
WORSE = 0.2  # of the loss, by which mirrored pictures may be worse
WORKS = 0.5  # of the loss by chance, below which a head works
NO_CLASS = -10.0  # log-odds, in place of minus infinity, of a class without examples


def check_way(encoder: Encoder, method: str) -> None:
    """Raise `SelfsightError` if `encoder` cannot be tuned by this method."""
    if method == "lora":
        check_lora(encoder.net)
    if method == "norm" and not norms_of(encoder.net):
        raise SelfsightError("--method norm is for networks with norms, and this one has none. Give finetune.")


def usual_budget(labels: int) -> Budget:
    """The budget for a number of labels, where none was given."""
    return Budget(steps=int(np.clip(round(PASSES * labels / min(BATCH, labels)), LEAST_STEPS, MOST_STEPS)))


def tuned(
    encoder: Encoder,
    items: Collection,
    labels: Labels,
    method: str,
    budget: Budget | None = None,
    seed: int = 0,
    folder: Path | None = None,
    started: float | None = None,
) -> Encoder:
    """A copy of `encoder`, in eval mode, tuned on items that all have a label.

    method: of `WAYS`. budget: `usual_budget` if not given. folder: for checkpoints, from which the same call goes on;
    nothing is kept if not given. started: `time.monotonic()` of the command, from which minutes count.

    Raises `Stopped`, after saving, when the user interrupts, and `SelfsightError` for a method that the encoder cannot
    take, a folder of another tuning, and steps that are not finite.
    """
    check_way(encoder, method)
    way, budget = WAYS[method], budget or usual_budget(len(labels))
    started = time.monotonic() if started is None else started
    asked = {"method": method, "way": asdict(way), "budget": asdict(budget), "seed": seed, "encoder": encoder.digest,
             "labels": labels.digest, "torch": torch.__version__}  # fmt: skip
    advice = "Free some, or give --method norm or a smaller encoder."
    with tuning_run(folder, asked, BATCH, advice) as run:
        torch.manual_seed(seed)
        labels, features, _ = pooled_labelled(encoder, items, labels)
        targets = Targets.of(labels)
        accelerator = start_processes()
        module = TunedModule(copy.deepcopy(encoder), method, _start(targets, features))
        mirror = may_mirror(encoder, items, labels, targets, features)
        if not mirror:
            console().print("Pictures are not mirrored: nothing shows that mirrored ones are of the same class.")
        canvases = _canvases(items, labels, encoder.geometry)
        batches = Batches(canvases, BATCH, seed)
        task = Tuning(module, way, batches, targets, labels.ids, encoder.geometry, seed, accelerator, mirror)
        clock = Clock(budget, started, batches.steps_per_epoch)
        if budget.minutes is not None:
            clock.reserve = _seconds_to_end(encoder, len(labels))
        title = f"Tuning {way.what} on {len(labels):,} labels for {told(budget, batches.steps_per_epoch)}."
        with Show(title, {"loss": "loss {:.3f}", "right": "{:.0%} right"}) as show:
            done = fit(task, run, clock, accelerator, Recorder(run, accelerator.device, show), seed)
    if done.step == 0:
        raise TrainingError(f"{budget.minutes:g} minutes are too few for a single step. Give more --minutes.")
    made = module.encoder.to(encoder.device).eval()
    if method == "lora":
        merged(made.net)
    made.about |= {"tuned": method}
    return made.requires_grad_(True)


def told(budget: Budget, steps_per_epoch: int) -> str:
    """A budget in words."""
    if budget.minutes is not None:
        return duration(60 * budget.minutes)
    passes = (budget.steps or 0) / steps_per_epoch
    return f"{budget.steps:,} steps, {passes:.0f} passes (--steps or --minutes for another budget)"


def _canvases(items: Collection, labels: Labels, geometry: Geometry) -> Canvases:
    side = round(ROOM * geometry.size)
    if canvas_bytes(labels.rows, geometry.format, side) > free_bytes() / 2:
        return Streamed(items, geometry.format, side, max(1, usable_cores() // 2), rows=labels.rows)
    return Resident(items, geometry.format, side, rows=labels.rows)


def _start(targets: Targets, features: np.ndarray) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K] of the head, in units of what is learnt, see `aims_of`."""
    found: Any = methods(targets.kind, len(targets))["linear"][START](features, targets)
    _, middle, scale = aims_of(targets)
    return found.weight / scale, ((found.bias - middle) / scale).clamp_min(NO_CLASS)


def may_mirror(encoder: Encoder, items: Collection, labels: Labels, targets: Targets, features: np.ndarray) -> bool:
    """Whether pictures may be mirrored: only if a head on frozen features works, and not clearly worse on mirrored
    pictures, as it would on letters, or where the left side means another thing than the right."""
    some = spread(len(labels), MIRRORED)
    if len({group or i for i, group in enumerate(labels.take(some).groups)}) < MIRROR_FOLDS:
        return False
    numbers, parts = [], []
    for rows, pixels, _ in input_batches(items, labels.take(some).rows, encoder.geometry, "Mirroring"):
        if rows:
            numbers += rows
            mirrored = encoder.geometry.to_input(pixels[:, :, ::-1].copy())
            parts += [found for _, found in encode(encoder, [(0, mirrored)])]
    order = np.argsort(numbers)
    some, other = some[np.sort(numbers)], np.concatenate(parts)[order]
    taught, folds = targets.take(some), labels.take(some).folds(MIRROR_FOLDS, 0)
    linear = methods(targets.kind, len(targets))["linear"][START]
    scores = np.zeros((2, *taught.values.shape), np.float32)
    for fold in np.unique(folds):
        held = np.flatnonzero(folds == fold)
        scorer = linear(features[some[folds != fold]], taught.take(np.flatnonzero(folds != fold)))
        scores[:, held] = [scored(scorer, side[held]) for side in (features[some], other)]
    before, after = (cal.losses(taught, side) for side in scores)
    worse = after - before
    clear = worse.mean() - 2.0 * worse.std() / np.sqrt(len(worse)) > WORSE * before.mean()
    return bool(not clear and before.mean() < WORKS * _by_chance(taught))


def _by_chance(targets: Targets) -> float:
    """The mean loss of the best answer that is the same for all items."""
    share = targets.values.mean(0)
    usual = {"number": share, "classes": np.log(share.clip(1e-6)) - np.log((1.0 - share).clip(1e-6))}
    same = usual.get(targets.kind, np.log(share.clip(1e-6)))
    return float(cal.losses(targets, np.tile(same, (len(targets), 1))).mean())


def _seconds_to_end(encoder: Encoder, items: int) -> float:
    """Seconds that the features of all labelled items will take after tuning, from one measured batch, and a head on
    them. items: that are tuned on, four fifths of all."""
    geometry, count = encoder.geometry, min(16, items)
    images = torch.zeros(count, geometry.channels, geometry.size, geometry.size)
    encoder.encode(images)  # the first pass is slower than the rest
    began = time.monotonic()
    encoder.encode(images)
    return 10.0 + 1.7 * (time.monotonic() - began) * items / count
