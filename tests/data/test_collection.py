"""The table of items: identity, order, features by id."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from selfsight.data.collection import SCHEMA, About, Collection, item_id
from selfsight.data.features import Key
from selfsight.data.geometry import Geometry
from selfsight.data.importers import open_source
from selfsight.data.sources.source import Options
from selfsight.errors import SelfsightError

KEY = Key("enc", "pooled", Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.2,) * 3))


def rows_of(ids: list[str], **columns: list) -> pa.Table:
    rows = [{"id": i, "uri": f"{i}.png", "content_hash": f"c{i}", "status": "ok", "reason": ""} for i in ids]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def write(path: Path, rows: pa.Table) -> Collection:
    return Collection.write(path, rows, rows.schema, About("/photos"))


def test_item_id_is_a_hash_of_source_path_and_frame():
    assert item_id("photos", "a/b.png") == hashlib.blake2b(b"photos\0a/b.png\x000", digest_size=16).hexdigest()
    near = [("photos", "a/b.png", 1), ("photo", "sa/b.png", 0), ("photos", "a/c.png", 0), ("other", "a/b.png", 0)]
    assert len({item_id(*x) for x in near} | {item_id("photos", "a/b.png")}) == 5


def test_ids_are_stable_when_the_folder_is_exported_again_elsewhere(images: Callable[..., Path], tmp_path: Path):
    folder = images(6)
    again = tmp_path / "elsewhere" / "photos"
    shutil.copytree(folder, again, copy_function=shutil.copyfile)  # new times, same content
    one, two = open_source(folder, tmp_path / "1.lance"), open_source(again, tmp_path / "2.lance")
    for column in ("id", "uri", "content_hash"):
        assert one.table[column].to_pylist() == two.table[column].to_pylist()
    assert one.id_hash() == two.id_hash()
    assert one.table["id"].to_pylist()[0] == min(item_id("photos", uri) for uri in one.table["uri"].to_pylist())


def test_exact_duplicates_share_the_content_hash_and_not_the_id(images: Callable[..., Path], tmp_path: Path):
    folder = images(3)
    shutil.copyfile(folder / "000.png", folder / "copy.png")
    table = open_source(folder, tmp_path / "c.lance").table
    content = dict(zip(table["uri"].to_pylist(), table["content_hash"].to_pylist(), strict=True))
    assert content["copy.png"] == content["000.png"]
    assert content["000.png"] == hashlib.blake2b((folder / "000.png").read_bytes(), digest_size=16).hexdigest()
    assert len(set(content.values())) == 3
    assert len(set(table["id"].to_pylist())) == 4


def test_order_is_by_id_whatever_lance_does_to_its_rows(tmp_path: Path):
    collection = write(tmp_path / "c.lance", rows_of(["3", "1", "2"]))
    assert collection.table["id"].to_pylist() == ["1", "2", "3"]
    lance.dataset(str(collection.path)).update({"label": "'moved'"}, where="id = '1'")
    stored = lance.dataset(str(collection.path)).to_table()["id"].to_pylist()
    assert stored != ["1", "2", "3"], "Lance no longer moves updated rows; this test proves nothing"
    again = Collection.open(collection.path)
    assert again.table["id"].to_pylist() == ["1", "2", "3"]
    assert again.table["label"].to_pylist() == ["moved", None, None]


def test_other_columns_of_a_manifest_are_kept(tmp_path: Path):
    rows = rows_of(["1", "2"]).append_column("camera", pa.array(["x", "y"]))
    assert write(tmp_path / "c.lance", rows).table["camera"].to_pylist() == ["x", "y"]


def test_id_hash_depends_on_ids_and_contents_of_usable_items_only(tmp_path: Path):
    def hash_of(name: str, **columns: list) -> str:
        return write(tmp_path / f"{name}.lance", rows_of(["1", "2", "3"], **columns)).id_hash()

    base = hash_of("a")
    assert hash_of("b", label=["x", "y", "z"]) == base
    assert hash_of("c", content_hash=["c1", "c2", "other"]) != base
    assert hash_of("d", status=["ok", "ok", "set_aside"]) != base
    one = write(tmp_path / "e.lance", rows_of(["1", "2"]))
    assert hash_of("f", status=["ok", "ok", "set_aside"]) == one.id_hash()


def test_what_is_no_collection_is_said_in_one_sentence(tmp_path: Path):
    (tmp_path / "x.lance").mkdir()
    with pytest.raises(SelfsightError, match="is not a collection"):
        Collection.open(tmp_path / "x.lance")
    with pytest.raises(SelfsightError, match="is not a collection"):
        Collection.open(tmp_path / "none.lance")


def test_a_newer_format_is_refused(tmp_path: Path):
    table = rows_of(["1"]).replace_schema_metadata({"format_version": "99"})
    lance.write_dataset(table, str(tmp_path / "c.lance"))
    with pytest.raises(SelfsightError, match="newer selfsight"):
        Collection.open(tmp_path / "c.lance")


def test_what_a_collection_says_of_itself_survives(tmp_path: Path):
    options = Options(("a/*",), ("b",), {"label": "{0}"}, "/root", None)
    about = About("/photos", options, {".txt": 3}, "hash", ["1"])
    rows = rows_of(["1"])
    assert Collection.write(tmp_path / "c.lance", rows, rows.schema, about).about == about


def test_version_1_is_read(tmp_path: Path):
    """As the first release wrote it: no mode, no page, the folder in the metadata."""
    table = rows_of(["1", "2"], channels=[1, 3]).drop_columns(["mode", "page"])
    table = table.replace_schema_metadata({"format_version": "1", "source": str(tmp_path), "others": "4"})
    lance.write_dataset(table, str(tmp_path / "c.lance"))
    old = Collection.open(tmp_path / "c.lance")
    assert old.table["mode"].to_pylist() == ["L", "RGB"] and old.table["page"].to_pylist() == [None, None]
    assert old.about.location == str(tmp_path) and old.others == 4


def test_boxes_of_version_2_are_read_in_pixels(tmp_path: Path):
    """Centre and size as parts of the image, in float32, as 0.1's first collections hold them."""
    names = ("x", "y", "width", "height")
    elder = pa.list_(pa.struct([("label", pa.string()), *((name, pa.float32()) for name in names)]))
    boxes = [[{"label": "a", "x": 0.5, "y": 0.25, "width": 0.5, "height": 0.5}], None, []]
    rows = rows_of(["2", "1", "3"], width=[200, None, 50], height=[100, None, 50]).drop_columns(["exif_orientation"])
    about = About("/photos", Options(columns={"boxes": "b"})).to_metadata() | {"format_version": "2"}
    rows = rows.append_column("boxes", pa.array(boxes, elder)).replace_schema_metadata(about)
    lance.write_dataset(rows, str(tmp_path / "c.lance"))
    box = {"label": "a", "x0": 50.0, "y0": 0.0, "x1": 150.0, "y1": 50.0}
    box |= {"iscrowd": False, "difficult": False, "truncated": False}
    for change in (lambda items: items, lambda items: items.forget(["3"])):  # which rewrites the table
        items = change(Collection.open(tmp_path / "c.lance"))
        assert items.table["boxes"].to_pylist()[:2] == [None, [box]]
        assert [b["boxes"].to_pylist()[:2] for b in items.batches(["boxes"])] == [[[box], None]]
        assert items.take(np.array([0]))["boxes"].to_pylist() == [[box]]


