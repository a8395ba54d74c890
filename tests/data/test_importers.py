"""Folders become collections: incremental, nothing skipped in silence, nothing written beside the user's files."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from helpers import make_canvases, picture
from PIL import Image

from selfsight.data.collection import Collection
from selfsight.data.features import Key
from selfsight.data.geometry import Geometry
from selfsight.data.importers import import_source, open_source
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.folder import FolderSource
from selfsight.data.sources.source import Options
from selfsight.errors import SelfsightError

DATA = Path(os.environ.get("SELFSIGHT_DATA", Path(__file__).parents[3] / "shared" / "data"))


def encoded(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(np.random.default_rng(1), *size)).save(out, kind)
    return out.getvalue()


def giant_png() -> bytes:
    """A correct PNG whose header promises 10^10 pixels: the decompression bomb."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def reasons(collection: Collection) -> dict[str, str]:
    rows = collection.set_aside
    return dict(zip(rows["uri"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in [folder, *folder.rglob("*")]}


def test_headers_become_columns(tmp_path: Path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(picture(rng, 20, 30)).save(folder / "rgb.jpg")
    Image.fromarray(picture(rng, 21, 31, 1)).save(folder / "grey.PNG", "png")
    Image.fromarray(np.full((22, 32), 40_000, np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: upright it is 30 wide, 50 high
    Image.fromarray(picture(rng, 30, 50)).save(folder / "turned.jpeg", exif=exif)
    rows = {r["uri"]: r for r in open_source(folder, tmp_path / "c.lance").table.to_pylist()}
    seen = {u: tuple(r[k] for k in ("format", "width", "height", "channels", "depth")) for u, r in rows.items()}
    assert seen == {
        "rgb.jpg": ("JPEG", 30, 20, 3, 8),
        "grey.PNG": ("PNG", 31, 21, 1, 8),
        "deep.png": ("PNG", 32, 22, 1, 16),
        "turned.jpeg": ("JPEG", 30, 50, 3, 8),
    }
    assert all(r["bytes"] == (folder / u).stat().st_size and r["status"] == "ok" for u, r in rows.items())


def test_broken_files_are_set_aside_with_the_reason_and_text_is_counted(tmp_path: Path):
    folder = tmp_path / "wild"
    folder.mkdir()
    files = {
        "good.jpg": encoded("JPEG"),
        "cut.jpg": encoded("JPEG")[:-200],
        "cut.png": encoded("PNG")[:-200],
        "empty.png": b"",
        "text.jpg": b"this is no image\n",
        "giant.png": giant_png(),
        "notes.txt": b"hello",
        "table.csv": b"a,b",
        ".hidden.jpg": encoded("JPEG"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / ".thumbs").mkdir()
    (folder / ".thumbs" / "t.jpg").write_bytes(encoded("JPEG"))
    (folder / "dangling.jpg").symlink_to(folder / "nowhere")
    collection = open_source(folder, tmp_path / "c.lance")
    assert collection.usable["uri"].to_pylist() == ["good.jpg"]
    assert reasons(collection) == {
        "cut.jpg": "truncated JPEG: no end marker",
        "cut.png": "truncated PNG: no end chunk",
        "empty.png": "empty file",
        "text.jpg": "holds text, not an image",
        "giant.png": "10,000,000,000 pixels are above the limit of 200,000,000 pixels",
        "dangling.jpg": "a link to nothing",
    }
    assert collection.others == 4


def test_a_photograph_with_a_video_behind_it_is_usable(tmp_path: Path):
    # Telephones append a film of megabytes to a JPEG ("motion photo"); the picture before it is whole.
    folder = tmp_path / "telephone"
    folder.mkdir()
    (folder / "motion.jpg").write_bytes(encoded("JPEG") + b"\0\0\0\x18ftypmp42" + bytes(20_000))
    assert open_source(folder, tmp_path / "c.lance").usable["uri"].to_pylist() == ["motion.jpg"]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions bind no administrator")
def test_a_file_without_permission_is_set_aside(images: Callable[..., Path], tmp_path: Path):
    folder = images(2)
    (folder / "000.png").chmod(0)
    assert reasons(open_source(folder, tmp_path / "c.lance")) == {"000.png": "Permission denied"}


def test_importing_twice_writes_nothing_and_reads_no_file(images: Callable[..., Path], tmp_path: Path):
    folder, out = images(4), tmp_path / "c.lance"
    (folder / "empty.png").write_bytes(b"")
    first = open_source(folder, out)
    before = tree(out)
    # Other bytes under the old size and time: only a file that was read again would show them.
    path = folder / "000.png"
    stat, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-30] + bytes(30))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = open_source(folder, out)
    assert second.version == first.version and tree(out) == before
    assert second.table.equals(first.table)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    third = open_source(folder, out)
    assert third.version == first.version + 1
    assert reasons(third) == {"000.png": "truncated PNG: no end chunk", "empty.png": "empty file"}


def test_new_and_vanished_files_are_noticed(images: Callable[..., Path], tmp_path: Path):
    folder, out = images(4), tmp_path / "c.lance"
    first = open_source(folder, out)
    (folder / "000.png").rename(folder / "new.png")
    second = open_source(folder, out)
    assert set(second.table["uri"].to_pylist()) == set(first.table["uri"].to_pylist()) - {"000.png"} | {"new.png"}
    (folder / "x.txt").write_text("x")
    assert open_source(folder, out).others == 1


def test_a_folder_without_a_readable_image_is_one_error(tmp_path: Path):
    folder = tmp_path / "bad"
    folder.mkdir()
    with pytest.raises(SelfsightError, match=r"No readable image in .*bad; what is there: nothing"):
        open_source(folder)
    (folder / "a.txt").write_text("a")
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(b"")
    with pytest.raises(SelfsightError, match=r"2 that cannot be read \(empty file\), 1 \.txt"):
        open_source(folder)
    with pytest.raises(SelfsightError, match="does not exist"):
        open_source(tmp_path / "missing")


def test_a_folder_that_turns_empty_does_not_overwrite_what_was_known(images: Callable[..., Path], tmp_path: Path):
    """An unmounted disk shows an empty folder."""
    folder, out = images(3), tmp_path / "c.lance"
    open_source(folder, out)
    folder.rename(tmp_path / "away")
    folder.mkdir()
    with pytest.raises(SelfsightError, match="No readable image"):
        open_source(folder, out)
    assert len(Collection.open(out)) == 3


def test_strict_stops_at_the_first(images: Callable[..., Path], tmp_path: Path):
    folder = images(3)
    (folder / "empty.png").write_bytes(b"")
    with pytest.raises(SelfsightError, match=r"empty\.png: empty file.*--strict"):
        open_source(folder, strict=True)
    open_source(folder)
    with pytest.raises(SelfsightError, match=r"empty\.png: empty file"):  # also where nothing has to be read
        open_source(folder, strict=True)


def test_a_collection_of_another_source_is_not_overwritten(images: Callable[..., Path], tmp_path: Path):
    open_source(images(2), tmp_path / "c.lance")
    with pytest.raises(SelfsightError, match="was imported from"):
        open_source(images(2, name="other"), tmp_path / "c.lance")


def test_forgotten_items_do_not_come_back(images: Callable[..., Path], tmp_path: Path):
    folder, out = images(3), tmp_path / "c.lance"
    items = open_source(folder, out)
    gone = items.table["id"][0].as_py()
    items.forget([gone])
    assert len(open_source(folder, out)) == 2
    Image.fromarray(picture(np.random.default_rng(9), 8, 8)).save(folder / "new.png")
    again = open_source(folder, out)
    assert len(again) == 3 and gone not in again.table["id"].to_pylist()
    assert again.about.forgotten == [gone]


def test_a_file_whose_clock_was_set_back_is_read_again(images: Callable[..., Path], tmp_path: Path):
    folder, out = images(2), tmp_path / "c.lance"
    open_source(folder, out)
    path = folder / "000.png"
    data = path.read_bytes()
    path.write_bytes(data[:-30] + bytes(30))  # the same size, and older than what was known
    os.utime(path, ns=(10**18, 10**18))
    assert reasons(open_source(folder, out)) == {"000.png": "truncated PNG: no end chunk"}


def test_what_was_only_unreadable_for_the_moment_is_tried_again(
    images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A disk that fails says nothing of the file: its size and time are as they were."""
    folder, out = images(3), tmp_path / "c.lance"
    real = FolderSource.open

    def failing(self: FolderSource, uri: str) -> BinaryIO:
        if uri == "000.png":
            raise OSError(5, "Input/output error")
        return real(self, uri)

    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "open", failing)
        assert reasons(open_source(folder, out)) == {"000.png": "Input/output error"}
    assert reasons(open_source(folder, out)) == {}


def test_a_killed_import_keeps_what_it_has_read(images: Callable[..., Path], tmp_path: Path):
    """Killed for good after some segments; the second start reads only the rest."""
    folder, out = images(40), tmp_path / "c.lance"
    first = sorted(folder.rglob("*.png"))[0]
    (first.parent / "0000").write_text("of another kind")  # read before the kill, counted after it
    program = f"""
import os, signal
from selfsight.data import importers
importers.SEGMENT, importers.CHUNK = 8, 4
append = importers._append
def then_die(*args):
    append(*args)
    then_die.left -= 1
    if not then_die.left: os.kill(os.getpid(), signal.SIGKILL)
then_die.left = 3
importers._append = then_die
importers.open_source({str(folder)!r}, {str(out)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode != 0 and not out.exists()
    kept = Collection.open(out.with_name("c.lance.partial"))
    assert len(kept) == 24
    for uri in kept.table["uri"].to_pylist():  # to read one of these again would be noticed
        stat = (folder / uri).stat()
        (folder / uri).write_bytes(bytes(stat.st_size))
        os.utime(folder / uri, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    items = open_source(folder, out)
    assert len(items.usable) == 40 and not out.with_name("c.lance.partial").exists()
    assert items.about.others == {"": 1}


def test_pages_of_one_file_are_items_of_one_sequence(tmp_path: Path):
    folder = tmp_path / "stacks"
    folder.mkdir()
    pages = [Image.fromarray(np.full((8, 9), 10 * i, np.uint8)) for i in range(4)]
    pages[0].save(folder / "stack.tif", save_all=True, append_images=pages[1:])
    table = open_source(folder).table.sort_by("page")
    assert table["page"].to_pylist() == table["frame"].to_pylist() == [0, 1, 2, 3]
    assert set(table["sequence"].to_pylist()) == {"stack.tif"}
    assert len(set(table["id"].to_pylist())) == len(set(table["content_hash"].to_pylist())) == 4
    for held in ("resident", "stream"):
        canvases = make_canvases(open_source(folder), 8, held)
        assert [int(canvases[i][0, 0, 0]) // 10 for i in range(4)] == canvases.rows["page"].to_pylist()


def test_the_users_folder_is_left_alone(images: Callable[..., Path], cache: Path):
    folder = images(3)
    before = tree(folder)
    collection = open_source(folder)
    make_canvases(collection, 16)
    geometry = Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.2,) * 3)
    collection.features.add(Key("enc", "pooled", geometry), collection.usable, np.zeros((3, 2), np.float32))
    collection.decisions.decide(collection.table["id"][0].as_py(), None, "label", "x", by="me")
    assert tree(folder) == before
    assert collection.path.is_relative_to(cache)
    assert len(list((collection.path.parent / "items.decisions").glob("*.jsonl"))) == 1


def test_the_collection_goes_where_it_is_asked_and_folders_do_not_share_one(
    images: Callable[..., Path], tmp_path: Path
):
    folder = images(2)
    assert open_source(folder, tmp_path / "here" / "c.lance").path == tmp_path / "here" / "c.lance"
    assert open_source(tmp_path / "here" / "c.lance").about.location == str(folder.resolve())
    other = images(2, name="deeper/photos", seed=1)
    assert open_source(folder).path != open_source(other).path


@pytest.mark.skipif(sys.platform == "win32", reason="such names cannot exist on Windows")
@pytest.mark.parametrize("folder_name", ["photos", "Bilder äöü 日本 #1?%20", "zwei\nzeilen"])
def test_strange_names(tmp_path: Path, folder_name: str):
    folder = tmp_path / folder_name
    folder.mkdir()
    names = ["zeile\nzwei.png", "日本語.jpg", "emoji 🐈.png", " spaces  .png", 'quote".png', "comma,.jpg", "%41#?.png"]
    for i, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / name)
    collection = open_source(folder)
    assert set(collection.usable["uri"].to_pylist()) == set(names)
    for uri in collection.usable["uri"].to_pylist():
        with collection.source.open(uri) as file:
            assert file.read() == (folder / uri).read_bytes()
    assert open_source(folder).version == collection.version


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has names that are no text")
def test_a_name_that_is_not_utf8_does_not_stop_the_import(images: Callable[..., Path], tmp_path: Path):
    folder = images(2)
    data = (folder / "000.png").read_bytes()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(data)  # "café" in Latin-1
    collection = open_source(folder, tmp_path / "c.lance")
    assert len(collection) == 3  # used or set aside, but counted


def test_real_steel_plates(tmp_path: Path):
    files = sorted((DATA / "neu").rglob("*.jpg"))[:20] if (DATA / "neu").exists() else []
    if len(files) < 20:
        pytest.skip(f"{DATA / 'neu'} holds no NEU steel images")
    folder = tmp_path / "steel"
    folder.mkdir()
    for file in files:
        (folder / file.name).symlink_to(file)
    collection = open_source(folder)
    rows = collection.usable
    assert len(rows) == 20 and len(collection.set_aside) == 0
    assert set(rows["width"].to_pylist()) == set(rows["height"].to_pylist()) == {200}  # as published


def test_two_processes_that_import_one_source_at_once_both_have_all_of_it(images: Callable[..., Path], tmp_path: Path):
    folder, out = images(300, size=(16, 16)), tmp_path / "c.lance"
    program = (
        f"from selfsight.data.importers import open_source; print(len(open_source({str(folder)!r}, {str(out)!r})))"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == ["300"] * 3
    ids = Collection.open(out).table["id"].to_pylist()
    assert len(set(ids)) == len(ids) == 300 and not out.with_name("c.lance.lock").exists()


def test_a_collection_is_listed_again_as_it_was_imported(images: Callable[..., Path], tmp_path: Path):
    folder, out = images(4), tmp_path / "c.lance"
    import_source(make_source(str(folder), Options(include=("odd/*",), columns={"label": "{0}"})), out)
    again = open_source(folder, out)
    assert again.usable["label"].to_pylist() == ["odd", "odd"]


def test_boxes_come_in_pixels_of_the_upright_image_also_of_files_that_are_known(tmp_path: Path):
    """Annotations were drawn on the stored pixels, 60 x 40; the camera was held so that they are shown as 40 x 60."""
    folder, tags = tmp_path / "photos", Image.Exif()
    folder.mkdir()
    tags[0x0112] = 6  # a quarter turn clockwise: the top left corner goes to the top right
    for name, exif in (("turned", tags), ("plain", Image.Exif())):
        Image.fromarray(picture(np.random.default_rng(0), 40, 60)).save(folder / f"{name}.jpg", exif=exif.tobytes())
        size = "<size><width>60</width><height>40</height></size>"
        edges = "<xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>5</ymax>"
        thing = f"<object><name>cat</name><difficult>1</difficult><bndbox>{edges}</bndbox></object>"
        (folder / f"{name}.xml").write_text(f"<annotation>{size}{thing}</annotation>")
    (folder / "broken.jpg").write_bytes(b"x")
    (folder / "broken.txt").write_text("0 0.5 0.5 0.5 0.5")
    options = Options(columns={"boxes": "{stem}.xml"}, include=("*.jpg",))
    for change in range(3):
        if change == 1:  # images are known, their boxes are new
            (folder / "turned.xml").write_text((folder / "turned.xml").read_text().replace("cat", "dog"))
        if change == 2:  # parts of the image as it is shown
            (folder / "turned.txt").write_text("cow 0.5 0.5 0.5 0.5")
            options = Options(columns={"boxes": "{stem}.txt"}, include=("*.jpg",))
        rows = import_source(make_source(str(folder), options), tmp_path / "c.lance").table.to_pylist()
        boxes = {row["uri"]: row["boxes"] for row in rows}
        found = {uri: [tuple(box.values()) for box in cell or ()] for uri, cell in boxes.items()}
        name = ("cat", "dog", "")[change]
        turned = [(name, 35.0, 0.0, 40.0, 10.0, False, True, False)] if change < 2 else []
        turned += [("cow", 10.0, 15.0, 30.0, 45.0, False, False, False)] if change == 2 else []
        plain = [("cat", 0.0, 0.0, 10.0, 5.0, False, True, False)] if change < 2 else []
        assert found == {"turned.jpg": turned, "plain.jpg": plain, "broken.jpg": []}
