"""The form in which pixels meet: chosen by what most items have, translated as Pillow does or as arithmetic says."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import picture
from PIL import Image

from selfsight.data.formats.format import Unreadable
from selfsight.data.pixels import PixelFormat, common_format, convert, fit, resize

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"L": 10}, "L"),
        ({"L": 95, "RGB": 5}, "L"),  # a few scans saved in colour do not make a set of radiographs RGB
        ({"L": 80, "RGB": 20}, "RGB"),
        ({"L": 50, "LA": 50}, "L"),
        ({"RGB": 60, "RGBA": 40}, "RGB"),
        ({"RGBA": 99, "RGB": 1}, "RGBA"),
        ({"CMYK": 10}, "CMYK"),
        ({"5": 60, "RGB": 40}, "5"),
        ({"5": 30, "RGB": 70}, "RGB"),
        ({"5": 30, "L": 70}, "L"),
        ({"2": 3, "5": 4}, "5"),
    ],
)
def test_mode_of_a_collection(modes: dict[str, int], expected: str):
    assert common_format((m for m, n in modes.items() for _ in range(n)), [8]).mode == expected


@pytest.mark.parametrize(
    ("depths", "expected"),
    [({8: 10}, 8), ({8: 91, 16: 9}, 8), ({8: 90, 16: 10}, 16), ({16: 5, 32: 1}, 32), ({8: 99, 32: 1}, 8)],
)
def test_depth_of_a_collection(depths: dict[int, int], expected: int):
    assert common_format(["L"], (d for d, n in depths.items() for _ in range(n))).depth == expected


@pytest.mark.parametrize("want", ["L", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("have", ["L", "LA", "RGB", "RGBA", "CMYK"])
def test_8_bit_colours_meet_as_pillow_converts_them(have: str, want: str):
    image = Image.fromarray(picture(RNG, 9, 11)).convert("RGB" if have == "CMYK" else have)
    image = image.convert(have)
    pixels = np.asarray(image).reshape(9, 11, -1)
    got = convert(pixels, have, PixelFormat(want, 8))
    if have == want:
        expected = image
    elif "CMYK" in (have, want):
        expected = image.convert("RGB").convert(want)
    else:
        expected = image.convert(want)
    assert (got == np.asarray(expected).reshape(9, 11, -1)).all()


def test_16_bit_colours_meet_by_the_same_arithmetic():
    """Of values that are 257 times 8-bit ones, the result is 257 times Pillow's, but for its rounding."""
    small = picture(RNG, 9, 11)
    for want in ("L", "RGBA", "CMYK"):
        expected = np.asarray(Image.fromarray(small).convert(want)).reshape(9, 11, -1).astype(int)
        got = convert(small.astype(np.uint16) * 257, "RGB", PixelFormat(want, 16))
        assert np.abs(got / 257 - expected).max() <= 1.0
    ink = np.zeros((1, 1, 4), np.uint16)
    ink[..., 0], ink[..., 3] = 65535, 32768  # full cyan under half black
    assert convert(ink, "CMYK", PixelFormat("RGB", 16))[0, 0].tolist() == [0, 32767, 32767]


def test_depths():
    eight = np.array([[[0], [1], [255]]], np.uint8)
    sixteen = np.array([[[0], [255], [256], [65535]]], np.uint16)
    assert convert(eight, "L", PixelFormat("L", 16)).ravel().tolist() == [0, 257, 65535]
    assert convert(sixteen, "L", PixelFormat("L", 8)).ravel().tolist() == [0, 0, 1, 255]
    assert convert(sixteen, "L", PixelFormat("L", 16)) is sixteen
    assert convert(eight, "L", PixelFormat("L", 32, (-100.0, 155.0))).ravel().tolist() == [-100.0, -99.0, 155.0]
    floats = np.array([[[0.0], [0.5], [1.0]]], np.float32)
    assert convert(floats, "L", PixelFormat("L", 8)).ravel().tolist() == [0, 128, 255]
    wide = np.array([[[-10.0], [0.0], [30.0], [np.nan], [np.inf]]], np.float32)
    assert convert(wide, "L", PixelFormat("L", 8)).ravel().tolist() == [0, 64, 255, 0, 255]
    missing = convert(wide, "L", PixelFormat("L", 32, (-5.0, 7.0))).ravel().tolist()
    assert missing == [-10.0, 0.0, 30.0, -5.0, 7.0]  # what is no number is as dark or bright as the window goes


@pytest.mark.parametrize("depth", [8, 16, 32])
def test_floats_of_which_none_is_finite_are_no_picture(depth: int):
    want = PixelFormat("L", depth, (0.0, 1.0))
    pixels = np.full((4, 4, 1), np.nan, np.float32)
    pixels[0, 0] = np.inf
    with pytest.raises(Unreadable, match="no value in it is finite"):
        convert(pixels, "L", want)
    pixels[1, 1] = 0.5
    assert convert(pixels, "L", want).shape == (4, 4, 1)


def test_channels_that_are_no_colours_are_never_guessed():
    five = RNG.integers(0, 255, (4, 4, 5)).astype(np.uint8)
    assert convert(five, "5", PixelFormat("5", 8)) is five
    with pytest.raises(Unreadable, match="5 channels, not RGB"):
        convert(five, "5", PixelFormat("RGB", 8))
    with pytest.raises(Unreadable, match="grey, not 5 channels"):
        convert(five[:, :, :1], "L", PixelFormat("5", 8))
    assert convert(five[:, :, :4], "4", PixelFormat("RGBA", 8)).shape == (4, 4, 4)


def test_resizing_is_pillows_and_leaves_channels_apart():
    colour = picture(RNG, 40, 60)
    expected = np.asarray(Image.fromarray(colour).resize((15, 10), Image.Resampling.BICUBIC))
    assert (resize(colour, 10, 15) == expected).all()
    for channels in (2, 4, 5):
        pixels = RNG.integers(0, 256, (40, 60, channels)).astype(np.uint8)
        pixels[:, :, -1] = 0  # an alpha of nothing must not wipe out the others
        alone = [
            np.asarray(Image.fromarray(p).resize((15, 10), Image.Resampling.BICUBIC)) for p in pixels.transpose(2, 0, 1)
        ]
        assert np.abs(resize(pixels, 10, 15).astype(int) - np.stack(alone, 2)).max() <= 1
    deep = (colour[:, :, :1].astype(np.uint16) << 8) + 7
    floats = Image.fromarray(deep[:, :, 0].astype(np.float32)).resize((15, 10), Image.Resampling.BICUBIC)
    assert (resize(deep, 10, 15)[:, :, 0] == np.asarray(floats).round().clip(0, 65535)).all()


def test_fit_cuts_panoramas_and_never_enlarges():
    assert fit(picture(RNG, 20, 30), 40).shape == (20, 30, 3)
    assert fit(picture(RNG, 40, 60), 20).shape == (20, 30, 3)
    panorama = picture(RNG, 10, 100)
    assert (fit(panorama, 50) == panorama[:, 35:65]).all()
