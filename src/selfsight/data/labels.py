"""What is known of the truth of items: a class, several, a grade, a number, boxes, masks, or nothing yet.

Labels come from a table that the user gives; without one from the `label` column if any item has one, else from the
outermost folders. What people decided overrides that, item by item. An item without a label is normal: its value is
None. Whatever splits labels keeps a group (a patient, a part, a scene) on one side.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from selfsight.data.annotations.outlines import Aside
from selfsight.data.boxes import Box
from selfsight.data.collection import Collection, item_id
from selfsight.data.groups import deal, group_numbers, members_of
from selfsight.data.sources.annotated import annotated
from selfsight.data.sources.columns import as_text, in_any_case, listed
from selfsight.data.sources.source import Options
from selfsight.data.sources.table import check_text, open_table
from selfsight.errors import DataError, SelfsightError, meant

Kind: TypeAlias = Literal["class", "classes", "grade", "number", "boxes", "masks", "none"]
# class, grade: text. classes: texts in order. number: float. boxes: `Box`es. masks: the path of a mask, relative to the
# source, or {class: COCO RLE} as a person drew it.
Value: TypeAlias = str | tuple[str, ...] | float | tuple[Box, ...] | dict[str, Any]
ASKED = tuple(kind for kind in get_args(Kind) if kind != "none")
TABLES = (".csv", ".tsv", ".parquet")
_WAY = (
    "Put each class in a folder of its own, CLASS/image.jpg, or name the column that holds it: "
    "selfsight import --columns label=COLUMN"
)
_NO_COLUMN = (
    "{} has no column label: the outermost folders are taken as classes. To name one: "
    "selfsight import --columns label=COLUMN"
)
_ANEW = (
    "The labels are those that people gave, and the names of folders, of which none is among them, do not count. To "
    "take these too: --labels"
)
# What splits are called; of those to measure on, the first that there is counts.
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation", "dev", "eval", "holdout")


@dataclass(frozen=True)
class Labels:
    """The labels of some items.

    kind: of the labels.
    rows: the items, as in the collection.
    values: one per item, None for an item without a label.
    location: where the items are from, for messages.
    doubt: why the labels may not be what the user means, a sentence without its full stop; "" for no doubt.
    aside: annotations that are not used, and why.
    """

    kind: Kind
    rows: pa.Table
    values: tuple[Value | None, ...]
    location: str
    doubt: str = ""
    aside: tuple[Aside, ...] = ()

    @classmethod
    def of(
        cls, items: Collection, rows: pa.Table | None = None, path: str | None = None, kind: Kind = "class",
        folders: bool = True,
    ) -> Labels:  # fmt: skip
        """The labels of `rows` (the usable items if not given); `path`: a CSV or Parquet with a column `label`
        (several as `a|b`) and one of `id` or `path` (the item's `uri`); for boxes and masks a COCO file, or a folder of
        VOC, YOLO or LabelMe files or masks. `folders`: whether the outermost folder is the label where nothing else
        gives any.

        The kind asked for becomes "classes" where an item has several, and "none" where no item has any. Raises
        `SelfsightError` for a table of another kind, one that names an unknown item, or an item twice with two
        labels, and for a label that is not a number where one is asked for.
        """
        if kind not in ASKED:
            raise SelfsightError(
                f"There are no labels of the kind {kind!r}. Choose one of {', '.join(ASKED)}.{meant(kind, ASKED)}"
            )
        rows = items.usable if rows is None else rows
        doubt, named = "", any(items.usable["label"].to_pylist())
        values: list[Value | None]
        aside: tuple[Aside, ...] = ()
        if kind == "boxes" or kind == "masks":
            values, aside, doubt = _drawn(items, rows, kind, path)
        else:
            if path is not None:
                given = _in_table(items, rows, path)
            elif named:
                given = [_split(label) for label in rows["label"].to_pylist()]
                doubt = items.contradictions
            elif not folders:
                given = [None] * len(rows)
            else:
                given = _in_folders(items, rows)
                doubt = _NO_COLUMN.format(items.about.location) if items.source.kind == "table" else ""
                if _labelled_anew(items, given):
                    given, doubt = [None] * len(rows), _ANEW
            values = _parsed(_overridden(items, rows, given), rows, kind)
        if not any(value is not None for value in values):
            kind = "none"
        elif kind == "class" and any(isinstance(value, tuple) for value in values):
            kind = "classes"
            values = [(value,) if isinstance(value, str) else value for value in values]
        labels = cls(kind, rows, tuple(values), items.about.location, aside=aside)
        if kind in ("class", "classes"):
            doubt = ". ".join(filter(None, [doubt, *doubts_about(labels.classes, path is None and not named)]))
        return replace(labels, doubt=doubt if kind != "none" else "")

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def ids(self) -> list[str]:
        """The ids of the items."""
        return list(self.rows["id"].to_pylist())

    @cached_property
    def groups(self) -> list[str | None]:
        """What each item belongs to; None for an item that stands alone."""
        named = "group" in self.rows.column_names
        return [group or None for group in self.rows["group"].to_pylist()] if named else [None] * len(self)

    @cached_property
    def known(self) -> np.ndarray:
        """[N] bool, which items have a label."""
        return np.array([value is not None for value in self.values], dtype=bool)

    @cached_property
    def classes(self) -> list[str]:
        """The classes that occur, in order: grades that are numbers by their value. Numbers and masks name none."""
        names = {name for value in self.values for name in self._names(value)}
        ordered = self.kind == "grade" and all(_as_number(name) is not None for name in names)
        return sorted(names, key=float) if ordered else sorted(names)

    @cached_property
    def digest(self) -> str:
        """Hash of the kind and of each item's id, label and group, on which what is learnt and every split depend; the
        same in whatever order rows lie. Of a mask in a file it is of the path, not of the pixels."""
        digest = hashlib.blake2b(self.kind.encode(), digest_size=16)
        for item, group, value in sorted(zip(self.ids, self.groups, self.values, strict=True), key=lambda row: row[0]):
            digest.update(f"\n{json.dumps([item, group, value], default=asdict, sort_keys=True)}".encode())
        return digest.hexdigest()

    def take(self, places: Sequence[int] | np.ndarray) -> Labels:
        """The labels of the items at these places."""
        chosen = np.asarray(places, dtype=np.int64)
        return replace(self, rows=self.rows.take(pa.array(chosen)), values=tuple(self.values[i] for i in chosen))

    def labelled(self, least: int = 1) -> Labels:
        """Those of the items that have a label.

        Raises `SelfsightError` if there are none, or, of one class an item, fewer than `least` classes.
        """
        if self.kind == "none":
            raise DataError(f"No item of {self.location} has a label. {_WAY}")
        if self.kind in ("class", "grade") and len(self.classes) < least:
            raise DataError(f"{self.location} has one class only, {self.classes[0]!r}; {least} or more are needed.")
        return self.take(np.flatnonzero(self.known))

    def numbers(self, classes: Sequence[str]) -> np.ndarray:
        """[N] int64, the place of each item's class in `classes`, -1 for an item without a label.

        Raises `SelfsightError` for items of several classes, and for a class that is not among these.
        """
        if self.kind not in ("class", "grade", "none"):
            several = next((value for value in self.values if isinstance(value, tuple) and len(value) > 1), None)
            such = f", such as {'|'.join(map(str, several))!r}" if self.kind == "classes" and several else ""
            raise DataError(f"{self.location} has labels of the kind {self.kind}{such}; one class an item is needed.")
        places: dict[Any, int] = {name: i for i, name in enumerate(classes)}
        if strange := sorted(set(self.classes) - set(places)):
            raise DataError(f"{self.location} has classes that are not known: {', '.join(strange)}.")
        return np.array([-1 if value is None else places[value] for value in self.values], dtype=np.int64)

    # -- splits that keep a group on one side: the same for the same (seed, ids), in whatever order rows lie --

    def hold_out(self, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Places of the labelled items that are kept and of those held out, about `share` of them and of each class.

        Raises `SelfsightError` if one side were empty.
        """
        if not 0.0 < share < 1.0:
            raise SelfsightError(f"A share to hold out lies between 0 and 1, not at {share}.")
        sides = self._dealt([1.0 - share, share], seed)
        return np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)

    def folds(self, count: int, seed: int = 0) -> np.ndarray:
        """[N] int64, the fold of each item from 0 to count - 1, as like in size and classes as groups allow; -1
        without a label. Raises `SelfsightError` if a fold were empty."""
        if count < 2:
            raise SelfsightError(f"There are two folds or more, not {count}.")
        return self._dealt([1.0 / count] * count, seed)

    def _dealt(self, shares: list[float], seed: int) -> np.ndarray:
        """[N] the part that each item goes to, see `deal`; groups come in the order in which the seed deals them."""
        known = np.array(sorted(np.flatnonzero(self.known), key=lambda place: self.ids[place]), dtype=np.int64)
        numbers = group_numbers([self.groups[place] for place in known], len(known))
        first = [self.ids[known[members[0]]] for members in members_of(numbers)]  # the smallest id of each group
        turns = [hashlib.blake2b(f"{seed} {item}".encode(), digest_size=16).digest() for item in first]
        order = np.array(sorted(range(len(known)), key=lambda i: turns[numbers[i]]), dtype=np.int64)
        classes = ["|".join(sorted(set(self._names(self.values[place])))) for place in known[order]]
        parts = np.full(len(self), -1, dtype=np.int64)
        parts[known[order]] = deal(numbers[order], np.unique(classes, return_inverse=True)[1], shares)
        if len(np.unique(parts[known])) < len(shares):
            raise DataError(
                f"{self.location} cannot be split in {len(shares)}: its {len(known)} labelled items lie in "
                f"{len(first)} groups, which stay together. Label more items, or of more groups."
            )
        return parts

    def _names(self, value: Value | None) -> list[str]:
        """The classes that a value names."""
        if isinstance(value, str) and self.kind != "masks":
            return [value]
        if isinstance(value, tuple):
            return [part.label if isinstance(part, Box) else part for part in value]
        return []


