"""Boxes that people draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeAlias

from selfsight.data.boxed import within
from selfsight.data.boxes import Box
from selfsight.errors import SelfsightError
from selfsight.pages.answers import checked_name
from selfsight.pages.marked import Marked

Objects: TypeAlias = list[dict[str, Any]]  # each {label, x0, y0, x1, y1}, in pixels of the upright file, and more


class Drawn(Marked):
    """The boxes of the usable items of a collection; an item that has none was looked at, and is background."""

    field = "boxes"

    def boxes(self, item: str) -> Objects | None:
        """The boxes of an item with the flags that are set; None where nobody said what is on it."""
        boxes: Objects | None = self._current.get(item)
        return boxes

    def give(self, item: str, boxes: Sequence[Box]) -> list[str]:
        """Write all boxes of an item, cut to its picture: they are on disk when this returns. Returns why any of them
        were left out.

        Raises `SelfsightError` for an item that is not there, and for a name that no class can have.
        """
        with self.lock:
            self._known(item)
            height, width = self.size(item)
            named = [replace(box, label=checked_name(box.label, "class")) for box in boxes]
            kept, aside = within(item, named, width, height)
            self._decide(item, [_plain(asdict(box)) for box in kept])
            return [one.reason for one in aside]

    def undo(self) -> str | None:
        """Take back the last answer that was given here, and return its item; None if there is none left.

        Raises `SelfsightError` where the item was drawn on again since.
        """
        with self.lock:
            if not self._given:
                return None
            last = self._given[-1]
            now = self._journal.latest(self.field).get(last.id)
            if now is None or now.new != last.new:
                who = f", by {now.by}" if now is not None else ""
                raise SelfsightError(f"The boxes of this item were changed since{who}: nothing was taken back.")
            self._written(partial(self._journal.undo, last, self.by))
            self._given.pop()
            return last.id

    @staticmethod
    def _classes(value: Any) -> list[str]:
        return sorted({box["label"] for box in value})

    @staticmethod
    def _parsed(value: Any) -> Any:
        return [_plain(box) for box in value]


def _plain(box: dict[str, Any]) -> dict[str, Any]:
    """A box as the journal holds it: its class, its edges, and the flags that are set."""
    return {name: value for name, value in box.items() if name in ("label", "x0", "y0", "x1", "y1") or value is True}
