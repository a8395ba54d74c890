"""cache: what it holds, and that clearing it loses nothing that cannot be made again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import make_canvases, tiny_encoder

import selfsight
from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.encoders.store import save
from selfsight.verbs.cache import show


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def by_source(entries: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """{(kind, name of the source): name of the entry}."""
    return {(entry.kind, Path(entry.source or "").name): entry.name for entry in entries}


@pytest.fixture
def two(images: Callable[..., Path], cache: Path) -> tuple[Collection, Collection]:
    """The collections of photos and scans, with their canvases."""
    opened = open_source(images(3)), open_source(images(4, name="scans", seed=1))
    for items in opened:
        make_canvases(items, 16)
    return opened


def test_every_entry_is_listed_with_its_size(two: tuple[Collection, Collection], cache: Path):
    (cache / "torchvision").mkdir()
    (cache / "torchvision" / "digits.tar.gz").write_bytes(bytes(1000))
    (cache / "canvases" / "unfinished").mkdir()
    (cache / "canvases" / "unfinished" / "pixels.bin.partial").write_bytes(bytes(500))
    listed = selfsight.cache()
    assert listed.folder == str(cache)
    assert {(row.kind, Path(row.source or "none").name) for row in listed.entries} == {
        ("collections", "photos"), ("collections", "scans"), ("canvases", "photos"), ("canvases", "scans"),
        ("canvases", "none"), ("torchvision", "torchvision"),
    }  # fmt: skip
    for row in listed.entries:
        assert row.bytes == size(cache / row.kind / row.name) > 0
    assert sum(row.bytes for row in listed.entries) == size(cache)


def test_one_entry_is_cleared_and_made_again(two: tuple[Collection, Collection], cache: Path):
    names = by_source(selfsight.cache().entries)
    with pytest.raises(selfsight.SelfsightError, match="The cache has no nonsense"):
        selfsight.cache("clear", names["canvases", "photos"], "nonsense")
    assert by_source(selfsight.cache().entries) == names
    cleared = selfsight.cache("clear", names["canvases", "photos"], names["collections", "photos"]).cleared
    assert [row.kind for row in cleared] == ["collections", "canvases"]
    assert set(by_source(selfsight.cache().entries)) == {("collections", "scans"), ("canvases", "scans")}
    again = open_source(two[0].about.location)
    assert again.table.equals(two[0].table)


def test_clearing_all_leaves_what_people_decided(two: tuple[Collection, Collection], cache: Path):
    photos, scans = two
    photos.decisions.decide(photos.table["id"][0].as_py(), None, "label", "cat", by="ann")
    journal = photos.decisions.files[0].read_bytes()
    (cache / "torchvision").mkdir()
    (cache / "torchvision" / "digits.tar.gz").write_bytes(bytes(1000))
    result = selfsight.cache("clear")
    assert [row.source for row in result.kept] == [photos.about.location]
    assert {(row.kind) for row in result.cleared} == {"collections", "canvases", "torchvision"}
    assert len(result.cleared) == 4
    assert photos.decisions.files[0].read_bytes() == journal and not scans.path.exists()
    assert by_source(selfsight.cache().entries).keys() == {("collections", "photos")}


def test_clearing_does_not_bring_back_what_was_forgotten(two: tuple[Collection, Collection]):
    photos, _ = two
    selfsight.forget(photos.about.location, "000.png")
    result = selfsight.cache("clear")
    assert [row.source for row in result.kept] == [photos.about.location]
    assert "000.png" not in open_source(photos.about.location).table["uri"].to_pylist()


def test_every_place_where_features_lie_is_listed(
    images: Callable[..., Path], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    photos, out = images(3), tmp_path / "kept" / "[a] album.lance"
    save(tiny_encoder(), tmp_path / "encoder")
    selfsight.import_(str(photos), out=str(out))
    assert selfsight.cache().features == []
    for source in (photos, out):
        selfsight.embed(str(source), model=str(tmp_path / "encoder"), out=str(tmp_path / "features.parquet"))
    [kept] = (cache / "collections").glob("*")
    folders = [kept / "items.features", out.with_name("[a] album.features")]
    listed = selfsight.cache()
    assert {(Path(row.path), row.bytes) for row in listed.features} == {
        *((folder, size(folder)) for folder in folders),
        (tmp_path / "features.parquet", (tmp_path / "features.parquet").stat().st_size),
    }
    assert {Path(row.collection) for row in listed.features} == {out, kept / "items.lance"}
    show(listed)
    said = capsys.readouterr().out
    assert str(folders[1]) in said
    selfsight.cache("clear")
    assert {Path(row.path) for row in selfsight.cache().features} == {folders[1], tmp_path / "features.parquet"}
    shutil.rmtree(folders[1])
    assert [Path(row.path).name for row in selfsight.cache().features] == ["features.parquet", "features.parquet"]


def test_on_the_command_line(two: tuple[Collection, Collection], cache: Path):
    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "selfsight", "cache", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "photos" in said() and len(json.loads(said("list", "--json"))["entries"]) == 4
    asked = subprocess.run(
        [sys.executable, "-m", "selfsight", "cache", "clear"], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert asked.returncode == 2 and "This would remove all 4 entries of " in asked.stderr
    assert "To do it, add --yes." in asked.stderr and len(json.loads(said("list", "--json"))["entries"]) == 4
    assert said("clear", "--yes").startswith("Cleared 4 entries, ") and not any(cache.glob("*/*"))
    assert "0.0 MB in" in said("list")
    assert said("clear").startswith("Cleared 0 entries, ")  # nothing to ask about
