"""The cache folder: where it is, and one sentence where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import selfsight
from selfsight.data.cache import cache_folder
from selfsight.errors import MachineError


@pytest.mark.parametrize("name", ["HOME", "SELFSIGHT_CACHE"])
def test_a_home_or_cache_that_cannot_be_written_names_the_way_out(
    images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    photos = images(3)
    (tmp_path / "file").write_text("no folder can be made here, by root neither")
    for unset in ("SELFSIGHT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(unset, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "file"))
    folder = cache_folder()
    assert folder.is_relative_to(tmp_path / "file")
    for command in (
        ("plan", photos),
        ("pretrain", photos, "-o", tmp_path / "run"),
        ("forget", photos, "000.png", "--yes"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "selfsight", *map(str, command)], capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 4
        assert done.stderr.strip().split("\n") == [
            f"selfsight: The cache folder {folder} cannot be written (Not a directory). Set SELFSIGHT_CACHE to a "
            "folder that can be written, for example: export SELFSIGHT_CACHE=/tmp/selfsight"
        ]
    assert not (tmp_path / "run").exists()
    assert selfsight.cache().entries == []


def test_what_is_kept_already_is_read_from_a_folder_that_cannot_be_written(
    images: Callable[..., Path], cache: Path, tmp_path: Path
):
    photos = images(3)
    selfsight.plan(str(photos), steps=2)
    for folder in [cache, *cache.rglob("*")]:
        folder.chmod(0o555 if folder.is_dir() else 0o444)
    try:
        assert selfsight.plan(str(photos), steps=2).values["batch_size"] >= 1
    finally:
        for folder in [cache, *cache.rglob("*")]:
            folder.chmod(0o755)


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SELFSIGHT_CACHE", "~/kept")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "kept"
    monkeypatch.setenv("SELFSIGHT_CACHE", "~nobody-of-this-name/kept")
    with pytest.raises(MachineError, match=r"There is no home folder for the cache\. Set SELFSIGHT_CACHE to a folder"):
        cache_folder()
