"""Trackers: what was written is read back from the tracker's own files, and nothing speaks to any network."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image

import selfsight
from selfsight.training import trackers
from selfsight.training.run import Run
from selfsight.training.trackers import Metrics, check, installed

ROWS = [{"step": 1, "loss": 5.0, "spread": 0.5}, {"step": 10, "loss": 4.5, "spread": 0.625}]


def with_tracker(name: str) -> pytest.MarkDecorator:
    there = installed(name) and (name != "mlflow" or installed("sqlalchemy"))
    return pytest.mark.skipif(not there, reason=f"{name} is not installed")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)


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
    run.go_back_to(5)
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


@with_tracker("wandb")
def test_wandb_is_offline_and_has_every_figure(tmp_path: Path):
    run = run_of(tmp_path / "run")
    write(run, ROWS, ("wandb", "wandb"))  # once is enough
    first = json.loads((run.path / "trackers.json").read_text())["wandb"]
    write(run, [{"step": 20, "loss": 4.0, "spread": 0.75}], ("wandb",), step=10)
    assert json.loads((run.path / "trackers.json").read_text())["wandb"] == first  # the same run goes on
    folders = list(run.path.glob("wandb/offline-run-*"))  # two of one second differ by a number behind the run's name
    assert len(folders) == 2 and all(f"-{first}" in path.name for path in folders)
    until = time.monotonic() + 30
    while len(history := [row for row in wandb_history(run) if "loss" in row]) < 3 and time.monotonic() < until:
        time.sleep(0.1)  # since 0.31 W&B writes the last rows after it says that it has
    assert [row["_step"] for row in history] == [1, 10, 20]
    assert [(row["loss"], row["spread"]) for row in history] == [(5, 0.5), (4.5, 0.625), (4, 0.75)]
    assert any("views" in key for row in wandb_history(run) for key in row)


@with_tracker("mlflow")
def test_mlflow_keeps_two_runs_apart_and_goes_on_with_each(tmp_path: Path):
    from mlflow import MlflowClient

    one, two = run_of(tmp_path / "one"), run_of(tmp_path / "two")
    write(one, ROWS, ("mlflow",))
    write(two, ROWS[:1], ("mlflow",))
    write(one, [{"step": 10, "loss": 4.25, "spread": 0.5}], ("mlflow",), step=1)  # after a kill
    assert "MLFLOW_TRACKING_URI" not in os.environ
    for run, losses in ((one, [(1, 5.0), (10, 4.5), (10, 4.25)]), (two, [(1, 5.0)])):
        client = MlflowClient(f"sqlite:///{run.path / 'mlflow.db'}")
        (found,) = client.search_runs([client.get_experiment_by_name("selfsight").experiment_id])
        assert found.info.run_name == run.path.name and found.data.params == {"budget.steps": "3", "size": "32"}
        history = client.get_metric_history(found.info.run_id, "loss")
        assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.timestamp)] == losses
        assert len(list((run.path / "mlflow").rglob("views.png"))) == 1


@with_tracker("trackio")
def test_trackio_keeps_two_runs_apart_and_goes_on_with_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = run_of(tmp_path / "a" / "run"), run_of(tmp_path / "b" / "run")
    write(one, ROWS, ("trackio",))
    write(two, ROWS[:1], ("trackio",))
    write(one, [{"step": 10, "loss": 4.25, "spread": 0.5}], ("trackio",), step=1)
    for run, losses in ((one, [(1, 5.0), (10, 4.5), (10, 4.25)]), (two, [(1, 5.0)])):
        with sqlite3.connect(run.path / "trackio" / "selfsight.db") as base:
            rows = base.execute("SELECT run_name || run_id, step, metrics FROM metrics ORDER BY id").fetchall()
        assert len({name for name, _, _ in rows}) == 1 and rows[0][0].startswith("run-")
        figures = [(step, json.loads(text)) for _, step, text in rows]
        assert [(step, row["loss"]) for step, row in figures if "loss" in row] == losses
        assert any("views" in row for _, row in figures)
        assert list((run.path / "trackio" / "media").rglob("*.png"))
    assert capsys.readouterr().out == ""  # it is for results


@with_tracker("wandb")
def test_a_tracker_that_fails_on_the_way_stops_nothing(tmp_path: Path):
    run = run_of(tmp_path / "run")
    Accelerator(cpu=True)
    with Metrics(run, 0, ("wandb",)) as metrics:
        metrics.write(ROWS[0])
        metrics.others["wandb"].run.finish()  # from now on W&B refuses what it is given
        metrics.write(ROWS[1])
        metrics.write({"step": 20, "loss": 4.0, "spread": 0.75})
    assert [row["step"] for row in run.read_metrics()] == [1, 10, 20]
    (event,) = run.read_log()
    assert (event.kind, event.step) == ("tracker", 10) and event.text.startswith("wandb is given up: ")


@with_tracker("wandb")
def test_a_tracker_that_cannot_start_says_so_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "sideways")
    run = run_of(tmp_path / "run")
    with pytest.raises(selfsight.SelfsightError, match=r"^--track wandb cannot be started: .+\.$"):
        write(run, ROWS, ("wandb",))
    assert not run.metrics_file.exists()


LISTENS = """
import os, sys
asked = []
def hook(event, given):
    if event in ("socket.connect", "socket.sendto") and isinstance(given[1], tuple) or event == "socket.getaddrinfo":
        asked.append((event, str(given[0]) if event == "socket.getaddrinfo" else str(given[1])))
