"""What people say of the items: an answer counts once it is in the journal, and the journal is all that is kept.

The latest decision about an item is its label, whoever made it. Beside it stands what each person said: two who differ
are in dispute, until somebody decides again who could know of both.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal, TypeAlias

from selfsight.data.collection import Collection
from selfsight.data.decisions import Decision, Value
from selfsight.data.sources.source import Options
from selfsight.errors import SelfsightError
from selfsight.results import Result

Kind: TypeAlias = Literal["class", "classes", "grade"]
Names: TypeAlias = tuple[str, ...]
LONGEST = 80  # letters of a class or a person's name


@dataclass(frozen=True)
class Agreement(Result):
    """How far two people agree, of what each said before the other's answer could be settled.

    first: one of them.
    second: the other.
    items: how many both labelled.
    same: the share of these that both labelled the same.
    kappa: Cohen's kappa, of grades that are numbers with quadratic weights; None where only one label was given.
    """

    first: str
    second: str
    items: int
    same: float
    kappa: float | None


@dataclass(frozen=True)
class _Said:
    """A standing answer of one person to one item. settles: whether people had differed about the item by then."""

    decision: Decision
    settles: bool

    @property
    def names(self) -> Names:
        return names_of(self.decision.new)


class Answers:
    """The labels of the usable items of a collection: those of the journal, and where it says nothing those of the
    `label` column. Names of folders are none. Several threads may answer; to read while they do, hold `lock`.

    ids: of the items.
    by: the person who answers here.
    kind: of an answer: one class, several, or a grade. One class becomes several where an item has several already.
    classes: the names that occur, in the order in which they came; new ones come last. Of grades that are numbers by
        their value.
    given: how many answers were given here and not taken back.
    damaged: lines of the journal that are cut or no decision, and were skipped.
    """

    def __init__(self, items: Collection, by: str = "local", kind: Kind = "class", classes: Sequence[str] = ()) -> None:
        """classes: names that are known from the start."""
        self.by = checked_name(by, "person")
        self.ids: list[str] = items.usable["id"].to_pylist()
        self.damaged = 0
        self._journal = items.decisions
        self._contents = dict(zip(self.ids, items.usable["content_hash"].to_pylist(), strict=True))
        column = zip(self.ids, items.usable["label"].to_pylist(), strict=True)
        self._column: dict[str, Value] = {item: label for item, label in column if label}
        self._classes = list(classes)
        self._given: list[list[Decision]] = []  # each an answer of one or two lines
        self._sizes: dict[str, int] = {}
        self.lock = threading.RLock()
        self._read()
        several = any(len(names_of(value)) > 1 for value in self._current.values())
        self.kind: Kind = "classes" if kind == "class" and several else kind

    # -- what was said --

    def label(self, item: str) -> Names:
        """The label that counts; () for none."""
        return names_of(self._current.get(item))

    @property
    def labels(self) -> dict[str, Names]:
        """The labels that count, of the items that have one."""
        return {item: names for item, value in self._current.items() if (names := names_of(value))}

    def opinions(self, item: str) -> dict[str, Names]:
        """{person: label}, of what each said before a dispute was settled."""
        said = self._said.get(item, {})
        own = {by: [answer.names for answer in answers if not answer.settles] for by, answers in said.items()}
        return {by: names[-1] for by, names in own.items() if names}

    def own(self, item: str) -> Names:
        """What the person who answers here said last; () for nothing."""
        said = self._said.get(item, {}).get(self.by)
        return said[-1].names if said else ()

    @property
    def mine(self) -> dict[str, Names]:
        """{item: label} of what the person who answers here said last."""
        return {item: names for item in self._said if (names := self.own(item))}

    @property
    def second(self) -> list[str]:
        """The items that others answered and this person did not."""
        return [item for item, said in self._said.items() if any(said.values()) and not said.get(self.by)]

    @property
    def disputed(self) -> list[str]:
        """The items about which people differ, and that nobody settled."""
        return [item for item in self._said if self.in_dispute(item)]

    def in_dispute(self, item: str) -> bool:
        """Whether people differ about an item, and nobody settled it."""
        return not self._settled(item) and len(set(self.opinions(item).values())) > 1

    def _settled(self, item: str) -> bool:
        return any(answer.settles for answers in self._said.get(item, {}).values() for answer in answers)

    @property
    def classes(self) -> list[str]:
        if self.kind == "grade" and _are_numbers(self._classes):
            return sorted(self._classes, key=float)
        return list(self._classes)

    @property
    def counts(self) -> dict[str, int]:
        """{class: how many items have it}, in the order of `classes`."""
        counts = Counter(name for names in self.labels.values() for name in names)
        return {name: counts[name] for name in self.classes}

    @property
    def given(self) -> int:
        return len(self._given)

    def decision(self, item: str) -> Decision | None:
        """The latest decision about an item's label; None where the journal has none."""
        return self._latest.get(item)

    @property
    def agreement(self) -> list[Agreement]:
        """Of each two people who labelled the same items."""
        opinions = [said for item, all in self._said.items() if len(all) > 1 and len(said := self.opinions(item)) > 1]
        people = sorted({by for said in opinions for by in said})
        found = []
        for first, second in combinations(people, 2):
            both = [(said[first], said[second]) for said in opinions if first in said and second in said]
            if both:
                same = sum(a == b for a, b in both) / len(both)
                found.append(Agreement(first, second, len(both), same, self._kappa(both)))
        return found

    def _kappa(self, both: list[tuple[Names, Names]]) -> float | None:
        from sklearn.metrics import cohen_kappa_score

        one, other = (["|".join(names) for names in side] for side in zip(*both, strict=True))
        known = sorted({*one, *other})
        if len(known) < 2:
            return None
        ordered = self.kind == "grade" and _are_numbers(known)
        known = sorted(known, key=float) if ordered else known
        return float(cohen_kappa_score(one, other, labels=known, weights="quadratic" if ordered else None))

    # -- what is said now --

    def give(self, item: str, names: Sequence[str]) -> None:
        """Write that this person says `names` of an item: it is on disk when this returns. What was said before and
        counts already is not written again.

        Raises `SelfsightError` for an item that is not there, and for a name that no class can have.
        """
        value = self._value(names)
        with self.lock:
            self.refresh()
            if item not in self._contents:
                raise SelfsightError(f"There is no item {item}. Load the page again.")
            if self.own(item) == names_of(value) == self.label(item) and not self.in_dispute(item):
                return
            lines, counts = [], self._current.get(item)
            if self._takes_back(item, counts, value):  # would be read so: first say again what counts
                lines.append(self._decide(item, counts))
            self._given.append([*lines, self._decide(item, value)])

    def undo(self) -> str | None:
        """Take back the last answer that was given here, and return its item; None if there is none left.

        Raises `SelfsightError` where somebody else decided about the item since.
        """
        with self.lock:
            self.refresh()
            if not self._given:
                return None
            lines = self._given[-1]
            item = lines[-1].id
            said = [answers[-1].decision for answers in self._said[item].values() if answers]
            since = sorted({d.by for d in said if d.by != self.by and d.time > lines[-1].time})
            if since or self.own(item) != names_of(lines[-1].new):
                who = " and ".join(since or [self.by])
                raise SelfsightError(f"This item was labelled again since, by {who}: nothing was taken back.")
            for decision in reversed(lines):
                self._written(partial(self._journal.undo, decision, self.by))
            self._given.pop()
            return item

    def refresh(self) -> None:
        """Take in what others wrote meanwhile."""
        with self.lock:
            if self._journal.sizes() != self._sizes:
                self._read()

    def _value(self, names: Sequence[str]) -> Value:
        checked = sorted({checked_name(name, "class") for name in names})
        if not checked or (self.kind != "classes" and len(checked) > 1):
            raise SelfsightError(f"An answer names one class{' or more' if self.kind == 'classes' else ''}.")
        return checked if self.kind == "classes" else checked[0]

    # -- the journal --

    def _read(self) -> None:
        """Everything anew."""
        self._sizes = self._journal.sizes()
        decisions, self.damaged = self._journal.read()
        self._current = dict(self._column)
        self._latest: dict[str, Decision] = {}
        self._said: dict[str, dict[str, list[_Said]]] = {}
        for decision in decisions:
            self._count(decision)
        known = {name for names in self.labels.values() for name in names}
        came = [*sorted(known & {name for value in self._column.values() for name in names_of(value)})]
        came += [name for decision in decisions if decision.field == "label" for name in names_of(decision.new)]
        self._classes = list(dict.fromkeys([*self._classes, *(name for name in came if name in known)]))

    def _count(self, decision: Decision) -> None:
        """Let a decision count, which comes after all others."""
        item = decision.id
        if decision.field != "label" or item not in self._contents:
            return
        taken_back = self._takes_back(item, decision.old, decision.new, decision.by)
        settles = self.in_dispute(item) or self._settled(item)
        self._current[item], self._latest[item] = decision.new, decision
        own = self._said.setdefault(item, {}).setdefault(decision.by, [])
        if taken_back:
            own.pop()
        elif names_of(decision.new):
            own.append(_Said(decision, settles))
        else:
            own.clear()

    def _takes_back(self, item: str, old: Value, new: Value, by: str | None = None) -> bool:
        """Whether a decision is the inverse of the last standing answer of the person `by`."""
        own = self._said.get(item, {}).get(by or self.by, [])
        return bool(own) and (own[-1].decision.old, own[-1].decision.new) == (new, old)

    def _decide(self, item: str, value: Value) -> Decision:
        old, content = self._current.get(item), self._contents[item]
        return self._written(partial(self._journal.decide, item, content, "label", value, old=old, by=self.by))

    def _written(self, write: Callable[[], Decision]) -> Decision:
        """A decision that `write` puts into the journal, and that counts from now on."""
        before, decision = self._sizes, write()
        self._count(decision)
        self._classes += [name for name in names_of(decision.new) if name not in self._classes]
        after = self._journal.sizes()
        if sum(size != before.get(file) for file, size in after.items()) == 1:  # else others wrote too: to be read
            self._sizes = after
        return decision


def names_of(value: Value) -> Names:
    """The classes that a label of the journal or of a column names; () for none."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        names = [name.strip() for name in value.split("|")] if "|" in value else [value]
        return tuple(sorted({name for name in names if name})) if len(names) > 1 else tuple(names)
    if isinstance(value, list | tuple):
        return tuple(sorted({str(name) for name in value}))
    return (f"{value:g}" if isinstance(value, float) else str(value),)


def checked_name(name: str, of: Literal["class", "person"]) -> str:
    """A name without spaces around it. Raises `SelfsightError` for one that a table of labels would not give back."""
    name = name.strip()
    if not name or len(name) > LONGEST or not name.isprintable() or "|" in name or Options().is_blank(name):
        raise SelfsightError(
            f"{name!r} cannot be the name of a {of}: a name has 1 to {LONGEST} letters, no | and no line end, and is "
            "none of the words that mean no label, such as NA. Choose another."
        )
    return name


def _are_numbers(names: Sequence[str]) -> bool:
    try:
        return all(float(name) == float(name) for name in names)
    except ValueError:
        return False
