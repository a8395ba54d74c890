"""Every item decoded once, and found again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import make_batches, picture, tiny_encoder, train, two_views
from PIL import Image

from selfsight.data.canvases import canvas_bytes, resident
from selfsight.data.decoding import decode
from selfsight.data.importers import open_source
from selfsight.errors import SelfsightError


def garble(path: Path) -> None:
    """Header and end marker stay, the middle does not: only decoding can notice."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    path.write_bytes(data)


def test_canvases_are_what_decoding_gives_in_the_order_of_ids(images: Callable[..., Path]):
    folder = images(5)
    Image.fromarray(picture(np.random.default_rng(5), 90, 30)).save(folder / "tall.png")
    Image.fromarray(picture(np.random.default_rng(6), 12, 70)).save(folder / "flat.jpg")
    collection = open_source(folder)
    for channels in (1, 3):
        canvases = resident(collection, channels, 24)
        assert canvases.ids == sorted(canvases.ids) and len(canvases) == 7
        shapes = {}
        for i, uri in enumerate(canvases.rows["uri"].to_pylist()):
            assert (canvases[i] == decode(folder / uri, channels, 24)).all()
            shapes[uri] = canvases[i].shape[:2]
        assert shapes["tall.png"] == (72, 24) and shapes["flat.jpg"] == (12, 36) and shapes["000.png"] == (24, 29)
        assert canvas_bytes(collection.usable, channels, 24).sum() == canvases.pixels.size
        assert canvases.window == (0.0, 255.0)


def test_the_second_start_maps_the_first_ones_file(images: Callable[..., Path]):
    folder = images(4)
    collection = open_source(folder)
    first = resident(collection, 3, 24)
    (file,) = collection.path.parent.glob("canvases/*/pixels.bin")
    time = file.stat().st_mtime_ns
    second = resident(open_source(folder), 3, 24)
    assert isinstance(second.pixels, np.memmap) and Path(second.pixels.filename) == file
    assert file.stat().st_mtime_ns == time
    assert all((first[i] == second[i]).all() for i in range(4))
    resident(collection, 3, 20)  # another side is another file
    assert file.stat().st_mtime_ns == time and len(list(collection.path.parent.glob("canvases/*/pixels.bin"))) == 2


def test_changed_pixels_are_decoded_again(images: Callable[..., Path]):
    folder = images(4)
    resident(open_source(folder), 3, 24)
    Image.fromarray(np.full((40, 48, 3), 7, np.uint8)).save(folder / "000.png")
    canvases = resident(open_source(folder), 3, 24)
    assert (canvases[canvases.rows["uri"].to_pylist().index("000.png")] == 7).all()


def test_an_interrupted_decoding_is_not_taken_for_a_whole_one(images: Callable[..., Path]):
    collection = open_source(images(4))
    whole = resident(collection, 3, 24)
    pixels = np.array(whole.pixels)
    (folder,) = collection.path.parent.glob("canvases/*")
    (folder / "index.json").unlink()
    (folder / "pixels.bin").write_bytes(b"half")
    assert (resident(collection, 3, 24).pixels == pixels).all()


def test_what_fails_only_in_decoding_is_set_aside_and_training_goes_on(images: Callable[..., Path], tmp_path: Path):
    folder = images(9)
    garble(folder / "000.png")
    (folder / "002.png").touch()
    batches = make_batches(folder, 4)
    canvases = batches.canvases
    collection = open_source(folder)
    assert len(collection.usable) == 9  # the header is well
    (reason,) = canvases.set_aside.values()
    assert reason.startswith("cannot be decoded") and len(canvases) == 8
    assert "000.png" not in canvases.rows["uri"].to_pylist()
    for i, uri in enumerate(canvases.rows["uri"].to_pylist()):  # rows and pixels still belong together
        assert (canvases[i] == decode(folder / uri, 3, 32)).all()

    from selfsight.objectives.simclr import SimCLR

    steps, _, _ = train(SimCLR(tiny_encoder(), two_views(), hidden=8, width=8), batches, tmp_path / "run")
    assert steps == 5


def test_nothing_decodable_is_an_error(images: Callable[..., Path]):
    folder = images(2)
    for path in folder.rglob("*.png"):
        garble(path)
    with pytest.raises(SelfsightError, match="None of the 2 items"):
        resident(open_source(folder), 3, 24)


def test_a_file_that_vanished_after_the_import_is_set_aside(images: Callable[..., Path]):
    folder = images(3)
    collection = open_source(folder)
    (folder / "000.png").unlink()
    assert list(resident(collection, 3, 24).set_aside.values()) == ["file vanished since import"]


def test_sixteen_bits_have_a_window_of_their_percentiles(tmp_path: Path):
    folder = tmp_path / "deep"
    folder.mkdir()
    deep = np.full((100, 100), 1000, np.uint16)
    deep.reshape(-1)[:5000] = 3000
    deep.reshape(-1)[0], deep.reshape(-1)[1] = 0, 65535  # one part in ten thousand each: outside the window
    Image.fromarray(deep).save(folder / "a.png")
    canvases = resident(open_source(folder), 1, 100)
    assert canvases.pixels.dtype == np.uint16 and (canvases[0][:, :, 0] == deep).all()
    assert canvases.window == (1000.0, 3000.0)


def test_eight_and_sixteen_bits_in_one_collection_agree_on_white(tmp_path: Path):
    folder = tmp_path / "both"
    folder.mkdir()
    ramp = np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)
    Image.fromarray(ramp).save(folder / "eight.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(folder / "sixteen.png")  # the same picture, deeper
    canvases = resident(open_source(folder), 1, 64)
    low, high = canvases.window
    eight, sixteen = (((canvases[i] - low) / (high - low)).clip(0, 1) for i in range(2))
    assert np.abs(eight - sixteen).max() < 0.01
