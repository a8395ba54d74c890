"""`--columns`: what is understood, and the boxes of YOLO and VOC files."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfsight.data.boxes import Box, Boxes
from selfsight.data.sources.choose import make_source
from selfsight.data.sources.columns import parse_columns, read_boxes
from selfsight.data.sources.source import Options
from selfsight.errors import SelfsightError


def test_columns_are_parsed_with_spaces_bars_braces_and_commas():
    text = "path=image ID, label=class label|class,site={0},mask={0}/masks/{name},age=Age, in years"
    assert parse_columns(text) == {
        "path": "image ID",
        "label": "class label|class",
        "site": "{0}",
        "mask": "{0}/masks/{name}",
        "age": "Age, in years",
    }
    assert parse_columns(" ") == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("label", "'label' is not NAME=COLUMN"),
        ("label=", "'label=' is not NAME=COLUMN"),
        ("=x", "'=x' is not NAME=COLUMN"),
        ("my label=x", "'my label=x' is not NAME=COLUMN"),
        ("label=a,label=b", "names label twice"),
        ("status=x", "status is read from the images"),
        ("label={first}", "label={first} is not understood: braces may hold"),
        ("label={0", "is not understood"),
        ("label={-1}", "is not understood"),
        ("label={0.__class__}", "is not understood"),
        ("path={0}", "path= takes a column"),
    ],
)
def test_what_is_malformed_is_one_sentence(text: str, sentence: str):
    with pytest.raises(SelfsightError, match=sentence) as error:
        parse_columns(text)
    assert "\n" not in str(error.value)


def voc(*boxes: tuple[str, float, float, float, float], size: str = "200 100") -> bytes:
    width, height = size.split()
    things = "".join(
        f"<object><name> {name} </name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        f"</bndbox><part><name>head</name><bndbox><xmin>0</xmin></bndbox></part></object>"
        for name, a, b, c, d in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"<annotation>{size}{things}</annotation>".encode()


def test_the_suffix_of_a_file_of_boxes_says_how_it_is_read():
    assert read_boxes(b"3 0.5 0.25 0.5 0.125\n", ".txt") == Boxes((Box("3", 0.25, 0.1875, 0.75, 0.3125),), (1.0, 1.0))
    assert read_boxes(voc(("RBC", 1, 26, 100, 75)), ".xml") == Boxes((Box("RBC", 0, 25, 100, 75),), (200, 100))
    assert read_boxes(b"", ".txt").boxes == () == read_boxes(voc(), ".xml").boxes


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + voc()


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (b"0 0.5 0.5 0.1", ".txt"),
        (b"0 0.5 0.5 0.1 x", ".txt"),
        (b"0 120 80 30 30", ".txt"),  # pixels
        (b"0 nan 0.5 0.1 0.1", ".txt"),
        (b"0 0.5 0.5 -0.1 0.1", ".txt"),
        (b"0 0.1 0.1 0.9 0.1 0.9 0.9", ".txt"),  # a polygon
        (b"\xff\xfe0", ".txt"),
        (b"", ".xml"),
        (voc()[:-5], ".xml"),
        (b"<annotation></annotation>", ".xml"),
        (voc(size="0 0"), ".xml"),
        (voc(("a", 0, 0, 900, 50)), ".xml"),
        (voc(("a", 50, 0, 40, 50)), ".xml"),
        (voc(("", 0, 0, 9, 9)), ".xml"),
        (voc().replace(b"<width>200</width>", b""), ".xml"),
        (BOMB, ".xml"),
        (
            b'<?xml version="1.0" encoding="utf-16"?>'.decode().encode("utf-16") + BOMB.decode().encode("utf-16-le"),
            ".xml",
        ),
        (b'<?xml version="1.0" encoding="nonsense"?>' + voc(), ".xml"),
        (b"{}", ".json"),
        (b" " * (17 * 2**20), ".txt"),
    ],
)
def test_boxes_that_are_none_are_refused(data: bytes, suffix: str):
    with pytest.raises(ValueError, match=r"\w"):
        read_boxes(data, suffix)


def test_an_image_with_unreadable_boxes_stays_and_they_are_counted(tmp_path: Path):
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "1.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "2.txt").write_text("0 0.5")
    source = make_source(str(tmp_path), Options(columns={"boxes": "{stem}.txt"}, include=("*.png",)))
    boxes = {entry.uri: (entry.reason, entry.columns["boxes"]) for entry in source.entries()}
    half = Boxes((Box("0", 0.25, 0.25, 0.75, 0.75),), (1.0, 1.0))
    assert boxes == {"1.png": ("", half), "2.png": ("", None), "3.png": ("", None)}
    assert source.others == {"unreadable boxes": 1}
