"""train segment, predict and evaluate: cells composed by the test, from a few masks to a table of objects."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import SIDE, write_cells
from helpers import tiny_encoder
from PIL import Image

import selfsight
from selfsight.data.annotations.masks import read_mask, write_mask
from selfsight.data.annotations.rle import decode
from selfsight.data.importers import open_source
from selfsight.data.masks import Masks
from selfsight.encoders.store import save
from selfsight.encoders.weights import load
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.head import load_head
from selfsight.heads.placed import Placed
from selfsight.heads.scenes import Scene, Sight
from selfsight.heads.watching import watched
from selfsight.verbs.compare import show as show_comparison
from selfsight.verbs.evaluate import show
from selfsight.verbs.label_heads import masks_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder/, train/, test/, and a head from the COCO file of train/; tests only read them."""
    folder = tmp_path_factory.mktemp("segment")
    save(tiny_encoder(64), folder / "encoder")
    write_cells(folder / "train", 6, 0)
    write_cells(folder / "test", 5, 1)
    train = {"source": str(folder / "train" / "images"), "model": str(folder / "encoder")}
    selfsight.train.segment(**train, labels=str(folder / "train" / "cells.json"), out=str(folder / "head"), size=128)
    return folder


def test_touching_cells_are_found_and_counted(place: Path) -> None:
    test = {"test": str(place / "test" / "images"), "labels": str(place / "test" / "cells.json")}
    found = selfsight.evaluate(str(place / "head"), **test, by="uri")
    each = {one.uri: one.miou for one in found.worst}
    assert {uri: part["miou"].value for uri, part in found.by.items()} == pytest.approx(each)
    assert found.metrics["miou"].value > 0.85
    assert found.metrics["ap50"].value > 0.85 and found.metrics["count_error"].value < 1
    assert found.worst[0].miou <= found.best[0].miou and found.items == 5
    test = {"test": str(place / "train" / "images"), "labels": str(place / "train" / "cells.json")}
    again = selfsight.evaluate(str(place / "head"), **test)
    assert any("learnt from" in note for note in again.notes)


def test_where_few_of_many_masks_choose_each_keeps_its_own(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfsight.heads.segment.CHOICE", 3)
    train = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "out": str(tmp_path / "head")}
    found = selfsight.train.segment(**train, labels=str(place / "train" / "cells.json"), size=64)
    assert found.metrics["ap50"].value > 0.5 and found.metrics["miou"].value > 0.7
    items = load_head(tmp_path / "head").items.to_pylist()
    assert [row["held_out"] is not None for row in items] == [row["fold"] >= 0 for row in items]
    assert sum(row["fold"] >= 0 for row in items) == 3


