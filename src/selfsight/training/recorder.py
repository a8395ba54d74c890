"""The record of a training in progress: rows of metrics, alarms, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from selfsight.console import console
from selfsight.distributed import shared_means
from selfsight.training.alarm import Alarm
from selfsight.training.checkpoints import Sums
from selfsight.training.run import Folder
from selfsight.training.trackers import Metrics

Watch = Callable[[float, float], dict[str, float]]


class Recorder:
    """Takes the figures of each step, and writes a row of metrics when the loop asks for one.

    show: called with each row.
    watches: functions of (progress, progress of the row before, -1 if none) that give further figures for a row.
    track: names of trackers.
    config: for the trackers.
    main: whether this process writes.
    alarm: looks at each row, if given.
    """

    def __init__(
        self,
        run: Folder,
        device: torch.device,
        show: Callable[[dict[str, float]], None],
        watches: Sequence[Watch] = (),
        track: Sequence[str] = (),
        config: Mapping[str, object] | None = None,
        main: bool = True,
        alarm: Alarm | None = None,
    ) -> None:
        self.run, self.device, self.show, self.watches, self.main = run, device, show, watches, main
        self.track, self.config = track, config
        self.alarm, self.means, self.last = alarm, Means(), -1.0

    def opened(self, step: int, means: Sums) -> Recorder:
        """This recorder, to be used as a context, at `step` and with the `means` of a checkpoint."""
        self.means.go_on(means, self.device)
        for row in self.run.read_metrics():
            if self.alarm:
                self.alarm.look(row)
            self.last = row["progress"]
        self.step = step
        return self

    def __enter__(self) -> Recorder:
        self.metrics = Metrics(self.run, self.step, self.track, self.config, self.main)
        self.metrics.__enter__()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.metrics.__exit__(kind, value, trace)

    def write(self, row: Mapping[str, float], seen: Mapping[str, float], after: Mapping[str, float]) -> None:
        """Write a row of metrics. Every process has to call it.

        row: first columns, at least step and progress; then come the means since the last row.
        seen: figures of the last step; then come those of the watches.
        after: last columns.

        Raises `ValueError` for a mean with the name of another figure.
        """
        means = shared_means(self.means.lap())
        if taken := sorted(means.keys() & {*row, *seen}):
            raise ValueError(f"A part of the loss is called {taken[0]}, as a figure of every row is. Rename it.")
        full = {**row, **means, **seen}
        for watch in self.watches:
            full |= watch(full["progress"], self.last)
        self.last = full["progress"]
        full |= after
        if not self.main:
            return
        self.metrics.write(full)
        for alert in self.alarm.look(full) if self.alarm else ():
            text = f"{alert.kind}: {alert.sentence} {alert.remedy}"
            console().print(f"Alarm at step {alert.step:,}: {text}", style="bold red", soft_wrap=True)
            self.run.log("alarm", text, alert.step)
        self.show(full)

    def picture(self, name: str, step: int) -> None:
        """Hand NAME.png of the run to the trackers, if there is one."""
        file: Path = self.run.path / f"{name}.png"
        if self.main and file.exists():
            self.metrics.picture(name, file, step)


class Means:
    """Means of figures over the steps since the last row of metrics: one batch's says little."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, figures: dict[str, Tensor]) -> None:
        """Add the figures of a step."""
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.float()

    def lap(self) -> dict[str, Tensor]:
        """The means since the last lap. At least one step must have been added."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state(self) -> Sums:
        """The sums, for a checkpoint."""
        return {"count": self.count, "sums": {name: float(value) for name, value in self.sums.items()}}

    def go_on(self, state: Sums, device: torch.device) -> None:
        """Go on from the sums of a checkpoint."""
        self.count = state.get("count", 0)
        self.sums = {name: torch.tensor(value, device=device) for name, value in state.get("sums", {}).items()}
