"""Metrics (being written)."""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any

from selfsight.training.run import Run


def check(names: Any) -> None:
    pass


class Metrics:
    """Writes rows to `metrics.jsonl` and TensorBoard."""

    def __init__(self, run: Run, step: int, names: Any = (), config: Any = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.file = run.metrics_file.open("a")
        self.board = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, Any]) -> None:
        """One row, on disk when this returns."""
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for key, value in row.items():
            self.board.add_scalar(key, value, row["step"])

    def __enter__(self) -> Metrics:
        # TensorBoard writes in a thread. What stops it there it also raises here: once is enough.
        self._hook = threading.excepthook
        threading.excepthook = lambda args: None if args.exc_type is OSError else self._hook(args)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.file.close()
            self.board.close()
        finally:
            threading.excepthook = self._hook
