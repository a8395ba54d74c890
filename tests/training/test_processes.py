"""Two processes are one: the same views, loss, gradients, statistics and weights. Real processes, over gloo."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import NARROW, default_objective, make_canvases, picture, tiny_encoder
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfsight import distributed
from selfsight.data.batches import Batches
from selfsight.data.importers import open_source
from selfsight.distributed import all_mean, all_sum, gather
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import save
from selfsight.encoders.weights import load
from selfsight.objectives.objective import Loss, Objective, embed_views, projector, registry
from selfsight.training.batch_norm import synchronise
from selfsight.training.measure import measure_normalisation
from selfsight.views.make import View, make_views
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

BATCH = 8
PLAN = ViewPlan((ViewGroup(2, 32, (0.3, 1.0), colour=Colour(blur=0.5)), ViewGroup(1, 16, (0.05, 0.3))))
ENCODERS = ("resnet18", "vit_tiny_patch16_224")  # with batch norm, and without
LIMIT = 240.0  # seconds, after which processes that wait for each other are ended


class Stranger(Objective):
    """Written without a thought of processes: a teacher and a centre, and a loss that is a mean over items. But for
    the centre of what did not come of `embed_views`."""

    def __init__(self, encoder: Encoder, views: ViewPlan) -> None:
        super().__init__(encoder, views)
        self.head = projector([encoder.dim, 16, 8])
        self.colour = nn.Linear(encoder.dim, 3)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(8))
        self.register_buffer("shade", torch.zeros(3))

    def forward(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.head, views)  # [V, B, D]
        with torch.no_grad():
            t = embed_views(self.teacher, self.teacher_head, views)
            self.teacher_mean = t.mean((0, 1))
        own = views[0].pixels.mean((2, 3))  # [B / processes, 3]
        self.colour_mean = all_mean(own.mean(0))
        guess = self.colour(self.encoder(views[0].pixels).pooled)
        loss = (z - t.flip(0) + self.centre).square().mean() + (guess - own + self.shade).square().mean()
        return Loss(loss, {}, z.detach())

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        for mine, its in zip(self.encoder.parameters(), self.teacher.parameters(), strict=True):
            its.lerp_(mine, 0.1)
        self.centre.lerp_(self.teacher_mean, 0.5)
        self.shade.lerp_(self.colour_mean, 0.5)


CASES = [("stranger", encoder) for encoder in ENCODERS]
CASES += [(name, e) for name, cls in registry().items() for e in ENCODERS if e != "resnet18" or not cls.tokens]
CASES += [("dino@cuda", "resnet18"), ("dinov2@cuda", "vit_tiny_patch16_224")]  # with the views of a GPU's rules
MUTATED = ("simclr", "resnet18")


class WithoutGradient(torch.autograd.Function):
    """A sum whose gradient is only what a process's own loss gives: the mistake of `dist.all_reduce` in a loss."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


MUTATIONS = {
    "gather": patch.object(distributed, "_AllSum", WithoutGradient),
    "batch norm": patch(f"{__name__}.synchronise", lambda module: module),
}


