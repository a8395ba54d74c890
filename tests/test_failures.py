"""What must not lose anything: a full disk, a read-only folder, a vanished file, a clock set back, Ctrl-C, two at once.

Real commands in processes of their own, on a file system of their own; nothing is mocked.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SMALL_RECIPE, write_folder
from PIL import Image

from selfsight.data.canvases import Resident, Streamed, measure_format
from selfsight.data.collection import Collection
from selfsight.errors import MachineError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts, signals and limits as Linux has them")

MB = 2**20
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static time_t back(void) { return access(getenv("CLOCK_SET_BACK"), F_OK) ? 0 : 1000000; }
int clock_gettime(clockid_t which, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(which, now);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec -= back();
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (now) *now = fine.tv_sec;
    return fine.tv_sec;
}
"""


class Disk:
    """A file system of a few megabytes at `path`; where none may be mounted, a folder, and a limit to the size of the
    files of the processes that are started with it."""

    def __init__(self, path: Path, size: int) -> None:
        path.mkdir()
        self.path, self.limit = path, -1
        how = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
        self.mounted = bool(shutil.which("mount")) and subprocess.run(how, capture_output=True).returncode == 0

    @property
    def room(self) -> int:
        return shutil.disk_usage(self.path).free

    def fill(self, leave: int = 0, process: subprocess.Popen[Any] | None = None) -> None:
        """Leave this many bytes; to `process`, if it runs already."""
        if self.mounted:
            with (self.path / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.room - leave)
        else:
            self.limit = leave
            if process:
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (leave, leave))

    def make_room(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)
        self.limit = -1

    def read_only(self, yes: bool) -> None:
        """For everything below."""
        if self.mounted:
            subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(self.path)], check=True)
        elif os.geteuid() == 0:
            pytest.skip("nothing is read-only for an administrator who may not mount")
        else:
            for folder in [self.path, *(p for p in self.path.rglob("*") if p.is_dir())]:
                folder.chmod(0o555 if yes else 0o755)

    def start(self, *arguments: str | Path, **how: Any) -> subprocess.Popen[Any]:
        """`selfsight arguments`, running."""
        command = [sys.executable, "-m", "selfsight", *map(str, arguments)]
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": self.path.parent} | how
        process = subprocess.Popen(command, **how)
        if self.limit >= 0:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (self.limit, self.limit))
        return process

    def run(self, *arguments: str | Path) -> dict[str, Any]:
        """The result of a command that succeeds."""
        process = self.start(*arguments, "--json")
        code, out, said = ended(process)
        assert code == 0, said
        return json.loads(out)

    def fails(self, *arguments: str | Path) -> str:
        """The one sentence of a command that fails."""
        return sentence(self.start(*arguments))


def ended(process: subprocess.Popen[Any]) -> tuple[int, str, str]:
    out, said = process.communicate(timeout=120)
    return process.returncode, out, said


def sentence(process: subprocess.Popen[Any]) -> str:
    """What a command says to which the machine fails: one sentence on the last line, no traceback."""
    code, _, said = ended(process)
    assert code == MachineError.exit_code, (code, said)
    assert "Traceback" not in said and "Error:" not in said
    lines = [line for line in said.splitlines() if line.startswith("selfsight: ")]
    assert len(lines) == 1 and said.rstrip().endswith(lines[0]), said
    return lines[0]


def wait_for(what: Callable[[], Any], process: subprocess.Popen[Any]) -> Any:
    """What `what()` gives as soon as that is something; the process must not have ended by then."""
    for _ in range(60_000):
        if found := what():
            return found
        assert process.poll() is None, ended(process)
        time.sleep(0.002)
    raise AssertionError("waited in vain")


def wait_for_step(step: int, run: Path, process: subprocess.Popen[Any]) -> None:
    """Until metrics.jsonl has a row of this step or a later one."""
    wait_for(lambda: (steps(run) or [0])[-1] >= step, process)


def steps(run: Path) -> list[int]:
    """The steps of the whole lines of metrics.jsonl."""
    if not (run / "metrics.jsonl").exists():
        return []
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def newest(run: Path) -> int:
    """The step of the last checkpoint, 0 if there is none."""
    return max((int(path.name[5:]) for path in run.glob("checkpoints/step-*[0-9]")), default=0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk", 8 * MB)
    yield disk
    disk.make_room()
    if disk.mounted:
        subprocess.run(["umount", "-l", str(disk.path)], check=True)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SMALL_RECIPE)
    return write_folder(tmp_path / "photos", 24, size=(32, 32))


PRETRAIN = ("--recipe", "small.yaml", "--steps")


# -- a full disk --


