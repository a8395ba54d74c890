"""A folder is listed completely, in order, once; what cannot be taken is an entry with the reason."""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from selfsight.data.boxes import Box, Boxes
from selfsight.data.formats.format import Unreadable
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.folder import FileSource, FolderSource
from selfsight.data.sources.source import Options
from selfsight.errors import SelfsightError


def make(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())
    return root


def listed(folder: Path, **options: object) -> tuple[dict[str, str], Counter[str]]:
    """Reasons by uri, and the other files."""
    source = FolderSource(str(folder), Options(**options))  # type: ignore[arg-type]
    entries = list(source.entries())
    assert len({entry.uri for entry in entries}) == len(entries)
    return {entry.uri: entry.reason for entry in entries}, source.others


def test_files_below_in_order_with_size_and_time_and_others_counted(tmp_path: Path):
    make(tmp_path, "b/2.PNG", "b/10.jpg", "a/deep/er/x.jpeg", "z.png", "1.2.840.113", "scan", "notes.txt", "b/t.TXT")
    make(tmp_path, ".hidden.png", ".git/x.png")
    source = FolderSource(str(tmp_path), Options())
    entries = list(source.entries())
    expected = ["1.2.840.113", "scan", "z.png", "a/deep/er/x.jpeg", "b/10.jpg", "b/2.PNG"]
    assert [entry.uri for entry in entries] == expected
    for entry in entries:
        stat = (tmp_path / entry.uri).stat()
        assert (entry.bytes, entry.modified_ns, entry.reason) == (stat.st_size, stat.st_mtime_ns, "")
        with source.open(entry.uri) as file:
            assert file.read() == entry.uri.encode()
    assert source.others == {".txt": 2, "hidden": 2}
    assert list(source.entries()) == entries and source.others == {".txt": 2, "hidden": 2}  # counted anew


def test_a_folder_reached_again_by_links_is_listed_once_under_its_own_path(tmp_path: Path):
    make(tmp_path / "in", "real/1.png", "real/sub/2.png")
    make(tmp_path / "out", "3.png")
    (tmp_path / "in" / "a_link").symlink_to("real")
    (tmp_path / "in" / "real" / "sub" / "loop").symlink_to("../..")
    (tmp_path / "in" / "self").symlink_to("self")  # leads to itself
    (tmp_path / "in" / "out1").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "out2").symlink_to(tmp_path / "out")
    reasons, others = listed(tmp_path / "in")
    assert reasons == {"real/1.png": "", "real/sub/2.png": "", "out1/3.png": "", "self": "a link to nothing"}
    assert not others


