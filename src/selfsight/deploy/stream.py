"""A stream of pictures walked once, in its order, in windows, by an adapter whose state outlives a kill."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.data.collection import Collection
from selfsight.data.decisions import Journal
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.data.manifest import walk_of
from selfsight.deploy.adapted import read_state, write_state
from selfsight.deploy.drift import FEWEST
from selfsight.deploy.refit import Said
from selfsight.deploy.watcher import Told, Watcher
from selfsight.errors import DataError, SelfsightError
from selfsight.probing.linear import unit_rows
from selfsight.report.drift_page import Line

PIECE = 8  # pictures that are encoded between two looks at the clock
EVERY = 0.5  # seconds, after which the state is written
STILL = 1.0  # seconds that a file that arrives must have stood
SHOWN = 24  # pictures that drifted most, which are remembered
BEHIND = 64  # windows with a shift, which is remembered for labels that come late
MERGED = 4096  # ids, from which on they are kept with those before
ORDERS = (("time",), ("sequence", "frame"), ("frame",))  # columns that order a stream; else names do
COLUMNS = ("id", "uri", "content_hash")

Labelling = Callable[
    [dict[str, str]], str | None
]  # from an item's id, uri and content hash to its label, if it has one


class Window(NamedTuple):
    """A window that was followed: its number from 0 on, its pictures, and what it came to. labelled: how many of them
    came with a label."""

    number: int
    rows: list[dict[str, str]]
    told: Told
    labelled: int


@dataclass(frozen=True)
class Far:
    """A picture that drifted far. distance: mean cosine distance to the 10 nearest of what was learnt from."""

    distance: float
    id: str
    uri: str
    window: int


class Passed:
    """Ids that were passed, by their first 8 bytes, which is all of it that is kept."""

    def __init__(self, before: np.ndarray) -> None:
        self._before, self._new = np.unique(before.astype(np.uint64)), set[int]()

    def __len__(self) -> int:
        return len(self._before) + len(self._new)

    def __contains__(self, item: str) -> bool:
        short = _short(item)
        at = int(np.searchsorted(self._before, np.uint64(short)))
        return short in self._new or (at < len(self._before) and int(self._before[at]) == short)

    def add(self, items: list[str]) -> list[int]:
        """Returns those that are new, short."""
        new = [_short(item) for item in dict.fromkeys(items) if item not in self]
        self._new |= set(new)
        if len(self._new) > MERGED:
            self._before = np.union1d(self._before, np.fromiter(self._new, np.uint64))
            self._new = set()
        return new


class Walk:
    """An adapter, or a watcher, on its way along a stream.

    folder: for the state. key: what must be the same for a walk to go on: plain values. size: of a window. `seen` are
    the pictures that it has passed, `far` those that drifted most, `bad` the ones that could not be read.
    """

    def __init__(self, adapter: Watcher, folder: Path, key: dict[str, object], size: int) -> None:
        self.adapter, self.folder, self.size = adapter, folder, size
        self._key = key
        self._rows: list[dict[str, str]] = []
        self._dim = adapter.head.encoder.dim
        self._features = np.zeros((0, self._dim), np.float32)
        self.far: list[Far] = []
        self.bad = 0
        self.labelled: dict[str, str] = {}  # what was learnt of pictures, by id
        self.seen = Passed(np.zeros(0, np.uint64))
        self._behind: list[tuple[list[int], np.ndarray]] = []  # (pictures of a window, its shift) where it had one
        self._fresh: list[int] = []  # of these, what is not on disk yet
        folder.mkdir(parents=True, exist_ok=True)
        self._read()
        self._written = time.monotonic()

    @property
    def log(self) -> Path:
        """A line for each window."""
        return self.folder / "drift.jsonl"

    @property
    def lines(self) -> list[Line]:
        """What the log says of each window."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def waiting(self) -> int:
        """Pictures that wait for a window to be full."""
        return len(self._rows)

    def fresh(self, rows: pa.Table) -> pa.Table:
        """Those of `rows` that it has not passed, in the order of the stream."""
        new = rows.filter(pa.array([item not in self.seen for item in rows["id"].to_pylist()], pa.bool_()))
        return new.take(pa.array(ordered(new)))

    def along(self, items: Collection, rows: pa.Table, labelling: Labelling) -> Iterator[tuple[int, Window | None]]:
        """Go along `rows`: (how many more were passed, a window that they filled) as it goes."""
        for start in range(0, len(rows), PIECE):
            piece = rows.slice(start, PIECE)
            numbers, features, bad = self.adapter.features_of(items, piece)
            good, filled = piece.take(numbers).select(COLUMNS).to_pylist(), 0
            while filled < len(good):
                room = self.size - len(self._rows)
                self._rows += good[filled : filled + room]
                self._features = np.concatenate([self._features, features[filled : filled + room]])
                filled += room
                if len(self._rows) == self.size:
                    yield 0, self._followed(labelling)
            self.bad += bad
            self._pass(piece["id"].to_pylist())
            yield len(piece), None

    def rest(self, labelling: Labelling) -> Window | None:
        """Follow what waits for a window to be full, if it is enough to be compared."""
        return self._followed(labelling) if len(self._rows) >= FEWEST else None

    def late(self, items: Collection, rows: pa.Table, labelling: Labelling) -> list[str]:
        """Learn from labels that came, or were corrected or taken back, after their picture had passed; returns what
        was done, in words."""
        waiting = {row["id"] for row in self._rows}
        told = [labelling(row) for row in rows.select(COLUMNS).to_pylist()]
        late = [
            place for place, item in enumerate(rows["id"].to_pylist())
            if told[place] not in (None, self.labelled.get(item)) and item in self.seen and item not in waiting
        ]  # fmt: skip
        back = {item for item, label in zip(rows["id"].to_pylist(), told, strict=True) if label is None}
        did = self.adapter.unlearn(back & self.labelled.keys())
        self.labelled = {item: label for item, label in self.labelled.items() if item not in back}
        if late:
            piece = rows.take(late)
            numbers, features, _ = self.adapter.features_of(items, piece)
            self.labelled |= {item: str(told[place]) for item, place in zip(piece["id"].to_pylist(), late, strict=True)}
            good = piece.take(numbers).select(COLUMNS).to_pylist()
            shifts = np.array([self._shift_of(row["id"]) for row in good], np.float32).reshape(-1, self._dim)
            did += self._learnt(good, features, labelling, shifts)
        if did:
            self.save()
        return did

    def _shift_of(self, item: str) -> np.ndarray:
        """The shift that was taken away when a picture passed."""
        short, none = _short(item), np.zeros(self._dim, np.float32)
        return next((shift for shorts, shift in reversed(self._behind) if short in shorts), none)

    # -- one window --

    def _followed(self, labelling: Labelling) -> Window:
        rows, features = self._rows, self._features
        number, told = self.adapter.counts.windows, self.adapter.window(features)
        mine = [place for place, row in enumerate(rows) if labelling(row) is not None]
        shift = self.adapter.running.shift
        if shift.any():
            self._behind = [*self._behind, ([_short(row["id"]) for row in rows], shift)][-BEHIND:]
        did = self._learnt([rows[place] for place in mine], features[mine], labelling) if mine else []
        window = Window(number, rows, told._replace(did=[*told.did, *did]), len(mine))
        self._remember(window, features)
        self._rows, self._features = [], features[:0]
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line_of(window)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._pass([row["id"] for row in rows], now=True)
        return window

    def _learnt(
        self, rows: list[dict[str, str]], features: np.ndarray, labelling: Labelling, shifts: np.ndarray | None = None
    ) -> list[str]:
        said = [Said(row["id"], row["uri"], row["content_hash"], str(labelling(row))) for row in rows]
        self.labelled |= {each.id: each.label for each in said}
        return self.adapter.learn(said, features, shifts)

    def _remember(self, window: Window, features: np.ndarray) -> None:
        """Keep the pictures that are farthest from what was learnt from."""
        distances = self.adapter.drift.apart(unit_rows(features)).tolist()
        pairs = zip(distances, window.rows, strict=True)
        more = [Far(distance, row["id"], row["uri"], window.number) for distance, row in pairs]
        self.far = sorted([*self.far, *more], key=lambda one: -one.distance)[:SHOWN]

    # -- the state --

    def _pass(self, ids: list[str], now: bool = False) -> None:
        """These are behind; the state is written `now`, or when it is time."""
        self._fresh += self.seen.add(ids)
        if now or time.monotonic() - self._written > EVERY:
            self.save()

    def save(self) -> None:
        """Write the state: what is passed is appended first, and counts once the state says so."""
        with (self.folder / "seen").open("ab") as file:
            file.write(np.array(self._fresh, np.uint64).tobytes())
            file.flush()
            os.fsync(file.fileno())
        self._fresh = []
        more = {
            "key": self._key, "seen": len(self.seen), "rows": self._rows, "bad": self.bad,
            "labelled": self.labelled, "far": [list(vars(one).values()) for one in self.far],
        }  # fmt: skip
        behind = [(number, short) for number, (shorts, _) in enumerate(self._behind) for short in shorts]
        arrays: dict[str, np.ndarray] = {
            "features": self._features,
            "behind.window": np.array([number for number, _ in behind], np.int64),
            "behind.ids": np.array([short for _, short in behind], np.uint64),
            "behind.shifts": np.array([shift for _, shift in self._behind], np.float32).reshape(-1, self._dim),
        }
        write_state(self.folder / "state.safetensors", self.adapter, more, arrays)
        self._written = time.monotonic()

    def _read(self) -> None:
        """Go on from the state that there is. What was written after it is cut off."""
        file, passed = self.folder / "state.safetensors", self.folder / "seen"
        if not file.exists():
            passed.unlink(missing_ok=True)
            self.log.unlink(missing_ok=True)
            return
        written, arrays = read_state(file, self.adapter)
        more: Any = written  # as JSON has it
        if more["key"] != self._key:
            raise SelfsightError(_other(self.folder, more["key"], self._key))
        os.truncate(passed, 8 * more["seen"])
        self.seen = Passed(np.fromfile(passed, np.uint64))
        none = np.empty(0, np.int64)  # a walk that an older version began keeps none
        of, ids = arrays.get("behind.window", none), arrays.get("behind.ids", none)
        shifts = arrays.get("behind.shifts", np.empty((0, 0)))
        self._behind = [(ids[of == number].tolist(), shift) for number, shift in enumerate(shifts)]
        self._rows, self._features, self.bad = more["rows"], arrays["features"], more["bad"]
        self.labelled, self.far = dict(more["labelled"]), [Far(*row) for row in more["far"]]
        lines = self.log.read_bytes().splitlines(keepends=True)[: self.adapter.counts.windows]
        os.truncate(self.log, sum(map(len, lines)))


