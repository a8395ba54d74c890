"""`adapt` as users call it: a stream of pictures, what it leaves, labels that come back, kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers import tiny_encoder, write_colours
from PIL import Image

import selfsight
from selfsight.data.decisions import Journal
from selfsight.data.importers import open_source
from selfsight.deploy.stream import ordered
from selfsight.encoders.store import save
from selfsight.errors import SelfsightError
from selfsight.heads.head import load_head

KILLS = Path(__file__).parents[2] / "benchmarks" / "adapt_kills.py"
WINDOW = 16
FEW = {"window": WINDOW, "false_alarms": 0.001}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """head/ of three colours, and line/ of 96 pictures named in their order: the third to sixth 16 are drifted."""
    folder = tmp_path_factory.mktemp("adapt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSIGHT_CACHE", str(folder / "cache"))
        save(tiny_encoder(32), folder / "encoder")
        write_colours(folder / "learn", 20)
        selfsight.train.classify(str(folder / "learn"), model=str(folder / "encoder"), out=str(folder / "head"))
    write_line(folder / "line", 96, range(32, 96))
    return folder


def write_line(line: Path, count: int, drifted: range, first: int = 0) -> Path:
    """Pictures NNN-CLASS.png of the three colours in turn; drifted ones are brighter and flatter."""
    line.mkdir(exist_ok=True)
    source = write_colours(line.parent / f"{line.name}-all", -(-count // 3), seed=7 + first)
    for i in range(count):
        name = ("red", "green", "blue")[i % 3]
        pixels = np.asarray(Image.open(source / name / f"{i // 3:03d}.png"), np.float32)
        pixels = pixels * 0.5 + 120 if i in drifted else pixels
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(line / f"{first + i:03d}-{name}.png")
    return line


def test_a_stream_is_followed_and_the_head_is_one_like_any_other(place: Path, tmp_path: Path) -> None:
    out, head = tmp_path / "out", load_head(place / "head")
    result = selfsight.adapt(str(place / "head"), stream=str(place / "line"), out=str(out), **FEW)
    assert (result.windows, result.images, result.alarms, result.drifting) == (6, 96, 4, True)
    assert result.changed and result.parent == head.digest != result.digest == load_head(out).digest
    lines = [json.loads(line) for line in (out / "drift.jsonl").read_text().splitlines()]
    assert [line["drift"] for line in lines] == [False, False, True, True, True, True]
    assert [line["first"][:3] for line in lines] == ["000", "016", "032", "048", "064", "080"]
    assert json.loads((out / "lineage.json").read_text())["parent"] == head.digest
    assert Image.open(out / "drift.png").size[0] > 500
    page = (out / "drift.html").read_text()
    assert "data:image/jpeg" in page and "http" not in page.replace("http-equiv", "")
    rows = selfsight.predict(str(place / "line"), head=str(out)).table.to_pylist()
    assert len(rows) == 96 and all(row["label"] for row in rows)
    module = load_head(out).module
    pixels = np.stack([np.asarray(Image.open(place / "line" / row["uri"])) for row in rows])
    with torch.inference_mode():
        found = module(torch.from_numpy(pixels).permute(0, 3, 1, 2))["probabilities"].numpy()
    assert found == pytest.approx(np.array([row["probabilities"] for row in rows]), abs=1e-4)
    assert selfsight.evaluate(str(out), test=str(place / "learn")).to_dict()["task"] == "classify"
    assert selfsight.report(str(out), out=str(tmp_path / "report.html")).items == 60


def test_the_same_command_goes_on_with_what_has_come(place: Path, tmp_path: Path) -> None:
    line, out = tmp_path / "line", tmp_path / "out"
    write_line(line, 40, range(0))
    first = selfsight.adapt(str(place / "head"), stream=str(line), out=str(out), thumbnails=False, **FEW)
    assert (first.windows, first.images, first.waiting, first.changed) == (3, 40, 0, False)
    assert load_head(out).digest == first.parent  # nothing to adapt: the same head
    assert "data:image/jpeg" not in (out / "drift.html").read_text()
    (line / "039-broken.png").write_bytes((line / "000-red.png").read_bytes()[:400])
    write_line(line, 20, range(20), first=40)
    again = selfsight.adapt(str(place / "head"), stream=str(line), out=str(out), **FEW)
    assert (again.windows, again.images, again.waiting, again.set_aside) == (4, 56, 4, 1)
    forgotten = selfsight.forget(str(line), "001-green.png")
    assert {(each.kind, Path(each.path).name) for each in forgotten.elsewhere} >= {("walk", "out")}
    assert not (tmp_path / "out.state").exists() and not (out / "drift.html").exists() and load_head(out)
    selfsight.adapt(str(place / "head"), stream=str(line), out=str(out), thumbnails=False, **FEW)
    with pytest.raises(SelfsightError, match="of a walk with another window"):
        selfsight.adapt(str(place / "head"), stream=str(line), out=str(out), window=32, false_alarms=0.001)
    with pytest.raises(SelfsightError, match="is the head itself"):
        selfsight.adapt(str(place / "head"), stream=str(line), out=str(place / "head"))
    selfsight.runs("remove", str(out))
    assert not out.exists() and not (tmp_path / "out.state").exists()
    shutil.copytree(place / "head", tmp_path / "other")
    with pytest.raises(SelfsightError, match="is a head that adapt did not write"):
        selfsight.adapt(str(place / "head"), stream=str(line), out=str(tmp_path / "other"))


def test_labels_come_from_a_journal_of_a_service_by_content(place: Path, tmp_path: Path) -> None:
    items = open_source(place / "line")
    journal = Journal(tmp_path / "steel.lance")
    for row in items.usable.to_pylist()[:30]:
        name = row["uri"][4:].removesuffix(".png")
        journal.decide(row["content_hash"], row["content_hash"], "label", name)
    labels, out = str(tmp_path / "steel.decisions"), tmp_path / "out"
    result = selfsight.adapt(str(place / "head"), stream=str(place / "line"), out=str(out), labels=labels, **FEW)
    assert result.labels == 30 and result.rollbacks == 0
    made = load_head(out)
    assert len(made.items) == 90 and made.about.items == 90
    more = items.usable.to_pylist()[30]
    journal.decide(more["content_hash"], more["content_hash"], "label", more["uri"][4:].removesuffix(".png"))
    result = selfsight.adapt(str(place / "head"), stream=str(place / "line"), out=str(out), labels=labels, **FEW)
    assert result.labels == 31  # one that came after its picture had passed
    other = "green" if more["uri"][4:] == "red.png" else "red"
    journal.decide(more["content_hash"], more["content_hash"], "label", other)  # somebody thought again
    result = selfsight.adapt(str(place / "head"), stream=str(place / "line"), out=str(out), labels=labels, **FEW)
    assert result.labels == 31
    kept = {row["id"]: row["label"] for row in load_head(out).items.to_pylist()}
    assert kept[more["id"]] == other
    with pytest.raises(SelfsightError, match="is no journal"):
        selfsight.adapt(str(place / "head"), stream=str(place / "line"), out=str(tmp_path / "o"), labels=str(tmp_path))


def test_poisoned_labels_take_the_head_back(place: Path, tmp_path: Path) -> None:
    turned = {"red": "green", "green": "blue", "blue": "red"}
    rows = ["path,label"]
    rows += [f"{file.name},{turned[file.stem[4:]]}" for file in sorted((place / "line").iterdir())]
    (tmp_path / "poison.csv").write_text("\n".join(rows))
    how = {"labels": str(tmp_path / "poison.csv"), "out": str(tmp_path / "out")}
    result = selfsight.adapt(str(place / "head"), stream=str(place / "line"), **how, **FEW)
    assert result.rollbacks >= 1 and "back to the head as it was" in result.notes[0]
    assert "back to the head as it was" in (tmp_path / "out" / "drift.html").read_text()


def test_kills_lose_nothing(place: Path, tmp_path: Path, cache: Path) -> None:
    """Five kills on the way, each once the state has grown; then it comes to what it comes to without."""
    words = [place / "head", place / "line", tmp_path, "--kills", 5, "--window", WINDOW, "--false-alarms", 0.001]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SELFSIGHT_CACHE": str(cache)}
    command = [sys.executable, str(KILLS), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (done.stdout, done.stderr)
    found = json.loads(done.stdout)
    assert (found["kills"], found["same"], found["windows"], found["images"]) == (5, True, 6, 96)


def test_a_stream_has_an_order() -> None:
    rows = pa.table({"uri": ["b", "a", "c"], "sequence": pa.nulls(3, pa.string()), "frame": pa.nulls(3, pa.string())})
    assert ordered(rows).tolist() == [1, 0, 2]
    assert ordered(rows.append_column("time", pa.array(["10", "9", "100"]))).tolist() == [1, 0, 2]
    taken = rows.set_column(1, "sequence", pa.array(["t", "s", "s"])).set_column(2, "frame", pa.array(["1", "10", "2"]))
    assert ordered(taken).tolist() == [2, 1, 0]


def test_an_inspection_is_watched(place: Path, tmp_path: Path) -> None:
    """Its drift is told and goes on after a stop, and it stays as it is."""
    how = {"model": str(place / "encoder"), "size": 32, "false_alarms": 0.2}
    head, out, line = tmp_path / "parts", tmp_path / "out", tmp_path / "line"
    selfsight.train.inspect(str(place / "learn"), labels=str(good(place, tmp_path)), out=str(head), **how)
    line.mkdir()
    for file in sorted((place / "line").iterdir())[:48]:
        shutil.copy(file, line)
    result = selfsight.adapt(str(head), stream=str(line), out=str(out), **FEW)
    assert (result.windows, result.alarms, result.drifting, result.changed) == (3, 1, True, False)
    assert result.digest == result.parent == load_head(out).digest and "watched, not adapted" in result.notes[0]
    for file in sorted((place / "line").iterdir())[48:64]:
        shutil.copy(file, line)
    again = selfsight.adapt(str(head), stream=str(line), out=str(out), **FEW)
    lines = [json.loads(row) for row in (out / "drift.jsonl").read_text().splitlines()]
    assert again.windows == 4 and [row["did"] for row in lines] == [[], [], ["drift"], []]
    assert "data:image/jpeg" in (out / "drift.html").read_text()
    with pytest.raises(SelfsightError, match="learns no labels here"):
        selfsight.adapt(str(head), stream=str(line), out=str(out), labels="line.csv")


def good(place: Path, folder: Path) -> Path:
    """A table in which all pictures are good parts."""
    names = [file.relative_to(place / "learn") for file in sorted((place / "learn").rglob("*.png"))]
    (folder / "good.csv").write_text("\n".join(["path,label", *(f"{name},good" for name in names)]))
    return folder / "good.csv"


def test_it_watches_until_it_is_told_to_stop(place: Path, tmp_path: Path, cache: Path) -> None:
    stream, out, over = tmp_path / "line", tmp_path / "out", threading.Event()
    stream.mkdir()  # empty at first

    def bring() -> None:
        for file in sorted((place / "line").iterdir())[:20]:
            shutil.copy(file, stream)
        end = time.monotonic() + 120
        while not (out / "drift.jsonl").exists() and time.monotonic() < end:  # what is written last after a window
            time.sleep(0.05)
        if not over.is_set():
            signal.raise_signal(signal.SIGINT)

    thread = threading.Timer(0.5, bring)
    thread.start()
    try:
        found = selfsight.adapt(str(place / "head"), stream=str(stream), out=str(out), watch=True, **FEW)
    finally:
        over.set()
        thread.join()
    assert (found.windows, found.images) == (1, 16) and load_head(out).digest == found.digest
