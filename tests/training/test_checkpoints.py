"""Checkpoints bring back everything to the bit, and a damaged one is passed over."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import tiny_encoder, two_views
from torch import nn

from selfsight.errors import MachineError, SelfsightError
from selfsight.objectives.simclr import SimCLR
from selfsight.training.checkpoints import load_checkpoint, save_checkpoint
from selfsight.training.optimisers import make_optimiser
from selfsight.training.pretraining import groups_of
from selfsight.training.run import Run


def make(name: str, seed: int) -> tuple[SimCLR, torch.optim.Optimizer]:
    task = SimCLR(tiny_encoder(seed=seed), two_views(), hidden=8, width=8)
    return task, make_optimiser(groups_of(task, 0.1), name, 0.01)


def step(task: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    for p in task.parameters():
        p.grad = torch.randn_like(p)
    optimiser.step()


def state_of(task: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in task.state_dict().items()}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "lars"])
def test_weights_and_moments_come_back_to_the_bit(tmp_path: Path, name: str):
    task, optimiser = make(name, 0)
    for _ in range(3):
        step(task, optimiser)
    save_checkpoint(tmp_path, task, optimiser, {"step": 3, "seconds": 1.25})
    torch.manual_seed(7)
    for _ in range(2):
        step(task, optimiser)
    other, its = make(name, 1)
    assert load_checkpoint(tmp_path, other, its) == ({"step": 3, "seconds": 1.25}, [])
    torch.manual_seed(7)
    for _ in range(2):
        step(other, its)
    wanted, got = state_of(task), state_of(other)
    assert all(torch.equal(wanted[k], got[k]) for k in wanted)


def test_a_checkpoint_of_other_parts_is_one_sentence(tmp_path: Path):
    small, large = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    save_checkpoint(tmp_path, small, torch.optim.SGD(small.parameters()), {"step": 1})
    with pytest.raises(SelfsightError, match=r"another version of selfsight, with other parts of the module: bias\."):
        load_checkpoint(tmp_path, large, torch.optim.SGD(large.parameters()))


def test_no_checkpoint_is_none(tmp_path: Path):
    assert load_checkpoint(tmp_path / "none", *make("sgd", 0)) == (None, [])


def test_the_last_two_are_kept(tmp_path: Path):
    task, optimiser = make("sgd", 0)
    for number in (9, 10, 99, 100):
        save_checkpoint(tmp_path, task, optimiser, {"step": number})
    assert names(tmp_path) == ["step-00000099", "step-00000100"]
    save_checkpoint(tmp_path, task, optimiser, {"step": 100, "again": True})
    assert names(tmp_path) == ["step-00000099", "step-00000100"]
    assert load_checkpoint(tmp_path, task, optimiser) == ({"step": 100, "again": True}, [])


def damage_with(how: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        name, share = how.split(":")
        path = folder / name
        if share == "gone":
            path.unlink()
        elif share == "flip":  # one bit of a weight: nothing but a checksum can tell
            data = bytearray(path.read_bytes())
            data[-5] ^= 1
            path.write_bytes(data)
        else:
            path.write_bytes(path.read_bytes()[: int(path.stat().st_size * float(share))])

    return damage


@pytest.mark.parametrize(
    "how",
    ["module.safetensors:0.5", "module.safetensors:0", "optimiser.safetensors:0.9", "optimiser.safetensors:gone",
     "state.json:0.5", "state.json:0", "module.safetensors:flip", "optimiser.safetensors:flip"],
)  # fmt: skip
def test_a_truncated_newest_checkpoint_falls_back_to_the_elder(tmp_path: Path, how: str):
    task, optimiser = make("adamw", 0)
    step(task, optimiser)
    save_checkpoint(tmp_path, task, optimiser, {"step": 1})
    elder = state_of(task)
    step(task, optimiser)
    save_checkpoint(tmp_path, task, optimiser, {"step": 2})
    damage_with(how)(tmp_path / "step-00000002")
    other, its = make("adamw", 1)
    state, damaged = load_checkpoint(tmp_path, other, its)
    assert state == {"step": 1} and len(damaged) == 1 and damaged[0].startswith("step-00000002 is damaged: ")
    got = state_of(other)
    assert all(torch.equal(elder[k], got[k]) for k in elder)


def test_what_a_kill_left_half_written_is_not_read_and_is_written_over(tmp_path: Path):
    task, optimiser = make("sgd", 0)
    save_checkpoint(tmp_path, task, optimiser, {"step": 1})
    half = tmp_path / "step-00000002.partial"
    half.mkdir()
    (half / "module.safetensors").write_bytes(b"half")
    assert load_checkpoint(tmp_path, task, optimiser) == ({"step": 1}, [])
    save_checkpoint(tmp_path, task, optimiser, {"step": 2})
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert load_checkpoint(tmp_path, task, optimiser) == ({"step": 2}, [])


def test_of_a_full_disk_it_is_said_what_is_left_of_the_run(tmp_path: Path):
    run, full = Run(tmp_path), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "module.safetensors")
    said = f"module.safetensors: {os.strerror(errno.ENOSPC)}. "
    with (
        pytest.raises(MachineError, match=f"^{re.escape(said)}Remove the cause and give the same command"),
        run.machine_errors(),
    ):
        raise full
    save_checkpoint(run.checkpoints, *make("sgd", 0), {"step": 1})
    kept = re.escape(
        f"{said}The run in {tmp_path} is kept up to its last checkpoint. Remove the cause and give the same"
    )
    with pytest.raises(MachineError, match=f"^{kept}"), run.machine_errors():
        raise full
    with pytest.raises(KeyError), run.machine_errors():  # what is no fault of the machine goes through
        raise KeyError