def line_of(window: Window) -> Line:
    """A window as a line of drift.jsonl."""
    drift, rows = window.told.drift, window.rows
    return {
        "window": window.number, "images": len(rows), "first": rows[0]["uri"], "last": rows[-1]["uri"],
        "mean": round(drift.mean, 6), "mmd": round(drift.mmd, 6), "distance": round(drift.distance, 4),
        "limit": round(drift.limit, 4), "drift": drift.alarm, "undone": round(window.told.undone, 6),
        "labels": window.labelled, "did": window.told.did,
    }  # fmt: skip


def opened(source: str, wait: bool) -> Collection:
    """The items of a stream; with `wait`, once there is one in a folder that is there."""
    while True:
        try:
            return open_source(source)
        except DataError:
            if not wait or not Path(source).is_dir():
                raise
            time.sleep(STILL)


def still(rows: pa.Table) -> pa.Table:
    """The rows of files that have not changed for a second."""
    latest = (time.time() - STILL) * 1e9
    changed = rows["modified_ns"].to_pylist()
    return rows.filter(pa.array([when is None or when <= latest for when in changed], pa.bool_()))


def ordered(rows: pa.Table) -> np.ndarray:
    """Places of the rows in the order of the stream: by `time`, by `sequence` and `frame`, by `frame`, or by name."""
    uris = rows["uri"].to_pylist()
    for names in ORDERS:
        if set(names) <= set(rows.column_names) and all(rows[name].null_count < len(rows) for name in names):
            keys: list[tuple[Any, ...]] = [_sortable(rows[name].to_pylist()) for name in names]
            return np.array(sorted(range(len(rows)), key=lambda i: (*(key[i] for key in keys), uris[i])), np.int64)
    pages = rows["page"].to_pylist() if "page" in rows.column_names else [None] * len(rows)
    return np.array(sorted(range(len(rows)), key=lambda i: (uris[i], pages[i] or 0)), np.int64)


