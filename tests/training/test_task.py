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

from selfsight.console import Sparse
from selfsight.data.manifest import HEAD, RUN, strangers
from selfsight.training import loop
from selfsight.training.clock import Clock
from selfsight.training.loop import Step, Stopped, fit
from selfsight.training.recipe import Budget
from selfsight.training.recorder import Recorder
from selfsight.training.run import Folder, Run
from selfsight.training.show import Show
from selfsight.training.stepping import Forward, Stepper

STEPS, ITEMS, BATCH = 24, 64, 16


class HeadFolder(Folder):
    last = "head.json"


class LinearHead:
    """Softmax regression by plain gradient descent; a batch is a function of its number. normed: behind a batch norm.
    spoilt: the batch with a feature that is not finite."""

    def __init__(self, stop_at: int = -1, accumulate: int = 1, normed: bool = False, spoilt: int = -1) -> None:
        rng = np.random.default_rng(0)
        self.features = torch.tensor(rng.normal(size=(ITEMS, 8)), dtype=torch.float32)
        self.labels = (self.features[:, 0] > 0).long()
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2)) if normed else nn.Linear(8, 2)
        self.optimiser = torch.optim.SGD(self.module.parameters(), lr=0.5, momentum=0.9)
        self.accelerator = Accelerator(cpu=True)
        self.stepper = Stepper(self.module, self.accelerator, accumulate)
        self.drawn: list[int] = []
        self.stop_at, self.accumulate, self.spoilt = stop_at, accumulate, spoilt

    def begin(self, step: int) -> None:
        self.stepper.begin()
        self.batch = step * self.accumulate

    def schedule(self, progress: float) -> dict[str, float]:
        self.optimiser.param_groups[0]["lr"] = 0.5 * (1.0 - progress)
        return {"learning_rate": 0.5 * (1.0 - progress)}

    def gradients(self, progress: float) -> Step:
        if self.batch == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)  # as a batch system does; the step is done first
        return self.stepper.gradients(self.forward)

    def forward(self) -> Forward:
        features, self.truth = self.of_batch(self.batch)
        if self.batch == self.spoilt:
            features[3, 5] = float("nan")
        self.batch += 1
        self.scores = self.stepper.model(features)
        suspects = {"a feature": [features], "a weight": self.module.parameters(), "a score": [self.scores]}
        return Forward(F.cross_entropy(self.scores, self.truth), {}, suspects)

    def of_batch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = np.random.default_rng(number).permutation(ITEMS)[:BATCH]
        return self.features[chosen], self.labels[chosen]

    def after_step(self, progress: float) -> None: ...

    def evidence(self) -> dict[str, float]:
        return {"accuracy": float((self.scores.argmax(1) == self.truth).float().mean())}

    def remedy(self, cause: str, learnt: bool) -> str:
        return f"Take a lower rate for {cause}." if learnt else f"Look at {cause}."

    def draw(self, folder: Path, step: int) -> tuple[str, ...]:
        self.drawn.append(step)
        return ()


def train(folder: Path, task: LinearHead) -> loop.Done:
    folder.mkdir(exist_ok=True)
    run, device = HeadFolder(folder), task.accelerator.device
    clock = Clock(Budget(steps=STEPS), time.monotonic(), 4)
    return fit(task, run, clock, task.accelerator, Recorder(run, device, lambda row: None), 0)


