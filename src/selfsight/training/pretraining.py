"""Pretraining as the loop sees it: views of batches, an objective, its optimiser and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from selfsight.data.batches import Batches
from selfsight.data.geometry import Geometry
from selfsight.encoders.weights import RANDOM
from selfsight.objectives.objective import Loss, Objective
from selfsight.training.adaptation import Frozen
from selfsight.training.alarm import Alarm
from selfsight.training.build import computing, most_patches
from selfsight.training.clock import Clock
from selfsight.training.loop import Done, Step, fit
from selfsight.training.monitors import evidence
from selfsight.training.optimisers import Group, learning_rate_factor, make_optimiser
from selfsight.training.pictures import contact_sheet, neighbour_gallery, reconstructions
from selfsight.training.recipe import Recipe
from selfsight.training.recorder import Recorder, Watch
from selfsight.training.run import Run
from selfsight.training.stepping import Forward, Pace, Stepper
from selfsight.training.threads import Threads
from selfsight.views.make import make_views

PIXEL, WEIGHT = "a pixel of the views", "a weight"  # that may not be finite


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
    threads: Threads | None = None,
) -> Done:
    """Train `objective` by `recipe` until the clock's budget is spent, from the last checkpoint if there is one.

    Returns the steps done and skipped. `show`, `watches` and `track` are as in `Recorder`; `threads` and errors
    are as in `fit`.
    """
    # An extension's heads have learnt before.
    by = replace(recipe, freeze_fraction=0.0) if clock.first_step else recipe
    task = Pretraining(objective, batches, normalise, by, accelerator, recipe.encoder_apart)
    main = accelerator.is_main_process
    recorder = Recorder(run, accelerator.device, show, watches, track, by.to_dict(), main, Alarm())
    return fit(task, run, clock, accelerator, recorder, recipe.seed, threads)


class Pretraining:
    """A `Task` of the loop.

    encoder_apart: whether the encoder has its own learning rate. It stays so in an extension, as the optimiser's state
        has groups for it.
    """

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
        groups = groups_of(objective, recipe.weight_decay, encoder_apart)
        self.optimiser = make_optimiser(groups, recipe.optimiser, recipe.learning_rate)
        self.pace = Pace()
        self.frozen = Frozen(objective.encoder, objective, recipe.freeze_fraction, recipe.batch_norm_policy == "kept")
        self.stepper = Stepper(self.module, accelerator, recipe.accumulate, recipe.clip)

    def begin(self, step: int) -> None:
        """Begin the stream of batches at `step`, with the module in training mode."""
        self.stepper.begin()
        self.stream = self.batches.steps(step * self.recipe.accumulate)

    def schedule(self, progress: float) -> dict[str, float]:
        """Set the learning rates for `progress`. Returns their columns for a row of metrics."""
        rate = schedule(self.optimiser, self.module, progress, self.recipe)
        slow = self.recipe.learning_rate * encoder_factor(progress, self.recipe)
        return ({"encoder_learning_rate": slow} if self.apart else {}) | {"learning_rate": rate}

    def gradients(self, progress: float) -> Step:
        """Compute the gradients of a step's batches into the parameters, except those of a frozen encoder."""
        self.frozen.before(progress)
        return self.stepper.gradients(lambda: self._forward(progress), lambda: self.frozen.drop_gradients(progress))

    def _forward(self, progress: float) -> Forward:
        """The loss of the next batch."""
        recipe, device = self.recipe, self.accelerator.device
        batch = self.pace.wait_for(self.stream)
        views = make_views(batch, self.module.views, self.normalise, recipe.seed, device)
        self.pace.views += len(batch.ids) * len(views)
        with computing(recipe.precision, device, most_patches(recipe)):
            loss: Loss = self.stepper.model(views, progress)
        self.seen = loss
        suspects = {
            PIXEL: [view.pixels for view in views],
            WEIGHT: self.module.parameters(),
            "an embedding": [loss.embeddings],
        }
        return Forward(loss.total, loss.parts, suspects)

    def after_step(self, progress: float) -> None:
        """Move what moves without a gradient."""
        self.module.after_step(progress)

    def evidence(self) -> dict[str, float]:
        """Columns for a row of metrics: figures of the last step's embeddings, and the pace since the last row."""
        return {**evidence(self.seen.embeddings, self.seen.assignments), **self.pace.lap()}

    def remedy(self, cause: str, learnt: bool) -> str:
        """Advice that fits the cause, as from the function `remedy`."""
        return remedy(self.recipe, cause, learnt)

    def draw(self, folder: Path, step: int) -> tuple[str, ...]:
        """Draw what the objective sees, or what it has learnt. Returns the names of the pictures."""
        objective, seen, seed = self.module, (self.batches, self.normalise), self.recipe.seed
        if step == 0:
            contact_sheet(self.batches, objective.views, self.normalise, seed, folder / "views.png")
            return ("views",)
        neighbour_gallery(objective.trained, *seen, folder / "neighbours.png")
        reconstructions(objective, *seen, seed, folder / "reconstructions.png")
        return "neighbours", "reconstructions"


