"""Whole writes by path and URI, and any table in any format."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfsight.errors import SelfsightError
from selfsight.files import CSV_ROWS, as_vectors, open_lance, save_table, to_numpy, whole, write_whole

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3) / 3
PREDICTIONS = pa.table({"id": ["a", "b"], "label": ["cat", None], "set": [["cat", "dog"], []], "score": [0.5, None]})


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path):
    file = tmp_path / "a.json"
    write_whole(file, "old")
    with pytest.raises(RuntimeError), whole(file) as out:
        out.write(b"new and half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_uri_is_written_whole_too():
    write_whole("memory://bucket/a.txt", "zwölf")
    with pytest.raises(RuntimeError), whole("memory://bucket/a.txt") as out:
        out.write(b"half")
        raise RuntimeError
    assert fsspec.filesystem("memory").cat("/bucket/a.txt") == "zwölf".encode()
    save_table(PREDICTIONS, "memory://bucket/p.parquet")
    with fsspec.open("memory://bucket/p.parquet") as file:
        assert pq.read_table(file).equals(PREDICTIONS)


def test_a_table_without_features_in_every_format(tmp_path: Path):
    for suffix in (".parquet", ".lance", ".csv"):
        save_table(PREDICTIONS, tmp_path / f"deep/p{suffix}")
    assert pq.read_table(tmp_path / "deep/p.parquet").equals(PREDICTIONS)
    assert open_lance(tmp_path / "deep/p.lance").to_table().to_pylist() == PREDICTIONS.to_pylist()
    with (tmp_path / "deep/p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [json.loads(row["set"]) for row in rows] == [["cat", "dog"], []]
    assert rows[1] == {"id": "b", "label": "", "set": "[]", "score": ""}
    with pytest.raises(SelfsightError, match="one column of vectors, not 0"):
        save_table(PREDICTIONS, tmp_path / "p.npy")


def test_vectors_and_matrices(tmp_path: Path):
    table = pa.table({"id": ["a", "b"], "features": as_vectors(VALUES)})
    save_table(table, tmp_path / "f.npy")
    assert np.array_equal(np.load(tmp_path / "f.npy"), VALUES)
    assert (tmp_path / "f.items.csv").read_text().splitlines() == ["id", "a", "b"]
    save_table(table, tmp_path / "f.CSV")
    assert (tmp_path / "f.CSV").read_text().splitlines()[:2] == ["id,f0,f1,f2", "a,0,0.3333333,0.6666667"]
    matrices = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    patches = pa.table({"id": ["a", "b"], "features": as_vectors(matrices)})
    assert np.array_equal(to_numpy(patches["features"]), matrices)
    with pytest.raises(SelfsightError, match="matrices of features"):
        save_table(patches, tmp_path / "f.csv")
    with pytest.raises(SelfsightError, match=r"'.*f\.xlsx'\. End it in one of \.parquet"):
        save_table(table, tmp_path / "f.xlsx")


def test_a_long_table_is_written_in_pieces_and_in_order(tmp_path: Path):
    count = 2 * CSV_ROWS + 1
    table = pa.table({"id": [str(i) for i in range(count)], "v": as_vectors(np.arange(count)[:, None] / 4)})
    save_table(table, tmp_path / "long.csv")
    with (tmp_path / "long.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["id", "v_0"] and rows == [[str(i), f"{i / 4:.7g}"] for i in range(count)]


def test_a_new_lance_table_replaces_the_old_one_and_spares_folders_of_others(tmp_path: Path):
    for rows in (PREDICTIONS, PREDICTIONS.slice(1)):
        save_table(rows, tmp_path / "p.lance")
    assert open_lance(tmp_path / "p.lance").to_table()["id"].to_pylist() == ["b"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "mine").rename(tmp_path / "mine.lance")
    with pytest.raises(SelfsightError, match="a folder of other things"):
        save_table(PREDICTIONS, tmp_path / "mine.lance")
    assert (tmp_path / "mine.lance" / "thesis.txt").read_text() == "years"
