"""What people decide of items that a curation doubts: each decision counts once it is in the journal.

Decisions are of items, not of doubts: an item is kept, dropped, or gets a label. A pair is done once one of the two is
dropped or both are kept; a doubted label also once it was changed. So what was decided before, here or elsewhere, is
not asked again, and nothing but the journal is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from selfsight.curation.automatic import is_automatic
from selfsight.data.collection import Collection
from selfsight.data.decisions import Change, Decision, Value
from selfsight.data.labels import Labels, table_of
from selfsight.errors import DataError, SelfsightError
from selfsight.files import read_json
from selfsight.pages.answers import Names, checked_name, names_of

Action: TypeAlias = Literal["keep", "drop", "label"]
Issues: TypeAlias = Mapping[str, Any]  # what `curate --json` gives: {kind: {estimated, items: [...]}}
OF_LABELS = "label_errors"  # the kind that is done by a label


@dataclass(frozen=True)
class Case:
    """A doubt: about an item, or about two that may be one picture.

    kind: of issues, as `curate` calls it. items: one id or two. score: from 1, surely at fault, down to 0. suggested:
    the label that it may have, "" for none.
    """

    kind: str
    items: tuple[str, ...]
    score: float
    suggested: str


class Reviewed:
    """The cases of a curation, and what was decided of the items of a collection. Several threads may decide; to read
    while they do, hold `lock`.

    cases: of the issues, in their order, without those of items that are not in the collection. lost: how many these
    are. estimated: {kind: how many are thought to be at fault}. given: how many decisions were made here and not taken
    back. damaged: lines of the journal that are cut or no decision.
    """

    def __init__(self, items: Collection, issues: Issues, by: str = "local", labels: str | None = None) -> None:
        """issues: see `issues_in`. labels: a table of them, see `Labels.of`. Raises `DataError` for other issues."""
        self.by = checked_name(by, "person")
        self.lock = threading.RLock()
        self._journal = items.decisions
        rows = items.table
        self._contents = dict(zip(rows["id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))
        given = Labels.of(
            items.deciding(lambda decision: False), rows, table_of(labels), kind="classes"
        )  # before any decision
        self._labels: dict[str, Value] = dict(zip(given.ids, given.values, strict=True))  # type: ignore[arg-type]
        self.estimated, every = cases_of(issues)
        self.cases = [case for case in every if all(item in self._contents for item in case.items)]
        self.lost = len(every) - len(self.cases)
        self._of: dict[str, list[int]] = {}
        for number, case in enumerate(self.cases):
            for item in case.items:
                self._of.setdefault(item, []).append(number)
        self._given: list[list[Decision]] = []
        self._sizes: dict[str, int] | None = None
        self.refresh()

    @property
    def given(self) -> int:
        return len(self._given)

    @property
    def open(self) -> int:
        """How many cases are not decided."""
        return sum(not self.outcome(number) for number in range(len(self.cases)))

    @property
    def classes(self) -> list[str]:
        """The names of all labels, sorted."""
        return sorted({name for item in self._contents for name in self.label(item)})

    def label(self, item: str) -> Names:
        """The label that counts; () for none."""
        said = self._latest.get((item, "label"))
        return names_of(said.new if said else self._labels.get(item))

    def state(self, item: str) -> str:
        """What was decided of an item: dropped, kept, or "" for neither."""
        return "dropped" if self._is(item, "drop") else "kept" if self._is(item, "keep") else ""

    def outcome(self, number: int) -> str:
        """What was decided of a case, in words; "" while it is open."""
        case = self.cases[number]
        states = [self.state(item) for item in case.items]
        if len(states) == 2:
            sides = [side for side, state in zip(("left", "right"), states, strict=True) if state == "dropped"]
            return f"{' and '.join(sides)} dropped" if sides else "both kept" if states == ["kept", "kept"] else ""
        names = self.label(case.items[0])
        if case.kind == OF_LABELS and not states[0] and names != names_of(self._labels.get(case.items[0])):
            return f"label {', '.join(names)}"
        return states[0]

    def cases_with(self, items: Sequence[str]) -> list[int]:
        """The cases that are about any of these items."""
        return sorted({number for item in items for number in self._of.get(item, ())})

    def decide(self, items: Sequence[str], action: Action, label: str = "") -> None:
        """Write one decision about all of these items: it is on disk when this returns. label: for the action `label`.

        Raises `SelfsightError` for an item that is not there, and for a label that no class can have.
        """
        with self.lock:
            self.refresh()
            changes = [change for item in dict.fromkeys(items) for change in self._changes(item, action, label)]
            if changes := [change for change in changes if change.old != change.new or self._is_automatic(change)]:
                self._given.append(self._write(changes))

    def undo(self) -> list[str]:
        """Take back the last decision that was made here, and return its items; [] if there is none left.

        Raises `SelfsightError` where one of them was decided about again since.
        """
        with self.lock:
            self.refresh()
            if not self._given:
                return []
            last = self._given[-1]
            for one in {(one.id, one.field): one for one in last}.values():
                now = self._latest[one.id, one.field]
                if (now.by, now.new) != (self.by, one.new):
                    raise SelfsightError(f"{now.by} decided about this again since: nothing was taken back.")
            inverse = [Change(one.id, one.content_hash, one.field, one.new, one.old) for one in reversed(last)]
            self._write(inverse)
            self._given.pop()
            return list(dict.fromkeys(one.id for one in last))

    def refresh(self) -> None:
        """Take in what was decided elsewhere meanwhile."""
        with self.lock:
            if (sizes := self._journal.sizes()) == self._sizes:
                return
            self._sizes = sizes
            decisions, self.damaged = self._journal.read()
            self._latest: dict[tuple[str, str], Decision] = {}
            self._count(decisions)

    def _write(self, changes: Sequence[Change]) -> list[Decision]:
        before = self._journal.sizes()
        decisions = self._journal.decide_all(changes, self.by)
        self._count(decisions)
        after = self._journal.sizes()
        if sum(size != before.get(file) for file, size in after.items()) == 1:  # else others wrote too: to be read
            self._sizes = after
        return decisions

    def _count(self, decisions: Sequence[Decision]) -> None:
        self._latest |= {(one.id, one.field): one for one in decisions if self._is_of(one)}

    def _is_of(self, decision: Decision) -> bool:
        """Whether a decision is of an item as it is now."""
        return decision.id in self._contents and decision.content_hash in (None, self._contents[decision.id])

    def _is(self, item: str, field: str) -> bool:
        said = self._latest.get((item, field))
        return said is not None and said.new is True

    def _changes(self, item: str, action: Action, label: str) -> list[Change]:
        if item not in self._contents:
            raise SelfsightError(f"There is no item {item}. Load the page again.")
        wanted: list[tuple[str, Value]] = [(action, True if action != "label" else checked_name(label, "class"))]
        other = {"drop": "keep", "keep": "drop"}.get(action, "")
        if other and self._is(item, other):
            wanted.insert(0, (other, False))
        return [Change(item, self._contents[item], field, self._now(item, field), value) for field, value in wanted]

    def _is_automatic(self, change: Change) -> bool:
        """Whether what it says stands, but no person said so: then it is written again, to outlast `curate --undo`."""
        said = self._latest.get((change.id, change.field))
        return said is not None and is_automatic(said)

    def _now(self, item: str, field: str) -> Value:
        """What counts of an item: what was decided, or the label that it has without that, so that an undo gives it
        back."""
        if said := self._latest.get((item, field)):
            return said.new
        names = sorted(self.label(item)) if field == "label" else []
        return names[0] if len(names) == 1 else names or None


def issues_in(file: Path) -> Issues:
    """What a file holds that `curate` wrote. Raises `DataError`."""
    found = read_json(file)
    if found is None or not {"intervals", "error_rate", "notes"} <= set(found):
        raise DataError(f"{file} is no issues.json of selfsight curate, or it is damaged. Run curate without --review.")
    return found


def cases_of(issues: Issues) -> tuple[dict[str, int], list[Case]]:
    """({kind: how many are thought to be at fault}, the cases) of what `curate --json` gives. Raises `DataError`."""
    estimated: dict[str, int] = {}
    cases = []
    try:
        for kind, found in issues.items():
            if not isinstance(found, Mapping) or "estimated" not in found:  # what is said of all, beside the kinds
                continue
            estimated[kind] = int(found["estimated"])
            for each in found["items"]:
                pair = each.get("pair")
                ids = (str(each["id"]), *([str(pair["id"])] if pair else []))
                cases.append(Case(kind, ids, float(each["score"]), str(each.get("suggested") or "")))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError("This is no issues.json of selfsight curate. Run curate without --review.") from None
    return estimated, cases