def test_predictions_are_masks_overlays_and_a_table_of_objects(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    said = {"head": str(place / "head"), "out": str(out), "pixel_size": "0.5um"}
    table = selfsight.predict(str(place / "test" / "images"), **said).table
    rows = {row["uri"]: row for row in table.to_pylist()}
    with (out / "objects.csv").open() as file:
        listed = list(csv.DictReader(file))
    with (out / "counts.csv").open() as file:
        counts = {row["uri"]: row for row in csv.DictReader(file)}
    assert len(listed) == sum(len(row["objects"]) for row in rows.values()) > 15
    for uri, row in rows.items():
        with (out / row["mask"]).open("rb") as file:
            mask = read_mask(file)
        picture = np.asarray(Image.open(place / "test" / "images" / uri)).mean(2) / 255
        assert Image.open(out / "overlays" / Path(row["mask"]).name).size == (SIDE, SIDE)
        assert int(counts[uri]["cell_count"]) == len(row["objects"])
        together = np.zeros((SIDE, SIDE), int)
        own = [line for line in listed if line["uri"] == uri]
        for one, line in zip(row["objects"], own, strict=True):
            inside = decode(one["rle"])
            y, x = np.nonzero(inside)
            together += inside
            assert (one["x0"], one["y0"], one["x1"], one["y1"]) == (x.min(), y.min(), x.max() + 1, y.max() + 1)
            assert (one["x"], one["y"]) == pytest.approx((x.mean() + 0.5, y.mean() + 0.5))
            assert one["intensity"] == pytest.approx(picture[inside].mean(), abs=5e-3)
            assert float(line["area_um2"]) == pytest.approx(inside.sum() * 0.25)
            assert float(line["x_um"]) == pytest.approx(one["x"] * 0.5, abs=1e-4)
        assert together.max() <= 1 and ((together > 0) <= (mask > 0)).all()
    stamp = (out / "masks" / "0.png").stat().st_mtime_ns
    assert selfsight.predict(str(place / "test" / "images"), **said).table.num_rows == 5
    assert (out / "masks" / "0.png").stat().st_mtime_ns >= stamp


def test_tables_of_objects_name_the_picture_and_its_page(place: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pages = [Image.open(place / "test" / "images" / f"{number}.png") for number in range(3)]
    pages[0].save(tmp_path / "in" / "stack.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "in" / "alone.png")
    out = tmp_path / "found"
    rows = selfsight.predict(str(tmp_path / "in"), head=str(place / "head"), out=str(out)).table.to_pylist()
    known = {row["id"]: row for row in rows}
    for name, lines in (("objects.csv", sum(len(row["objects"]) for row in rows)), ("counts.csv", 4)):
        with (out / name).open() as file:
            listed = list(csv.DictReader(file))
        assert len(listed) == lines
        assert all(known[line["id"]]["uri"] == line["uri"] for line in listed)
        order = list(dict.fromkeys((line["uri"], line["page"]) for line in listed))
        assert order == [("alone.png", ""), *(("stack.tif", str(page)) for page in range(3))]
    found = {line["id"]: int(line["objects"]) for line in listed}
    assert found == {row["id"]: len(row["objects"]) for row in rows}


def test_what_labels_leave_out_is_said_by_evaluate(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = json.loads((place / "test" / "cells.json").read_text())
    said["images"].append({"id": 999, "file_name": "strange.png", "width": SIDE, "height": SIDE})
    bow = [1, 1, 20, 20, 20, 1, 1, 20]
    said["annotations"].append(
        {"id": 9999, "image_id": said["images"][0]["id"], "category_id": 1, "segmentation": [bow]}
    )
    (tmp_path / "cells.json").write_text(json.dumps(said))
    test = {"test": str(place / "test" / "images"), "labels": str(tmp_path / "cells.json")}
    found = selfsight.evaluate(str(place / "head"), **test, out=str(tmp_path / "out"))
    assert "1 annotation belongs to no image of the source, such as strange.png" in found.notes[0]
    assert sum("crosses itself" in note for note in found.notes) == 1
    show(found)
    assert "strange.png" in capsys.readouterr().out


def test_the_network_says_of_pixels_what_predict_says_of_files(place: Path) -> None:
    head = load_head(place / "head")
    pixels = np.array(Image.open(place / "test" / "images" / "0.png").resize((128, 128)))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.inference_mode():
        found = head.module(images)
    assert torch.allclose(found["probabilities"].sum(1), torch.ones(1, 128, 128), atol=1e-4)
    parts = head.module
    levels = parts.encoder(parts.prepare(images), levels=True).levels
    by_hand = parts.calibrate(parts.task(levels, parts.grey(images)))
    assert torch.allclose(by_hand["probabilities"], found["probabilities"], atol=1e-6)
    leaf = images.float().requires_grad_()
    gradient = torch.autograd.grad(parts(leaf)["probabilities"][:, 1].sum(), leaf)[0]
    assert gradient.abs().sum() > 0


def test_a_head_that_was_moved_says_the_same(place: Path, tmp_path: Path) -> None:
    (place / "head").rename(tmp_path / "elsewhere")
    try:
        one = selfsight.predict(str(place / "test" / "images"), head=str(tmp_path / "elsewhere")).table
    finally:
        (tmp_path / "elsewhere").rename(place / "head")
    two = selfsight.predict(str(place / "test" / "images"), head=str(place / "head")).table
    assert one.to_pylist() == two.to_pylist()


def test_of_large_pictures_as_many_tiles_are_learnt_from_as_there_is_room_for(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four by four pictures of cells are one: 25 tiles, of which 8 fit. No more is held, and what is learnt from
    them holds for the whole."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        files = sorted((place / "train" / kind).iterdir())
        for number in range(3):
            tiled = [np.asarray(Image.open(files[(number + place) % len(files)])) for place in range(16)]
            whole = np.concatenate([np.concatenate(tiled[row : row + 4], 1) for row in range(0, 16, 4)])
            Image.fromarray(whole).save(tmp_path / kind / f"{number}.png")
    encoder = load(str(place / "encoder"))
    each = Sight(encoder, 64, "tiles").bytes_of(2)
    monkeypatch.setattr("selfsight.heads.scenes.KEPT", 16 * each)
    monkeypatch.setattr("selfsight.heads.segment.KEPT", 16 * each)
    held: list[int] = []
    seen = Sight._scene

    def counted(sight: Sight, one: Placed, masks: Masks) -> Scene:
        scene = seen(sight, one, masks)
        held.append(
            sum(tensor.nbytes for piece in scene.pieces for tensor in (*piece.levels, *piece[1:]) if tensor is not None)
        )
        assert scene.looked is not None and scene.looked.mean() < 0.6
        return scene

    monkeypatch.setattr(Sight, "_scene", counted)
    train = {"source": str(tmp_path / "images"), "model": encoder, "size": 64, "rule": "tiles"}
    for objects in (False, True):
        labels = tmp_path / "masks"
        if objects:  # in COCO, which tells them apart
            labels = tmp_path / "cells.json"
            selfsight.predict(str(tmp_path / "images"), head=str(place / "head"), coco=str(labels))
        found = selfsight.train.segment(**train, labels=str(labels), out=str(tmp_path / "head"))
        assert max(held) <= 8 * each and found.told_apart == objects
        assert (
            "of pictures of more than 8 tiles that many are learnt from, half of them those with outlines"
            in found.notes
        )
        assert found.metrics["miou"].value > 0.7
        if objects:
            assert found.metrics["ap50"].value > 0.3 and found.metrics["count_error"].value < 15
    test = {"test": str(place / "test" / "images"), "labels": str(place / "test" / "cells.json")}
    assert selfsight.evaluate(str(tmp_path / "head"), **test).metrics["miou"].value > 0.7


def test_one_mask_is_enough_and_says_that_nothing_was_held_out(place: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "0.png").write_bytes((place / "train" / "masks" / "0.png").read_bytes())
    train = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "out": str(tmp_path / "head")}
    found = selfsight.train.segment(**train, labels=str(tmp_path / "one"))
    assert found.masks == 1 and not found.metrics and not found.told_apart and found.classes == ["background", "1"]
    assert any("one mask only, so nothing could be held out" in note for note in found.notes)
    test = {"test": str(place / "test" / "images"), "labels": str(place / "test" / "masks")}
    assert selfsight.evaluate(str(tmp_path / "head"), **test).metrics["miou"].value > 0.7


def test_a_decoder_learns_and_is_read_back(place: Path, tmp_path: Path) -> None:
    train = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "out": str(tmp_path / "head")}
    found = selfsight.train.segment(**train, labels=str(place / "train" / "ids"), method="decoder", size=64)
    assert found.method.startswith("decoder") and found.told_apart
    test = {"test": str(place / "test" / "images"), "labels": str(place / "test" / "cells.json")}
    with pytest.raises(DataError, match="classes that are not known: cell"):
        selfsight.evaluate(str(tmp_path / "head"), **test)
    test["labels"] = str(place / "test" / "ids")
    assert selfsight.evaluate(str(tmp_path / "head"), **test).metrics["miou"].value > 0.8


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"labels": None}, "No item of .* has a mask"),
        ({"labels": "nowhere"}, "nowhere does not exist. Give a COCO file"),
        ({"size": 3}, "--size is the side of the input in px, 16 or more"),
        ({"labels": "empty"}, "hold background alone"),
        ({"labels": "small"}, "a mask of 5 x 5 for an image of 64 x 64"),
        ({"labels": "broken"}, "no mask of PNG"),
    ],
)
def test_mistakes_are_said_in_one_sentence(place: Path, tmp_path: Path, change: dict, error: str) -> None:
    for name, data in {
        "empty": write_mask(np.zeros((SIDE, SIDE), np.int32)),
        "small": write_mask(np.ones((5, 5), np.int32)),
        "broken": b"\x89PNG\r\n\x1a\nno more",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(data)
    if change.get("labels"):
        change = {"labels": str(tmp_path / change["labels"])}
    train = {"source": str(place / "train" / "images"), "model": str(place / "encoder"), "out": str(tmp_path / "head")}
    with pytest.raises(SelfsightError, match=error) as told:
        selfsight.train.segment(**{**train, "labels": str(place / "train" / "masks"), **change})
    assert str(told.value).count("\n") == 0
    assert not (tmp_path / "head").exists()


def test_the_page_of_masks_guesses_what_the_head_segments_and_that_of_boxes_refuses_it(place: Path) -> None:
    items = open_source(str(place / "test" / "images"))
    guess, item = masks_of(items, str(place / "head")), items.usable["id"][0].as_py()
    row = selfsight.predict(str(place / "test" / "images"), head=str(place / "head")).table.slice(0, 1).to_pylist()[0]
    assert row["id"] == item and [one["counts"] for one in guess(item)["cell"]] == [
        one["rle"]["counts"] for one in row["objects"]
    ]
    with pytest.raises(SelfsightError, match="is a head of masks, and finds no boxes") as error:
        selfsight.label(str(place / "test" / "images"), kind="box", head=str(place / "head"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["0", "-1um", "abc", "1 inch", "nan"])
def test_a_pixel_has_a_size(place: Path, text: str) -> None:
    with pytest.raises(SelfsightError, match="--pixel-size is the side of a pixel"):
        selfsight.predict(str(place / "test" / "images"), head=str(place / "head"), pixel_size=text)


def test_roi_limits_what_is_learnt_and_what_is_found(place: Path, tmp_path: Path) -> None:
    """Masks are wrong outside it: a head that learnt from there would find nothing, or all."""
    looked = np.zeros((SIDE, SIDE), bool)
    looked[:, 12:] = True
    Image.fromarray(looked).save(tmp_path / "roi.png")
    images = tmp_path / "images"
    (tmp_path / "wrong").mkdir()
    images.mkdir()
    for file in sorted((place / "train" / "images").iterdir()):
        (images / file.name).write_bytes(file.read_bytes())
        with (place / "train" / "masks" / file.name).open("rb") as opened:
            mask = read_mask(opened)
        (tmp_path / "wrong" / file.name).write_bytes(write_mask(np.where(looked, mask, 1 - mask)))
    Image.new("RGB", (50, 40)).save(images / "small.png")
    (tmp_path / "wrong" / "small.png").write_bytes(write_mask(np.eye(40, 50, dtype=np.int32)))
    said = {"model": str(place / "encoder"), "labels": str(tmp_path / "wrong"), "size": 64, "objects": False}
    roi = str(tmp_path / "roi.png")
    made = selfsight.train.segment(str(images), **said, out=str(tmp_path / "head"), rule="tiles", roi=roi)
    assert made.masks == 6 and made.metrics["miou"].value > 0.8
    assert made.set_aside["small.png"] == "50 x 40 px, where the mask of --roi is 64 x 64"
    head = load_head(tmp_path / "head")
    assert head.about.roi == (SIDE, SIDE) and (head.roi == looked).all()
    table = selfsight.predict(str(images), head=head, out=str(tmp_path / "found")).table.to_pylist()
    shares = []
    for row in table:
        if row["uri"] == "small.png":
            assert row["reason"] == "50 x 40 px, where the mask of --roi is 64 x 64"
            continue
        found, true = (np.asarray(read_mask((where / row["uri"]).open("rb")))
                       for where in (tmp_path / "found" / "masks", place / "train" / "masks"))  # fmt: skip
        assert not found[~looked].any() and all(one["x0"] >= 12 for one in row["objects"])
        assert 0.5 < row["score"] <= 1
        shares.append((found == true)[looked].mean())
    assert np.mean(shares) > 0.9
    tested = selfsight.evaluate(head, test=str(images), labels=str(tmp_path / "wrong"))
    assert tested.items == 6 and tested.metrics["miou"].value > 0.8


def test_two_segmentations_are_compared_picture_by_picture(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = {"source": str(place / "train" / "images"), "model": str(place / "encoder")}
    labels = str(place / "train" / "cells.json")
    selfsight.train.segment(**train, labels=labels, out=str(tmp_path / "other"), size=32)
    test = {"test": str(place / "test" / "images"), "labels": str(place / "test" / "cells.json")}
    heads = str(place / "head"), str(tmp_path / "other")
    found = selfsight.compare(*heads, **test)
    for side, head in zip(found.metrics, heads, strict=True):
        assert side == selfsight.evaluate(head, **test, out=str(tmp_path / "out")).metrics
    assert found.items == 5 and found.leading == "miou" and list(found.difference) == ["miou", "ap50", "count_error"]
    for name, gap in found.difference.items():
        assert gap.value == pytest.approx(found.metrics[0][name].value - found.metrics[1][name].value)
        assert gap.low <= gap.value <= gap.high
    assert selfsight.compare(heads[0], heads[0], **test).better is None
    show_comparison(found)
    assert "intersection over union" in capsys.readouterr().out
    selfsight.train.segment(**train, labels=str(place / "train" / "ids"), out=str(tmp_path / "third"), size=32)
    with pytest.raises(SelfsightError, match="do not know the same classes: cell, object"):
        selfsight.compare(heads[0], str(tmp_path / "third"), **test)


def test_pictures_that_arrive_are_segmented(place: Path, tmp_path: Path) -> None:
    head, out = load_head(place / "head"), tmp_path / "p.jsonl"
    for table in watched(head, str(place / "test" / "images"), out):
        if len(table):
            break
    assert table.to_pylist() == selfsight.predict(str(place / "test" / "images"), head=head).table.to_pylist()
    assert [json.loads(line) for line in out.read_text().splitlines()] == table.to_pylist()
