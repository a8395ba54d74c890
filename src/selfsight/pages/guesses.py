"""What a head makes of items that a person opens: one at a time, each once, and nobody waits long for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Generic, NamedTuple, TypeVar

from selfsight.errors import in_words

Made = TypeVar("Made")

SECONDS = 20.0  # that a page waits for a guess
MOST = 64  # guesses that are kept


class Late(Exception):
    """The guess is not there yet. It goes on, and is there when the item is opened again."""


class Told(NamedTuple, Generic[Made]):
    """What a page is told of a guess. made: the guess, None where there is none. late: whether it comes later. failed:
    why there will be none, "" for no reason."""

    made: Made | None
    late: bool = False
    failed: str = ""


class Guesses(Generic[Made]):
    """Guesses of `guess`, which one thread runs at a time. For several who ask for an item it runs once. An item that
    waits for its turn is given up when another is asked for, as the person has gone on."""

    def __init__(self, guess: Callable[[str], Made], seconds: float = SECONDS) -> None:
        self._guess, self._seconds = guess, seconds
        self._asked: dict[str, Future[Made]] = {}
        self._lock, self._turn = threading.Lock(), threading.Lock()

    def of(self, item: str) -> Made:
        """The guess of an item. Raises `Late` where it takes more than `seconds`, and what `guess` raises."""
        with self._lock:
            for other, waiting in [*self._asked.items()]:
                if other != item and waiting.cancel():
                    del self._asked[other]
            asked = self._asked.get(item)
            if asked is None:
                asked = self._asked[item] = Future()
                threading.Thread(target=self._run, args=(item, asked), daemon=True).start()
                for old in [one for one, of in self._asked.items() if of.done()][:-MOST]:
                    del self._asked[old]
        try:
            return asked.result(self._seconds)
        except (TimeoutError, CancelledError):
            raise Late from None

    def told(self, item: str) -> Told[Made]:
        """The guess of an item, or why there is none: whatever a head does, people can go on without it."""
        try:
            return Told(self.of(item))
        except Late:
            return Told(None, late=True)
        except Exception as error:
            return Told(None, failed=f"The head has no guess for this one: {in_words(error)}")

    def _run(self, item: str, asked: Future[Made]) -> None:
        with self._turn:
            if not asked.set_running_or_notify_cancel():
                return
            try:
                asked.set_result(self._guess(item))
            except Exception as error:
                with self._lock:  # it may be tried again
                    self._asked.pop(item, None)
                asked.set_exception(error)
