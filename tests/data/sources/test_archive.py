"""Zip and tar archives: members in order, opened from several threads, damage named."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from selfsight.data.formats.format import Unreadable
from selfsight.data.importers import import_source
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.source import Options, Source
from selfsight.errors import SelfsightError


def outcome(source: Source) -> dict[str, str]:
    """Reasons by uri; what has none is opened."""
    entries = list(source.entries())
    assert len({entry.uri for entry in entries}) == len(entries)
    for entry in entries:
        if not entry.reason:
            with source.open(entry.uri) as file:
                assert len(file.read()) == entry.bytes
                assert file.seek(0) == 0
    return {entry.uri: entry.reason for entry in entries}


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **how: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in how.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    return str(path)


def in_png(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8), level).save(out, "PNG")
    return out.getvalue()


# -- zip --


def test_a_zip_is_listed_in_its_order_and_read_from_threads(tmp_path: Path):
    data = {f"cats/{i:02d}.png": os.urandom(5000 + i) + bytes(5000) for i in reversed(range(40))}
    with zipfile.ZipFile(tmp_path / "photos.v2.zip", "w") as archive:
        archive.mkdir("cats")
        for i, (name, content) in enumerate(data.items()):
            archive.writestr(name, content, compress_type=(zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i % 2])
        archive.writestr("__MACOSX/cats/._00.png", b"x")
        archive.writestr(".DS_Store", b"x")
        archive.writestr("read.me", b"x")
    source = make_source(str(tmp_path / "photos.v2.zip"), Options(columns={"label": "{0}"}))
    entries = list(source.entries())
    assert [entry.uri for entry in entries] == list(data)
    changed = (tmp_path / "photos.v2.zip").stat().st_mtime_ns
    assert all(e.modified_ns == changed and e.columns == {"label": "cats"} for e in entries)
    assert (source.name, source.others) == ("photos.v2", {".me": 1})

    def read(uri: str) -> bool:
        with source.open(uri) as file:
            return file.read() == data[uri]

    fresh = make_source(source.location, source.options)  # opened without being listed
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, list(data) * 5))
        assert all(pool.map(lambda uri: fresh.open(uri).read() == data[uri], data))


def test_members_of_a_zip_that_cannot_be_taken_are_named(tmp_path: Path):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("good.png", "large.png", "secret.png", "odd.png", "broken.png", "short.png", "../up.png"):
            kind = zipfile.ZIP_DEFLATED if name == "short.png" else zipfile.ZIP_STORED
            archive.writestr(name, f"contents of {name}" * 5, compress_type=kind)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "good.png")
    data = bytearray(path.read_bytes())

    def directory(name: str) -> int:
        return data.rfind(b"PK\x01\x02", 0, data.rfind(name.encode()))

    struct.pack_into("<I", data, directory("large.png") + 24, 3 * 2**30)
    data[directory("secret.png") + 8] |= 1
    struct.pack_into("<H", data, directory("odd.png") + 10, 9)
    data[data.find(b"contents of broken.png")] ^= 1
    start = data.find(b"short.png") + len("short.png")
    data[start : start + 8] = b"\xff" * 8
    path.write_bytes(data)
    source = make_source(str(path), Options())
    reasons = {entry.uri: entry.reason for entry in source.entries()}
    assert reasons == {
        "good.png": "",
        "large.png": "3.0 GiB unpacked, above the limit of 2 GiB",
        "secret.png": "encrypted",
        "odd.png": "compressed by method 9, which is not read",
        "broken.png": "",
        "short.png": "",
        "../up.png": "",
        "link.png": "a link inside an archive",
    }
    assert source.open("good.png").read() == b"contents of good.png" * 5
    for uri, reason in (
        ("large.png", "above the limit"),
        ("secret.png", "encrypted"),
        ("odd.png", "method 9"),
        ("broken.png", "damaged in the archive: Bad CRC-32"),
        ("short.png", "damaged in the archive"),
        ("nowhere.png", "not in the archive any more"),
    ):
        with pytest.raises(Unreadable, match=reason):
            source.open(uri)


def test_masks_doubles_and_patterns_in_a_zip(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in ("s/images/1.png", "s/masks/1.png", "s/masks/a/2.png", "masks/3.png", "./s\\images\\4.png"):
            archive.writestr(name, name)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("s/images/1.png", "again")
    columns = {"mask": "s/masks/{name}"}
    source = make_source(str(tmp_path / "z.zip"), Options(columns=columns))
    rows = {entry.uri: entry.columns["mask"] for entry in source.entries()}
    assert rows == {"s/images/1.png": "s/masks/1.png", "masks/3.png": None, "s/images/4.png": None}
    assert source.others == {"masks": 2, "listed before": 1}
    assert source.open("s/images/1.png").read() == b"again"  # as when unpacking
    source = make_source(str(tmp_path / "z.zip"), Options(include=("s/masks/*",), exclude=("*2.png",)))
    assert set(outcome(source)) == {"s/masks/1.png"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_changes_or_vanishes_is_noticed(tmp_path: Path, kind: str):
    def write(content: bytes) -> str:
        if kind == "tar":
            return write_tar(tmp_path / "a.tar", {"1.png": content})
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("1.png", content)
        return str(tmp_path / "a.zip")

    source = make_source(write(b"old"), Options())
    assert outcome(source) == {"1.png": ""}
    write(b"newer and longer" * 100)
    with pytest.raises(Unreadable, match="the archive has changed since it was listed"):
        source.open("1.png")
    assert outcome(source) == {"1.png": ""}  # listed anew, it is read anew
    Path(source.location).unlink()
    with pytest.raises(Unreadable, match="vanished since import"):
        source.open("1.png")


def test_a_zip_that_is_none_is_one_sentence(tmp_path: Path):
    (tmp_path / "z.zip").write_bytes(b"PK\x03\x04 cut off")
    source = make_source(str(tmp_path / "z.zip"), Options())
    with pytest.raises(
        SelfsightError, match=r"z\.zip is not a zip archive that can be read \(File is not a zip file\)"
    ):
        list(source.entries())
    with pytest.raises(Unreadable, match="not a zip file"):
        source.open("1.png")


# -- tar --


def test_webdataset_shards_with_labels_and_columns(tmp_path: Path):
    shards = tmp_path / "train"
    shards.mkdir()
    first = {"0/a.json": json.dumps({"site": "x", "label": "no", "n": 3.0, "secret": 1}).encode(), "0/a.jpg": b"aa"}
    first |= {
        "0/a.cls": b" 7\n",
        "0/b.left.png": b"bb",
        "0/b.right.png": b"b",
        "0/b.cls.txt": b"cat",
        "0/b.txt": b"caption",
    }
    write_tar(shards / "s-000.tar", first | {"c.png": b"c", "c.json": b'{"n": ["\\ud800"]}'})
    broken = {"0/a.jpg": b"other", "0/a.json": b"{", "d.png": b"d", "d.json": b"[" * 100_000, "d.cls": b"\xff"}
    write_tar(shards / "s-001.tar", broken)
    (shards / "sizes.json").write_text("{}")
    columns = {"count": "n", "group": "PatientID", "shard": "{0}"}
    source = make_source(str(shards), Options(columns=columns))
    rows = {entry.uri: entry.columns for entry in source.entries()}
    assert rows == {
        "s-000.tar/0/a.jpg": {"label": "7", "site": "x", "count": "3", "shard": "s-000.tar"},
        "s-000.tar/0/b.left.png": {"label": "cat", "shard": "s-000.tar"},
        "s-000.tar/0/b.right.png": {"label": "cat", "shard": "s-000.tar"},
        "s-000.tar/c.png": {"count": "['\\ud800']", "shard": "s-000.tar"},
        "s-001.tar/0/a.jpg": {"shard": "s-001.tar"},
        "s-001.tar/d.png": {"shard": "s-001.tar"},
    }
    counted = {".json": 4, ".cls": 2, ".txt": 2, "unreadable .json": 2, "unreadable .cls": 1}
    assert (source.name, source.others) == ("train", counted)
    assert source.open("s-001.tar/0/a.jpg").read() == b"other"
    patterns = [str(shards / pattern) for pattern in ("s-{000..001}.tar", "s-*.tar")]
    assert [outcome(make_source(p, Options())) for p in patterns] == [dict.fromkeys(rows, "")] * 2
    with pytest.raises(SelfsightError, match=r"s-002\.tar does not exist"):
        make_source(str(shards / "s-{000..002}.tar"), Options())
    (shards / "folder").mkdir()  # shards among other things: an ordinary folder
    assert make_source(str(shards), Options()).kind == "folder"


def test_odd_members_of_a_single_tar(tmp_path: Path):
    path = tmp_path / "odd.tar"
    long = "deep/" * 60 + "x.png"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "./dir", type=tarfile.DIRTYPE)
        add(tar, "./1.png", b"one")
        add(tar, "1.png", b"again")
        add(tar, long, b"long")
        add(tar, "ü.png", b"u")
        add(tar, "link.png", type=tarfile.SYMTYPE, linkname="1.png")
        add(tar, "hard.png", type=tarfile.LNKTYPE, linkname="1.png")
        add(tar, "pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "._1.png", b"resource fork")
        add(tar, "\udcff.png", b"x")
    source = make_source(str(path), Options())
    link = "a link inside an archive"
    expected = {"1.png": "", long: "", "ü.png": "", "link.png": link, "hard.png": link, "pipe.png": "not a file"}
    assert outcome(source) == expected | {"\\xff.png": "the file name is not UTF-8"}
    assert source.others == {"listed before": 1}
    assert source.open("1.png").read() == b"one"
    for uri, reason in (("link.png", link), ("2.png", "not in the archive any more")):
        with pytest.raises(Unreadable, match=reason):
            source.open(uri)


HEADER, BLOCK = 512, 1024  # of a member of up to 512 bytes


def header(size: bytes, kind: bytes = b"0") -> bytes:
    """A tar header with a right checksum around any size."""
    block = bytearray(tarfile.TarInfo("b.png").tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


GOOD = tarfile.TarInfo("a.png").tobuf(tarfile.USTAR_FORMAT)
END = bytes(1024)
BACK = b"\xff" * 10 + b"\xf8\x00"  # a size of -2048
HUGE = b"\x80" + bytes(5) + b"\x10" + bytes(5)
DAMAGED = "the archive is damaged from here on"


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (header(BACK) + END, DAMAGED),  # would be read round and round
        (header(BACK, b"x") + END, DAMAGED),
        (header(HUGE, b"L") + END, DAMAGED),  # a name of 16 TiB
        (header(b"00000000001\0", b"x") * 3000 + END, DAMAGED),  # deeper than functions may call each other
        (header(HUGE) + END, "the archive ends within b.png"),
        (b"\x01" * 512 + END, DAMAGED),
        (GOOD[:100], DAMAGED),
        (b"", "the archive ends without its end marker"),
    ],
)
def test_of_a_damaged_tar_what_was_complete_is_taken(tmp_path: Path, rest: bytes, reason: str):
    (tmp_path / "t.tar").write_bytes(GOOD + rest)
    assert outcome(make_source(str(tmp_path / "t.tar"), Options())) == {"a.png": "", "rest of t.tar": reason}


def test_a_tar_cut_within_a_member_and_one_that_is_none(tmp_path: Path):
    members = {f"{i}.png": os.urandom(700) for i in range(3)}
    data = Path(write_tar(tmp_path / "whole.tar", members)).read_bytes()
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "cut.tar").write_bytes(data[:2500])
    (shards / "empty.tar").write_bytes(b"")
    (shards / "text.tar").write_bytes(b"no archive " * 100)
    (shards / "nothing.tar").write_bytes(bytes(10240))
    assert outcome(make_source(str(shards), Options())) == {
        "cut.tar/0.png": "",
        "rest of cut.tar": "the archive ends within 1.png",
        "rest of empty.tar": f"{DAMAGED} (empty file)",
        "rest of text.tar": f"{DAMAGED} (invalid header)",
    }


def test_a_compressed_tar_is_to_be_unpacked(tmp_path: Path):
    for name in ("t.tar.gz", "t.tgz", "hidden.tar"):
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            add(tar, "1.png", b"x")
    for name in ("t.tar.gz", "t.tgz"):
        with pytest.raises(SelfsightError, match=r"compressed.*Unpack it: tar -xf"):
            make_source(str(tmp_path / name), Options())
    with pytest.raises(SelfsightError, match=r"hidden\.tar is compressed"):
        list(make_source(str(tmp_path / "hidden.tar"), Options()).entries())


def test_a_mask_in_a_sample_is_of_its_image_and_no_image(tmp_path: Path):
    images = ("s0.png", "s0.seg.png", "s1.left.png", "s1.right.png", "s2.seg.png", "s3.png", "s3.mask.png")
    images += ("s3.segmentation.png", "@eaDir/s0.png", "__MACOSX/s0.png", ".s4.png")
    members = {name: in_png(number) for number, name in enumerate(images)} | {"s3.json": b"{}"}
    members["s3.seg.json"] = b"{}"  # polygons, which are no image
    members = {"s0.cls": b"1"} | members
    source = make_source(write_tar(tmp_path / "shard.tar", members), Options())
    entries = {entry.uri: entry.columns for entry in source.entries()}
    assert list(entries) == ["s0.png", "s1.left.png", "s1.right.png", "s2.seg.png", "s3.png"]
    assert entries["s0.png"] == {"label": "1", "mask": "s0.seg.png"} and entries["s3.png"]["mask"] == "s3.mask.png"
    assert source.others["masks"] == 3 and source.brings == ("mask",)
    items = import_source(source, tmp_path / "c.lance")
    assert (
        dict(zip(items.table["uri"].to_pylist(), items.table["mask"].to_pylist(), strict=True))["s0.png"]
        == "s0.seg.png"
    )
    every = make_source(str(tmp_path / "shard.tar"), Options(include=("*",)))
    assert [entry.uri for entry in every.entries()] == list(entries)  # a pattern that takes all changes nothing
    only = make_source(str(tmp_path / "shard.tar"), Options(include=("*.seg.png",)))
    assert [entry.uri for entry in only.entries()] == ["s0.seg.png", "s2.seg.png"]


def test_names_with_dots_keep_their_labels(tmp_path: Path):
    members: dict[str, bytes] = {}
    for i in range(2):
        members |= {f"v1.0/{i} Track 2.{i} (a).jpg": b"j", f"v1.0/{i} Track 2.{i} (a).cls": f"c{i}".encode()}
    members |= {"two.left.jpg": b"l", "two.right.jpg": b"r", "two.left.json": b'{"label": "no"}', "two.cls": b"yes"}
    members |= {"m.png": b"p", "m.seg.png": b"s", "m.seg.json": b'{"label": "no"}'}
    source = make_source(write_tar(tmp_path / "t.tar", members), Options())
    assert {entry.uri: entry.columns.get("label") for entry in source.entries()} == {
        "v1.0/0 Track 2.0 (a).jpg": "c0",
        "v1.0/1 Track 2.1 (a).jpg": "c1",
        "two.left.jpg": "yes",
        "two.right.jpg": "yes",
        "m.png": None,
    }
