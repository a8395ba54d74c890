"""A run beside one busy program: how much of its quiet speed it keeps, and how soon it is as fast as before.

    python benchmarks/threads.py

Pretrains on 2,000 images of CIFAR-10 by --minutes, as a user types it. After half a minute a program that never waits
starts in a session of its own, and ends a minute later. Then the same by --steps, whose number of threads is fixed.
Takes under three minutes on an otherwise quiet machine; one row in results/threads.jsonl. Linux gives each session
(and each container) the same share of the cores, so a neighbour of the same session would be the milder case.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from plan import cifar
from speedrun import HERE

from selfsight.machine import environment
from selfsight.training.loop import LOG_EVERY
from selfsight.training.run import Run

RESULTS = HERE / "results" / "threads.jsonl"
QUIET, BESIDE, AFTER, FIXED = 20.0, 60.0, 30.0, 15.0  # seconds
BUSY = [sys.executable, "-c", "while True: pass"]


class Training:
    """A pretraining in a process of its own, and when it had done which step."""

    def __init__(self, source: Path, out: Path, *budget: str) -> None:
        command = [sys.executable, "-m", "selfsight", "pretrain", str(source), "-o", str(out), "--batch-size", "64"]
        self.process = subprocess.Popen([*command, *budget], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.run, self.seen = Run(out), [(time.monotonic(), 0)]

    def watch(self, seconds: float, rows: int = 0) -> float:
        """Wait for some time, or until there are so many rows more. Returns when that was."""
        end, until = time.monotonic() + seconds, len(self.seen) + rows
        while time.monotonic() < end and not (rows and len(self.seen) >= until):
            if self.process.poll() is not None:
                raise SystemExit("the run ended too early")
            steps = [int(row["step"]) for row in self.run.read_metrics()]
            if steps and steps[-1] > self.seen[-1][1]:
                self.seen.append((time.monotonic(), steps[-1]))
            time.sleep(0.2)
        return time.monotonic()

    def speed(self, since: float, until: float) -> float:
        """Steps a second between two times."""
        before, after = np.interp([since, until], *zip(*self.seen, strict=True))
        return float(after - before) / (until - since)

    def recovered(self, since: float, speed: float) -> float | None:
        """Seconds from `since` until rows come at `speed` again; None if they never do."""
        for (a, first), (b, last) in zip(self.seen, self.seen[1:], strict=False):
            if a >= since and (last - first) / (b - a) >= speed:
                return a - since
        return None

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextmanager
def neighbour() -> Iterator[None]:
    process = subprocess.Popen(BUSY, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def by_minutes(source: Path, out: Path) -> dict[str, Any]:
    training = Training(source, out, "--minutes", "10")
    try:
        training.watch(120.0, rows=3)
        first = training.watch(1.0)
        began = training.watch(QUIET)
        with neighbour():
            ended = training.watch(BESIDE)
        training.watch(AFTER)
    finally:
        training.end()
    quiet, beside = training.speed(first, began), training.speed(began, ended)
    recovery = training.recovered(ended, 0.9 * quiet)
    row: dict[str, Any] = {"steps_per_second": round(quiet, 2), "beside": round(beside, 2)}
    row |= {"share": round(beside / quiet, 3), "recovered_s": None if recovery is None else round(recovery, 1)}
    return row | {
        "changes": [f"{event.time[11:]} {event.text}" for event in training.run.read_log() if event.kind == "threads"]
    }


def by_steps(source: Path, out: Path) -> dict[str, Any]:
    training = Training(source, out, "--steps", "100000")
    try:
        training.watch(120.0, rows=3)
        with neighbour():
            training.watch(3.0)
            before = training.seen[-1][1]
            training.watch(FIXED)
    finally:
        training.end()
    steps = training.seen[-1][1] - before + LOG_EVERY - 1  # as many as there can have been
    return {"fixed_beside_at_most": round(steps / FIXED, 2)}


def main() -> None:
    work = Path(tempfile.mkdtemp(prefix="selfsight-threads-"))
    os.environ["SELFSIGHT_CACHE"] = str(work / "cache")
    source, load = cifar(2000)(work), os.getloadavg()[0]
    row = by_minutes(source, work / "minutes") | by_steps(source, work / "steps")
    machine = environment("cpu")
    row |= {"processor": machine["processor"], "cores": machine["cores"], "load_before": round(load, 2)}
    row |= {"torch": machine["versions"]["torch"], "kernel": os.uname().release}
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{row['cores']} cores of {row['processor']}, Linux {row['kernel']}, torch {row['torch']}")
    print("| | steps/s |")
    print("|---|---|")
    print(f"| quiet | {row['steps_per_second']} |")
    print(f"| beside a busy program, by --minutes | {row['beside']} ({row['share']:.0%}) |")
    print(f"| the same by --steps, at most | {row['fixed_beside_at_most']} |")
    print(f"| as fast as before, after | {row['recovered_s']} s |")
    print("\n".join(row["changes"]))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
