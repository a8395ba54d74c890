"""forget: that the bytes are gone, wherever they were, and that nothing else is."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import make_canvases, tiny_encoder
from PIL import Image

import selfsight
from selfsight.data.collection import Collection
from selfsight.data.features import Key
from selfsight.encoders.store import read_folder, save
from selfsight.verbs.forget import show

SECRET = "odd/patient-4711.png"


@pytest.fixture
def album(images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A collection of 6 pictures, one of them secret, in a folder of its own; all that is made of it was made."""
    monkeypatch.chdir(tmp_path)
    photos = images(6, size=(32, 32))
    (photos / "odd" / "ones" / "001.png").rename(photos / SECRET)
    save(tiny_encoder(), tmp_path / "encoder")
    album = tmp_path / "kept" / "album.lance"
    selfsight.import_("photos", out=str(album))
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photos / "late.png")
    selfsight.import_("photos", out=str(album))  # an older version holds the secret too
    items = Collection.open(album)
    selfsight.embed(str(album), model="encoder")
    make_canvases(items, 32)
    make_canvases(items, 16)
    for item in items.table["id"].to_pylist():
        items.decisions.decide(item, None, "label", f"label-of-{item}", by="ann")
    return album


def id_of(album: Path, uri: str) -> str:
    table = Collection.open(album).table
    return dict(zip(table["uri"].to_pylist(), table["id"].to_pylist(), strict=True))[uri]


def traces(album: Path, uri: str) -> dict[str, bytes]:
    """What betrays an item: its path, features, canvas, a decision."""
    items = Collection.open(album)
    rows = items.usable
    at = rows["uri"].to_pylist().index(uri)
    encoder = read_folder("encoder")
    known, features = items.features.read(Key(encoder.digest, "pooled", encoder.geometry), rows)
    assert known.all()
    pixels = np.asarray(Image.open(Path(items.about.location) / uri))
    label = f"label-of-{rows['id'][at].as_py()}"
    return {
        "path": uri.encode(), "content": rows["content_hash"][at].as_py().encode(), "label": label.encode(),
        "features": features[at].tobytes(), "pixels": pixels.tobytes(),
    }  # fmt: skip


def found(things: dict[str, bytes], *folders: Path) -> set[str]:
    """Which of these bytes are in any file below the folders."""
    files = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {name for name, thing in things.items() if any(thing in content for content in files)}


@pytest.mark.parametrize("way", ["id", "path", "list"])
def test_no_byte_of_it_is_left(album: Path, cache: Path, tmp_path: Path, way: str):
    secret, other = traces(album, SECRET), traces(album, "late.png")
    del other["pixels"]  # black, as anything might be
    everything = (album.parent, cache)
    assert found(secret, *everything) == set(secret) and found(other, *everything) == set(other)
    item, files = id_of(album, SECRET), {p: p.read_bytes() for p in (tmp_path / "photos").rglob("*") if p.is_file()}
    (tmp_path / "list.txt").write_text(f"\n  {item}\n")
    result = selfsight.forget(str(album), {"id": item, "path": SECRET, "list": f"@{tmp_path / 'list.txt'}"}[way])
    assert result.to_dict() == {"forgotten": [{"id": item, "uri": SECRET}], "items": 6, "elsewhere": []}
    assert found(secret, *everything) == set()
    assert found(other, *everything) == set(other)  # what is kept of the rest was not lost
    assert {path: path.read_bytes() for path in files} == files  # the user's own stay


def test_it_does_not_come_back(album: Path, cache: Path, tmp_path: Path):
    secret = traces(album, SECRET)
    selfsight.forget(str(album), SECRET)
    for change in (lambda: None, lambda: shutil.copy("photos/late.png", "photos/later.png")):
        change()
        selfsight.import_("photos", out=str(album))
        selfsight.embed(str(album), model="encoder")
        make_canvases(Collection.open(album), 32)
        assert found(secret, album.parent, cache) == set()
    assert len(Collection.open(album)) == 7 and (tmp_path / "photos" / SECRET).exists()


