"""Pictures for a page: how large, how exact, through which window."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import garble
from PIL import Image

from selfsight.data.formats.format import Unreadable
from selfsight.data.importers import open_source
from selfsight.pages.pictures import Pictures


def pictures_of(folder: Path) -> tuple[Pictures, dict[str, str]]:
    """The pictures, and {uri: id}."""
    items = open_source(folder)
    return Pictures(items), dict(zip(items.usable["uri"].to_pylist(), items.usable["id"].to_pylist(), strict=True))


def opened(pictures: Pictures, item: str, size: str) -> tuple[Image.Image, str]:
    data, kind = pictures.encoded(item, size)
    return Image.open(io.BytesIO(data)), kind


def test_large_ones_are_reduced_and_long_ones_are_whole(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    ramp = np.linspace(0, 255, 3200).astype(np.uint8)
    wide = np.broadcast_to(ramp, (400, 3200))  # 8 to 1: a canvas would cut it
    Image.fromarray(np.stack([wide] * 3, 2)).save(folder / "long.png")
    Image.fromarray(np.broadcast_to(ramp[:, None], (3200, 2400)).copy()).convert("RGB").save(folder / "large.jpg")
    pictures, ids = pictures_of(folder)
    sizes = {(name, size): opened(pictures, ids[name], size)[0].size for name in ids for size in ("small", "large")}
    assert sizes["long.png", "large"] == (2000, 250) and sizes["long.png", "small"] == (200, 25)
    assert sizes["large.jpg", "large"] == (1500, 2000) and sizes["large.jpg", "small"] == (150, 200)
    shown, kind = opened(pictures, ids["long.png"], "large")
    line = np.asarray(shown.convert("L"))[100].astype(int)
    assert kind == "image/jpeg" and line[0] < 4 and line[-1] > 251 and abs(line[1000] - 127) < 4


def test_small_ones_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (60, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    pictures, ids = pictures_of(folder)
    for size in ("small", "large"):
        shown, kind = opened(pictures, ids["a.png"], size)
        assert kind == "image/png" and np.array_equal(np.asarray(shown), pixels)


def test_deep_ones_are_seen_through_the_window_of_the_collection(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        scan = rng.integers(1000, 3001, (64, 64)).astype(np.uint16)
        scan[0, 0], scan[1, 1] = 65535, 0  # a hot and a dead pixel, that the window leaves out
        scan[32, 32], scan[33, 33] = 1000, 3000
        tifffile.imwrite(folder / f"{i}.tif", scan)
    pictures, ids = pictures_of(folder)
    shown, _ = opened(pictures, ids["0.tif"], "large")
    values = np.asarray(shown)
    assert shown.mode == "L" and values[32, 32] == 0 and values[33, 33] == 255
    truth = tifffile.imread(folder / "0.tif")[5:20, 5:20].astype(float)
    assert abs(values[5:20, 5:20] - (truth - 1000) / 2000 * 255).max() < 2


def test_more_than_three_channels_and_turned_ones(tmp_path: Path) -> None:
    bands, turned = tmp_path / "bands", tmp_path / "turned"
    bands.mkdir()
    turned.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (5, 40, 30), np.uint8)
    tifffile.imwrite(bands / "a.tif", pixels, photometric="minisblack", planarconfig="separate")
    pictures, ids = pictures_of(bands)
    assert np.array_equal(np.asarray(opened(pictures, ids["a.tif"], "large")[0]), pixels[:3].transpose(1, 2, 0))
    image, exif = Image.new("RGB", (300, 100)), Image.Exif()
    exif[0x0112] = 6
    image.save(turned / "b.jpg", exif=exif)
    pictures, ids = pictures_of(turned)
    assert opened(pictures, ids["b.jpg"], "large")[0].size == (100, 300)
    assert pictures.row(ids["b.jpg"])["width"] == 100


def test_what_became_unreadable_says_why(plates: Path) -> None:
    pictures, ids = pictures_of(plates)
    garble(plates / "plate-000.png")
    (plates / "plate-001.png").unlink()
    for name in ("plate-000.png", "plate-001.png"):
        with pytest.raises(Unreadable):
            pictures.encoded(ids[name], "small")
    assert ids["plate-002.png"] in pictures and "nothing" not in pictures


def test_from_many_threads_at_once(plates: Path) -> None:
    pictures, ids = pictures_of(plates)
    alone = {item: pictures.encoded(item, "small") for item in ids.values()}
    with ThreadPoolExecutor(16) as pool:
        asked = list(ids.values()) * 8
        assert list(pool.map(lambda item: pictures.encoded(item, "small"), asked)) == [alone[item] for item in asked]