def common_classes(train: Labels, test: Labels) -> list[str]:
    """The classes of `train`, two or more. Raises `SelfsightError` for fewer, for items of several, and if `test` has
    others."""
    known, asked = train.labelled(least=2).classes, test.labelled().classes
    if strange := sorted(set(asked) - set(known)):
        spelt = {_spelling(name): f" (it has {name})" for name in known}
        named = ", ".join(name + spelt.get(_spelling(name), "") for name in strange)
        tested, taught = test.location, train.location
        if tested == taught:  # one collection was split
            tested, taught = f"The test side of {tested}", "its train side"
        raise DataError(f"{tested} has classes that {taught} has not: {named}.")
    for labels in (train, test):
        labels.numbers(known)
    return known


def doubts_about(names: Iterable[str], folders: bool) -> list[str]:
    """Why classes may not be what the user means, as sentences without their full stop: they are called train and test,
    or two differ in spelling only. folders: whether they are the names of the outermost folders."""
    classes, doubts = sorted(names), []
    if classes and {*TRAIN, *TEST}.issuperset(name.lower() for name in classes):
        way = "To take the folders within as classes" if folders else "To name the column of the classes"
        columns = "split={0},label={1}" if folders else "label=COLUMN"
        are = "classes are called {}, like splits" if len(classes) > 1 else "only class is called {}, like a split"
        doubts.append(f"The {are.format(' and '.join(classes))}. {way}: selfsight import --columns {columns}")
    alike: dict[str | float, list[str]] = {}
    for name in classes:
        alike.setdefault(_spelling(name), []).append(name)
    if several := [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1]:
        shown = "; ".join(several[:3]) + ("; …" if len(several) > 3 else "")
        doubts.append(f"Classes that differ in spelling only count as different ones: {shown}")
    return doubts


