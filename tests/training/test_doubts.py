"""What is said of images and views before a training on them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers import picture, write_folder
from PIL import Image

from selfsight.data.batches import Batches
from selfsight.data.canvases import Streamed, measure_format
from selfsight.data.importers import open_source
from selfsight.training.doubts import doubts
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

RNG = np.random.default_rng(0)
SEE = " See views.png"


def said(folder: Path, colour: Colour | None = None) -> list[str]:
    items = open_source(folder)
    format = measure_format(items)
    canvases = Streamed(items, format, 32, 1)
    plan = ViewPlan((ViewGroup(count=2, size=16, colour=colour or Colour()),))
    geometry = canvases.geometry((0.5,) * format.channels, (0.25,) * format.channels)
    return doubts(Batches(canvases, 12, 0), plan, geometry, 0)


def save(folder: Path, pictures: list[np.ndarray]) -> Path:
    folder.mkdir()
    for i, pixels in enumerate(pictures):
        if pixels.dtype == np.uint8:
            Image.fromarray(pixels).save(folder / f"{i}.png")
        else:
            tifffile.imwrite(folder / f"{i}.tif", pixels)
    return folder


def test_sound_images_are_not_doubted(tmp_path: Path):
    assert said(write_folder(tmp_path / "a", 12)) == []
    assert said(save(tmp_path / "one", [picture(RNG, 24, 24)])) == []
    mostly = [np.full((24, 24, 3), 9, np.uint8)] * 6 + [picture(RNG, 24, 24) for _ in range(6)]  # half show something
    assert said(save(tmp_path / "half", mostly)) == []


def test_images_that_are_the_same(tmp_path: Path):
    pixels = picture(RNG, 24, 30) // 2
    pictures = [pixels, pixels + 1, pixels]  # not byte for byte
    text = "The 3 images that were looked at look the same, so there may be nothing to tell apart"
    assert said(save(tmp_path / "a", pictures)) == [text]
    assert said(save(tmp_path / "b", [*pictures, pixels[::-1].copy()])) == []


@pytest.mark.parametrize(
    ("colour", "name"), [((255, 253, 254), "white"), ((2, 1, 0), "black"), ((200, 0, 9), "of one colour")]
)
def test_images_of_one_colour(tmp_path: Path, colour: tuple[int, ...], name: str):
    plain = [np.full((20, 20, 3), colour, np.uint8)] * 7 + [picture(RNG, 24, 24) for _ in range(5)]
    assert said(save(tmp_path / "a", plain)) == [f"7 of 12 images that were looked at are {name} all over.{SEE}"]


def test_a_window_that_shows_nothing_is_named(tmp_path: Path):
    deep = [RNG.uniform(0, 1, (20, 20)).astype(np.float32) for _ in range(10)]
    for pixels in deep[:4]:
        pixels[:5] = -9999.0  # which nothing declares to be no data
    white = (
        r"6 of 10 images that were looked at are white all over, where -9999 is shown as black and 0\.99\d* as white"
    )
    (text,) = said(save(tmp_path / "a", deep))
    assert re.fullmatch(white + r"\. See views\.png", text)


def test_views_that_wash_everything_out(tmp_path: Path):
    photos = save(tmp_path / "a", [picture(RNG, 24, 24) // 2 + 100 for _ in range(12)])
    assert said(photos, Colour(brightness=0.5, jitter=1.0)) == []
    (text,) = said(photos, Colour(brightness=500.0, contrast=0.0, jitter=1.0, solarise=0.0))
    one = r"2\d of 24 views of the first images are (white|black|of one colour) all over, although the images are not"
    assert re.fullmatch(one + r"\. See views\.png", text)
