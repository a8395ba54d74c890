"""A collection: one Lance table of items, and the features and decisions that live beside it.

The only file that touches pylance. Lance moves updated rows, so nothing here or above relies on row
position: every order derives from sorted `id`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfsight.errors import SelfsightError, first_line

FORMAT_VERSION = 1

# What is known of an item. Manifests may add columns of any other name.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),  # relative to the source
        ("content_hash", pa.string()),  # exact duplicates share it
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("channels", pa.int16()),
        ("depth", pa.int16()),  # bits per sample
        ("status", pa.string()),  # "ok" | "set_aside"
        ("reason", pa.string()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("site", pa.string()),
        ("sequence", pa.string()),
        ("frame", pa.int64()),
        ("bytes", pa.int64()),
        ("modified_ns", pa.int64()),
    ]
)
RESERVED = ("intrinsics", "boxes", "mask")


def item_id(source: str, uri: str, frame: int = 0) -> str:
    """128-bit id of an item: a hash of (source name, relative path, page or frame)."""
    text = "\0".join((source, uri, str(frame)))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


@dataclass
class Collection:
    """A table of items on disk, opened at one version.

    `path` is the Lance folder; `source` the folder that the `uri` column is relative to; `table`
    holds the rows in the order of `id`; `others` counts files that were no images.
    """

    path: Path
    source: Path
    table: pa.Table
    version: int
    others: int = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Collection:
        """Read a collection. Raises `SelfsightError` if there is none or its format is newer."""
        import lance

        path = Path(path)
        try:
            dataset = lance.dataset(str(path))
        except (ValueError, OSError) as error:
            raise SelfsightError(
                f"{path} is not a collection ({first_line(error)}). Give a folder of images, or a .lance folder."
            ) from None
        if not set(SCHEMA.names) <= set(dataset.schema.names):
            raise SelfsightError(f"{path} is a Lance table but not a collection. Give a folder of images.")
        about = {k.decode(): v.decode() for k, v in (dataset.schema.metadata or {}).items()}
        if int(about.get("format_version", FORMAT_VERSION)) > FORMAT_VERSION:
            raise SelfsightError(f"{path} was written by a newer selfsight. Run: pip install -U selfsight")
        table = dataset.to_table().sort_by("id")
        return cls(path, Path(about.get("source", "")), table, dataset.version, int(about.get("others", 0)))

    @classmethod
    def write(
        cls, path: str | os.PathLike[str], rows: pa.Table, source: str | os.PathLike[str], others: int = 0
    ) -> Collection:
        """Write `rows` (any subset of `SCHEMA`, `id` and `uri` at least, and other columns) as a new version."""
        for name in SCHEMA.names:
            if name not in rows.column_names:
                rows = rows.append_column(SCHEMA.field(name), pa.nulls(len(rows), SCHEMA.field(name).type))
        extra = [f for f in rows.schema if f.name not in SCHEMA.names]
        about = {"format_version": str(FORMAT_VERSION), "source": str(source), "others": str(others)}
        schema = pa.schema([*SCHEMA, *extra], metadata=about)
        rows = rows.select(schema.names).cast(schema).sort_by("id")
        if len(rows) != len(rows.column("id").unique()):
            raise SelfsightError("Two items share an id. Every (source, path, frame) must be listed once.")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_table(rows, path)
        return cls.open(path)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def usable(self) -> pa.Table:
        """The rows that can be read, in the order of `id`."""
        import pyarrow.compute as pc

        return self.table.filter(pc.equal(self.table["status"], "ok"))

    @property
    def set_aside(self) -> pa.Table:
        """The rows that cannot be read, with their `reason`."""
        import pyarrow.compute as pc

        return self.table.filter(pc.equal(self.table["status"], "set_aside"))

    def file(self, uri: str) -> Path:
        """The file of an item."""
        return self.source / uri

    def uri_of(self, item: str) -> str:
        """The relative path of the item with this id."""
        import pyarrow.compute as pc

        return str(self.table.filter(pc.equal(self.table["id"], item))["uri"][0].as_py())

    def id_hash(self) -> str:
        """Hash of the sorted list of usable ids and their contents: what a run pins."""
        digest = hashlib.blake2b(digest_size=16)
        usable = self.usable
        for name in ("id", "content_hash"):
            for value in usable[name].to_pylist():
                digest.update(f"{value}\n".encode())
        return digest.hexdigest()

    def folder_labels(self, rows: pa.Table | None = None) -> list[str]:
        """One label an item: the `label` column where filled, else the outermost folder of the item.

        Only verbs that were asked for labels call this. Raises `SelfsightError` when there is
        neither a label nor a sub-folder.
        """
        rows = self.usable if rows is None else rows
        labels = []
        for uri, label in zip(rows["uri"].to_pylist(), rows["label"].to_pylist(), strict=True):
            folder, *inside = Path(uri).parts
            if not label and not inside:
                raise SelfsightError(
                    f"No label for {self.file(uri)}. Put each class in a folder of its own: CLASS/image.jpg."
                )
            labels.append(label or folder)
        return labels

    # -- features, by id, in a table of their own so that nothing done to the collection loses them --

    def _features_path(self, digest: str) -> Path:
        return self.path.parent / "features" / f"{digest}.lance"

    def read_features(self, digest: str, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Features kept for `rows` from the encoder `digest`.

        Returns (known [N] bool, features [K, D] float32 of the known rows in their order). An item
        whose content changed since is not known.
        """
        import lance

        path = self._features_path(digest)
        none = np.zeros(len(rows), dtype=bool), np.zeros((0, 0), dtype=np.float32)
        if not path.exists():
            return none
        kept = lance.dataset(str(path)).to_table()
        where = {key: i for i, key in enumerate(_keys(kept))}
        found = np.array([where.get(key, -1) for key in _keys(rows)], dtype=np.int64)
        if not (found >= 0).any():
            return none
        flat = kept["features"].combine_chunks()
        matrix = flat.flatten().to_numpy(zero_copy_only=False).reshape(len(kept), -1)
        return found >= 0, matrix[found[found >= 0]].astype(np.float32)

    def add_features(self, digest: str, rows: pa.Table, features: np.ndarray) -> None:
        """Keep `features` [N, D] of `rows` under the encoder `digest`."""
        import lance

        values = pa.array(np.ascontiguousarray(features, dtype=np.float32).reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(values, features.shape[1])
        table = pa.table({"id": rows["id"], "content_hash": rows["content_hash"], "features": vectors})
        path = self._features_path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        lance.write_dataset(table, str(path), mode="append" if path.exists() else "create")

    # -- decisions of people --

    def decide(self, item: str, field: str, new: Any, by: str, old: Any = None) -> None:
        """Append one decision to the journal, on disk when this returns. Undo appends the inverse."""
        entry = {"time": time.time(), "id": item, "field": field, "old": old, "new": new, "by": by}
        with (self.path.parent / "decisions.jsonl").open("a") as journal:
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            os.fsync(journal.fileno())


def _keys(rows: pa.Table) -> list[tuple[str, str]]:
    return list(zip(rows["id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))


def write_table(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Write any table as a Lance data set."""
    import lance

    lance.write_dataset(table, str(path), mode="overwrite" if Path(path).exists() else "create")


def rows_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """A table of item dictionaries, typed by `SCHEMA`."""
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)