def uneven(folder: Path) -> Path:
    """Pictures of many shapes: a batch is padded to its largest."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(24):
        height, width = rng.integers(34, 90, 2)
        Image.fromarray(picture(rng, int(height), int(width))).save(folder / f"{i:02d}.png")
    return folder


def in_two(work: Callable[..., None], *args: Any) -> None:
    """Run `work(rank, folder, ...)` in two processes. An error of theirs is raised; none outlives `LIMIT`."""
    context, until = mp.spawn(work, args, nprocs=2, join=False), time.monotonic() + LIMIT
    try:
        while not context.join(1.0):
            assert time.monotonic() < until, "the processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()


def meet(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = Path(folder, "meet").as_uri()
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=LIMIT / 2), world_size=2, rank=rank)


def work(rank: int, folder: str) -> None:
    """One of two processes: its results for all cases, then for the mistakes, written to files of its own."""
    meet(rank, folder)
    save_file(trained(rank, 2, folder, CASES), f"{folder}/2-{rank}.safetensors")
    for name, mistake in MUTATIONS.items():
        with mistake:
            save_file(trained(rank, 2, folder, [MUTATED]), f"{folder}/{name}2-{rank}.safetensors")
    dist.destroy_process_group()


def trained(rank: int, world: int, folder: str, cases: list[tuple[str, str]]) -> dict[str, Tensor]:
    """What the first of three steps gave (views, embeddings, loss, gradients, statistics), and the last one's state."""
    canvases = make_canvases(open_source(Path(folder) / "photos"), 64)
    normalise = measure_normalisation(canvases)
    out: dict[str, Tensor] = {}
    for name, encoder in cases:
        torch.manual_seed(3)
        known, _, device = name.partition("@")
        if name == "stranger":
            task: Objective = Stranger(tiny_encoder(name=encoder), PLAN)
        else:
            centring = {"centring": "mean"} if name == "dino@cuda" else {}
            task = default_objective(known, encoder, device=device or "cpu", **centring)
        # Its stem's gradient in float32 is 9e-6 from that in float64, in one process as in two: rounding alone.
        double = name == "dino@cuda"
        if double:
            task.double()
            for buffer in task.buffers(recurse=False):  # of the loss, which is in float32 whatever it is given
                buffer.data = buffer.data.float()
        model: nn.Module = synchronise(task).train()
        if world > 1:
            model = DistributedDataParallel(model, broadcast_buffers=False)  # which would hide that they differ
        optimiser = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=2e-4, momentum=0.9)
        stream = Batches(canvases, BATCH, 0, None, rank, world).steps()
        for step in range(3):
            views = make_views(next(stream), task.views, normalise, 0)
            for view in views:
                view.pixels = view.pixels.double() if double else view.pixels
            loss = model(views, 0.5)
            optimiser.zero_grad()
            loss.total.backward()
            if step == 0:
                key = f"{name}.{encoder}"
                out |= {f"{key}.views.{i}": view.pixels.contiguous() for i, view in enumerate(views)}
                out[f"{key}.loss"] = all_mean(loss.total.detach())
                out[f"{key}.embeddings"] = loss.embeddings.clone()
                out |= {f"{key}.gradient.{k}": p.grad.clone() for k, p in task.named_parameters() if p.grad is not None}
                out |= {f"{key}.statistic.{k}": b.clone().float() for k, b in task.named_buffers()}
            optimiser.step()
            task.after_step(0.5)
        out |= {f"{key}.state.{k}": t.detach().clone().float() for k, t in task.state_dict().items()}
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    uneven(folder / "photos")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    save_file(trained(0, 1, str(folder), CASES), folder / "1-0.safetensors")
    torch.set_num_threads(threads)
    in_two(work, str(folder))
    return folder


