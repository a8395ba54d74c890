"""The live progress line of a training, on stderr; off a terminal a plain line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from selfsight.console import console
from selfsight.training.recipe import Recipe
from selfsight.training.run import Run

PLAIN_SECONDS = 30.0


class Show:
    """Called with each row of metrics."""

    def __init__(self, run: Run, recipe: Recipe) -> None:
        self.console = console()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"))
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
        self.task = self.progress.add_task("training", total=1.0)
        self.last = 0.0
        self.console.print(f"{recipe.objective} with {recipe.encoder} into {run.path}")

    def __call__(self, row: dict[str, float]) -> None:
        text = f"step {row['step']}  loss {row['loss']:.3f}  rank {row['effective_rank']:.0f}  "
        text += f"spread {row['spread']:.2f}  "
        text += f"agreement {row['agreement']:.2f}  " if "agreement" in row else ""
        text += f"{row['views_per_second']:,.0f} views/s"
        self.progress.update(self.task, completed=row["progress"], description=text)
        if not self.console.is_terminal and time.monotonic() - self.last > PLAIN_SECONDS:
            self.console.print(f"{row['progress']:4.0%}  {text}")
            self.last = time.monotonic()

    def __enter__(self) -> Show:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.progress.stop()
