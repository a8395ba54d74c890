"""The number of threads of a run by minutes: it follows a simulated machine, and a real run changes and logs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import make_batches, tiny_encoder, tiny_recipe, two_views, write_folder

from selfsight.machine import thread_rates
from selfsight.objectives.simclr import SimCLR
from selfsight.training import pretraining
from selfsight.training.clock import Clock
from selfsight.training.measure import measure_normalisation
from selfsight.training.recipe import Budget, Recipe
from selfsight.training.run import Run
from selfsight.training.threads import Threads, most_for, threads_for

QUIET, BUSY = {1: 0.235, 2: 0.144}, {1: 0.201, 2: 3.51}  # seconds of a step, as measured (benchmarks/README.md)
FREE, SHARED = {1: 8400.0, 2: 14000.0}, {1: 6900.0, 2: 140.0}  # a look


class Machine:
    """Two cores, which another program wants between two times.

    scale: of the steps' length. looks: replaces what a look sees of the machine.
    """

    def __init__(
        self, begins: float, ends: float, scale: float = 1.0, noise: float = 0.1, number: int = 2,
        looks: Callable[[bool], Mapping[int, float]] | None = None, beside: Mapping[int, float] = BUSY,
    ) -> None:  # fmt: skip
        self.begins, self.ends, self.scale, self.noise, self.looks = begins, ends, scale, noise, looks
        self.beside = beside
        self.now, self.draws = 0.0, np.random.default_rng(0)
        self.threads = Threads(number, [1, 2], self.look)
        self.steps: list[tuple[float, float, int]] = []  # (end, seconds, number of threads)
        self.changes: list[str] = []

    @property
    def busy(self) -> bool:
        return self.begins <= self.now < self.ends

    def look(self, numbers: Sequence[int]) -> dict[int, float]:
        self.now += 0.05
        rates = self.looks(self.busy) if self.looks else SHARED if self.busy else FREE
        return {n: rates[n] * self.draws.lognormal(0, self.noise) for n in numbers}

    def run(self, until: float, slow: Mapping[int, float] | None = None) -> Machine:
        """Take steps until a time. slow: seconds that a step takes longer, by its number."""
        while self.now < until:
            number = self.threads.number
            seconds = (self.beside if self.busy else QUIET)[number] * self.scale * self.draws.lognormal(0, self.noise)
            seconds += (slow or {}).get(len(self.steps), 0.0)
            self.now += seconds
            self.steps.append((self.now, seconds, number))
            self.threads.after(seconds, self.now)
            self.changes += [news] if (news := self.threads.news()) else []
        return self

    def speed(self, since: float, until: float) -> float:
        """Steps a second, as a share of the quiet machine's with two threads."""
        return sum(since < end <= until for end, *_ in self.steps) / (until - since) * QUIET[2] * self.scale

    def numbers(self, since: float, until: float) -> set[int]:
        return {number for end, _, number in self.steps if since < end <= until}