def results(
    folder: Path, case: tuple[str, str], mutation: str = ""
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    def mine(file: str) -> dict[str, Tensor]:
        key = f"{case[0]}.{case[1]}."
        return {k.removeprefix(key): v for k, v in load_file(folder / file).items() if k.startswith(key)}

    return mine("1-0.safetensors"), [mine(f"{mutation}2-{rank}.safetensors") for rank in range(2)]


def furthest(one: dict[str, Tensor], other: dict[str, Tensor], kind: str) -> float:
    """The largest difference of tensors of a kind, over the largest value of all of them."""
    names = [name for name in one if name.startswith(kind) and not name.endswith("num_batches_tracked")]
    assert names
    scale = max(float(one[name].abs().max()) for name in names)
    return max(float((one[name] - other[name]).abs().max()) for name in names) / scale


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_loss_gradients_statistics_and_weights_are_those_of_one_process(folder: Path, case: tuple[str, str]):
    one, two = results(folder, case)
    for rank in two:
        assert set(rank) == set(one)
        for kind in ("embeddings", "loss", "gradient", "state", *(("statistic",) if case[1] == "resnet18" else ())):
            assert furthest(one, rank, kind) < 1e-5, kind
    for name in two[0]:  # and the processes agree to the bit: nothing drifts apart
        if not name.startswith("views"):
            assert torch.equal(two[0][name], two[1][name]), name


def test_the_views_of_all_processes_are_those_of_one_to_the_byte(folder: Path):
    one, two = results(folder, CASES[0])
    for i in range(PLAN.count):
        assert torch.equal(torch.cat([rank[f"views.{i}"] for rank in two]), one[f"views.{i}"])


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_these_tests_notice_what_others_got_wrong(folder: Path, mutation: str):
    one, two = results(folder, MUTATED, mutation)
    assert furthest(one, two[0], "gradient") > 1e-2


# -- batch norm alone, against torch's and timm's own on the whole batch --


def norms() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Every kind of batch norm, with the shape of a whole batch for it."""
    made: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "flat": (nn.BatchNorm1d(5), (6, 5)),
        "sequence": (nn.BatchNorm1d(5), (6, 5, 7)),
        "image": (nn.BatchNorm2d(5), (6, 5, 3, 4)),
        "volume": (nn.BatchNorm3d(5), (4, 5, 3, 4, 2)),
        "cumulative": (nn.BatchNorm2d(5, momentum=None), (6, 5, 3, 4)),
        "plain": (nn.BatchNorm1d(5, affine=False), (6, 5)),
        "forgetful": (nn.BatchNorm1d(5, track_running_stats=False), (6, 5)),
        "one each": (nn.BatchNorm1d(5), (2, 5)),
        "timm": (BatchNormAct2d(5), (6, 5, 3, 4)),
        "timm, silu": (BatchNormAct2d(5, act_layer="silu", drop_layer=Halve), (6, 5, 3, 4)),
        "timm, none": (BatchNormAct2d(5, apply_act=False), (6, 5, 3, 4)),
    }
    for norm, _ in made.values():
        for parameter in norm.parameters():
            nn.init.uniform_(parameter, 0.5, 2.0)
    return made


class Halve(nn.Module):
    """In the place of a drop layer, whose draws would differ."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def compare_norms(rank: int, folder: str) -> None:
    """Twice the same module, on the whole batch and on a half of it, in training and then in evaluation."""
    meet(rank, folder)
    for kind, low in product(norms(), (False, True)):
        torch.manual_seed(5)
        norm, shape = norms()[kind]
        shared = synchronise(copy.deepcopy(norm))
        assert type(shared) is type(norm) and list(shared.state_dict()) == list(norm.state_dict())
        dtype = torch.bfloat16 if low else torch.float32
        for _ in range(2):
            whole = (torch.randn(shape) * 3 + 5).to(dtype).requires_grad_()
            own = whole.detach().chunk(2)[rank].clone().requires_grad_()
            weights = torch.randn(shape).to(dtype)
            one, mine = norm(whole), shared(own)
            assert mine.dtype == one.dtype == dtype
            (one * weights).sum().backward()
            (mine * weights.chunk(2)[rank]).sum().backward()
            near = {"rtol": 2e-2, "atol": 2e-2} if low else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(mine, one.chunk(2)[rank], **near, msg=f"{kind}, {dtype}")
            if not low and kind != "one each":  # two values become -1 and 1: their gradient is all rounding
                torch.testing.assert_close(own.grad, whole.grad.chunk(2)[rank], **near, msg=kind)
                for p, q in zip(norm.parameters(), shared.parameters(), strict=True):
                    torch.testing.assert_close(all_sum(q.grad), p.grad, rtol=1e-4, atol=1e-4, msg=kind)
                    p.grad = q.grad = None
        for before, after in zip(norm.buffers(), shared.buffers(), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5, msg=kind)
        x = torch.randn(shape)
        copied = copy.deepcopy(norm)
        copied.load_state_dict(shared.state_dict())
        assert torch.equal(shared.eval()(x), copied.eval()(x))  # and evaluation is what it was, in one process alone
    dist.destroy_process_group()


def test_every_batch_norm_is_that_of_the_whole_batch(tmp_path: Path):
    in_two(compare_norms, str(tmp_path))


def test_a_synchronised_encoder_is_saved_as_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoder = tiny_encoder().eval()
    monkeypatch.setattr("selfsight.training.batch_norm.processes", lambda: 2)
    synchronise(encoder)
    save(encoder, tmp_path / "encoder")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load(tmp_path / "encoder")(x).pooled, encoder(x).pooled)


def test_one_process_is_left_as_it_is():
    encoder, z = tiny_encoder(), torch.rand(2, 3, 4)
    before = [dict(vars(module)) for module in encoder.modules()]
    assert [vars(module) for module in synchronise(encoder).modules()] == before
    assert gather(z) is z and all_sum(z) is z and torch.equal(all_mean(z), z)


