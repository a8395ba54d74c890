"""Every item's pixels, decoded once or on the way: the same pixels."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from helpers import collection_of, garble, make_canvases, picture
from PIL import Image

from selfsight.data.canvases import Resident, announce, canvas_bytes, folder_of, measure_format, remove_canvases
from selfsight.data.formats.format import Unreadable
from selfsight.data.importers import open_source
from selfsight.data.pixels import PixelFormat
from selfsight.errors import SelfsightError

BOTH = pytest.mark.parametrize("held", ["resident", "stream"])


def cached(cache: Path) -> list[Path]:
    return sorted(cache.glob("canvases/*/pixels.bin"))


@BOTH
def test_canvases_are_what_pillow_gives_in_the_order_of_ids(images: Callable[..., Path], held: str):
    folder = images(5)
    Image.fromarray(picture(np.random.default_rng(5), 90, 30)).save(folder / "tall.png")
    Image.fromarray(picture(np.random.default_rng(6), 12, 70)).save(folder / "flat.jpg", quality=95)
    collection = open_source(folder)
    canvases = make_canvases(collection, 24, held)
    assert canvases.ids == sorted(canvases.ids) and len(canvases) == 7
    sizes = {"tall.png": (24, 72), "flat.jpg": (36, 12)}  # width, height; 3 to 1 at most
    boxes = {"flat.jpg": (17, 0, 53, 12)}
    for i, uri in enumerate(canvases.rows["uri"].to_pylist()):
        image = Image.open(folder / uri).crop(boxes[uri]) if uri in boxes else Image.open(folder / uri)
        expected = np.asarray(image.resize(sizes.get(uri, (29, 24)), Image.Resampling.BICUBIC))
        assert (canvases[i] == expected).all()
    total = sum(canvases[i].nbytes for i in range(7))
    assert canvas_bytes(collection.usable, canvases.format, 24) == total
    assert canvases.unit == (0.0, 255.0)


def test_the_second_start_maps_the_first_ones_file(images: Callable[..., Path], cache: Path):
    folder = images(4)
    first = make_canvases(open_source(folder), 24)
    (file,) = cached(cache)
    time = file.stat().st_mtime_ns
    for path in folder.rglob("*.png"):  # so that reading one would fail
        content, stat = path.read_bytes(), path.stat()
        path.write_bytes(bytes(len(content)))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = make_canvases(open_source(folder), 24)
    assert isinstance(second, Resident) and Path(second.pixels.filename) == file
    assert file.stat().st_mtime_ns == time
    assert all((first[i] == second[i]).all() for i in range(4))


def test_another_side_is_another_file_and_changed_pixels_are_decoded_again(images: Callable[..., Path], cache: Path):
    folder = images(4)
    make_canvases(open_source(folder), 24)
    make_canvases(open_source(folder), 20)
    assert len(cached(cache)) == 2
    Image.fromarray(np.full((40, 48, 3), 7, np.uint8)).save(folder / "000.png")
    canvases = make_canvases(open_source(folder), 24)
    assert (canvases[canvases.rows["uri"].to_pylist().index("000.png")] == 7).all()


@BOTH
def test_canvases_of_some_items_are_those_of_all_at_the_same_ids(images: Callable[..., Path], held: str):
    folder = images(9)
    garble(folder / "000.png")
    collection = open_source(folder)
    whole = make_canvases(collection, 24, held)
    bad = whole.ids[whole.rows["uri"].to_pylist().index("000.png")]
    chosen = [item for i, item in enumerate(whole.ids) if i % 2 or item == bad]
    rows = collection.usable.filter(pc.is_in(collection.usable["id"], pa.array(chosen)))
    some = make_canvases(collection, 24, held, rows.take(np.arange(len(rows))[::-1]))
    assert some.ids == chosen == some.rows["id"].to_pylist()
    for i, item in enumerate(chosen):
        at = whole.ids.index(item)
        assert (some.sides[i] == whole.sides[at]).all()
        if item != bad:
            assert (some[i] == whole[at]).all()
    with pytest.raises(Unreadable):
        some[chosen.index(bad)]
    assert list(some.set_aside) == [bad] and len(list(some.sample(100))) == len(chosen) - 1


def test_each_choice_of_items_has_a_folder_of_its_own_and_that_of_all_has_its_old_name(
    images: Callable[..., Path], cache: Path
):
    collection = open_source(images(4))
    usable = collection.usable
    what = f"{collection.id_hash()} RGB 8 (0.0, 255.0) 24 2"
    names = {hashlib.blake2b(what.encode(), digest_size=8).hexdigest()}
    for rows in (None, usable, usable.take([3, 0, 1, 2])):
        make_canvases(collection, 24, rows=rows)
        assert {path.parent.name for path in cached(cache)} == names
    for places, folders in (([0, 2], 2), ([2, 0], 2), ([0, 3], 3)):
        make_canvases(collection, 24, rows=usable.take(places))
        assert len(cached(cache)) == folders
    remove_canvases({usable["id"][2].as_py()})
    assert len(cached(cache)) == 1


def test_an_interrupted_decoding_is_not_taken_for_a_whole_one(images: Callable[..., Path], cache: Path):
    collection = open_source(images(4))
    pixels = np.array(make_canvases(collection, 24).pixels)
    (folder,) = cache.glob("canvases/*")
    (folder / "about.json").unlink()
    (folder / "pixels.bin").write_bytes(b"half")
    assert (make_canvases(collection, 24).pixels == pixels).all()


@BOTH
def test_what_fails_only_in_decoding_is_set_aside(images: Callable[..., Path], held: str):
    folder = images(9)
    garble(folder / "000.png")
    collection = open_source(folder)
    assert len(collection.usable) == 9  # the header is well
    canvases = make_canvases(collection, 32, held)
    bad = canvases.rows["uri"].to_pylist().index("000.png")
    for _ in range(2):
        with pytest.raises(Unreadable, match=r"cannot be decoded|truncated|broken"):
            canvases[bad]
    assert list(canvases.set_aside) == [canvases.ids[bad]]
    assert bad not in [i for i, _ in canvases.sample(100)] and len(list(canvases.sample(100))) == 8
    with pytest.raises(SelfsightError, match=r"000\.png: .*--strict"):
        strict = make_canvases(collection, 32, held)
        strict.strict = True
        strict._put_aside(canvases.ids[bad], "broken")


def test_strict_stops_at_the_first(images: Callable[..., Path]):
    folder = images(4)
    garble(folder / "000.png")
    collection = open_source(folder)
    with pytest.raises(SelfsightError, match=r"000\.png: .*--strict"):
        Resident(collection, measure_format(collection), 24, strict=True)
    make_canvases(collection, 24)
    with pytest.raises(SelfsightError, match=r"000\.png: .*--strict"):  # also of canvases that are there
        Resident(collection, measure_format(collection), 24, strict=True)


@BOTH
def test_nothing_decodable_is_an_error(images: Callable[..., Path], held: str):
    folder = images(2)
    for path in folder.rglob("*.png"):
        garble(path)
    with pytest.raises(SelfsightError, match="None of the 2 images"):
        canvases = make_canvases(open_source(folder), 24, held)
        for _ in canvases.sample(5):
            pass


@BOTH
def test_a_file_that_vanished_or_changed_after_the_import_is_set_aside(images: Callable[..., Path], held: str):
    folder = images(5)
    collection = open_source(folder)
    (folder / "000.png").unlink()
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(folder / "002.png")
    canvases = make_canvases(collection, 24, held)
    assert len(list(canvases.sample(5))) == 3
    reasons = {collection.uri_of(item): reason for item, reason in canvases.set_aside.items()}
    assert reasons == {"000.png": "file vanished since import", "002.png": "changed since import"}


def test_sixteen_bits_have_a_window_that_hot_pixels_do_not_move(tmp_path: Path):
    folder = tmp_path / "deep"
    folder.mkdir()
    deep = np.full((100, 100), 1000, np.uint16)
    deep.reshape(-1)[:5000] = 3000
    deep.reshape(-1)[0], deep.reshape(-1)[1] = 0, 65535  # one part in ten thousand each: outside the window
    Image.fromarray(deep).save(folder / "a.png")
    for held in ("resident", "stream"):
        canvases = make_canvases(open_source(folder), 100, held)
        assert canvases[0].dtype == np.uint16 and (canvases[0][:, :, 0] == deep).all()
        assert canvases.unit == canvases.format.window == (1000.0, 3000.0)


def test_floats_are_held_in_units_of_their_window(tmp_path: Path):
    """Photon counts of millions would overflow a float16, and its steps are finest near zero."""
    folder = tmp_path / "counts"
    folder.mkdir()
    counts = np.linspace(-4e6, 9e6, 10_000, dtype=np.float32).reshape(100, 100)
    counts[0, 0] = np.nan
    np.save(folder / "a.npy", counts)
    canvases = make_canvases(open_source(folder), 100)
    low, high = canvases.format.window
    assert canvases.unit == (0.0, 1.0) and canvases[0].dtype == np.float16
    assert low == pytest.approx(-4e6 + 13e6 * 0.001, rel=0.01) and high == pytest.approx(9e6 - 13e6 * 0.001, rel=0.01)
    expected = (counts - low) / (high - low)
    assert np.abs(canvases[0][1:, :, 0].astype(np.float64) - expected[1:].clip(-1, 2)).max() < 1e-3
    assert canvases[0][0, 0, 0] == 0.0


def test_eight_bits_among_many_sixteen_agree_on_white(tmp_path: Path):
    folder = tmp_path / "both"
    folder.mkdir()
    ramp = np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)
    Image.fromarray(ramp).save(folder / "eight.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(folder / "sixteen.png")  # the same picture, deeper
    canvases = make_canvases(open_source(folder), 64)
    assert canvases.format.depth == 16 and (canvases[0] == canvases[1]).all()


def test_wrong_channels_are_set_aside_without_being_opened(tmp_path: Path):
    folder = tmp_path / "five"
    folder.mkdir()
    for i in range(3):
        np.save(folder / f"{i}.npy", np.random.default_rng(i).integers(0, 255, (20, 20, 5)).astype(np.uint8))
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "odd.png")
    canvases = make_canvases(open_source(folder), 20)
    assert canvases.format.mode == "5"
    assert list(canvases.set_aside.values()) == ["RGB, not 5 channels"]


def test_a_full_disk_is_foreseen(images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    collection = open_source(images(3))
    format = PixelFormat("RGB", 8, (0.0, 255.0))
    monkeypatch.setattr("selfsight.data.canvases.free_bytes", lambda: 1000)
    with pytest.raises(SelfsightError, match="SELFSIGHT_CACHE to a larger disk, or give --canvases stream"):
        announce("resident", collection.usable, format, 24, "asked")
    announce("stream", collection.usable, format, 24, "asked")


def test_removing_canvases_removes_those_that_hold_an_item(tmp_path: Path, cache: Path):
    one, two = (collection_of(tmp_path / name, [{}, {}]) for name in ("one", "two"))
    ids = make_canvases(one, 8).ids
    make_canvases(two, 8)
    kept = {path.parent for path in cached(cache)}
    remove_canvases({ids[0]})
    (left,) = cached(cache)
    assert (
        left.parent in kept and json.loads((left.parent / "about.json").read_text())["location"] == two.about.location
    )
    (left.parent / "index.npz").write_bytes(b"torn")  # it may hold anything
    remove_canvases({ids[0]})
    assert not cached(cache)


def test_two_processes_that_decode_the_same_items_at_once_do_not_meet(images: Callable[..., Path], tmp_path: Path):
    """As a sweep over seeds does: both map the same whole file, none of whose pixels is missing."""
    folder = images(150, size=(60, 60))
    open_source(folder)
    program = f"""
import numpy as np
from selfsight.data.canvases import Resident, measure_format
from selfsight.data.importers import open_source
items = open_source({str(folder)!r})
canvases = Resident(items, measure_format(items), 40)
print(sum(int(canvases[i].astype(np.int64).sum()) for i in range(150)))
"""
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = {int(process.communicate(timeout=120)[0]) for process in both}
    canvases = make_canvases(open_source(folder), 40)
    assert sums == {sum(int(canvases[i].astype(np.int64).sum()) for i in range(150))}


def test_what_a_killed_decoding_left_is_removed_by_the_next(images: Callable[..., Path], cache: Path):
    collection = open_source(images(3))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = folder_of(collection, measure_format(collection), 24).with_suffix(f".{dead.pid}")
    left.mkdir(parents=True)
    make_canvases(collection, 24)
    assert not left.exists() and len(list((cache / "canvases").iterdir())) == 1
