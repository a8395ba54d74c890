"""`predict --watch` as a process: files that arrive, are written slowly, broken, or seen before; kills and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny_encoder, write_colours

import selfsight
from selfsight.encoders.store import save
from selfsight.errors import SelfsightError


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    save(tiny_encoder(32), folder / "encoder")
    write_colours(folder / "train", 6)
    selfsight.train.classify(str(folder / "train"), model=str(folder / "encoder"), out=str(folder / "head"))
    return folder / "head"


def start(head: Path, source: Path, out: Path) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "selfsight", "predict", str(source), "--head", str(head), "-o", str(out), "--watch"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def rows(out: Path) -> list[dict[str, object]]:
    lines = out.read_bytes().splitlines(keepends=True) if out.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def until(met: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_files_arrive_slowly_and_broken_and_a_kill_loses_nothing(head: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "line", tmp_path / "out.jsonl"
    pictures = sorted(write_colours(tmp_path / "pictures", 4).rglob("*.png"))
    source.mkdir()
    process = start(head, source, out)  # an empty folder is waited for
    shutil.copy(pictures[0], source / "a.png")
    until(lambda: len(rows(out)) == 1)
    content = pictures[1].read_bytes()
    with (source / "slow.png").open("wb") as file:  # by a camera that takes three seconds to write
        for part in range(6):
            file.write(content[part * len(content) // 6 : (part + 1) * len(content) // 6])
            file.flush()
            time.sleep(0.5)
    (source / "broken.png").write_bytes(content[:300])
    minutes_ago = time.time() - 120
    (source / "lost.png").write_bytes(content[:300])
    os.utime(source / "lost.png", (minutes_ago, minutes_ago))
    until(lambda: {row["uri"] for row in rows(out)} == {"a.png", "slow.png", "lost.png"})
    found = {str(row["uri"]): row for row in rows(out)}
    assert found["slow.png"]["label"] is not None and not found["slow.png"]["reason"]
    assert found["lost.png"]["label"] is None and found["lost.png"]["reason"]
    process.kill()
    process.wait()
    with out.open("ab") as file:
        file.write(b'{"id": "cut')
    shutil.copy(pictures[2], source / "b.png")
    (source / "broken.png").write_bytes(content)  # whole by now
    process = start(head, source, out)
    until(lambda: len(rows(out)) == 5)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "2 items predicted" in said
    found = {str(row["uri"]): row for row in rows(out)}
    assert len(rows(out)) == len(found) == 5 and found["broken.png"]["label"] is not None
    offline = selfsight.predict(str(source), head=str(head)).table.to_pylist()
    for row in offline:
        if row["uri"] != "lost.png":
            assert row["probabilities"] == pytest.approx(found[row["uri"]]["probabilities"], abs=1e-5)


def test_only_what_can_grow_is_written_to(head: Path, tmp_path: Path) -> None:
    with pytest.raises(SelfsightError, match="--watch appends to a file"):
        selfsight.predict(str(tmp_path), head=str(head), watch=True)
    with pytest.raises(SelfsightError, match=r"End it in one of \.jsonl, \.lance"):
        selfsight.predict(str(tmp_path), head=str(head), watch=True, out=str(tmp_path / "p.parquet"))