# -- the whole command, as torchrun starts it --

# By AdamW: Muon works in bfloat16 inside, which magnifies the rounding of sums over processes; after 20 steps of the
# default rate the losses agreed to 1.1e-4.
RECIPE = f"""resolved:
  optimiser: adamw
  encoder: resnet18
  encoder_args: {json.dumps(NARROW)}
  objective_options: {{hidden: 32, width: 16}}
  size: 32
  canvas_side: 32
  batch_size: 8
  precision: 'no'
  threads: 1
"""
ALONE = (sys.executable, "-m", "selfsight")
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "selfsight")


def start(how: tuple[str, ...], folder: Path, out: str, steps: int = 20) -> subprocess.Popen[str]:
    (folder / "mine.yaml").write_text(RECIPE)
    command = [*how, "pretrain", "photos", "-o", out, "--recipe", "mine.yaml", "--steps", str(steps), "--json"]
    env = os.environ | {"SELFSIGHT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=env, **pipes)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert len(said[0].splitlines()) == 1  # one of the processes speaks
    return json.loads(said[0])


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_torchrun_trains_resumes_and_ends_as_one_process_does(folder: Path):
    finish(start(ALONE, folder, "alone"))
    process = start(TWO, folder, "both")
    run = folder / "both"
    while not (run / "metrics.jsonl").exists() or not rows(run):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    stopped = max(int(p.name[5:]) for p in (run / "checkpoints").glob("step-*[0-9]"))
    assert 0 < stopped <= 20 and not (run / "encoder").exists()

    one = start(ALONE, folder, "both")
    assert "started with 2 processes" in one.communicate(timeout=120)[1] and one.returncode == 2
    assert finish(start(TWO, folder, "both"))["steps"] == 20
    assert [row["step"] for row in rows(run)] == [1, 10, 20]
    for mine, theirs in zip(rows(run), rows(folder / "alone"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["effective_rank"] == pytest.approx(theirs["effective_rank"], rel=1e-3)
    ours, alone = (load_file(folder / name / "encoder" / "model.safetensors") for name in ("both", "alone"))
    trained = {k for k in alone if not k.startswith("fc.") and alone[k].is_floating_point()}
    assert max(float((ours[k] - alone[k]).abs().max()) for k in trained) < 1e-3
    assert not list(run.glob("lock*"))


def test_an_error_of_one_process_ends_all(folder: Path):
    (folder / "hurt").mkdir()
    (folder / "hurt" / "checkpoints").write_text("in the way of the first process only, which writes them")
    process = start(TWO, folder, "hurt", steps=3)
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and "selfsight: hurt/checkpoints" in said
    assert "]: Traceback" not in said  # torchrun prints its own in the end, and those of ranks with their number


# -- a process that is gone --


def left_alone(rank: int, folder: str) -> None:
    """The first of two processes, whose other one ends without a word: what it is told at each place where it waits."""
    meet(rank, folder)
    model, told = DistributedDataParallel(nn.Linear(2, 1)), []
    if rank == 1:
        os._exit(0)
    waits: dict[str, Callable[[], Any]] = {
        "gradients": lambda: model(torch.ones(3, 2)).sum().backward(),
        "a sum": lambda: all_sum(torch.ones(2)),
        "progress": lambda: distributed.agreed(0.5, False, torch.device("cpu")),
        "whether": lambda: distributed.everywhere(torch.tensor(True)),
        "entries": lambda: distributed.gathered({"a": "b"}),
    }
    for name, wait in waits.items():
        try:
            with distributed.together():
                wait()
        except distributed.ProcessLost as error:
            told.append(f"{name}: {error}")
    Path(folder, "told").write_text("\n".join(told))
    os._exit(0)


def test_a_process_that_waits_in_vain_is_told_so_by_type(tmp_path: Path):
    in_two(left_alone, str(tmp_path))
    told = (tmp_path / "told").read_text().splitlines()
    said = "Another process of this run has ended. Its own message, above, says why."
    assert told == [f"{name}: {said}" for name in ("gradients", "a sum", "progress", "whether", "entries")]


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="size"), distributed.together():
        torch.ones(2) + torch.ones(3)