def _spelling(name: str) -> str | float:
    """The same for names that a person takes for the same class: `Cat` and `cat `, `no finding` and `No_Finding`, 1 and
    01 and 1.0."""
    number = _as_number(name)
    return " ".join(re.split(r"[\s_-]+", name.strip().casefold())) if number is None else number


def table_of(path: str | None) -> str | None:
    """`path`, if it is a table of labels; None if it holds boxes or masks, which say nothing of whole items."""
    return path if path is not None and Path(path).suffix.lower() in TABLES else None


def caveats(*sides: tuple[Collection, Labels]) -> list[str]:
    """What a reader must know before believing figures that were learnt from the first of these and measured on the
    second: images and groups in both, files that cannot be read, items without a label."""
    notes = []
    shared = set.intersection(*(set(labels.rows["content_hash"].to_pylist()) for _, labels in sides))
    if shared:
        these = "1 image is" if len(shared) == 1 else f"{len(shared)} images are"
        notes.append(f"{these} in both train and test, byte for byte; the figures flatter")
    groups = [set(filter(None, labels.groups)) for _, labels in sides]
    if both := set.intersection(*groups):
        count = f"{len(both)} of {len(groups[-1])} groups of test"
        notes.append(f"{count}, such as {min(both)}, are in train too; the figures flatter")
    unread = {items.about.location: len(items.unreadable) for items, _ in sides}
    notes += [f"{count} files in {where} cannot be read, set aside" for where, count in unread.items() if count]
    dropped = {items.about.location: len(items.set_aside) - len(items.unreadable) for items, _ in sides}
    notes += [f"{count} items of {where} were dropped by decisions" for where, count in dropped.items() if count]
    notes += dict.fromkeys(labels.doubt for _, labels in sides if labels.doubt)
    for items, labels in sides:
        if missing := int((~labels.known).sum()):
            notes.append(f"{items.about.location}: {missing} of {len(labels)} images have no label and are left out")
    return notes


