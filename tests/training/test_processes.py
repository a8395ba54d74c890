"""Two processes are one: the same views, loss, gradients, statistics and weights. Real processes, over gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from helpers import NARROW, make_canvases, picture, tiny_encoder
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfsight.data.batches import Batches
from selfsight.data.importers import open_source
from selfsight.errors import SelfsightError
from selfsight.objectives import objective as objective_module
from selfsight.objectives.objective import find, registry
from selfsight.training.batch_norm import synchronise
from selfsight.training.measure import measure_normalisation
from selfsight.views.make import make_views
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

BATCH = 8
PLAN = ViewPlan((ViewGroup(2, 32, (0.3, 1.0), colour=Colour(blur=0.5)), ViewGroup(1, 16, (0.05, 0.3))))
ENCODERS = ("resnet18", "vit_tiny_patch16_224")  # with batch norm, and without
CASES = [(name, encoder) for name in registry() for encoder in ENCODERS]
MUTATIONS = ("no gradient through the gather", "batch norm on its own")


def uneven(folder: Path) -> Path:
    """Pictures of many shapes: a batch is padded to its largest."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(24):
        height, width = rng.integers(34, 90, 2)
        Image.fromarray(picture(rng, int(height), int(width))).save(folder / f"{i:02d}.png")
    return folder


def work(rank: int, world: int, folder: str, cases: list[tuple[str, str]], mutation: str = "") -> None:
    """One process: its results for all `cases`, written to a file of its own."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{mutation}meet", rank=rank, world_size=world)
    if mutation == MUTATIONS[0]:
        objective_module.all_gather = lambda z: [t.detach() if i != rank else z for i, t in enumerate(gathered(z))]
    canvases = make_canvases(open_source(Path(folder) / "photos"), 64)
    normalise = measure_normalisation(canvases)
    out: dict[str, Tensor] = {}
    for name, encoder in cases:
        torch.manual_seed(3)
        task = find(name)(tiny_encoder(name=encoder), PLAN)
        model: nn.Module = task if mutation == MUTATIONS[1] else synchronise(task)
        model = DistributedDataParallel(model.train()) if world > 1 else model.train()
        optimiser = torch.optim.SGD(task.parameters(), lr=1e-3, momentum=0.9)
        stream = Batches(canvases, BATCH, 0, None, rank, world).steps()
        for step in range(3):
            views = make_views(next(stream), PLAN, normalise, 0)
            loss = model(views, 0.5)
            optimiser.zero_grad()
            loss.total.backward()
            if step == 0:
                key = f"{name}.{encoder}"
                out |= {f"{key}.views.{i}": view.pixels.contiguous() for i, view in enumerate(views)}
                out[f"{key}.loss"] = loss.total.detach()
                out |= {f"{key}.gradient.{k}": p.grad.clone() for k, p in task.named_parameters() if p.grad is not None}
                out |= {f"{key}.statistic.{k}": b.clone().float() for k, b in task.named_buffers()}
            optimiser.step()
            task.after_step(0.5)
        out |= {f"{key}.weight.{k}": p.detach().clone() for k, p in task.named_parameters()}
    save_file(out, f"{folder}/{mutation}{world}-{rank}.safetensors")
    if world > 1:
        dist.destroy_process_group()


def gathered(z: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z.detach().contiguous())
    return parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    uneven(folder / "photos")
    work(0, 1, str(folder), CASES)
    mp.spawn(work, (2, str(folder), CASES), nprocs=2)
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
    names = [name for name in one if name.startswith(kind)]
    assert names
    scale = max(float(one[name].abs().max()) for name in names)
    return max(float((one[name] - other[name]).abs().max()) for name in names) / scale


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_loss_gradients_statistics_and_weights_are_those_of_one_process(folder: Path, case: tuple[str, str]):
    one, two = results(folder, case)
    for rank in two:
        for kind in ("loss", "gradient", "weight", *(("statistic",) if case[1] == "resnet18" else ())):
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
    case = ("simclr", "resnet18")
    mp.spawn(work, (2, str(folder), [case], mutation), nprocs=2)
    one, two = results(folder, case, mutation)
    assert furthest(one, two[0], "gradient") > 1e-3


def test_a_batch_that_cannot_be_shared_is_refused(folder: Path):
    canvases = make_canvases(open_source(folder / "photos"), 32)
    with pytest.raises(SelfsightError, match="batch of 7 items .* by 2 processes. Give --batch-size 6"):
        Batches(canvases, 7, 0, None, 0, 2)


# -- the whole command, as torchrun starts it --

RECIPE = f"""resolved:
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
