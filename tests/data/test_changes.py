"""What changes between an import and its use: archives, labels, files that are gone; and values that are no numbers."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pytest
import tifffile
from helpers import picture

import selfsight
from selfsight.data.canvases import measure_format
from selfsight.data.collection import Collection
from selfsight.data.importers import open_source


def zip_of(path: Path, seed: int, shape: tuple[int, ...] = (32, 32, 3)) -> None:
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i in range(4):
            data = io.BytesIO()
            np.save(data, rng.integers(0, 256, shape, np.uint8))
            archive.writestr(f"{i}.npy", data.getvalue())


@pytest.mark.parametrize("shape", [(32, 32, 3), (96, 32)])
def test_an_archive_that_was_replaced_is_noticed(tmp_path: Path, shape: tuple[int, ...]):
    zip_of(tmp_path / "a.zip", 0)
    out = str(tmp_path / "a.lance")
    selfsight.import_(str(tmp_path / "a.zip"), out=out)
    zip_of(tmp_path / "other.zip", 1, shape)  # members of the same names and sizes
    shutil.copy(tmp_path / "other.zip", tmp_path / "a.zip")
    with pytest.raises(selfsight.SelfsightError, match="changed since import"):
        selfsight.pretrain(out, out=str(tmp_path / "run"), steps=1, batch_size=2)


def test_values_that_are_no_numbers_do_not_move_the_window(tmp_path: Path):
    rng = np.random.default_rng(0)
    (tmp_path / "kelvin").mkdir()
    for i in range(4):
        image = rng.uniform(290, 310, (40, 48)).astype(np.float32)
        image[:7], image[7], image[8] = np.nan, np.inf, -np.inf
        tifffile.imwrite(tmp_path / "kelvin" / f"{i}.tif", image)
    low, high = measure_format(open_source(tmp_path / "kelvin")).window
    assert 290 <= low < 290.5 and 309.5 < high <= 310
    (tmp_path / "none").mkdir()
    for i in range(2):
        tifffile.imwrite(tmp_path / "none" / f"{i}.tif", np.full((8, 8), np.nan, np.float32))
    with pytest.raises(selfsight.SelfsightError, match="no value in it is finite"):
        measure_format(open_source(tmp_path / "none"))


def test_what_is_not_said_any_more_is_not_kept(images: Callable[..., Path], tmp_path: Path):
    folder, out = str(images(4)), str(tmp_path / "c.lance")
    assert selfsight.import_(folder, out=out, columns="label={stem}").labels
    again = selfsight.import_(folder, out=out, columns="site={stem}")
    assert not again.labels and len(again.sites) == 4
    assert not selfsight.import_(folder, out=out).sites


def test_a_quote_that_is_never_closed_is_named(images: Callable[..., Path], tmp_path: Path):
    folder = images(6)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png"))
    lines = [
        "path,label",
        *(f"{name},fine" for name in names[:3]),
        f'{names[3]},"5 inch',
        *(f"{n},x" for n in names[4:]),
    ]
    (folder / "m.csv").write_text("\n".join(lines))
    result = selfsight.import_(str(folder / "m.csv"), out=str(tmp_path / "m.lance"))
    assert result.items == 3 and result.set_aside == 1
    assert "quote that is never closed" in result.set_aside_items[0].reason


def test_a_file_that_is_gone_already_can_be_forgotten(images: Callable[..., Path], tmp_path: Path):
    folder = images(6)
    selfsight.pretrain(str(folder), out=str(tmp_path / "run"), steps=1, batch_size=2)
    features = selfsight.embed(str(folder), model=str(tmp_path / "run")).features
    items = open_source(folder, as_is=True)
    gone = dict(zip(items.table["uri"].to_pylist(), items.table["id"].to_pylist(), strict=True))["000.png"]
    (folder / "000.png").unlink()
    result = selfsight.forget(str(folder), "000.png")
    assert result.to_dict()["forgotten"] == [{"id": gone, "uri": "000.png"}] and len(features) == 6
    assert gone not in Collection.open(items.path).table["id"].to_pylist()
    for table in items.features.folder.glob("*.lance"):
        assert gone not in lance.dataset(str(table)).to_table()["id"].to_pylist()


def test_ids_that_became_floats_are_found(images: Callable[..., Path], tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    folder = images(2)
    for i in (1, 2):
        Image.fromarray(picture(np.random.default_rng(i), 20, 20)).save(folder / f"{i}.png")
    pq.write_table(pa.table({"id": [1.0, 2.0, None]}), folder / "m.parquet")
    result = selfsight.import_(str(folder / "m.parquet"), out=str(tmp_path / "m.lance"), columns="path=id")
    assert result.items == 2 and result.set_aside == 1
