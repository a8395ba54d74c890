"""Trackers: what was written is read back from the tracker's own files, and nothing speaks to any network."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

import selfsight
from selfsight.training.run import Run
from selfsight.training.trackers import Metrics, check

ROWS = [{"step": 1, "loss": 5.0, "spread": 0.5}, {"step": 10, "loss": 4.5, "spread": 0.625}]


def run_of(path: Path) -> Run:
    path.mkdir()
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(path / "views.png")
    return Run(path)


def write(run: Run, rows: list[dict[str, Any]], names: tuple[str, ...] = (), step: int = 0) -> None:
    Accelerator(cpu=True)
    with Metrics(run, step, names, {"budget": {"steps": 3}, "size": 32}) as metrics:
        metrics.picture("views", run.path / "views.png", 0)
        for row in rows:
            metrics.write(row)


def scalars(run: Run, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    assert board.Tags()["images"] == ["views"]
    return [(event.step, event.value) for event in board.Scalars(name)]


def test_tensorboard_has_every_figure_and_of_a_resumed_run_no_step_twice(tmp_path: Path):
    run = run_of(tmp_path / "run")
    write(run, ROWS)
    assert [json.loads(line) for line in run.metrics_file.read_text().splitlines()] == ROWS
    assert scalars(run, "loss") == [(1, 5.0), (10, 4.5)]
    run.keep_metrics_until(5)
    write(run, [{"step": 10, "loss": 4.25, "spread": 0.5}], step=5)
    assert scalars(run, "loss") == [(1, 5.0), (10, 4.25)]


def records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, as W&B writes it behind seven bytes of its own: blocks of 32 KB, in them chunks of
    checksum (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last) and content."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # what is left of a block is padding
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_history(run: Run) -> list[dict[str, Any]]:
    from wandb.proto import wandb_internal_pb2

    rows = []
    for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        for data in records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                rows.append({(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item})
    return rows


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_is_offline_and_has_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run = run_of(tmp_path / "run")
    write(run, ROWS, ("wandb",))
    first = json.loads((run.path / "trackers.json").read_text())["wandb"]
    write(run, [{"step": 20, "loss": 4.0, "spread": 0.75}], ("wandb",), step=10)
    assert json.loads((run.path / "trackers.json").read_text())["wandb"] == first  # the same run goes on
    history = [row for row in wandb_history(run) if "loss" in row]
    assert [row["_step"] for row in history] == [1, 10, 20]
    assert [(row["loss"], row["spread"]) for row in history] == [(5, 0.5), (4.5, 0.625), (4, 0.75)]
    assert any("views" in key for row in wandb_history(run) for key in row)


QUIET = """
import sys
seen = []
def hook(event, given):
    if event == "socket.connect" and isinstance(given[1], tuple):
        seen.append(given[1])
sys.addaudithook(hook)
import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=0.1)
except OSError:
    pass
assert seen.pop() == ("127.0.0.1", 9)  # the hook does see connections
import selfsight
selfsight.pretrain(sys.argv[1], out=sys.argv[2], steps=3, batch_size=4, track=sys.argv[3], energy=True)
print(seen)
"""


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("wandb", "codecarbon")), reason="extras are not installed"
)
def test_a_tracked_run_connects_to_nothing_and_knows_its_energy(images: Callable[..., Path], tmp_path: Path):
    command = [sys.executable, "-c", QUIET, str(images(8)), str(tmp_path / "run"), "wandb"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]" and "codecarbon" not in done.stderr
    energy = json.loads((tmp_path / "run" / "energy.json").read_text())
    assert 0 < energy["energy_kwh"] < 0.1 and "co2_kg" not in energy and energy["method"].startswith("codecarbon")
    assert {p.name for p in (tmp_path / "run").glob("*.png")} == {"views.png", "neighbours.png"}


def test_what_is_not_known_or_not_installed_is_refused_at_once(
    images: Callable[..., Path], tmp_path: Path, monkeypatch
):
    with pytest.raises(selfsight.SelfsightError, match=r"'wandbee'\. There are: wandb, mlflow, trackio"):
        selfsight.pretrain(str(images(4)), out=str(tmp_path / "run"), steps=1, track="wandbee")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(selfsight.SelfsightError, match=r"pip install 'selfsight\[trackio\]'"):
        check(["trackio"])
    with pytest.raises(selfsight.SelfsightError, match=r"pip install 'selfsight\[energy\]'"):
        selfsight.pretrain(str(images(4)), out=str(tmp_path / "run"), steps=1, energy=True)
    assert not (tmp_path / "run").exists()
