"""The folder of a tuning, from which the same command goes on."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from selfsight.errors import MachineError, SelfsightError
from selfsight.files import read_json, write_whole
from selfsight.machine import memory_errors
from selfsight.training.run import Folder


class TuningFolder(Folder):
    """The folder of a tuning: `asked.json` says of what. It is removed at the end."""

    last: ClassVar[str] = "tuned"


@contextmanager
def tuning_run(folder: Path | None, asked: Mapping[str, object], batch: int, advice: str) -> Iterator[TuningFolder]:
    """Context in which a tuning is begun in `folder`, or goes on there; without a folder nothing of it is kept.

    asked: what it is of; another tuning that was stopped there raises `SelfsightError`. batch: images of a step.
    advice: what to do where these do not fit in memory, which raises `MachineError`.
    """
    run = TuningFolder(folder or Path(tempfile.mkdtemp(prefix="selfsight-")))
    try:
        with run.machine_errors(), run.claimed(), _memory_told(batch, advice):
            _same(run, asked)
            yield run
    finally:
        if folder is None:
            shutil.rmtree(run.path, ignore_errors=True)


def _same(run: TuningFolder, asked: Mapping[str, object]) -> None:
    """Begin a tuning, or check that the one begun is this one."""
    file = run.path / "asked.json"
    known = read_json(file)
    if run.begun and known is not None and known != asked:
        odd = next(name for name in asked if known.get(name) != asked[name])
        raise SelfsightError(
            f"{run.path} holds a tuning that was stopped, with another {odd}. Give its command again, another -o, or "
            "delete that folder."
        )
    if not run.begun:
        run.clear()
    write_whole(file, json.dumps(asked))


@contextmanager
def _memory_told(batch: int, advice: str) -> Iterator[None]:
    try:
        with memory_errors():
            yield
    except MemoryError:
        raise MachineError(f"Out of memory: a step of {batch} images does not fit. {advice}") from None
