"""Active time: what a machine sleeps does not count, and setting the time of day changes nothing."""

from __future__ import annotations

import pytest

from selfsight.training import clock as module
from selfsight.training.clock import Clock
from selfsight.training.recipe import Budget


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(module, "time", time)
    return time


def run(clock: Clock, time: Time, *steps: float) -> None:
    for seconds in steps:
        time.now += seconds
        clock.tick()


def test_a_night_between_two_steps_is_no_training(time: Time):
    clock = Clock(Budget(minutes=10), time.now, 1)
    run(clock, time, *[2.0] * 10)
    assert clock.seconds == 20 and clock.progress(0) == pytest.approx(20 / 600)
    run(clock, time, 8 * 3600)
    assert clock.seconds == pytest.approx(22)  # the step itself took as long as the longest before it
    run(clock, time, 2.0)
    assert clock.seconds == pytest.approx(24)


def test_slow_steps_do_count(time: Time):
    clock = Clock(Budget(minutes=60), time.now, 1)
    run(clock, time, 50.0, 70.0, 65.0, 90.0, 200.0)  # minutes each, and no ten times longer than the others
    assert clock.seconds == 475
    clock = Clock(Budget(minutes=60), time.now, 1)
    run(clock, time, 0.1, 300.0)  # the first steps may be of any length: nothing is known yet
    assert clock.seconds == pytest.approx(300.1)


def test_an_extension_counts_from_where_the_run_had_ended(time: Time):
    clock = Clock(Budget(steps=20), time.now, 1, first_step=30)
    assert [clock.progress(k) for k in (30, 35, 50)] == [0.0, 0.25, 1.0]
    clock = Clock(Budget(minutes=1), time.now, 1, before=600.0, first_seconds=600.0)
    time.now += 15
    assert clock.progress(999) == pytest.approx(0.25)
