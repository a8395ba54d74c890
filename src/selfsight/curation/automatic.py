"""Decisions that are made without a look: which items to drop and which labels to change, written and taken back.

They go into the journal like those of people, signed with the time of the run that made them. Where a person decided,
nothing is decided automatically. What is found never depends on what was decided automatically before, so the same run
again decides nothing new; a run that is undone leaves the inverse of each of its decisions.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from selfsight.curation.copies import groups_of
from selfsight.curation.faults import PAIRS, Found
from selfsight.curation.how_many import cut
from selfsight.curation.pixels import USUAL
from selfsight.curation.ranking import Ranking
from selfsight.data.collection import Collection
from selfsight.data.decisions import Change, Decision, Value
from selfsight.data.labels import TEST

SIGNED = "curate "  # what the names of automatic runs begin with
UNDONE = "curate undo"
# Kinds of which nothing is decided without a look: what is odd in form only need not harm.
LOOKED_AT = ("odd_size", "odd_ratio", "odd_channels")


class Wanted(NamedTuple):
    """What is to be decided of the item at a place of the rows: `field` becomes `new`, where it was `old`."""

    place: int
    field: str
    old: Value
    new: Value


def is_automatic(decision: Decision) -> bool:
    """Whether no person made it."""
    return decision.by.startswith(SIGNED)


def by_people(items: Collection) -> Collection:
    """`items` as if nothing had been decided automatically."""
    return items.deciding(lambda decision: not is_automatic(decision))


def sure(ranking: Ranking, level: float) -> np.ndarray:
    """Which [K] of a ranking are called faults, if at most `level` of the sound ones may be: of those that are thought
    to be, no more."""
    within = np.arange(len(ranking.numbers)) < ranking.estimated
    if ranking.kind in ("near_duplicates", *USUAL):  # whose score says how likely each is no sound one
        return np.asarray(within & (ranking.score >= 1.0 - level))
    if ranking.alarms is not None:
        return np.asarray(within & (ranking.alarms <= level))
    if ranking.kind == "off_topic":
        within[cut(ranking.score, level) :] = False
    return within


def wanted(found: Found, level: float, kept: np.ndarray) -> list[Wanted]:
    """What to decide of what was found, by the places of the rows.

    Of items that show one picture one stays: one that people `kept` [N], else one that is measured on, else the largest
    one. Other items at fault are dropped, but for errors of labels, whose labels are changed.
    """
    firsts = {ranking.kind: ranking.numbers[sure(ranking, level)] for ranking in found.rankings}
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(firsts[kind] for kind in PAIRS if kind in firsts)])
    dropped: set[int] = set()
    for kind, numbers in firsts.items():
        if kind not in (*PAIRS, *LOOKED_AT, "label_errors"):
            dropped |= {number for number in numbers.tolist() if not kept[number]}
    dropped |= _copies(found, pairs, kept, dropped)
    changed = [
        Wanted(number, "label", _plain(found.labels.values[number]), name)
        for ranking in found.rankings
        if ranking.kind == "label_errors"
        for number, name in _suggested(ranking, level)
        if number not in dropped and not kept[number] and number not in found.regions  # whose boxes have the classes
    ]
    return [*(Wanted(number, "drop", False, True) for number in sorted(dropped)), *changed]


def _suggested(ranking: Ranking, level: float) -> list[tuple[int, str]]:
    """(place, label) of those that are called errors of labels."""
    called = np.flatnonzero(sure(ranking, level)).tolist()
    return [(int(ranking.numbers[n]), (ranking.suggested or ())[n]) for n in called]


def _plain(label: object) -> Value:
    return label if isinstance(label, str) else None


def _copies(found: Found, pairs: np.ndarray, kept: np.ndarray, dropped: set[int]) -> set[int]:
    """The places of those of the items in `pairs` [K, 2] that go; what is `dropped` anyway is not what stays."""
    numbers = groups_of(pairs, len(found.rows))
    gone: set[int] = set()
    asked = np.unique(pairs)
    for group in np.unique(numbers[asked]):
        members = asked[numbers[asked] == group].tolist()
        sound = [place for place in members if place not in dropped]
        stays = [place for place in members if kept[place]] or [preferred(found, sound or members)]
        gone |= {*members} - {*stays}
    return gone


def preferred(found: Found, places: list[int]) -> int:
    """Which of some items that show one picture is to stay: one that is measured on, else one with a label, else the
    largest, else the first by path."""
    split, area = found.splits, {p: _area(found, p) for p in places}
    return min(places, key=lambda p: ((split[p] or "").lower() not in TEST, found.labels.values[p] is None, -area[p],
                                      found.rows["uri"][p].as_py()))  # fmt: skip


def _area(found: Found, place: int) -> int:
    return int(found.rows["width"][place].as_py()) * int(found.rows["height"][place].as_py())


def decide(items: Collection, found: Found, decisions: Iterable[Wanted]) -> tuple[list[Change], str]:
    """Write what is not decided yet. Returns the decisions that were made, and the name of this run."""
    name = f"{SIGNED}{datetime.now(UTC).isoformat(timespec='seconds')}"
    latest = {field: items.decisions.latest(field) for field in ("drop", "label")}
    ids, contents = (found.rows[column].to_pylist() for column in ("id", "content_hash"))
    changes = []
    for place, field, old, new in decisions:
        before = latest[field].get(ids[place])
        if before is None or (is_automatic(before) and before.new != new):
            changes.append(Change(ids[place], contents[place], field, old, new))
    if changes:
        items.decisions.decide_all(changes, name)
    return changes, name


def undo(items: Collection) -> tuple[int, str]:
    """Take back what the last automatic run decided and nobody has decided anew. Returns how many decisions were taken
    back, and the name of the run: 0 and "" where there is none."""
    standing: dict[str, list[Decision]] = {}
    for field in ("drop", "label"):
        for decision in items.decisions.latest(field).values():
            if is_automatic(decision) and decision.by != UNDONE:
                standing.setdefault(decision.by, []).append(decision)
    if not standing:
        return 0, ""
    last = max(standing, key=lambda name: standing[name][-1].time)
    items.decisions.decide_all([Change(d.id, d.content_hash, d.field, d.new, d.old) for d in standing[last]], UNDONE)
    return len(standing[last]), last
