"""The loop trains whatever gives it a `Task`: here a linear head on fixed features, as a fine-tuned head would."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from selfsight.data.manifest import HEAD, RUN, strangers
from selfsight.training import loop
from selfsight.training.clock import Clock
from selfsight.training.loop import Step, Stopped, fit
from selfsight.training.recipe import Budget
from selfsight.training.recorder import Recorder
from selfsight.training.run import Run

STEPS, ITEMS, BATCH = 24, 64, 16


class LinearHead:
    """Softmax regression by plain gradient descent; the batch of a step is a function of its number."""

    remedy = "Take a lower rate."

    def __init__(self, stop_at: int = -1) -> None:
        rng = np.random.default_rng(0)
        self.features = torch.tensor(rng.normal(size=(ITEMS, 8)), dtype=torch.float32)
        self.labels = (self.features[:, 0] > 0).long()
        torch.manual_seed(0)
        self.module = nn.Linear(8, 2)
        self.optimiser = torch.optim.SGD(self.module.parameters(), lr=0.5, momentum=0.9)
        self.stop_at = stop_at

    def begin(self, step: int) -> None:
        self.step = step

    def schedule(self, progress: float) -> dict[str, float]:
        self.optimiser.param_groups[0]["lr"] = 0.5 * (1.0 - progress)
        return {"learning_rate": 0.5 * (1.0 - progress)}

    def gradients(self, progress: float) -> Step:
        if self.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)  # as a batch system does; the step is done first
        chosen = np.random.default_rng(self.step).permutation(ITEMS)[:BATCH]
        self.step += 1
        self.scores = self.module(self.features[chosen])
        self.truth = self.labels[chosen]
        loss = F.cross_entropy(self.scores, self.truth)
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in self.module.parameters() if p.grad is not None]).norm()
        return Step({"loss": loss.detach()}, float(norm), None)

    def after_step(self, progress: float) -> None: ...

    def evidence(self) -> dict[str, float]:
        return {"accuracy": float((self.scores.argmax(1) == self.truth).float().mean())}

    def draw(self, folder: Path) -> tuple[str, ...]:
        return ()


def train(folder: Path, task: LinearHead) -> loop.Done:
    folder.mkdir(exist_ok=True)
    run, accelerator = Run(folder), Accelerator(cpu=True)
    clock = Clock(Budget(steps=STEPS), time.monotonic(), 4)
    return fit(task, run, clock, accelerator, Recorder(run, accelerator.device, lambda row: None), 0)


def by_hand() -> torch.Tensor:
    """Weights after the same descent, written out in float64."""
    task = LinearHead()
    w, b = (p.detach().double() for p in task.module.parameters())
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(STEPS):
        rate = 0.5 * (1.0 - step / STEPS)
        chosen = np.random.default_rng(step).permutation(ITEMS)[:BATCH]
        x, y = task.features[chosen].double(), F.one_hot(task.labels[chosen], 2).double()
        p = torch.softmax(x @ w.T + b, 1)
        vw, vb = 0.9 * vw + (p - y).T @ x / BATCH, 0.9 * vb + (p - y).mean(0)
        w, b = w - rate * vw, b - rate * vb
    return w


def test_a_head_is_trained_as_by_hand_and_its_rows_are_its_own(tmp_path: Path):
    task = LinearHead()
    assert train(tmp_path / "run", task) == (STEPS, 0)
    assert torch.allclose(task.module.weight.detach().double(), by_hand(), atol=1e-5)
    rows = Run(tmp_path / "run").read_metrics()
    assert [row["step"] for row in rows] == [1, 10, 20, 24]
    keys = ["step", "skipped", "progress", "learning_rate", "gradient_norm", "loss", "accuracy", "epoch", "seconds"]
    assert list(rows[0]) == keys and rows[-1]["accuracy"] == 1.0 and rows[-1]["epoch"] == STEPS / 4


def test_a_head_that_was_stopped_ends_with_the_same_bytes(tmp_path: Path):
    whole = LinearHead()
    train(tmp_path / "whole", whole)
    with pytest.raises(Stopped):
        train(tmp_path / "run", LinearHead(stop_at=13))
    assert train(tmp_path / "run", LinearHead()) == (STEPS, 0)
    one, two = (tmp_path / name / "checkpoints" / f"step-{STEPS:08d}" for name in ("whole", "run"))
    for file in ("module.safetensors", "optimiser.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert torch.equal(load_file(two / "module.safetensors")["weight"], whole.module.weight)
    events = Run(tmp_path / "run").read_log()
    assert [event.kind for event in events] == ["resumed"] and events[0].step == 14


def test_what_training_leaves_is_named_in_the_manifest_of_a_run_and_of_a_head(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    with Run(folder).claimed():
        with pytest.raises(Stopped):
            train(folder, LinearHead(stop_at=13))
        train(folder, LinearHead())
        left = {path.name for path in folder.iterdir()}
    assert left == {"checkpoints", "lock", "metrics.jsonl", "run.log", "tensorboard"}
    assert left <= RUN.keys() & HEAD.keys() and strangers(folder, HEAD) == []
