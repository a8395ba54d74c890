"""Parquet with the images inside, as the hub serves it: every row is an item, opened from its row group."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import picture
from PIL import Image

from selfsight.data.formats.format import Unreadable
from selfsight.data.importers import import_source
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.parquet import ParquetSource
from selfsight.data.sources.source import Options
from selfsight.data.sources.table import TableSource
from selfsight.errors import DataError

RNG = np.random.default_rng(0)


def pngs(count: int) -> list[bytes]:
    out = []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(picture(RNG, 12, 16)).save(file, "PNG")
        out.append(file.getvalue())
    return out


def write(path: Path, images: list[bytes | None], names: list[str] | None = None, **columns: list[Any]) -> Path:
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    table = pa.table({"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), **columns})
    if names is not None:
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)
    return path


def test_a_file_of_images_by_row_with_the_names_of_its_classes(tmp_path: Path):
    images = pngs(10)
    path = write(tmp_path / "train-00000-of-00001.parquet", images, ["cat", "dog"], label=[0, 1, None, 7] + [1] * 6)
    source = make_source(str(path), Options())
    assert isinstance(source, ParquetSource)
    entries = list(source.entries())
    assert list(source.entries()) == entries and not any(entry.reason for entry in entries)
    assert [entry.uri for entry in entries] == [f"{i:08d}" for i in range(10)]
    assert [entry.columns["label"] for entry in entries] == ["cat", "dog", None, None] + ["dog"] * 6
    assert all(entry.columns["split"] == "train" for entry in entries)
    for i in (9, 0, 4, 3, 8, 9):  # back and forth over row groups
        assert source.open(f"{i:08d}").read() == images[i] and entries[i].bytes == len(images[i])
    for uri in ("00000010", "x", "a/00000001"):
        with pytest.raises(Unreadable, match="any more"):
            source.open(uri)


def test_a_folder_of_shards_and_numbers_without_names(tmp_path: Path):
    images = pngs(5)
    write(tmp_path / "data" / "test-00000-of-00001.parquet", images[:2], label=[3, 4], patient=["a", "b"])
    write(tmp_path / "data" / "train-00000-of-00001.parquet", images[2:], label=[5, 6, 7], patient=["c", "d", "e"])
    (tmp_path / "data" / "README.md").write_text("of the hub")
    source = make_source(str(tmp_path / "data"), Options(columns={"group": "patient"}))
    entries = {entry.uri: entry.columns for entry in source.entries()}
    assert list(entries)[:3] == [
        "test-00000-of-00001/00000000", "test-00000-of-00001/00000001", "train-00000-of-00001/00000000"
    ]  # fmt: skip
    assert entries["train-00000-of-00001/00000002"] == {"split": "train", "label": "7", "group": "e"}
    assert source.open("train-00000-of-00001/00000002").read() == images[4]
    items = import_source(source, tmp_path / "c.lance")
    assert len(items.usable) == 5 and sorted(items.usable["label"].to_pylist()) == ["3", "4", "5", "6", "7"]
    assert import_source(make_source(items.about.location, items.about.options), items.path).version == items.version


def test_a_row_without_an_image_and_a_column_by_name(tmp_path: Path):
    images = pngs(3)
    path = write(tmp_path / "t.parquet", [images[0], None], scan=pa.array([images[1], images[2]], pa.binary()))
    assert [entry.reason for entry in make_source(str(path), Options()).entries()] == ["", "no image in this row"]
    named = make_source(str(path), Options(columns={"path": "scan"}))
    assert [named.open(entry.uri).read() for entry in named.entries()] == images[1:]


def test_a_table_of_paths_stays_one(tmp_path: Path):
    pq.write_table(pa.table({"path": ["a.png"], "label": ["x"]}), tmp_path / "t.parquet")
    assert isinstance(make_source(str(tmp_path / "t.parquet"), Options()), TableSource)
    thumbs = pa.table({"Path": ["a.png"], "thumbnail": pa.array(pngs(1), pa.binary())})
    pq.write_table(thumbs, tmp_path / "thumbs.parquet")
    assert isinstance(make_source(str(tmp_path / "thumbs.parquet"), Options()), TableSource)
    mixed = write(tmp_path / "m.parquet", pngs(1), file=["a.png"])
    assert isinstance(make_source(str(mixed), Options(columns={"path": "file"})), TableSource)


def test_a_shard_that_is_damaged_is_named(tmp_path: Path):
    write(tmp_path / "a.parquet", pngs(2))
    write(tmp_path / "b.parquet", pngs(2)).write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"b\.parquet is not a Parquet file that can be read"):
        list(make_source(str(tmp_path), Options()).entries())


def test_pages_that_are_damaged_and_columns_of_lists_are_named(tmp_path: Path):
    path = write(tmp_path / "t.parquet", pngs(8), label=[["a", "b"]] * 8)
    with pytest.raises(DataError, match=r"t\.parquet has a column 'label' of list<.*not of text or numbers"):
        list(make_source(str(path), Options()).entries())
    path = write(tmp_path / "u.parquet", pngs(8))
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"u\.parquet is damaged"):
        list(make_source(str(path), Options()).entries())
    lists = pa.table({"image": [{"bytes": [1, 2]}], "path": ["a.png"]})
    pq.write_table(lists, tmp_path / "v.parquet")
    assert isinstance(make_source(str(tmp_path / "v.parquet"), Options()), TableSource)  # these bytes are no image


def test_names_of_classes_are_known_beside_columns_of_several_values(tmp_path: Path):
    path = write(tmp_path / "t.parquet", pngs(2), ["cat", "dog"], label=[0, 1])
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[b"huggingface"])
    told["info"]["features"]["tags"] = [{"dtype": "string", "_type": "Value"}]
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), path)
    assert [entry.columns["label"] for entry in make_source(str(path), Options()).entries()] == ["cat", "dog"]


@pytest.mark.parametrize("names", [None, ["cat", "dog"]])
def test_hf_reads_it_with_and_without_the_metadata_of_datasets(tmp_path: Path, names: list[str] | None):
    pytest.importorskip("datasets", reason="pip install 'selfsight[huggingface]'")
    images = pngs(2)
    write(tmp_path / "data" / "train-00000-of-00001.parquet", images, names, label=[0, 1])
    source = make_source(f"hf:{tmp_path / 'data'}", Options())
    entries = list(source.entries())
    assert [source.open(entry.uri).read() for entry in entries] == images
    assert [entry.columns["label"] for entry in entries] == (names or ["0", "1"])
