"""Command lines in a process of their own that begins with what they need already loaded, which takes seconds.

The process is forked from a server that loaded them and did nothing else, so it is as clean as a new one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

HEAVY = (
    "torch", "torchvision", "timm", "lance", "accelerate", "sklearn.linear_model", "sklearn.metrics", "scipy.stats",
    "matplotlib.pyplot", "plotly", "rich", "selfsight.cli", "selfsight.training.pretraining", "selfsight.report.page",
)  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(HEAVY))


def run(lines: list[list[str]], folder: Path, seconds: float = 600) -> None:
    """Run each line, words of `selfsight` or the name of a Python file, one after the other in `folder`. Fails with
    what they printed if one does not end well."""
    said = folder / "said.txt"
    process = CONTEXT.Process(target=_run, args=(lines, str(folder), dict(os.environ), str(said)))
    process.start()
    process.join(seconds)
    process.kill()
    process.join()
    printed = said.read_text(encoding="utf-8", errors="replace")
    said.unlink()
    assert process.exitcode == 0, printed


def _run(lines: list[list[str]], folder: str, environment: dict[str, str], said: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with Path(said).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.path.insert(0, "")
    from selfsight.cli import main

    for words in lines:
        sys.argv = words
        serves = words[1:2] in (["label"], ["serve"]) and "--export" not in words
        if serves or "--review" in words:  # open until Ctrl-C
            before = signal.getsignal(signal.SIGINT)
            threading.Thread(target=_interrupt, args=[before, words], daemon=True).start()
        try:
            main() if words[0] == "selfsight" else runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                sys.exit(f"{json.dumps(words)} ended with {end.code}")


def _interrupt(before: Any, words: list[str]) -> None:
    """Press Ctrl-C once a server waits for it, and answer first what a person is asked."""
    import csv

    while signal.getsignal(signal.SIGINT) is before:
        time.sleep(0.1)
    time.sleep(0.5)
    from selfsight.data.importers import open_source

    if "box" in words and "--head" not in words:
        items = open_source(words[2])
        for number, item in enumerate(items.usable["id"].to_pylist()):
            box = {"label": "cell", "x0": 10, "y0": 8, "x1": 30, "y1": 20 + number}
            items.decisions.decide(item, None, "boxes", [box])
    if "--ask" in words:
        with Path(words[words.index("--ask") + 1]).open(newline="") as file:
            asked = [row["id"] for row in csv.DictReader(file)]
        journal = open_source(words[2]).decisions
        for i, item in enumerate(asked):
            journal.decide(item, None, "label", ("good", "bad")[i % 2])
    signal.raise_signal(signal.SIGINT)
