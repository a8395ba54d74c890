"""Pretraining as the loop sees it: views of batches, an objective, its optimiser and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from selfsight.data.batches import Batches
from selfsight.data.geometry import Geometry
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
from selfsight.views.make import make_views


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
    by = replace(recipe, freeze_fraction=0.0) if clock.first_step else recipe
    task = Pretraining(objective, batches, normalise, by, accelerator, recipe.encoder_apart)
    main = accelerator.is_main_process
    recorder = Recorder(run, accelerator.device, show, watches, track, by.to_dict(), main, Alarm())
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
        groups = groups_of(objective, recipe.weight_decay, encoder_apart)
        self.optimiser = make_optimiser(groups, recipe.optimiser, recipe.learning_rate)
        self.remedy = f"Start anew, in another folder, with a --learning-rate below {recipe.learning_rate:.2g}."
        self.pace = Pace()
        self.frozen = Frozen(objective.encoder, objective, recipe.freeze_fraction, recipe.batch_norm_policy == "kept")
        self.stepper = Stepper(self.module, accelerator, recipe.accumulate, recipe.clip)

    def begin(self, step: int) -> None:
        """Batches from this step on, for a module that trains."""
        self.stepper.begin()
        self.stream = self.batches.steps(step * self.recipe.accumulate)

    def schedule(self, progress: float) -> dict[str, float]:
        """Set the rates in force; what a row of metrics says of them."""
        rate = schedule(self.optimiser, self.module, progress, self.recipe)
        slow = self.recipe.learning_rate * encoder_factor(progress, self.recipe)
        return ({"encoder_learning_rate": slow} if self.apart else {}) | {"learning_rate": rate}

    def gradients(self, progress: float) -> Step:
        """Leave the gradients of a step's batches in the parameters, but for those of a frozen encoder."""
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
            "a pixel of the views": [view.pixels for view in views],
            "a weight": self.module.parameters(),
            "an embedding": [loss.embeddings],
        }
        return Forward(loss.total, loss.parts, suspects)

    def after_step(self, progress: float) -> None:
        """What moves without a gradient."""
        self.module.after_step(progress)

    def evidence(self) -> dict[str, float]:
        """What the embeddings of the last step say, and the pace since the last row."""
        return {**evidence(self.seen.embeddings, self.seen.assignments), **self.pace.lap()}

    def draw(self, folder: Path, step: int) -> tuple[str, ...]:
        """Draw what the objective sees, or what it has learnt; the names."""
        objective, seen, seed = self.module, (self.batches, self.normalise), self.recipe.seed
        if step == 0:
            contact_sheet(self.batches, objective.views, self.normalise, seed, folder / "views.png")
            return ("views",)
        neighbour_gallery(objective.trained, *seen, folder / "neighbours.png")
        reconstructions(objective, *seen, seed, folder / "reconstructions.png")
        return "neighbours", "reconstructions"


class ScheduledGroup(Group):
    """number: which of the objective's groups it is, or a part of. encoder: whether all of it is the encoder's."""

    number: int
    encoder: bool


def groups_of(objective: Objective, weight_decay: float, encoder_apart: bool = False) -> list[ScheduledGroup]:
    """The objective's groups for an optimiser, no weight decay on biases and norms. With `encoder_apart` each group is
    two, of which the second holds what belongs to the encoder."""
    encoder = {id(p) for p in objective.encoder.parameters()} if encoder_apart else set()
    groups: list[ScheduledGroup] = []
    for number, g in enumerate(objective.parameter_groups(0.0)):
        for apart in (False, True) if encoder_apart else (False,):
            own = [p for p in g["params"] if (id(p) in encoder) == apart]
            decay = weight_decay * g["weight_decay_scale"]
            groups.append({"params": own, "weight_decay": decay, "number": number, "encoder": apart})
    return groups


def encoder_factor(progress: float, recipe: Recipe) -> float:
    """The encoder's learning rate as a part of the peak one: 0 while it is frozen, then `encoder_lr_scale` of the
    schedule's. It rises to that over another warm-up, as its gradients are new to the optimiser too."""
    if progress < recipe.freeze_fraction:
        return 0.0
    rise = (
        1.0
        if not recipe.freeze_fraction or not recipe.warmup
        else min(1.0, (progress - recipe.freeze_fraction) / recipe.warmup)
    )
    return recipe.encoder_lr_scale * rise * learning_rate_factor(progress, recipe.warmup)


def schedule(optimiser: torch.optim.Optimizer, objective: Objective, progress: float, recipe: Recipe) -> float:
    """Set each group's rate and decay for `progress`; returns the base rate in force."""
    rate = recipe.learning_rate * learning_rate_factor(progress, recipe.warmup)
    slow = recipe.learning_rate * encoder_factor(progress, recipe)
    groups = objective.parameter_groups(progress)
    for group in optimiser.param_groups:
        wanted = groups[group["number"]]
        group["lr"] = (slow if group["encoder"] else rate) * wanted["lr_scale"]
        group["weight_decay"] = recipe.weight_decay * wanted["weight_decay_scale"]
    return rate
