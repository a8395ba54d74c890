"""Files to pixels, compared with Pillow used the plain way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from helpers import picture
from PIL import Image, ImageOps

from selfsight.data.decoding import Unreadable, decode, read_header
from selfsight.errors import SelfsightError

RNG = np.random.default_rng(0)


def save(path: Path, image: Image.Image, **how: object) -> Path:
    image.save(path, **how)  # type: ignore[arg-type]
    return path


def test_rgb_and_grey_keep_their_pixels(tmp_path: Path):
    colour, grey = picture(RNG, 17, 23), picture(RNG, 17, 23, 1)
    assert (decode(save(tmp_path / "c.png", Image.fromarray(colour)), 3) == colour).all()
    got = decode(save(tmp_path / "g.png", Image.fromarray(grey)), 1)
    assert got.shape == (17, 23, 1) and (got[:, :, 0] == grey).all()


def test_grey_as_rgb_repeats_and_rgb_as_grey_is_luminance(tmp_path: Path):
    colour, grey = picture(RNG, 17, 23), picture(RNG, 17, 23, 1)
    assert (decode(save(tmp_path / "g.png", Image.fromarray(grey)), 3) == grey[:, :, None]).all()
    luminance = colour @ np.array([0.299, 0.587, 0.114])
    got = decode(save(tmp_path / "c.png", Image.fromarray(colour)), 1)[:, :, 0]
    assert np.abs(got - luminance).max() <= 1.0


def test_other_modes(tmp_path: Path):
    colour = picture(RNG, 16, 24)
    rgba = Image.fromarray(colour).convert("RGBA")
    rgba.putalpha(128)
    assert (decode(save(tmp_path / "a.png", rgba), 3) == colour).all()  # alpha is dropped, not blended
    palette = Image.fromarray(colour).quantize(16)
    assert (decode(save(tmp_path / "p.png", palette), 3) == np.asarray(palette.convert("RGB"))).all()
    cmyk = save(tmp_path / "k.jpg", Image.fromarray(colour).convert("CMYK"))
    assert (decode(cmyk, 3) == np.asarray(Image.open(cmyk).convert("RGB"))).all()
    assert np.abs(decode(cmyk, 3).astype(int) - colour).mean() < 8  # and not inverted
    bits = Image.fromarray((colour[:, :, 0] > 127).astype(np.uint8) * 255).convert("1")
    assert (decode(save(tmp_path / "b.png", bits), 1)[:, :, 0] == np.asarray(bits) * 255).all()
    grey_alpha = Image.fromarray(colour[:, :, 0]).convert("LA")
    assert (decode(save(tmp_path / "la.png", grey_alpha), 1)[:, :, 0] == colour[:, :, 0]).all()


def test_a_palette_of_greys_is_a_grey_image(tmp_path: Path):
    grey = picture(RNG, 16, 24, 1)
    image = Image.fromarray(grey)
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([v for i in range(256) for v in (i, i, i)])
    path = save(tmp_path / "p.png", image)
    assert read_header(path.read_bytes())["channels"] == 1
    assert (decode(path, 1)[:, :, 0] == grey).all()


def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path):
    deep = RNG.integers(0, 65536, (40, 30)).astype(np.uint16)
    path = save(tmp_path / "d.png", Image.fromarray(deep))
    got = decode(path, 1, deep=True)
    assert got.dtype == np.uint16 and (got[:, :, 0] == deep).all()
    small = decode(path, 1, square=10, deep=True)[:, :, 0]
    wanted = np.asarray(Image.fromarray(deep.astype(np.float32)).resize((10, 10), Image.Resampling.BICUBIC))
    assert small.dtype == np.uint16 and np.abs(small - wanted).max() <= 0.5
    assert (decode(path, 3) == (deep // 256)[:, :, None]).all()  # RGB has eight bits
    assert (decode(path, 1)[:, :, 0] == deep // 256).all()  # an encoder made for eight bits


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int):
    pixels = picture(RNG, 20, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "o.png", Image.fromarray(pixels), exif=exif)
    # What each number means, from the EXIF standard: where row 0 and column 0 of the file belong.
    upright = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.transpose(1, 0, 2), 6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }[orientation]  # fmt: skip
    got = decode(path, 3)
    assert got.shape == upright.shape and (got == upright).all()
    header = read_header(path.read_bytes())
    assert (header["height"], header["width"]) == upright.shape[:2]


@pytest.mark.parametrize("size", [(50, 70), (20, 20), (24, 24)])
def test_square_is_pillows_bicubic(tmp_path: Path, size: tuple[int, int]):
    for channels in (1, 3):
        image = Image.fromarray(picture(RNG, *size, channels))
        got = decode(save(tmp_path / f"{channels}.png", image), channels, square=24)
        wanted = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC)).reshape(24, 24, channels)
        assert (got == wanted).all()


SHRUNK = {
    (50, 70): (25, 35), (70, 50): (35, 25), (100, 33): (76, 25), (26, 25): (26, 25), (20, 60): (20, 60),
}  # fmt: skip


def test_of_a_long_strip_the_middle_three_to_one_is_taken(tmp_path: Path):
    pixels = picture(RNG, 1000, 26)
    got = decode(save(tmp_path / "x.png", Image.fromarray(pixels)), 3, short_side=26)
    assert (got == pixels[461:539]).all()


@pytest.mark.parametrize("size, wanted", SHRUNK.items())
def test_short_side_keeps_the_aspect_and_never_enlarges(tmp_path: Path, size: tuple[int, int], wanted: tuple[int, int]):
    image = Image.fromarray(picture(RNG, *size))
    got = decode(save(tmp_path / "x.png", image), 3, short_side=25)
    assert got.shape[:2] == wanted
    assert (got == np.asarray(image.resize(wanted[::-1], Image.Resampling.BICUBIC))).all()


def test_what_cannot_be_decoded_says_why(tmp_path: Path):
    with pytest.raises(Unreadable, match="vanished"):
        decode(tmp_path / "none.png", 3)
    path = save(tmp_path / "x.png", Image.fromarray(picture(RNG, 64, 64)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)
    path.write_bytes(data)
    assert read_header(bytes(data))["width"] == 64  # the header is well
    with pytest.raises(Unreadable, match="cannot be decoded"):
        decode(path, 3)
    good = save(tmp_path / "y.png", Image.fromarray(picture(RNG, 8, 8)))
    with pytest.raises(SelfsightError, match="4 channels"):
        decode(good, 4)


def test_a_real_jpeg_decodes_as_pillow_does():
    data = Path(os.environ.get("SELFSIGHT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    files = sorted((data / "neu").rglob("*.jpg"))[:3] if (data / "neu").exists() else []
    if not files:
        pytest.skip(f"{data / 'neu'} holds no NEU steel images")
    for file in files:
        wanted = ImageOps.exif_transpose(Image.open(file)).convert("L").resize((64, 64), Image.Resampling.BICUBIC)
        assert (decode(file, 1, square=64)[:, :, 0] == np.asarray(wanted)).all()
