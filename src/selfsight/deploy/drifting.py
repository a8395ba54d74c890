"""The drift of heads that are served, from the features of the images that they answered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from selfsight.deploy.drift import Distance, Drift, names_one
from selfsight.errors import SelfsightError
from selfsight.heads.predictions import Row
from selfsight.heads.voice import Voice
from selfsight.probing.linear import unit_rows

WINDOW = 64  # images that are compared at a time
WAITING = 8  # windows that wait to be compared; while there are more, the next ones are left out
Tell = Callable[[str, Distance], None]


class Watched:
    """Windows of what one head answers. The comparison runs beside the answers, in a thread of `pool`."""

    def __init__(self, name: str, head: Voice, drift: Drift, tell: Tell, pool: ThreadPoolExecutor) -> None:
        self._name, self.head, self._drift, self._tell, self._pool = name, head, drift, tell, pool
        self._batches: list[tuple[np.ndarray, np.ndarray]] = []  # features, and the classes they were found in
        self._room = threading.Semaphore(WAITING)
        head.listener = self._answered

    def _answered(self, pooled: np.ndarray, rows: list[Row]) -> None:
        """Told of what the head says."""
        if names_one(self.head):
            found = np.array([self.head.about.classes.index(row["label"]) for row in rows])
        else:
            found = np.zeros(len(rows), int)
        self._batches.append((unit_rows(pooled.astype(np.float32)), found))
        if sum(len(classes) for _, classes in self._batches) >= WINDOW:
            batches, self._batches = self._batches, []
            if self._room.acquire(blocking=False):
                self._pool.submit(self._compare, *map(np.concatenate, zip(*batches, strict=True)))

    def _compare(self, features: np.ndarray, found: np.ndarray) -> None:
        try:
            self._tell(self._name, self._drift.far(features, found))
        finally:
            self._room.release()


class Drifting:
    """Tells the drift of each head that is served. lacking: {name: why the drift of a head is not told}."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._pool = tell, ThreadPoolExecutor(1, "drift")
        self._watched: dict[str, Watched] = {}
        self.lacking: dict[str, str] = {}
        self._lock = threading.Lock()  # two versions may be loaded at once

    def watch(self, heads: Iterable[tuple[str, Voice]]) -> None:
        """These heads, by name, are served now. A head that took another's place begins a window of its own."""
        with self._lock:
            for name, head in heads:
                if name not in self._watched or self._watched[name].head is not head:
                    self._watch(name, head)

    def _watch(self, name: str, head: Voice) -> None:
        if name in self._watched:
            self._watched.pop(name).head.listener = None
        self.lacking.pop(name, None)
        try:
            drift = Drift.of(head)
        except SelfsightError as error:  # it keeps too few items
            self.lacking[name] = str(error)
            return
        self._watched[name] = Watched(name, head, drift, self._tell, self._pool)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()
