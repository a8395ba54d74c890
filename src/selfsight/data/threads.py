"""Work done in threads, results in order, a bounded number ahead, with a progress bar on stderr."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(work: Callable[[T], R], inputs: Sequence[T], title: str, ahead: int = 512) -> Iterator[R]:
    """Yield `work(x)` for each of `inputs`, in order, at most `ahead` of them finished or under way."""
    yield from track(ordered(work, inputs, ahead), title, len(inputs))


def ordered(work: Callable[[T], R], inputs: Iterable[T], ahead: int, workers: int | None = None) -> Iterator[R]:
    """`in_threads` without a bar, of inputs that may have no end."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers or min(32, 2 * (os.cpu_count() or 1))) as pool:
        try:
            for value in inputs:
                if len(waiting) == ahead:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, value))
            while waiting:
                yield waiting.popleft().result()
        finally:  # stopped early: what has not begun is not begun
            for future in waiting:
                future.cancel()


def in_one_thread(items: Iterable[T]) -> Iterator[T]:
    """`items`, each made in one and the same thread, whichever threads ask for them.

    Rust libraries ask from many, each of which keeps its own free memory: a million rows made in Lance's threads
    took 130 MB more than made in one.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        while (item := pool.submit(next, iterator, end).result()) is not end:
            yield item  # type: ignore[misc]


@cache  # one, so that what is printed while a bar runs appears above it
def console():  # type: ignore[no-untyped-def]
    """The rich console on stderr: stdout is kept for results and `--json`. Of several processes one speaks."""
    from rich.console import Console

    return Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")


def track(items: Iterable[T], title: str, total: int | None, size: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """Yield `items` while a bar with count and time left runs on stderr, where stderr is a terminal.

    `size` says how much of `total` an item is.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if not console().is_terminal:
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(title, total=total)
        for item in items:
            yield item
            progress.advance(task, size(item))
