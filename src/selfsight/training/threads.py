"""The number of threads of a run by minutes on a CPU, which changes as other programs come and go.

Threads wait for each other many times a step, at the end of every parallel region and inside oneDNN's convolutions, and
they wait spinning. Where two of them share a core, as beside a busy program, each wait lasts until the scheduler takes
the core away, 4 ms later, and a step takes twenty times as long (benchmarks/README.md, "Threads"). One thread has no
one to wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

from selfsight.machine import most_threads, thread_rates
from selfsight.training.recipe import Recipe

LOOK_SECONDS, LOOK_SECONDS_FEWER = 12.0, 5.0  # between two looks at the machine, with all threads and with fewer
SOONER_SECONDS = 3.0  # between two where steps are slow
SLOW, SLOW_STEPS = 1.5, 3  # times the usual step; so many in a row call for a trial, whatever a look says
BETTER = 1.15  # times as fast, before another number is tried
RECENT = 20  # steps that say what is usual
TRIAL, TRIAL_SECONDS = 4, 0.5  # steps that a trial takes at least, the first of which warms up, and their time
HOPELESS, HOPELESS_SECONDS = 3.0, 1.0  # a step of a trial that much slower, and that long, ends it
LOST = 0.15  # share of the time that trials in vain may take


def most_for(canvases: str, cores: int) -> int:
    """The most threads that compute: all cores, or half of them where the others decode during training, as threads
    that decode and threads that compute slow each other down."""
    return cores - cores // 2 if canvases == "stream" else cores


def threads_for(recipe: Recipe, device: str, cores: int, resumed: bool) -> Threads | None:
    """What chooses the number of threads during a run; None where it stays as it is: with --steps and --epochs, which
    repeat to the bit, off the CPU, and where a person wrote the number.

    device: its kind. cores: that this process may use. resumed: whether an earlier start measured the recipe's number.
    """
    most = max(recipe.threads, most_for(recipe.canvases, cores))
    if recipe.budget.minutes is None or device != "cpu" or "threads" not in recipe.reasons or most == 1:
        return None
    choices = sorted({1, max(1, most // 2), most - 1, most})
    threads = Threads(recipe.threads, sorted({*choices, recipe.threads}))
    if resumed:
        threads.start(most_threads(thread_rates(choices)))
    return threads


class Threads:
    """Chooses the number of threads by the time that steps take, and by looks at the machine.

    A look says which number is worth a trial, and the trial's steps decide. A look is due every 12 seconds, every 5
    with fewer threads than there could be, and where a step is much slower than usual. After three such steps fewer
    threads are tried, unless a trial has just ended.

    number: of threads, now.
    choices: to choose from.
    look: the machine's speed by number of threads.
    """

    def __init__(
        self,
        number: int,
        choices: Sequence[int],
        look: Callable[[Sequence[int]], Mapping[int, float]] = thread_rates,
    ) -> None:
        self.number, self.choices, self.look = number, choices, look
        self._steps: list[float] = []  # seconds of the last ones
        self._trial: tuple[int, float] | None = None  # (number, seconds of a step) before it
        self._due = self._sooner = self._again = 0.0  # when the next look or trial may be
        self._slow = 0  # steps in a row, up to now
        self._news = ""

    def start(self, number: int) -> None:
        """Start with `number`, as measured anew."""
        if number != self.number:
            self._become(number, "measured anew")

    def after(self, seconds: float, now: float) -> int:
        """The number of threads for the next step, after one that took `seconds` and ended at `now`."""
        self._steps.append(seconds)
        if self._trial:
            self._judge(*self._trial, now)
            return self.number
        usual = median(self._steps)
        self._slow = self._slow + 1 if len(self._steps) > TRIAL and seconds > SLOW * usual else 0
        best = self.number
        if now >= self._due or (self._slow and now >= self._sooner):
            best = self._looked(now)
        if best == self.number and self._slow >= SLOW_STEPS and now >= self._again:
            best = max((n for n in self.choices if n < self.number), default=self.number)
        if best != self.number:
            self._trial = self.number, seconds if self._slow else median(self._steps[-3:])
            slow = f"a step took {seconds:.2f} s, usually {usual:.2f} s"
            self._become(best, slow if self._slow else "faster as the machine is now")
        del self._steps[:-RECENT]
        return self.number

    def news(self) -> str:
        """What changed since this was last asked, and why; "" if nothing did."""
        news, self._news = self._news, ""
        return news

    def _looked(self, now: float) -> int:
        """The number that a look finds better than this one, or this one."""
        every = LOOK_SECONDS if self.number == max(self.choices) else LOOK_SECONDS_FEWER
        self._due, self._sooner = now + every, now + SOONER_SECONDS
        rates = self.look(self.choices)
        best = most_threads(rates, BETTER)
        return best if rates[best] > BETTER * rates[self.number] else self.number

    def _judge(self, number: int, before: float, now: float) -> None:
        """End a trial if enough steps were made, with the number that was faster."""
        last, spent = self._steps[-1], sum(self._steps)
        hopeless = last > max(HOPELESS * before, HOPELESS_SECONDS)
        if not hopeless and (len(self._steps) < TRIAL or spent < TRIAL_SECONDS):
            return
        self._trial, took = None, last if hopeless else median(self._steps[1:])
        self._due, self._again = now + LOOK_SECONDS_FEWER, now + LOOK_SECONDS
        if took >= before:
            self._due = self._sooner = self._again = now + max(LOOK_SECONDS, spent / LOST)
            self._become(number, f"back, as a step took {took:.2f} s, and {before:.2f} s before")

    def _become(self, number: int, cause: str) -> None:
        self._news += f"{'; ' if self._news else ''}{self.number} -> {number}: {cause}"
        self.number, self._steps, self._slow = number, [], 0


def adjust(threads: Threads, seconds: float) -> str:
    """Give PyTorch as many threads as `threads` says after a step of `seconds`. Returns what changed and why; "" if
    nothing did."""
    before = threads.number
    if threads.after(seconds, time.monotonic()) != before:
        torch.set_num_threads(threads.number)
    return threads.news()