@pytest.mark.parametrize("by", ["path", "id"])
def test_what_an_import_has_dropped_is_forgotten_all_the_same(album: Path, cache: Path, tmp_path: Path, by: str):
    """Its file was deleted and the folder imported again: no row is left, but features, canvases and decisions are."""
    signs, item = traces(album, SECRET), id_of(album, SECRET)
    (tmp_path / "photos" / SECRET).unlink()
    selfsight.import_("photos", out=str(album))
    assert SECRET not in Collection.open(album).table["uri"].to_pylist()
    assert found(signs, album.parent, cache) >= {"features", "label"}
    result = selfsight.forget(str(album), SECRET if by == "path" else item)
    assert [row.id for row in result.forgotten] == [item] and result.items == 6
    assert found(signs, album.parent, cache) == set()
    with pytest.raises(selfsight.SelfsightError, match=r"has no item"):
        selfsight.forget(str(album), "odd/nothing.png")


def test_canvases_of_another_collection_that_holds_it_too(album: Path, cache: Path, tmp_path: Path):
    selfsight.import_(str(album), out="other/part.lance", include=["odd/*"])
    selfsight.import_(str(album), out="other/rest.lance", exclude=["odd/*"])
    part, rest = (Collection.open(f"other/{name}.lance") for name in ("part", "rest"))
    make_canvases(part, 32)
    make_canvases(rest, 32)
    (cache / "canvases" / "unfinished").mkdir()  # nobody can say what is in it
    (cache / "canvases" / "unfinished" / "pixels.bin.partial").write_bytes(traces(album, SECRET)["pixels"])
    secret = {"pixels": traces(album, SECRET)["pixels"]}
    selfsight.forget(str(album), SECRET)
    assert found(secret, cache) == set()
    assert len(list((cache / "canvases").iterdir())) == 1  # those of the rest, which never held it
    again = make_canvases(part, 32)  # that collection was not asked to forget it
    assert again[again.ids.index(id_of(part.path, SECRET))].tobytes() == secret["pixels"]


def test_what_an_unfinished_import_left_beside_it(album: Path):
    shutil.copytree(album, album.with_name("album.lance.partial"))
    secret = traces(album, SECRET)
    selfsight.forget(str(album), SECRET)
    assert found(secret, album.parent) == set()


def test_a_journal_that_was_cut(album: Path):
    """By a kill while a decision was written; the next one follows on the same line."""
    (journal,) = Collection.open(album).decisions.files
    item, other = id_of(album, SECRET), id_of(album, "late.png")
    with journal.open("a") as file:
        file.write(f'{{"time": 1, "id": "{other}", "fie')
    before = journal.read_text().splitlines()
    selfsight.forget(str(album), SECRET)
    assert journal.read_text().splitlines() == [line for line in before if item not in line]


def test_the_table_that_the_cache_keeps_of_a_folder(album: Path, cache: Path):
    selfsight.embed("photos", model="encoder")
    things = {name: thing for name, thing in traces(album, SECRET).items() if name in ("path", "features")}
    assert found(things, cache / "collections") == set(things)
    assert selfsight.forget("photos", SECRET).items == 6
    assert found(things, cache / "collections") == set()
    assert SECRET not in selfsight.embed("photos", model="encoder").uris
    assert SECRET in Collection.open(album).table["uri"].to_pylist()  # which is another collection


