"""The live progress line of a training, on stderr; off a terminal a plain line now and then."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from selfsight.console import Sparse, console


class Show:
    """Shows each row of metrics that it is called with.

    title: printed before the first row.
    shown: {figure: its format}, in order, such as {"loss": "loss {:.3f}"}. Figures that a row lacks are left out.
    """

    def __init__(self, title: str, shown: Mapping[str, str]) -> None:
        self.console, self.shown = console(), shown
        said = TextColumn("{task.description}", markup=False)
        columns = (said, BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"))
        self.progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console)
        self.task = self.progress.add_task("training", total=1.0)
        self.sparse = Sparse()
        self.console.print(title)

    def __call__(self, row: dict[str, float]) -> None:
        figures = [how.format(row[name]) for name, how in self.shown.items() if name in row]
        text = "  ".join([f"step {row['step']}", *figures])
        self.progress.update(self.task, completed=row["progress"], description=text)
        if not self.console.is_terminal and (left := self.sparse(row["progress"])) is not None:
            self.console.print(f"{row['progress']:4.0%}  {text}{left}", soft_wrap=True)

    def __enter__(self) -> Show:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.progress.stop()
