"""Manifests: lists of paths (.txt), CSV, TSV and Parquet, one or several, read row by row."""

# ruff: noqa: PTH116, PTH119, PTH120, PTH122, PTH123
# Paths are text here: a million of them pass through, and pathlib would take most of the time.

from __future__ import annotations

import codecs
import csv
import os
import re
import stat
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, BinaryIO, TextIO

from selfsight.data.formats.format import Unreadable
from selfsight.data.sources.columns import Columns, as_text, first_of, in_any_case, missing_column, plain_columns
from selfsight.data.sources.folder import LocalSource, in_words, list_folder, open_file
from selfsight.data.sources.names import Names, Seen, in_utf8, known_suffixes, stem_of, suffix_of
from selfsight.data.sources.source import Entry, Options
from selfsight.data.sources.twice import Listed, contradictions
from selfsight.errors import DataError, SelfsightError, first_line

# Columns that may hold the path, if none is named.
PATH_COLUMNS = ("path", "file_path", "filepath", "filename", "file_name", "file", "image", "image_path", "img", "uri")
LISTS = (".txt", ".lst")
_LINE = 2**20  # letters; longer lines are cut, so that a file without line ends does not fill the memory
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LONGEST = 1000  # letters of a path that no file system takes: its row is named instead


class TableSource(LocalSource):
    """The files that manifests name, by their path relative to the root.

    root: the folder that paths are relative to, unless `options.root` names one. A path in one of several
    manifests is first looked for beside that manifest.
    """

    kind = "table"

    def __init__(self, location: str, manifests: list[str], root: str, options: Options) -> None:
        self.location = location
        self.root = os.path.realpath(options.root or root)
        self.name = os.path.basename(self.root) or "root"
        self.options = options
        self.others = Counter()
        self.contradicted: dict[str, str] = {}
        self._manifests = manifests

    @property
    def keywords(self) -> dict[str, str]:
        lists = all(_suffix(manifest) in LISTS for manifest in self._manifests)
        return plain_columns(self.options.columns) if lists else {}

    def meant(self, name: str) -> list[str]:
        finder, found = Finder(self.root, bool(self.options.root)), super().meant(name)
        for folder in dict.fromkeys(os.path.dirname(os.path.realpath(manifest)) for manifest in self._manifests):
            found += finder.meant(name, folder, finder.scope(folder))
        return found

    def entries(self) -> Iterator[Entry]:
        finder = Finder(self.root, bool(self.options.root))
        labels = contradictions(lambda: self._labelled(finder))
        self.others, self.contradicted = Counter(), {}
        seen = Seen()
        for manifest in self._manifests:
            for entry in self._listed(manifest, finder, labels):
                if seen.add(entry.uri):
                    yield entry
                else:
                    self.others["listed before"] += 1

    def _listed(self, manifest: str, finder: Finder, labels: dict[str, dict[str | None, str]]) -> Iterator[Entry]:
        called = finder.uri(os.path.realpath(manifest))
        with _open_rows(self, manifest, called) as (table, path, columns):
            folder = os.path.dirname(os.path.realpath(manifest))
            beside = finder.scope(folder)
            for number, cells, problem in table.rows({path, *columns.cells.values()}):
                row = f"{table.word} {number} of {called}"
                check_text(row, cells, path)
                if problem:
                    yield Entry(row, reason=problem)
                    continue
                entry = entry_of(finder, cells.get(path), folder, beside, row)
                if entry.uri == row or self.options.wanted(entry.uri):
                    if entry.uri != row:  # also of a file that is gone: `forget --group` finds it
                        entry.columns = columns.fill(entry.uri, cells, stem_of(os.path.basename(manifest)))
                        if labels and (several := labels.get(_key(folder, cells[path]))):
                            self._settle(entry, several)
                    yield entry

    def _labelled(self, finder: Finder) -> Iterator[Listed]:
        """The labels that the tables give to paths."""
        for manifest in self._manifests:
            called, folder = finder.uri(os.path.realpath(manifest)), os.path.dirname(os.path.realpath(manifest))
            with _open_rows(self, manifest, called) as (table, path, columns):
                if (column := columns.cells.get("label")) is None:
                    continue
                for number, cells, problem in table.rows({path, column}):
                    if not problem and cells.get(path) is not None:
                        label = as_text(cells[column])
                        known = None if label is None or self.options.is_blank(label) else label
                        yield _key(folder, cells[path]), known, f"{table.word} {number} of {called}"

    def _settle(self, entry: Entry, labels: dict[str | None, str]) -> None:
        """The label of an item for which there are several: none, unless all rows but one label are blank."""
        said = {label: row for label, row in labels.items() if label is not None}
        entry.columns["label"] = next(iter(said)) if len(said) == 1 else None
        if len(said) > 1 and not entry.reason:
            self.contradicted[entry.uri] = ", ".join(f"{label!r} in {row}" for label, row in said.items())


