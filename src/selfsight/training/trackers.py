"""Trackers of a run's figures and pictures: `metrics.jsonl` and TensorBoard always, others if asked for."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from selfsight.console import console
from selfsight.errors import MachineError, SelfsightError, in_words, meant
from selfsight.files import write_whole
from selfsight.training.run import Folder

NAMES = ("wandb", "mlflow", "trackio")
PROJECT = "selfsight"
# W&B (even offline) and MLflow look up servers of their makers to report how they are used, and talk on the terminal;
# MLflow waits four minutes for a server that is gone. Not so, unless the user's environment says otherwise: they read
# this when they are first imported.
ENVIRONMENT = {
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}


def check(names: Sequence[str]) -> None:
    """Raise `SelfsightError` for a tracker that is unknown or not installed, before anything long begins."""
    for name in names:
        if name not in NAMES:
            raise SelfsightError(f"No tracker is called {name!r}. There are: {', '.join(NAMES)}.{meant(name, NAMES)}")
        needed = [name]
        if name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
            needed.append("sqlalchemy")  # its local database; mlflow-skinny comes without
        if not all(installed(package) for package in needed):
            raise MachineError(f"--track {name} needs another package: pip install 'selfsight[{name}]'")


def installed(package: str) -> bool:
    """Whether `package` can be imported. A folder of that name, such as W&B's `wandb/`, is not a package."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


class Metrics:
    """Writes rows of figures, and pictures. Only the main process has one that writes.

    Other trackers are Accelerate's. Nothing leaves the machine unless the environment says so: W&B is offline unless
    WANDB_MODE is set; MLflow and Trackio write into the run folder unless MLFLOW_TRACKING_URI or TRACKIO_DIR is set.

    A tracker that cannot start raises `SelfsightError`. One that fails later is dropped and noted in `run.log`, and
    training goes on.
    """

    def __init__(
        self,
        run: Folder,
        step: int,
        names: Sequence[str] = (),
        config: Mapping[str, object] | None = None,
        main: bool = True,
    ) -> None:
        self.run, self.main, self.step = run, main, step
        self.others: dict[str, Any] = {}
        self._environment: list[str] = []
        if not main:
            return
        from torch.utils.tensorboard import SummaryWriter

        try:
            for name in dict.fromkeys(names):
                self._start(name, config or {})
        except BaseException:
            self._finish()
            raise
        self.file = run.metrics_file.open("a")
        self.board = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, float]) -> None:
        """Write one row, on disk when this returns."""
        self.step = int(row["step"])
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for key, value in row.items():
            self.board.add_scalar(key, value, self.step)
        figures = {key: value for key, value in row.items() if key != "step"}
        self._each(lambda name, other: other.log(figures, step=self.step))

    def picture(self, name: str, path: Path, step: int) -> None:
        """Hand a PNG of the run to the trackers."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.board.add_image(name, pixels, step, dataformats="HWC")
        self._each(lambda tracker, other: _show(tracker, other, name, path, pixels, step))

    def _start(self, name: str, config: Mapping[str, object]) -> None:
        try:
            with redirect_stdout(io.StringIO()):  # Trackio prints, and the output of --json is read by programs
                other = _make(name, self.run, self._default)
                other.start()
                self.others[name] = other
                if name == "mlflow":
                    _remember(self.run, name, other.active_run.info.run_id)
                other.store_init_configuration(_flat(config))
        except Exception as error:
            raise MachineError(f"--track {name} cannot be started: {_words(error)}.") from None

    def _default(self, name: str, value: str) -> bool:
        """Set an environment variable for this run, unless the user has set it. Returns whether it was set here."""
        if name in os.environ:
            return False
        os.environ[name] = value
        self._environment.append(name)
        return True

    def _each(self, do: Callable[[str, Any], None]) -> None:
        for name, other in list(self.others.items()):
            try:
                do(name, other)
            except Exception as error:  # a server gone, a full disk: the run is worth more than its mirror
                del self.others[name]
                with suppress(Exception):  # MLflow would else refuse to begin another run in this process
                    _end(name, other)
                text = f"{name} is given up: {_words(error)}."
                console().print(f"{text} The run goes on; its figures are in {self.run.path}.", style="yellow")
                self.run.log("tracker", text, self.step)

    def _finish(self) -> None:
        try:
            with redirect_stdout(io.StringIO()):
                self._each(_end)
        finally:
            self.others = {}
            for name in self._environment:
                os.environ.pop(name, None)

    def __enter__(self) -> Metrics:
        # TensorBoard writes in a thread. What stops it there it also raises here: once is enough.
        self._hook = threading.excepthook
        threading.excepthook = lambda args: None if args.exc_type is OSError else self._hook(args)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.main:
                self.file.close()
                self._finish()
                self.board.close()
        finally:
            threading.excepthook = self._hook


def _make(name: str, run: Folder, default: Callable[[str, str], bool]) -> Any:
    """Accelerate's tracker `name`, not yet started. A resumed run goes on in the tracker's earlier run."""
    from accelerate.tracking import MLflowTracker, TrackioTracker, WandBTracker

    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    folder = run.path.resolve()
    known = _known(run).get(name)
    if name == "mlflow":
        local = default("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        # A server knows itself where artifacts belong, and would keep our folder for every later run.
        place = (folder / "mlflow").as_uri() if local else None
        return MLflowTracker(PROJECT, logging_dir=place, run_id=known, run_name=folder.name)
    known = known or _remember(run, name, uuid.uuid4().hex[:12])
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE", "offline")
        return WandBTracker(PROJECT, name=folder.name, id=known, resume="allow", dir=str(folder), mode=mode)
    if default("TRACKIO_DIR", str(folder / "trackio")):
        for module in [module for module in sys.modules if module.split(".")[0] == "trackio"]:
            del sys.modules[module]  # it reads its folder when imported: of an earlier run in this process, that one's
    # Trackio knows runs by their names alone, and folders of one name are easily two runs.
    return TrackioTracker(PROJECT, name=f"{folder.name}-{known}", resume="allow", embed=False)


def _show(tracker: str, other: Any, name: str, path: Path, pixels: Any, step: int) -> None:
    """Hand a picture to a tracker. Accelerate itself can do so only for W&B."""
    if tracker == "wandb":
        other.log_images({name: [pixels]}, step=step)
    elif tracker == "mlflow":
        other.log_artifact(str(path))
    else:
        import trackio

        other.log({name: trackio.Image(pixels)}, step=step)


def _end(tracker: str, other: Any) -> None:
    if tracker == "trackio":
        import trackio

        trackio.finish()  # the run's own `finish` is repeated when Python ends, and prints
    else:
        other.finish()


def _known(run: Folder) -> dict[str, str]:
    """{tracker: its own name of this run}."""
    file = run.path / "trackers.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _remember(run: Folder, name: str, known: str) -> str:
    write_whole(run.path / "trackers.json", json.dumps(_known(run) | {name: known}))
    return known


def _words(error: Exception) -> str:
    return in_words(error).strip().rstrip(".") or type(error).__name__


def _flat(values: Mapping[str, object], before: str = "") -> dict[str, str]:
    """Nested `values` as {"a.b": text}, which every tracker takes."""
    out: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{before}{key}.")
        else:
            out[f"{before}{key}"] = str(value)[:250]  # MLflow takes no more
    return out
