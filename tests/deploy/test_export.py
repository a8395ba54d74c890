"""export and the run.py that it writes: what is said without selfsight and without PyTorch is what predict says."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from cells import write_cells
from helpers import tiny_encoder, write_colours
from PIL import Image
from scipy.ndimage import label
from skimage.segmentation import watershed

import selfsight
from selfsight.data.annotations.rle import encode
from selfsight.deploy import export as making
from selfsight.deploy import proof, run
from selfsight.deploy.precision import Quantiser
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.head import load_head
from selfsight.heads.segment_head import SegmentHead
from selfsight.verbs.export import Exported

NEEDED = ("numpy", "numpy.libs", "PIL", "pillow.libs", "onnxruntime")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads `colours`, `parts` and `cells`, with what they learnt from; tests only read them."""
    folder = tmp_path_factory.mktemp("export")
    write_colours(folder / "photos", 14)
    (folder / "photos" / "red" / "000.png").rename(folder / "wide.png")
    selfsight.train.classify(str(folder / "photos"), model=tiny_encoder(32), out=str(folder / "colours"))
    rng = np.random.default_rng(0)
    (folder / "good").mkdir()
    for i in range(24):
        woven = 30_000 + 3000 * np.sin(np.arange(40)[:, None] / 2 + i) + rng.normal(0, 900, (40, 64))
        if i >= 20:
            woven[8:24, 20:36] = 60_000
        Image.fromarray(woven.astype(np.uint16)).save(folder / "good" / f"{i:02d}.png")
    (folder / "bad").mkdir()
    for i in range(20, 24):
        (folder / "good" / f"{i}.png").rename(folder / "bad" / f"{i}.png")
    grey = replace(tiny_encoder(32, channels=1).geometry, depth=16, window=(15_000.0, 62_000.0))
    encoder = tiny_encoder(32, channels=1)
    encoder.geometry = grey
    selfsight.train.inspect(str(folder / "good"), model=encoder, out=str(folder / "parts"), size=64, false_alarms=0.1)
    write_cells(folder / "cells_", 5, 0)
    labels = str(folder / "cells_" / "cells.json")
    source = str(folder / "cells_" / "images")
    selfsight.train.segment(source, model=tiny_encoder(64), labels=labels, out=str(folder / "cells"), size=64)
    return folder