def test_linked_files_are_followed_and_what_is_no_file_is_named(tmp_path: Path):
    make(tmp_path, "there/x.png", "in/plain.png")
    folder = tmp_path / "in"
    (folder / "linked.png").symlink_to("../there/x.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # the path of a socket is short
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        reasons, others = listed(folder)
    expected = {"linked.png": "", "plain.png": "", "dangling.png": "a link to nothing"}
    assert reasons == expected | {"pipe.png": "not a file", "socket.png": "not a file"}
    assert others == {".txt": 1}
    source = FolderSource(str(folder), Options())
    with source.open("linked.png") as file:
        assert file.read() == b"there/x.png"
    for uri, reason in (
        ("pipe.png", "not a file"),  # opened as usual, this would wait for ever
        ("../in", "not a file"),
        ("dangling.png", "a link to nothing"),
        ("gone.png", "file vanished since import"),
        ("nul\0.png", "no such file"),
    ):
        with pytest.raises(Unreadable, match=reason):
            source.open(uri)


def test_names_that_are_not_utf8_are_set_aside_and_written_out(tmp_path: Path):
    (tmp_path / "é.png").write_bytes(b"x")
    for name in (b"\xff.png", b"caf\xe9/1.png", b"note.\xff"):
        path = tmp_path / os.fsdecode(name)
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
    reasons, others = listed(tmp_path)
    odd = "the file name is not UTF-8"
    assert reasons == {"é.png": "", "\\xff.png": odd, "caf\\xe9/1.png": odd}
    assert others == {".\\xff": 1}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_forbidden_folders_and_files_are_named(tmp_path: Path):
    make(tmp_path, "open/1.png", "shut/2.png", "closed.png")
    (tmp_path / "shut").chmod(0)
    (tmp_path / "closed.png").chmod(0)
    try:
        reasons, _ = listed(tmp_path)
        assert reasons == {"closed.png": "", "open/1.png": "", "shut": "folder: no permission to read"}
        assert "shut" not in listed(tmp_path, include=("open/*",))[0]
        with pytest.raises(Unreadable, match="no permission to read"):
            FolderSource(str(tmp_path), Options()).open("closed.png")
        with pytest.raises(SelfsightError, match=r"shut cannot be read \(no permission to read\)"):
            list(FolderSource(str(tmp_path / "shut"), Options()).entries())
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_patterns_cross_folders_and_unwanted_files_are_counted_nowhere(tmp_path: Path):
    make(tmp_path, "train/a/1.png", "train/b/2_thumb.png", "test/3.png", "test/n.txt", "4.png")
    assert listed(tmp_path, include=("train/*",)) == ({"train/a/1.png": "", "train/b/2_thumb.png": ""}, {})
    assert listed(tmp_path, include=("*/a/*", "te?t/*")) == ({"train/a/1.png": "", "test/3.png": ""}, {".txt": 1})
    both = listed(tmp_path, include=("t*",), exclude=("*_thumb.*", "test/*"))
    assert both == ({"train/a/1.png": ""}, {})
    assert set(listed(tmp_path, exclude=("train*",))[0]) == {"test/3.png", "4.png"}


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("JPEGImages", "SegmentationClass")])
def test_masks_beside_images_are_no_items_unless_asked_for(tmp_path: Path, images: str, masks: str):
    make(tmp_path, f"site/{images}/1.png", f"site/{masks}/1.png", f"site/{masks}/deep/2.png", f"site/{masks}/3.txt")
    make(tmp_path, f"{masks}/alone.png")  # no images beside them: these are the items
    reasons, others = listed(tmp_path)
    assert set(reasons) == {f"site/{images}/1.png", f"{masks}/alone.png"}
    assert others == {"masks": 2, ".txt": 1}
    assert set(listed(tmp_path, include=(f"site/{masks}/*",))[0]) == {f"site/{masks}/1.png", f"site/{masks}/deep/2.png"}


def test_columns_are_made_from_paths(tmp_path: Path):
    make(tmp_path, "train/cat/07.a.png", "top.png", "m/07.a.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "07.a.txt").write_text("2 0.5 0.25 0.5 0.125\n")
    columns = {"split": "{0}", "label": "{1}", "group": "{folder}-{stem}", "frame": "{stem}", "patient": "PatientID"}
    columns |= {"mask": "m/{name}", "boxes": "b/{stem}.txt"}
    source = make_source(str(tmp_path), Options(columns=columns, exclude=("m/*",)))
    rows = {entry.uri: entry.columns for entry in source.entries()}
    boxes = Boxes((Box("2", 0.25, 0.1875, 0.75, 0.3125),), (1.0, 1.0))
    expected = {"split": "train", "label": "cat", "group": "cat-07.a", "frame": None}
    assert rows["train/cat/07.a.png"] == expected | {"mask": "m/07.a.png", "boxes": boxes}
    expected = {"split": "top.png", "label": None, "group": None, "frame": None, "mask": None, "boxes": None}
    assert rows["top.png"] == expected
    assert source.keywords == {"patient": "PatientID"}  # left to whoever opens the files


def test_a_folder_deeper_than_a_path_may_be_long_is_named(tmp_path: Path):
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    make(tmp_path, "d" * 250 + "/1.png")
    reasons, _ = listed(tmp_path)
    assert reasons.pop("d" * 250 + "/1.png") == ""
    assert list(reasons.values()) == ["folder: File name too long"]


def test_one_file_is_a_source_of_one_with_the_ids_of_its_folder(tmp_path: Path):
    make(tmp_path / "photos", "1.png", "2.png")
    source = make_source(str(tmp_path / "photos" / "2.png"), Options())
    assert isinstance(source, FileSource)
    (entry,) = source.entries()
    whole = FolderSource(str(tmp_path / "photos"), Options())
    assert (source.name, entry) == (whole.name, list(whole.entries())[1])
    with source.open(entry.uri) as file:
        assert file.read() == b"2.png"


def test_a_folder_that_vanished_is_one_sentence(tmp_path: Path):
    source = FolderSource(str(tmp_path / "gone"), Options())
    with pytest.raises(SelfsightError, match=r"gone cannot be read \(it is not there any more\)"):
        list(source.entries())
