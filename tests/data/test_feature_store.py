"""The store of features: by id and content, bit for bit, whatever happens beside it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from selfsight.data.collection import SCHEMA, About, Collection
from selfsight.data.features import PIECE, FeatureStore, Key
from selfsight.data.geometry import Geometry
from selfsight.errors import SelfsightError
from selfsight.files import append_lance, as_vectors

GEOMETRY = Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.2,) * 3)
KEY = Key("enc", "pooled", GEOMETRY)


def rows_of(ids: list[str], contents: list[str | None] | None = None) -> pa.Table:
    return pa.table({"id": ids, "content_hash": contents or [f"c{i}" for i in ids]})


def random_rows(count: int, seed: int) -> tuple[pa.Table, np.ndarray]:
    """Items with ids as they are in reality, in no order, and features of which each bit counts."""
    rng = np.random.default_rng(seed)
    ids = [rng.bytes(16).hex() for _ in range(count)]
    features = rng.integers(0, 2**32, (count, 5), dtype=np.uint32).view(np.float32)
    return rows_of(ids), features


def slow(kept: list[tuple[pa.Table, np.ndarray]], rows: pa.Table) -> tuple[list[bool], list[bytes]]:
    """The join as a dict of Python objects."""
    where = {}
    for table, features in kept:
        for item, content, feature in zip(
            *(table[n].to_pylist() for n in ("id", "content_hash")), features, strict=True
        ):
            where.setdefault((item, content), feature.tobytes())
    found = [where.get(k) for k in zip(rows["id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True)]
    return [f is not None for f in found], [f for f in found if f is not None]


@pytest.mark.parametrize("wanted", [20, 3000, 3 * PIECE])  # a few rows alone, and all of them in pieces
def test_the_join_is_that_of_a_dict(tmp_path: Path, wanted: int):
    store = FeatureStore(tmp_path / "c.lance")
    kept = [random_rows(count, seed) for seed, count in enumerate((PIECE + 7, 2 * PIECE))]
    for table, features in kept:
        store.add(KEY, table, features)
    everything = pa.concat_tables([table for table, _ in kept] + [random_rows(50, 9)[0]])
    chosen = np.random.default_rng(5).permutation(len(everything))[:wanted]
    rows = everything.take(chosen)
    content = rows["content_hash"].to_pylist()
    content[3] = "another"  # of an item that was changed since
    rows = rows.set_column(1, "content_hash", pa.array(content))
    known, features = store.read(KEY, rows)
    truth, vectors = slow(kept, rows)
    assert known.tolist() == truth and 3 not in np.flatnonzero(known)
    assert features.dtype == np.float32 and [f.tobytes() for f in features] == vectors


def test_features_come_back_by_id_and_survive_a_rewrite_of_the_collection(tmp_path: Path):
    def write(ids: list[str]) -> Collection:
        rows = [{"id": i, "uri": i, "content_hash": f"c{i}", "status": "ok", "reason": ""} for i in ids]
        return Collection.write(tmp_path / "c.lance", pa.Table.from_pylist(rows, SCHEMA), SCHEMA, About("/photos"))

    collection = write(["b", "a", "d", "c"])
    features = np.arange(12, dtype=np.float32).reshape(4, 3)
    collection.features.add(KEY, collection.table.take([2, 0]), features[[2, 0]])  # c, a
    collection.features.add(KEY, collection.table.take([3]), features[[3]])  # d
    rewritten = write(["e", "d", "c", "b", "a"])
    known, kept = rewritten.features.read(KEY, rewritten.usable)
    assert known.tolist() == [True, False, True, True, False]  # a b c d e
    assert (kept == features[[0, 2, 3]]).all()
    assert rewritten.features.folder == tmp_path / "c.features"


def test_each_encoder_kind_and_geometry_has_its_own(tmp_path: Path):
    store, rows = FeatureStore(tmp_path / "c.lance"), rows_of(["a"])
    keys = [
        KEY, replace(KEY, digest="other"), replace(KEY, kind="patches"),
        replace(KEY, geometry=replace(GEOMETRY, size=64)),
    ]  # fmt: skip
    for number, key in enumerate(keys[:-1]):
        store.add(key, rows, np.full((1, 2 + number), number, np.float32))
    for number, key in enumerate(keys[:-1]):
        assert (store.read(key, rows)[1] == np.full((1, 2 + number), number)).all()
    assert not store.read(keys[-1], rows)[0].any()


def test_of_changed_content_the_new_one_is_read(tmp_path: Path):
    store = FeatureStore(tmp_path / "c.lance")
    store.add(KEY, rows_of(["a", "b"]), np.ones((2, 3), np.float32))
    changed = rows_of(["a", "b"], ["ca", "new"])
    assert store.read(KEY, changed)[0].tolist() == [True, False]
    store.add(KEY, changed.slice(1), np.full((1, 3), 2, np.float32))
    known, kept = store.read(KEY, changed)
    assert known.all() and kept[:, 0].tolist() == [1.0, 2.0]


def test_items_without_a_hash_are_told_apart_by_id(tmp_path: Path):
    store = FeatureStore(tmp_path / "c.lance")
    store.add(KEY, rows_of(["a", "b"], [None, "cb"]), np.array([[1.0], [2.0]], np.float32))
    known, kept = store.read(KEY, rows_of(["b", "a", "c"], [None, None, None]))
    assert known.tolist() == [False, True, False] and kept.tolist() == [[1.0]]


def test_patches_come_back_as_they_were(tmp_path: Path):
    store, key = FeatureStore(tmp_path / "c.lance"), replace(KEY, kind="patches")
    patches = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    store.add(key, rows_of(["a", "b", "c"]), patches)
    assert (store.read(key, rows_of(["c", "a"]))[1] == patches[[2, 0]]).all()


def test_what_older_versions_wrote_is_read_and_added_to(tmp_path: Path):
    store, rows = FeatureStore(tmp_path / "c.lance"), rows_of(["a", "b", "c"])
    old = np.array([[1.5, 2.5], [3.5, 4.5]], np.float32)
    table = pa.table({"id": ["b", "a"], "content_hash": ["cb", "ca"], "features": as_vectors(old)})
    append_lance(table, tmp_path / "features" / "enc.lance")
    known, kept = store.read(KEY, rows)
    assert known.tolist() == [True, True, False] and (kept == old[[1, 0]]).all()
    assert not store.read(replace(KEY, kind="patches"), rows)[0].any()
    store.add(KEY, rows.slice(2), np.array([[9, 9]], np.float32))
    known, kept = store.read(KEY, rows)
    assert known.all() and kept.tolist() == [[3.5, 4.5], [1.5, 2.5], [9, 9]]


def test_both_places_are_remembered_and_forgotten(tmp_path: Path):
    store = FeatureStore(tmp_path / "c.lance")
    append_lance(
        pa.table({"id": ["a", "b"], "content_hash": ["ca", "cb"], "features": as_vectors(np.eye(2))}),
        tmp_path / "features" / "enc.lance",
    )
    lance.write_dataset(pa.table({"id": ["a"]}), str(tmp_path / "features" / "mine.lance"))  # somebody else's
    store.add(KEY, rows_of(["c", "d"]), np.array([[1234.5678, 0], [1, 2]], np.float32))
    assert store.remembered({"a", "c", "x"}) == {"a", "c"}
    store.forget(pa.array(["a", "c"]))
    assert store.remembered({"a", "b", "c", "d"}) == {"b", "d"}
    assert store.read(KEY, rows_of(["a", "b", "c", "d"]))[0].tolist() == [False, True, False, True]
    trace = np.float32(1234.5678).tobytes()
    assert not any(trace in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert lance.dataset(str(tmp_path / "features" / "mine.lance")).to_table()["id"].to_pylist() == ["a"]


def test_a_table_of_a_newer_version_is_refused(tmp_path: Path):
    store, rows = FeatureStore(tmp_path / "c.lance"), rows_of(["a"])
    table = pa.table({"id": ["a"], "content_hash": ["ca"], "features": as_vectors(np.eye(1))})
    append_lance(table.replace_schema_metadata({"format_version": "99"}), store.folder / KEY.name)
    with pytest.raises(SelfsightError, match="newer selfsight"):
        store.read(KEY, rows)


WRITER = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from selfsight.data.features import FeatureStore, Key
from selfsight.data.geometry import Geometry
key = Key("enc", "pooled", Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.2,) * 3))
ids = [f"{i:032x}" for i in range(500)]
rows = pa.table({"id": ids, "content_hash": ids})
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, 500, 100):
    features = np.arange(start, start + 100, dtype=np.float32)[:, None].repeat(3, 1)
    FeatureStore(Path(sys.argv[1])).add(key, rows.slice(start, 100), features)
"""


def test_two_processes_that_keep_the_same_items_give_one_row_each(tmp_path: Path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "c.lance")]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:  # both begin a table that is not there yet
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    ids = [f"{i:032x}" for i in range(500)]
    known, kept = FeatureStore(tmp_path / "c.lance").read(KEY, rows_of(ids, ids))
    assert known.all() and (kept == np.arange(500)[:, None]).all() and kept.shape == (500, 3)