def test_a_disk_that_fills_during_an_import(disk: Disk, tmp_path: Path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(400):
        Image.fromarray(np.full((4, 4), i % 256, np.uint8)).save(folder / f"{i:03d}.png")
    disk.run("import", folder, "-o", "elsewhere.lance")
    size = sum(path.stat().st_size for path in (tmp_path / "elsewhere.lance").rglob("*") if path.is_file())
    command = ("import", folder, "-o", "disk/many.lance")
    disk.fill(0)
    assert "many.lance" in disk.fails(*command)
    disk.make_room()
    disk.fill(size * 3 // 2)  # for what is read, and not for the whole table as well
    if disk.mounted:
        assert "many.lance" in disk.fails(*command)
        for path in folder.iterdir():  # from here on no image can be read, but none has changed by size and time
            stat = path.stat()
            path.write_bytes(bytes(stat.st_size))
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    disk.make_room()
    assert disk.run(*command)["items"] == 400
    assert [path.name for path in disk.path.iterdir()] == ["many.lance"]


def test_a_disk_that_fills_while_a_run_is_training(disk: Disk, photos: Path):
    run, log = disk.path / "run", disk.path / "run" / "metrics.jsonl"
    command = ("pretrain", photos, "-o", run, *PRETRAIN, "300")
    stopped = disk.start(*command)
    wait_for_step(20, run, stopped)
    stopped.send_signal(signal.SIGINT)
    code, _, said = ended(stopped)
    assert code == 130 and "The same command goes on" in said
    first, done = log.read_text(), newest(run)
    assert done > 10

    for interrupt in (True, False):  # the disk is full when a checkpoint is written; and when metrics are
        before = log.stat().st_ino
        process = disk.start(*command)
        wait_for(lambda: log.stat().st_ino != before, process)  # noqa: B023 (rows after the checkpoint are gone)
        wait_for_step(done + 1, run, process)
        process.send_signal(signal.SIGSTOP)
        disk.fill(0, process)
        if interrupt:
            process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        said = sentence(process)
        assert str(run) in said and re.search("No space left|File too large", said), said
        assert newest(run) == done and log.read_text().startswith(first)
        disk.make_room()

    disk.read_only(True)
    assert str(run) in disk.fails(*command)
    disk.read_only(False)
    assert disk.run(*command)["steps"] == 300
    assert log.read_text().startswith(first)  # those steps were not done again
    assert steps(run) == [1, *range(10, 301, 10)]


# -- a read-only folder --


def test_a_read_only_cache_or_collection(disk: Disk, photos: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SELFSIGHT_CACHE", str(disk.path / "cache"))
    imported = ("import", photos, "-o", "disk/photos.lance")
    disk.run(*imported)
    disk.read_only(True)
    assert disk.run(*imported)["items"] == 24  # nothing changed: nothing has to be written
    (photos / "000.png").unlink()
    assert "disk/photos.lance" in disk.fails(*imported)
    assert "disk/photos.lance" in disk.fails("forget", "disk/photos.lance", "002.png", "--yes")
    assert "disk/new.lance" in disk.fails("import", photos, "-o", "disk/new.lance")
    assert f"{disk.path}/cache" in disk.fails("pretrain", photos, "-o", "run", *PRETRAIN, "2")
    disk.read_only(False)
    assert disk.run(*imported)["items"] == 23
    assert disk.run("forget", "disk/photos.lance", "002.png", "--yes")["items"] == 22


# -- a vanished file --


def test_files_that_vanish_after_the_import(disk: Disk, photos: Path, tmp_path: Path):
    disk.run("import", photos, "-o", "photos.lance")
    (photos / "004.png").unlink()
    process = disk.start("pretrain", "photos.lance", "-o", "run", *PRETRAIN, "60", "--canvases", "stream", "--json")
    wait_for_step(1, tmp_path / "run", process)
    process.send_signal(signal.SIGSTOP)
    (photos / "006.png").unlink()
    process.send_signal(signal.SIGCONT)
    code, out, said = ended(process)
    assert code == 0, said
    gone = [{"uri": uri, "reason": "file vanished since import"} for uri in ("004.png", "006.png")]
    table = Collection.open(tmp_path / "photos.lance").table
    ids = dict(zip(table["uri"].to_pylist(), table["id"].to_pylist(), strict=True))
    assert json.loads((tmp_path / "run" / "set_aside.json").read_text()) == [
        {"id": ids[item["uri"]], **item, "at": "decoding"} for item in gone
    ]
    assert json.loads(out)["steps"] == 60 and json.loads(out)["items"] == 22
    assert json.loads(out)["set_aside_items"] == gone


# -- a clock that is set back --


def test_the_clock_is_set_back_by_days(disk: Disk, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not shutil.which("cc"):
        pytest.skip("no C compiler to make a clock that can be set back for one process")
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"], cwd=tmp_path, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "clock.so"))
    monkeypatch.setenv("CLOCK_SET_BACK", str(tmp_path / "back"))
    run, command = tmp_path / "run", ("pretrain", photos, "-o", "run", "--recipe", "small.yaml", "--minutes", "10")
    for _ in range(2):  # the second goes on with a run whose past lies in the future
        process = disk.start(*command)
        wait_for_step(newest(run) + 20, run, process)
        (tmp_path / "back").touch()
        wait_for_step(steps(run)[-1] + 1, run, process)
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 130
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("step", "seconds", "progress"):
        values = [row[name] for row in rows]
        assert values == sorted(set(values)), name
    assert 0 < rows[0]["progress"] < rows[-1]["progress"] < 0.5  # of ten minutes
    now = subprocess.run([sys.executable, "-c", "import time; print(time.time())"], stdout=subprocess.PIPE, check=True)
    assert float(now.stdout) < time.time() - 900_000, "the clock was not set back"


# -- Ctrl-C --


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Pictures of a megabyte each, which take a while to read, and no time to make."""
    folder = tmp_path / "slow"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    Image.fromarray(noise).save(folder / "000.png", compress_level=0)
    for i in range(1, 800):
        os.link(folder / "000.png", folder / f"{i:03d}.png")
    return folder


def bytes_read(process: subprocess.Popen[Any]) -> int:
    return int(re.search(r"rchar: (\d+)", Path(f"/proc/{process.pid}/io").read_text())[1])  # type: ignore[index]


def test_control_c_during_an_import_keeps_what_was_read(disk: Disk, slow: Path, tmp_path: Path):
    process = disk.start("import", slow, "-o", "slow.lance")
    wait_for(lambda: bytes_read(process) > 250 * MB, process)
    process.send_signal(signal.SIGINT)
    code, _, said = ended(process)
    assert code == 130 and said.endswith("selfsight: stopped\n") and "Traceback" not in said
    assert not Collection.exists(tmp_path / "slow.lance")
    kept = Collection.open(tmp_path / "slow.lance.partial").table["uri"].to_pylist()
    assert 50 < len(set(kept)) == len(kept) < 800
    for uri in kept:  # to read one of these again would be noticed
        stat = (slow / uri).stat()
        with (tmp_path / "zeros").open("wb") as file:
            file.truncate(stat.st_size)
        os.utime(tmp_path / "zeros", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        os.replace(tmp_path / "zeros", slow / uri)
    result = disk.run("import", slow, "-o", "slow.lance")
    assert (result["items"], result["set_aside"]) == (800, 0)
    assert not (tmp_path / "slow.lance.partial").exists()


def test_canvases_that_a_full_disk_or_control_c_cut_short(
    disk: Disk, slow: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = disk.path / "cache"
    monkeypatch.setenv("SELFSIGHT_CACHE", str(cache))
    disk.run("import", slow, "-o", "slow.lance", "--include", "0*")
    command = ("pretrain", "slow.lance", "-o", "run", *PRETRAIN, "2", "--canvases", "resident")
    need = 100 * 32 * 32 * 3  # bytes of all pixels; their index has no room
    disk.fill(need if disk.mounted else need // 2)
    assert f"{cache}/canvases" in disk.fails(*command)
    assert not any((cache / "canvases").iterdir())  # nothing half-written takes up room
    disk.make_room()

    process = disk.start(*command)
    wait_for(lambda: any(file.stat().st_size for file in cache.glob("canvases/*/pixels.bin")), process)
    process.send_signal(signal.SIGINT)
    code, _, said = ended(process)
    assert code == 130 and said.endswith("selfsight: stopped\n") and "Traceback" not in said
    assert not any((cache / "canvases").iterdir())

    assert disk.run(*command)["items"] == 100
    items = Collection.open(tmp_path / "slow.lance")
    held, decoded = Resident(items, measure_format(items), 32), Streamed(items, measure_format(items), 32, 1)
    assert all((held[i] == decoded[0]).all() for i in range(100))  # links to one file


# -- two at once --


def test_two_imports_into_one_collection_lose_nothing(disk: Disk, photos: Path, tmp_path: Path):
    for i in range(1500):
        os.link(photos / "000.png", photos / f"copy-{i}.png")
    command = ("import", photos, "-o", "photos.lance")
    for _ in range(2):
        shutil.rmtree(tmp_path / "photos.lance", ignore_errors=True)
        both = [disk.start(*command) for _ in range(2)]
        codes = [process.wait(timeout=60) for process in both]
        assert 0 in codes
        for process in both:
            if process.returncode:
                sentence(process)
        ids = Collection.open(tmp_path / "photos.lance").table["id"].to_pylist()
        assert len(ids) == len(set(ids)) == 1524
    assert disk.run(*command)["items"] == 1524
