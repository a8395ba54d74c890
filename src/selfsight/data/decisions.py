"""What people decided of items: an append-only journal beside the collection.

`X.decisions/` lies beside `X.lance` and holds one segment a writer, so that writers never share a file. A decision is
a line of JSON, on disk when `decide` returns. Nothing is ever changed but by `forget`: an undo appends the inverse.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from selfsight.data.lock import awaited
from selfsight.data.manifest import before, beside
from selfsight.errors import SelfsightError
from selfsight.files import write_whole, writing

# label: text, several, or a number. drop, keep: yes or no. boxes: [{label, x0, y0, x1, y1}]. mask: {class: COCO RLE}.
Value: TypeAlias = str | float | Sequence[Any] | Mapping[str, Any] | None
FIELDS = ("label", "drop", "keep", "boxes", "mask")
_EDGES = {"label", "x0", "y0", "x1", "y1"}
_BETWEEN_QUOTES = re.compile(r'(?<=")[^"]+(?=")')  # also in a line that is cut, or two that ran together
_threads = threading.Lock()


@dataclass(frozen=True)
class Decision:
    """One entry of the journal.

    time: seconds since 1970.
    id: of the item.
    content_hash: of the content that was looked at; None in journals of older versions.
    field: what was decided, such as "label".
    old: the value before, None for none.
    new: the value after, None for none.
    by: who decided; `local` unless given.
    """

    time: float
    id: str
    content_hash: str | None
    field: str
    old: Value
    new: Value
    by: str = "local"


class Change(NamedTuple):
    """What is to be decided: `field` of the item with this id, where the content was looked at, from `old` to `new`."""

    id: str
    content_hash: str | None
    field: str
    old: Value
    new: Value


class Journal:
    """The decisions that belong to the collection at `collection`; a writer has a journal of its own.

    counts: which decisions `latest` looks at; None for all.
    """

    def __init__(self, collection: Path, counts: Callable[[Decision], bool] | None = None) -> None:
        self.folder = beside(collection, ".decisions")
        self._elder = before(collection, ".decisions")
        self._counts = counts or (lambda decision: True)
        self._segment: tuple[int, Path] | None = None  # the process that began it, and the file
        self._last = 0.0

    @property
    def files(self) -> list[Path]:
        """The files that hold decisions, in the order in which decisions of one time count."""
        elder = [self._elder] if self._elder and self._elder.exists() else []
        return elder + sorted(self.folder.glob("*.jsonl"))

    def sizes(self) -> dict[str, int]:
        """{file: bytes}, by which it is seen that somebody wrote."""
        return {str(file): file.stat().st_size for file in self.files}

    def decide(
        self, item: str, content_hash: str | None, field: str, new: Value, *, old: Value = None, by: str = "local"
    ) -> Decision:
        """Append what somebody decided of `field` of the item with this id; it is on disk when this returns.

        `old` is the value that `new` replaces. Raises `SelfsightError` for a field or a value that has no meaning, and
        if the journal cannot be written.
        """
        return self.decide_all([Change(item, content_hash, field, old, new)], by)[0]

    def decide_all(self, changes: Sequence[Change], by: str = "local") -> list[Decision]:
        """Append several decisions, in this order; all are on disk when this returns. Raises as `decide` does."""
        for change in changes:
            for value in (change.old, change.new):
                _check(change.field, value)
        with _threads:
            self._last = max(self._last, time.time())  # a clock that is set back changes no order
            decisions = [Decision(self._last, *change, by) for change in changes]
            lines = "".join(json.dumps(asdict(decision)) + "\n" for decision in decisions).encode("ascii")
            with writing(self.folder), self._alone():
                self._append(lines)
        return decisions

    def undo(self, decision: Decision, by: str = "local") -> Decision:
        """Append the inverse of `decision`."""
        return self.decide(decision.id, decision.content_hash, decision.field, decision.old, old=decision.new, by=by)

    def read(self) -> tuple[list[Decision], int]:
        """All decisions by (time, segment, line), and how many lines are cut or damaged and were skipped."""
        found: list[Decision] = []
        skipped = 0
        for file in self.files:
            for line in file.read_bytes().splitlines():
                decision = _parsed(line)
                if decision is not None:
                    found.append(decision)
                elif line.strip():
                    skipped += 1
        return sorted(found, key=lambda decision: decision.time), skipped  # stable: files and lines keep their order

    def latest(self, field: str) -> dict[str, Decision]:
        """The last decision about `field` of each item, by id, of those that count."""
        return {one.id: one for one in self.read()[0] if one.field == field and self._counts(one)}

    def remembered(self, ids: set[str]) -> set[str]:
        """Those of `ids` that a line names, whole or cut."""
        return {name for file in self.files for line in _lines(file) for name in _BETWEEN_QUOTES.findall(line)} & ids

    def forget(self, ids: set[str]) -> None:
        """Rewrite the files without the lines that name any of `ids`. Raises `SelfsightError` if one cannot be."""
        if not self.files:
            return
        with _threads, writing(self.folder), self._alone():
            for file in self.files:
                lines = _lines(file)
                kept = [line for line in lines if ids.isdisjoint(_BETWEEN_QUOTES.findall(line))]
                if not kept:
                    file.unlink()
                elif len(kept) < len(lines):
                    write_whole(file, "".join(kept).encode("utf-8", "surrogateescape"))

    def _append(self, lines: bytes) -> None:
        if self._segment is None or self._segment[0] != os.getpid():
            start = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
            self._segment = (os.getpid(), self.folder / f"{start}-{uuid.uuid4()}.jsonl")
        file = self._segment[1]
        begun = file.exists()
        try:
            with file.open("ab") as journal:
                journal.write(lines)
                journal.flush()
                os.fsync(journal.fileno())
        except OSError:
            self._segment = None  # a line that was cut ends its segment
            raise
        if not begun:
            _sync_folder(self.folder)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process writes or forgets meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with awaited(self.folder / "writing.lock", pause=0.02):
            yield


def _check(field: str, value: Value) -> None:
    """Raise `SelfsightError` for a value that the field cannot hold."""
    flag = isinstance(value, bool)
    meaningful = {
        "label": not flag and _is_label(value),
        "drop": flag,
        "keep": flag,
        "boxes": isinstance(value, list | tuple)
        and all(isinstance(box, Mapping) and set(box) >= _EDGES for box in value),
        "mask": isinstance(value, Mapping) and all(_is_region(of) for of in value.values()),
    }
    if field not in meaningful:
        raise SelfsightError(f"Nothing can be decided about {field!r}. Choose one of {', '.join(FIELDS)}.")
    if value is not None and not meaningful[field]:
        raise SelfsightError(
            f"{value!r} is not a {field}: a label is text, a list or a number, drop and keep are true or false, boxes "
            "are a list of label, x0, y0, x1, y1, a mask is an object of class and run lengths, or"
            " a list of them, one an object."
        )


def _is_region(value: Any) -> bool:
    """Whether these are run lengths of a class, or of each of its objects."""
    return isinstance(value, Mapping) or (isinstance(value, list) and all(isinstance(rle, Mapping) for rle in value))


def _is_label(value: Value) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(name, str) for name in value)
    return isinstance(value, str) or (isinstance(value, int | float) and math.isfinite(value))


def _parsed(line: bytes) -> Decision | None:
    """The decision of a line, None for one that is cut or no decision."""
    try:
        values = {"content_hash": None, "old": None} | json.loads(line)
        return Decision(**{field.name: values[field.name] for field in fields(Decision)})
    except (ValueError, KeyError, TypeError):
        return None


def _lines(file: Path) -> list[str]:
    return [line.decode("utf-8", "surrogateescape") for line in file.read_bytes().splitlines(keepends=True)]


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file as lasting as what it holds, where folders can be synced."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
