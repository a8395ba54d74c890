"""`predict --watch` as a process: files that arrive, are written slowly, broken, or seen before; kills and Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_encoder, write_colours

import selfsight
from selfsight.encoders.store import save
from selfsight.errors import DataError, SelfsightError


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


# -- cameras --


@pytest.fixture
def camera(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, file) of a camera on this machine: 3.2 seconds of ten frames each, each second of a colour."""
    av = pytest.importorskip("av")
    file = tmp_path / "film" / "film.ts"
    file.parent.mkdir()
    with av.open(str(file), "w", format="mpegts") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(32):
            pixels = np.random.default_rng(number).normal(110, 40, (64, 64, 3))
            pixels[:, :, number // 10 % 3] += 45
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(file.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://anna:secret@127.0.0.1:{server.server_port}/film.ts", file
    server.shutdown()


def test_a_stream_is_said_of_as_its_file(
    head: Path, camera: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame a second, as of a video; and where it ends it is asked again."""
    from selfsight.heads import streaming
    from selfsight.heads.head import load_head

    monkeypatch.setattr(streaming, "AGAIN", 0.0)
    address, film = camera
    table = selfsight.predict(str(film), head=str(head)).table.to_pylist()
    out = tmp_path / "out.jsonl"
    coming = streaming.streamed(load_head(head), address, out)
    found = [next(coming) for _ in range(len(table) + 1)]
    coming.close()
    said = sorted((row["label"], round(row["score"], 4)) for row in found[: len(table)])
    assert said == sorted((row["label"], round(row["score"], 4)) for row in table) and len(table) == 4
    assert found[-1]["label"] == found[0]["label"] and found[-1]["id"] != found[0]["id"]  # from its start again
    assert rows(out) == found
    assert all("secret" not in str(row) and row["uri"].startswith("http://127.0.0.1:") for row in found)


def test_a_camera_that_is_not_there_is_refused(head: Path, tmp_path: Path) -> None:
    for source in ("rtsp://anna:secret@127.0.0.1:9/1", "/dev/video99", "http://127.0.0.1:9/film.ts"):
        with pytest.raises(DataError, match="cannot be read") as refused:
            selfsight.predict(source, head=str(head), out=str(tmp_path / "out.jsonl"), watch=True)
        assert "secret" not in str(refused.value)
    with pytest.raises(SelfsightError, match=r"to a \.jsonl"):
        selfsight.predict("/dev/video0", head=str(head), out=str(tmp_path / "out.lance"), watch=True)


def test_a_playlist_leads_to_no_file(head: Path, camera: tuple[str, Path], tmp_path: Path) -> None:
    address, film = camera
    (film.parent / "list.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:3,\nfile://{film}\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(DataError):
        next(streaming_of(head, address.replace("film.ts", "list.m3u8"), tmp_path))


def streaming_of(head: Path, address: str, folder: Path) -> Iterator[dict[str, object]]:
    from selfsight.heads.head import load_head
    from selfsight.heads.streaming import streamed

    return streamed(load_head(head), address, folder / "out.jsonl")
