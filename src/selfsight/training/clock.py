"""Where in its budget a run is: `progress` in [0, 1], which drives every schedule."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from selfsight.training.recipe import Budget

# A step this long, and many times longer than any before it, is a machine that slept or a process that was stopped.
ASLEEP_SECONDS, ASLEEP_TIMES = 60.0, 10.0
SEEN_BEFORE = 3  # steps, until the longest of them says something


@dataclass
class Clock:
    """The active time and the progress of a run.

    Time between two starts does not count, nor a gap between two steps in which the machine slept. The clock is
    monotonic: setting the time of day changes nothing.

    budget: of the run.
    started: `time.monotonic()` at the start of the command.
    batches_per_epoch: batches in one pass over the data.
    accumulate: batches per step.
    reserve: seconds that a run by minutes keeps for its ending.
    before: active seconds of earlier starts of this run.
    first_step: step at which the budget begins, after the end of the run that `--extend` continues.
    first_seconds: active seconds at that step.
    """

    budget: Budget
    started: float
    batches_per_epoch: int
    accumulate: int = 1
    reserve: float = 0.0
    before: float = 0.0
    first_step: int = 0
    first_seconds: float = 0.0
    slept: float = field(default=0.0, init=False)
    _seen: int = field(default=0, init=False)
    _last: float = field(default=0.0, init=False)
    _longest: float = field(default=0.0, init=False)

    @property
    def seconds(self) -> float:
        """Active seconds of this run, over all its starts."""
        return self.before + time.monotonic() - self.started - self.slept

    @property
    def steps(self) -> int | None:
        """Steps of a budget by steps or epochs; None for a budget by minutes."""
        if self.budget.minutes is not None:
            return None
        batches = (self.budget.epochs or 0.0) * self.batches_per_epoch
        return self.budget.steps or max(1, round(batches / self.accumulate))

    def epochs(self, step: int) -> float:
        """Passes over the data after `step` steps."""
        return step * self.accumulate / self.batches_per_epoch

    def progress(self, step: int) -> float:
        """Spent share of the budget, 0 to 1."""
        if self.steps is not None:
            return min(1.0, max(0.0, (step - self.first_step) / self.steps))
        budget = (self.budget.minutes or 0.0) * 60
        return min(1.0, max(0.0, (self.seconds - self.first_seconds) / max(1e-9, budget - self.reserve)))

    def tick(self) -> None:
        """Called after each step, to notice gaps in which the machine slept."""
        now = time.monotonic()
        if self._seen:
            gap = now - self._last
            if self._seen > SEEN_BEFORE and gap > max(ASLEEP_SECONDS, ASLEEP_TIMES * self._longest):
                self.slept += gap - self._longest
            else:
                self._longest = max(self._longest, gap)
        self._seen, self._last = self._seen + 1, now
