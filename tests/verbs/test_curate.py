"""curate: what was planted is found, decided, undone, exported; every later verb sees what was decided."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import picture, tiny_encoder, write_colours
from PIL import Image

import selfsight
from selfsight.curation.automatic import SIGNED, preferred, wanted
from selfsight.curation.faults import Found
from selfsight.curation.ranking import Ranking
from selfsight.data.annotations import coco, voc
from selfsight.data.collection import DROPPED, Collection
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.encoder import Encoder
from selfsight.errors import SelfsightError
from selfsight.report.curation_page import MOST
from selfsight.verbs.curate import Curation, show

COPY, ORIGINAL, DARK = "blue/copy.png", "blue/000.png", "red/dark.png"
WRONG = "green/wrong.png"  # is red


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of each of three colours; a copy, one in the dark, one under a wrong name; one broken file."""
    folder = write_colours(tmp_path_factory.mktemp("planted") / "photos", 20)
    shutil.copy(folder / ORIGINAL, folder / COPY)
    rng = np.random.default_rng(1)
    red = np.clip(rng.normal(110, 40, (32, 32, 3)) + np.array([45, 0, 0]), 0, 255).astype(np.uint8)
    Image.fromarray(red).save(folder / WRONG)
    Image.fromarray((red * 0.05).astype(np.uint8)).save(folder / DARK)
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def folder(planted: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy, so that no test sees what another decided."""
    yield Path(shutil.copytree(planted, tmp_path / "photos"))


def uris(found: Curation, kind: str) -> list[str]:
    return [issue.uri for issue in found.faults[kind].items]


def usable(folder: Path) -> set[str]:
    return set(open_source(folder).usable["uri"].to_pylist())


def test_without_an_encoder_what_pixels_show_is_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = selfsight.curate(folder, out=tmp_path / "report")
    assert (found.items, found.set_aside, sum(found.reasons.values())) == (63, 1, 1)
    (pair,) = found.faults["exact_duplicates"].items
    assert {pair.uri, pair.pair.uri} == {COPY, ORIGINAL} and pair.score == 1.0
    assert uris(found, "dark")[0] == DARK and found.faults["dark"].estimated == 1
    assert not {"near_duplicates", "off_topic", "label_errors"} & set(found.faults)
    show(found)
    said = capsys.readouterr().out
    assert "63 items" in said and DARK in said and "1 items set aside (1 " in said


def test_json_has_each_kind_by_name_at_most_twice_the_estimate_best_first(
    folder: Path, encoder: Encoder, tmp_path: Path
):
    found = selfsight.curate(folder, model=encoder, out=tmp_path / "report")
    said = json.loads((tmp_path / "report" / "issues.json").read_text())
    assert said == json.loads(json.dumps(found.to_dict()))
    ids = {row["uri"]: row["id"] for row in open_source(folder).table.to_pylist()}
    for kind in ("near_duplicates", "off_topic", "label_errors", "exact_duplicates", "dark", "blurred"):
        issues = said[kind]
        assert set(issues) == {"estimated", "items"} and len(issues["items"]) <= 2 * issues["estimated"]
        scores = [item["score"] for item in issues["items"]]
        assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
        for item in issues["items"]:
            assert ids[item["uri"]] == item["id"]
            assert set(item) <= {"id", "uri", "score", "pair", "suggested"}
            assert ("pair" in item) == kind.endswith("duplicates") and ("suggested" in item) == (kind == "label_errors")
    assert said["set_aside"] == 1 and said["error_rate"] == 0.01


def test_a_wrong_label_is_suggested_and_a_copy_across_splits_is_said(folder: Path, encoder: Encoder, tmp_path: Path):
    rows = [("path", "label", "split")]
    for uri in sorted(usable(folder)):
        rows.append((uri, uri.split("/")[0], "test" if uri == COPY else "train"))
    with (tmp_path / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    where = tmp_path / "items.lance"
    columns = "label=label,split=split"
    selfsight.import_(str(tmp_path / "items.csv"), out=str(where), root=str(folder), columns=columns)
    found = selfsight.curate(where, model=encoder, out=tmp_path / "report")
    wrong = {issue.uri: issue.suggested for issue in found.faults["label_errors"].items}
    assert wrong[WRONG] == "red"
    assert any("1 pair of duplicates lies across splits" in note for note in found.notes)
    (pair,) = found.faults["exact_duplicates"].items
    assert (pair.uri, pair.pair.uri) == (ORIGINAL, COPY)  # what is measured on stays
    assert "across splits" in (tmp_path / "report" / "report.html").read_text()


def test_decided_once_and_undone(folder: Path, encoder: Encoder, tmp_path: Path):
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    first = selfsight.curate(folder, model=encoder, auto=0.01)
    items = open_source(folder)
    kept = features_of(items)
    assert (first.decided and {COPY, DARK}.isdisjoint(usable(folder))) or ORIGINAL not in usable(folder)
    assert items.reasons()[DROPPED] == first.reasons[DROPPED]
    journal, clean = items.decisions.read()[0], items.id_hash()
    assert {decision.by.startswith(SIGNED) for decision in journal} == {True}
    second = selfsight.curate(folder, model=encoder, auto=0.01)
    assert second.decided == 0 and open_source(folder).decisions.read()[0] == journal
    assert open_source(folder).id_hash() == clean and "dark" in second.faults
    assert DARK not in uris(second, "dark") and second.settled >= 2
    undone = selfsight.curate(folder, undo=True)
    assert undone.undone == first.decided == len(first.decisions or [])
    assert any(one.startswith(f"{DARK} dropped (") and "dark" in one for one in first.decisions or [])
    assert usable(folder) == {str(path.relative_to(folder)) for path in before} - {"broken.png"}
    assert Labels.of(open_source(folder)).values == Labels.of(items.deciding(lambda one: False)).values
    assert len(open_source(folder).decisions.read()[0]) == 2 * len(journal)
    assert WRONG in uris(selfsight.curate(folder, model=encoder), "label_errors")  # open again
    assert selfsight.curate(folder, undo=True).undone == 0
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before
    assert features_of(open_source(folder)) == kept  # none lost, none computed anew
    again = selfsight.curate(folder, model=encoder, auto=0.01)
    assert again.decided == first.decided and open_source(folder).id_hash() == clean


def features_of(items: Collection) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(items.features.folder.rglob("*")) if path.is_file()}


def test_what_people_decided_stays(folder: Path, encoder: Encoder):
    items = open_source(folder)
    rows = {row["uri"]: row for row in items.table.to_pylist()}
    for uri in (DARK, COPY, ORIGINAL):
        items.decisions.decide(rows[uri]["id"], rows[uri]["content_hash"], "keep", True)
    items.decisions.decide(rows[WRONG]["id"], rows[WRONG]["content_hash"], "label", "green", old="green")
    found = selfsight.curate(folder, model=encoder, auto=0.05)
    assert {DARK, COPY, ORIGINAL} <= usable(folder)
    assert DARK not in uris(found, "dark") and not found.faults["exact_duplicates"].items
    assert items.decisions.latest("label")[rows[WRONG]["id"]].by == "local"


def test_every_later_verb_sees_what_was_dropped(
    folder: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    selfsight.curate(folder, auto=0.01)
    left = usable(folder)
    assert len(left) == 61 and DARK not in left
    assert set(selfsight.embed(folder, model=encoder).table["uri"].to_pylist()) == left
    assert {one.uri for one in selfsight.odd(folder, model=encoder).pictures} <= left
    assert selfsight.select(folder, model=encoder, budget=3).pool == 61
    assert selfsight.plan(str(folder), minutes=1).items == 61
    head = selfsight.train.classify(folder, model=encoder, out=tmp_path / "head")
    assert set(pq.read_table(tmp_path / "head" / "items.parquet")["uri"].to_pylist()) <= left
    said = {row["uri"]: row for row in selfsight.predict(folder, head=head.head).table.to_pylist()}
    assert said[DARK]["reason"] == DROPPED and said[DARK]["label"] is None  # a row for each item, and why it is empty
    assert selfsight.evaluate(head.head, test=str(folder)).items == 61
    assert "2 items of" in (told := capsys.readouterr().err) and "dropped by decisions" in told


def test_what_is_left_is_written(folder: Path, encoder: Encoder, tmp_path: Path):
    found = selfsight.curate(folder, auto=0.01, export=tmp_path / "clean.csv")
    assert found.exported == {str(tmp_path / "clean.csv"): 61}
    with (tmp_path / "clean.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == usable(folder)
    assert all(row["label"] == row["path"].split("/")[0] for row in rows)
    where = tmp_path / "clean.lance"
    selfsight.import_(str(tmp_path / "clean.csv"), out=str(where), root=str(folder), columns="label=label")
    assert set(Collection.open(where).usable["uri"].to_pylist()) == usable(folder)
    assert set(Labels.of(Collection.open(where)).classes) == {"red", "green", "blue"}
    selfsight.curate(folder, export=tmp_path / "clean.parquet")
    assert set(pq.read_table(tmp_path / "clean.parquet")["path"].to_pylist()) == usable(folder)


def test_boxes_of_what_is_left_are_written_as_coco_and_voc(tmp_path: Path):
    rng = np.random.default_rng(0)
    (tmp_path / "voc").mkdir()
    (tmp_path / "photos").mkdir()
    for i in range(24):
        pixels = picture(rng, 40, 48) if i else np.zeros((40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
        box = coco.Box("cat", 1.0, 2.0, 10.0 + i, 20.0)
        (tmp_path / "voc" / f"{i}.xml").write_bytes(voc.write([box], 48, 40, f"{i}.png"))
    labels, out = tmp_path / "voc", tmp_path / "clean"
    rows = [("path", "boxes"), *((f"photos/{i}.png", f"voc/{i}.xml") for i in range(24))]
    with (tmp_path / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    selfsight.import_(str(tmp_path / "items.csv"), out=str(tmp_path / "items.lance"), columns="boxes=boxes")
    selfsight.curate(tmp_path / "items.lance", auto=0.01, export=out / "clean.json")
    read = coco.read((out / "clean.json").read_bytes())
    assert set(read.images) == {f"photos/{i}.png" for i in range(1, 24)}  # the black one was dropped
    (outline,) = read.images["photos/7.png"].outlines
    assert outline.box == coco.Box("cat", 1.0, 2.0, 17.0, 20.0)
    selfsight.curate(tmp_path / "items.lance", export=out / "voc")
    assert len(list((out / "voc").rglob("*.xml"))) == 23
    assert voc.read((out / "voc" / "photos" / "7.xml").read_bytes()).boxes == (outline.box,)
    assert labels.exists()


def test_exported_boxes_stay_in_their_folder_and_each_page_has_a_file(tmp_path: Path):
    rng, photos = np.random.default_rng(0), tmp_path / "data" / "photos"
    photos.mkdir(parents=True)
    pages = [Image.fromarray(picture(rng, 40, 48)) for _ in range(3)]
    pages[0].save(photos / "stack.tif", save_all=True, append_images=pages[1:])
    for name in ("a.png", "a.jpg"):
        pages[0].save(photos / name)
    mine = tmp_path / "data" / "voc"  # of the user, beside the pictures
    mine.mkdir()
    for name in ("stack", "a"):
        (mine / f"{name}.xml").write_bytes(voc.write([coco.Box("cat", 1.0, 2.0, 10.0, 20.0)], 48, 40, name))
    (tmp_path / "lists").mkdir()
    rows = [("path", "boxes"), *((f"../data/photos/{n}", f"../data/voc/{Path(n).stem}.xml") for n in
            ("stack.tif", "a.png", "a.jpg"))]  # fmt: skip
    with (tmp_path / "lists" / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    selfsight.import_(str(tmp_path / "lists" / "items.csv"), out=str(tmp_path / "items.lance"), columns="boxes=boxes")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.xml")}
    out = tmp_path / "clean" / "voc"
    found = selfsight.curate(tmp_path / "items.lance", export=out)
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.xml")}
    assert len(written) == 5 == (found.exported or {})[str(out)]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.xml") if out not in path.parents} == before


def test_of_copies_one_that_is_sound_stays(folder: Path):
    """The larger of two copies is at fault by itself, so the other stays."""
    items = open_source(folder)
    rows = items.usable
    dark, twin = (rows["uri"].to_pylist().index(name) for name in (DARK, ORIGINAL))
    rankings = [Ranking("near_duplicates", np.array([[dark, twin]]), np.ones(1), 1, 1, 1),
                Ranking("dark", np.array([dark]), np.ones(1), 1, 1, 1)]  # fmt: skip
    found = Found(rows, rankings, Labels.of(items), ["test" if i == dark else None for i in range(len(rows))])
    assert preferred(found, [dark, twin]) == dark
    decisions = wanted(found, 0.01, np.zeros(len(rows), bool))
    assert [(one.place, one.field, one.new) for one in decisions] == [(dark, "drop", True)]


def test_a_slim_part_covers_more_than_chance_and_a_split_keeps_copies_on_one_side(
    folder: Path, encoder: Encoder, tmp_path: Path
):
    rows = [("path", "label", "group"), *((uri, uri.split("/")[0], f"{uri[:-5]}") for uri in sorted(usable(folder)))]
    with (tmp_path / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    where, out = tmp_path / "items.lance", tmp_path / "report"
    columns = "label=label,group=group"
    selfsight.import_(str(tmp_path / "items.csv"), out=str(where), root=str(folder), columns=columns)
    found = selfsight.curate(where, model=encoder, out=out, slim=6, split="0.6,0.2,0.2")
    assert found.slim.items == 6 and found.slim.coverage > found.slim.random and found.slim.classes == 3
    with (out / "slim.csv").open(newline="") as file:
        slim = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in slim] == [1, 2, 3, 4, 5, 6]
    assert sum(int(row["stands_for"]) for row in slim) == 63
    with (out / "split.csv").open(newline="") as file:
        sides = {row["path"]: row for row in csv.DictReader(file)}
    assert found.split == {name: sum(row["split"] == name for row in sides.values()) for name in found.split}
    assert set(found.split) == {"train", "val", "test"} and sum(found.split.values()) == 63
    assert sides[COPY]["split"] == sides[ORIGINAL]["split"]
    groups: dict[str, set[str]] = {}
    for row in sides.values():
        groups.setdefault(row["group"], set()).add(row["split"])
    assert all(len(there) == 1 for there in groups.values())


def test_the_class_of_a_box_is_doubted_by_its_crop(tmp_path: Path, encoder: Encoder):
    """Red and blue squares on grey, one of them under the other name."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "voc").mkdir()
    for i in range(20):
        pixels = rng.normal(110, 10, (64, 64, 3))
        boxes = []
        for place, (channel, name) in enumerate(((0, "red"), (2, "blue"))):
            x, y = int(rng.integers(0, 40)), 4 + 30 * place
            pixels[y : y + 20, x : x + 20, channel] += 100
            boxes.append(coco.Box("red" if i == 7 else name, x, y, x + 20.0, y + 20.0))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "voc" / f"{i}.xml").write_bytes(voc.write(boxes, 64, 64, f"{i}.png"))
    found = selfsight.curate(tmp_path / "photos", model=encoder, labels=tmp_path / "voc", out=tmp_path / "report")
    issue = found.faults["label_errors"].items[0]
    assert (issue.uri, issue.suggested) == ("7.png", "blue") and issue.box[1] == 34.0
    assert "looks like blue" in (tmp_path / "report" / "report.html").read_text()
    selfsight.curate(tmp_path / "photos", model=encoder, labels=tmp_path / "voc", auto=0.05)
    assert not open_source(tmp_path / "photos").decisions.latest("label")  # an item has no class here
    without = selfsight.curate(tmp_path / "photos", labels=tmp_path / "voc")
    assert "label_errors" not in without.faults and any("--model RUN" in note for note in without.notes)