@contextmanager
def _open_rows(source: TableSource, manifest: str, called: str) -> Iterator[tuple[Table, str, Columns]]:
    """A manifest, the name of its column of paths, and what fills the columns of its items. Raises `SelfsightError`."""
    try:
        with open_table(manifest, called) as table:
            path = _path_column(table.header, source.options.columns.get("path"), called)
            yield table, path, Columns(source, table.header if table.word == "row" else None, called)
    except OSError as error:
        raise DataError(f"{manifest} cannot be read ({in_words(error)}).") from None


def _key(folder: str, value: object) -> str:
    """A path as a manifest of `folder` writes it, the same however it is written."""
    text = os.path.join(folder, (as_text(value) or "").replace("\\", "/"))
    return os.path.normpath(text) if "/." in text or "//" in text else text


def entry_of(finder: Finder, value: object, folder: str, beside: str, row: str) -> Entry:
    """The file that one cell means. `folder` of the manifest, `beside`: see `Finder.scope`."""
    text = as_text(in_utf8(value) if isinstance(value, str) else value)
    if not text:
        return Entry(row, reason="no path")
    if _ADDRESS.match(text):
        return Entry(text, reason="an address, not a path: download it")
    try:
        if not _is_utf8(value):
            raise Unreadable("no such file (not UTF-8 in the manifest)")
        path, found = finder.find(text, folder, beside)
    except Unreadable as reason:
        way = _ways(text)[-1] if _is_utf8(value) else text  # where a backslash stands for a byte
        uri = finder.uri(os.path.normpath(os.path.join(finder.bases(folder)[0], way)))
        return Entry(row if len(text) > _LONGEST or "\0" in text else uri, reason=str(reason))
    return Entry(finder.uri(path), found.st_size, found.st_mtime_ns)


def _path_column(header: list[str], asked: str | None, called: str) -> str:
    if asked:
        column = first_of(asked, header)
    else:
        column = next((found for name in PATH_COLUMNS if (found := in_any_case(name, header))), None)
    if column is None and not asked and any(suffix_of(name) in known_suffixes() - {""} for name in header):
        raise DataError(
            f"The first row of {called} names an image, {header[0]!r}, where the names of the columns are to stand. "
            "Write them above it, such as path,label."
        )
    if column is None:
        raise SelfsightError(missing_column(called, f"path={asked}" if asked else "path=", header))
    return column


def check_text(row: str, cells: Mapping[str, object], path: str) -> None:
    """Raise `SelfsightError` where a cell of `row`, but for its path, was not UTF-8: two labels might become one."""
    for name, cell in cells.items():
        if name != path and not _is_utf8(cell):
            raise DataError(
                f"{row}: {name} is '{in_utf8(str(cell))}', which is not UTF-8. Save the table as UTF-8 (in Excel: "
                "CSV UTF-8), or translate it: iconv -f WINDOWS-1252 -t UTF-8 TABLE > NEW"
            )


def _is_utf8(cell: object) -> bool:
    """Whether a cell of a table was text. One with bytes that were not has halves of characters in their place."""
    return not isinstance(cell, str) or in_utf8(cell) == cell


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


# -- what a path means --


