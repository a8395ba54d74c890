"""The loop: resume to the bit after real signals, budgets, and losses that are not finite."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SMALL_VIT, make_batches, tiny_encoder, tiny_recipe, train, two_views, write_folder
from torch import nn

import selfsight
import selfsight.training.loop as loop
from selfsight.errors import SelfsightError
from selfsight.objectives.objective import Loss, Objective
from selfsight.objectives.simclr import SimCLR
from selfsight.training.build import computing, most_patches
from selfsight.training.clock import Clock
from selfsight.training.loop import Stopped
from selfsight.training.optimisers import learning_rate_factor
from selfsight.training.pretraining import remedy
from selfsight.training.recipe import Budget
from selfsight.training.run import Run
from selfsight.views.make import View

STEPS = 60
TIMING = ("views_per_second", "waiting", "seconds")
# The command as a user gives it, on one core: which number of threads is the fastest is measured in each new run, and
# another number rounds otherwise. `pause` slows each step so that a signal arrives in the middle; `every` is the
# time between checkpoints, a minute in use.
CHILD = """
import os, sys, time
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import selfsight, selfsight.training.loop as loop, selfsight.training.pretraining as pretraining
source, out, pause, every = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
loop.CHECKPOINT_SECONDS = every
make_views = pretraining.make_views
pretraining.make_views = lambda *a: (time.sleep(pause), make_views(*a))[1]
try:
    selfsight.pretrain(source, out=out, steps=%d, batch_size=6, size=32, seed=5)
except KeyboardInterrupt as stop:
    print(stop)
    sys.exit(130)
"""


class Command:
    """The same pretraining, started in a process of its own as often as wanted."""

    def __init__(self, folder: Path) -> None:
        self.source = write_folder(folder / "photos", 15)
        self.cache = folder / "cache"

    def start(self, out: Path, pause: float = 0.0, every: float = 60.0) -> subprocess.Popen[str]:
        env = os.environ | {"SELFSIGHT_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        args = [sys.executable, "-c", CHILD % STEPS, str(self.source), str(out), str(pause), str(every)]
        return subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < end, "nothing happened for two minutes"
        time.sleep(0.02)


def newest(run: Path) -> int:
    return max((int(p.name[5:]) for p in run.glob("checkpoints/step-*[0-9]")), default=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run left alone, and the same one interrupted, then killed, then left to end."""
    folder = tmp_path_factory.mktemp("resume")
    command = Command(folder)
    whole, parts = folder / "whole", folder / "parts"
    process = command.start(whole)
    assert process.wait(300) == 0, process.communicate()

    process = command.start(parts, pause=0.05)
    wait_until(process, lambda: len(Run(parts).read_metrics()) >= 2)  # step 10 is done
    process.send_signal(signal.SIGINT)
    stopped = process.communicate(timeout=60)[0], process.returncode, newest(parts)

    process = command.start(parts, pause=0.05, every=0.2)
    wait_until(process, lambda: newest(parts) > stopped[2])
    process.kill()
    process.communicate()
    killed = newest(parts)
    assert not (parts / "encoder").exists()
    # What a kill or a full disk may leave besides: a checkpoint begun, and the newest one cut short.
    (parts / "checkpoints" / "step-00009999.partial").mkdir()
    assert command.start(parts).wait(300) == 0
    return {"command": command, "whole": whole, "parts": parts, "stopped": stopped, "killed": killed}


def test_an_interrupt_stops_with_a_checkpoint_and_a_sentence(runs: dict[str, Any]):
    said, code, step = runs["stopped"]
    assert code == 130 and "Stopped and saved in" in said and "The same command goes on" in said
    assert 10 <= step < STEPS and step < runs["killed"] < STEPS


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(runs: dict[str, Any]):
    whole, parts = runs["whole"], runs["parts"]
    for name in ("model.safetensors", "config.json"):
        assert (whole / "encoder" / name).read_bytes() == (parts / "encoder" / name).read_bytes()
    rows = [[{k: v for k, v in r.items() if k not in TIMING} for r in Run(p).read_metrics()] for p in (whole, parts)]
    assert rows[0] == rows[1]
    assert [r["step"] for r in rows[0]] == [1, *range(10, STEPS + 1, 10)]
    assert rows[0][-1]["loss"] < rows[0][0]["loss"]  # and it did learn


