"""The one thread that computes: it takes what waits, a batch at a time."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from selfsight.heads.placed import Placed, batched
from selfsight.heads.predictions import Row
from selfsight.heads.voice import Voice

WINDOW = 0.004  # seconds that a batch waits for more images
BATCH = 8  # images: more take memory, and hardly less time


class _Job(NamedTuple):
    """An image that a head is asked about. drawn: whether its pictures are wanted."""

    head: Voice
    placed: Placed
    drawn: bool
    answer: Future[Row]


class Batching:
    """Answers of heads, for many who ask at once.

    Images that arrive within `WINDOW` of each other, or while another batch is computed, go through a network
    together. tell: told how many images each batch has.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._tell = tell
        self._thread = threading.Thread(target=self._work, name="batching", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return self._jobs.qsize()

    async def say(self, head: Voice, placed: Placed, drawn: bool) -> Row:
        """What the head says of an image, see `Head.say`. Raises what that raised."""
        job = _Job(head, placed, drawn, Future())
        self._jobs.put(job)
        return await asyncio.wrap_future(job.answer)

    def stop(self) -> None:
        """Answer what waits, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        more = True
        while more:
            jobs, more = self._taken()
            alike: dict[tuple[int, bool], list[_Job]] = {}
            for job in jobs:
                if job.answer.set_running_or_notify_cancel():  # nobody waits for what is past its deadline
                    alike.setdefault((id(job.head), job.drawn), []).append(job)
            for some in alike.values():
                self._answer(some)

    def _taken(self) -> tuple[list[_Job], bool]:
        """(what is to be computed now, whether more may come)."""
        first = self._jobs.get()
        jobs, end = [first] if first else [], time.monotonic() + WINDOW
        while jobs and len(jobs) < BATCH:
            try:
                job = self._jobs.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return jobs, True
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, first is not None

    def _answer(self, jobs: list[_Job]) -> None:
        """Answer jobs of one head; where they fail together, each alone, so that one spoils no other."""
        head, drawn = jobs[0].head, jobs[0].drawn
        try:
            numbered = [job.placed._replace(number=number) for number, job in enumerate(jobs)]
            said = [row for some in batched(numbered) for row in head.say(some, drawn)]
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
                return
            for job in jobs:
                self._answer([job])
            return
        self._tell(len(jobs))
        for job, row in zip(jobs, said, strict=True):
            job.answer.set_result(row)


class Room:
    """Bytes that may be held at a time: who wants more waits. What is larger than all of it comes alone."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._change = asyncio.Condition()

    async def take(self, size: int) -> int:
        """Wait for the bytes; returns how many are to be given back."""
        size = min(size, self._size)
        async with self._change:
            await self._change.wait_for(lambda: self._free >= size)
            self._free -= size
        return size

    async def give(self, size: int) -> None:
        """Give back what was taken."""
        async with self._change:
            self._free += size
            self._change.notify_all()
