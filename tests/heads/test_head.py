"""A head folder: what is in it is all that it needs, and it says the same wherever it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import tiny_encoder, write_colours
from PIL import Image

import selfsight
from selfsight.data.importers import open_source
from selfsight.encoders.store import save
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.head import Head, load_head


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    save(tiny_encoder(32), folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, encoder: str) -> Path:
    """A folder with train/, test/ and a head of each method, which tests only read."""
    folder = tmp_path_factory.mktemp("heads")
    write_colours(folder / "train", 12)
    write_colours(folder / "test", 10, seed=1)
    for method in ("linear", "knn", "prototypes"):
        selfsight.train.classify(str(folder / "train"), model=encoder, out=str(folder / method), method=method)
    return folder


@pytest.mark.parametrize("method", ["linear", "knn", "prototypes"])
def test_the_network_says_of_pixels_what_predict_says_of_files(place: Path, method: str) -> None:
    head = load_head(place / method)
    table = selfsight.predict(str(place / "test"), head=head).table
    files = [np.asarray(Image.open(place / "test" / uri)) for uri in table["uri"].to_pylist()]
    pixels = torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2)  # uint8 [B, C, H, W], as they are in the files
    with torch.inference_mode():
        found = head.module(pixels)
    assert found["probabilities"].numpy() == pytest.approx(np.array(table["probabilities"].to_pylist()), abs=1e-5)
    assert found["novel"].numpy() == pytest.approx(np.array(table["novel"].to_pylist()), abs=1e-6)
    parts = head.module
    by_hand = parts.calibrate(parts.task(parts.encoder(parts.prepare(pixels)).pooled))
    assert torch.equal(by_hand["probabilities"], found["probabilities"]) or torch.allclose(
        by_hand["probabilities"], found["probabilities"], atol=1e-6
    )
    gradient = torch.autograd.grad(
        parts(leaf := pixels.float().requires_grad_())["probabilities"][:, 0].sum(), leaf
    )[0]  # fmt: skip
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_moved_without_its_collection_it_predicts_the_same(place: Path, tmp_path: Path, method: str) -> None:
    before = selfsight.predict(str(place / "test"), head=str(place / method)).table
    shutil.copytree(place / method, tmp_path / "elsewhere" / "head")
    shutil.copytree(place / "test", tmp_path / "test")
    after = selfsight.predict(str(tmp_path / "test"), head=str(tmp_path / "elsewhere" / "head")).table
    one, two = ({row["uri"]: row for row in table.to_pylist()} for table in (before, after))
    assert one.keys() == two.keys() and len(one) == 30
    for uri, row in one.items():
        assert row["probabilities"] == pytest.approx(two[uri]["probabilities"], abs=1e-5)
        assert (row["label"], row["set"], row["head"]) == (two[uri]["label"], two[uri]["set"], two[uri]["head"])


def test_why_is_the_most_alike_example(place: Path) -> None:
    head = load_head(place / "linear")
    table = selfsight.predict(str(place / "train"), head=head).table
    for row in table.to_pylist():  # an item that was learnt from is most like itself
        assert row["why"][0]["id"] == row["id"] and row["why"][0]["similarity"] == pytest.approx(1.0, abs=1e-5)
        assert row["why"][0]["label"] == row["uri"].split("/")[0] and len(row["why"]) == 3


def test_what_is_unlike_all_examples_is_new(place: Path) -> None:
    head = load_head(place / "linear")
    bank = np.array(head.items["features"].to_pylist(), np.float32)
    assert head.tensors(-bank.mean(0, keepdims=True))["novel"][0] == pytest.approx(1 / 37)  # farther than all 36
    usual = np.array(selfsight.predict(str(place / "test"), head=head).table["novel"].to_pylist())
    assert 0.25 < usual.mean() < 0.75 and (usual < 0.1).mean() < 0.3


def test_held_out_figures_are_those_of_the_table(place: Path) -> None:
    content = json.loads((place / "linear" / "head.json").read_text())
    items = pq.read_table(place / "linear" / "items.parquet").to_pylist()
    right = [content["classes"][int(np.argmax(row["held_out"]))] == row["label"] for row in items]
    assert content["metrics"]["held_out"]["top1"]["value"] == pytest.approx(np.mean(right))
    assert content["licence"] == "none" or content["licence"]
    assert {row["fold"] for row in items} == set(range(10)) and content["items"] == 36


def test_files_that_cannot_be_read_are_rows_with_a_reason(place: Path, tmp_path: Path) -> None:
    write_colours(tmp_path / "new", 1)
    (tmp_path / "new" / "red" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    out = tmp_path / "p.jsonl"
    result = selfsight.predict(str(tmp_path / "new"), head=str(place / "linear"), out=str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 4 and result.items == 3 and result.set_aside == 1
    [bad] = [row for row in rows if row["reason"]]
    assert bad["uri"] == "red/bad.png" and bad["label"] is None and bad["probabilities"] is None


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json", "jsonl", "lance"])
def test_every_format_holds_the_same(place: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"p.{suffix}"
    table = selfsight.predict(str(place / "test"), head=str(place / "linear"), out=str(out)).table
    if suffix == "parquet":
        rows = pq.read_table(out).to_pylist()
    elif suffix == "lance":
        import lance

        rows = sorted(lance.dataset(out).to_table().to_pylist(), key=lambda row: row["id"])
    elif suffix == "csv":
        import csv

        with out.open() as file:
            rows = [row | {"set": json.loads(row["set"])} for row in csv.DictReader(file)]
    else:
        text = out.read_text()
        rows = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    assert [row["id"] for row in rows] == table["id"].to_pylist()
    assert [row["label"] for row in rows] == table["label"].to_pylist()
    assert [row["set"] for row in rows] == table["set"].to_pylist()


def test_damage_is_said_in_a_sentence(place: Path, tmp_path: Path, encoder: str) -> None:
    with pytest.raises(DataError, match="it has no head"):
        load_head(tmp_path)
    for name in ("head.json", "head.safetensors", "items.parquet", "encoder/model.safetensors"):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(place / "linear", folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:-40] if name == "head.json" else b"damaged")
        with pytest.raises(SelfsightError, match=r"cannot be read|is damaged|no head"):
            load_head(folder)
    other = tmp_path / "other"
    shutil.copytree(place / "linear", other)
    shutil.rmtree(other / "encoder")
    save(tiny_encoder(32, seed=5), other / "encoder")
    with pytest.raises(DataError, match="is not the one that the head was trained on"):
        load_head(other)
    content = json.loads((place / "linear" / "head.json").read_text()) | {"format_version": 99}
    (other / "head.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="newer selfsight"):
        load_head(other)


def test_it_learns_again_and_keeps_the_one_before(tmp_path: Path, encoder: str) -> None:
    write_colours(tmp_path / "photos", 6)
    out = tmp_path / "head"
    first = selfsight.train.classify(str(tmp_path / "photos"), model=encoder, out=str(out), method="linear")
    assert first.over_before is None and first.replaced
    write_colours(tmp_path / "photos", 12)
    more = selfsight.train.classify(str(tmp_path / "photos"), model=encoder, out=str(out), method="linear")
    assert more.replaced and more.items == 36
    assert load_head(tmp_path / "head.before").about.items == 18
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["parent"] == load_head(tmp_path / "head.before").digest
    names = [path.relative_to(tmp_path / "photos").as_posix() for path in sorted((tmp_path / "photos").rglob("*.png"))]
    rng = np.random.default_rng(0)
    wrong = rng.permutation([name.split("/")[0] for name in names])
    lines = ["path,label", *(f"{name},{label}" for name, label in zip(names, wrong, strict=True))]
    (tmp_path / "wrong.csv").write_text("\n".join(lines))
    worse = selfsight.train.classify(
        str(tmp_path / "photos"), model=encoder, out=str(out), labels=str(tmp_path / "wrong.csv"), method="linear"
    )
    # Against labels that are noise the old head's held-out answers, of the true labels, are no better by proof.
    assert worse.over_before is not None and worse.over_before.low is not None
    assert load_head(out).about.items == 36


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path, encoder: str) -> None:
    write_colours(tmp_path / "photos", 2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all I have")
    with pytest.raises(SelfsightError, match="holds something else than a head"):
        selfsight.train.classify(str(tmp_path / "photos"), model=encoder, out=str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_one_label_a_class_is_enough_and_says_what_it_cannot_promise(tmp_path: Path, encoder: str) -> None:
    write_colours(tmp_path / "photos", 1)
    result = selfsight.train.classify(str(tmp_path / "photos"), model=encoder, out=str(tmp_path / "head"))
    assert result.method == "prototypes" and result.metrics == {}
    assert any("Give two or more labels per class" in note for note in result.notes)
    table = selfsight.predict(str(tmp_path / "photos"), head=str(tmp_path / "head")).table
    assert table["label"].to_pylist() == [uri.split("/")[0] for uri in table["uri"].to_pylist()]
    assert table["set"].null_count == 3


@pytest.mark.parametrize("method", ["knn", "linear"])
def test_forget_takes_a_persons_image_out(
    tmp_path: Path, encoder: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(tmp_path / "photos", 4)
    out = tmp_path / "photos.lance"
    selfsight.import_(str(tmp_path / "photos"), out=str(out))
    selfsight.train.classify(str(out), model=encoder, out=str(tmp_path / "head"), method=method)
    shutil.move(tmp_path / "head", tmp_path / "moved")  # so that its note does not lead there
    selfsight.train.classify(str(out), model=encoder, out=str(tmp_path / "head"), method=method)
    gone = open_source(str(out)).table.filter(
        [u == "red/002.png" for u in open_source(str(out)).table["uri"].to_pylist()]
    )
    result = selfsight.forget(str(out), "red/002.png")
    assert [(other.kind, Path(other.path).name) for other in result.elsewhere if other.kind == "head"] == [
        ("head", "head")
    ]
    assert gone["id"][0].as_py().encode() not in (tmp_path / "head" / "items.parquet").read_bytes()
    head = load_head(tmp_path / "head")
    assert len(head.items) == 11 and isinstance(head, Head)
    table = selfsight.predict(str(tmp_path / "photos"), head=head).table
    assert gone["id"][0].as_py() not in {one["id"] for row in table["why"].to_pylist() for one in row or []}


def test_evaluate_of_a_head(place: Path, tmp_path: Path) -> None:
    head = load_head(place / "linear")
    result = selfsight.evaluate(str(place / "linear"), test=str(place / "test"), out=str(tmp_path / "figures"))
    table = selfsight.predict(str(place / "test"), head=head).table
    right = [
        uri.split("/")[0] == label
        for uri, label in zip(table["uri"].to_pylist(), table["label"].to_pylist(), strict=True)
    ]
    assert result.metrics["top1"].value == pytest.approx(np.mean(right)) and result.items == 30
    assert sum(map(sum, result.confusion)) == 30
    assert sum(result.confusion[i][i] for i in range(3)) == sum(right)
    assert len(result.mistakes) == min(24, 30 - sum(right))
    assert sum(count for _, _, count in result.reliability) == 30
    assert Image.open(tmp_path / "figures" / "confusion.png").width > 200
    again = selfsight.evaluate(str(place / "linear"), test=str(place / "train"))
    assert any("36 test images were learnt from, byte for byte; the figures flatter" in note for note in again.notes)


def test_evaluate_by_a_column_and_what_it_refuses(place: Path, tmp_path: Path) -> None:
    paths = sorted((place / "test").rglob("*.png"))
    names = [path.relative_to(place / "test").as_posix() for path in paths]
    rows = [f"{name},{name.split('/')[0]},{'a' if i % 2 else 'b'}" for i, name in enumerate(names)]
    (tmp_path / "test.csv").write_text("\n".join(["path,label,site", *rows]))
    out = tmp_path / "test.lance"
    selfsight.import_(str(tmp_path / "test.csv"), out=str(out), root=str(place / "test"))
    result = selfsight.evaluate(str(place / "linear"), test=str(out), by="site")
    assert set(result.by) == {"a", "b"}
    halves = [result.by[site]["top1"].value or 0.0 for site in ("a", "b")]
    assert np.mean(halves) == pytest.approx(result.metrics["top1"].value)
    with pytest.raises(SelfsightError, match="no column sight"):
        selfsight.evaluate(str(place / "linear"), test=str(out), by="sight")
    with pytest.raises(SelfsightError, match="--train is for encoders"):
        selfsight.evaluate(str(place / "linear"), train=str(place / "train"), test=str(out))  # type: ignore[call-overload]
    shutil.copytree(place / "test" / "red", tmp_path / "strange" / "purple")
    with pytest.raises(SelfsightError, match="classes that the head does not know: purple"):
        selfsight.evaluate(str(place / "linear"), test=str(tmp_path / "strange"))


def test_heads_that_differ_in_a_setting_alone_are_told_apart(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "knn", tmp_path / "knn")
    content = json.loads((tmp_path / "knn" / "head.json").read_text())
    other = {"k=5": "k=20", "k=20": "k=5"}[content["setting"]]
    (tmp_path / "knn" / "head.json").write_text(json.dumps(content | {"setting": other}))
    assert load_head(tmp_path / "knn").digest != load_head(place / "knn").digest


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json", "jsonl", "lance"])
def test_forget_finds_predictions_of_every_format(tmp_path: Path, encoder: str, suffix: str) -> None:
    write_colours(tmp_path / "photos", 2)
    items, out = tmp_path / "photos.lance", tmp_path / f"p.{suffix}"
    selfsight.import_(str(tmp_path / "photos"), out=str(items))
    selfsight.train.classify(str(items), model=encoder, out=str(tmp_path / "head"), method="prototypes")
    selfsight.predict(str(items), head=str(tmp_path / "head"), out=str(out))
    found = selfsight.forget(str(items), "red/001.png").elsewhere
    assert str(out.resolve()) in [other.path for other in found if other.kind == "features"]
