"""select: the table and the sheet of what to label, and that it goes on from labels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_encoder
from PIL import Image

import selfsight
from selfsight.data.importers import open_source
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError, SelfsightError
from selfsight.verbs.select import show

SHADES = ("dark", "grey", "light")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return tiny_encoder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight plates of each of three shades with a stripe elsewhere, in folders; one file that is no picture."""
    rng = np.random.default_rng(0)
    for shade, level in zip(SHADES, (10, 120, 240), strict=True):
        (tmp_path / "plates" / shade).mkdir(parents=True)
        for i in range(8):
            plate = np.clip(level + rng.normal(0, 2, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(plate).save(tmp_path / "plates" / shade / f"{i}.png")
    (tmp_path / "plates" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "plates"


def shades(found: selfsight.verbs.select.Selection) -> list[str]:
    return [each.path.split("/")[0] for each in found.items]


def test_folders_are_no_labels_and_each_shade_is_asked(
    folder: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = selfsight.select(str(folder), model=encoder, budget=3, out=str(tmp_path / "out" / "ask.csv"))
    assert sorted(shades(found)) == sorted(SHADES) and found.method == "cover"
    assert (found.labelled, found.pool, found.set_aside) == (0, 24, 1)
    assert sum(each.stands_for for each in found.items) == 24
    with (tmp_path / "out" / "ask.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["path"], row["rank"]) for row in rows] == [
        (each.id, each.path, str(rank)) for rank, each in enumerate(found.items, 1)
    ]
    with Image.open(str(found.sheet)) as sheet:
        assert sheet.height > 160
    show(found)
    said = capsys.readouterr().out
    assert "Label these 3 first, of 24 without a label (cover)" in said and "selfsight label " in said


def test_it_goes_on_from_the_journal_and_from_a_table(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    journal = open_source(str(folder)).decisions
    first = selfsight.select(str(folder), model=encoder, budget=2)
    for each, shade in zip(first.items, shades(first), strict=True):
        journal.decide(each.id, None, "label", shade)
    second = selfsight.select(str(folder), model=encoder, budget=1)
    assert {*shades(first), *shades(second)} == set(SHADES)
    assert (second.labelled, second.pool, second.method) == (2, 22, "doubt")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{each.path},x\n" for each in second.items))
    third = selfsight.select(str(folder), model=encoder, budget=30, labels=str(table))
    assert third.labelled == 3 and not {e.id for e in third.items} & {e.id for e in (*first.items, *second.items)}


def test_the_neighbours_are_kept_until_the_items_change(folder: Path, encoder: Encoder) -> None:
    items = open_source(str(folder))
    one = selfsight.select(str(folder), model=encoder, budget=4)
    (kept,) = items.features.folder.glob("*-neighbours-20.safetensors")
    before = kept.read_bytes()
    assert selfsight.select(str(folder), model=encoder, budget=4).items == one.items
    assert kept.read_bytes() == before
    (folder / "dark" / "7.png").unlink()
    selfsight.select(str(folder), model=encoder, budget=4)
    assert kept.read_bytes() != before
    selfsight.forget(str(folder), "dark/0.png")
    assert not kept.exists()


def test_a_sheet_takes_the_place_of_sheets_alone(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "ask.png").write_bytes(b"a picture of mine")
    with pytest.raises(SelfsightError, match=r"ask\.png is there already, and the sheet of .* would take its place"):
        selfsight.select(str(folder), model=encoder, out=str(tmp_path / "ask.csv"))
    assert (tmp_path / "ask.png").read_bytes() == b"a picture of mine" and not (tmp_path / "ask.csv").exists()
    for budget in (1, 2):  # its own it draws again
        selfsight.select(str(folder), model=encoder, budget=budget, out=str(tmp_path / "other.csv"))
    assert len((tmp_path / "other.csv").read_text().splitlines()) == 3


def test_doubts_about_labels_are_said(
    folder: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label\ndark/0.png,Dark\ndark/1.png,dark\n")
    found = selfsight.select(str(folder), model=encoder, budget=1, labels=str(table))
    assert found.notes and "differ in spelling only" in found.notes[0]
    show(found)
    assert "Note: Classes that differ in spelling only count as different ones: 'Dark' and 'dark'." in "".join(
        capsys.readouterr().out
    )
    assert "notes" not in selfsight.select(str(folder), model=encoder, budget=1).to_dict()


def test_what_it_cannot_do_is_one_sentence(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(SelfsightError, match="--budget is how many items to choose: 1 or more, not 0"):
        selfsight.select(str(folder), model=encoder, budget=0)
    with pytest.raises(SelfsightError, match=r"written as \.csv, not as 'ask.txt'"):
        selfsight.select(str(folder), model=encoder, out="ask.txt")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n" + "".join(f"{s}/{i}.png,{s}\n" for s in SHADES for i in range(8)))
    with pytest.raises(DataError, match=r"All 24 items of .* have a label already; there is nothing to choose"):
        selfsight.select(str(folder), model=encoder, labels=str(table))
