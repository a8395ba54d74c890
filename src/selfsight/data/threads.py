"""Work done in threads, results in order, a bounded number ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from selfsight.console import track

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
