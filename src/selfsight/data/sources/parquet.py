"""Parquet files that hold the images themselves, as the Hugging Face hub serves them: a column of {bytes, path}."""

# ruff: noqa: PTH119
# Paths are text here, as in the other sources.

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from threading import RLock
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfsight.data.formats.format import Unreadable
from selfsight.data.sources.columns import Columns, first_of, in_any_case, with_class_names
from selfsight.data.sources.names import row_uri, stem_of
from selfsight.data.sources.source import Entry, Member, Options, Source
from selfsight.data.sources.table import PATH_COLUMNS
from selfsight.errors import DataError, first_line

_SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?![a-z])")  # how the hub begins the name of a shard


class ParquetSource(Source):
    """The images in Parquet files, `STEM/00000012` by file and row, the row alone where there is one file.

    Columns of class numbers get the names that the `datasets` library keeps with the file.
    """

    kind = "parquet"

    def __init__(self, location: str, paths: list[str], root: str, options: Options) -> None:
        self.location, self.options = location, options
        self.name = os.path.basename(location.rstrip(os.sep)) if len(paths) == 1 else os.path.basename(root)
        self.others = Counter()
        stems = [stem_of(os.path.relpath(path, root).replace(os.sep, "/")) if len(paths) > 1 else "" for path in paths]
        self._paths = dict(zip(stems, paths, strict=True))
        self._open: dict[str, _File] = {}
        self._lock = RLock()

    def _file(self, stem: str) -> _File:
        with self._lock:
            if stem not in self._open:
                self._open[stem] = _File(self._paths[stem], self.options.columns.get("path"))
            return self._open[stem]

    def entries(self) -> Iterator[Entry]:
        self.others = Counter()
        for stem, path in self._paths.items():
            try:
                yield from self._listed(stem, path)
            except Unreadable as error:
                raise DataError(f"{path} {error}.") from None

    def _listed(self, stem: str, path: str) -> Iterator[Entry]:
        file = self._file(stem)
        columns = Columns(self, file.names, path)
        split = _SPLIT.match(os.path.basename(path).lower())
        known = {"split": split[1]} if split else {}
        for number, (size, cells) in enumerate(file.listed(set(columns.cells.values()))):
            uri = row_uri(stem, number)
            if self.options.wanted(uri):
                reason = "" if size else "no image in this row"
                yield Entry(uri, size, file.modified_ns, known | columns.fill(uri, cells, stem), reason)

    def open(self, uri: str) -> BinaryIO:
        stem, _, number = uri.rpartition("/")
        if stem not in self._paths or not number.isdecimal():
            raise Unreadable("not in these files any more")
        with self._lock:
            file = self._file(stem)
            return Member(file.image(int(number)), file.modified_ns)


class _File:
    """An open Parquet file. names: of its columns. Raises `Unreadable`."""

    def __init__(self, path: str, asked: str | None) -> None:
        try:
            self._file = pq.ParquetFile(path)
            self.modified_ns = os.stat(path).st_mtime_ns  # noqa: PTH116
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Unreadable(f"is not a Parquet file that can be read ({first_line(error)[:200]})") from None
        schema = self._file.schema_arrow
        self.names = list(schema.names)
        image = image_column(schema, asked)
        if image is None:
            raise Unreadable("has no column of images")
        self._image, self._classes = image, _classes(schema)
        rows = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._ends = [sum(rows[: group + 1]) for group in range(len(rows))]
        self._held: tuple[int, pa.ChunkedArray] = (-1, pa.chunked_array([], pa.binary()))

    def _bytes(self, table: pa.Table | pa.RecordBatch) -> Any:
        column = table[self._image]
        return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column

    def listed(self, names: set[str]) -> Iterator[tuple[int | None, dict[str, Any]]]:
        """Bytes of the image, None where there is none, and the cells of the columns `names`, a row at a time."""
        needed = [name for name in self.names if name in names - {self._image}]
        for name in needed:
            if pa.types.is_nested(kind := self._file.schema_arrow.field(name).type):
                raise Unreadable(f"has a column {name!r} of {str(kind)[:60]}, not of text or numbers")
        try:
            for batch in self._file.iter_batches(256, columns=[*needed, self._image]):
                sizes = pc.binary_length(self._bytes(batch)).to_pylist()
                for size, cells in zip(sizes, batch.select(needed).to_pylist(), strict=True):
                    yield size, with_class_names(cells, self._classes)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Unreadable(f"is damaged ({first_line(error)[:200]})") from None

    def image(self, number: int) -> bytes:
        """The image of a row. The row group that holds it stays in memory: the next one is often of it too."""
        group = bisect_right(self._ends, number)
        if group == len(self._ends):
            raise Unreadable("not in these files any more")
        if self._held[0] != group:
            try:
                self._held = (group, self._bytes(self._file.read_row_group(group, columns=[self._image])))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise Unreadable(f"not readable in its file: {first_line(error)[:200]}") from None
        start = self._ends[group - 1] if group else 0
        data = self._held[1][number - start].as_py()
        if data is None:
            raise Unreadable("no image in this row")
        return bytes(data)


def image_column(schema: pa.Schema, asked: str | None = None) -> str | None:
    """The column that holds images: the one that was asked for, else `image` or the first of {bytes, …}, else, where
    no column names files, the first of plain bytes. None if there is none."""
    structs = [field.name for field in schema if _is_image(field.type)]
    plain = [f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)]
    if asked is not None:
        return first_of(asked, [*structs, *plain])
    texts = [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    images = structs or ([] if any(in_any_case(name, texts) for name in PATH_COLUMNS) else plain)
    return "image" if "image" in images else next(iter(images), None)


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or "bytes" not in {kind.field(i).name for i in range(kind.num_fields)}:
        return False
    inside = kind.field("bytes").type
    return bool(pa.types.is_binary(inside) or pa.types.is_large_binary(inside))


def holds_images(path: str, asked: str | None = None) -> bool:
    """Whether a file is a Parquet with a column of images; of those, `asked` if it is named."""
    try:
        return image_column(pq.read_schema(path), asked) is not None
    except (pa.ArrowException, OSError, ValueError):
        return False


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """{column: names of its class numbers}, as the `datasets` library writes them into a file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        told = {name: f for name, f in features.items() if isinstance(f, dict)}  # lists are of several values
        return {name: f["names"] for name, f in told.items() if f.get("_type") == "ClassLabel" and f.get("names")}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