# -- where labels come from --


def _in_folders(items: Collection, rows: pa.Table) -> list[Any]:
    """The names of the outermost folders, unless they are shards or splits."""
    if items.source.kind not in ("folder", "zip", "table"):
        return [None] * len(rows)
    parts = [PurePosixPath(uri).parts for uri in rows["uri"].to_pylist()]
    return [folders[0] if len(folders) > 1 else None for folders in parts]


def _labelled_anew(items: Collection, folders: list[Any]) -> bool:
    """Whether people named classes, two or more, and none of what they gave or replaced is the name of a folder: then
    folders are days or cameras, not classes."""
    latest = items.decisions.latest("label").values()
    given = {name for decided in latest for name in _as_classes(_split(decided.new))}
    replaced = {name for decided in latest for name in _as_classes(_split(decided.old))}
    named = {name for name in folders if name is not None}
    return bool(named) and len(given) > 1 and (given | replaced).isdisjoint(named)


def _in_table(items: Collection, rows: pa.Table, path: str) -> list[Any]:
    """The labels of a table; of a file of several pages named by its path, each page has them."""
    named, by = _read_table(path)
    every = items.table[by].to_pylist()
    unknown = set(named) - set(every)
    if unknown and items.about.forgotten:
        forgotten = set(items.about.forgotten)
        identity = (lambda name: name) if by == "id" else (lambda name: item_id(items.source.name, name))
        unknown = {name for name in unknown if identity(name) not in forgotten}
    if unknown:
        examples = ", ".join(sorted(unknown)[:3]) + (", …" if len(unknown) > 3 else "")
        raise DataError(
            f"{path} has labels for {len(unknown)} items that are not in {items.about.location}: {examples}. "
            "Give each item's path relative to the source, or its id."
        )
    return [_split(named.get(name)) for name in rows[by].to_pylist()]


