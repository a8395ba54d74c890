"""The contact sheet: every picture in its place, with words under it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from selfsight.report.sheet import GAP, LINE, TILE, contact_sheet


def drawn(pictures: list[Image.Image], captions: list[list[str]]) -> np.ndarray:
    """[H, W, 3]."""
    with Image.open(io.BytesIO(contact_sheet(pictures, captions)), formats=["PNG"]) as sheet:
        return np.asarray(sheet)


def place(number: int) -> tuple[int, int]:
    """y, x of a tile with two lines of caption."""
    return GAP + number // 8 * (TILE + 2 * LINE + GAP), GAP + number % 8 * (TILE + GAP)


def test_pictures_are_in_reading_order_and_words_under_them() -> None:
    pictures = [Image.new("RGB", (TILE, TILE), (10 * i, 100, 200)) for i in range(11)]
    sheet = drawn(pictures, [["one", "two"] if i != 9 else ["", ""] for i in range(11)])
    for i in range(11):
        y, x = place(i)
        assert (sheet[y : y + TILE, x : x + TILE] == (10 * i, 100, 200)).all()
        words = sheet[y + TILE : y + TILE + 2 * LINE, x : x + TILE]
        assert (words.min() == 255) == (i == 9)
    assert (sheet[place(11)[0] :, place(11)[1] :] == 255).all()  # nothing behind the last


@pytest.mark.parametrize(("size", "mode"), [((8, 4), "L"), ((1, 2), "RGB"), ((160, 1), "L"), ((3, 3), "RGBA")])
def test_small_and_long_pictures_are_enlarged_and_centred(size: tuple[int, int], mode: str) -> None:
    sheet = drawn([Image.new(mode, size, 0)], [["a"]])
    dark = np.argwhere(sheet[: GAP + TILE].max(2) == 0)
    (top, left), (bottom, right) = dark.min(0), dark.max(0) + 1
    assert max(bottom - top, right - left) == TILE
    assert (right - left) * size[1] == (bottom - top) * size[0]
    assert abs((top + bottom) - (2 * GAP + TILE)) <= 1 and abs((left + right) - (2 * GAP + TILE)) <= 1


def test_names_of_any_kind_stay_under_their_picture() -> None:
    pictures = [Image.new("L", (TILE, TILE), 255)] * 8
    names = ["x" * 5000, "a\nb\nc\nd", "\udcff\x00", "Süd/Teil Ω.png", "日本語.png", "", "[bold]", "é" * 300]
    sheet = drawn(pictures, [[name, name] for name in names])
    assert sheet.shape[:2] == (2 * GAP + TILE + 2 * LINE, GAP + 8 * (TILE + GAP))
    for i in range(8):
        y, x = place(i)
        assert (sheet[:, x + TILE + 1 : x + TILE + GAP] == 255).all(), names[i]  # not into its neighbour
        assert (sheet[y + TILE : y + TILE + 2 * LINE, x : x + TILE].min() < 128) == bool(names[i]), names[i]


def test_of_a_long_path_the_name_is_kept() -> None:
    blank = Image.new("L", (TILE, TILE), 255)
    sheets = [drawn([blank], [[path]]) for path in ("a/" * 80 + "1.png", "b/" * 80 + "1.png", "a/" * 80 + "2.png")]
    right = [sheet[:, -40:] for sheet in sheets]
    assert (right[0] == right[1]).all() and (right[0] != right[2]).any()
