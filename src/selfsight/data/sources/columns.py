"""What the columns of a collection are filled from: `--columns name=spec,...`.

A spec is the name of a column of the manifest, several of them as `a|b` (the first that it has is taken), or a
text with braces made from the item's path: `{0}`, `{1}`, … its parts (folders and file), `{folder}` the innermost
folder, `{name}` and `{stem}` the file with and without suffix, `{table}` the stem of the manifest. For `mask` and
`boxes` the outcome is the path of a file, relative to the source.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Container, Iterable, Mapping, Sequence

from selfsight.data.annotations import voc, yolo
from selfsight.data.boxes import Boxes
from selfsight.data.formats.format import Unreadable
from selfsight.data.sources.names import stem_of, suffix_of
from selfsight.data.sources.source import KNOWN_COLUMNS, Source
from selfsight.errors import SelfsightError, meant

# What is read from the images themselves, and cannot be filled from elsewhere.
_OWN = frozenset(("id", "uri", "page", "content_hash", "format", "width", "height", "mode", "channels", "depth"))
_OWN |= {"exif_orientation", "status", "reason", "bytes", "modified_ns"}
_FIELD = re.compile(r"\{(\d{1,3}|folder|stem|name|table)\}")
_MAX_BYTES = 16 * 2**20  # of a file of boxes


def parse_columns(text: str) -> dict[str, str]:
    """`--columns` as a dict: {column: spec}. Raises `SelfsightError` for what is malformed."""
    columns: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+\s*=)", text) if text.strip() else ():  # a comma inside a spec is part of it
        name, equals, spec = (piece.strip() for piece in part.partition("="))
        if not equals or not spec or not re.fullmatch(r"[^\W\d]\w*", name):
            raise SelfsightError(
                f"--columns {part!r} is not NAME=COLUMN. For example: --columns label=class,site={{0}}"
            )
        if name in columns:
            raise SelfsightError(f"--columns names {name} twice. Alternatives are given as {name}=one|other")
        columns[name] = spec
    check_columns(columns)
    return columns


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise `SelfsightError` for a column that cannot be filled, or a malformed template."""
    for name, spec in columns.items():
        if name in _OWN:
            raise SelfsightError(f"--columns {name}= cannot be: {name} is read from the images. Choose another name.")
        if _is_template(spec):
            _pieces(name, spec)
            if name == "path":
                raise SelfsightError(f"--columns path={spec} cannot be: path= takes a column of the manifest.")


def plain_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """The columns whose spec is the name of another column, without `path`."""
    return {name: spec for name, spec in columns.items() if name != "path" and not _is_template(spec)}


def first_of(spec: str, names: Container[str]) -> str | None:
    """The first alternative of a spec that is among `names`."""
    if spec in names:  # also one that holds a bar
        return spec
    return next((name for part in spec.split("|") if (name := part.strip()) in names), None) if "|" in spec else None


def in_any_case(name: str, names: Collection[str]) -> str | None:
    """`name` among `names`, or else the first of them that is it in other case."""
    return name if name in names else next((found for found in names if found.lower() == name), None)


def _is_template(spec: str) -> bool:
    return "{" in spec or "}" in spec


def _pieces(name: str, spec: str) -> list[str]:
    """literal, field, literal, field, …, literal."""
    pieces = _FIELD.split(spec)
    if any(_is_template(literal) for literal in pieces[::2]):
        raise SelfsightError(
            f"--columns {name}={spec} is not understood: braces may hold 0, 1, … (parts of the path), folder, stem, "
            "name or table."
        )
    return pieces