def _read_table(path: str) -> tuple[dict[str, str], Literal["id", "uri"]]:
    """{name: label} of a table, and the column of the collection that holds these names."""
    if Path(path).suffix.lower() not in TABLES:
        raise SelfsightError(f"{path} is not a table of labels. Give one that ends in {', '.join(TABLES)}.")
    named: dict[str, str] = {}
    with open_table(path, path) as table:
        if (column := in_any_case("label", table.header)) is None:
            columns = listed(table.header)
            raise DataError(
                f"{path} has no column label. Its columns: {columns}. Rename the one that holds the labels."
            )
        key = "id" if "id" in table.header else "path"
        by = in_any_case(key, table.header)
        if by is None:  # `ID` beside a path is often the number of the row
            key, by = "id", in_any_case("id", table.header)
        if by is None:
            raise DataError(f"{path} has no column path or id, so it does not say whose labels these are.")
        for number, cells, problem in table.rows([by, column]):
            if problem:
                raise DataError(f"{path}, row {number}: {problem}. Correct it.")
            check_text(f"row {number} of {path}", cells, by)
            name, label = as_text(cells[by]), as_text(cells[column])
            if name is None or label is None or Options().is_blank(label):
                continue
            name = name if key == "id" else name.replace("\\", "/").removeprefix("./")
            if named.setdefault(name, label) != label:
                raise DataError(f"{path} gives {name} two labels, {named[name]!r} and {label!r}. Leave one.")
    return named, "id" if key == "id" else "uri"


def _split(label: Any) -> Any:
    """`a|b` as several labels, None for a blank one; other values stay."""
    if not isinstance(label, str) or "|" not in label:
        return None if label == "" else label
    return [name.strip() for name in label.split("|") if name.strip()]


def _overridden(items: Collection, rows: pa.Table, given: list[Any], field: str = "label") -> list[Any]:
    """`given` with what people decided in its place."""
    decided = items.decisions.latest(field)
    ids = rows["id"].to_pylist()
    return [_split(decided[item].new) if item in decided else value for item, value in zip(ids, given, strict=True)]


def _parsed(given: list[Any], rows: pa.Table, kind: Kind) -> list[Value | None]:
    parser: Callable[[Any], Value | None] = {
        "class": _as_class, "classes": _as_classes, "grade": _as_grade, "number": _as_number,
    }[kind]  # fmt: skip
    values: list[Value | None] = []
    for uri, value in zip(rows["uri"].to_pylist(), given, strict=True):
        found = None if value is None else parser(value)
        if found is None and value is not None and kind in ("number", "grade"):
            one = "a number" if kind == "number" else "one grade"
            raise DataError(f"The label of {uri} is {value!r}, not {one}. Correct it, or leave it blank.")
        values.append(found)
    return values


def _as_classes(value: Any) -> tuple[str, ...]:
    named = value if isinstance(value, list) else [as_text(value)]
    return tuple(sorted({str(name) for name in named if name is not None}))


def _as_number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _as_class(value: Any) -> Value | None:
    """One class, also as a list of one; several as they are."""
    if isinstance(value, list):
        return str(value[0]) if len(value) == 1 else _as_classes(value)
    return as_text(value)


def _as_grade(value: Any) -> Value | None:
    return None if isinstance(value, list) and len(value) != 1 else _as_class(value)


def _drawn(
    items: Collection, rows: pa.Table, kind: Literal["boxes", "masks"], path: str | None
) -> tuple[list[Value | None], tuple[Aside, ...], str]:
    """The boxes or masks of the files at `path`, else of the collection's column, and those that people drew in their
    place; with what is set aside of the files, and a sentence on them."""
    column = "boxes" if kind == "boxes" else "mask"
    given: list[Any] = rows[column].to_pylist() if column in rows.column_names else [None] * len(rows)
    aside: tuple[Aside, ...] = ()
    doubt = ""
    if path is not None:
        given, aside, doubt = annotated(path, kind, rows)
    values = _overridden(items, rows, given, column)
    if column == "mask":
        return [json.loads(value) if _is_json(value) else value for value in values], aside, doubt
    return [None if value is None else tuple(_box(box) for box in value) for value in values], aside, doubt


def _is_json(value: Any) -> bool:
    """Whether a cell of masks holds outlines, and not the path of a file."""
    return isinstance(value, str) and value.startswith("{")


def _box(cell: dict[str, Any]) -> Box:
    """A box of the column or the journal, which may leave flags out and say more."""
    return Box(**{field.name: cell[field.name] for field in fields(Box) if cell.get(field.name) is not None})
