"""A collection: one Lance table of items, and the features and decisions that live beside it.

Lance moves updated rows, so nothing here or above relies on row position: every order derives from sorted `id`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from selfsight.data.boxes import BOXES_TYPE, converted
from selfsight.data.decisions import Decision, Journal
from selfsight.data.features import FeatureStore
from selfsight.data.pixels import PixelFormat, common_format
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.source import KNOWN_COLUMNS, Options, Source
from selfsight.data.threads import in_one_thread
from selfsight.errors import DataError, SelfsightError, check_version
from selfsight.files import append_lance, lance_exists, open_lance, remove_rows, write_lance

if TYPE_CHECKING:
    from selfsight.files import LanceDataset

FORMAT_VERSION = 3
DROPPED = "dropped by decision"  # why an item is set aside that can be read

# What is known of an item. Manifests may add columns of any other name.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),  # relative to the source
        ("page", pa.int64()),  # page or frame of a file that holds several
        ("content_hash", pa.string()),  # exact duplicates share it
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("exif_orientation", pa.int8()),  # of EXIF or TIFF, 1 to 8: width and height are those of the upright image
        ("mode", pa.string()),  # L, RGB, … or the number of channels
        ("channels", pa.int16()),
        ("depth", pa.int16()),  # 8 or 16 bits, 32 for all that is read as float
        ("status", pa.string()),  # "ok" | "set_aside"
        ("reason", pa.string()),  # why it is set aside; of an item that is "ok" what is odd about it, "" for nothing
        ("label", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("site", pa.string()),
        ("sequence", pa.string()),
        ("frame", pa.int64()),  # place in the sequence
        ("bytes", pa.int64()),
        ("modified_ns", pa.int64()),
    ]
)
# Types of columns that have a meaning of their own; any other column is text.
RESERVED = {"intrinsics": pa.string(), "boxes": BOXES_TYPE, "mask": pa.string()}


def item_id(source: str, uri: str, page: int = 0) -> str:
    """128-bit id of an item: a hash of (source name, relative path, page or frame)."""
    text = "\0".join((source, uri, str(page)))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def schema_with(columns: Iterable[str]) -> pa.Schema:
    """`SCHEMA` and the columns beyond it that a source was told to fill."""
    extra = [pa.field(name, RESERVED.get(name, pa.string())) for name in columns if name not in (*SCHEMA.names, "path")]
    return pa.schema([*SCHEMA, *extra])


@dataclass
class About:
    """What is known of a collection as a whole, stored with its table.

    location: of the source.
    options: how the source was listed.
    others: how many files are not images, by suffix, and what else was left out.
    listing: hash of the source's listing, by which an unchanged source is recognised.
    forgotten: ids that were removed for good and must not come back.
    contradicted: {uri: which row gives it which label} of items without a label because the rows of a table differ.
    aside: {which annotation: why it is not used}.
    """

    location: str
    options: Options = field(default_factory=Options)
    others: dict[str, int] = field(default_factory=dict)
    listing: str = ""
    forgotten: list[str] = field(default_factory=list)
    contradicted: dict[str, str] = field(default_factory=dict)
    aside: dict[str, str] = field(default_factory=dict)

    @property
    def blanks(self) -> dict[str, int]:
        """Of `others`, the cells that mean "not known" and how many said so: {"label NA": 7}."""
        return {said: n for said, n in self.others.items() if said.partition(" ")[0] in KNOWN_COLUMNS}

    @property
    def files(self) -> dict[str, int]:
        """Of `others`, the files that are not images, by suffix."""
        return {suffix: n for suffix, n in self.others.items() if suffix not in self.blanks}

    def to_metadata(self) -> dict[str, str]:
        """Texts, for a schema."""
        values = {"location": self.location, "options": self.options.to_dict(), "others": self.others}
        values |= {"listing": self.listing, "forgotten": self.forgotten, "contradicted": self.contradicted}
        values |= {"aside": self.aside} if self.aside else {}
        return {"format_version": str(FORMAT_VERSION), "selfsight": json.dumps(values)}

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes]) -> About:
        """What `to_metadata` gave; also what version 1 wrote."""
        if b"selfsight" not in metadata:
            return cls(metadata.get(b"source", b"").decode(), others={"": int(metadata.get(b"others", b"0"))})
        values = json.loads(metadata[b"selfsight"])
        return cls(**values | {"options": Options.from_dict(values["options"])})


class Collection:
    """A table of items on disk, opened at one version. `path` is the Lance folder."""

    def __init__(self, path: Path, dataset: LanceDataset) -> None:
        self.path = path
        self.version: int = dataset.version
        self.about = About.from_metadata(dataset.schema.metadata or {})
        self._dataset = dataset

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Collection:
        """Read a collection. Raises `SelfsightError` if there is none or its format is newer."""
        path = Path(path)
        if not lance_exists(path):
            raise DataError(f"{path} is not a collection. Give a folder of images, or a .lance collection.")
        dataset = open_lance(path)
        if not {"id", "uri", "status", "reason"} <= set(dataset.schema.names):
            raise DataError(f"{path} is a Lance table but not a collection. Give a folder of images.")
        check_version(int((dataset.schema.metadata or {}).get(b"format_version", b"1")), FORMAT_VERSION, path)
        return cls(path, dataset)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a table was ever committed at `path`; a kill may leave a folder without one."""
        return lance_exists(path)

    @classmethod
    def write(
        cls, path: str | os.PathLike[str], rows: pa.Table | Iterable[pa.RecordBatch], schema: pa.Schema, about: About
    ) -> Collection:
        """Write `rows`, whole or as a stream of batches with the columns of `schema`, as a new version."""
        schema = schema.with_metadata(about.to_metadata())
        batches = rows.cast(schema).to_batches() if isinstance(rows, pa.Table) else rows
        reader = pa.RecordBatchReader.from_batches(schema, in_one_thread(batch.cast(schema) for batch in batches))
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_lance(reader, path)
        return cls.open(path)

    @classmethod
    def append(cls, path: str | os.PathLike[str], rows: pa.Table, about: About) -> None:
        """Add `rows` to a collection, which begins with them if there is none."""
        append_lance(rows.replace_schema_metadata(about.to_metadata()), path)

    # -- the rows --

    def __len__(self) -> int:
        return int(self._dataset.count_rows())

    def count(self, status: str) -> int:
        """How many rows have this status."""
        return int(self._dataset.count_rows(filter=f"status = '{status}'"))

    def batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows in the order in which they lie, a few thousand at a time."""
        elder = _has_elder_boxes(self._dataset.schema) and (columns is None or "boxes" in columns)
        asked = list(dict.fromkeys([*(columns or self.columns), "width", "height"])) if elder else columns
        for batch in self._dataset.to_batches(columns=asked, batch_size=8192):
            yield _with_boxes_of_today(batch).select(columns or self.columns) if elder else batch

    def take(self, positions: np.ndarray) -> pa.Table:
        """The rows at these positions of `batches()`."""
        return _with_boxes_of_today(self._dataset.take(positions.tolist()))

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._dataset.schema.names)

    @cached_property
    def table(self) -> pa.Table:
        """All rows in memory, in the order of `id`. Items that people dropped are set aside."""
        table = _with_boxes_of_today(self._dataset.to_table().sort_by("id"))
        if "mode" not in table.column_names:  # version 1: files of one image, grey or RGB
            grey = pc.equal(table["channels"], 1)
            table = table.append_column("mode", pc.if_else(grey, "L", "RGB"))
            table = table.append_column("page", pa.nulls(len(table), pa.int64()))
        return _without(table, self._drops)

    @cached_property  # read once, so that a verb sees the same items from its start to its end
    def _drops(self) -> list[Decision]:
        """The last decision about dropping each item."""
        return list(self.decisions.latest("drop").values())

    @property
    def decided(self) -> float:
        """The time of the last decision on which it depends which items are usable; 0 for none."""
        return max((decision.time for decision in self._drops), default=0.0)

    def deciding(self, counts: Callable[[Decision], bool]) -> Collection:
        """The same items, where only the decisions count of which `counts` is true."""
        other = Collection(self.path, self._dataset)
        other.decisions = Journal(self.path, counts)
        return other

    @property
    def usable(self) -> pa.Table:
        """The rows that can be read and that nobody dropped, in the order of `id`."""
        return self.table.filter(pc.equal(self.table["status"], "ok"))

    @property
    def set_aside(self) -> pa.Table:
        """The rows that cannot be read, with their `reason`, and those that people dropped."""
        return self.table.filter(pc.equal(self.table["status"], "set_aside"))

    @property
    def unreadable(self) -> pa.Table:
        """The rows that cannot be read, with their `reason`."""
        return self.set_aside.filter(pc.not_equal(self.set_aside["reason"], DROPPED))

    def reasons(self, more: Iterable[str] = ()) -> dict[str, int]:
        """Why items are set aside and how many for each, the most frequent first; `more`: of those that were set aside
        later, while they were decoded."""
        return dict(Counter([*self.set_aside["reason"].to_pylist(), *more]).most_common())

    @property
    def oddities(self) -> dict[str, list[str]]:
        """What is odd about items that are used all the same, and their uris."""
        odd: dict[str, list[str]] = {}
        for batch in self.batches(["uri", "status", "reason"]):
            used = batch.filter(pc.and_(pc.equal(batch["status"], "ok"), pc.not_equal(batch["reason"], "")))
            for uri, note in zip(used["uri"].to_pylist(), used["reason"].to_pylist(), strict=True):
                odd.setdefault(note, []).append(uri)
        return odd

    @property
    def contradictions(self) -> str:
        """Which items have no label because the rows of a table differ, as a sentence without its full stop; "" if none
        has."""
        said = sorted(self.about.contradicted.items())
        if not said:
            return ""
        shown = "; ".join(f"{uri} is {rows}" for uri, rows in said[:3]) + ("; …" if len(said) > 3 else "")
        found = "1 item is" if len(said) == 1 else f"{len(said):,} items are"
        return (
            f"{found} listed with different labels and left without one: {shown}. "
            "Leave one row for each, or write several labels in one, as a|b"
        )

    @property
    def others(self) -> int:
        """How many files of the source are not images."""
        return sum(self.about.files.values())

    @cached_property
    def source(self) -> Source:
        """Where the items are read from. Raises `SelfsightError` if it is not there any more."""
        try:
            return make_source(self.about.location, self.about.options)
        except SelfsightError as error:
            raise DataError(f"{self.path} was imported from what is not there any more: {error}") from None

    @property
    def pixel_format(self) -> PixelFormat:
        """The form in which the usable items meet."""
        usable = self.usable
        return common_format(usable["mode"].to_pylist(), usable["depth"].to_pylist())

    def uri_of(self, item: str) -> str:
        """The relative path of the item with this id."""
        return str(self.table.filter(pc.equal(self.table["id"], item))["uri"][0].as_py())

    def id_hash(self, rows: pa.Table | None = None) -> str:
        """Hash of the sorted ids of `rows` (the usable items if not given) and of their contents: what a run pins."""
        digest = hashlib.blake2b(digest_size=16)
        rows = self.usable if rows is None else rows.sort_by("id")
        for name in ("id", "content_hash"):
            for value in rows[name].to_pylist():
                digest.update(f"{value}\n".encode())
        return digest.hexdigest()

    # -- features --

    @property
    def features(self) -> FeatureStore:
        """The features kept beside the table."""
        return FeatureStore(self.path)

    @cached_property
    def decisions(self) -> Journal:
        """What people decided of the items."""
        return Journal(self.path)

    # -- removal for good --

    def remembered(self, ids: set[str]) -> set[str]:
        """Those of `ids` that features, an older version of the table or the journal still hold, row or no row."""
        found = self.features.remembered(ids)
        for version in self._dataset.versions():
            for batch in open_lance(self.path, version["version"]).to_batches(columns=["id"]):
                found |= ids.intersection(batch["id"].to_pylist())
        return found | self.decisions.remembered(ids)

    def of_group(self, group: str) -> dict[str, str]:
        """{id: uri} of a group, in this version of the table or an older one: with the rows of files that are gone, but
        without items that are in another group now."""
        found: dict[str, str] = {}
        here = self.table.select(["id", "group"])
        moved = set(here.filter(pc.not_equal(here["group"], group))["id"].to_pylist())  # no group now: not moved
        for version in self._dataset.versions():
            for batch in open_lance(self.path, version["version"]).to_batches(columns=["id", "uri", "group"]):
                rows = batch.filter(pc.equal(batch["group"], group))
                found |= zip(rows["id"].to_pylist(), rows["uri"].to_pylist(), strict=True)
        return {item: uri for item, uri in found.items() if item not in moved}

    def holding(self, ids: set[str], contents: set[str]) -> dict[str, str]:
        """{id: uri} of the items that have one of these ids or one of these hashes of a content."""
        found: dict[str, str] = {}
        for batch in self.batches(["id", "uri", "content_hash"]):
            same = pc.is_in(batch["content_hash"], pa.array(sorted(contents), pa.string()))
            rows = batch.filter(pc.or_(pc.is_in(batch["id"], pa.array(sorted(ids), pa.string())), same))
            found |= zip(rows["id"].to_pylist(), rows["uri"].to_pylist(), strict=True)
        return found

    def forget(self, ids: Sequence[str]) -> Collection:
        """Rewrite the table, the features and the journal without `ids`, and remove every older version of them.

        The ids themselves are kept in `about.forgotten`, so that a new import does not bring the items back.
        """
        gone = pa.array(sorted(set(ids)), pa.string())
        about = self.about
        about.forgotten = sorted({*about.forgotten, *gone.to_pylist()})
        names = set(self.table.filter(pc.is_in(self.table["id"], gone))["uri"].to_pylist())
        about.contradicted = {uri: said for uri, said in about.contradicted.items() if uri not in names}
        about.aside = {of: why for of, why in about.aside.items() if of.partition(", annotation")[0] not in names}
        self.features.forget(gone)
        self.decisions.forget(set(ids))
        remove_rows(self.path, gone, about.to_metadata())  # last: what stopped before it can be asked for again
        return Collection.open(self.path)


def _without(table: pa.Table, drops: list[Decision]) -> pa.Table:
    """`table`, where items that were dropped are set aside, unless what is there now was not looked at."""
    dropped = {one.id: one.content_hash for one in drops if one.new is True}
    usable = pc.equal(table["status"], "ok")
    asked = pc.and_(usable, pc.is_in(table["id"], pa.array(list(dropped), pa.string()))).to_numpy()
    here = table.select(["id", "content_hash"]).filter(pa.array(asked)).to_pylist()
    asked[asked] = [dropped[row["id"]] in (None, row["content_hash"]) for row in here]
    if not asked.any():
        return table
    for name, value in (("status", "set_aside"), ("reason", DROPPED)):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pc.if_else(pa.array(asked), value, table[name]))
    return table


def _has_elder_boxes(schema: pa.Schema) -> bool:
    """Whether boxes are as version 2 wrote them."""
    return "boxes" in schema.names and schema.field("boxes").type.value_type.get_field_index("width") >= 0


def _with_boxes_of_today(rows: Any) -> Any:
    """A table or batch whose boxes are in pixels, whatever version wrote them."""
    if not _has_elder_boxes(rows.schema):
        return rows
    boxes = converted(rows["boxes"], rows["width"].to_pylist(), rows["height"].to_pylist())
    return rows.set_column(rows.schema.names.index("boxes"), "boxes", boxes)