@pytest.fixture
def patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """study.lance: six pictures of three patients, from a table that was written on Windows, in a folder below it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = ["file,patientid"]
    for name in ("Nord/P0025 75", "Nord/P0025 76", "Sued/P0025 77", "Nord/P1", "Sued/P1", "Sued/P2"):
        path = tmp_path / "study" / "pics" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
        windows = f"pics/{name}.png".replace("/", "\\")
        rows.append(f"{windows},{path.stem.split()[0]}")
    Path("study/items.csv").write_text("\n".join(rows))
    selfsight.import_("study/items.csv", out="study.lance", columns="path=file,group=patientid")
    return Path("study.lance")


def test_a_patient_withdraws(patients: Path):
    (Path("study") / "pics" / "Sued" / "P0025 77.png").unlink()
    selfsight.import_("study/items.csv", out="study.lance", columns="path=file,group=patientid")
    assert len(Collection.open(patients).usable) == 5
    result = selfsight.forget(str(patients), group="P0025")
    assert sorted(item.uri for item in result.forgotten) == [
        "pics/Nord/P0025 75.png", "pics/Nord/P0025 76.png", "pics/Sued/P0025 77.png",
    ]  # fmt: skip
    assert sorted(Collection.open(patients).table["group"].to_pylist()) == ["P1", "P1", "P2"]
    assert found({"patient": b"P0025"}, patients) == set()
    with pytest.raises(
        selfsight.SelfsightError, match=r"has no group P0025\. Nothing was removed\. There are P1, P2\."
    ):
        selfsight.forget(str(patients), group="P0025")


def test_a_picture_that_was_of_the_group_by_mistake_stays(patients: Path):
    table = Path("study/items.csv")
    table.write_text(table.read_text().replace("P0025 77.png,P0025", "P0025 77.png,P2"))
    selfsight.import_("study/items.csv", out="study.lance", columns="path=file,group=patientid")
    result = selfsight.forget(str(patients), group="P0025")
    assert sorted(item.uri for item in result.forgotten) == ["pics/Nord/P0025 75.png", "pics/Nord/P0025 76.png"]
    assert sorted(Collection.open(patients).table["group"].to_pylist()) == ["P1", "P1", "P2", "P2"]


def test_a_group_of_what_has_none(album: Path):
    with pytest.raises(
        selfsight.SelfsightError, match="imported without groups: give selfsight import --columns group="
    ):
        selfsight.forget(str(album), group="P0025")


@pytest.mark.parametrize("gone", [False, True])
def test_a_path_as_the_manifest_has_it(patients: Path, tmp_path: Path, gone: bool):
    if gone:
        (tmp_path / "study" / "pics" / "Nord" / "P0025 75.png").unlink()
    given = (r"pics\Nord\P0025 75.png", "./pics/Nord/P1.png", str(tmp_path / "study" / "pics" / "Sued" / "P2.png"))
    result = selfsight.forget(str(patients), *given)
    assert {item.uri for item in result.forgotten} == {"pics/Nord/P0025 75.png", "pics/Nord/P1.png", "pics/Sued/P2.png"}
    assert result.items == 3


def test_a_path_that_several_tables_have_is_not_guessed(tmp_path: Path):
    for i, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8), 9 * i, np.uint8)).save(tmp_path / name / "1.png")
        Image.fromarray(np.full((8, 8), 99 * i, np.uint8)).save(tmp_path / name / "2.png")
        (tmp_path / name / "items.csv").write_text("path\n1.png\n2.png\n")
    out = str(tmp_path / "all.lance")
    selfsight.import_(str(tmp_path / "*" / "items.csv"), out=out)
    uris = Collection.open(out).table["uri"].to_pylist()
    assert sorted(uris) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    with pytest.raises(selfsight.SelfsightError, match=r"1\.png may mean a/1\.png or b/1\.png\. Nothing was removed"):
        selfsight.forget(out, "1.png")
    assert [item.uri for item in selfsight.forget(out, "b/1.png").forgotten] == ["b/1.png"]


def test_what_else_holds_it_is_listed(album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree("photos", "copied/photos")  # the same bytes and ids
    Path("copied/photos/late.png").rename("copied/photos/same.png")
    selfsight.import_("copied/photos", out="far/copy.lance")
    selfsight.import_("photos/odd/ones", out="far/part.lance")  # without it
    selfsight.pretrain(str(album), out="deep/er/run", steps=1, batch_size=4, encoder="test_resnet")
    selfsight.pretrain("far/part.lance", out="deep/er/other", steps=1, batch_size=2, encoder="test_resnet")
    names = [f"{name}{suffix}" for name in ("album", "part") for suffix in (".parquet", ".csv", ".npy", ".lance")]
    for name in names:
        source = str(album) if name.startswith("album") else "far/part.lance"
        selfsight.embed(source, model="encoder", out=f"out/{name}")
    for name in ("album", "part"):
        selfsight.odd(str(album) if name == "album" else "far/part.lance", model="encoder", out=f"out/odd-{name}")
    selfsight.report("deep/er/run", out="out/page.html")
    late, secret = id_of(album, "late.png"), id_of(album, SECRET)
    result = selfsight.forget(str(album), SECRET, "late.png")
    held = {(other.kind, Path(other.path).relative_to(tmp_path).as_posix()) for other in result.elsewhere}
    pictures = {("pictures", "out/odd-album"), ("pictures", "out/page.html")}
    assert held == pictures | {("collection", "far/copy.lance"), ("run", "deep/er/run")} | {
        ("features", f"out/{name}") for name in names if name.startswith("album")
    }
    copied = id_of(Path("far/copy.lance"), "same.png")
    [items] = [{item.id for item in other.items} for other in result.elsewhere if other.kind == "collection"]
    assert items == {secret, copied} and copied != late
    show(result)
    [line] = [line for line in capsys.readouterr().out.split("\n") if "still holds 2 of them: selfsight forget" in line]
    selfsight.forget(*shlex.split(line.split(": selfsight forget ")[1]))
    assert len(Collection.open("far/copy.lance")) == 5


def test_an_exact_copy_in_the_same_collection_is_listed(images: Callable[..., Path], tmp_path: Path):
    shutil.copy(images(3) / "000.png", tmp_path / "photos" / "copy.png")
    out = tmp_path / "photos.lance"
    selfsight.import_(str(tmp_path / "photos"), out=str(out))
    [other] = selfsight.forget(str(out), "000.png").elsewhere
    assert (other.kind, other.path, [item.uri for item in other.items]) == ("collection", str(out), ["copy.png"])


def test_all_pages_of_a_file_or_one(tmp_path: Path):
    (tmp_path / "stacks").mkdir()
    pages = [Image.fromarray(np.full((8, 8), 30 * i, np.uint8)) for i in range(3)]
    for name in ("a", "b"):
        pages[0].save(tmp_path / "stacks" / f"{name}.tif", save_all=True, append_images=pages[1:])
    out = tmp_path / "stacks.lance"
    selfsight.import_(str(tmp_path / "stacks"), out=str(out))
    assert selfsight.forget(str(out), "a.tif").items == 3
    rows = Collection.open(out).table.to_pylist()
    assert [row["uri"] for row in rows] == ["b.tif"] * 3
    (second,) = (row["id"] for row in rows if row["page"] == 1)
    selfsight.forget(str(out), second)
    assert sorted(row["page"] for row in Collection.open(out).table.to_pylist()) == [0, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("late.png", "photos/late.png"), "has no item photos/late.png. Nothing was removed. .* relative to .*photos"),
        (("late.png", "0" * 32), f"has no item {'0' * 32}"),
        ((), "Say which items"),
        (("@nowhere.txt",), "nowhere.txt cannot be read"),
        (("late.png", "@empty.txt", "1", "2", "3", "4"), "has no item 1, 2, 3 and 1 more"),
    ],
)
def test_what_is_unknown_removes_nothing(album: Path, cache: Path, given: tuple[str, ...], said: str):
    Path("empty.txt").write_text("\n\n")
    before = {
        path: path.read_bytes() for folder in (album.parent, cache) for path in folder.rglob("*") if path.is_file()
    }
    with pytest.raises(selfsight.SelfsightError, match=said):
        selfsight.forget(str(album), *given)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_not_all_of_it(album: Path):
    ids = Collection.open(album).table["id"].to_pylist()
    with pytest.raises(selfsight.SelfsightError, match="Delete the folder itself"):
        selfsight.forget(str(album), *ids)
    assert len(Collection.open(album)) == 7


def test_on_the_command_line(album: Path, tmp_path: Path):
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "selfsight", "forget", *arguments]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    done = run(str(album), SECRET, "late.png", "--json")
    assert done.returncode == 2 and not done.stdout and "add --yes" in done.stderr
    assert f"This would remove {SECRET}, late.png from {album}" in done.stderr
    done = run(str(album), SECRET, "--json", "--yes")
    assert json.loads(done.stdout)["items"] == 6
    assert run(str(album), "late.png", "--yes").stdout.startswith(
        "Forgot 1 item, 5 are left.\nYour files are as they were."
    )
    done = run(str(album), "late.png", "--yes")
    assert done.returncode == 2 and "has no item late.png" in done.stderr