def remedy(recipe: Recipe, cause: str, learnt: bool) -> str:
    """What to change where steps are not finite because of `cause`; learnt: whether any step was finite before."""
    if cause == PIXEL:
        return "No learning rate helps there: some images hold values that are not numbers. Leave them out: --exclude."
    if not learnt and cause == WEIGHT:
        return f"They were so from the start: {recipe.weights} holds values that are not numbers. Give other --weights."
    exact = "precision: 'no' in a --recipe" if recipe.precision == "bf16" else ""
    if not learnt:
        others = [exact, "" if recipe.weights == RANDOM else f"other --weights than {recipe.weights}"]
        ways = " or ".join(filter(None, [*others, "another --objective"]))
        return f"No step was ever finite, so it is not the learning rate. Start again, in another folder, with {ways}."
    asked = "learning_rate" not in recipe.reasons
    which = f"{recipe.learning_rate:.2g}{', which was asked for' if asked else ''}"
    return f"Start again, in another folder, with a --learning-rate below {which}{exact and f'; or with {exact}'}."


class ScheduledGroup(Group):
    """A group of the optimiser, all or part of one of the objective's groups.

    number: of the objective's group.
    encoder: whether all of it belongs to the encoder.
    """

    number: int
    encoder: bool


def groups_of(objective: Objective, weight_decay: float, encoder_apart: bool = False) -> list[ScheduledGroup]:
    """The objective's groups for an optimiser, without weight decay on biases and norms. With `encoder_apart` each
    becomes two groups; the second holds the encoder's parameters."""
    encoder = {id(p) for p in objective.encoder.parameters()} if encoder_apart else set()
    groups: list[ScheduledGroup] = []
    for number, g in enumerate(objective.parameter_groups(0.0)):
        for apart in (False, True) if encoder_apart else (False,):
            own = [p for p in g["params"] if (id(p) in encoder) == apart]
            decay = weight_decay * g["weight_decay_scale"]
            groups.append({"params": own, "weight_decay": decay, "number": number, "encoder": apart})
    return groups


def encoder_factor(progress: float, recipe: Recipe) -> float:
    """The encoder's learning rate at `progress`, as a share of the peak rate: 0 while it is frozen, then
    `encoder_lr_scale` times the schedule. It rises over a warm-up of its own, as its gradients are new to the
    optimiser."""
    if progress < recipe.freeze_fraction:
        return 0.0
    rise = (
        1.0
        if not recipe.freeze_fraction or not recipe.warmup
        else min(1.0, (progress - recipe.freeze_fraction) / recipe.warmup)
    )
    return recipe.encoder_lr_scale * rise * learning_rate_factor(progress, recipe.warmup)


def schedule(optimiser: torch.optim.Optimizer, objective: Objective, progress: float, recipe: Recipe) -> float:
    """Set each group's learning rate and decay for `progress`. Returns the base rate."""
    rate = recipe.learning_rate * learning_rate_factor(progress, recipe.warmup)
    slow = recipe.learning_rate * encoder_factor(progress, recipe)
    groups = objective.parameter_groups(progress)
    for group in optimiser.param_groups:
        wanted = groups[group["number"]]
        group["lr"] = (slow if group["encoder"] else rate) * wanted["lr_scale"]
        group["weight_decay"] = recipe.weight_decay * wanted["weight_decay_scale"]
    return rate
