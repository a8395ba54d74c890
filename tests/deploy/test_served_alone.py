"""A service of exported heads: what it imports, that it says what `predict` says, and that encoders are shared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_encoder
from PIL import Image

import selfsight
from selfsight.deploy.about import about_export, as_metadata
from selfsight.deploy.cut import cut
from selfsight.deploy.engine import Engine
from selfsight.deploy.exported import Exported, export_of, open_export
from selfsight.deploy.graphs import inputs_of, write_graph
from selfsight.deploy.shared_exports import Rest, share_exports
from selfsight.heads.head import load_head

HEADS = ("shades", "parts", "cells")
HEAVY = ("torch", "torchvision", "timm", "sklearn", "lance")
# Serves heads, asks about images from a thread, prints what was answered and what of the heavy packages is there.
SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path
import selfsight
sys.path[:0] = sys.argv[4:]
from caller import Caller

heads, files, port = sys.argv[1].split(","), sys.argv[2].split(","), int(sys.argv[3])

def ask():
    caller = Caller(port, "")
    while True:
        try:
            if caller.ask("GET", "/ready", headers={}).status == 200:
                break
        except OSError:
            time.sleep(0.05)
    caller = Caller(port, Path("state/token").read_text().strip())
    found = {Path(head).name: {Path(file).name: caller.predict(Path(head).name, Path(file).read_bytes()).json
                               for file in files} for head in heads}
    more = caller.predict("cells", Path(files[0]).read_bytes(), "?pictures=true").status
    drift = {each["name"]: each["drift"] for each in caller.get("/card").json["heads"]}
    heavy = [name for name in HEAVY if name in sys.modules]
    print(json.dumps({"found": found, "heavy": heavy, "pictures": more, "drift": drift}), flush=True)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=ask, daemon=True).start()
selfsight.serve(*heads, port=port, state="state")
"""


def served(place: Path, folder: Path, files: list[Path], port: int) -> dict[str, Any]:
    """What SCRIPT prints, of copies of the heads and their exports."""
    for name in HEADS:
        shutil.copytree(place / "heads" / name, folder / "heads" / name)
        shutil.copy(place / "heads" / f"{name}.onnx", folder / "heads")
    script = SCRIPT.replace("HEAVY", repr(HEAVY))
    words = [",".join(f"heads/{name}" for name in HEADS), ",".join(map(str, files)), str(port)]
    command = [sys.executable, "-c", script, *words, *map(str, Path(__file__).parents[:2])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))))


@pytest.fixture
def port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_exported_heads_are_served_without_torch(place: Path, tmp_path: Path, port: int, cache: Path) -> None:
    files = [place / "new" / name for name in ("colour-0.png", "turned.jpg", "deep.png", "cells-0.png")]
    said = served(place, tmp_path, files, port)
    assert said["heavy"] == [] and said["pictures"] == 200
    assert "items to compare with" in said["drift"]["cells"]  # of five pictures no drift can be told
    for name in HEADS:
        rows = selfsight.predict(str(place / "new"), head=str(place / "heads" / name)).table.to_pylist()
        expected = {row["uri"]: row for row in rows}
        for file in files:
            [row] = said["found"][name][file.name]["predictions"]
            assert row["head"] == expected[file.name]["head"]
            assert_same({**row, "id": "", "uri": ""}, {**expected[file.name], "id": "", "uri": ""})


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert one == (pytest.approx(other, rel=1e-4, abs=1e-4) if isinstance(other, float) else other)


def test_exports_of_one_encoder_share_its_work(place: Path, tmp_path: Path) -> None:
    """Classifiers take its features, segmentations its maps; whole and cut they say the same."""
    for name in ("colours", "shades", "cells", "spots"):
        shutil.copytree(place / "heads" / name, tmp_path / name)
        head, file = load_head(tmp_path / name), tmp_path / f"{name}.onnx"
        if name in HEADS:
            shutil.copy(place / "heads" / file.name, file)
        else:
            write_graph(head, file, about=as_metadata(about_export(head, inputs_of(head), "fp32")))
    pixels = [np.asarray(Image.open(place / "new" / f"colour-{number}.png")) for number in range(4)]
    for names in (("colours", "shades"), ("cells", "spots")):
        whole, heads = ([opened(tmp_path / name) for name in names] for _ in range(2))
        share_exports(heads)
        assert all(isinstance(head.engine, Rest) for head in heads)
        encoder = heads[0].engine.encoder
        before = encoder.runs
        for head, alone in zip(heads, whole, strict=True):
            several = [head.place(number, each) for number, each in enumerate(pixels)]
            assert_same(head.say(several[:3]), alone.say(several[:3]))
        assert encoder is heads[1].engine.encoder and encoder.runs - before == 3
        heads[1].say(several[2:])
        assert encoder.runs - before == 4  # one was new
    write_graph(tiny_encoder(32, layers=[1, 1, 0, 0]).eval(), tmp_path / "other.onnx")
    assert cut([tmp_path / "colours.onnx", tmp_path / "other.onnx"]) is None
    alone = opened(tmp_path / "colours")
    share_exports([alone, opened(tmp_path / "cells")])
    assert isinstance(alone.engine, Engine)


def opened(folder: Path) -> Exported:
    found = open_export(folder, export_of(folder))
    assert isinstance(found, Exported), found
    return found


def test_an_export_of_another_head_is_not_used(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "heads" / "shades", tmp_path / "shades")
    shutil.copy(place / "heads" / "shades.onnx", tmp_path)
    assert opened(tmp_path / "shades").digest == load_head(tmp_path / "shades").digest
    about = json.loads((tmp_path / "shades" / "head.json").read_text())
    (tmp_path / "shades" / "head.json").write_text(json.dumps(about | {"notes": ["read again"]}))
    assert opened(tmp_path / "shades").about.notes == ["read again"]  # other bytes, but it says the same
    (tmp_path / "shades" / "head.json").write_text(json.dumps(about | {"threshold": 0.123}))
    assert "was made of another head" in str(open_export(tmp_path / "shades", tmp_path / "shades.onnx"))
