"""The one training loop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from selfsight.console import console
from selfsight.data.batches import Batch, Batches
from selfsight.data.geometry import Geometry
from selfsight.distributed import agreed, everywhere, shared_means
from selfsight.errors import SelfsightError
from selfsight.objectives.objective import Loss, Objective
from selfsight.training.adaptation import Frozen
from selfsight.training.alarm import Alarm
from selfsight.training.batch_norm import synchronise
from selfsight.training.build import computing
from selfsight.training.checkpoints import load_checkpoint, remove_after, save_checkpoint
from selfsight.training.clock import Clock
from selfsight.training.monitors import evidence
from selfsight.training.optimisers import encoder_factor, make_optimiser, schedule
from selfsight.training.pictures import neighbour_gallery, reconstructions
from selfsight.training.recipe import Recipe
from selfsight.training.run import Run
from selfsight.training.trackers import Metrics
from selfsight.views.make import View, make_views

CHECKPOINT_SECONDS = 60.0
LOG_EVERY = 10  # steps
BAD_STEPS = 10  # in a row, after which a run stops


def fit(
    objective: Objective,
    batches: Batches,
    normalise: Geometry,
    recipe: Recipe,
    run: Run,
    clock: Clock,
    accelerator: Accelerator,
    show: Callable[[dict[str, Any]], None],
    watches: Sequence[Callable[[float, float], dict[str, float]]] = (),
    track: Sequence[str] = (),
) -> Done:
    """Train `objective` until the clock's budget is spent, from the last checkpoint if there is one.

    `watches` give further figures for a row of metrics, from its progress and that of the row before (-1 if there
    is none); `track` names trackers. Raises `Stopped` after saving when the user interrupts,
    and `SelfsightError` after ten steps in a row that were not finite.
    """
    main, alarm, pace, means = accelerator.is_main_process, Alarm(), Pace(), Means()
    objective.to(accelerator.device).to(memory_format=torch.channels_last)
    apart = recipe.encoder_apart
    if clock.first_step:  # an extension, whose heads have learnt before; groups stay, as the optimiser's state has them
        recipe = replace(recipe, frozen=0.0)
    optimiser = make_optimiser(objective, recipe.optimiser, recipe.learning_rate, recipe.weight_decay, apart)
    state = _resume(run, objective, optimiser, clock, main)
    means.go_on(state.pop("means", {}), accelerator.device)
    done = -1.0  # progress of the last row
    for row in run.read_metrics():
        alarm.look(row)
        done = row["progress"]
    model = accelerator.prepare(synchronise(objective).train())
    gradients = Gradients(model, objective, batches.steps(state["step"] * recipe.accumulate), normalise, recipe, pace)

    def save() -> None:
        if main:
            now = {"seconds": clock.seconds, "means": means.state()}
            save_checkpoint(run.checkpoints, objective, optimiser, state | now)
        pace.saved = time.monotonic()

    def write(loss: Loss, row: dict[str, Any]) -> None:
        nonlocal done
        row |= shared_means(means.lap())
        row |= {**evidence(loss.embeddings, loss.assignments), **pace.lap()}
        for watch in watches:
            row |= watch(row["progress"], done)
        done = row["progress"]
        row |= {"epoch": clock.epochs(row["step"]), "seconds": clock.seconds}
        if main:
            metrics.write(row)
            for alert in alarm.look(row):
                text = f"{alert.kind}: {alert.sentence} {alert.remedy}"
                console().print(f"Alarm at step {alert.step:,}: {text}", style="bold red", soft_wrap=True)
                run.log("alarm", text, alert.step)
            show(row)

    with Interrupts() as interrupts, Metrics(run, state["step"], track, recipe.to_dict(), main) as metrics:
        if main and state["step"] == 0 and (run.path / "views.png").exists():
            metrics.picture("views", run.path / "views.png", 0)
        progress, stop = agreed(clock.progress(state["step"]), interrupts.caught, accelerator.device)
        while progress < 1.0 and not stop:
            torch.manual_seed(_seed_of_step(recipe.seed, state["step"], accelerator.process_index))
            rate = schedule(optimiser, objective, progress, recipe)
            slow = recipe.learning_rate * encoder_factor(progress, recipe)
            optimiser.zero_grad(set_to_none=True)
            loss, norm, broken = gradients(progress, accelerator)
            if broken is None:
                optimiser.step()
                objective.after_step(progress)
                means.add(loss)
            elif main:
                run.log("skipped", f"{broken} is not finite", state["step"])
            state["bad"] = state["bad"] + 1 if broken else 0
            state["skipped"] += broken is not None
            state["step"] += 1
            clock.tick()
            progress, stop = agreed(clock.progress(state["step"]), interrupts.caught, accelerator.device)
            if broken is None and (state["step"] % LOG_EVERY == 0 or state["step"] == 1 or progress >= 1.0):
                row = {"step": state["step"], "skipped": state["skipped"], "progress": progress}
                row |= {"encoder_learning_rate": slow} if apart else {}
                write(loss, row | {"learning_rate": rate, "gradient_norm": norm})
            if broken and state["bad"] >= BAD_STEPS:
                save()
                raise SelfsightError(_not_finite(broken, state["step"], run, recipe))
            if pace.since_save() > CHECKPOINT_SECONDS:
                save()
        save()
        if main and not stop and state["step"]:
            neighbour_gallery(objective.trained, batches, normalise, run.path / "neighbours.png")
            metrics.picture("neighbours", run.path / "neighbours.png", state["step"])
            reconstructions(objective, batches, normalise, recipe.seed, run.path / "reconstructions.png")
            if (run.path / "reconstructions.png").exists():
                metrics.picture("reconstructions", run.path / "reconstructions.png", state["step"])
    if stop:
        raise Stopped(f"Stopped and saved in {run.path}. The same command goes on from here.")
    return Done(state["step"], state["skipped"])


class Done(NamedTuple):
    """How many steps were done, those among them that were skipped because something was not finite."""

    step: int
    skipped: int


class Gradients:
    """Called for each step: leaves the gradients of its batches in the parameters, but for those of a frozen encoder.

    Returns the last batch's loss, the norm of the gradients, and what was not finite, if anything: then running
    statistics are as before, and there is nothing to step along.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        stream: Iterator[Batch],
        normalise: Geometry,
        recipe: Recipe,
        pace: Pace,
    ) -> None:
        self.model, self.objective, self.stream, self.normalise = model, objective, stream, normalise
        self.recipe, self.pace = recipe, pace
        self.frozen = Frozen(objective, recipe.frozen, recipe.statistics == "kept")
        norms = (m for m in objective.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]

    def __call__(self, progress: float, accelerator: Accelerator) -> tuple[Loss, float, str | None]:
        recipe, device = self.recipe, accelerator.device
        self.frozen.before(progress)
        before = [buffer.clone() for buffer in self.statistics]
        finite = torch.tensor(True, device=device)
        for part in range(recipe.accumulate):
            batch = self.pace.wait_for(self.stream)
            views = make_views(batch, self.objective.views, self.normalise, recipe.seed, device)
            self.pace.views += len(batch.ids) * len(views)
            # Processes add up their gradients once a step, with the last of its batches.
            with accelerator.no_sync(self.model) if part < recipe.accumulate - 1 else nullcontext():
                with computing(recipe, device):
                    loss: Loss = self.model(views, progress)
                accelerator.backward(loss.total / recipe.accumulate)
            finite &= torch.isfinite(loss.total.detach())
        self.frozen.drop_gradients(progress)
        norm = accelerator.clip_grad_norm_(self.objective.parameters(), recipe.clip or float("inf"))
        finite &= torch.isfinite(torch.as_tensor(norm, device=device))
        if everywhere(finite):
            return loss, float(norm), None
        for buffer, kept in zip(self.statistics, before, strict=True):
            buffer.copy_(kept)
        return loss, float(norm), _cause(self.objective, views, loss)