def test_pages_without_thumbnails_hold_no_picture(folder: Path, tmp_path: Path):
    selfsight.curate(folder, out=tmp_path / "with")
    selfsight.curate(folder, out=tmp_path / "without", thumbnails=False)
    with_, without = ((tmp_path / name / "report.html").read_text() for name in ("with", "without"))
    assert 0 < with_.count("data:image/jpeg") <= 2 * MOST * 8 and "data:image" not in without
    assert DARK in without and "://" not in with_


def test_what_a_kill_cut_is_decided_again_and_nothing_else(folder: Path):
    first = selfsight.curate(folder, auto=0.01)
    items = open_source(folder)
    (segment,) = items.decisions.folder.glob("*.jsonl")
    segment.write_bytes(segment.read_bytes()[:-30])  # as a kill in the middle of the last line leaves it
    (kept,) = items.decisions.read()[0]
    assert len(usable(folder)) == 62
    found = selfsight.curate(folder, auto=0.01)
    assert (first.decided, found.decided) == (2, 1) and len(usable(folder)) == 61
    assert items.decisions.read()[0][0] == kept


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"auto": 2.0}, "between 0 and 0.5, not 2"),
        ({"auto": 0.01, "undo": True}, "Give one of them"),
        ({"slim": 3}, "-o FOLDER"),
        ({"slim": 0, "out": "r", "model": "x"}, "1 or more, not 0"),
        ({"slim": 5, "out": "r"}, "--model RUN"),
        ({"split": "0.8", "out": "r"}, "sum to 1, not '0.8'"),
        ({"split": "a,b", "out": "r"}, "sum to 1, not 'a,b'"),
        ({"export": "clean.xlsx"}, r"\.csv"),
        ({"labels": "none.csv"}, "none.csv"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, object], said: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SelfsightError, match=said) as caught:
        selfsight.curate(folder, **how)
    assert "\n" not in str(caught.value) and not (tmp_path / "r").exists()


def test_nothing_is_written_into_the_folder_of_the_images(folder: Path):
    for how in ({"out": folder / "report"}, {"export": folder / "clean.csv"}):
        with pytest.raises(SelfsightError, match="stays as it is"):
            selfsight.curate(folder, **how)