class Finder:
    """Finds the files that manifests mean, by path or, failing that, by name among the images below `root`."""

    def __init__(self, root: str, only_root: bool) -> None:
        self._root = root
        self._inside = os.path.join(root, "")
        self._only_root = only_root
        self._index: Names | None = None

    def uri(self, path: str) -> str:
        """A path relative to the root, with "/"."""
        if path.startswith(self._inside):
            relative = path[len(self._inside) :]
        else:
            try:
                relative = os.path.relpath(path, self._root)
            except ValueError:  # another drive
                relative = path
        return relative if os.sep == "/" else relative.replace(os.sep, "/")

    def bases(self, folder: str) -> list[str]:
        """The folders that a path in a manifest of `folder` can be relative to."""
        return [self._root] if self._only_root or folder == self._root else [folder, self._root]

    def scope(self, folder: str) -> str:
        """Where a manifest's names are looked for: below its own folder, "" (everywhere) if no image is there."""
        uri = self.uri(folder)
        if folder == self._root or uri.partition("/")[0] == "..":
            return ""
        return uri + "/" if any(True for _ in list_folder(folder, Options(), Counter())) else ""

    def meant(self, value: str, folder: str, beside: str) -> list[str]:
        """The uris of what a cell may mean, there or not."""
        with suppress(Unreadable):
            return [self.uri(self.find(value, folder, beside)[0])]
        paths = (os.path.join(base, way) for base in self.bases(folder) for way in _ways(value))
        return [self.uri(os.path.normpath(path)) for path in paths]

    def find(self, value: str, folder: str, beside: str) -> tuple[str, os.stat_result]:
        """The path of a file and its `stat`. Raises `Unreadable` with the reason if there is none, or several."""
        ways = _ways(value)
        reason = "no such file"
        for base in self.bases(folder):
            for way in ways:
                path = os.path.normpath(os.path.join(base, way))
                found = _stat(path)
                if found and stat.S_ISREG(found.st_mode):
                    return path, found
                if found:
                    reason = "not a file"
        uri = self._look_up(ways[-1], beside)
        path = os.path.join(self._root, uri or "")
        found = _stat(path) if uri else None
        if found is None:
            raise Unreadable(reason)
        return path, found

    def _look_up(self, value: str, beside: str) -> str | None:
        if self._index is None:
            self._index = Names(_keys)
            for entry in list_folder(self._root, Options(), Counter()):
                if not entry.reason:
                    self._index.add(entry.uri)
            self._index.sort()
        value = value.removeprefix("./")
        keys = [f"path:{beside}{value}", f"path:{value}", f"name:{value}", f"stem:{value}", _number(value)]
        below = "" if self._only_root else beside  # what a path is relative to
        for key in (*keys, f"alike:{_alike(below + value)}", f"alike:{_alike(value)}"):
            found = [uri for n in self._index.find(key) if (uri := self._index[n]).startswith(beside)]
            if len(found) > 1:
                more = ", …" if len(found) > 3 else ""
                raise Unreadable(f"{len(found)} files could be meant: {', '.join(found[:3])}{more}")
            if found:
                return found[0]
        return None


def _ways(value: str) -> list[str]:
    """A path as it is, and one written on Windows as it is meant here."""
    return [value, value.replace("\\", "/")] if "\\" in value and os.sep == "/" else [value]


def _keys(uri: str) -> list[str]:
    """What an image may be called in a manifest, besides its path."""
    name = uri.rpartition("/")[2]
    stem = stem_of(name)
    keys = [f"path:{stem_of(uri)}", f"name:{name}", f"stem:{stem}", f"alike:{_alike(uri)}", f"alike:{_alike(name)}"]
    return [*keys, number] if (number := _number(stem)) else keys


def _alike(text: str) -> str:
    """The same for names that are one on Windows or macOS: in any case, with accents as letters of their own or not."""
    return unicodedata.normalize("NFC", text).casefold()


def _number(text: str) -> str:
    """The key of a whole number, the same with and without leading zeros; "" for other text."""
    return f"number:{text.lstrip('0') or '0'}" if text.isascii() and text.isdigit() else ""


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except PermissionError as error:
        raise Unreadable(in_words(error)) from None
    except (OSError, ValueError):  # not there; a name too long, or with a NUL
        return None


# -- the rows of a manifest --

Row = tuple[int, dict[str, Any], str]  # number, cells by column, what is wrong with it


class Table(ABC):
    """An open manifest: the names of its columns, and its rows from first to last. word: what a row is called."""

    header: list[str]
    word = "row"

    @abstractmethod
    def rows(self, columns: Iterable[str]) -> Iterator[Row]:
        """The rows with (at least) these columns."""

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


def open_table(path: str, called: str) -> Table:
    """A manifest, as its suffix says. Raises `SelfsightError`, where it is `called` so, if it cannot be read."""
    suffix = _suffix(path)
    if suffix == ".parquet":
        return _Parquet(path, called)
    return _List(path) if suffix in LISTS else _Csv(path, called)