@pytest.mark.parametrize("scale", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_neighbour_comes_and_goes(scale: float, noise: float):
    machine = Machine(60.0, 180.0, scale, noise).run(300.0)
    assert machine.speed(0, 60) > 0.95
    assert machine.speed(60, 120) >= 0.45 and machine.speed(120, 180) > 0.6
    assert machine.numbers(90, 180) == {1}
    assert machine.numbers(210, 300) == {2} and machine.speed(210, 300) > 0.95
    assert [change.partition(":")[0] for change in machine.changes] == ["2 -> 1", "1 -> 2"]
    assert "a step took" in machine.changes[0] and "usually" in machine.changes[0]


@pytest.mark.parametrize("scale", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("rate", [5900.0, 14000.0])  # which a look may see, or not
def test_a_milder_neighbour_of_the_same_session(scale: float, rate: float):
    """Its load is spread, as Linux shares the cores among sessions: two threads keep 43 %."""
    milder, looks = {1: 0.221, 2: 0.339}, {1: 7000.0, 2: rate}
    machine = Machine(60.0, 180.0, scale, looks=lambda busy: looks if busy else FREE, beside=milder).run(300.0)
    assert machine.speed(60, 180) > 0.5 and machine.speed(210, 300) > 0.95


def test_left_alone_two_threads_crawl_beside_a_neighbour():
    """The claims above are worth something: nothing but the change keeps the speed."""
    left = Machine(60.0, 180.0)
    left.threads.choices = [2]
    assert left.run(300.0).speed(60, 180) < 0.06 and not left.changes


def test_a_busy_start_is_noticed_at_once_and_does_not_last():
    for number in (1, 2):
        machine = Machine(0.0, 60.0, number=number).run(180.0)
        assert machine.speed(0, 60) > 0.6 and machine.numbers(10, 60) == {1}
        assert machine.numbers(90, 180) == {2}


def test_a_slow_step_or_two_change_nothing():
    machine = Machine(1e9, 1e9).run(200.0, slow={300: 3.0, 600: 1.0, 601: 1.0, 900: 20.0})
    assert not machine.changes and machine.numbers(0, 200) == {2}


def test_looks_that_are_wrong_cost_little_as_steps_decide():
    timid = Machine(1e9, 1e9, looks=lambda busy: SHARED).run(300.0)
    assert timid.changes and timid.speed(0, 300) > 0.9
    bold = Machine(0.0, 1e9, number=1, looks=lambda busy: FREE).run(300.0)
    assert bold.changes and bold.speed(0, 300) > 0.8 * QUIET[2] / BUSY[1]
    assert all("back, as a step took" in change for change in [*timid.changes[1::2], *bold.changes[1::2]])


def test_one_busy_core_of_sixteen_is_left_to_its_program():
    seconds, now = {1: 1.0, 8: 0.15, 15: 0.09, 16: 2.0}, 0.0
    rates = {1: 100.0, 8: 700.0, 15: 1200.0, 16: 20.0}
    threads = Threads(16, [1, 8, 15, 16], lambda numbers: {n: rates[n] for n in numbers})
    for _ in range(100):
        now += seconds[threads.number]
        threads.after(seconds[threads.number], now)
    assert threads.number == 15


def by_minutes(**changes: object) -> Recipe:
    recipe = replace(tiny_recipe(two_views(16)), budget=Budget(minutes=1.0), threads=2, reasons={"threads": "measured"})
    return replace(recipe, **changes)


def test_only_runs_by_minutes_on_a_cpu_whose_number_nobody_wrote_change_it():
    found = threads_for(by_minutes(), "cpu", 8, False)
    assert found and (found.number, found.choices) == (2, [1, 2, 4, 7, 8])
    found = threads_for(by_minutes(canvases="stream"), "cpu", 8, False)
    assert found and found.choices == [1, 2, 3, 4] and found.choices[-1] == most_for("stream", 8)
    for budget in (Budget(steps=9), Budget(epochs=2.0)):
        assert threads_for(by_minutes(budget=budget), "cpu", 8, False) is None
    assert threads_for(by_minutes(), "cuda", 8, False) is None
    assert threads_for(by_minutes(reasons={}), "cpu", 8, False) is None
    assert threads_for(by_minutes(threads=1), "cpu", 1, False) is None


def test_a_resumed_run_measures_anew_and_says_so():
    found = threads_for(by_minutes(threads=1), "cpu", 2, True)
    assert found and (found.news() == "1 -> 2: measured anew") == (found.number == 2)


def test_a_look_is_short_and_leaves_the_number_as_it_was():
    before, began = torch.get_num_threads(), time.monotonic()
    rates = thread_rates([1, 2])
    assert rates.keys() == {1, 2} and min(rates.values()) > 0
    assert torch.get_num_threads() == before and time.monotonic() - began < 2.0


def test_a_run_by_minutes_changes_its_threads_and_logs_it(tmp_path: Path):
    batches = make_batches(write_folder(tmp_path / "photos", 24), 12)
    recipe, run = by_minutes(budget=Budget(minutes=0.03), threads=1), Run(tmp_path / "run")
    run.path.mkdir()
    threads = Threads(1, [1, 2], lambda numbers: {1: 1.0, 2: 2.0})
    clock = Clock(recipe.budget, time.monotonic(), batches.steps_per_epoch)
    objective, normalise = SimCLR(tiny_encoder(), two_views()), measure_normalisation(batches.canvases)
    seen: list[int] = []

    def show(row: dict[str, float]) -> None:
        seen.append(torch.get_num_threads())

    pretraining.train(
        objective, batches, normalise, recipe, run, clock, Accelerator(cpu=True), show, threads=threads
    )  # fmt: skip
    changes = [event.text.partition(":")[0] for event in run.read_log() if event.kind == "threads"]
    assert changes[0] == "1 -> 2" and 2 in seen
    numbers = [1, *(int(change[-1]) for change in changes)]
    assert changes == [f"{a} -> {b}" for a, b in pairwise(numbers)]
    assert torch.get_num_threads() == threads.number == numbers[-1]
