"""Pretraining as the loop sees it: views of batches, an objective, its optimiser and its schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from selfsight.data.batches import Batch, Batches
from selfsight.data.geometry import Geometry
from selfsight.distributed import everywhere, together
from selfsight.objectives.objective import Loss, Objective
from selfsight.training.adaptation import Frozen
from selfsight.training.batch_norm import synchronise
from selfsight.training.build import computing
from selfsight.training.clock import Clock
from selfsight.training.loop import Done, Step, fit
from selfsight.training.monitors import evidence
from selfsight.training.optimisers import encoder_factor, make_optimiser, schedule
from selfsight.training.pictures import neighbour_gallery, reconstructions
from selfsight.training.recipe import Recipe
from selfsight.training.recorder import Recorder, Watch
from selfsight.training.run import Run
from selfsight.views.make import View, make_views


def train(
    objective: Objective,
    batches: Batches,
    normalise: Geometry,
    recipe: Recipe,
    run: Run,
    clock: Clock,
    accelerator: Accelerator,
    show: Callable[[dict[str, float]], None],
    watches: Sequence[Watch] = (),
    track: Sequence[str] = (),
) -> Done:
    """Train `objective` by a recipe until the clock's budget is spent, from the last checkpoint if there is one.

    For `show`, `watches` and `track` see `Recorder`; it raises what `fit` raises.
    """
    # An extension's heads have learnt before.
    by = replace(recipe, frozen=0.0) if clock.first_step else recipe
    task = Pretraining(objective, batches, normalise, by, accelerator, recipe.encoder_apart)
    main = accelerator.is_main_process
    recorder = Recorder(run, accelerator.device, show, watches, track, by.to_dict(), main)
    return fit(task, run, clock, accelerator, recorder, recipe.seed)


class Pretraining:
    """A `Task` of the loop. encoder_apart: whether the encoder's weights have a learning rate of their own; that stays
    in an extension, as the optimiser's state has groups for it."""

    def __init__(
        self,
        objective: Objective,
        batches: Batches,
        normalise: Geometry,
        recipe: Recipe,
        accelerator: Accelerator,
        encoder_apart: bool,
    ) -> None:
        self.module = objective.to(accelerator.device).to(memory_format=torch.channels_last)
        self.batches, self.normalise, self.recipe, self.accelerator = batches, normalise, recipe, accelerator
        self.apart = encoder_apart
        self.optimiser = make_optimiser(
            objective, recipe.optimiser, recipe.learning_rate, recipe.weight_decay, encoder_apart
        )
        self.remedy = f"Start anew, in another folder, with a --learning-rate below {recipe.learning_rate:.2g}."
        self.pace = Pace()
        self.frozen = Frozen(objective, recipe.frozen, recipe.statistics == "kept")
        norms = (m for m in objective.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]

    def begin(self, step: int) -> None:
        """Batches from this step on, for a module that trains."""
        with together():
            self.model: nn.Module = self.accelerator.prepare(synchronise(self.module).train())
        self.stream = self.batches.steps(step * self.recipe.accumulate)

    def schedule(self, progress: float) -> dict[str, float]:
        """Set the rates in force; what a row of metrics says of them."""
        rate = schedule(self.optimiser, self.module, progress, self.recipe)
        slow = self.recipe.learning_rate * encoder_factor(progress, self.recipe)
        return ({"encoder_learning_rate": slow} if self.apart else {}) | {"learning_rate": rate}

    def gradients(self, progress: float) -> Step:
        """Leave the gradients of a step's batches in the parameters, but for those of a frozen encoder. Where something
        is not finite, running statistics are as before, and there is nothing to step along."""
        recipe, device = self.recipe, self.accelerator.device
        self.frozen.before(progress)
        before = [buffer.clone() for buffer in self.statistics]
        finite = torch.tensor(True, device=device)
        for part in range(recipe.accumulate):
            batch = self.pace.wait_for(self.stream)
            views = make_views(batch, self.module.views, self.normalise, recipe.seed, device)
            self.pace.views += len(batch.ids) * len(views)
            # Processes add up their gradients once a step, with the last of its batches.
            with self.accelerator.no_sync(self.model) if part < recipe.accumulate - 1 else nullcontext():
                with computing(recipe, device):
                    loss: Loss = self.model(views, progress)
                with together():
                    self.accelerator.backward(loss.total / recipe.accumulate)
            finite &= torch.isfinite(loss.total.detach())
        self.frozen.drop_gradients(progress)
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), recipe.clip or float("inf"))
        finite &= torch.isfinite(torch.as_tensor(norm, device=device))
        broken = None
        if not everywhere(finite):
            for buffer, kept in zip(self.statistics, before, strict=True):
                buffer.copy_(kept)
            broken = _cause(self.module, views, loss)
        self.seen = loss
        return Step({"loss": loss.total.detach(), **loss.parts}, float(norm), broken)

    def after_step(self, progress: float) -> None:
        """What moves without a gradient."""
        self.module.after_step(progress)

    def evidence(self) -> dict[str, float]:
        """What the embeddings of the last step say, and the pace since the last row."""
        return {**evidence(self.seen.embeddings, self.seen.assignments), **self.pace.lap()}

    def draw(self, folder: Path) -> tuple[str, ...]:
        """Draw the pictures of the end; their names."""
        neighbour_gallery(self.module.trained, self.batches, self.normalise, folder / "neighbours.png")
        reconstructions(self.module, self.batches, self.normalise, self.recipe.seed, folder / "reconstructions.png")
        return "neighbours", "reconstructions"


def _cause(objective: Objective, views: list[View], loss: Loss) -> str:
    """The first thing on the way of the data that is not finite."""

    def finite(tensor: Tensor) -> bool:
        return bool(torch.isfinite(tensor).all())

    if not all(finite(view.pixels) for view in views):
        return "a pixel of the views"
    if not all(finite(parameter) for parameter in objective.parameters()):
        return "a weight"
    if not finite(loss.embeddings):
        return "an embedding"
    for name, part in loss.parts.items():
        if not finite(part):
            return f"the loss ({name})"
    if not finite(loss.total):
        return "the loss"
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None and not finite(parameter.grad):
            return f"the gradient (of {name}, for one)"
    return "the gradient's norm"


class Pace:
    """Views made and time spent waiting for data since the last row of metrics."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.views, self.waited = 0, 0.0

    def wait_for(self, stream: Iterator[Batch]) -> Batch:
        """The next batch, its waiting counted."""
        asked = time.monotonic()
        batch = next(stream)
        self.waited += time.monotonic() - asked
        return batch

    def lap(self) -> dict[str, float]:
        """views_per_second and waiting (a fraction of the time) since the last lap."""
        seconds = max(1e-9, time.monotonic() - self.since)
        row = {"views_per_second": self.views / seconds, "waiting": self.waited / seconds}
        self.since, self.views, self.waited = time.monotonic(), 0, 0.0
        return row