sys.addaudithook(hook)
import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=0.1)
except OSError:
    pass
assert {event for event, _ in asked} == {"socket.connect", "socket.getaddrinfo"}  # the hook does see
asked.clear()
import selfsight
selfsight.pretrain(sys.argv[1], out=sys.argv[2], steps=3, batch_size=4, track=sys.argv[3], energy=sys.argv[4] == "energy")
import atexit
atexit._run_exitfuncs()  # what is sent last
print(asked)
"""  # noqa: E501


class Proxy:
    """What programs of any language connect to instead of a server, while the variables for proxies name it."""

    def __init__(self) -> None:
        self.socket, self.calls = socket.create_server(("127.0.0.1", 0)), []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.calls.append(connection.recv(200))
            connection.close()

    @property
    def environment(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        return {name: address for upper in ("HTTP_PROXY", "HTTPS_PROXY") for name in (upper, upper.lower())}


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.socket.close()


@pytest.mark.parametrize("name", [pytest.param(name, marks=with_tracker(name)) for name in trackers.NAMES])
def test_a_tracked_run_asks_nobody_anything_and_prints_nothing(
    images: Callable[..., Path], tmp_path: Path, cache: Path, proxy: Proxy, name: str
):
    energy = name == "wandb" and installed("codecarbon")
    # An environment without the variables of CI and pytest, by which trackers know that they are only tested.
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "SELFSIGHT_CACHE": str(cache)}
    environment |= proxy.environment
    environment |= {key: os.environ[key] for key in ("PYTHONPATH", "SYSTEMROOT") if key in os.environ}
    command = [sys.executable, "-c", LISTENS, images(8), tmp_path / "run", name, "energy" if energy else ""]
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n" and proxy.calls == []
    assert not (tmp_path / "home" / ".config" / "mlflow").exists()  # where it would keep who this is
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {"views.png", "neighbours.png"}
    if energy:
        assert "codecarbon" not in done.stderr
        assert 0 < json.loads((tmp_path / "run" / "energy.json").read_text())["energy_kwh"] < 0.1


def test_what_is_not_known_or_not_installed_is_refused_at_once(
    images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(selfsight.SelfsightError, match=r"'wandbee'\. There are: wandb, mlflow, trackio"):
        selfsight.pretrain(str(images(4)), out=str(tmp_path / "run"), steps=1, track="wandbee")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name in trackers.NAMES:
        with pytest.raises(selfsight.SelfsightError, match=rf"pip install 'selfsight\[{name}\]'"):
            check([name])
    assert not (tmp_path / "run").exists()


def test_a_folder_that_a_tracker_left_behind_is_not_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "left_behind" / "offline-run-1").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("left_behind") is not None
    assert not installed("left_behind") and installed("PIL")
