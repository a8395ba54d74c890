"""Which source a location names, and the sentence where it names none."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from selfsight.data.sources.archive import TarSource, ZipSource
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.dataset import HuggingFaceSource, TorchvisionSource
from selfsight.data.sources.folder import FileSource, FolderSource
from selfsight.data.sources.source import Options
from selfsight.data.sources.table import TableSource
from selfsight.errors import SelfsightError


def make(root: Path, *files: str) -> None:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("location", "kind", "name"),
    [
        ("photos", FolderSource, "photos"),
        ("photos/", FolderSource, "photos"),
        ("photos/1.PNG", FileSource, "photos"),
        ("photos/1.2.840.113", FileSource, "photos"),
        ("lists/train.txt", TableSource, "lists"),
        ("lists/train.LST", TableSource, "lists"),
        ("lists/t.csv", TableSource, "lists"),
        ("lists/t.tsv", TableSource, "lists"),
        ("lists/t.parquet", TableSource, "lists"),
        ("lists/{train,val}.txt", TableSource, "lists"),
        ("l*/t.?sv", TableSource, None),
        ("a.zip", ZipSource, "a"),
        ("shards", TarSource, "shards"),
        ("shards/s-{00..01}.tar", TarSource, "shards"),
        ("shards/s-00.tar", TarSource, "s-00"),
        ("saved", HuggingFaceSource, "saved"),
        ("split", HuggingFaceSource, "split"),
        ("hf:user/name", HuggingFaceSource, "name"),
        ("torchvision:CIFAR10", TorchvisionSource, "CIFAR10"),
    ],
)
def test_each_kind_is_known_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, kind: type, name: str | None
):
    make(tmp_path, "photos/1.PNG", "photos/1.2.840.113", "photos/odd.tar", "a.zip")
    make(tmp_path, *(f"lists/{name}" for name in ("train.txt", "val.txt", "train.LST", "t.csv", "t.tsv", "t.parquet")))
    make(tmp_path, "shards/s-00.tar", "shards/s-01.tar", "shards/sizes.json", "shards/.hidden")
    make(tmp_path, "saved/dataset_info.json", "saved/state.json", "saved/data.arrow", "split/dataset_dict.json")
    (tmp_path / "photos" / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    source = make_source(location, Options())
    assert type(source) is kind
    assert source.name == (name or tmp_path.name)
    monkeypatch.chdir("/")
    again = make_source(source.location, source.options)
    assert (type(again), again.location, again.name) == (kind, source.location, source.name)


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("nowhere", "nowhere does not exist. Give a folder"),
        ("", "'' names nothing. Give a folder"),
        ("a\0b", r"'a\\x00b' names nothing"),
        ("x" * 5000, "does not exist"),
        ("*.csv", r"\*\.csv matches no file"),
        ("{a,b}.txt", r"a\.txt does not exist"),
        ("s-{0..999999999}.tar", "stands for more than 100,000 files"),
        ("{0..999}{0..999}.txt", "stands for 1,000,000 files"),
        ("there.*", "matches files of several kinds"),
        ("{one,two}.png", "matches 2 files. Give their folder"),
        ("there.doc", r"there\.doc is not a file that selfsight reads. Give a folder"),
        ("pipe", "pipe is neither a file nor a folder"),
        ("hf:", "hf: does not exist"),
    ],
)
def test_what_cannot_be_told_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, sentence: str
):
    make(tmp_path, "there.csv", "there.doc", "one.png", "two.png")
    (tmp_path / "there.doc.zip").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    if location == "*.csv":
        (tmp_path / "there.csv").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SelfsightError, match=sentence) as error:
        make_source(location, Options())
    assert not re.search(r"[\n\0]", str(error.value))


def test_a_file_whose_name_looks_like_a_pattern_is_meant_itself(tmp_path: Path):
    make(tmp_path, "1.png", "t[1].csv", "{a,b}.csv")
    (tmp_path / "t[1].csv").write_text("path\n1.png\n")
    (tmp_path / "{a,b}.csv").write_text("path\n1.png\n")
    for name in ("t[1].csv", "{a,b}.csv"):
        assert [entry.uri for entry in make_source(str(tmp_path / name), Options()).entries()] == ["1.png"]


def test_malformed_columns_are_refused_at_once(tmp_path: Path):
    with pytest.raises(SelfsightError, match="is not understood"):
        make_source(str(tmp_path), Options(columns={"label": "{nothing}"}))


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tmp_path: Path):
    folder = tmp_path / "plates [2024]" / "site1"
    folder.mkdir(parents=True)
    (folder / "labels.csv").write_text("path\na.png\n")
    Image.new("L", (4, 4)).save(folder / "a.png")
    source = make_source(str(tmp_path / "plates [2024]" / "site*" / "labels.csv"), Options())
    assert [entry.uri for entry in source.entries()] == ["site1/a.png"]
