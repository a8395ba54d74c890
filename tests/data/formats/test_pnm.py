"""PNM: files written by hand and by Pillow, compared with what the formats say and with Pillow."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from selfsight.data.collection import Collection
from selfsight.data.decoding import family_of
from selfsight.data.formats import pnm
from selfsight.data.formats.format import Header, Unreadable
from selfsight.data.importers import open_source

RNG = np.random.default_rng(0)
GREY = picture(RNG, 7, 9, 1)
RGB = picture(RNG, 7, 9)


def pixels_of(data: bytes) -> np.ndarray:
    (got,) = pnm.read(io.BytesIO(data), [0], None, None)
    if isinstance(got, Unreadable):
        raise got
    return got


def by_pillow(pixels: np.ndarray | Image.Image) -> bytes:
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, "PPM")
    return out.getvalue()


def text(kind: str, highest: int | None, values: np.ndarray) -> bytes:
    height, width = values.shape[:2]
    head = f"{kind}\n# by hand\n {width}\t{height}\n{'' if highest is None else highest}\n"
    return (head + "\n".join(" ".join(map(str, row.reshape(-1))) for row in values)).encode()


def test_what_pillow_writes():
    for pixels, mode in ((GREY, "L"), (RGB, "RGB")):
        data = by_pillow(pixels)
        assert family_of(io.BytesIO(data)) is pnm
        assert pnm.headers(io.BytesIO(data), None) == [Header("PNM", 9, 7, mode, 8)]
        assert (pixels_of(data) == pixels.reshape(7, 9, -1)).all()
    bits = Image.fromarray(GREY).convert("1")
    assert (pixels_of(by_pillow(bits))[:, :, 0] == np.asarray(bits.convert("L"))).all()


def test_text_and_other_ranges():
    assert (pixels_of(text("P2", 255, GREY)) == GREY.reshape(7, 9, 1)).all()
    assert (pixels_of(text("P3", 255, RGB)) == RGB).all()
    levels = RNG.integers(0, 8, (4, 5))
    expected = np.asarray(Image.open(io.BytesIO(text("P2", 7, levels))))
    assert (pixels_of(text("P2", 7, levels))[:, :, 0] == expected).all() and expected.max() == 255
    assert (pixels_of(b"P1 3 2\n1 0 1\n001")[:, :, 0] == [[0, 255, 0], [255, 255, 0]]).all()
    assert (pixels_of(b"P5 2 1 # not\n15 \x00\x0f")[:, :, 0] == [[0, 255]]).all()


@pytest.mark.parametrize("highest", [4095, 65535])
def test_more_than_8_bits_stay_as_they_are(highest: int):
    deep = RNG.integers(0, highest + 1, (3, 4, 3)).astype(np.uint16)
    data = f"P6\n4 3\n{highest}\n".encode() + deep.astype(">u2").tobytes()
    assert pnm.headers(io.BytesIO(data), None) == [Header("PNM", 4, 3, "RGB", 16)]
    assert pixels_of(data).dtype == np.uint16 and (pixels_of(data) == deep).all()
    assert (pixels_of(text("P2", highest, deep[:, :, 0]))[:, :, 0] == deep[:, :, 0]).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (by_pillow(RGB)[:-1], "truncated PNM: the pixels end early"),
        (text("P2", 255, GREY)[:80], "truncated PNM: the pixels end early"),
        (b"P5 3 3 0\n" + bytes(9), "damaged PNM header"),
        (b"P5 3 3 70000\n" + bytes(99), "damaged PNM header"),
        (b"P5 3", "damaged PNM header"),
        (b"P5 0 3 255\n" + bytes(9), "an image of 0 x 3 has no pixels"),
        (b"P5 99999 99999 255\n" + bytes(9), "99999 x 99999 is above the limit of 200,000,000 pixels"),
        (b"P5 2 1 9\n\x01\x0a", "cannot be decoded: a value is above the highest that the header names"),
        (b"P2 2 1 9\n1 x", "cannot be decoded: broken data"),
    ],
)
def test_damage_is_named(data: bytes, reason: str):
    with pytest.raises(Unreadable) as raised:
        pnm.headers(io.BytesIO(data), None)
        pixels_of(data)
    assert str(raised.value) == reason


def test_a_folder_of_them_and_text_that_is_none(tmp_path: Path):
    (tmp_path / "faces").mkdir()
    for name, pixels in (("a.pgm", GREY), ("b.ppm", RGB), ("c", GREY)):
        (tmp_path / "faces" / name).write_bytes(by_pillow(pixels))
    (tmp_path / "faces" / "notes").write_text("P2 is the second patient.")
    items = open_source(tmp_path / "faces", tmp_path / "c.lance")
    assert items.usable["format"].to_pylist() == ["PNM"] * 3 and Collection.open(tmp_path / "c.lance").others == 1
