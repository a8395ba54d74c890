"""What people draw on items: each answer counts once it is in the journal, and the journal is all that is kept."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

from selfsight.data.collection import Collection
from selfsight.data.decisions import Decision, Value
from selfsight.errors import SelfsightError
from selfsight.pages.answers import checked_name


class Marked(ABC):
    """What is drawn on the usable items of a collection: the `field` of the journal, else the column of its name.
    Several threads may answer; to read while they do, hold `lock`.

    ids: of the items. by: the person who draws here. damaged: lines of the journal that are cut or no decision, and
    were skipped. classes: names that are asked for from the start.
    """

    field: Literal["mask", "boxes"]

    def __init__(self, items: Collection, by: str = "local", classes: Sequence[str] = ()) -> None:
        self.by = checked_name(by, "person")
        self.lock = threading.RLock()
        self._items, self._journal, self._asked = items, items.decisions, tuple(classes)
        rows = items.usable
        self.ids: list[str] = rows["id"].to_pylist()
        columns = [name for name in ("id", "content_hash", "width", "height", "exif_orientation", self.field)
                   if name in rows.column_names]  # fmt: skip
        self._rows = {row["id"]: row for row in rows.select(columns).to_pylist()}
        self._given: list[Decision] = []
        self._read_journal()

    @property
    def given(self) -> int:
        """How many items got an answer here that was not taken back."""
        return len({decision.id for decision in self._given})

    @property
    def marked(self) -> dict[str, list[str]]:
        """{item: its classes}, of the items on which something is drawn, or that were found to hold nothing."""
        return {item: self._classes(value) for item, value in self._current.items()}

    @property
    def counts(self) -> dict[str, int]:
        """{class: how many items have it}, in the order in which they came."""
        found = dict.fromkeys(self._asked, 0)
        for value in self._current.values():
            for name in self._classes(value):
                found[name] = found.get(name, 0) + 1
        return found

    def size(self, item: str) -> tuple[int, int]:
        """(height, width) of an item."""
        return self._rows[item]["height"], self._rows[item]["width"]

    def refresh(self) -> None:
        """Take in what others drew meanwhile."""
        with self.lock:
            if self._journal.sizes() != self._sizes:
                self._read_journal()

    def _read_journal(self) -> None:
        """Everything anew."""
        self._sizes = self._journal.sizes()
        decisions, self.damaged = self._journal.read()
        current: dict[str, Any] = {item: row.get(self.field) for item, row in self._rows.items()}
        for decision in decisions:
            if decision.field == self.field and decision.id in self._rows:
                current[decision.id] = decision.new
        self._current = {item: self._parsed(value) for item, value in current.items() if value not in (None, "")}

    def _known(self, item: str) -> None:
        """Take in what others drew, and raise `SelfsightError` for an item that is not there."""
        self.refresh()
        if item not in self._rows:
            raise SelfsightError(f"There is no item {item}. Load the page again.")

    def _decide(self, item: str, value: Any) -> None:
        """Write what an item has now: it is on disk when this returns."""
        before = self._current.get(item)
        if value == before:
            return
        old = cast(Value, None if isinstance(before, str) else before)  # the path of a file is no decision
        content = self._rows[item]["content_hash"]
        self._given.append(
            self._written(partial(self._journal.decide, item, content, self.field, value, old=old, by=self.by))
        )

    def _written(self, write: Callable[[], Decision]) -> Decision:
        """A decision that `write` puts into the journal, and that counts from now on."""
        before, decision = self._sizes, write()
        if decision.new is None:
            self._current.pop(decision.id, None)
        else:
            self._current[decision.id] = decision.new
        after = self._journal.sizes()
        if sum(size != before.get(file) for file, size in after.items()) == 1:  # else others wrote too: to be read
            self._sizes = after
        return decision

    @staticmethod
    @abstractmethod
    def _classes(value: Any) -> list[str]:
        """The classes of a value, in order."""

    @staticmethod
    @abstractmethod
    def _parsed(value: Any) -> Any:
        """A value of the column or the journal, as it is compared with others."""
