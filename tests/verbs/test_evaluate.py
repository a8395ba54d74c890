"""evaluate: the contract of its JSON, honest labels, controls, and mistakes in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import NARROW, hub_folder, shuffled, tiny_encoder
from PIL import Image

import selfsight
from selfsight.data.importers import open_source
from selfsight.data.pixels import PixelFormat
from selfsight.encoders.features import pooled
from selfsight.encoders.store import save
from selfsight.encoders.weights import load
from selfsight.encoders.whitening import whiten, whitened, whitening
from selfsight.probing.evaluation import Evaluation
from selfsight.probing.linear import fit_linear
from selfsight.probing.metrics import metrics
from selfsight.probing.neighbours import fit_knn
from selfsight.verbs.evaluate import parse_shots


def stripes(folder: Path, count: int, seed: int) -> Path:
    """Two classes that a tiny encoder tells apart: bright and dark pictures."""
    rng = np.random.default_rng(seed)
    for name, level in (("bright", 190), ("dark", 60)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = (level + rng.normal(0, 25, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    save(tiny_encoder(), tmp_path / "encoder")
    return str(tmp_path / "encoder")


def test_contract(tmp_path: Path, encoder: str) -> None:
    train, test = stripes(tmp_path / "train", 12, 0), stripes(tmp_path / "test", 8, 1)
    result = selfsight.evaluate(
        encoder, train=str(train), test=str(test), shots="1,5,30,all", seeds=3, out=str(tmp_path / "out")
    )
    assert list(result.sides) == ["encoder", "random", "pixels", "commonest"] and result.about.leading == "top1"
    for name, side in result.sides.items():
        for probe in (side.linear,) if name == "commonest" else (side.knn, side.linear):
            for metric in ("top1", "balanced", "macro_f1", "auroc"):
                assert 0.0 <= probe[metric] <= 1.0
            assert probe["top2"] is None  # of two classes the truth is always among them
        assert list(side.few_shot) == ["1", "5", "30", "all"]
    assert result.encoder.knn["top1"] == 1.0  # brightness is plain to see
    assert result.encoder.few_shot["30"].std == 0.0  # all 12 of each class in every draw
    assert any("30 labels per class: bright, dark have fewer, all of their" in note for note in result.about.notes)
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert kept == result.to_dict() and Evaluation.of(kept) == result
    assert list(kept) == ["encoder", "random", "pixels", "about", "commonest", "gains", "more", "beside"]
    assert list(kept["gains"]) == ["random", "pixels", "commonest"] and list(kept["gains"]["random"]) == [
        "knn",
        "1",
        "5",
        "30",
        "all",
    ]
    assert list(kept["more"]) == ["1", "5", "30", "half"] and kept["about"]["test_of"] == {"bright": 8, "dark": 8}
    assert kept["encoder"]["recall"] == {"bright": 1.0, "dark": 1.0}
    assert kept["commonest"]["few_shot"]["all"]["mean"] == 0.5
    assert kept["about"]["leading"] == "top1" and kept["beside"] == {}
    for figure in ("balanced", "auroc"):  # of all labels they are those of the linear probe
        assert kept["random"]["few_shot"]["all"][figure] == {"mean": kept["random"]["linear"][figure], "std": 0.0}
    table = (tmp_path / "out" / "evaluation.csv").read_text()
    assert "encoder,knn,top1,1.0," in table and "encoder,knn,whitening,0.0," in table
    for figure in ("top1", "balanced", "auroc"):
        assert f"\nrandom,few_shot 5,{figure}," in table


def test_encoders_beside_it_are_measured_as_it_is(tmp_path: Path, encoder: str) -> None:
    train, test = stripes(tmp_path / "train", 6, 0), stripes(tmp_path / "test", 4, 1)
    hub_folder(tmp_path / "hub", **NARROW)
    other = load(str(tmp_path / "hub"), PixelFormat("RGB", 8, (0.0, 255.0)))

    def measured(**how: object) -> Evaluation:
        return selfsight.evaluate(  # type: ignore[arg-type]
            encoder, train=str(train), test=str(test), seeds=2, out=str(tmp_path / "out"), **how
        )

    hub = str(tmp_path / "hub")
    first = measured(beside=f"{hub}, {encoder}", shots="5,all")
    assert list(first.sides) == ["encoder", "random", "pixels", hub, encoder, "commonest"]
    assert first.beside[encoder] == first.encoder and first.gains[encoder]["knn"].value == 0.0
    alone = selfsight.evaluate(hub, train=str(train), test=str(test), seeds=2, shots="5,all")
    assert first.beside[hub] == alone.encoder and first.about.beside[hub] == alone.about.encoder
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(kept["beside"]) == [hub, encoder] and Evaluation.of(kept) == first
    assert f"\n{hub},few_shot 5,balanced," in (tmp_path / "out" / "evaluation.csv").read_text()
    later = measured(beside=[hub, other], shots="1")  # what is the same is kept, with its gains
    assert list(later.beside) == [hub, "Encoder 2", encoder] and list(later.gains)[-1] == encoder
    assert list(later.beside[hub].few_shot) == list(later.gains[hub])[1:] == ["1", "5", "all"]
    assert later.beside["Encoder 2"].knn == later.beside[hub].knn
    assert next(iter(measured(beside=tiny_encoder(seed=1), shots="1").beside)) == "Encoder 1"
    assert list(measured(beside=other, shots="5").beside["Encoder 1"].few_shot) == ["5"]  # another one by now


def test_what_is_beside_is_whitened_as_controls_are_unless_it_is_already(tmp_path: Path, encoder: str) -> None:
    train, test = stripes(tmp_path / "train", 12, 0), stripes(tmp_path / "test", 12, 1)
    plain = selfsight.load(encoder)
    white = selfsight.load(encoder)
    assert whiten(white, torch.randn(50, white.dim, generator=torch.Generator().manual_seed(0)))
    found = selfsight.evaluate(white, train=str(train), test=str(test), beside=[white, plain], shots="all", seeds=1)
    assert found.beside["Encoder 1"] == found.encoder
    sides = [pooled(plain, open_source(folder)) for folder in (train, test)]
    features, asked = whitened([some for _, some, _ in sides])
    labels, truth = (np.array([int(uri.startswith("dark")) for uri in rows["uri"].to_pylist()]) for rows, _, _ in sides)
    votes = fit_knn(features, labels, 2, whitening=None).scores(asked)
    assert found.beside["Encoder 2"].knn["auroc"] == metrics(votes, truth)["auroc"]
    assert found.beside["Encoder 2"].linear["C"] == fit_linear(features, labels, 2).strength


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ("", "--beside lacks a name"),
        ("runs/a,", "--beside lacks a name"),
        ("pixels", r"--beside pixels would be taken for a control of every evaluation\. Write \./pixels\."),
        ("nowhere/at/all", "nowhere/at/all"),
    ],
)
def test_names_beside_it_that_mean_nothing_stop_before_anything_is_measured(
    tmp_path: Path, encoder: str, beside: str, said: str
) -> None:
    train, test = stripes(tmp_path / "train", 3, 0), stripes(tmp_path / "test", 3, 1)
    (tmp_path / "hub").mkdir()
    beside = beside.replace("runs/a", encoder)
    with pytest.raises(selfsight.SelfsightError, match=said):
        selfsight.evaluate(encoder, train=str(train), test=str(test), beside=beside)


def test_earlier_shots_of_the_same_labels_are_kept(tmp_path: Path, encoder: str) -> None:
    train, test = stripes(tmp_path / "train", 6, 0), stripes(tmp_path / "test", 4, 1)

    def measured(shots: str, seeds: int = 2) -> Evaluation:
        out = str(tmp_path / "out")
        return selfsight.evaluate(encoder, train=str(train), test=str(test), shots=shots, seeds=seeds, out=out)

    first = measured("5,all")
    both = measured("1")
    for side in both.sides.values():
        assert list(side.few_shot) == ["1", "5", "all"]
    assert both.pixels.few_shot["5"] == first.pixels.few_shot["5"]
    assert list(both.gains["pixels"]) == ["knn", "1", "5", "all"] and list(both.more) == ["1", "5", "half"]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == both.to_dict()
    assert list(measured("1", seeds=3).encoder.few_shot) == ["1"]  # other draws
    measured("5")
    (test / "dark" / "00.png").unlink()
    assert list(measured("1").encoder.few_shot) == ["1"]  # other images


def test_pixels_are_compared_on_the_same_images_one_by_one(tmp_path: Path, encoder: str) -> None:
    """Of uneven classes the weights of items show it: a gain is the difference of what the two sides have."""
    train, test = stripes(tmp_path / "train", 12, 0), stripes(tmp_path / "test", 30, 1)
    rng = np.random.default_rng(2)
    for path in sorted((test / "dark").iterdir())[12:]:
        path.unlink()
    for path in test.rglob("*.png"):  # some that pixels get wrong
        level = rng.uniform(100, 150)
        Image.fromarray((level + rng.normal(0, 60, (32, 32, 3))).clip(0, 255).astype(np.uint8)).save(path)
    found = selfsight.evaluate(encoder, train=str(train), test=str(test), shots="1,all", seeds=2)
    assert found.about.leading == "balanced"
    for name in ("random", "pixels"):
        side, gain = found.sides[name], found.gains[name]
        assert gain["knn"].value == pytest.approx(found.encoder.knn["balanced"] - side.knn["balanced"])
        few = [one.few_shot["1"].balanced for one in (found.encoder, side)]
        assert gain["1"].value == pytest.approx(few[0].mean - few[1].mean)


def test_one_collection_is_split_by_a_column(tmp_path: Path, encoder: str) -> None:
    folder = stripes(tmp_path / "images", 20, 0)
    lines = [f"{p.relative_to(folder)},{p.parent.name},p{int(p.stem) // 4}" for p in sorted(folder.rglob("*.png"))]
    (folder / "t.csv").write_text("\n".join(["path,label,group", *lines]))
    selfsight.import_(str(folder / "t.csv"), out=str(tmp_path / "t.lance"))
    result = selfsight.evaluate(encoder, data=str(tmp_path / "t.lance"), split_by="group", shots="all", seeds=1)
    assert (result.about.train_items, result.about.test_items) == (32, 8)
    assert result.about.notes == ["train and test are split by group: 4 values in train, 1 in test, none in both"]
    assert result.encoder.knn["top1"] == 1.0
    for said, wrong in (
        ("--train is missing", {}),
        ("--test is missing", {"train": "x"}),
        ("--train is missing", {"test": "x"}),
        ("--split-by is missing", {"data": "x"}),
        ("--data is missing", {"split_by": "x"}),
        ("--train and --test go without --data and --split-by", {"train": "x", "test": "x", "data": "x"}),
    ):
        with pytest.raises(
            selfsight.SelfsightError, match=said + r"\. .*--train FOLDER --test FOLDER, or --data SOURCE"
        ):
            selfsight.evaluate(encoder, **wrong)


def test_a_file_where_a_folder_belongs_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(selfsight.SelfsightError, match=r"taken is a file\. Give a folder for evaluation\.json"):
        selfsight.evaluate("none", train="none", test="none", out=str(tmp_path / "taken"))


def test_a_class_of_the_test_side_only_is_not_said_of_the_whole_source(tmp_path: Path, encoder: str) -> None:
    folder = stripes(tmp_path / "images", 4, 0)
    lines = [f"{p.relative_to(folder)},{p.parent.name},train" for p in sorted(folder.rglob("*.png"))]
    lines[0] = lines[0].replace(",bright,train", ",grey,test")
    (folder / "t.csv").write_text("\n".join(["path,label,split", *lines]))
    with pytest.raises(selfsight.SelfsightError, match=r"^The test side of .*t\.csv has classes that its train side"):
        selfsight.evaluate(encoder, data=str(folder / "t.csv"), split_by="split", shots="all", seeds=1)


def test_a_control_is_whitened_by_the_images_of_both_folders() -> None:
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(8, 6)), rng.normal(size=(200, 6)) * (9, 1, 1, 1, 1, 1)
    sides = [x.astype(np.float32) for x in (few, many)]
    weight, bias = (part.numpy() for part in whitening(torch.from_numpy(np.concatenate(sides))))
    for x, white in zip(sides, whitened(sides), strict=True):
        assert np.allclose(white, x @ weight.T + bias, atol=1e-4)


@pytest.mark.parametrize("model", ["hub", "hub/model.safetensors", "resnet10t", "timm:resnet10t", "start"])
def test_what_was_not_trained_is_its_own_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    hub_folder(Path("hub"), **NARROW)
    encoder = load("hub", PixelFormat("RGB", 8, (0.0, 255.0)))
    save(encoder, "start")  # as a run keeps it
    of_hub = shuffled(timm.create_model("resnet10t")).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(of_hub))
    Path("timm:resnet10t").mkdir()  # a folder that is none of an encoder
    train, test = stripes(tmp_path / "train", 3, 0), stripes(tmp_path / "test", 3, 1)
    result = selfsight.evaluate(model, train=str(train), test=str(test), shots="1", seeds=1)
    assert result.start is None and not any("starting weights" in note for note in result.about.notes)


def test_a_trained_encoder_without_its_start_is_told(tmp_path: Path) -> None:
    train, test = stripes(tmp_path / "train", 3, 0), stripes(tmp_path / "test", 3, 1)
    encoder = tiny_encoder()
    encoder.about |= {"starting_weights": "hub", "view_size": 32}  # as a run saves it
    save(encoder, tmp_path / "encoder")
    for model in (tmp_path / "encoder", tmp_path / "encoder" / "model.safetensors"):
        notes = selfsight.evaluate(str(model), train=str(train), test=str(test), shots="1", seeds=1).about.notes
        assert f"{model} has no folder start, so its starting weights are not among the controls" in notes


def test_unreadable_files_do_not_shift_the_labels(tmp_path: Path, encoder: str) -> None:
    train, test = stripes(tmp_path / "train", 12, 0), stripes(tmp_path / "test", 8, 1)
    for i in range(0, 12, 3):  # a third of one class breaks, half of it only at decoding
        good = (train / "bright" / f"{i:02d}.png").read_bytes()
        broken = good[:60] + bytes(200) + good[260:] if i % 2 else good[: len(good) // 2]
        (train / "bright" / f"{i:02d}.png").write_bytes(broken)
    result = selfsight.evaluate(encoder, train=str(train), test=str(test), shots="1", seeds=1)
    assert result.encoder.knn["top1"] == 1.0 and result.pixels.knn["top1"] == 1.0
    assert result.about.train_items == 20


def test_images_without_a_label_are_left_out_and_counted(tmp_path: Path, encoder: str) -> None:
    train, test = stripes(tmp_path / "train", 6, 0), stripes(tmp_path / "test", 4, 1)
    wanted = selfsight.evaluate(encoder, train=str(train), test=str(test), shots="1", seeds=1)
    for i in range(2):  # in no folder of a class
        Image.fromarray(np.full((32, 32, 3), 90 * i, np.uint8)).save(train / f"{i}.png")
    items = open_source(test)  # and one whose label a person took away
    row = items.usable.to_pylist()[0]
    decision = items.decisions.decide(row["id"], row["content_hash"], "label", None, old=row["uri"].partition("/")[0])
    result = selfsight.evaluate(encoder, train=str(train), test=str(test), shots="1", seeds=1)
    assert f"{train}: 2 of 14 images have no label and are left out" in result.about.notes
    assert f"{test}: 1 of 8 images have no label and are left out" in result.about.notes
    assert (result.about.train_items, result.about.test_items) == (12, 7)
    items.decisions.undo(decision)
    again = selfsight.evaluate(encoder, train=str(train), test=str(test), shots="1", seeds=1)
    assert again.encoder == wanted.encoder


def test_the_same_image_on_both_sides_is_said(tmp_path: Path, encoder: str) -> None:
    train, test = stripes(tmp_path / "train", 4, 0), stripes(tmp_path / "test", 4, 1)
    (test / "dark" / "again.png").write_bytes((train / "dark" / "00.png").read_bytes())
    result = selfsight.evaluate(encoder, train=str(train), test=str(test), shots="1", seeds=1)
    assert any("1 image" in note and "both train and test" in note for note in result.about.notes)


def test_mistakes(tmp_path: Path, encoder: str) -> None:
    train, test = stripes(tmp_path / "train", 3, 0), stripes(tmp_path / "test", 3, 1)
    (test / "unknown").mkdir()
    (test / "dark" / "00.png").rename(test / "unknown" / "00.png")
    with pytest.raises(selfsight.SelfsightError, match="unknown"):
        selfsight.evaluate(encoder, train=str(train), test=str(test))
    flat = tmp_path / "flat"
    flat.mkdir()
    (test / "dark" / "01.png").rename(flat / "01.png")
    with pytest.raises(selfsight.SelfsightError, match="folder of its own"):
        selfsight.evaluate(encoder, train=str(flat), test=str(train))


@pytest.mark.parametrize("text", ["", "0", "-1", "1,many", "1.5"])
def test_shots_that_mean_nothing(text: str) -> None:
    with pytest.raises(selfsight.SelfsightError, match="--shots"):
        parse_shots(text)


def test_shots_are_text_or_a_number_or_a_list() -> None:
    assert parse_shots("1, 5,all") == parse_shots([1, 5, "all"]) == parse_shots(("1", 5, "all")) == ["1", "5", "all"]
    assert parse_shots(5) == parse_shots([5]) == ["5"]
    assert parse_shots("all,30,5,30") == ["5", "30", "all"]  # the last is the most, which the conclusion is about
    for wrong in (0, [-1], [], ["1,5"], True):
        with pytest.raises(selfsight.SelfsightError, match="--shots"):
            parse_shots(wrong)


def test_an_encoder_in_place_of_its_name_gives_the_same(
    tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = stripes(tmp_path / "train", 6, 0), stripes(tmp_path / "test", 4, 1)
    monkeypatch.chdir(tmp_path)
    named = selfsight.evaluate(encoder, train=str(train), test=str(test), shots="1,all", seeds=2)
    given = selfsight.evaluate(selfsight.load(encoder), train=str(train), test=str(test), shots="1,all", seeds=2)
    assert given.about.model == "Encoder" and given.about.encoder == named.about.encoder
    assert (given.encoder, given.random, given.pixels) == (named.encoder, named.random, named.pixels)
    assert not list(tmp_path.rglob("evaluation.*"))
