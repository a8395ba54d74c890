"""train detect, evaluate, predict and report: cells composed by the test, from boxes to a table of objects."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cells import SIDE, write_cells
from helpers import tiny_encoder
from PIL import Image

import selfsight
from selfsight.data.annotations import coco
from selfsight.data.boxed import Boxed
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.store import save
from selfsight.errors import SelfsightError
from selfsight.heads.detect_metrics import ap50_of
from selfsight.heads.detect_objects import Found
from selfsight.heads.head import load_head
from selfsight.verbs.evaluate import show as show_evaluation
from selfsight.verbs.label_heads import boxes_of
from selfsight.verbs.train.detect import show

STEPS = 90  # of training, which are enough for cells


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder/, train/, test/, and a head from the COCO file of train/, tested; tests only read them."""
    folder = tmp_path_factory.mktemp("detect")
    save(tiny_encoder(64), folder / "encoder")
    write_cells(folder / "train", 9, 0)
    write_cells(folder / "test", 6, 1)
    given = {"source": str(folder / "train" / "images"), "model": str(folder / "encoder")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("selfsight.heads.detect_learnt.STEPS", (STEPS, STEPS))
        selfsight.train.detect(**given, labels=str(folder / "train" / "cells.json"), out=str(folder / "head"), size=128)
    test = {"test": str(folder / "test" / "images"), "labels": str(folder / "test" / "cells.json")}
    selfsight.evaluate(str(folder / "head"), **test)
    return folder


def rows_of(place: Path, **more: str) -> dict[str, dict[str, object]]:
    table = selfsight.predict(str(place / "test" / "images"), head=str(place / "head"), **more).table
    return {row["uri"]: row for row in table.to_pylist()}


def test_cells_are_found_and_counted(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = {"test": str(place / "test" / "images"), "labels": str(place / "test" / "cells.json")}
    found = selfsight.evaluate(str(place / "head"), **test, by="uri")
    off = {one.uri: abs(one.false - one.missed) for one in found.worst}
    assert {uri: part["count_error"].value for uri, part in found.by.items()} == off
    assert found.metrics["ap50"].value > 0.8 and found.metrics["count_error"].value < 2
    assert 0.3 < found.metrics["ap"].value < found.metrics["ap50"].value
    assert found.boxes["cell"] == sum(one.objects for one in {one.id: one for one in found.worst}.values())
    mistakes = [one.missed + one.false for one in found.worst]
    assert mistakes == sorted(mistakes, reverse=True)
    show_evaluation(found)
    printed = capsys.readouterr().out
    assert "on 6 pictures" in printed and "AP50" in printed and "cell" in printed and "5.png" in printed


def test_figures_are_those_of_what_is_predicted(place: Path) -> None:
    """AP50 and the error of counts again, from the rows of predict, whose objects are those above the threshold."""
    evaluated = json.loads((place / "head" / "evaluation.json").read_text())
    items = open_source(str(place / "test" / "images"))
    boxed = Boxed.of(Labels.of(items, path=str(place / "test" / "cells.json"), kind="boxes"))
    rows, found, off = rows_of(place), [], []
    for number, uri in enumerate(boxed.labels.rows["uri"].to_pylist()):
        objects = rows[uri]["objects"]
        edges = [[one[edge] for edge in ("x0", "y0", "x1", "y1")] for one in objects]
        found.append(Found(np.array(edges), np.zeros(len(edges), int), np.array([one["score"] for one in objects])))
        off.append(abs(len(objects) - len(boxed.values[number])))
        count = rows[uri]["counts"][0]
        assert count["count"] == len(objects) and count["low"] <= count["count"] <= count["high"]
    assert np.mean(off) == pytest.approx(evaluated["metrics"]["count_error"]["value"])
    sure = ap50_of(found, [boxed.at(n) for n in range(len(boxed))], 1, 100)
    assert sure <= evaluated["metrics"]["ap50"]["value"] + 1e-9  # less sure objects add to it


def test_predictions_are_boxes_overlays_tables_and_coco(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    rows = rows_of(place, out=str(out), pixel_size="2um", coco=str(tmp_path / "found.json"))
    with (out / "objects.csv").open() as file:
        listed = list(csv.DictReader(file))
    with (out / "counts.csv").open() as file:
        counts = {row["uri"]: row for row in csv.DictReader(file)}
    assert len(listed) == sum(len(row["objects"]) for row in rows.values()) > 15
    first = listed[0]
    assert float(first["width_um"]) == pytest.approx(2 * (float(first["x1"]) - float(first["x0"])), abs=0.05)
    read = coco.read((tmp_path / "found.json").read_bytes())
    for uri, row in rows.items():
        assert int(counts[uri]["cell_count"]) == len(row["objects"])
        boxes = [one.box for one in read.images[uri].outlines]
        assert np.allclose([(b.x0, b.y1) for b in boxes], [(o["x0"], o["y1"]) for o in row["objects"]])
        drawn = Image.open(out / row["overlay"])
        assert drawn.size == (SIDE, SIDE)
        colour = np.asarray(drawn).astype(int)
        assert ((colour.max(2) - colour.min(2)) > 100).any() == bool(row["objects"])  # grey but for the boxes
    # What was found is labels too, and a command that was stopped goes on.
    again = Labels.of(open_source(str(place / "test" / "images")), path=str(tmp_path / "found.json"), kind="boxes")
    assert Boxed.of(again).counts().sum() == len(listed)


def test_a_turned_picture_has_its_boxes_upright(place: Path, tmp_path: Path) -> None:
    plain = np.asarray(Image.open(place / "test" / "images" / "0.png"))
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(plain).save(tmp_path / "in" / "plain.png")
    Image.fromarray(np.rot90(plain).copy()).save(tmp_path / "in" / "turned.png", exif=turned)
    table = selfsight.predict(str(tmp_path / "in"), head=str(place / "head")).table
    one, other = (row["objects"] for row in sorted(table.to_pylist(), key=lambda row: row["uri"]))
    assert len(one) > 2 and one == other


def test_the_page_of_boxes_guesses_what_predict_finds(place: Path) -> None:
    items = open_source(str(place / "test" / "images"))
    guess, classes = boxes_of(items, str(place / "head"))
    assert classes == ["cell"]
    uris = dict(zip(items.usable["uri"].to_pylist(), items.usable["id"].to_pylist(), strict=True))
    for uri, row in rows_of(place).items():
        said = guess(uris[uri])
        assert [one["label"] for one in said] == [one["label"] for one in row["objects"]]
        for name in ("score", "x0", "y0", "x1", "y1"):
            assert [one[name] for one in said] == pytest.approx([one[name] for one in row["objects"]], abs=1e-3)
    for wrong, said in (
        ({"kind": "box", "classes": "cell,Cell"}, "head knows no class Cell, of --classes; it finds cell. Correct"),
        ({"kind": "mask"}, "head says no masks"),
        ({}, "head is a head of objects, and the page asks for classes"),
    ):
        with pytest.raises(SelfsightError, match=said) as error:
            selfsight.label(str(place / "test" / "images"), head=str(place / "head"), **wrong)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_the_page_shows_figures_and_pictures(place: Path, tmp_path: Path) -> None:
    made = selfsight.report(str(place / "head"), out=str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert made.verdict.word == "finds most objects" and "AP50" in made.verdict.sentence
    assert (
        page.count("<img ") == 2 * 6 and "Worst pictures of the test" in page and "http" not in page.split("<main")[1]
    )
    private = selfsight.report(str(place / "head"), out=str(tmp_path / "private.html"), private=True)
    hidden = Path(private.report).read_text()
    assert "<img " not in hidden and ".png" not in hidden and str(place) not in hidden


def test_shots_say_what_was_learnt_from(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfsight.heads.detect_learnt.STEPS", (3, 3))
    given = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "out": str(tmp_path / "few")}
    learnt = selfsight.train.detect(**given, labels=str(place / "train" / "cells.json"), shots=9, size=64, seed=1)
    assert 1 <= learnt.pictures <= 3 and learnt.boxes["cell"] >= 9
    assert any(f"{learnt.boxes['cell']} cell" in note for note in learnt.notes)
    show(learnt)
    assert "--shots 9" in capsys.readouterr().out
    items = load_head(tmp_path / "few").items
    assert len(items) == learnt.pictures and sum(items["boxes"].to_pylist()) == learnt.boxes["cell"]


def test_boxes_in_one_picture_alone_leave_nothing_to_hold_out(place: Path, tmp_path: Path) -> None:
    known = json.loads((place / "train" / "cells.json").read_text())
    first = known["annotations"][0]["image_id"]
    known["annotations"] = [one for one in known["annotations"] if one["image_id"] == first]
    (tmp_path / "few.json").write_text(json.dumps(known))
    found = selfsight.train.detect(
        str(place / "train" / "images"), model=str(place / "encoder"), labels=str(tmp_path / "few.json"),
        out=str(tmp_path / "head"), method="prototypes", size=128,
    )  # fmt: skip
    assert found.pictures == 9 and not found.metrics and "nothing could be held out" in found.notes[0]


def test_a_head_keeps_what_drift_is_told_by(place: Path) -> None:
    kept = pq.read_table(place / "head" / "items.parquet")["features"].to_pylist()
    assert len(kept) == 9 and all(np.isfinite(one).all() for one in kept)


def test_mistakes_are_one_sentence(place: Path, tmp_path: Path) -> None:
    given = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "out": str(tmp_path / "head")}
    labels = str(place / "train" / "cells.json")
    with pytest.raises(SelfsightError, match="--labels PATH"):
        selfsight.train.detect(**given)
    with pytest.raises(SelfsightError, match=r"--shots is how many boxes .* not 0"):
        selfsight.train.detect(**given, labels=labels, shots=0)
    with pytest.raises(SelfsightError, match="--shots 1000 asks for"):
        selfsight.train.detect(**given, labels=labels, shots=1000)
    with pytest.raises(SelfsightError, match="--masks"):
        selfsight.evaluate(str(place / "head"), test=str(place / "test" / "images"), masks="masks")
    assert not (tmp_path / "head").exists()


def test_a_picture_that_cannot_be_read_is_a_row_with_the_reason(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "test" / "images", tmp_path / "in")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    found = selfsight.predict(str(tmp_path / "in"), head=str(place / "head"))
    assert found.items == 6 and found.set_aside == 1 and found.labels["cell"] > 15
    (row,) = [row for row in found.table.to_pylist() if row["reason"]]
    assert row["uri"] == "broken.png" and row["objects"] is None


def test_the_encoder_is_tuned_where_that_finds_more(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("selfsight.heads.detect_learnt.STEPS", (2, 2))  # so that the frozen one is poor
    monkeypatch.setattr("selfsight.heads.detect.METHODS", ("centres",))
    given = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "size": 128}
    given |= {"labels": str(place / "train" / "cells.json"), "method": "finetune"}
    found = selfsight.train.detect(**given, out=str(tmp_path / "head"), steps=80)
    assert found.method == "finetune" and found.tried["finetune"] > found.tried["centres"]
    assert found.metrics["ap50"].value == pytest.approx(found.tried["finetune"])
    told = [note for note in found.notes if "the encoder is tuned: AP50" in note]
    assert len(told) == 1 and "3 pictures that tuning did not see" in told[0]
    head = load_head(tmp_path / "head")
    assert head.encoder.digest != load_head(place / "head").encoder.digest
    assert head.about.held_out == 3 and not (tmp_path / "head.tuning").exists()
    assert json.loads((tmp_path / "head" / "lineage.json").read_text())["tuned_from"]
    test = {"test": str(place / "test" / "images"), "labels": str(place / "test" / "cells.json")}
    frozen = selfsight.train.detect(**given | {"method": "centres"}, out=str(tmp_path / "frozen"))
    one, other = (selfsight.evaluate(each.head, **test).metrics["ap50"].value for each in (found, frozen))
    assert one > other


def test_a_tuning_without_time_for_a_step_leaves_the_frozen_detector(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfsight.heads.detect_learnt.STEPS", (40, 40))
    given = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "size": 128}
    given |= {"labels": str(place / "train" / "cells.json"), "method": "finetune"}
    found = selfsight.train.detect(**given, out=str(tmp_path / "head"), minutes=1e-4)
    [told] = [note for note in found.notes if "before the first step of tuning" in note]
    assert told.startswith("the frozen encoder is kept: ") and told.endswith("so give more minutes, or steps")
    assert found.method == "centres" and load_head(tmp_path / "head").encoder.digest == load_head(
        place / "head").encoder.digest  # fmt: skip


def test_objects_of_pictures_without_boxes_are_guessed_and_kept_where_that_helps(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("selfsight.heads.detect_learnt.STEPS", (STEPS, STEPS))
    given = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "size": 128}
    given |= {"labels": str(place / "train" / "cells.json"), "shots": 30, "self_train": True}
    monkeypatch.setattr("selfsight.heads.detect.METHODS", ("centres",))  # for time
    found = selfsight.train.detect(**given, out=str(tmp_path / "head"))
    [told] = [note for note in found.notes if note.startswith("self-training")]
    learnt = "objects were guessed" in told
    assert learnt == ("self-trained" in found.tried) and ("does not help" in told) != learnt
    if learnt:
        assert found.tried["self-trained"] > found.tried["centres"]
    every = selfsight.train.detect(**given | {"shots": None}, out=str(tmp_path / "every"))
    assert "self-training: every picture has known boxes, so nothing was guessed" in every.notes


def test_options_that_do_not_go_together_are_said(place: Path, tmp_path: Path) -> None:
    given = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "out": str(tmp_path / "head")}
    with pytest.raises(SelfsightError, match="--minutes is for --method finetune"):
        selfsight.train.detect(**given, minutes=1)
    with pytest.raises(SelfsightError, match="--self-train does not go with --method finetune"):
        selfsight.train.detect(**given, method="finetune", self_train=True)
    with pytest.raises(SelfsightError, match="--steps must be a number above 0"):
        selfsight.train.detect(**given, method="finetune", steps=0)