@pytest.fixture(scope="module")
def colours(place: Path) -> Exported:
    """The classifier, exported to colours.onnx in a folder of its own."""
    return selfsight.export(str(place / "colours"), out=str(place / "exported" / "colours.onnx"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages that has what run.py needs, and nothing else."""
    folder, site = tmp_path_factory.mktemp("bare"), Path(sysconfig.get_paths()["purelib"])
    for name in NEEDED:
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    return folder


def said(file: Path, images: list[Path], bare: Path) -> list[dict[str, object]]:
    """What run.py beside the file prints, where there is neither torch nor selfsight."""
    command = [sys.executable, "-S", str(file.parent / "run.py"), "--model", str(file), *map(str, images)]
    done = subprocess.run(command, env={"PYTHONPATH": str(bare)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_same(rows: list[dict[str, object]], source: Path, head: str | SegmentHead, tolerance: float = 1e-4) -> None:
    """Rows of run.py say what predict says of the pictures in a folder, in its order of ids."""
    table = selfsight.predict(str(source), head=head).table.drop_columns(["id", "uri"]).to_pylist()
    assert len(rows) == len(table) > 0
    for row, want in zip(rows, table, strict=True):
        assert set(want) - set(row) <= {"why"}
        for name, value in row.items():
            if name != "uri":
                check_value(value, want[name], tolerance)


def check_value(value: object, want: object, tolerance: float) -> None:
    if isinstance(want, dict):
        assert isinstance(value, dict) and value.keys() == want.keys()
        for name in want:
            check_value(value[name], want[name], tolerance)
    elif isinstance(want, list):
        assert isinstance(value, list) and len(value) == len(want)
        for one, other in zip(value, want, strict=True):
            check_value(one, other, tolerance)
    else:
        assert value == (pytest.approx(want, abs=tolerance, rel=tolerance) if isinstance(want, float) else want)


def images_of(source: Path, head: Path) -> list[Path]:
    """The pictures of a folder in the order of predict."""
    return [source / uri for uri in selfsight.predict(str(source), head=str(head)).table["uri"].to_pylist()]


def test_bare_has_neither_torch_nor_selfsight(bare: Path) -> None:
    for name in ("torch", "selfsight", "scipy"):
        command = [sys.executable, "-S", "-c", f"import {name}"]
        done = subprocess.run(command, env={"PYTHONPATH": str(bare)}, capture_output=True, text=True)
        assert "ModuleNotFoundError" in done.stderr


def test_a_classifier(place: Path, bare: Path, colours: Exported) -> None:
    result, file = colours, Path(colours.file)
    assert result.proof.agreement == 1.0 and result.proof.difference < 1e-4 and result.task == "classify"
    assert result.proof.figure == "accuracy" and result.proof.before == result.proof.after
    assert sorted(path.name for path in file.parent.iterdir()) == ["colours.json", "colours.onnx", "run.py"]
    photos = place / "photos"
    rows = said(file, images_of(photos, place / "colours"), bare)
    check_same(rows, photos, str(place / "colours"))
    head = load_head(place / "colours")
    content = json.loads(file.with_suffix(".json").read_text())
    metadata = {one.key: json.loads(one.value) for one in onnx.load(result.file).metadata_props}
    assert {name: content[name] for name in metadata} == metadata and metadata["digest"] == head.digest
    assert metadata["classes"] == ["blue", "green", "red"] and metadata["licence"] == head.about.licence
    assert content["proof"]["pace"]["1"]["p50"] > 0 and content["file"] == "colours.onnx"


def test_pictures_as_files_have_them(place: Path, bare: Path, colours: Exported, tmp_path: Path) -> None:
    """Other sizes, turned by EXIF, grey, palettes, alpha, CMYK, 16 bits, arrays, and what cannot be read."""
    file = Path(colours.file)
    odd = tmp_path / "odd"
    odd.mkdir()
    pixels = np.asarray(Image.open(place / "wide.png").resize((90, 50)))
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(odd / "turned.jpg", exif=exif)
    image.save(odd / "plain.png")
    image.convert("L").save(odd / "grey.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(odd / "palette.png")
    image.convert("RGBA").save(odd / "alpha.png")
    image.convert("CMYK").save(odd / "ink.jpg")
    image.convert("1").save(odd / "bits.png")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 200).save(odd / "deep.png")
    np.save(odd / "array.npy", pixels)
    np.save(odd / "deep.npy", pixels.astype(np.uint16) * 255)
    np.save(odd / "float.npy", pixels.astype(np.float32) / 255)
    rows = said(file, images_of(odd, place / "colours"), bare)
    assert len(rows) == 11
    check_same(rows, odd, str(place / "colours"))
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "five.npy", np.zeros((8, 8, 5), np.uint8))
    bad = said(file, [tmp_path / name for name in ("text.png", "five.npy", "none.png")], bare)
    reasons = [str(row["reason"]) for row in bad]
    assert reasons[0].startswith("cannot be decoded") and reasons[1:] == ["5 channels, not 3", "no such file"]


def test_an_inspection_of_16_bits_whose_sides_are_free(place: Path, bare: Path, tmp_path: Path) -> None:
    result = selfsight.export(str(place / "parts"), out=str(tmp_path / "parts.onnx"))
    assert result.proof.agreement == 1.0 and result.proof.difference < 1e-4
    test = tmp_path / "test"
    test.mkdir()
    for number, (source, size) in enumerate((("good/01", (64, 40)), ("bad/20", (64, 40)), ("bad/21", (50, 90)))):
        Image.open(place / f"{source}.png").resize(size).save(test / f"{number}.png")
    rows = said(tmp_path / "parts.onnx", images_of(test, place / "parts"), bare)
    check_same(rows, test, str(place / "parts"))
    assert {row["defect"] for row in rows} == {True, False}


@pytest.mark.parametrize("apart", [True, False], ids=["objects", "classes"])
def test_a_segmentation(apart: bool, place: Path, bare: Path, tmp_path: Path) -> None:
    head = load_head(place / "cells")
    assert isinstance(head, SegmentHead) and head.about.told_apart
    if not apart:
        head.about = replace(head.about, told_apart=False)
        readout = head.module.task.readout
        readout.weight, readout.bias = readout.weight[:2].clone(), readout.bias[:2].clone()
    head.encoder.geometry = head.module.prepare.geometry = replace(head.encoder.geometry, rule="squash")
    test = tmp_path / "test"
    test.mkdir()
    for number, size in enumerate(((64, 64), (100, 80))):
        Image.open(place / "cells_" / "images" / f"{number}.png").resize(size).save(test / f"{number}.png")
    result = selfsight.export(head, out=str(tmp_path / "cells.onnx"), calibrate=str(test))
    assert result.proof.clear == 1.0 and result.proof.difference < 1e-4
    assert result.proof.miou == pytest.approx(1.0, abs=1e-3)
    uris = selfsight.predict(str(test), head=head).table["uri"].to_pylist()
    rows = said(tmp_path / "cells.onnx", [test / uri for uri in uris], bare)
    check_same(rows, test, head)
    assert all(len(row["objects"]) > 2 for row in rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["prototypes", "centres"])
def test_a_detector(
    method: Literal["prototypes", "centres"], place: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfsight.heads.detect_learnt.STEPS", (40, 40))
    source, labels = str(place / "cells_" / "images"), str(place / "cells_" / "cells.json")
    learnt = {"model": tiny_encoder(64), "labels": labels, "out": str(tmp_path / "head"), "size": 64, "method": method}
    selfsight.train.detect(source, **learnt)
    head = load_head(tmp_path / "head")
    test = tmp_path / "test"
    test.mkdir()
    for number, size in enumerate(((64, 64), (100, 80))):
        Image.open(place / "cells_" / "images" / f"{number}.png").resize(size).save(test / f"{number}.png")
    result = selfsight.export(head, out=str(tmp_path / "cells.onnx"), calibrate=str(test))
    assert result.proof.clear == 1.0 and result.proof.difference < 1e-4
    uris = selfsight.predict(str(test), head=head).table["uri"].to_pylist()
    rows = said(tmp_path / "cells.onnx", [test / uri for uri in uris], bare)
    check_same(rows, test, head)
    assert all(len(row["objects"]) > 2 for row in rows)  # type: ignore[arg-type]


def test_masks_are_compared_class_by_class() -> None:
    masks = [np.array([[0, 0, 1, 2]]), np.array([[0, 1, 1, 1]])]
    one, other = ([{"mask": mask}] for mask in masks)
    assert proof._miou(one, other) == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)


def test_an_option_that_there_is_not_is_named(colours: Exported) -> None:
    command = [sys.executable, str(Path(colours.file).with_name("run.py")), f"--modle={colours.file}", "a.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "there is no option --modle. There is --model NAME.onnx" in done.stderr


def test_an_encoder_alone(place: Path, bare: Path, tmp_path: Path) -> None:
    encoder = tiny_encoder(32).eval()
    result = selfsight.export(encoder, out=str(tmp_path / "a.onnx"), calibrate=str(place / "photos"))
    assert result.task == "encode" and result.proof.cosine == pytest.approx(1.0, abs=1e-5)
    file = place / "photos" / "green" / "001.png"
    [row] = said(tmp_path / "a.onnx", [file], bare)
    pixels = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None]
    want = encoder.encode(encoder.geometry.normalise(encoder.geometry.to_unit(pixels))).pooled[0]
    assert row["features"] == pytest.approx(want.tolist(), abs=1e-4)


def test_less_precision(place: Path, colours: Exported, tmp_path: Path) -> None:
    files = {"fp32": colours}
    for precision in ("fp16", "int8"):
        name = str(tmp_path / precision / "a.onnx")
        files[precision] = selfsight.export(str(place / "colours"), out=name, precision=precision)  # type: ignore[arg-type]
        assert files[precision].proof.agreement >= 0.95
    sizes = [files[precision].proof.bytes for precision in ("fp32", "fp16", "int8")]
    assert sizes[0] > sizes[1] > sizes[2] and files["int8"].proof.difference > 0
    model = onnx.load(files["int8"].file)
    of = {output: node for node in model.graph.node for output in node.output}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    quantised = [of[node.input[0]].op_type == "DequantizeLinear" for node in layers if node.input[0] in of]
    assert not quantised[0] and not any(quantised[-2:]) and all(quantised[1:-2])  # the first, the readout, the memory
    scales = {one.name: one for one in model.graph.initializer if one.name.endswith("_scale")}
    assert any(len(one.dims) == 1 and one.dims[0] > 1 for one in scales.values())  # one a channel
    assert {one.key for one in model.metadata_props} >= {"digest", "classes", "licence", "intended_use", "input"}


def test_layers_that_cost_too_much_stay(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the groups of layers one is made to do damage; it is found, and stays in float32."""
    real = Quantiser.write

    def write(self: Quantiser, out: Path, kept: list[int] | tuple[int, ...] = ()) -> None:
        real(self, out, kept)
        if 2 not in kept:
            model = onnx.load(out)
            for one in model.graph.initializer:
                if one.name.startswith("module.task") or "bias" in one.name:
                    value = onnx.numpy_helper.to_array(one)
                    if value.ndim == 1 and value.dtype == np.float32 and len(value) == 3:
                        one.CopyFrom(onnx.numpy_helper.from_array(value[::-1] * 50, one.name))
            onnx.save(model, out)

    monkeypatch.setattr(Quantiser, "write", write)
    result = selfsight.export(str(place / "colours"), out=str(tmp_path / "a.onnx"), precision="int8")
    assert 0 < result.kept[0] < result.kept[1] and result.proof.agreement >= 0.95


def test_what_does_not_say_the_same_is_not_kept(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = making.by_torch
    monkeypatch.setattr(making, "by_torch", lambda *of: [
        {name: value[::-1].copy() if name == "probabilities" else value for name, value in found.items()}
        for found in real(*of)
    ])  # fmt: skip
    with pytest.raises(SelfsightError, match="The export differs from the original on 41 images"):
        selfsight.export(str(place / "colours"), out=str(tmp_path / "a.onnx"))
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_in_a_sentence(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SelfsightError, match=r"ends in \.onnx"):
        selfsight.export(str(place / "colours"), out=str(tmp_path / "a.pt"))
    with pytest.raises(DataError, match="--calibrate"):
        selfsight.export(tiny_encoder(32), out=str(tmp_path / "a.onnx"))
    assert not list(tmp_path.iterdir())


# -- what run.py does in place of scipy and scikit-image --


def test_parts_that_hang_together() -> None:
    rng = np.random.default_rng(0)
    for share in (0.3, 0.5, 0.7):
        mask = rng.random((60, 45)) < share
        for corners in (True, False):
            want, _ = label(mask, np.ones((3, 3)) if corners else None)
            assert np.array_equal(run.components(mask, corners), want)
    assert not run.components(np.zeros((4, 5), bool), True).any()


def test_the_watershed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        depth, inside = rng.random((40, 50)).astype(np.float32), rng.random((40, 50)) < 0.8
        seeds, _ = label((depth < 0.08) & inside)
        assert np.array_equal(run.watershed(depth, seeds, inside), watershed(depth, seeds, mask=inside))


def test_run_lengths() -> None:
    mask = np.random.default_rng(0).random((13, 21)) < 0.4
    y, x = np.nonzero(mask)
    assert run.to_runs(np.sort(x * 13 + y), 13, 21) == encode(mask)
    assert np.array_equal(run.from_runs(encode(mask, compressed=False)), mask)  # type: ignore[arg-type]