def slope(task: LinearHead, number: int, w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of a batch's mean cross-entropy at weights [2, 8] and biases [2], written out in float64."""
    x, y = task.of_batch(number)
    apart = torch.softmax(x.double() @ w.T + b, 1) - F.one_hot(y, 2)
    return apart.T @ x.double() / BATCH, apart.mean(0)


def by_hand() -> torch.Tensor:
    """Weights after the same descent, written out in float64."""
    task = LinearHead()
    w, b = (p.detach().double() for p in task.module.parameters())
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(STEPS):
        rate = 0.5 * (1.0 - step / STEPS)
        dw, db = slope(task, step, w, b)
        vw, vb = 0.9 * vw + dw, 0.9 * vb + db
        w, b = w - rate * vw, b - rate * vb
    return w


def test_a_head_is_trained_as_by_hand_and_its_rows_are_its_own(tmp_path: Path):
    task = LinearHead()
    assert train(tmp_path / "run", task) == (STEPS, 0)
    assert torch.allclose(task.module.weight.detach().double(), by_hand(), atol=1e-5)
    rows = HeadFolder(tmp_path / "run").read_metrics()
    assert [row["step"] for row in rows] == [1, 10, 20, 24]
    keys = ["step", "skipped", "progress", "learning_rate", "gradient_norm", "loss", "accuracy", "epoch", "seconds"]
    assert list(rows[0]) == keys and rows[-1]["accuracy"] == 1.0 and rows[-1]["epoch"] == STEPS / 4
    assert task.drawn == [0, STEPS]


def test_a_head_that_was_stopped_ends_with_the_same_bytes(tmp_path: Path):
    whole = LinearHead()
    train(tmp_path / "whole", whole)
    stopped, resumed = LinearHead(stop_at=13), LinearHead()
    with pytest.raises(Stopped):
        train(tmp_path / "run", stopped)
    assert train(tmp_path / "run", resumed) == (STEPS, 0)
    assert stopped.drawn == [0] and resumed.drawn == [STEPS]
    one, two = (tmp_path / name / "checkpoints" / f"step-{STEPS:08d}" for name in ("whole", "run"))
    for file in ("module.safetensors", "optimiser.safetensors"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    assert torch.equal(load_file(two / "module.safetensors")["weight"], whole.module.weight)
    events = HeadFolder(tmp_path / "run").read_log()
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


def test_batches_that_add_up_to_a_step_give_the_mean_of_their_gradients():
    task = LinearHead(accumulate=3)
    task.begin(2)
    found = task.gradients(0.0)
    w, b = (p.detach().double() for p in task.module.parameters())
    parts = [slope(task, number, w, b) for number in (6, 7, 8)]
    mean = [torch.stack(each).mean(0) for each in zip(*parts, strict=True)]
    for parameter, wanted in zip(task.module.parameters(), mean, strict=True):
        assert torch.allclose(parameter.grad.double(), wanted, atol=1e-7)
    length = torch.cat([g.flatten() for g in mean]).norm()
    assert found.broken is None and found.norm == pytest.approx(float(length), rel=1e-5)


def test_a_gradient_that_is_too_long_is_cut_to_the_length_asked_for():
    whole, cut = LinearHead(), LinearHead()
    cut.stepper.clip = 0.01
    for task in (whole, cut):
        task.begin(0)
    norms = [task.gradients(0.0).norm for task in (whole, cut)]
    assert norms[0] == norms[1] > 0.1  # what is told is the length before it
    for one, other in zip(whole.module.parameters(), cut.module.parameters(), strict=True):
        assert torch.allclose(other.grad, one.grad * 0.01 / norms[0], rtol=1e-4)


def test_gradients_that_are_dropped_count_no_more():
    task = LinearHead()
    task.begin(0)

    def drop() -> None:
        task.module.weight.grad = None

    norm = task.stepper.gradients(task.forward, drop).norm
    assert norm == pytest.approx(float(task.module.bias.grad.norm())) and task.module.weight.grad is None


def test_a_batch_that_is_not_finite_leaves_statistics_as_they_were_and_is_named():
    """The second of the two batches of the sixth step: the first has moved the statistics by then."""
    task = LinearHead(accumulate=2, normed=True, spoilt=11)
    task.begin(0)
    assert [loop.take_step(task, 0.0)[1].broken for _ in range(5)] == [None] * 5
    before = [tensor.clone() for tensor in task.module.state_dict().values()]
    assert loop.take_step(task, 0.0)[1].broken == "a feature" and int(task.module[0].num_batches_tracked) == 10
    assert all(torch.equal(*pair) for pair in zip(task.module.state_dict().values(), before, strict=True))
    assert loop.take_step(task, 0.0)[1].broken is None and int(task.module[0].num_batches_tracked) == 12


def test_a_head_goes_on_behind_a_batch_that_is_not_finite(tmp_path: Path):
    task = LinearHead(accumulate=2, normed=True, spoilt=10)
    assert train(tmp_path / "run", task) == (STEPS, 1)
    mean = torch.zeros(8, dtype=torch.float64)
    for number in range(2 * STEPS):
        if number not in (10, 11):  # of the sixth step
            mean = 0.9 * mean + 0.1 * task.of_batch(number)[0].double().mean(0)
    assert torch.allclose(task.module[0].running_mean.double(), mean, atol=1e-6)
    (event,) = HeadFolder(tmp_path / "run").read_log()
    assert (event.kind, event.step) == ("skipped", 5) and event.text.startswith("the gradient")


def test_a_head_shows_figures_of_its_own_in_its_own_words(capsys: pytest.CaptureFixture[str]):
    shown = {"accuracy": "{:.1%} right", "kappa": "kappa {:.2f}", "loss": "loss {:.3f}"}
    times = iter((0.0, 5.0))
    with Show("classes into head", shown) as show:
        show.sparse = Sparse(lambda: next(times))  # a line is due
        show({"step": 7, "progress": 0.25, "loss": 1.23456, "accuracy": 0.8767, "spread": 0.5})
    assert capsys.readouterr().err == "classes into head\n 25%  step 7  87.7% right  loss 1.235\n"


def test_the_folder_of_a_head_is_finished_by_its_own_file(tmp_path: Path):
    folder = HeadFolder(tmp_path / "head")
    assert not folder.begun
    train(folder.path, LinearHead())
    assert folder.begun and not folder.finished
    (folder.path / "head.json").write_text("{}")
    assert folder.finished and not Run(folder.path).finished
    (folder.path / "normalisation.json").write_text("{}")
    folder.clear()
    assert sorted(path.name for path in folder.path.iterdir() if path.is_file()) == ["head.json", "normalisation.json"]
