"""kill -9 at any moment, SIGTERM, a checkpoint cut in half: the encoder is the same file in the end. Real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import write_folder

import selfsight
from selfsight.training.optimisers import learning_rate_factor
from selfsight.training.run import Event, Run

STEPS, KILLS = 300, 20
# Stochastic depth draws from torch's generator inside the model, which a resumed run must draw again.
RECIPE = """resolved:
  encoder: resnet18
  encoder_args: {layers: [1, 1, 1, 0], channels: [8, 16, 32, 32], drop_path_rate: 0.3}
  objective_options: {hidden: 32, width: 16}
  size: 32
  canvas_side: 32
  batch_size: 6
  threads: 1
"""
CHILD = """
import json, sys
import selfsight, selfsight.training.loop as loop
loop.CHECKPOINT_SECONDS = float(sys.argv[3])
source, out = sys.argv[1:3]
try:
    result = selfsight.pretrain(source, out=out, recipe=source + ".yaml", **json.loads(sys.argv[4]))
    print(json.dumps(result.to_dict()))
except KeyboardInterrupt as stop:
    print(stop)
    sys.exit(130)
"""


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = write_folder(path / "photos", 31)
        (path / "photos.yaml").write_text(RECIPE)

    def start(self, out: str, budget: dict[str, Any], every: float = 60.0) -> subprocess.Popen[str]:
        env = os.environ | {"SELFSIGHT_CACHE": str(self.path / f"cache-{out}"), "OMP_NUM_THREADS": "1"}
        arguments = [str(self.source), str(self.path / out), str(every), json.dumps(budget)]
        command = [sys.executable, "-c", CHILD, *arguments]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, out: str, budget: dict[str, Any]) -> dict[str, Any]:
        process = self.start(out, budget)
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return json.loads(said[0].splitlines()[-1])

    def encoder(self, out: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted((self.path / out / "encoder").iterdir())}

    def newest(self, out: str) -> Path | None:
        return max((self.path / out).glob("checkpoints/step-*[0-9]"), default=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("kills"))
    folder.finish("whole", {"steps": STEPS})
    return folder


def test_killed_at_twenty_random_moments(folder: Folder):
    budget, draw, reached = {"steps": STEPS}, random.Random(4), []
    for _ in range(KILLS):
        process = folder.start("killed", budget, every=0.02)
        began = folder.newest("killed")
        try:  # anywhere: while it imports, decodes, trains, writes a checkpoint, whitens
            process.wait(draw.uniform(1.0, 3.0))
        except subprocess.TimeoutExpired:
            # Moments before the first step are as good as any, but some must come after it.
            end = time.monotonic() + draw.choice((0.0, 60.0))
            while process.poll() is None and folder.newest("killed") == began and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.3))
        process.kill()
        process.communicate()
        newest = folder.newest("killed")
        reached.append(int(newest.name[5:]) if newest else 0)
        assert not (folder.path / "killed" / "encoder" / "config.json").exists(), "too quick for twenty kills"
    print(reached)
    assert len(reached) == KILLS and len(set(reached)) > 5, reached  # it went on, and was killed on the way
    folder.finish("killed", budget)
    assert folder.encoder("killed") == folder.encoder("whole")
    steps = [row["step"] for row in Run(folder.path / "killed").read_metrics()]
    assert steps == [1, *range(10, STEPS + 1, 10)]


def _parted(run: Run) -> tuple[list[tuple[int, str]], list[Event]]:
    """The alarms of a run, by step and text, and what else its log holds."""
    events = run.read_log()
    alarms = [(event.step, event.text) for event in events if event.kind == "alarm"]
    return alarms, [event for event in events if event.kind != "alarm"]


def test_sigterm_and_a_checkpoint_cut_in_half(folder: Folder):
    budget, run = {"steps": STEPS}, Run(folder.path / "stopped")
    process = folder.start("stopped", budget, every=0.02)
    while len(list(run.checkpoints.glob("step-*[0-9]"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "The same command goes on" in said
    newest = folder.newest("stopped")
    assert newest is not None
    weights = newest / "module.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    result = folder.start("stopped", budget)
    _, said = result.communicate(timeout=300)
    assert result.returncode == 0, said
    assert f"{newest.name} is damaged" in said
    alarms, rest = _parted(run)
    assert [event.kind for event in rest] == ["damaged", "resumed", "finished"]
    assert alarms == _parted(Run(folder.path / "whole"))[0]  # some CPUs' roundings let this small run stand still
    assert folder.encoder("stopped") == folder.encoder("whole")


def test_minutes_end_on_time_however_often_they_are_killed(folder: Folder):
    # A minute leaves room for three starts of Python on a busy machine: each counts as active time.
    budget, run, draw = {"minutes": 1.0}, Run(folder.path / "minutes"), random.Random(1)
    for _ in range(2):
        process = folder.start("minutes", budget, every=0.2)
        before = folder.newest("minutes")
        while folder.newest("minutes") in (before, None):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        time.sleep(draw.uniform(0.5, 1.5))
        process.kill()
        process.communicate()
        time.sleep(1.0)  # the time between two starts does not count
    result = folder.finish("minutes", budget)
    assert result["seconds"] > 0.7 * 60  # and it did not end before: the rest is for whitening and saving
    rows = run.read_metrics()
    assert [r["step"] for r in rows] == sorted({r["step"] for r in rows}) and rows[-1]["progress"] == 1.0
    seconds = [r["seconds"] for r in rows]
    assert seconds == sorted(seconds)
    assert rows[-1]["learning_rate"] < 0.05 * max(r["learning_rate"] for r in rows)
    events = [e.kind for e in run.read_log() if e.kind != "alarm"]  # six of 31 images a step may well collapse
    assert events == ["resumed", "resumed", "finished"]


def test_a_finished_run_is_extended_from_where_it_ended(folder: Folder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SELFSIGHT_CACHE", str(folder.path / "cache-extended"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, how = str(folder.path / "extended"), {"recipe": str(folder.source) + ".yaml"}
    with pytest.raises(selfsight.SelfsightError, match="not a finished run"):
        selfsight.pretrain(str(folder.source), out=out, steps=10, extend=True, **how)
    selfsight.pretrain(str(folder.source), out=out, steps=30, **how)
    before = folder.encoder("extended")
    with pytest.raises(selfsight.SelfsightError, match="--extend"):
        selfsight.pretrain(str(folder.source), out=out, steps=30, **how)
    with pytest.raises(selfsight.SelfsightError, match="other values of seed"):
        selfsight.pretrain(str(folder.source), out=out, steps=20, extend=True, seed=3, **how)
    process = folder.start("extended", {"steps": 20, "extend": True}, every=0.01)
    while folder.newest("extended").name == "step-00000030":  # type: ignore[union-attr]
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert folder.finish("extended", {"steps": 20, "extend": True})["steps"] == 50
    run = Run(folder.path / "extended")
    assert [r["step"] for r in run.read_metrics()] == [1, 10, 20, 30, 40, 50]
    rates = {r["step"]: r["learning_rate"] for r in run.read_metrics()}
    peak = run.read_recipe()[1].learning_rate
    for step in (40, 50):  # a warm-up and an annealing of its own, over the twenty
        assert rates[step] == pytest.approx(peak * learning_rate_factor((step - 31) / 20, 0.05))
    assert folder.encoder("extended") != before and not (run.path / "encoder.before").exists()
