"""odd: what does not belong comes first, as a result, a sheet and JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_encoder
from PIL import Image

import selfsight
from selfsight.encoders.encoder import Encoder
from selfsight.report.sheet import GAP, TILE
from selfsight.verbs.odd import MOST, show


@pytest.fixture
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    """30 dark plates with a little noise and one bright stripe, twice; a file that is no picture."""
    rng = np.random.default_rng(0)
    (tmp_path / "plates" / "Süd").mkdir(parents=True)
    for i in range(30):
        Image.fromarray(rng.integers(40, 60, (40, 48, 3), np.uint8)).save(tmp_path / "plates" / f"{i:02d}.png")
    stripe = np.full((40, 48, 3), 50, np.uint8)
    stripe[:, 20:30] = (250, 200, 0)
    Image.fromarray(stripe).save(tmp_path / "plates" / "Süd" / "stripe.png")
    shutil.copy(tmp_path / "plates" / "Süd" / "stripe.png", tmp_path / "plates" / "copy.png")
    (tmp_path / "plates" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "plates"


def test_what_does_not_belong_is_first_and_its_copy_is_counted(plates: Path, encoder: Encoder) -> None:
    result = selfsight.odd(str(plates), model=encoder)
    first, second = result.pictures[:2]
    assert first.uri in ("copy.png", "Süd/stripe.png") and (first.rank, first.copies) == (1, 1)
    assert first.score > 20 * second.score
    assert len(result.pictures) == 31 and [p.rank for p in result.pictures] == list(range(1, 32))
    assert (result.items, result.set_aside) == (32, 1) and result.sheet is None
    scores = [p.score for p in result.pictures]
    assert scores == sorted(scores, reverse=True) and result.median == scores[15]


def test_the_sheet_and_the_json_hold_the_result(
    plates: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = selfsight.odd(str(plates), model=encoder, out=str(tmp_path / "out" / "odd"))
    assert json.loads((tmp_path / "out" / "odd" / "odd.json").read_text()) == result.to_dict()
    assert result.sheet == str(tmp_path / "out" / "odd" / "odd.png")
    with Image.open(result.sheet) as sheet:
        tile = np.asarray(sheet.crop((GAP, GAP, GAP + TILE, GAP + TILE)))
        assert sheet.size == (GAP + 8 * (TILE + GAP), GAP + 4 * (TILE + 2 * 16 + GAP))
    assert tuple(tile[TILE // 2, TILE // 2]) == (250, 200, 0)  # the stripe
    show(result)
    said = capsys.readouterr().out
    assert f"The first 31 are drawn in {result.sheet}" in said and "1 items set aside (" in said
    assert said.index(result.pictures[0].uri) < said.index(result.pictures[9].uri) and len(said.splitlines()) == 13
    show(selfsight.odd(str(plates), model=encoder))
    assert "-o FOLDER" in capsys.readouterr().out


def test_no_more_than_fit_a_sheet_and_pages_are_told_apart(tmp_path: Path, encoder: Encoder) -> None:
    pages = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16), np.uint8)) for i in range(MOST + 3)]
    (tmp_path / "stack").mkdir()
    pages[0].save(tmp_path / "stack" / "stack.tif", save_all=True, append_images=pages[1:])
    result = selfsight.odd(str(tmp_path / "stack"), model=encoder)
    assert len(result.pictures) == MOST and result.items == MOST + 3
    names = {picture.name for picture in result.pictures}
    assert len(names) == MOST and names < {f"stack.tif #{page}" for page in range(MOST + 3)}
    assert result.to_dict()["pictures"][0]["page"] == result.pictures[0].page


def test_mistakes_are_one_sentence(images: Callable[..., Path], encoder: Encoder, tmp_path: Path) -> None:
    alone = images(1, name="alone")
    with pytest.raises(selfsight.SelfsightError, match="holds one picture only"):
        selfsight.odd(str(alone), model=encoder)
    shutil.copy(alone / "000.png", alone / "again.png")
    with pytest.raises(selfsight.SelfsightError, match="holds one picture only"):
        selfsight.odd(str(alone), model=encoder)
    photos = images(3)
    with pytest.raises(selfsight.SelfsightError, match="in the folder of the images"):
        selfsight.odd(str(photos), model=encoder, out=str(photos / "odd"))
    (tmp_path / "file").write_text("")
    with pytest.raises(selfsight.SelfsightError, match="is a file"):
        selfsight.odd(str(photos), model=encoder, out=str(tmp_path / "file"))
