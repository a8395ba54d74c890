"""plan: every value that pretrain would use, why, and what it would cost."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from selfsight.results import Result, duration
from selfsight.verbs.arguments import checked
from selfsight.verbs.choices import Choices, spelt_out

if TYPE_CHECKING:
    from selfsight.data.collection import Collection
    from selfsight.data.pixels import PixelFormat
    from selfsight.encoders.at_hand import AtHand
    from selfsight.training.recipe import Recipe

OVERHEAD_SECONDS = 1.5  # of a run, beside what is measured: the contact sheet, checkpoints, TensorBoard


@dataclass(frozen=True)
class Estimate:
    """The cost of a pretraining.

    seconds: in all.
    steps: of the budget.
    epochs: of the budget.
    seconds_a_step: per step.
    seconds_before: before the first step.
    seconds_after: after the last step.
    memory_bytes: beside the program's own.
    largest_batch: that fits.
    canvas_bytes: of decoded pixels on disk.
    checkpoint_bytes: of checkpoints on disk.
    device: that computes.
    """

    seconds: float
    steps: int
    epochs: float
    seconds_a_step: float
    seconds_before: float
    seconds_after: float
    memory_bytes: int
    largest_batch: int
    canvas_bytes: int
    checkpoint_bytes: int
    device: str


@dataclass(frozen=True)
class Plan(Result):
    """The result of `plan`.

    source: of the images.
    items: how many images can be read.
    values: of the recipe.
    reasons: for the values that were not asked for.
    estimate: of the cost.
    recipe: the file written; None for none.
    at_hand: weights on this machine that it could start from.
    """

    source: str
    items: int
    values: dict[str, Any]
    reasons: dict[str, str]
    estimate: Estimate
    recipe: str | None
    at_hand: list[AtHand]


@checked
@spelt_out
def plan(source: str, *, out: str | None = None, **choices: Unpack[Choices]) -> Plan:
    """Show what `pretrain` would do with these images on this machine, without doing it.

    Every value is printed with its reason, then the time, memory and disk it would take, from a few measured steps.
    `-o recipe.yaml` saves it for `pretrain --recipe recipe.yaml`; `pretrain` alone uses the same values.

    Parameters
    ----------
    source
        Folder of images, or whatever `pretrain` takes.
    out
        File to write the recipe to.
    """
    started = time.monotonic()
    from pathlib import Path

    from selfsight.data.importers import check_outside, open_source
    from selfsight.encoders.at_hand import at_hand
    from selfsight.errors import SelfsightError
    from selfsight.training.settle import asked_of, check_enough, check_weights, choose, write_recipe

    if out is not None and (Path(out).is_dir() or not Path(out).parent.is_dir()):
        raise SelfsightError(f"{out} is not a file that can be written. Give a name such as -o recipe.yaml")
    recipe_file, collection = choices.pop("recipe", None), choices.pop("collection", None)
    choices.pop("device", None)  # of this machine, not of the recipe
    asked = asked_of(dict(choices))
    check_weights(asked, recipe_file)
    items = open_source(source, collection)
    imported = time.monotonic()
    open_source(source, collection)  # as pretrain will find it: listed, and not read again
    started += (imported - started) - (time.monotonic() - imported)
    if out is not None:
        check_outside(out, items.about.location)
    check_enough(source, items)
    recipe, format = choose(asked, recipe_file, items)
    estimate = _estimate(recipe, format, items, started)
    if out is not None:
        write_recipe(Path(out), recipe)
    values = {k: v for k, v in recipe.to_dict().items() if k != "reasons"}
    return Plan(source, len(items.usable), values, recipe.reasons, estimate, out, at_hand())


def _estimate(recipe: Recipe, format: PixelFormat, items: Collection, started: float) -> Estimate:
    """Steps, epochs, seconds, bytes of memory and disk, from a few measured steps on streamed canvases."""
    import torch

    from selfsight.data.batches import Batches
    from selfsight.data.canvases import Streamed, canvas_bytes
    from selfsight.distributed import start_processes
    from selfsight.encoders.weights import RANDOM
    from selfsight.machine import best_device, usable_cores
    from selfsight.training.build import build, normalisation_of, starting_encoder
    from selfsight.training.clock import Clock
    from selfsight.training.estimate import check_memory, memory_of, seconds_a_step
    from selfsight.training.measure import seconds_to_whiten, whitening_items
    from selfsight.training.rules import seconds_to_decode

    device = best_device()
    torch.set_num_threads(recipe.threads)
    canvases = Streamed(items, format, recipe.canvas_side, max(1, usable_cores() - recipe.threads))
    normalise = normalisation_of(recipe, canvases)
    task = build(recipe, format, normalise, starting_encoder(recipe, format, normalise))
    batches = Batches(canvases, recipe.batch_size, recipe.seed, recipe.views.companion)
    memory = memory_of(task, batches, normalise, recipe, device)
    check_memory(memory, recipe)
    before = time.monotonic() - started + OVERHEAD_SECONDS
    if recipe.canvases == "resident":
        before += seconds_to_decode(items, format, recipe.canvas_side)
    encoder = task.trained.to(device)
    items_to_whiten = whitening_items(encoder, recipe.weights != RANDOM)
    ending = seconds_to_whiten(encoder, batches, normalise, margin=1.0, whiten_by=items_to_whiten)
    a_step = seconds_a_step(task, batches, normalise, recipe, start_processes())
    clock = Clock(recipe.budget, started, batches.steps_per_epoch, recipe.accumulate)
    minutes = recipe.budget.minutes
    steps = clock.steps or int(max(0.0, 60 * (minutes or 0.0) - before - ending) / a_step)
    seconds = 60 * minutes if minutes is not None else before + steps * a_step + ending
    disk = canvas_bytes(items.usable, format, recipe.canvas_side) if recipe.canvases == "resident" else 0
    return Estimate(
        seconds=seconds,
        steps=steps,
        epochs=steps * recipe.accumulate / batches.steps_per_epoch,
        seconds_a_step=a_step,
        seconds_before=before,
        seconds_after=ending,
        memory_bytes=memory.needed(recipe.batch_size),
        largest_batch=memory.largest_batch(),
        canvas_bytes=disk,
        checkpoint_bytes=2 * (memory.state * 3 // 4),
        device=device,
    )


def show(result: Plan) -> None:
    """Print the table of values and reasons, the estimate, and which weights it could start from."""
    from rich.table import Table

    from selfsight.console import results
    from selfsight.encoders.at_hand import in_words as weights_in_words
    from selfsight.encoders.weights import RANDOM

    console = results()
    console.print(f"{result.items:,} items of {result.source}", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("value", no_wrap=True)
    table.add_column("chosen")
    table.add_column("why")
    for name, value in result.values.items():
        table.add_row(name.replace("_", " "), in_words(name, value), result.reasons.get(name, "as asked"))
    console.print(table)
    e = result.estimate
    console.print(
        f"About {duration(e.seconds)} on {e.device}: {duration(e.seconds_before)} until the first step, "
        f"{e.steps:,} steps of {e.seconds_a_step:.2g} s ({e.epochs:,.1f} passes over the images), "
        f"{duration(e.seconds_after)} to finish."
    )
    console.print(
        f"About {e.memory_bytes / 1e9:.1f} GB of memory beside the program's own (a batch of {e.largest_batch:,} "
        f"would fit), {e.canvas_bytes / 1e6:,.0f} MB of decoded pixels in the cache folder, "
        f"{e.checkpoint_bytes / 1e6:,.0f} MB of checkpoints."
    )
    if result.at_hand and result.values["weights"] == RANDOM:
        console.print(weights_in_words(result.at_hand, result.values["channels"]), soft_wrap=True)
    recipe = f" --recipe {shlex.quote(result.recipe)}" if result.recipe else ""
    console.print(f"Next: selfsight pretrain {shlex.quote(result.source)} -o runs/first{recipe}", soft_wrap=True)


def in_words(name: str, value: Any) -> str:
    """A value of a recipe for people."""
    if name == "views":
        groups = [f"{g['count']} of {g['size']} px, {_share(g['scale'])} of the image" for g in value["groups"]]
        return "; ".join(groups)
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if v is not None) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _share(scale: list[float]) -> str:
    low, high = scale
    return f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
