"""Kills `adapt` with SIGKILL on its way along a stream, again and again, and says whether it comes to the same.

    python benchmarks/adapt_kills.py HEAD STREAM WORK --kills 20

The stream is walked once without a kill, into WORK/whole, and once with them, into WORK/out: each comes at a random
moment within 0.6 seconds of a new state. Prints a line of JSON: kills, whether head, figures and drift.jsonl are the
same, and what they are. Each walk is a fork of a process that has imported all it needs, so that no time goes into
that. It exits with 1 where they are not the same.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import selfsight

NEEDED = ("torch", "timm", "selfsight.verbs.adapt", "selfsight.deploy.stream", "selfsight.deploy.adapted",
          "selfsight.heads.tasks", "selfsight.report.drift_page", "selfsight.report.pictures", "sklearn.linear_model",
          "selfsight.data.importers", "selfsight.data.written", "matplotlib")  # fmt: skip
SAME = ("digest", "windows", "images", "alarms", "labels", "distance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("stream", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--false-alarms", type=float, default=0.01)
    given = parser.parse_args()
    for name in NEEDED:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    given.work.mkdir(parents=True, exist_ok=True)
    whole, out = given.work / "whole", given.work / "out"
    for path in (whole, out):
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(path.with_name(f"{path.name}.state"), ignore_errors=True)
    one = finished(begun(given, whole), whole)
    kills = killed(given, out)
    other = finished(begun(given, out), out)
    same = all(one[name] == other[name] for name in SAME)
    same &= (whole / "drift.jsonl").read_bytes() == (out / "drift.jsonl").read_bytes()
    print(json.dumps({"kills": kills, "same": same, **{name: other[name] for name in SAME}}))
    sys.exit(0 if same else 1)


def begun(given: argparse.Namespace, out: Path) -> int:
    """The process id of a walk, which leaves its result in OUT.json."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        how = {"window": given.window, "false_alarms": given.false_alarms}
        result = selfsight.adapt(str(given.head), stream=str(given.stream), out=str(out), **how)
        out.with_suffix(".json").write_text(json.dumps(result.to_dict()))
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def finished(pid: int, out: Path) -> dict[str, object]:
    """The result of a walk that comes to its end."""
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("A walk failed.")
    return dict(json.loads(out.with_suffix(".json").read_text()))


def killed(given: argparse.Namespace, out: Path) -> int:
    """Kill walks until there were enough kills, or one came to its end; returns how many there were."""
    state, rng = out.with_name(f"{out.name}.state") / "state.safetensors", random.Random(0)
    for count in range(given.kills):
        before = state.stat().st_mtime_ns if state.exists() else 0
        pid = begun(given, out)
        while not state.exists() or state.stat().st_mtime_ns == before:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return count
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.6) if given.kills > 5 else 0.0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if out.with_suffix(".json").exists():  # it was done already
            return count
    return given.kills


if __name__ == "__main__":
    main()
