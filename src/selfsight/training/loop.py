"""The one training loop."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from selfsight.data.batches import Batch, Batches
from selfsight.errors import SelfsightError
from selfsight.objectives.objective import Loss, Objective
from selfsight.training.checkpoints import load_checkpoint, save_checkpoint
from selfsight.training.monitors import evidence
from selfsight.training.optimisers import make_optimiser, schedule
from selfsight.training.recipe import Recipe
from selfsight.training.run import Run
from selfsight.views.make import Normalisation, make_views

CHECKPOINT_SECONDS = 60.0
LOG_EVERY = 10  # steps
BAD_STEPS = 10  # in a row, after which a run stops


@dataclass
class Clock:
    """Where in its budget a run is. `started`: `time.monotonic()` at the start of the command;
    `reserve`: seconds that a run by minutes keeps for its ending; `before`: active seconds of
    earlier starts of this run."""

    recipe: Recipe
    started: float
    steps_per_epoch: int
    reserve: float = 0.0
    before: float = 0.0

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """Spent part of the budget, 1 when it is used up."""
        budget = self.recipe.budget
        if budget.minutes is not None:
            return min(1.0, self.seconds / max(1e-9, budget.minutes * 60 - self.reserve))
        batches = (budget.epochs or 0.0) * self.steps_per_epoch
        total = budget.steps or max(1, round(batches / self.recipe.accumulate))
        return min(1.0, step / total)


def fit(
    objective: Objective,
    batches: Batches,
    normalise: Normalisation,
    recipe: Recipe,
    run: Run,
    clock: Clock,
    accelerator: Accelerator,
    show: Callable[[dict[str, Any]], None],
) -> int:
    """Train `objective` until the clock's budget is spent, from the last checkpoint if there is one.

    Returns the steps done. Raises `Stopped` after saving when the user interrupts, and
    `SelfsightError` after ten non-finite losses in a row.
    """
    objective.to(accelerator.device).to(memory_format=torch.channels_last)
    optimiser = make_optimiser(objective, recipe.optimiser, recipe.learning_rate, recipe.weight_decay)
    state = {"step": 0, "seconds": 0.0, "skipped": 0} | (load_checkpoint(run.checkpoints, objective, optimiser) or {})
    clock.before = state["seconds"]
    run.keep_metrics_until(state["step"])
    model = accelerator.prepare(objective.train())
    stream = batches.steps(first=state["step"] * recipe.accumulate)
    pace, bad = Pace(), 0

    def save() -> None:
        save_checkpoint(run.checkpoints, objective, optimiser, state | {"seconds": clock.seconds})

    with Interrupts() as interrupts, Metrics(run, state["step"]) as metrics:
        while (progress := clock.progress(state["step"])) < 1.0:
            rate = schedule(optimiser, objective, progress, recipe)
            optimiser.zero_grad(set_to_none=True)
            finite = torch.tensor(True, device=accelerator.device)
            for _ in range(recipe.accumulate):
                batch = pace.wait_for(stream)
                views = make_views(batch, objective.views, normalise, recipe.seed, accelerator.device)
                with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                    loss: Loss = model(views, progress)
                accelerator.backward(loss.total / recipe.accumulate)
                finite &= torch.isfinite(loss.total.detach())
                pace.views += len(batch.ids) * len(views)
            if finite:
                if recipe.clip > 0:
                    accelerator.clip_grad_norm_(objective.parameters(), recipe.clip)
                optimiser.step()
                objective.after_step(progress)
                bad = 0
            else:
                state["skipped"], bad = state["skipped"] + 1, bad + 1
                run.log(f"step {state['step']}: the loss is {loss.total.item()}, skipped")
                if bad == BAD_STEPS:
                    raise SelfsightError(_not_finite(state["step"], recipe))
            state["step"] += 1
            last = clock.progress(state["step"]) >= 1.0
            if finite and (state["step"] % LOG_EVERY == 0 or state["step"] == 1 or last):
                epoch = state["step"] * recipe.accumulate / batches.steps_per_epoch
                row = {**state, "progress": clock.progress(state["step"]), "epoch": epoch, "learning_rate": rate}
                row |= {"loss": loss.total.item(), **{k: float(v) for k, v in loss.parts.items()}}
                row |= {**evidence(loss.embeddings), **pace.lap(), "seconds": clock.seconds}
                metrics.write(row)
                show(row)
            if interrupts.caught or pace.since_save() > CHECKPOINT_SECONDS:
                save()
                pace.saved = time.monotonic()
                interrupts.leave()
        save()
    return int(state["step"])


def _not_finite(step: int, recipe: Recipe) -> str:
    return (
        f"The loss was not finite {BAD_STEPS} steps in a row, up to step {step}. "
        f"Start anew, in another folder, with a --learning-rate below {recipe.learning_rate:.2g}."
    )


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


class Metrics:
    """Writes rows to `metrics.jsonl` and TensorBoard."""

    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.file = run.metrics_file.open("a")
        self.board = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """One row, on disk when this returns."""
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for key, value in row.items():
            self.board.add_scalar(key, value, row["step"])

    def __enter__(self) -> Metrics:
        # TensorBoard writes in a thread. What stops it there it also raises here: once is enough.
        self._hook = threading.excepthook
        threading.excepthook = lambda args: None if args.exc_type is OSError else self._hook(args)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.file.close()
            self.board.close()
        finally:
            threading.excepthook = self._hook


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

    def leave(self) -> None:
        """Raise `Stopped` if there was an interrupt."""
        if self.caught:
            raise Stopped

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)
