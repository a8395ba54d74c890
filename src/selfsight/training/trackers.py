"""Where figures and pictures of a run go: `metrics.jsonl` and TensorBoard always, other trackers if asked for."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from selfsight.errors import SelfsightError
from selfsight.training.run import Run, write_whole

NAMES = ("wandb", "mlflow", "trackio")
PROJECT = "selfsight"


def check(names: Sequence[str]) -> None:
    """Raise `SelfsightError` for a tracker that is not known or not installed, before anything long is begun."""
    for name in names:
        if name not in NAMES:
            raise SelfsightError(f"No tracker is called {name!r}. There are: {', '.join(NAMES)}.")
        if importlib.util.find_spec(name) is None:
            raise SelfsightError(f"--track {name} needs one package more. Run: pip install 'selfsight[{name}]'")


class Metrics:
    """Writes rows of figures and pictures. Only the main process has one that writes.

    Other trackers are Accelerate's. Nothing leaves the machine unless the environment says so: W&B is offline unless
    WANDB_MODE is set, MLflow and Trackio write into the run folder unless MLFLOW_TRACKING_URI or TRACKIO_DIR is.
    """

    def __init__(
        self,
        run: Run,
        step: int,
        names: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        main: bool = True,
    ) -> None:
        self.main = main
        if not main:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.file = run.metrics_file.open("a")
        self.board = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)
        self.others = [_tracker(name, run) for name in names]
        for other in self.others:
            other.store_init_configuration(_flat(config or {}))

    def write(self, row: dict[str, Any]) -> None:
        """One row, on disk when this returns."""
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for key, value in row.items():
            self.board.add_scalar(key, value, row["step"])
        for other in self.others:
            other.log({k: v for k, v in row.items() if k != "step"}, step=row["step"])

    def picture(self, name: str, path: Path, step: int) -> None:
        """A PNG that the run has written."""
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(path).convert("RGB"))
        self.board.add_image(name, pixels, step, dataformats="HWC")
        for other in self.others:
            if hasattr(other, "log_images"):
                other.log_images({name: [pixels]}, step=step)

    def __enter__(self) -> Metrics:
        # TensorBoard writes in a thread. What stops it there it also raises here: once is enough.
        self._hook = threading.excepthook
        threading.excepthook = lambda args: None if args.exc_type is OSError else self._hook(args)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.main:
                self.file.close()
                for other in self.others:
                    other.finish()
                self.board.close()
        finally:
            threading.excepthook = self._hook


def _tracker(name: str, run: Run) -> Any:
    """Accelerate's tracker of this name, started; of a resumed run the one that it had."""
    from accelerate.tracking import MLflowTracker, TrackioTracker, WandBTracker

    file = run.path / "trackers.json"
    known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    made: Any
    if name == "wandb":
        known.setdefault(name, uuid.uuid4().hex[:12])
        mode = os.environ.get("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_CONSOLE", "off")
        made = WandBTracker(PROJECT, name=run.path.name, id=known[name], resume="allow", dir=str(run.path), mode=mode)
    elif name == "mlflow":
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{(run.path / 'mlflow.db').resolve()}")
        os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
        made = MLflowTracker(
            PROJECT, logging_dir=str(run.path / "mlflow"), run_id=known.get(name), run_name=run.path.name
        )
    else:
        os.environ.setdefault("TRACKIO_DIR", str((run.path / "trackio").resolve()))
        made = TrackioTracker(PROJECT, name=run.path.name, resume="allow", embed=False)
    made.start()
    if name == "mlflow":
        known[name] = made.active_run.info.run_id
    write_whole(file, json.dumps(known))
    return made


def _flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    """Nested values as {"a.b": text}: what every tracker takes."""
    out: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{before}{key}.")
        else:
            out[f"{before}{key}"] = str(value)[:250]  # MLflow takes no more
    return out
