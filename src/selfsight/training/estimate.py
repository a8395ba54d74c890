"""What a recipe will cost: seconds, memory and disk, from a few measured steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from selfsight.data.batches import Batch, Batches
from selfsight.data.geometry import Geometry
from selfsight.distributed import processes
from selfsight.errors import MachineError
from selfsight.machine import free_memory, memory_errors
from selfsight.objectives.objective import Objective
from selfsight.training.build import computing, most_patches
from selfsight.training.loop import LOG_EVERY, take_step
from selfsight.training.pretraining import Pretraining
from selfsight.training.recipe import Recipe
from selfsight.views.make import make_views

WARM_STEPS = 2  # the first are slower: memory is allocated, kernels are chosen
MEASURED_STEPS, MEASURED_SECONDS = 20, 6.0  # at most
PROBED_ITEMS = (4, 8, 16)  # whose activations are counted: a parabola through them holds for any batch
# Gradients of activations, the workspace of kernels and views beside what is saved for the backward pass: of runs
# measured on a CPU the peak was 1.1 to 1.6 times what was counted.
MARGIN = 1.5
ROOM = 0.9  # of the free memory may be used


@dataclass(frozen=True)
class Memory:
    """The memory of a training step.

    state: bytes of weights, gradients and optimiser.
    curve: polynomial of the bytes that n items keep, highest power of n first.
    free: bytes that are free now.
    processes: each has its share of a batch.
    """

    state: int
    curve: tuple[float, ...]
    free: int
    processes: int = 1

    def needed(self, batch_size: int) -> int:
        """Bytes that one process needs at the peak of a step."""
        own = batch_size // self.processes
        return self.state + int(MARGIN * max(0.0, float(np.polyval(self.curve, own))))

    def largest_batch(self) -> int:
        """The largest batch that fits, a multiple of eight items per process; 0 if none does."""
        step = 8 * self.processes
        size = step
        while self.needed(size) <= ROOM * self.free and size < 2**20:
            size += step
        return size - step


def memory_of(objective: Objective, batches: Batches, normalise: Geometry, recipe: Recipe, device: str) -> Memory:
    """The memory of a step, counted on a copy of the objective with a few items, so that nothing large is allocated."""
    weights = sum(p.numel() * p.element_size() for p in objective.parameters())
    state = weights * (4 if recipe.optimiser == "adamw" else 3)
    sizes = sorted({min(n, len(batches.ids)) for n in PROBED_ITEMS})
    if sizes[0] < 2:
        return Memory(state, (0.0,), free_memory(device), processes())
    trial = copy.deepcopy(objective).to(device).train()
    with torch.random.fork_rng(devices=[]):
        kept = [_saved_bytes(trial, _first(batches, n), normalise, recipe, device) for n in sizes]
    curve = np.polyfit(sizes, kept, len(sizes) - 1)
    return Memory(state, tuple(float(c) for c in curve), free_memory(device), processes())


def _first(batches: Batches, count: int) -> Batch:
    return batches.gather(np.arange(count), 0)


def _saved_bytes(trial: Objective, batch: Batch, normalise: Geometry, recipe: Recipe, device: str) -> int:
    """Bytes of the views, and of all that autograd keeps from the forward pass for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    views = make_views(batch, trial.views, normalise, recipe.seed, device)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        computing(recipe.precision, device, most_patches(recipe)),
    ):
        loss = trial(views, 0.5)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*trial.parameters(), *trial.buffers()]}
    saved = sum(size for place, size in kept.items() if place not in own)
    del loss
    return saved + sum(view.pixels.nbytes for view in views)


def check_memory(memory: Memory, recipe: Recipe) -> None:
    """Raise `SelfsightError`, naming a batch that fits, if a step would need more memory than there is."""
    if memory.needed(recipe.batch_size) > ROOM * memory.free:
        raise MachineError(out_of_memory(memory, recipe))


@contextmanager
def memory_told(memory: Memory, recipe: Recipe) -> Iterator[None]:
    """Context in which running out of memory raises `SelfsightError`, naming a batch that fits."""
    try:
        with memory_errors():
            yield
    except MemoryError:
        raise MachineError(f"Out of memory. {out_of_memory(memory, recipe)}") from None


def out_of_memory(memory: Memory, recipe: Recipe) -> str:
    """The sentence for a step that does not fit."""
    needed, fits = memory.needed(recipe.batch_size), memory.largest_batch()
    fits = min(fits, recipe.batch_size // 2)
    way = f"Give --batch-size {fits}" if fits >= 2 else "Give a smaller --encoder or --size"
    return (
        f"A step of {recipe.batch_size} items needs about {needed / 1e9:.1f} GB of memory and "
        f"{memory.free / 1e9:.1f} GB are free. {way}, or free some."
    )


def seconds_a_step(
    objective: Objective, batches: Batches, normalise: Geometry, recipe: Recipe, accelerator: Accelerator
) -> float:
    """Seconds per step: the median of a few real ones, with the share of the evidence that is taken now and then.

    Decoding counts where images are decoded during training. Changes `objective`.
    """
    device = str(accelerator.device)
    task = Pretraining(objective, batches, normalise, recipe, accelerator, recipe.encoder_apart)
    task.begin(0)
    if recipe.canvases != "stream":
        task.stream = (batch for batch in repeat(_first(batches, batches.batch_size)))
    seconds: list[float] = []
    began = time.monotonic()
    try:
        while len(seconds) < WARM_STEPS + MEASURED_STEPS and time.monotonic() - began < MEASURED_SECONDS:
            start = _now(device)
            take_step(task, 0.5)
            seconds.append(_now(device) - start)
    finally:
        task.stream.close()
    start = _now(device)
    task.evidence()
    now_and_then = (_now(device) - start) / LOG_EVERY
    return float(np.median(seconds[WARM_STEPS:] or seconds[-1:])) + now_and_then


def _now(device: str) -> float:
    """The time after the device has finished all its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()