def _open_text(path: str) -> TextIO:
    """UTF-8 with or without its mark, or UTF-16 with it, as Excel writes. Other bytes are escaped: see `_is_utf8`."""
    with open_manifest(path) as file:
        wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding, errors = ("utf-16", "backslashreplace") if wide else ("utf-8-sig", "surrogateescape")
    return open(path, encoding=encoding, errors=errors, newline="")


def _lines(file: TextIO) -> Iterator[str]:
    return iter(lambda: file.readline(_LINE), "")


class _List(Table):
    """One path a line; blank lines and those that begin with `#` are passed over."""

    word = "line"

    def __init__(self, path: str) -> None:
        self.header = ["path"]
        self._file = _open_text(path)

    def rows(self, columns: Iterable[str]) -> Iterator[Row]:
        for number, line in enumerate(_lines(self._file), 1):
            text = line.strip()
            if text and not text.startswith("#"):
                yield number, {"path": text}, ""

    def close(self) -> None:
        self._file.close()


class _Csv(Table):
    """CSV or TSV. Its first row names the columns."""

    def __init__(self, path: str, called: str) -> None:
        self._file = _open_text(path)
        first = next((line for line in _lines(self._file) if line.strip()), "")
        said = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)  # Excel's own first row
        tried = said[1] if said else "\t,;" if _suffix(path) == ".tsv" else ",;\t"
        delimiter = max(tried, key=lambda d: len(next(csv.reader([first], delimiter=d), [])))
        self._file.seek(0)
        self._reader = csv.reader(_lines(self._file), delimiter=delimiter, strict=True)
        self._number, self._called = 0, called
        rows = (row for row, _ in self._read() if row)
        row = next(islice(rows, 1, None) if said else rows, None)
        if row is None:
            self.close()
            raise DataError(f"{called} is empty. Its first row is to name the columns, one of them path.")
        self.header = [in_utf8(name.strip()) for name in row]

    def _read(self) -> Iterator[tuple[list[str], str]]:
        while True:
            self._number += 1
            try:
                yield next(self._reader), ""
            except StopIteration:
                return
            except csv.Error as error:
                # Which may have taken in any number of rows.
                never = "unexpected end of data" in str(error)
                said = "a quote that is never closed, with all that follows it" if never else error
                yield [], f"not a row of CSV: {said}"

    def rows(self, columns: Iterable[str]) -> Iterator[Row]:
        places = {name: self.header.index(name) for name in columns if name in self.header}
        if double := next((name for name in places if self.header.count(name) > 1), None):
            raise DataError(f"{self._called} has {self.header.count(double)} columns {double!r}. Rename all but one.")
        width = len(self.header)
        for row, problem in self._read():
            if len(row) > width and any(cell.strip() for cell in row[width:]):
                problem = f"{len(row)} cells, where the first row has {width}"
            if row or problem:
                cells = {name: row[i] if i < len(row) else None for name, i in places.items()}
                yield self._number, cells, problem

    def close(self) -> None:
        self._file.close()


class _Parquet(Table):
    """Parquet, by batches of rows, only the columns that are needed."""

    def __init__(self, path: str, called: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._called = called
        try:
            self._file = pq.ParquetFile(open_manifest(path))
            self.header = self._file.schema_arrow.names
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{called} is not a Parquet file that can be read ({first_line(error)[:200]}).") from None

    def rows(self, columns: Iterable[str]) -> Iterator[Row]:
        import pyarrow as pa

        names = [name for name in self.header if name in set(columns)]
        for name in names:
            kind = self._file.schema_arrow.field(name).type
            if pa.types.is_nested(kind):
                raise DataError(f"Column {name!r} of {self._called} holds {str(kind)[:60]}, not text or numbers.")
        number = 0
        try:
            for batch in self._file.iter_batches(8192, columns=names):
                for cells in batch.to_pylist():
                    number += 1
                    yield number, cells, ""
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            yield number + 1, {}, f"this row and all that follow cannot be read ({first_line(error)[:200]})"

    def close(self) -> None:
        self._file.close(force=True)


def open_manifest(path: str) -> BinaryIO:
    """A manifest at its first byte. Raises `SelfsightError` with the reason."""
    if not os.path.lexists(path):
        raise DataError(f"{path} does not exist. Check its path.")
    try:
        return open_file(path)
    except Unreadable as reason:
        raise DataError(f"{path} cannot be read ({reason}).") from None
