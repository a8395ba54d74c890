"""The features kept beside a collection: `X.features/` of `X.lance`, one Lance table for an encoder, a kind and a
geometry, joined to items by id and content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from selfsight.data.geometry import Geometry
from selfsight.data.manifest import before, beside
from selfsight.errors import check_version
from selfsight.files import append_lance, as_vectors, lance_exists, open_lance, remove_rows, to_numpy, write_whole

if TYPE_CHECKING:
    from selfsight.files import LanceDataset

FORMAT_VERSION = 1
COLUMNS = {"id", "content_hash", "features"}
PIECE = 8192  # rows of vectors in memory beside the result
FEW = 8  # where fewer than one row in so many is wanted, those alone are read


@dataclass(frozen=True)
class Key:
    """What identifies a table of features.

    digest: of the encoder.
    kind: `pooled` or `patches`.
    geometry: of the encoder's inputs.
    """

    digest: str
    kind: str
    geometry: Geometry

    @property
    def name(self) -> str:
        """Name of the table."""
        return f"{self.digest}-{self.kind}-{self.geometry.key}.lance"

    @property
    def elder(self) -> str | None:
        """Name of the table in which the first release kept the same; None where they did not."""
        return f"{self.digest}.lance" if self.geometry.rule == "squash" and self.kind == "pooled" else None


class FeatureStore:
    """The features kept beside the collection at `collection`, in a folder of their own, so that nothing done to the
    collection loses them. What older versions kept, in `features/` of the folder the collection is in, is read."""

    def __init__(self, collection: Path) -> None:
        self.folder = beside(collection, ".features")
        self.elder = before(collection, ".features")

    def read(self, key: Key, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Features kept for `rows` under a key.

        Returns (known [N] bool, features [K, …] float32 of the known rows in their order). An item whose content
        changed since is not known. Raises `SelfsightError` for a table of a newer version.
        """
        known = np.zeros(len(rows), dtype=bool)
        out: np.ndarray | None = None
        for path in self._paths(key):
            dataset = _open(path)
            found = _places(rows, dataset, known)
            fresh = np.flatnonzero(found >= 0)
            if not len(fresh):
                continue
            known[fresh] = True
            if out is None:
                out = np.zeros((len(rows), *_shape(dataset)), dtype=np.float32)
            _fill(out, fresh, found[fresh], dataset)
        if out is None:
            return known, np.zeros((0, 0), dtype=np.float32)
        return known, out if known.all() else out[known]

    def add(self, key: Key, rows: pa.Table, features: np.ndarray, licence: str = "") -> None:
        """Keep `features` [N, …] of `rows` under a key; of rows that are there already, either may be read.

        `licence` of the encoder is written beside them.
        """
        about = {"format_version": str(FORMAT_VERSION), "digest": key.digest, "kind": key.kind, "licence": licence}
        columns = {"id": rows["id"], "content_hash": rows["content_hash"], "features": as_vectors(features)}
        append_lance(pa.table(columns).replace_schema_metadata(about), self.folder / key.name)

    def remembered(self, ids: set[str]) -> set[str]:
        """Those of `ids` of which features are kept."""
        found: set[str] = set()
        wanted = pa.array(sorted(ids), pa.string())
        for path in self._tables():
            for batch in open_lance(path).to_batches(columns=["id"]):
                found |= set(batch["id"].filter(pc.is_in(batch["id"], wanted)).to_pylist())
        return found

    @property
    def folders(self) -> list[Path]:
        """The folders in which features are kept."""
        return sorted({path.parent for path in self._tables()})

    def forget(self, ids: pa.Array) -> None:
        """Rewrite every table without `ids`, and remove every older version of them, and the graphs."""
        for path in self._tables():
            remove_rows(path, ids)
        for path in self.folder.glob("*-neighbours-*.safetensors"):
            path.unlink(missing_ok=True)

    def read_graph(self, name: str, k: int, items: str) -> dict[str, np.ndarray] | None:
        """The arrays of the graph of `k` neighbours kept under a name; None if it is not of these `items`, a hash."""
        try:
            with safe_open(self._graph(name, k), framework="numpy") as file:
                if (file.metadata() or {}).get("items") != items:
                    return None
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def keep_graph(self, name: str, k: int, items: str, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays of a graph in place of one that was kept under that name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._graph(name, k), safetensors.numpy.save(arrays, {"items": items}))

    def _graph(self, name: str, k: int) -> Path:
        return self.folder / f"{name}-neighbours-{k}.safetensors"

    def _paths(self, key: Key) -> list[Path]:
        """The tables there are for a key, the present version's first."""
        paths = [self.folder / key.name]
        if self.elder and key.elder:
            paths.append(self.elder / key.elder)
        return [path for path in paths if lance_exists(path)]

    def _tables(self) -> list[Path]:
        """All tables of ours, of this version and of older ones; not what somebody else put there."""
        paths = [path for folder in (self.folder, self.elder) if folder for path in sorted(folder.glob("*.lance"))]
        return [path for path in paths if lance_exists(path) and set(open_lance(path).schema.names) == COLUMNS]


def _open(path: Path) -> LanceDataset:
    dataset = open_lance(path)
    check_version(int((dataset.schema.metadata or {}).get(b"format_version", b"1")), FORMAT_VERSION, path)
    return dataset


def _places(rows: pa.Table, dataset: LanceDataset, known: np.ndarray) -> np.ndarray:
    """Where in a table each of `rows` is, [N], -1 for those that are not there or are `known` already."""
    kept = _names(dataset.to_table(columns=["id", "content_hash"]))
    found = pc.fill_null(pc.index_in(_names(rows), value_set=kept), -1).to_numpy(zero_copy_only=False)
    return np.where(known, -1, found)


def _names(rows: pa.Table) -> pa.Array:
    """Id and content of each row in one text."""
    parts = [pc.fill_null(rows[name].cast(pa.large_string()), "") for name in ("id", "content_hash")]
    joined = pc.binary_join_element_wise(*parts, pa.scalar(" ", pa.large_string()))
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _shape(dataset: LanceDataset) -> tuple[int, ...]:
    """Of the features of one item."""
    type, sides = dataset.schema.field("features").type, []
    while pa.types.is_fixed_size_list(type):
        sides.append(type.list_size)
        type = type.value_type
    return tuple(sides)


def _fill(out: np.ndarray, rows: np.ndarray, places: np.ndarray, dataset: LanceDataset) -> None:
    """Put the features at `places` of a table into the `rows` of `out`, a piece at a time."""
    order = np.argsort(places, kind="stable")
    rows, places = rows[order], places[order]
    for first, features in _pieces(dataset, places):
        low, high = np.searchsorted(places, [first[0], first[-1] + 1])
        out[rows[low:high]] = features[np.searchsorted(first, places[low:high])]


def _pieces(dataset: LanceDataset, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places in a table, their features), a piece at a time, in which all of the sorted `places` come."""
    total, wanted = dataset.count_rows(), np.unique(places)
    if len(wanted) * FEW < total:
        for start in range(0, len(wanted), PIECE):
            some = wanted[start : start + PIECE]
            yield some, to_numpy(dataset.take(some.tolist(), columns=["features"])["features"])
        return
    at = 0
    for batch in dataset.to_batches(columns=["features"], batch_size=PIECE, batch_readahead=2, fragment_readahead=1):
        yield np.arange(at, at + len(batch)), to_numpy(pa.chunked_array([batch["features"]]))
        at += len(batch)