def bytes_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_forgotten_items_leave_no_byte_behind(tmp_path: Path):
    collection = write(tmp_path / "c.lance", rows_of(["a", "b", "c"], uri=["x.png", "secret-name.png", "z.png"]))
    collection = write(tmp_path / "c.lance", collection.table)  # an older version that also holds it
    vector = np.array([[1, 2], [1234.5678, 8765.4321], [3, 4]], np.float32)
    collection.features.add(KEY, collection.table, vector)
    for item in "abc":
        collection.decisions.decide(item, f"c{item}", "label", f"label-of-{item}", by="ann")
    traces = [b"secret-name", b"label-of-b", vector[1].tobytes()]
    assert all(trace in bytes_of(tmp_path) for trace in traces)
    left = collection.forget(["b"])
    assert left.table["id"].to_pylist() == ["a", "c"] and left.about.forgotten == ["b"]
    known, kept = left.features.read(KEY, left.usable)
    assert known.all() and (kept == vector[[0, 2]]).all()
    assert [decision.id for decision in left.decisions.read()[0]] == ["a", "c"]
    assert not any(trace in bytes_of(tmp_path) for trace in traces)


def test_a_forgetting_that_was_killed_between_its_renamings_loses_nothing(tmp_path: Path):
    write(tmp_path / "c.lance", rows_of(["a", "b"]))
    old = tmp_path / ".c.lance.selfsight-old"
    (tmp_path / "c.lance").rename(old)
    assert Collection.open(tmp_path / "c.lance").table["id"].to_pylist() == ["a", "b"]
    shutil.copytree(tmp_path / "c.lance", old)
    Collection.open(tmp_path / "c.lance")
    assert not old.exists()


def test_what_users_keep_beside_and_in_a_collection_stays(tmp_path: Path):
    items = write(tmp_path / "c.lance", rows_of(["a", "b"]))
    (tmp_path / "c.lance.old").mkdir()  # a copy that they made
    (tmp_path / "c.lance" / "notes.txt").write_text("precious")
    write_table = pa.table({"x": [1]})
    lance.write_dataset(write_table, str(tmp_path / "features" / "mine.lance"))  # a table of theirs
    assert items.forget(["a"]).table["id"].to_pylist() == ["b"]
    assert (tmp_path / "c.lance.old").exists() and (tmp_path / "c.lance" / "notes.txt").read_text() == "precious"
    assert lance.dataset(str(tmp_path / "features" / "mine.lance")).to_table() == write_table
    (tmp_path / "theirs.lance").mkdir()
    (tmp_path / "theirs.lance" / "notes.txt").touch()
    with pytest.raises(SelfsightError, match="folder of other things"):
        write(tmp_path / "theirs.lance", rows_of(["a"]))


def test_a_table_that_was_never_committed_is_no_table(tmp_path: Path):
    (tmp_path / "c.lance" / "data").mkdir(parents=True)  # what a kill during the first write leaves
    assert not Collection.exists(tmp_path / "c.lance")
    assert len(write(tmp_path / "c.lance", rows_of(["1"]))) == 1