def test_a_finished_run_says_so(runs: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SELFSIGHT_CACHE", str(runs["command"].cache))
    before = {p: p.stat().st_mtime_ns for p in runs["whole"].rglob("*")}
    with pytest.raises(SelfsightError, match="is finished"):
        selfsight.pretrain(
            str(runs["command"].source), out=str(runs["whole"]), steps=STEPS, batch_size=6, size=32, seed=5
        )
    assert {p: p.stat().st_mtime_ns for p in runs["whole"].rglob("*")} == before


@pytest.mark.parametrize(
    "more, named",
    [({"seed": 6}, "other values of seed."), ({"steps": STEPS + 1}, f"is finished (--steps {STEPS}). Give --extend"),
     ({"steps": STEPS + 1, "seed": 6}, "other values of budget, seed."),
     ({"objective": "vicreg"}, "other values of objective."), ({"seed": 6, "size": 48}, "other values of seed, size."),
     ({"batch_size": None}, "other values of batch_size.")],
)  # fmt: skip
def test_a_differing_request_is_refused_and_named(
    runs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, more: dict, named: str
):
    monkeypatch.setenv("SELFSIGHT_CACHE", str(runs["command"].cache))
    asked = {"steps": STEPS, "batch_size": 6, "size": 32, "seed": 5} | more
    with pytest.raises(SelfsightError, match=re.escape(named)):
        selfsight.pretrain(str(runs["command"].source), out=str(runs["parts"]), **asked)


def test_changed_images_are_refused(runs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    source = tmp_path / "photos"  # the same name, so the same ids
    shutil.copytree(runs["command"].source, source)
    again = {"steps": STEPS, "batch_size": 6, "size": 32, "seed": 5, "out": str(runs["parts"])}
    with pytest.raises(SelfsightError, match="is finished"):
        selfsight.pretrain(str(source), **again)
    (source / "000.png").unlink()
    with pytest.raises(SelfsightError, match="changed since"):
        selfsight.pretrain(str(source), **again)


# -- in this process: objectives that misbehave on purpose --


class Moody(Objective):
    """Pulls one number to nought. Its loss is not finite where `bad` says; it may send a signal to itself."""

    def __init__(self, bad: Callable[[int], float] = lambda k: 0.0, kill: tuple[int, int] | None = None) -> None:
        super().__init__(tiny_encoder(), two_views())
        self.number = nn.Parameter(torch.ones(3, 3))
        self.bad, self.kill = bad, kill
        self.forwards = 0
        self.trace: list[float] = []
        self.progresses: list[float] = []

    def forward(self, views: list[View], progress: float) -> Loss:
        loss = self.number.square().sum() + self.bad(self.forwards) * self.number.sum()
        self.forwards += 1
        self.progresses.append(progress)
        self.trace.append(float(self.number.detach().sum()))
        if self.kill and self.forwards == self.kill[0]:
            os.kill(os.getpid(), self.kill[1])
        return Loss(loss, {}, torch.randn(2, 4, 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_skipped_and_counted(images: Callable[..., Path], tmp_path: Path, value: float):
    task = Moody(lambda k: value if k in (4, 6, 7) else 0.0)
    steps, run, _ = train(task, make_batches(images(8)), tmp_path / "run", budget=Budget(steps=12))
    assert steps == 12 and torch.isfinite(task.number).all()
    changed = [a != b for a, b in zip(task.trace[:-1], task.trace[1:], strict=True)]
    # The first step has a rate of nought, at the start of the warm-up; 4, 6 and 7 are skipped.
    assert changed == [k not in (0, 4, 6, 7) for k in range(11)]
    assert [(r["step"], r["skipped"]) for r in run.read_metrics()] == [(1, 0), (10, 3), (12, 3)]
    assert len([x for x in (run.path / "run.log").read_text().splitlines() if "skipped" in x]) == 3


def test_a_row_holds_the_mean_loss_of_the_steps_since_the_last(images: Callable[..., Path], tmp_path: Path):
    batches, task, seen = make_batches(images(8)), simclr(), []
    task.register_forward_hook(lambda module, args, loss: seen.append(loss.total.item()))
    _, run, _ = train(task, batches, tmp_path / "run", budget=Budget(steps=23))
    parts = [seen[:1], seen[1:10], seen[10:20], seen[20:]]
    assert len(seen) == 23 and [row["step"] for row in run.read_metrics()] == [1, 10, 20, 23]
    for row, losses in zip(run.read_metrics(), parts, strict=True):
        mean = sum(losses) / len(losses)
        assert row["loss"] == pytest.approx(mean, abs=1e-5) and row["nt_xent"] == pytest.approx(mean, abs=1e-5)
    assert abs(parts[2][-1] - sum(parts[2]) / 10) > 1e-3  # which the last step's alone is not


class Dropping(Moody):
    """Draws from torch's generator, as dropout does."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, views: list[View], progress: float) -> Loss:
        self.drawn.append(float(torch.rand(())))
        return super().forward(views, progress)


def test_what_a_model_draws_is_of_the_seed_and_the_step(images: Callable[..., Path], tmp_path: Path):
    """The same in a second run, other numbers at another step or of another seed: what dropout hides must change."""
    batches, drawn = make_batches(images(8)), []
    for number, seed in enumerate((5, 5, 6)):
        task = Dropping()
        train(task, batches, tmp_path / str(number), budget=Budget(steps=4), seed=seed)
        drawn.append(task.drawn)
    assert drawn[0] == drawn[1] and len({*drawn[0], *drawn[2]}) == 8


def test_a_micro_batch_that_is_not_finite_spoils_no_weight(images: Callable[..., Path], tmp_path: Path):
    task = Moody(lambda k: float("nan") if k == 4 else 0.0)  # the first of the two batches of the third step
    train(task, make_batches(images(8)), tmp_path / "run", budget=Budget(steps=6), accumulate=2)
    assert torch.isfinite(task.number).all()


class Steep(Moody):
    """A finite loss whose gradient is not: the slope of a root at nought."""

    def forward(self, views: list[View], progress: float) -> Loss:
        loss = super().forward(views, progress)
        if self.forwards == 5:
            loss.total = loss.total + (0.0 * self.number).sqrt().sum()
        return loss


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(images: Callable[..., Path], tmp_path: Path):
    task = Steep()
    _, run, _ = train(task, make_batches(images(8)), tmp_path / "run", budget=Budget(steps=12))
    assert torch.isfinite(task.number).all() and task.trace[4] == task.trace[5] != task.trace[6]
    assert run.read_metrics()[-1]["skipped"] == 1
    (event,) = run.read_log()
    assert (event.step, event.kind) == (4, "skipped") and "gradient" in event.text and "number" in event.text


class Normed(Moody):
    """With a batch norm that sees a number which is not finite where the loss is not."""

    def __init__(self, bad: Callable[[int], float] = lambda k: 0.0) -> None:
        super().__init__(bad)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, views: list[View], progress: float) -> Loss:
        embeddings = self.norm(views[0].pixels.mean((2, 3)) + self.bad(self.forwards))
        loss = super().forward(views, progress)
        return Loss(loss.total + 0.0 * embeddings.sum(), {}, torch.stack([embeddings.detach()] * 2))


def test_a_skipped_step_leaves_no_trace_in_running_statistics(images: Callable[..., Path], tmp_path: Path):
    batches = make_batches(images(8), batch_size=8)  # one batch: its statistics are the same at every step
    well, ill = Normed(), Normed(lambda k: float("nan") if k == 3 else 0.0)
    train(well, batches, tmp_path / "well", budget=Budget(steps=7))
    _, run, _ = train(ill, batches, tmp_path / "ill", budget=Budget(steps=8))
    assert torch.isfinite(ill.norm.running_mean).all() and int(ill.norm.num_batches_tracked) == 7
    assert torch.isfinite(ill.norm.running_var).all() and int(well.norm.num_batches_tracked) == 7
    assert [e.text for e in run.read_log()] == ["an embedding is not finite"]


def test_the_weights_before_ten_bad_steps_are_kept(images: Callable[..., Path], tmp_path: Path):
    task = Moody(lambda k: float("nan") if k >= 5 else 0.0)
    with pytest.raises(SelfsightError, match=r"^The loss was not finite 10 steps in a row, up to step 15"):
        train(task, make_batches(images(8)), tmp_path / "run", budget=Budget(steps=40))
    again = Moody()
    _, run, _ = train(again, make_batches(images(8)), tmp_path / "run", budget=Budget(steps=40))
    assert again.trace[0] == task.trace[5] and run.read_metrics()[-1]["skipped"] == 10


def test_ten_in_a_row_stop_the_run_and_nine_do_not(images: Callable[..., Path], tmp_path: Path):
    batches = make_batches(images(8))
    nine = Moody(lambda k: float("nan") if 2 <= k < 11 or 12 <= k < 21 else 0.0)
    assert train(nine, batches, tmp_path / "nine", budget=Budget(steps=24))[0] == 24
    ten = Moody(lambda k: float("nan") if k >= 2 else 0.0)
    with pytest.raises(SelfsightError, match=r"not finite 10 steps in a row, .*--learning-rate"):
        train(ten, batches, tmp_path / "ten", budget=Budget(steps=24))
    assert ten.forwards == 12


def test_the_advice_fits_what_broke():
    chosen = tiny_recipe(
        two_views(), learning_rate=0.5, precision="no", weights="random", reasons={"learning_rate": "as it is"}
    )
    asked, bf16 = replace(chosen, reasons={}), replace(chosen, precision="bf16", weights="timm:resnet18")
    again = "Start again, in another folder, with"
    assert remedy(chosen, "the loss", True) == f"{again} a --learning-rate below 0.5."
    assert remedy(asked, "a weight", True) == f"{again} a --learning-rate below 0.5, which was asked for."
    exact = "precision: 'no' in a --recipe"
    assert remedy(bf16, "an embedding", True) == f"{again} a --learning-rate below 0.5; or with {exact}."
    never = f"No step was ever finite, so it is not the learning rate. {again}"
    assert remedy(asked, "the loss", False) == f"{never} another --objective."
    ways = f"{exact} or other --weights than timm:resnet18 or another --objective"
    assert remedy(bf16, "an embedding", False) == f"{never} {ways}."
    assert remedy(bf16, "a weight", False).startswith("They were so from the start: timm:resnet18 holds values that")
    for learnt in (True, False):
        assert remedy(chosen, "a pixel of the views", learnt).startswith(
            "No learning rate helps there: some images hold"
        )


def test_a_run_that_never_was_finite_is_not_told_of_its_rate(images: Callable[..., Path], tmp_path: Path):
    with pytest.raises(SelfsightError, match=r"up to step 10.*No step was ever finite, so it is not the learning rate"):
        train(Moody(lambda k: float("nan")), make_batches(images(8)), tmp_path / "run", budget=Budget(steps=24))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_the_end_of_the_step_and_their_handlers_come_back(
    images: Callable[..., Path], tmp_path: Path, number: int
):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    task = Moody(kill=(3, number))
    with pytest.raises(Stopped):
        train(task, make_batches(images(8)), tmp_path / "run", budget=Budget(steps=20))
    assert newest(tmp_path / "run") == 3 and task.forwards == 3
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_checkpoint_is_written_when_its_time_has_come(
    images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert loop.CHECKPOINT_SECONDS <= 120  # "a kill loses at most two minutes"
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    _, run, _ = train(Moody(), make_batches(images(8)), tmp_path / "run", budget=Budget(steps=5))
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-00000004", "step-00000005"]


def simclr(seed: int = 0) -> SimCLR:
    return SimCLR(tiny_encoder(seed=seed), two_views(), hidden=16, width=8)


def test_after_a_truncated_newest_checkpoint_the_elder_gives_the_same_end(
    images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    batches = make_batches(images(11))
    whole = simclr()
    _, run, _ = train(whole, batches, tmp_path / "run", budget=Budget(steps=12))
    rows = [{k: v for k, v in r.items() if k not in TIMING} for r in run.read_metrics()]
    weights = run.checkpoints / "step-00000012" / "module.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    again = simclr(seed=9)
    train(again, batches, tmp_path / "run", budget=Budget(steps=12))
    got = again.state_dict()
    assert all(torch.equal(v, got[k]) for k, v in whole.state_dict().items())
    assert [{k: v for k, v in r.items() if k not in TIMING} for r in run.read_metrics()] == rows


def test_a_half_written_row_of_metrics_does_not_stop_the_next_start(images: Callable[..., Path], tmp_path: Path):
    batches = make_batches(images(8))
    with pytest.raises(Stopped):
        train(Moody(kill=(11, signal.SIGINT)), batches, tmp_path / "run", budget=Budget(steps=20))
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')  # a full disk, or a machine that lost its power
    _, run, _ = train(Moody(), batches, tmp_path / "run", budget=Budget(steps=20))
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [1, 10, 20]


def test_accumulated_batches_are_one_large_batch(images: Callable[..., Path], tmp_path: Path):
    class Mean(Objective):
        """A mean over items and no batch norm: two halves must be the whole."""

        def __init__(self) -> None:
            super().__init__(tiny_encoder(size=16, name="vit_tiny_patch16_224"), two_views())

        def forward(self, views: list[View], progress: float) -> Loss:
            z = torch.stack([self.encoder(v.pixels).pooled for v in views])
            return Loss((z[0] - 2 * z[1]).square().mean(), {}, z.detach())

    folder = images(8)
    one, two = Mean(), Mean()
    how = {"optimiser": "sgd", "learning_rate": 0.1, "budget": Budget(steps=4), "weight_decay": 0.0}
    start = one.encoder.net.patch_embed.proj.weight.detach().clone()
    train(one, make_batches(folder, 8), tmp_path / "one", **how)
    train(two, make_batches(folder, 4), tmp_path / "two", accumulate=2, **how)
    a, b = one.encoder.net.patch_embed.proj.weight, two.encoder.net.patch_embed.proj.weight
    assert (a - start).abs().max() > 1e-3 and (a - b).abs().max() < 1e-5


def test_clipping_bounds_the_step(images: Callable[..., Path], tmp_path: Path):
    batches = make_batches(images(8))
    free, held = Moody(), Moody()
    how = {"optimiser": "sgd", "learning_rate": 0.1, "warmup": 0.0, "budget": Budget(steps=1), "weight_decay": 0.0}
    train(free, batches, tmp_path / "free", **how)
    train(held, batches, tmp_path / "held", clip=0.6, **how)
    # The gradient of nine ones is nine twos, of norm 6; Nesterov's first step is 1.9 of the gradient.
    assert torch.allclose(free.number, torch.full((3, 3), 1 - 0.1 * 1.9 * 2.0), atol=1e-5)
    assert torch.allclose(held.number, torch.full((3, 3), 1 - 0.1 * 1.9 * 0.2), atol=1e-5)


# -- budgets --


def test_progress_in_steps_and_epochs():
    steps = Clock(Budget(steps=8), 0.0, 3)
    assert [steps.progress(k) for k in (0, 2, 8, 9)] == [0.0, 0.25, 1.0, 1.0]
    epochs = Clock(Budget(epochs=2.5), 0.0, 4)
    assert [epochs.progress(k) for k in (0, 5, 10)] == [0.0, 0.5, 1.0]
    short = Clock(Budget(epochs=0.01), 0.0, 4)
    assert short.progress(0) == 0.0 and short.progress(1) == 1.0  # never no step at all


def test_an_epoch_is_every_item_once_however_batches_are_accumulated(images: Callable[..., Path], tmp_path: Path):
    batches = make_batches(images(16))  # four batches of four
    for accumulate in (1, 2):
        task = Moody()
        train(task, batches, tmp_path / str(accumulate), budget=Budget(epochs=3), accumulate=accumulate)
        assert task.forwards == 12


def test_progress_in_minutes():
    two, now = Budget(minutes=2), time.monotonic()
    assert Clock(two, now - 30, 1).progress(0) == pytest.approx(0.25, abs=0.01)
    assert Clock(two, now - 30, 1, reserve=60.0).progress(0) == pytest.approx(0.5, abs=0.01)
    assert Clock(two, now - 30, 1, reserve=60.0, before=15.0).progress(0) == pytest.approx(0.75, abs=0.01)
    assert Clock(two, now - 200, 1).progress(0) == 1.0
    assert Clock(two, now, 1, reserve=300.0).progress(0) == 1.0  # the ending alone is over the budget


def test_minutes_anneal_to_the_end_and_stop_there(images: Callable[..., Path], tmp_path: Path):
    task = Moody()
    # A command that began 58 seconds ago with a minute to spend: two seconds are left, steps take milliseconds.
    _, run, clock = train(
        task, make_batches(images(8)), tmp_path / "run", started=time.monotonic() - 58, budget=Budget(minutes=1)
    )
    assert clock.seconds >= 60 and all(p < 1 for p in task.progresses)
    assert task.progresses == sorted(task.progresses) and task.progresses[0] >= 58 / 60
    last = learning_rate_factor(task.progresses[-1], 0.1)
    assert last < 0.05
    for row in run.read_metrics():
        assert row["learning_rate"] == pytest.approx(1e-3 * learning_rate_factor(task.progresses[row["step"] - 1], 0.1))


def test_minutes_of_an_earlier_start_count_and_the_remainder_anneals(images: Callable[..., Path], tmp_path: Path):
    batches = make_batches(images(8))
    first = Moody(kill=(4, signal.SIGINT))
    with pytest.raises(Stopped):
        train(first, batches, tmp_path / "run", started=time.monotonic() - 30, budget=Budget(minutes=1))
    assert 0.5 <= first.progresses[0] <= first.progresses[-1] < 0.6
    second = Moody()
    train(second, batches, tmp_path / "run", started=time.monotonic() - 28, budget=Budget(minutes=1))
    assert second.progresses[0] >= first.progresses[-1] + 27 / 60  # the time between the two does not count
    assert learning_rate_factor(second.progresses[-1], 0.1) < 0.05


def test_a_budget_too_small_for_a_step_is_no_traceback(images: Callable[..., Path], tmp_path: Path):
    try:
        result = selfsight.pretrain(str(images(6)), out=str(tmp_path / "run"), minutes=0.001)
    except SelfsightError:
        return  # a sentence is as good as a run
    assert result.steps >= 0


@pytest.mark.parametrize("precision, size, fused", [("bf16", 96, False), ("bf16", 112, True), ("no", 96, True)])
def test_attention_over_few_patches_in_bf16_is_plain_products_on_a_cpu(precision: str, size: int, fused: bool):
    """The fused kernel takes half of a step there, backwards; over many patches it is faster, and keeps less."""
    encoder = tiny_encoder(name="vit_tiny_patch16_224")  # of patches of 8 px
    recipe = tiny_recipe(two_views(size), precision=precision, encoder="vit_tiny_patch16_224", encoder_args=SMALL_VIT)
    with torch.profiler.profile() as profile, computing(recipe.precision, "cpu", most_patches(recipe)):
        encoder(torch.zeros(2, 3, size, size)).pooled.sum().backward()
    assert any("flash_attention" in event.key for event in profile.key_averages()) == fused