class Columns:
    """Fills the columns of a source's items.

    files: where masks and boxes are found. header: the columns of the manifest, None without one. Boxes
    that cannot be read are counted in `others` of the source. Raises `SelfsightError` if the manifest
    `called` so lacks a column.
    """

    def __init__(self, files: Source, header: Iterable[str] | None = None, called: str = "") -> None:
        specs = files.options.columns
        check_columns(specs)
        self._files = files
        self._templates = {name: _pieces(name, spec) for name, spec in specs.items() if _is_template(spec)}
        self._known = [name for name in KNOWN_COLUMNS if name not in specs]
        self._asked = plain_columns(specs)
        self.cells = self._cells(list(header or ()))
        for name, spec in self._asked.items() if header is not None else ():
            if name not in self.cells:
                raise SelfsightError(missing_column(called, f"{name}={spec}", header or ()))

    def _cells(self, names: Collection[str]) -> dict[str, str]:
        """{column: the one among `names` that it is filled from}; known columns are found in any case."""
        asked = {name: found for name, spec in self._asked.items() if (found := first_of(spec, names))}
        return asked | {name: found for name in self._known if (found := in_any_case(name, names))}

    def fill(
        self, uri: str, cells: Mapping[str, object] | None = None, table: str = ""
    ) -> dict[str, str | int | Boxes | None]:
        """The columns of one item; None where there is nothing. `cells`: its row of the manifest. `boxes` are as their
        file states them: what they are in pixels is known when the image is read."""
        filled: dict[str, str | None] = {}
        if cells:
            for name, column in (self.cells or self._cells(cells)).items():
                filled[name] = self._value(name, cells.get(column))
        if self._templates:
            parts = uri.split("/")
            for name, pieces in self._templates.items():
                filled[name] = as_text(_formatted(pieces, parts, table))
        read: dict[str, str | int | Boxes | None] = {}
        for name, meaning in (("mask", self._mask), ("boxes", self._boxes), ("frame", _whole)):
            if (text := filled.get(name)) is not None:
                read[name] = meaning(text)
        return filled | read

    def _value(self, name: str, cell: object) -> str | None:
        """A cell as text, None where it says that there is nothing; that is counted in `others` of the source."""
        text = as_text(cell)
        if name in KNOWN_COLUMNS and text is not None and self._files.options.is_blank(text):
            self._files.others[f"{name} {text}"] += 1
            return None
        return text

    def _mask(self, path: str) -> str | None:
        return path if self._files.holds(path) else None

    def _boxes(self, path: str) -> Boxes | None:
        if not self._files.holds(path):
            return None
        try:
            with self._files.open(path) as file:
                return read_boxes(file.read(_MAX_BYTES + 1), suffix_of(path))
        except (Unreadable, ValueError, OSError):
            self._files.others["unreadable boxes"] += 1
            return None


def listed(header: Iterable[str]) -> str:
    """The names of some columns in a sentence: the first thirty, cut where they are long."""
    return ", ".join(repr(name[:40]) for name in list(header)[:30])


def with_class_names(cells: Mapping[str, object], classes: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """`cells` with names for the numbers of classes, None for a number without one. classes: names by column."""

    def named(value: object, names: Sequence[str]) -> str | None:
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None

    return {**cells, **{column: named(cells[column], classes[column]) for column in classes.keys() & cells.keys()}}


def missing_column(called: str, asked: str, header: Iterable[str]) -> str:
    """The sentence for a manifest without a column that was asked for."""
    name, _, spec = asked.partition("=")
    header = list(header)
    close = meant(spec.partition("|")[0], header)
    if name in header and name not in ("path", *KNOWN_COLUMNS) and spec in ("path", *KNOWN_COLUMNS):
        return f"{called} has no column for {asked}. Your column comes last: --columns {spec}={name}"
    return (
        f"{called} has no column for {asked}. Its columns: {listed(header)}.{close} Choose with --columns {name}=COLUMN"
    )


def _formatted(pieces: list[str], parts: list[str], table: str) -> str | None:
    """A template filled in; None if the path has no such part."""
    text = pieces[0]
    for field, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        if field == "name":
            value = parts[-1]
        elif field == "stem":
            value = stem_of(parts[-1])
        elif field == "table":
            value = table
        else:
            number = len(parts) - 2 if field == "folder" else int(field)
            if not 0 <= number < len(parts):
                return None
            value = parts[number]
        if not value:
            return None
        text += value + literal
    return text


def _whole(text: str) -> int | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else None


def as_text(value: object) -> str | None:
    """A cell as text: stripped, None if empty, a whole number without its point."""
    if value is None or value == "":
        return None
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    elif isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = "" if value is None else str(value).strip()
    if not text.isascii():  # JSON can hold halves of a character, which no table takes
        text = text.encode("utf-8", "backslashreplace").decode()
    return text or None


def read_boxes(data: bytes, suffix: str) -> Boxes:
    """Boxes of a YOLO `.txt` (class, centre and size as parts of the image) or a Pascal VOC `.xml` (pixels).

    Raises `ValueError` for anything else, and for the whole file if one box of it is malformed.
    """
    if len(data) > _MAX_BYTES:
        raise ValueError("too large for a file of boxes")
    readers = {".txt": yolo.read, ".xml": voc.read}
    if suffix not in readers:
        raise ValueError(f"{suffix} is not a format of boxes")
    return readers[suffix](data)