def _sortable(values: list[Any]) -> tuple[Any, ...]:
    """The cells of a column as they order: as numbers where all are; what is missing comes first."""
    try:
        return tuple(float("-inf") if value is None else float(value) for value in values)
    except ValueError:
        return tuple("" if value is None else str(value) for value in values)


def labelling_of(items: Collection, labels: str | None, adapter: Watcher) -> Labelling:
    """What people said of the pictures: in a journal of a service, NAME.decisions, by their content; in a table; or, if
    nothing is named, in the journal beside the collection. Nothing for a head that is watched alone. Raises
    `SelfsightError` for what cannot be read."""
    if not adapter.adapts:
        return lambda row: None
    kind = getattr(adapter.head.about, "kind", "class")
    path = None if labels is None else Path(labels).expanduser()
    if path is not None and (path.suffix == ".decisions" or path.is_dir()):
        if path.suffix != ".decisions" or not path.is_dir():
            raise SelfsightError(f"{labels} is no journal: it is a folder NAME.decisions. Give that, or a table.")
        latest = Journal(path.with_suffix(".lance")).latest("label").values()
        by_content = {each.content_hash: each.new for each in latest if isinstance(each.new, str)}
        return lambda row: by_content.get(row["content_hash"])
    if path is None:
        told = {item: each.new for item, each in items.decisions.latest("label").items() if isinstance(each.new, str)}
    else:
        found = Labels.of(items, path=str(path), kind="grade" if kind == "grade" else "class")
        told = {i: value for i, value in zip(found.ids, found.values, strict=True) if isinstance(value, str)}
    return lambda row: told.get(row["id"])


def _short(item: str) -> int:
    """The first 8 bytes of an id."""
    return int(item[:16], 16)


def _other(folder: Path, was: dict[str, object], now: dict[str, object]) -> str:
    name = next(name for name in now if was.get(name) != now[name])
    return (
        f"{folder} is of a walk with another {name} ({was.get(name)}, not {now[name]}). Remove it, or give another -o."
    )


def forget_walk(head: Path, ids: set[str]) -> bool:
    """Remove the state, page and log of a walk along a stream that has passed any of these ids, beside and in the head
    that it wrote; whether there was one."""
    state = walk_of(head)
    passed = state / "seen"
    if not passed.is_file():
        return False
    behind = Passed(np.fromfile(passed, np.uint64))
    if not any(item in behind for item in ids):
        return False
    shutil.rmtree(state)
    for name in ("drift.html", "drift.png", "drift.jsonl"):
        (head / name).unlink(missing_ok=True)
    return True
