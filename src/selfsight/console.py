"""What is said while a verb works: one rich console on stderr, and progress bars on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
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
