"""embed: the same features in every format, pooled and patches."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from helpers import NARROW, collection_of, hub_folder, needs_package, pooled_by_timm, tiny_encoder
from PIL import Image
from safetensors.torch import load_file, save_file

import selfsight
from selfsight.data.geometry import Geometry
from selfsight.encoders.store import random_like, read_folder, save
from selfsight.encoders.weights import begin, find_weights
from selfsight.files import to_numpy
from selfsight.verbs.embed import show


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    save(tiny_encoder(), tmp_path / "encoder")
    return tmp_path / "encoder"


def test_every_format_holds_the_same(images: Callable[..., Path], tmp_path: Path, encoder: Path) -> None:
    photos = images(7)
    tables = {
        suffix: selfsight.embed(str(photos), model=str(encoder), out=str(tmp_path / f"f{suffix}"))
        for suffix in (".parquet", ".npy", ".csv", ".lance")
    }
    wanted = tables[".parquet"].features
    assert wanted.shape == (7, read_folder(encoder).dim)
    assert np.array_equal(to_numpy(pq.read_table(tmp_path / "f.parquet")["features"]), wanted)
    assert np.array_equal(np.load(tmp_path / "f.npy"), wanted)
    assert np.array_equal(to_numpy(lance.dataset(str(tmp_path / "f.lance")).to_table()["features"]), wanted)
    lines = [line.split(",") for line in (tmp_path / "f.csv").read_text().splitlines()]
    first = lines[0].index("f0")
    assert lines[0][:2] == ["id", "uri"] and lines[0][first:] == [f"f{i}" for i in range(wanted.shape[1])]
    assert np.allclose(np.array([line[first:] for line in lines[1:]], dtype=float), wanted, rtol=1e-6)
    items = [line.split(",") for line in (tmp_path / "f.items.csv").read_text().splitlines()]
    assert items == [line[:first] for line in lines]
    assert [line[0] for line in lines[1:]] == sorted(line[0] for line in lines[1:])


def test_where_features_cannot_be_kept_they_are_given_all_the_same(
    images: Callable[..., Path], tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = images(4)
    selfsight.import_(str(photos), out=str(tmp_path / "kept" / "c.lance"))
    (tmp_path / "kept" / "c.features").write_text("in the way")  # root, as whom tests may run, writes read-only folders
    table = selfsight.embed(str(tmp_path / "kept" / "c.lance"), model=str(encoder))
    assert np.array_equal(table.features, selfsight.embed(str(photos), model=str(encoder)).features)
    assert "Features are not kept for the next time" in capsys.readouterr().err
    with pytest.raises(selfsight.SelfsightError, match="in the folder of the images"):
        selfsight.embed(str(photos), model=str(encoder), out=str(photos / "f.parquet"))


def test_features_belong_to_their_images(images: Callable[..., Path], encoder: Path) -> None:
    photos = images(5)
    table = selfsight.embed(str(photos), model=str(encoder))
    model = read_folder(encoder)
    for uri, features in zip(table.uris, table.features, strict=True):
        size = model.geometry.size
        image = Image.open(photos / uri).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        with torch.inference_mode():
            alone = model(model.geometry.to_input(np.asarray(image)[None])).pooled[0].numpy()
        assert features == pytest.approx(alone, abs=1e-4)


def test_patches_average_to_the_pooled_features(images: Callable[..., Path], encoder: Path) -> None:
    photos = images(3)  # the tiny encoder pools by the mean and has no whitening
    pooled = selfsight.embed(str(photos), model=str(encoder)).features
    patches = selfsight.embed(str(photos), model=str(encoder), tokens="patches").features
    assert patches.ndim == 3 and patches.mean(1) == pytest.approx(pooled, abs=1e-4)


def test_set_aside_is_counted(images: Callable[..., Path], encoder: Path) -> None:
    photos = images(4)
    (photos / "broken.png").write_bytes(b"no picture")
    assert selfsight.embed(str(photos), model=str(encoder)).set_aside == 1


def test_unknown_format_and_model(images: Callable[..., Path], tmp_path: Path, encoder: Path) -> None:
    photos = images(2)
    with pytest.raises(selfsight.SelfsightError, match=r"\.parquet"):
        selfsight.embed(str(photos), model=str(encoder), out=str(tmp_path / "f.xls"))
    with pytest.raises(selfsight.SelfsightError, match="no_such_model"):
        selfsight.embed(str(photos), model="no_such_model")


def squashed(photos: Path, uris: list[str], mode: str = "RGB", side: int = 224) -> torch.Tensor:
    """The pictures in [0, 1], [N, C, side, side]."""
    sides = (side, side)
    pictures = [Image.open(photos / uri).convert(mode).resize(sides, Image.Resampling.BICUBIC) for uri in uris]
    pixels = np.stack([np.asarray(picture).reshape(*sides, -1) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


def embedded(source: Path, model: str) -> tuple[list[str], np.ndarray]:
    result = selfsight.embed(str(source), model=model)
    return result.uris, result.features


@needs_package
@pytest.mark.parametrize("channels", [3, 1])
def test_a_package_gives_the_features_of_its_weights(images: Callable[..., Path], channels: int) -> None:
    photos = images(3, channels=channels)
    uris, features = embedded(photos, "package:efficientnet_lite0")
    half = (0.5,) * channels
    started = begin(
        find_weights("package:efficientnet_lite0"), Geometry(channels, 224, (0.0, 255.0), half, half), {}
    ).eval()
    x = (squashed(photos, uris, "RGB" if channels == 3 else "L") - 0.5) / 0.5
    wanted = started.encode(x).pooled.numpy()
    assert np.abs(features - wanted).max() < 1e-4 * np.abs(wanted).max()
    random = random_like(started).encode(x).pooled.numpy()
    assert np.abs(features - random).max() > 0.1 * np.abs(wanted).max()
    assert np.abs(features[0] - features[1]).max() > 0.1 * np.abs(wanted).max()


def test_a_file_gives_the_features_of_its_timm_model_and_another_file_others(
    images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, file, items = images(4), tmp_path / "hub" / "model.safetensors", tmp_path / "items.lance"
    selfsight.import_(str(photos), out=str(items))
    net = hub_folder(tmp_path / "hub", **NARROW)
    mean, std = (torch.tensor(net.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    uris, features = embedded(items, str(file))
    x = (squashed(photos, uris) - mean) / std
    wanted = pooled_by_timm(net, x).numpy()
    assert features.shape == (4, 32) and np.abs(features - wanted).max() < 1e-4 * np.abs(wanted).max()
    plain = shutil.copytree(photos, tmp_path / "plain")
    for uri in uris:  # the same weights elsewhere: what is kept is not computed again
        (photos / uri).write_bytes(b"no picture any more")
    assert np.array_equal(embedded(items, str(tmp_path / "hub"))[1], features)
    state = load_file(file)
    state["layer3.0.bn2.bias"] += 1.0
    save_file(state, file)
    net.load_state_dict(state)
    other = embedded(plain, str(file))[1]
    assert np.abs(other - pooled_by_timm(net, x).numpy()).max() < 1e-4 * np.abs(wanted).max()
    assert np.abs(other - features).max() > 0.1
    with pytest.raises(selfsight.SelfsightError, match="None of the 4 images"):
        embedded(items, str(file))


def test_every_column_of_the_collection_is_carried(tmp_path: Path, encoder: Path) -> None:
    rows = [{"label": "good", "split": "train", "group": "p1", "site": "Nord", "lot": "A, 7"}]
    rows += [{"label": None, "split": "test", "group": "p2", "site": "Süd", "lot": "B"}]
    collection_of(tmp_path / "plates", rows)
    asked = "label=label,split=split,group=group,site=site,lot=lot"
    selfsight.import_(str(tmp_path / "plates" / "items.csv"), out=str(tmp_path / "c.lance"), columns=asked)
    wanted = {"0.png": tuple(rows[0].values()), "1.png": (None, *list(rows[1].values())[1:])}
    for suffix in (".parquet", ".lance", ".csv", ".npy"):
        out = tmp_path / f"f{suffix}"
        result = selfsight.embed(str(tmp_path / "c.lance"), model=str(encoder), out=str(out))
        table = read_table(out)
        found = zip(table["uri"].to_pylist(), *(table[name].to_pylist() for name in rows[0]), strict=True)
        assert {uri: tuple(value or None for value in said) for uri, *said in found} == wanted
        columns = set(selfsight.Collection.open(tmp_path / "c.lance").columns) - {"status", "reason"}
        assert columns == {name for name in result.table.column_names if name != "features"}
        assert columns <= {*table.column_names}
    with pytest.raises(selfsight.SelfsightError, match="not a collection"):
        selfsight.embed(str(tmp_path / "f.lance"), model=str(encoder))


def read_table(out: Path) -> pa.Table:
    """Of .npy the rows beside it."""
    if out.suffix == ".parquet":
        return pq.read_table(out)
    if out.suffix == ".lance":
        return lance.dataset(str(out)).to_table()
    return pyarrow.csv.read_csv(out.with_suffix(".items.csv") if out.suffix == ".npy" else out)


def test_a_column_that_would_be_lost_is_refused(tmp_path: Path, encoder: Path) -> None:
    collection_of(tmp_path / "plates", [{"features": "many", "f3": "x"}])
    for columns in ("mine=features", "f3=f3", "features=features"):
        source = tmp_path / f"{columns[:4]}.lance"
        selfsight.import_(str(tmp_path / "plates" / "items.csv"), out=str(source), columns=columns)
    assert selfsight.embed(str(tmp_path / "mine.lance"), model=str(encoder)).table["mine"].to_pylist() == ["many"]
    with pytest.raises(selfsight.SelfsightError, match="--columns NAME=features"):
        selfsight.embed(str(tmp_path / "feat.lance"), model=str(encoder))
    with pytest.raises(selfsight.SelfsightError, match="two columns f3"):
        selfsight.embed(str(tmp_path / "f3=f.lance"), model=str(encoder), out=str(tmp_path / "f.csv"))


@pytest.mark.parametrize("suffix", [".parquet", ".lance"])
def test_the_file_says_where_the_images_are_and_how_patches_lie(
    images: Callable[..., Path], tmp_path: Path, suffix: str
) -> None:
    photos, out = images(2), tmp_path / f"f{suffix}"
    model = tiny_encoder(size=48)  # of stride 16: 3 x 3 patches
    result = selfsight.embed(str(photos), model=model, tokens="patches", out=str(out))
    metadata = read_table(out).schema.metadata
    assert metadata == {b"root": str(photos).encode(), b"grid": b"[3, 3]"}
    assert (result.root, result.grid, result.features.shape[1]) == (str(photos), (3, 3), 9)
    assert all((Path(result.root) / uri).is_file() for uri in result.uris)
    pooled = selfsight.embed(str(photos), model=model, out=str(out))
    assert read_table(out).schema.metadata == {b"root": str(photos).encode()} and pooled.grid is None


def test_the_root_of_a_table_is_the_folder_of_its_paths_and_may_be_gone(tmp_path: Path, encoder: Path) -> None:
    items = collection_of(tmp_path / "plates", [{"label": "a"}])
    selfsight.import_(items.about.location, out=str(tmp_path / "c.lance"))
    result = selfsight.embed(str(tmp_path / "c.lance"), model=str(encoder))
    assert (Path(result.root) / result.uris[0]).is_file()
    shutil.rmtree(tmp_path / "plates")
    kept = selfsight.embed(str(tmp_path / "c.lance"), model=str(encoder))
    assert np.array_equal(kept.features, result.features) and kept.root == items.about.location


def test_the_file_that_was_written_is_named(
    images: Callable[..., Path], tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = images(2), tmp_path / "f.npy"
    result = selfsight.embed(str(photos), model=str(encoder), out=str(out))
    assert result.to_dict()["file"] == str(out)
    show(result)
    assert f"Written to {out} and {tmp_path / 'f.items.csv'}." in capsys.readouterr().out
    nothing = selfsight.embed(str(photos), model=str(encoder))
    show(nothing)
    assert nothing.to_dict()["file"] is None and "No file was written" in capsys.readouterr().out


def test_an_encoder_in_place_of_a_name_gives_the_same_and_stays_as_it_was(
    images: Callable[..., Path], encoder: Path
) -> None:
    photos, model = images(3), read_folder(encoder).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    named = selfsight.embed(str(photos), model=str(encoder)).features
    assert np.array_equal(selfsight.embed(str(photos), model=model).features, named)
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(selfsight.SelfsightError, match="model takes text or Encoder, not 3"):
        selfsight.embed(str(photos), model=3)  # type: ignore[arg-type]