def _resume(
    run: Run, objective: Objective, optimiser: torch.optim.Optimizer, clock: Clock, main: bool
) -> dict[str, Any]:
    """The state of the last checkpoint that can be read, with its weights put in place; or that of a beginning."""
    found, damaged = load_checkpoint(run.checkpoints, objective, optimiser)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "skipped": 0, "bad": 0} | (found or {})
    if damaged and not found:
        raise SelfsightError(f"No checkpoint of {run.path} can be read ({'; '.join(damaged)}). Start in another -o.")
    clock.before = state["seconds"]
    if main:
        run.go_back_to(state["step"])
        for text in damaged:
            console().print(f"{text}; going on from step {state['step']:,} before it.", style="yellow")
            run.log("damaged", text, state["step"])
        remove_after(run.checkpoints, state["step"])
        if found:
            run.log("resumed", f"after {state['seconds']:.0f} s of training", state["step"])
    return state


def _seed_of_step(seed: int, step: int, process: int) -> int:
    """Of what draws from torch's generator inside a model (dropout, stochastic depth): a function of the step, so that
    a resumed run draws the same."""
    return ((seed * 1_000_003 + step) * 4096 + process) % 2**63


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


def _not_finite(cause: str, step: int, run: Run, recipe: Recipe) -> str:
    return (
        f"{cause[0].upper()}{cause[1:]} was not finite {BAD_STEPS} steps in a row, up to step {step}. The weights "
        f"before them are kept in {run.path}. Start anew, in another folder, with a --learning-rate below "
        f"{recipe.learning_rate:.2g}."
    )


class Means:
    """Means of the loss and its parts over the steps since the last row of metrics: one batch's says little."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, loss: Loss) -> None:
        """Add those of a step."""
        self.count += 1
        for name, value in {"loss": loss.total.detach(), **loss.parts}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.float()

    def lap(self) -> dict[str, Tensor]:
        """The means since the last lap; at least one step was added."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"count": self.count, "sums": {name: float(value) for name, value in self.sums.items()}}

    def go_on(self, state: dict[str, Any], device: torch.device) -> None:
        """From a checkpoint's state, or from nothing."""
        self.count = state.get("count", 0)
        self.sums = {name: torch.tensor(value, device=device) for name, value in state.get("sums", {}).items()}


class Pace:
    """Views made and time spent waiting for data since the last row of metrics."""

    def __init__(self) -> None:
        self.saved = self.since = time.monotonic()
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

    def since_save(self) -> float:
        """Seconds since the last checkpoint."""
        return time.monotonic() - self.saved


class Stopped(KeyboardInterrupt):
    """The user stopped the run; it is saved."""


class Interrupts:
    """Within it, Ctrl-C and SIGTERM wait for the end of the step; a second Ctrl-C is immediate."""

    caught = False

    def __enter__(self) -> Interrupts:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._before[name] = signal.signal(name, self._catch)
        return self

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught:
            raise KeyboardInterrupt
        self.caught = True

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
