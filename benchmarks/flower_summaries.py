"""Flower carries what sites tell of themselves: the JSON files of `selfsight curate --summary`, and nothing else.

    python -m venv own && own/bin/pip install flwr==1.42.0    # an environment of its own; Flower is Apache-2.0
    own/bin/python benchmarks/flower_summaries.py north.json south.json west.json -o told/
    selfsight curate told/ --summaries

Flower's server (a SuperLink) and, for each file, a site (a SuperNode) are processes of this machine that listen on
127.0.0.1. The server asks the sites, and writes what is a summary to told/, under the name of its source. What is none
is a sentence, printed and kept in told/arrived.txt, and the other sites count. selfsight is not needed for that.
flower_app/ is what Flower runs; docs/sources.md says how on more machines.

Flower calls its makers unless told not to: telemetry.flower.ai from each process, api.flower.ai to look for updates,
and a package registry (`uv sync`) for what an app needs. `QUIET` ends all three.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

APP = Path(__file__).parent / "flower_app"
HOST = "127.0.0.1"
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def gather(files: list[Path], into: Path, seconds: float) -> str:
    """Ask a site for each of the files, as processes of this machine; what came of it, a sentence for each site."""
    done, port = into / "arrived.txt", free_port()
    done.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        work, insecure = Path(folder), ("--insecure", "--host", HOST, "--port")  # no TLS within a machine

        def start(name: str, *command: str) -> subprocess.Popen[bytes]:
            return running.enter_context(process(work, name, *command))

        link = start("link", "flower-superlink", *insecure, str(port))
        for number, file in enumerate(files):
            told = write_toml(work / f"site{number}.toml", summary=str(file.resolve()))
            asks = ("--superlink", f"{HOST}:{port}", "--node-config", told)
            start(f"site{number}", "flower-supernode", *insecure, str(free_port()), *asks)
        write_toml(
            work / "run" / "config.toml",
            **{"superlink.here.address": f"{HOST}:{port}", "superlink.here.insecure": True},
        )
        asked = write_toml(work / "asked.toml", into=str(into.resolve()), sites=len(files), seconds=seconds)
        while not listens(port) and link.poll() is None:
            time.sleep(0.5)
        with suppress(subprocess.TimeoutExpired):
            start("run", "flwr", "run", str(APP), "here", "--run-config", asked, "--stream").wait(2 * seconds + 60)
        if not done.is_file():
            last = "".join((work / f"{name}.log").read_text()[-2000:] for name in ("link", "run"))
            raise SystemExit(f"{last}\nFlower did not finish; its last words are above.")
        return done.read_text(encoding="utf-8")


@contextmanager
def process(work: Path, name: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a home of its own, that ends with all that it started."""
    home = {**os.environ, **QUIET, "FLWR_HOME": str(work / name), "NO_PROXY": HOST}
    home["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), home.get("PATH", "")))
    with (work / f"{name}.log").open("w") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log, env=home, cwd=work, start_new_session=True)
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        started.wait(20)


def write_toml(file: Path, **values: object) -> str:
    """Write settings, and return where; JSON's texts, numbers, true and false are TOML's too."""
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(lines), encoding="utf-8")
    return str(file)


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex((HOST, port)) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what each site wrote: selfsight curate ... --summary FILE")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for what arrives")
    parser.add_argument("--seconds", type=float, default=120, help="how long to wait for the sites")
    given = parser.parse_args()
    if importlib.util.find_spec("flwr") is None:
        sys.exit("Flower is not installed here. Make an environment for it: pip install flwr==1.42.0")
    print(gather(given.files, given.out, given.seconds))


if __name__ == "__main__":
    main()
