"""What is said while a verb works: one rich console on stderr, and progress bars on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from time import monotonic
from typing import TypeVar

from selfsight.results import duration

T = TypeVar("T")
FIRST_SECONDS, NEXT_SECONDS, NEXT_SHARE = 2.0, 60.0, 0.1


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
    """Yield `items` while a bar with count and time left runs on stderr; off a terminal a line now and then.

    `size` says how much of `total` an item is.
    """
    if not console().is_terminal:
        yield from _told(items, title, total, size)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(title, total=total)
        for item in items:
            yield item
            progress.advance(task, size(item))


def _told(items: Iterable[T], title: str, total: int | None, size: Callable[[T], int]) -> Iterator[T]:
    sparse, done = Sparse(), 0
    for item in items:
        yield item
        done += size(item)
        if (left := sparse(done / total if total else None)) is not None:
            console().print(f"{title}: {done:,}{f' of {total:,}' if total else ''}{left}", soft_wrap=True)


class Sparse:
    """When to say, off a terminal, how far some work is: not in its first two seconds; then again where a minute has
    gone by and a tenth more is done. Short work says nothing, long work no more than ten lines."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._due, self._least = clock() + FIRST_SECONDS, 0.0
        self._start: tuple[float, float] | None = None

    def __call__(self, share: float | None) -> str | None:
        """`, 3 min left` where a line is due, else None. share: of the work, 0 to 1; None where nobody knows."""
        now, part = self._clock(), 0.0 if share is None else share
        at, before = self._start = self._start or (now, part)
        if now < self._due or part < self._least or part >= 1.0:
            return None
        self._due, self._least = now + NEXT_SECONDS, 0.0 if share is None else part + NEXT_SHARE
        return f", {duration((now - at) * (1 - part) / (part - before))} left" if part > before else ""
