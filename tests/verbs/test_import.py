"""import: what it says it found, what it refuses, and the tables that people really have."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from helpers import tiny_encoder, write_folder
from PIL import Image

import selfsight
from selfsight.data.collection import Collection
from selfsight.data.labels import Labels, caveats
from selfsight.encoders.store import save
from selfsight.verbs.import_ import Imported, SetAside, show

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SELFSIGHT_DATA", ROOT.parent / "shared" / "data"))


def imported(source: Path | str, out: Path, **how: Any) -> dict[str, Any]:
    """The result of an import, without its time."""
    result = selfsight.import_(str(source), out=str(out), **how).to_dict()
    assert result.pop("seconds") > 0
    return result


def column(path: Path, name: str) -> dict[str, Any]:
    """{uri: value} of a collection."""
    table = Collection.open(path).table
    return dict(zip(table["uri"].to_pylist(), table[name].to_pylist(), strict=True))


def make_unreadable(path: Path) -> None:
    """Other bytes under the old size and time of change: only who reads the file again can tell."""
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """Four grey pictures of three patients in two hospitals with a table, and what lies beside them."""
    folder = tmp_path / "ward"
    (folder / "north").mkdir(parents=True)
    (folder / "south").mkdir()
    for i, place in enumerate(("north/a", "north/b", "south/c", "south/d")):
        Image.fromarray(np.full((6, 9), 20 * i, np.uint8)).save(folder / f"{place}.png")
    (folder / "south" / "empty.png").write_bytes(b"")
    (folder / "south" / "page.jpg").write_text("<html>not found</html>")
    (folder / "notes.txt").write_text("hello")
    rows = [("file", "patient", "hospital", "finding", "camera")]
    rows += [("north/a.png", "p1", "Oslo, main", "ill", "x"), ("north/b.png", "p1", "Oslo, main", "well", "y")]
    rows += [("south/c.png", "p2", "Bergen", "ill", ""), ("south/d.png", "p3", "Bergen", "", "x")]
    rows += [("south/gone.png", "p4", "Bergen", "ill", "x")]
    with (folder / "ward.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_what_is_found_is_counted_and_named(ward: Path, tmp_path: Path):
    assert imported(ward, tmp_path / "ward.lance", columns="site={0}") == {
        "collection": str(tmp_path / "ward.lance"),
        "source": str(ward),
        "items": 4,
        "pixels": "grey, 8 bit",
        "set_aside": 2,
        "reasons": {"empty file": 1, "holds a web page, not an image": 1},
        "set_aside_items": [
            {"uri": "south/empty.png", "reason": "empty file"},
            {"uri": "south/page.jpg", "reason": "holds a web page, not an image"},
        ],
        "others": {".csv": 1, ".txt": 1},
        "formats": {"PNG": 4},
        "labels": {},
        "splits": {},
        "sites": {"north": 2, "south": 2},  # of items: what was set aside is not among them
        "groups": 0,
        "sequences": 0,
        "boxes": {},
        "masks": 0,
        "other_channels": {},
        "blanks": {},
        "empty_columns": [],
        "notes": [],
    }


def test_columns_of_a_table(ward: Path, tmp_path: Path):
    columns = "group=patient,site=hospital,label=finding,camera=camera,place=in {0}"
    result = imported(ward / "ward.csv", tmp_path / "ward.lance", columns=columns)
    assert (result["items"], result["reasons"]) == (4, {"no such file": 1})
    assert result["sites"] == {"Bergen": 2, "Oslo, main": 2} and result["groups"] == 3
    assert result["labels"] == {"ill": 2, "well": 1}
    found = {name: column(tmp_path / "ward.lance", name) for name in ("group", "camera", "place")}
    assert found["group"] == {
        "north/a.png": "p1", "north/b.png": "p1", "south/c.png": "p2", "south/d.png": "p3",
        "south/gone.png": "p4",  # what is known of it stays, so that `forget --group p4` finds it
    }  # fmt: skip
    assert found["camera"]["north/b.png"] == "y" and found["camera"]["south/c.png"] is None
    assert found["place"]["south/d.png"] == "in south"


def test_an_edited_table_changes_labels_and_reads_no_image(ward: Path, tmp_path: Path):
    table, out = ward / "ward.csv", tmp_path / "ward.lance"
    imported(table, out, columns="label=finding")
    for image in ward.rglob("?.png"):
        make_unreadable(image)
    table.write_text(table.read_text().replace("ill", "unwell").replace("south/c.png,p2", "south/c.png,p9"))
    result = imported(table, out, columns="label=finding,group=patient")
    assert (result["items"], result["labels"]) == (4, {"unwell": 2, "well": 1})
    assert column(out, "group")["south/c.png"] == "p9"


def test_the_same_command_again_reads_nothing(ward: Path, tmp_path: Path):
    first = imported(ward, tmp_path / "ward.lance", include=["*.png"])
    for image in ward.rglob("?.png"):
        make_unreadable(image)
    assert imported(ward, tmp_path / "ward.lance", include=["*.png"]) == first
    Image.fromarray(np.zeros((6, 9), np.uint8)).save(ward / "south" / "new.png")
    assert imported(ward, tmp_path / "ward.lance", include=["*.png"])["items"] == 5


def test_include_and_exclude(ward: Path, tmp_path: Path):
    def found(name: str, **how: Any) -> list[str]:
        imported(ward, tmp_path / f"{name}.lance", **how)
        return sorted(column(tmp_path / f"{name}.lance", "uri"))

    assert found("one", include=["north/*"]) == ["north/a.png", "north/b.png"]
    assert found("two", include=["*.png"], exclude=["south/e*", "*b.png"]) == [
        "north/a.png", "south/c.png", "south/d.png",
    ]  # fmt: skip
    assert found("three", include=["*/a.png", "*/page.jpg"]) == ["north/a.png", "south/page.jpg"]


def test_frames_a_second_of_a_video(tmp_path: Path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 8 * i, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    for rate, items in ((0.0, 30), (5.0, 15), (1.0, 3)):
        result = imported(tmp_path / "clip.mp4", tmp_path / f"{items}.lance", rate=rate)
        assert (result["items"], result["sequences"]) == (items, 1), rate


def test_a_part_of_a_collection(ward: Path, tmp_path: Path):
    imported(ward / "ward.csv", tmp_path / "ward.lance", columns="site=hospital")
    result = imported(tmp_path / "ward.lance", tmp_path / "part.lance", include=["south/*"], exclude=["*d.png"])
    assert (result["items"], result["set_aside"], result["sites"]) == (1, 1, {"Bergen": 1})
    whole, part = column(tmp_path / "ward.lance", "id"), column(tmp_path / "part.lance", "id")
    assert part.items() <= whole.items() and set(part) == {"south/c.png", "south/gone.png"}
    save(tiny_encoder(channels=1), tmp_path / "encoder")
    again = imported(tmp_path / "ward.lance", tmp_path / "part.lance", include=["south/*"], exclude=["*d.png"])
    assert again == result
    (tmp_path / "other").mkdir()
    Image.new("L", (6, 9)).save(tmp_path / "other" / "a.png")
    imported(tmp_path / "other", tmp_path / "other.lance")
    with pytest.raises(selfsight.SelfsightError, match="exists and is not a part of"):
        imported(tmp_path / "other.lance", tmp_path / "part.lance")
    features = selfsight.embed(str(tmp_path / "part.lance"), model=str(tmp_path / "encoder"))
    assert features.uris == ["south/c.png"]  # read from where the whole was imported


def test_what_was_asked_for_and_is_not_there_is_said(ward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(ward / "north" / "five.npy", np.zeros((5, 40, 40), np.uint8))
    (ward / ".DS_Store").write_bytes(b"x")
    (ward / ".git").mkdir()
    result = imported(ward, tmp_path / "w.lance", columns="label={0},site={4},mask=masks/{name}")
    assert result["empty_columns"] == ["site", "mask"] and result["other_channels"] == {"5 channels": 1}
    assert result["others"]["hidden"] == 2
    show(Imported(**result | {"set_aside_items": [SetAside(**item) for item in result["set_aside_items"]]}))
    said = capsys.readouterr().out
    assert "site: no item has one" in said and "1 of 5 channels do not go with the others" in said
    assert "2 hidden" in said


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("ward", "", {}, "must end in .lance"),
    ("ward", ".", {}, "must end in .lance"),
    ("ward", "ward.parquet", {}, "ward.parquet must end in .lance"),
    ("ward", "ward/north/x.lance", {}, "in the folder of the images"),
    ("nowhere", "x.lance", {}, "nowhere does not exist"),
    ("nowhere.lance", "x.lance", {}, "nowhere.lance"),
    ("ward", "x.lance", {"rate": -1.0}, "--rate .* not -1"),
    ("ward", "x.lance", {"rate": float("nan")}, "--rate .* not nan"),
    ("ward/ward.csv", "x.lance", {"columns": "label=findings"}, "no column for label=findings.*'finding'"),
    ("ward/ward.csv", "x.lance", {"columns": "label"}, "not NAME=COLUMN"),
    ("ward/ward.csv", "x.lance", {"columns": "id=patient"}, "id is read from the images"),
    ("ward", "x.lance", {"columns": "label={what}"}, "label={what} is not understood"),
    ("ward", "x.lance", {"include": ["west/*"]}, "No readable image in .*ward.* --include 'west/\\*' lets through"),
    ("ward/ward.csv", "x.lance", {"root": "."}, "No readable image in .*, such as north.*--root FOLDER"),
    ("ward", "x.lance", {"strict": True}, r"south/empty.png: empty file\. .*--strict"),
    ("ward.lance", "ward.lance", {}, "ward.lance is the collection itself"),
    ("ward.lance", "ward/x.lance", {}, "in the folder of the images"),
    ("ward.lance", "x.lance", {"columns": "label={0}"}, "brings its own columns"),
    ("ward.lance", "x.lance", {"include": ["west/*"]}, "No readable item of ward.lance"),
    ("ward.lance", "x.lance", {"include": ["*empty.png"]}, "No readable item of ward.lance"),
    ("ward.lance", "x.lance", {"strict": True}, "south/empty.png: empty file"),
]


@pytest.mark.parametrize(("source", "out", "how", "said"), REFUSED)
def test_what_is_refused_is_one_sentence_and_writes_nothing(
    ward: Path, monkeypatch: pytest.MonkeyPatch, source: str, out: str, how: dict[str, Any], said: str
):
    monkeypatch.chdir(ward.parent)
    if source == "ward.lance":
        selfsight.import_("ward", out="ward.lance")
    before = sorted(ward.parent.rglob("*"))
    with pytest.raises(selfsight.SelfsightError, match=said) as error:
        selfsight.import_(source, out=out, **how)
    assert "\n" not in str(error.value)
    left = sorted(path for path in ward.parent.rglob("*") if ".lance.partial" not in str(path))
    assert left == before


def selfsight_import(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "selfsight", "import", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_the_command_line_says_the_same(ward: Path, tmp_path: Path):
    expected = imported(ward, tmp_path / "ward.lance", include=["*.png"], columns="label={0}")
    options = ("--include", "*.png", "--columns", "label={0}")
    done = selfsight_import("ward", "-o", "again.lance", *options, "--json", cwd=tmp_path)
    said = json.loads(done.stdout)
    assert said | {"collection": "", "seconds": 0} == expected | {"collection": "", "seconds": 0}
    done = selfsight_import("ward", "-o", "again.lance", *options, cwd=tmp_path)
    assert "again.lance: 4 items (4 PNG), grey, 8 bit." in done.stdout
    assert "labels: north 2; south 2" in done.stdout and "south/empty.png: empty file" in done.stdout


def test_of_many_files_set_aside_the_first_are_printed_and_json_names_all(tmp_path: Path):
    folder = write_folder(tmp_path / "photos", 1)
    for i in range(30):
        (folder / f"bad-{i:02d}.png").write_bytes(b"")
    done = selfsight_import("photos", "-o", "photos.lance", cwd=tmp_path)
    assert "30 empty file" in done.stdout and "bad-19.png" in done.stdout and "bad-20.png" not in done.stdout
    assert "and 10 more; --json names them all" in done.stdout
    named = imported(folder, tmp_path / "photos.lance")["set_aside_items"]
    assert [item["uri"] for item in named] == [f"bad-{i:02d}.png" for i in range(30)]


# -- the tables that people really have, with the lines of docs/import.md --


@pytest.fixture
def real(tmp_path: Path) -> Callable[[str], tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """Runs the line of docs/import.md for a set: its result, and the rows of the collection by path."""

    def run(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        if not (DATA / name).is_dir():
            pytest.skip(f"there is no {DATA / name}; SELFSIGHT_DATA names another folder")
        (tmp_path / name).symlink_to(DATA / name)
        page = (ROOT / "docs" / "import.md").read_text(encoding="utf-8")
        line = re.search(rf"^selfsight import '?{name}/?.* -o {name}\.lance .*$", page, flags=re.MULTILINE)
        assert line, f"docs/import.md has no line for {name}"
        done = selfsight_import(*shlex.split(line[0])[2:], "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = Collection.open(tmp_path / f"{name}.lance").table.to_pylist()
        return json.loads(done.stdout), {row["uri"]: row for row in rows}

    return run


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [{name: value.strip() for name, value in row.items()} for row in csv.DictReader(file)]


def counted(values: Any) -> dict[str, int]:
    return dict(Counter(value for value in values if value))


def test_blood_cells_of_two_laboratories(real: Callable[..., Any]):
    result, rows = real("wbc")
    expected = {}
    for site in ("site1", "site2"):
        for row in cells(DATA / "wbc" / site / "labels.csv"):
            name = f"{int(row['image ID']):03d}.png"
            label = row.get("class label") or row["class"]
            expected[f"{site}/images/{name}"] = (site, label, f"{site}/masks/{name}")
    assert {uri: (row["site"], row["label"], row["mask"]) for uri, row in rows.items()} == expected
    assert all((DATA / "wbc" / mask).is_file() for _, _, mask in expected.values())
    assert (result["items"], result["set_aside"], result["masks"]) == (400, 0, 400)
    assert result["sites"] == {"site1": 300, "site2": 100}
    assert result["labels"] == counted(label for _, label, _ in expected.values())


def test_radiographs_with_patients(real: Callable[..., Any]):
    result, rows = real("covid-cxr")
    table = cells(DATA / "covid-cxr" / "metadata.csv")
    assert (result["items"], result["set_aside"]) == (544, 0) and len(table) == 544
    for row in table:
        found = rows[f"images/{row['filename']}"]
        wanted = (row["patientid"], row["location"] or None, row["finding"] or None)
        assert (found["group"], found["site"], found["label"]) == wanted
    assert result["groups"] == len({row["patientid"] for row in table})
    assert result["sites"] == counted(row["location"] for row in table)
    assert result["labels"] == counted(row["finding"] for row in table)


def test_steel_with_boxes(real: Callable[..., Any]):
    result, rows = real("neu")
    files = [path.relative_to(DATA / "neu") for path in (DATA / "neu").glob("t*/*/*.jpg")]
    assert {uri: (row["split"], row["label"]) for uri, row in rows.items()} == {
        file.as_posix(): file.parts[:2] for file in files
    }
    assert (result["items"], result["set_aside"]) == (1800, 0)
    assert result["splits"] == counted(file.parts[0] for file in files)
    assert result["labels"] == counted(file.parts[1] for file in files)
    for file in files:
        lines = (DATA / "neu" / "boxes" / f"{file.stem}.txt").read_text().split("\n")
        written = [(label, *map(float, numbers)) for label, *numbers in (line.split() for line in lines if line)]
        boxes = rows[file.as_posix()]["boxes"] or ()
        assert [box["label"] for box in boxes] == [label for label, *_ in written]
        edges = [[200 * edge for edge in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)] for _, x, y, w, h in written]
        assert np.allclose([[box[edge] for edge in ("x0", "y0", "x1", "y1")] for box in boxes], edges, atol=1e-9)
    lines = [line for path in (DATA / "neu" / "boxes").iterdir() for line in path.read_text().splitlines()]
    assert result["boxes"] == counted(line.split(" ")[0] for line in lines)


def test_blood_smears_with_boxes(real: Callable[..., Any]):
    result, rows = real("bccd")
    lists = {
        split: (DATA / "bccd/ImageSets/Main" / f"{split}.txt").read_text().split() for split in ("train", "val", "test")
    }
    expected = {f"JPEGImages/{stem}.jpg": split for split, stems in lists.items() for stem in stems}
    assert {uri: row["split"] for uri, row in rows.items()} == expected
    assert (result["items"], result["set_aside"]) == (364, 0)
    assert result["splits"] == {split: len(stems) for split, stems in lists.items()}
    for stems in lists.values():
        for stem in stems:
            text = (DATA / "bccd" / "Annotations" / f"{stem}.xml").read_text()
            names = re.findall(r"<name>(.*?)</name>", text)
            boxes = rows[f"JPEGImages/{stem}.jpg"]["boxes"]
            assert [box["label"] for box in boxes] == names
            written = [int(number) for number in re.findall(r"<[xy]m..>(\d+)<", text)]
            edges = [[box["x0"] + 1, box["y0"] + 1, box["x1"], box["y1"]] for box in boxes]
            assert edges == np.reshape(written, (-1, 4)).tolist()
    assert result["boxes"] == {"RBC": 4155, "WBC": 372, "Platelets": 361}


def test_tiles_with_masks(real: Callable[..., Any]):
    result, rows = real("magnetic-tile")
    files = [path.relative_to(DATA / "magnetic-tile") for path in (DATA / "magnetic-tile" / "images").rglob("*.jpg")]
    masks = {
        path.relative_to(DATA / "magnetic-tile").as_posix()
        for path in (DATA / "magnetic-tile" / "masks").rglob("*.png")
    }
    assert {uri: row["label"] for uri, row in rows.items()} == {file.as_posix(): file.parts[1] for file in files}
    assert {row["mask"] for row in rows.values()} - {None} == masks
    assert (result["items"], result["set_aside"], result["masks"]) == (892, 0, 392)
    assert result["labels"] == counted(file.parts[1] for file in files)


def test_cells_that_hold_nothing_are_said_and_blank_names_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels = ("NA", "ok", "none")
    for i in range(3):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
    (tmp_path / "t.csv").write_text(f"Path,Label\n{rows}")
    result = selfsight.import_(str(tmp_path / "t.csv"), out=str(tmp_path / "a.lance"))
    assert (result.labels, result.blanks, result.others) == ({"none": 1, "ok": 1}, {"label NA": 1}, {})
    show(result)
    assert "cells that were taken as empty: 1 'label NA' (--blank names others)" in capsys.readouterr().out
    result = selfsight.import_(str(tmp_path / "t.csv"), out=str(tmp_path / "b.lance"), blank="none")
    assert (result.labels, result.blanks) == ({"NA": 1, "ok": 1}, {"label none": 1})
    result = selfsight.import_(str(tmp_path / "t.csv"), out=str(tmp_path / "c.lance"), blank="")
    assert (result.labels, result.blanks) == ({"NA": 1, "none": 1, "ok": 1}, {})


def test_items_with_two_labels_are_said_wherever_labels_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_folder(tmp_path / "pictures", 6)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    rows = [f"{name},{'ab'[i % 2]}" for i, name in enumerate(names)] + [f"{names[0]},b"]
    (folder / "t.csv").write_text("\n".join(["path,label", *rows]))
    result = selfsight.import_(str(folder / "t.csv"), out=str(tmp_path / "c.lance"))
    said = (
        f"1 item is listed with different labels and left without one: {names[0]} is 'a' in row 2 of t.csv, "
        "'b' in row 8 of t.csv. Leave one row for each, or write several labels in one, as a|b"
    )
    assert result.notes == [said] and result.labels == {"b": 3, "a": 2}
    show(result)
    assert f"Note: {said}." in capsys.readouterr().out
    items = Collection.open(tmp_path / "c.lance")
    labels = Labels.of(items)
    assert said in caveats((items, labels)) and len(labels.labelled()) == 5
    again = selfsight.import_(str(folder / "t.csv"), out=str(tmp_path / "c.lance"))
    assert again.notes == [said] and Collection.open(tmp_path / "c.lance").version == items.version
    (folder / "t.csv").write_text("\n".join(["path,label", *rows[:-1]]))  # mended
    assert selfsight.import_(str(folder / "t.csv"), out=str(tmp_path / "c.lance")).notes == []
    assert column(tmp_path / "c.lance", "label")[names[0]] == "a"


def test_what_is_forgotten_is_not_named_as_listed_twice(tmp_path: Path):
    folder = write_folder(tmp_path / "pictures", 3)
    (folder / "t.csv").write_text("path,label\n000.png,a\n000.png,b\n002.png,a\n")
    selfsight.import_(str(folder / "t.csv"), out=str(tmp_path / "c.lance"))
    items = Collection.open(tmp_path / "c.lance")
    assert list(items.about.contradicted) == ["000.png"]
    ids = dict(zip(items.table["uri"].to_pylist(), items.table["id"].to_pylist(), strict=True))
    assert list(items.forget([ids["002.png"]]).about.contradicted) == ["000.png"]
    assert items.forget([ids["000.png"]]).about.contradicted == {}


def test_odd_files_that_are_used_and_folders_that_are_splits(tmp_path: Path):
    folder = tmp_path / "pictures"
    for split in ("train", "test"):
        write_folder(folder / split / "cat", 2)
    Image.open(folder / "train" / "cat" / "000.png").save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-2])
    (folder / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    (folder / "scan.dcm").write_bytes(b"\x08\0\5\0CS\n\0ISO_IR 100" + bytes(200))
    (folder / "scan").write_bytes(b"\x08\0\5\0\n\0\0\0ISO_IR 100\x08\0\x08\0" + bytes(200))
    result = selfsight.import_(str(folder), out=str(tmp_path / "c.lance"))
    assert {item.uri: item.reason for item in result.set_aside_items} == {
        "photo.jpg": "HEIC is not read: save it as JPEG, PNG or TIFF (the file is called .jpg)",
        "scan": "DICOM without its preamble: save it again, with dcmtk by dcmconv OLD NEW",
        "scan.dcm": "DICOM without its preamble: save it again, with dcmtk by dcmconv OLD NEW",
    }
    assert result.notes[0] == "1 used, such as cut.jpg: JPEG without its end marker; its pixels are all there"
    assert result.notes[1].startswith("The classes are called test and train, like splits.") and len(result.notes) == 2
    assert column(tmp_path / "c.lance", "status")["cut.jpg"] == "ok"


def test_images_of_formats_that_are_not_read_are_named(tmp_path: Path):
    folder = write_folder(tmp_path / "pictures", 2)
    starts = {
        "a.jpg": b"8BPS\0\1",
        "b.png": b"v/1\1",
        "c.tif": b"II\xbc\1",
        "d.png": b"\0\0\1\0",
        "e.jpg": b"#?RADIANCE\n",
    }
    for name, start in starts.items():
        (folder / name).write_bytes(start + bytes(range(200)))
    pixels = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    (folder / "f.jpg").write_bytes(imagecodecs.jpegls_encode(pixels))
    reasons = {i.uri: i.reason for i in selfsight.import_(str(folder), out=str(tmp_path / "c.lance")).set_aside_items}
    kinds = {"a.jpg": "Photoshop", "b.png": "OpenEXR", "c.tif": "JPEG XR", "d.png": "ICO", "e.jpg": "Radiance HDR"}
    kinds |= {"f.jpg": "JPEG-LS"}
    assert reasons == {name: f"{kind} is not read: save it as JPEG, PNG or TIFF" for name, kind in kinds.items()}
