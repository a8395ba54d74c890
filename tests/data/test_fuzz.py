"""Broken bytes of every kind: nothing but a reason comes out. A small part of `benchmarks/fuzz.py`, in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from selfsight.data.canvases import decoded
from selfsight.data.importers import open_source
from selfsight.data.pixels import PixelFormat

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fuzz

INPUTS = {kind: 300 if kind in fuzz.FORMATS else 60 for kind in fuzz.CORPUS}
NEEDS = {"DICOM": "pydicom", "VIDEO": "av"}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz.prepare(folder / "inputs")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", fuzz.CORPUS)
def test_broken_bytes_give_reasons(work: Path, kind: str):
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    corpus = fuzz.read_corpus(work, kind)
    for data in corpus:
        assert fuzz.check(kind, data, work / "inputs", 0) == "ok"
    became = set()
    for number in range(1, INPUTS[kind]):
        became.add(fuzz.check(kind, fuzz.mutated(kind, corpus, 1, number), work / "inputs", number))
    assert "ok" in became
    assert became & {"set_aside", "other"} or kind == "BOXES"  # boxes that cannot be read leave their picture usable


def test_an_input_follows_from_seed_kind_and_number(work: Path):
    corpus = fuzz.read_corpus(work, "PNG")
    again = [fuzz.mutated("PNG", corpus, 0, number) for number in range(50)]
    assert again == [fuzz.mutated("PNG", corpus, 0, number) for number in range(50)]
    assert len(set(again)) > 45 and not set(again) <= set(corpus)
    assert again != [fuzz.mutated("PNG", corpus, 1, number) for number in range(50)]


def test_a_frame_that_enlarges_its_gif_keeps_three_channels(tmp_path: Path):
    # Found by the fuzzer: Pillow calls such a frame RGB until it is loaded, and RGBA then.
    frames = [Image.fromarray(picture(np.random.default_rng(i), 20, 24)) for i in range(2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    data = bytearray((tmp_path / "moving.gif").read_bytes())
    second = data.rindex(b"\x2c\0\0\0\0\x18\0\x14\0")  # its left and top, and its size: 24 x 20
    data[second + 3] = 32
    (tmp_path / "moving.gif").write_bytes(data)
    with Image.open(tmp_path / "moving.gif") as image:
        image.seek(1)
        wanted = np.asarray(image.convert("RGB"))
    collection = open_source(tmp_path, tmp_path / "c.lance")
    rows = collection.usable.sort_by("page")
    got = dict(decoded(collection, rows, PixelFormat("RGB", 8), None, "Decoding"))
    assert wanted.shape == (52, 24, 3) and np.array_equal(got[1], wanted)
