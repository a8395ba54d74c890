"""The one training loop: for pretraining and for any other `Task`."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from selfsight.console import console
from selfsight.distributed import agreed
from selfsight.errors import DataError, TrainingError
from selfsight.results import duration
from selfsight.training.checkpoints import Saved, Sums, load_checkpoint, remove_after, save_checkpoint
from selfsight.training.clock import Clock
from selfsight.training.recorder import Recorder
from selfsight.training.run import Folder
from selfsight.training.threads import Threads, adjust

CHECKPOINT_SECONDS = 60.0
LOG_EVERY = 10  # steps
BAD_STEPS = 10  # in a row, after which a run stops


class Step(NamedTuple):
    """The result of a step.

    figures: scalars by name, the loss among them.
    norm: of its gradients.
    broken: what was not finite; None if everything was.
    """

    figures: dict[str, Tensor]
    norm: float
    broken: str | None


class Task(Protocol):
    """What the loop trains: a pretext task around its encoder, or a head.

    module: what is stepped and saved.
    optimiser: of its parameters.
    """

    @property
    def module(self) -> nn.Module: ...

    optimiser: torch.optim.Optimizer

    def begin(self, step: int) -> None:
        """Called once the weights are in place. `step` is the next one; the same step always gets the same data."""

    def schedule(self, progress: float) -> dict[str, float]:
        """Set what depends on `progress`. Returns columns for a row of metrics."""

    def gradients(self, progress: float) -> Step:
        """Compute the gradients of a step into the parameters, which have none yet."""

    def after_step(self, progress: float) -> None:
        """Called after the optimiser's step."""

    def evidence(self) -> dict[str, float]:
        """Further columns for a row of metrics, about the last step."""

    def remedy(self, cause: str, learnt: bool) -> str:
        """Advice, in sentences, where steps are not finite.

        cause: what was not finite, as `Step.broken` names it.
        learnt: whether any earlier step was finite.
        """

    def draw(self, folder: Path, step: int) -> tuple[str, ...]:
        """Draw pictures NAME.png in `folder`, before the first step (0) or after the last one. Returns their names."""


@dataclass
class State:
    """The state of a training, as in its checkpoints.

    step: steps done.
    seconds: active ones.
    skipped: steps skipped.
    bad: steps in a row up to now that were not finite.
    means: since the last row of metrics.
    """

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    bad: int = 0
    means: Sums = field(default_factory=Sums)

    @classmethod
    def of(cls, found: Saved) -> State:
        """What a checkpoint says."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in found.items() if name in known}
        return cls(**values)

    def count(self, broken: bool) -> None:
        """One step more."""
        self.step += 1
        self.skipped += broken
        self.bad = self.bad + 1 if broken else 0


class Done(NamedTuple):
    """The end of a training.

    step: steps done, skipped ones included.
    skipped: steps skipped because something was not finite.
    """

    step: int
    skipped: int


def fit(
    task: Task,
    run: Folder,
    clock: Clock,
    accelerator: Accelerator,
    recorder: Recorder,
    seed: int,
    threads: Threads | None = None,
) -> Done:
    """Train until the clock's budget is spent, from the last checkpoint of the run if there is one.

    threads: what chooses their number on the way, if it may change.

    Returns the steps done and skipped. Raises `Stopped`, after saving, when the user interrupts, and `TrainingError`
    after ten steps in a row that were not finite.
    """
    main, saved = accelerator.is_main_process, time.monotonic()
    state = _resume(run, task, clock, main)
    opened = recorder.opened(state.step, state.means)
    task.begin(state.step)

    def save() -> None:
        nonlocal saved
        if main:
            state.seconds, state.means = clock.seconds, recorder.means.state()
            save_checkpoint(run.checkpoints, task.module, task.optimiser, asdict(state))
        saved = time.monotonic()

    def draw() -> None:
        for name in task.draw(run.path, state.step) if main else ():
            recorder.picture(name, state.step)

    with Interrupts() as interrupts, opened:
        if state.step == 0:
            draw()
        progress, stop = agreed(clock.progress(state.step), interrupts.caught, accelerator.device)
        while progress < 1.0 and not stop:
            torch.manual_seed(_seed_of_step(seed, state.step, accelerator.process_index))
            began = time.monotonic()
            rates, step = take_step(task, progress)
            if threads and (change := adjust(threads, time.monotonic() - began)) and main:
                run.log("threads", change, state.step)
            if step.broken is None:
                recorder.means.add(step.figures)
            elif main:
                run.log("skipped", f"{step.broken} is not finite", state.step)
            state.count(step.broken is not None)
            clock.tick()
            progress, stop = agreed(clock.progress(state.step), interrupts.caught, accelerator.device)
            if step.broken is None and (state.step % LOG_EVERY == 0 or state.step == 1 or progress >= 1.0):
                row = {"step": state.step, "skipped": state.skipped, "progress": progress}
                spent = {"epoch": clock.epochs(state.step), "seconds": clock.seconds}
                recorder.write(row | rates | {"gradient_norm": step.norm}, task.evidence(), spent)
            if step.broken and state.bad >= BAD_STEPS:
                save()
                remedy = task.remedy(step.broken, state.skipped < state.step)
                raise TrainingError(_not_finite(step.broken, state.step, run, remedy))
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save()
        save()
        if not stop and state.step:
            draw()
    if stop:
        raise Stopped(f"Stopped and saved in {run.path}. The same command goes on from here.")
    return Done(state.step, state.skipped)


def take_step(task: Task, progress: float) -> tuple[dict[str, float], Step]:
    """Take one step of `task`, unless something is not finite. Returns (columns of its schedule, the step)."""
    rates = task.schedule(progress)
    task.optimiser.zero_grad(set_to_none=True)
    step = task.gradients(progress)
    if step.broken is None:
        task.optimiser.step()
        task.after_step(progress)
    return rates, step


def _resume(run: Folder, task: Task, clock: Clock, main: bool) -> State:
    """The state of the last readable checkpoint, with its weights restored, or of a new training."""
    found, damaged = load_checkpoint(run.checkpoints, task.module, task.optimiser)
    state = State.of(found or {})
    if damaged and not found:
        raise DataError(f"No checkpoint of {run.path} can be read ({'; '.join(damaged)}). Start in another -o.")
    clock.before = state.seconds
    if main:
        run.go_back_to(state.step)
        for text in damaged:
            console().print(f"{text}; going on from step {state.step:,} before it.", style="yellow")
            run.log("damaged", text, state.step)
        remove_after(run.checkpoints, state.step)
        if found:
            run.log("resumed", f"after {duration(state.seconds)}", state.step)
    return state


def _seed_of_step(seed: int, step: int, process: int) -> int:
    """The seed of torch's generator for a step, as dropout and stochastic depth use it. It is a function of the step,
    so that a resumed run draws the same."""
    return ((seed * 1_000_003 + step) * 4096 + process) % 2**63


def _not_finite(cause: str, step: int, run: Folder, remedy: str) -> str:
    return (
        f"{cause[0].upper()}{cause[1:]} was not finite {BAD_STEPS} steps in a row, up to step {step}. The weights "
        f"before them are kept in {run.path}. {remedy}"
    )


class Stopped(KeyboardInterrupt):
    """Raised when the user stopped the run, after it was saved."""


class Interrupts:
    """Context in which Ctrl-C and SIGTERM wait for the end of the step. A second Ctrl-C stops at once."""

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
