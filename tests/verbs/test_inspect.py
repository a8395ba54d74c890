"""train inspect, and what the other verbs make of its head: from good parts to defects, maps, figures and sentences."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import tiny_encoder, write_colours
from PIL import Image
from scipy.ndimage import maximum_filter

import selfsight
from selfsight.data.annotations.masks import IGNORE, read_mask, write_mask
from selfsight.data.importers import open_source
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.head import load_head
from selfsight.heads.inspect import p_values
from selfsight.heads.inspect_evaluation import InspectEvaluation
from selfsight.heads.inspect_head import InspectHead
from selfsight.heads.pictures import AT_THRESHOLD, names_of
from selfsight.heads.watching import watched
from selfsight.report.inspect_page import limit_of

BLOT = 16  # px


def write_parts(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (64, 64), blot: bool = False) -> Path:
    """`count` pictures NN.png of `size` (height, width) of a woven texture with noise; with a `blot`, a mask of it in
    the folder `masks` beside `folder`, under the same name."""
    rng = np.random.default_rng(seed)
    masks = folder.parent.parent / "masks" / folder.name
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        woven = 120 + 30 * np.sin(y / 2 + rng.uniform(0, 6)) * np.sin(x / 3 + rng.uniform(0, 6))
        pixels = woven[:, :, None] + rng.normal(0, 6, (height, width, 3))
        if blot:
            top, left = rng.integers(8, height - BLOT - 8), rng.integers(8, width - BLOT - 8)
            pixels[top : top + BLOT, left : left + BLOT] = (230, 40, 40)
            mask = np.zeros(size, bool)
            mask[top : top + BLOT, left : left + BLOT] = True
            masks.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(masks / f"{i:02d}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder(32, name="vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Path:
    """A folder with parts/good, test/ and masks/, and the head `head`, which tests only read."""
    folder = tmp_path_factory.mktemp("inspect")
    write_parts(folder / "parts" / "good", 30)
    write_parts(folder / "test" / "good", 12, seed=1)
    write_parts(folder / "test" / "blot", 8, seed=2, blot=True)
    selfsight.train.inspect(folder / "parts", model=encoder, out=folder / "head", false_alarms=0.1, size=64)
    return folder


def test_defects_are_found_and_the_promise_holds(place: Path) -> None:
    table = selfsight.predict(place / "test", head=place / "head").table.to_pylist()
    assert [row["id"] for row in table] == sorted(row["id"] for row in table)
    blots = [row for row in table if row["uri"].startswith("blot")]
    good = [row for row in table if row["uri"].startswith("good")]
    assert all(row["defect"] and row["p"] == pytest.approx(1 / 31) for row in blots)
    assert sum(row["defect"] for row in good) <= 4  # more has a probability of 1 in 100 at a rate of 0.1
    assert min(row["score"] for row in blots) > max(row["score"] for row in good)
    assert {row["map"] for row in table} == {None} and {row["head"] for row in table} == {
        load_head(place / "head").digest
    }


def test_the_head_says_what_it_was_made_of(place: Path) -> None:
    content = json.loads((place / "head" / "head.json").read_text())
    items = pq.read_table(place / "head" / "items.parquet")
    assert content["task"] == "inspect" and content["good"] == 30 and content["promised"] == 0.1
    assert items.column_names == ["id", "uri", "content_hash", "group", "label", "fold", "held_out", "features"]
    assert set(items["fold"].to_pylist()) == set(range(25))
    rows = sorted(items.to_pylist(), key=lambda row: -row["held_out"])
    assert [each["uri"] for each in content["suspicious"]] == [row["uri"] for row in rows[:5]]
    assert [each["p"] for each in content["suspicious"]] == pytest.approx([k / 30 for k in range(1, 6)])
    assert content["geometry"]["size"] == 64 and content["geometry"]["rule"] == "fit"


def test_the_network_says_of_pixels_what_predict_says_of_files(place: Path) -> None:
    head = load_head(place / "head")
    assert isinstance(head, InspectHead)
    table = selfsight.predict(place / "test", head=head).table
    files = [np.asarray(Image.open(place / "test" / uri)) for uri in table["uri"].to_pylist()]
    pixels = torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2)  # of the input's size, so nothing is resized
    with torch.inference_mode():
        found = head.module(pixels)
    assert found["score"].numpy() == pytest.approx(np.array(table["score"].to_pylist()), abs=1e-4)
    assert found["p"].numpy() == pytest.approx(np.array(table["p"].to_pylist()), abs=1e-6)
    assert found["defect"].tolist() == table["defect"].to_pylist()
    leaf = pixels[:1].float().requires_grad_()
    assert torch.autograd.grad(head.module(leaf)["score"].sum(), leaf)[0].abs().sum() > 0


def test_pictures_lie_where_the_table_says(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = selfsight.predict(place / "test", head=place / "head", out=out)
    rows = pq.read_table(out / "predictions.parquet").to_pylist()
    assert [row["map"] for row in rows] == [f"maps/{Path(row['uri']).with_suffix('')}.png" for row in rows]
    assert result.labels == {
        "good": sum(not row["defect"] for row in rows),
        "defect": sum(row["defect"] for row in rows),
    }
    assert sorted(path.name for path in out.iterdir()) == ["maps", "masks", "overlays", "predictions.parquet"]
    for row in rows:
        name = Path(row["uri"]).with_suffix(".png")
        with Image.open(out / row["map"]) as grey, Image.open(out / "masks" / name) as mask:
            assert grey.mode == "I;16" and mask.mode == "1" and mask.size == grey.size == (64, 64)
            assert np.array_equal(np.asarray(mask), np.asarray(grey) >= AT_THRESHOLD)
            values = np.asarray(grey).astype(float)
        if row["uri"].startswith("blot"):
            truth = np.asarray(Image.open(place / "masks" / name))
            y, x = np.unravel_index(values.argmax(), values.shape)
            rows_of, columns_of = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
            assert abs(y - rows_of.mean()) < 10 and abs(x - columns_of.mean()) < 10
        with Image.open(out / "overlays" / name) as overlay:
            assert overlay.mode == "RGB" and overlay.size == (64, 64)


def test_a_stopped_command_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    real, drawn = InspectHead.judge, []

    def judge(self: InspectHead, several: list, maps: bool = True) -> list:  # type: ignore[type-arg]
        if len(drawn) >= 6:
            raise KeyboardInterrupt
        drawn.extend(several)
        return real(self, several, maps)

    monkeypatch.setattr("selfsight.heads.placed.BATCH", 2 * 64 * 64)
    monkeypatch.setattr(InspectHead, "judge", judge)
    with pytest.raises(KeyboardInterrupt):
        selfsight.predict(place / "test", head=place / "head", out=out)
    kept = {path: path.stat().st_mtime_ns for path in (out / "maps").rglob("*.png")}
    assert len(kept) == 6
    monkeypatch.setattr(InspectHead, "judge", real)
    selfsight.predict(place / "test", head=place / "head", out=out)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list((out / "maps").rglob("*.png"))) == 20
    whole = selfsight.predict(place / "test", head=place / "head").table
    again = pq.read_table(out / "predictions.parquet")
    assert again["score"].to_pylist() == pytest.approx(whole["score"].to_pylist(), abs=1e-5)


def test_names_of_pictures() -> None:
    uris = ["a/x.png", "a/x.jpg", "b/y.tif", "b/y.tif", "B/Z.png", "b/z.png", "../up/w.png"]
    names = names_of(uris, [None, None, 0, 1, None, None, None])
    assert names == ["a/x.png", "a/x.jpg", "b/y.0", "b/y.1", "B/Z.png", "b/z.png", "up/w"]


def test_figures_of_a_test(place: Path, tmp_path: Path) -> None:
    found = selfsight.evaluate(place / "head", test=place / "test", masks=place / "masks", out=tmp_path / "out")
    assert isinstance(found, InspectEvaluation)
    assert found.metrics["auroc"].value == 1.0 and found.metrics["found"].value == 1.0
    assert found.metrics["pixel_auroc"].value > 0.9 and found.metrics["pro"].value > 0.6
    assert found.metrics["false_alarms_at_95"].value == 0.0 and found.good == 12 and found.items == 20
    assert set(found.defects) == {"blot"} and len(found.scores["defect"]) == 8
    assert InspectEvaluation.of(json.loads((tmp_path / "out" / "evaluation.json").read_text())) == found
    without = selfsight.evaluate(place / "head", test=place / "test", out=tmp_path / "other")
    assert "pixel_auroc" not in without.metrics and without.metrics["auroc"] == found.metrics["auroc"]
    learnt = tmp_path / "learnt"
    shutil.copytree(place / "test", learnt)
    shutil.copy(place / "parts" / "good" / "00.png", learnt / "good" / "again.png")
    again = selfsight.evaluate(place / "head", test=learnt, out=tmp_path / "third")
    assert any("1 test image was learnt from" in note for note in again.notes)
    with pytest.raises(DataError, match="has no defect among its labels"):
        selfsight.evaluate(place / "head", test=place / "parts")


def test_a_mask_of_another_size_is_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "masks", tmp_path / "masks")
    Image.new("1", (30, 64)).save(tmp_path / "masks" / "blot" / "03.png")
    with pytest.raises(DataError, match=r"blot/03.png cannot be used: a mask of 30 x 64 for an image of 64 x 64"):
        selfsight.evaluate(place / "head", test=place / "test", masks=tmp_path / "masks")
    (tmp_path / "masks" / "blot" / "03.png").unlink()
    found = selfsight.evaluate(place / "head", test=place / "test", masks=tmp_path / "masks", out=tmp_path / "out")
    assert "1 defect has no mask, and does not count for the figures of pixels" in found.notes


def test_known_defects_choose_and_are_counted(place: Path, tmp_path: Path, encoder: Encoder) -> None:
    result = selfsight.train.inspect(place / "test", model=encoder, out=tmp_path / "head")
    assert result.good == 12 and result.defects == 8 and set(result.metrics) == {"auroc", "found"}
    assert {name.split()[0] for name in result.tried} == {"memory", "gaussian"}
    assert {name.split()[1] for name in result.tried} == {"32", "64"}  # the files have 64 px
    best = max(result.tried, key=lambda name: result.tried[name])
    assert result.tried[best] == max(result.tried.values()) and best.split()[1] == str(result.size)
    assert result.promised == pytest.approx(1 / 13) and any("too few to promise 5 %" in note for note in result.notes)
    items = pq.read_table(tmp_path / "head" / "items.parquet")
    assert items["fold"].to_pylist().count(-1) == 8 and set(items["label"].to_pylist()) == {"good", "blot"}


@pytest.mark.parametrize("method", ["memory", "gaussian"])
@pytest.mark.parametrize("rule", ["squash", "fit", "tiles"])
def test_every_way_finds_a_blot_in_parts_of_another_shape(
    tmp_path: Path, encoder: Encoder, method: str, rule: str
) -> None:
    write_parts(tmp_path / "parts" / "good", 20, size=(60, 100))
    write_parts(tmp_path / "test" / "blot", 3, seed=2, size=(60, 100), blot=True)
    selfsight.train.inspect(
        tmp_path / "parts", model=encoder, out=tmp_path / "head", method=method, rule=rule, size=64, false_alarms=0.1
    )
    table = selfsight.predict(tmp_path / "test", head=tmp_path / "head", out=tmp_path / "out").table.to_pylist()
    for row in table:
        grey = np.asarray(Image.open(tmp_path / "out" / row["map"])).astype(float)
        truth = np.asarray(Image.open(tmp_path / "masks" / "blot" / Path(row["uri"]).name))
        assert row["defect"] and grey.shape == (60, 100) and grey[truth].mean() > 1.2 * grey[~truth].mean()


def test_tiles_agree_with_the_whole(place: Path, tmp_path: Path) -> None:
    """A blot in a large picture has the map that it has in a part of it, and there is no seam where tiles meet."""
    write_parts(tmp_path / "large" / "good", 1, seed=5, size=(150, 200))
    [path] = (tmp_path / "large" / "good").glob("*.png")
    pixels = np.asarray(Image.open(path)).copy()
    pixels[67:83, 87:103] = (230, 40, 40)
    tiled = selfsight.train.inspect(
        place / "parts", model=tiny_encoder(32), out=tmp_path / "tiles", rule="tiles", size=64, false_alarms=0.1
    )
    assert tiled.rule == "tiles"
    Image.fromarray(pixels).save(tmp_path / "large" / "blot.png")
    path.unlink()
    out = tmp_path / "out"
    selfsight.predict(tmp_path / "large", head=tmp_path / "tiles", out=out)
    found = np.asarray(Image.open(out / "maps" / "blot.png")).astype(float)
    opened = load_head(tmp_path / "tiles")
    assert isinstance(opened, InspectHead)
    with torch.inference_mode():  # the whole picture as one input, which a convolution takes
        padded = np.pad(pixels, ((0, 10), (0, 24), (0, 0)), mode="edge")
        whole = opened.module(torch.from_numpy(padded).permute(2, 0, 1)[None])["map"][0].numpy()[:150, :200]
    scaled = whole / opened.about.threshold * AT_THRESHOLD
    inside = np.s_[20:130, 20:180]
    assert np.corrcoef(found[inside].ravel(), scaled[inside].ravel())[0, 1] > 0.8
    assert np.unravel_index(found.argmax(), found.shape) == pytest.approx((75, 95), abs=8)
    steps = np.abs(np.diff(found, axis=1)).max(0)
    assert steps.max() < 3 * np.abs(np.diff(scaled, axis=1)).max()


def test_roi_limits_where_it_looks(place: Path, tmp_path: Path, encoder: Encoder) -> None:
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    Image.fromarray(left).save(tmp_path / "roi.png")
    selfsight.train.inspect(place / "parts", model=encoder, out=tmp_path / "head", roi=tmp_path / "roi.png", size=64)
    for name, x in (("left", 10), ("right", 50)):
        shutil.copytree(place / "test" / "good", tmp_path / "new" / name)
        for path in (tmp_path / "new" / name).glob("*.png"):
            pixels = np.asarray(Image.open(path)).copy()
            pixels[30:46, x : x + 10] = (230, 40, 40)
            Image.fromarray(pixels).save(path)
    write_parts(tmp_path / "new" / "other", 1, size=(40, 64))
    table = selfsight.predict(tmp_path / "new", head=tmp_path / "head", out=tmp_path / "out").table.to_pylist()
    by = {name: [row for row in table if row["uri"].startswith(name)] for name in ("left", "right", "other")}
    assert all(row["defect"] for row in by["left"])
    plain = selfsight.predict(place / "test" / "good", head=tmp_path / "head").table.to_pylist()
    assert sorted(row["score"] for row in by["right"]) == pytest.approx(
        sorted(row["score"] for row in plain), rel=0.25
    )  # a network looks around a place, a little
    assert [row["reason"] for row in by["other"]] == ["64 x 40 px, where the mask of --roi is 64 x 64"]
    grey = np.asarray(Image.open(tmp_path / "out" / by["left"][0]["map"]))
    assert (grey[:, 32:] == 0).all() and (grey[:, :32] > 0).all()
    with pytest.raises(DataError, match=r"--roi is 64 x 64 px, and the pictures of .* are 64 x 40 px"):
        selfsight.train.inspect(
            tmp_path / "new" / "other", model=encoder, out=tmp_path / "no", roi=tmp_path / "roi.png"
        )
    Image.fromarray(np.zeros((64, 64), bool)).save(tmp_path / "black.png")
    with pytest.raises(DataError, match="is 0 everywhere"):
        selfsight.train.inspect(place / "parts", model=encoder, out=tmp_path / "no", roi=tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no mask")
    with pytest.raises(DataError, match="cannot be used for --roi"):
        selfsight.train.inspect(place / "parts", model=encoder, out=tmp_path / "no", roi=tmp_path / "text.png")


def test_which_items_are_good(place: Path, tmp_path: Path, encoder: Encoder) -> None:
    def learnt(source: Path, **how: object) -> selfsight.train.Inspection:  # type: ignore[name-defined]
        return selfsight.train.inspect(source, model=encoder, out=tmp_path / "head", size=32, **how)

    many = tmp_path / "many"
    for name, seed in (("Normal", 0), ("OK", 1), ("free", 2)):
        write_parts(many / name, 6, seed=seed)
    write_parts(many / "blot", 2, seed=3, blot=True)
    result = learnt(many)
    assert (result.good, result.defects) == (12, 8)  # `free` is taken for a defect
    assert (learnt(many, normal="free").good, learnt(many, normal="free").defects) == (18, 2)
    shutil.rmtree(many / "Normal")
    shutil.rmtree(many / "OK")
    with pytest.raises(DataError, match=r"has no good part: its classes are blot, free, .* --normal NAME"):
        learnt(many)
    with pytest.raises(DataError, match=r"no class 'fre' for --normal; it has blot, free. Did you mean free\?"):
        learnt(many, normal="fre")
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), ("good/00.png", "scratch"), ("good/01.png", "scratch")])
    named = learnt(place / "parts", labels=tmp_path / "labels.csv")
    assert (named.good, named.defects) == (28, 2) and "name defects alone" in named.notes[0]
    assert learnt(place / "parts" / "good").good == 30  # no label at all
    usual = selfsight.train.inspect(place / "parts", model=encoder, out=tmp_path / "head")
    assert usual.size == 32 and any("the input size is that of training, 32 px" in note for note in usual.notes)


def test_too_few_good_parts(tmp_path: Path, encoder: Encoder) -> None:
    write_parts(tmp_path / "one" / "good", 1)
    with pytest.raises(DataError, match=r"has one good part only\. Give 20 or more"):
        selfsight.train.inspect(tmp_path / "one", model=encoder, out=tmp_path / "head")
    write_parts(tmp_path / "two" / "good", 2)
    broken = tmp_path / "two" / "good" / "01.png"
    data = bytearray(broken.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    broken.write_bytes(data)
    with pytest.raises(DataError, match=r"has one good part that can be read \(of another: .*\) only"):
        selfsight.train.inspect(tmp_path / "two", model=encoder, out=tmp_path / "head")
    write_parts(tmp_path / "three" / "good", 3)
    result = selfsight.train.inspect(tmp_path / "three", model=encoder, out=tmp_path / "head")
    assert result.promised == pytest.approx(1 / 4) and any("25.0 % can be promised" in note for note in result.notes)
    assert not (tmp_path / "two" / "head").exists()


def test_a_good_folder_that_holds_a_defect_shows_it(tmp_path: Path, encoder: Encoder) -> None:
    write_parts(tmp_path / "parts", 24)
    write_parts(tmp_path / "wrong" / "x", 1, seed=9, blot=True)
    shutil.copy(tmp_path / "wrong" / "x" / "00.png", tmp_path / "parts" / "stray.png")
    result = selfsight.train.inspect(tmp_path / "parts", model=encoder, out=tmp_path / "head", size=64)
    assert result.suspicious[0].uri == "stray.png" and result.suspicious[0].p == pytest.approx(1 / 25)


def test_changes_of_light_are_measured(place: Path) -> None:
    shifts = load_head(place / "head").about.shifts  # type: ignore[attr-defined]
    assert list(shifts) == ["none", "10 % more light", "10 % less light", "shifted by 4 px"]
    assert all(0 <= share <= 1 for share in shifts.values())
    held = pq.read_table(place / "head" / "items.parquet")["held_out"].to_numpy()
    flagged = [(1 + (np.delete(held, i) >= held[i]).sum()) / 30 <= 0.1 for i in range(30)]
    assert shifts["none"] == pytest.approx(np.mean(flagged))


def test_a_head_of_another_task_is_not_replaced(place: Path, tmp_path: Path, encoder: Encoder) -> None:
    write_colours(tmp_path / "train", 4)
    selfsight.train.classify(tmp_path / "train", model=encoder, out=tmp_path / "head")
    with pytest.raises(SelfsightError, match=r"holds a head of the task classify\. Give another -o"):
        selfsight.train.inspect(place / "parts", model=encoder, out=tmp_path / "head")
    shutil.copytree(place / "head", tmp_path / "other")
    with pytest.raises(SelfsightError, match=r"holds a head of the task inspect\. Give another -o"):
        selfsight.train.classify(tmp_path / "train", model=encoder, out=tmp_path / "other")
    before = load_head(tmp_path / "other").digest
    assert selfsight.train.inspect(place / "parts", model=encoder, out=tmp_path / "other", seed=1).replaced
    assert load_head(tmp_path / "other.before").digest == before != load_head(tmp_path / "other").digest
    content = json.loads((tmp_path / "other" / "head.json").read_text()) | {"task": "inspct"}
    (tmp_path / "other" / "head.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"There is no task 'inspct' here.* Did you mean inspect"):
        load_head(tmp_path / "other")
    [described] = selfsight.runs("list", tmp_path / "other").heads or []
    assert described.state == "damaged"


def test_other_verbs_know_the_head(
    place: Path, tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture
) -> None:  # type: ignore[type-arg]
    from selfsight.verbs import runs

    [described] = selfsight.runs("list", place / "head").heads or []
    assert (described.task, described.kind, described.classes, described.items) == ("inspect", None, None, 30)
    runs.show(selfsight.runs("list", place / "head"))
    assert "defects" in capsys.readouterr().out
    with pytest.raises(SelfsightError, match="is a head of defects, and the page asks for classes"):
        selfsight.label(place / "test", head=place / "head")
    with pytest.raises(SelfsightError, match="has no column colour"):
        selfsight.evaluate(place / "head", test=place / "test", by="colour")
    write_colours(tmp_path / "train", 4)
    selfsight.train.classify(tmp_path / "train", model=encoder, out=tmp_path / "classes")
    with pytest.raises(SelfsightError, match="--masks is for heads that say where"):
        selfsight.evaluate(tmp_path / "classes", test=tmp_path / "train", masks=place / "masks")
    with pytest.raises(SelfsightError, match=r"head is a head of the task inspect, .*classes of classify"):
        selfsight.compare(place / "head", tmp_path / "classes", test=place / "test")


def test_pixels_that_a_palette_leaves_out_count_neither_way(place: Path, tmp_path: Path) -> None:
    """255 of a palette is a border whose class nobody knows: maps may be high there."""
    shutil.copytree(place / "masks", tmp_path / "unknown")
    for file in (tmp_path / "unknown" / "blot").iterdir():
        with file.open("rb") as opened:
            file.write_bytes(write_mask(np.where(read_mask(opened) > 0, IGNORE, 0)))
    same = {"test": place / "test", "out": tmp_path / "out"}
    exact = selfsight.evaluate(place / "head", **same, masks=place / "masks").metrics
    assert "pixel_auroc" not in selfsight.evaluate(place / "head", **same, masks=tmp_path / "unknown").metrics
    for file in (tmp_path / "unknown" / "blot").iterdir():
        with (place / "masks" / "blot" / file.name).open("rb") as opened:
            inside = read_mask(opened)
        around = maximum_filter(inside, 17)
        file.write_bytes(write_mask(np.where(inside > 0, 1, np.where(around > 0, IGNORE, 0))))
    sharp = selfsight.evaluate(place / "head", **same, masks=tmp_path / "unknown").metrics
    assert sharp["pixel_auroc"].value > exact["pixel_auroc"].value


def test_a_line_is_watched(place: Path, tmp_path: Path) -> None:
    """What arrives is judged as `predict` judges it, once; a broken file is told when it is old."""
    line, out, head = tmp_path / "line", tmp_path / "p.jsonl", load_head(place / "head")
    shutil.copytree(place / "test" / "blot", line)
    (line / "broken.png").write_bytes(b"no picture")
    os.utime(line / "broken.png", (1, 1))
    found: list[dict] = []
    for table in watched(head, str(line), out):
        found += table.to_pylist()
        if len(found) == 9:
            break
    wanted = selfsight.predict(line, head=head).table.to_pylist()
    assert sorted(found, key=lambda row: row["id"]) == wanted and sum(bool(row["reason"]) for row in found) == 1
    assert [json.loads(text) for text in out.read_text().splitlines()] == found
    shutil.copy(place / "test" / "good" / "00.png", line / "late.png")
    for table in watched(head, str(line), out):
        if len(table):
            assert table["uri"].to_pylist() == ["late.png"]
            break


def test_two_inspections_are_compared_part_by_part(
    place: Path, tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture
) -> None:  # type: ignore[type-arg]
    from selfsight.verbs import compare

    selfsight.train.inspect(place / "parts", model=encoder, out=tmp_path / "other", size=32, method="gaussian")
    heads, said = (str(place / "head"), str(tmp_path / "other")), {"test": str(place / "test")}
    found = selfsight.compare(*heads, **said, masks=str(place / "masks"))
    for side, head in zip(found.metrics, heads, strict=True):
        alone = selfsight.evaluate(head, **said, masks=str(place / "masks"), out=str(tmp_path / "out")).metrics
        assert side == alone
    assert found.items == 20 and found.leading == "auroc" and list(found.difference) == list(found.metrics[0])
    for name, gap in found.difference.items():
        assert gap.value == pytest.approx(found.metrics[0][name].value - found.metrics[1][name].value)
        if name != "false_alarms_at_95":
            assert gap.low <= gap.value <= gap.high
    same = selfsight.compare(heads[0], heads[0], **said)
    assert same.better is None and {gap.value for gap in same.difference.values()} == {0.0}
    compare.show(found)
    assert "AUROC" in capsys.readouterr().out and json.loads(json.dumps(found.to_dict()))["leading"] == "auroc"


def test_forgetting_a_part(place: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "parts", tmp_path / "parts")
    selfsight.train.inspect("parts", model=encoder, out="heads/inspect", size=32)
    items = open_source("parts")
    [gone] = items.table.filter([uri == "good/00.png" for uri in items.table["uri"].to_pylist()])["id"].to_pylist()
    found = selfsight.forget("parts", "good/00.png")
    assert [each.kind for each in found.elsewhere] == ["head"]
    assert gone not in pq.read_table("heads/inspect/items.parquet")["id"].to_pylist()
    assert len(load_head("heads/inspect").items) == 29


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_moved_it_says_the_same(place: Path, tmp_path: Path, name: str) -> None:
    own = tiny_encoder(32, name=name, seed=3)
    selfsight.train.inspect(place / "parts", model=own, out=tmp_path / "head", size=48)
    before = selfsight.predict(place / "test", head=tmp_path / "head").table
    shutil.move(tmp_path / "head", tmp_path / "elsewhere")
    after = selfsight.predict(place / "test", head=tmp_path / "elsewhere").table
    assert after.equals(before) and load_head(tmp_path / "elsewhere").encoder.geometry.size == 48


def test_the_page_shows_figures_scores_and_parts(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "head", tmp_path / "head")
    first = selfsight.report(tmp_path / "head")
    assert first.verdict.word == "not measured" and first.items == 30
    selfsight.evaluate(tmp_path / "head", test=place / "test", masks=place / "masks")
    result = selfsight.report(tmp_path / "head")
    page = Path(result.report).read_text()
    assert result.verdict.word == "better than chance" and "It finds 100.0 %" in result.verdict.sentence
    assert page.count("data:image/jpeg") == 5 + 8 + 12 and "AUROC of pixels" in page and "good/" in page
    assert page.count('<rect class="bar"') > 10 and page.count("<title>") == page.count('<rect class="bar"') + 1
    private = selfsight.report(tmp_path / "head", private=True, out=tmp_path / "private.html")
    text = Path(private.report).read_text()
    assert "data:image/jpeg" not in text and "good/" not in text and str(place) not in text
    (tmp_path / "head" / "evaluation.json").write_text("{}")
    with pytest.raises(DataError, match=r"cannot be read\. Remove it"):
        selfsight.report(tmp_path / "head")


def test_the_limit_on_the_page_is_that_of_the_head() -> None:
    held = np.arange(19.0)  # with 19 parts and a rate of 0.1, one of them may score as high
    assert limit_of(held, 0.1) == pytest.approx(17.0) and limit_of(held, 0.05) == pytest.approx(18.0)
    for rate in (0.1, 0.2, 0.33):
        called = [p <= rate for p in p_values(held, held)]
        assert called == [score >= limit_of(held, rate) for score in held]
