"""What is said while a verb works: one rich console on stderr, and progress bars on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TypeVar

T = TypeVar("T")


@cache  # one, so that what is printed while a bar runs appears above it
def console():  # type: ignore[no-untyped-def]
    """The rich console on stderr: stdout is kept for results and `--json`. Of several processes one speaks."""
    from rich.console import Console

    return Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0", markup=False)


def results(soft_wrap: bool = False):  # type: ignore[no-untyped-def]
    """A rich console on stdout, for what people read of a result. It prints names as they are, `plate[v1]` too, which
    rich would take for markup."""
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=soft_wrap)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows on stdout under their heads, figures to the right. The last column holds paths: they are never cut or
    broken, so that they can be copied, and have lines of their own where they do not fit beside the rest."""
    console, lines = results(soft_wrap=True), [list(heads), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    figures = [all(set(line[i]) <= set("0123456789.,-") for line in lines[1:]) for i in range(len(heads))]
    beside = sum(widths) + 2 * len(widths) - 2 <= console.width
    for line in lines:
        cells = zip(line[:-1], widths, figures, strict=False)
        text = "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells)
        console.print(f"{text}  {line[-1]}" if beside or line is lines[0] else f"{text.rstrip()}\n    {line[-1]}")


def track(items: Iterable[T], title: str, total: int | None, size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """Yield `items` while a bar with count and time left runs on stderr, where stderr is a terminal.

    `size` says how much of `total` an item is.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not console().is_terminal:
        yield from items
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(title, total=total)
        for item in items:
            yield item
            progress.advance(task, size(item))
