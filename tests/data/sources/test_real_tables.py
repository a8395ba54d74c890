"""The tables that people really have: counts as their makers state them (see the README of the data)."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from selfsight.data.sources.choose import make_source
from selfsight.data.sources.columns import parse_columns
from selfsight.data.sources.source import Entry, Options

DATA = Path(os.environ.get("SELFSIGHT_DATA", Path(__file__).parents[4] / "shared" / "data"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}; SELFSIGHT_DATA names another folder")


def listed(location: str, columns: str, **options: Any) -> tuple[list[Entry], Counter[str]]:
    source = make_source(str(DATA / location), Options(columns=parse_columns(columns), **options))
    entries = list(source.entries())
    assert not [entry for entry in entries if entry.reason]
    source.open(entries[-1].uri).close()
    return entries, source.others


def count(entries: list[Entry], column: str) -> Counter[Any]:
    return Counter(entry.columns[column] for entry in entries)


def test_blood_cells_of_two_laboratories():
    columns = "path=image ID,label=class label|class,site={0},mask={0}/masks/{name}"
    entries, _ = listed("wbc/site*/labels.csv", columns)
    assert count(entries, "site") == {"site1": 300, "site2": 100}
    assert count(entries, "label") == {"1": 176 + 33, "2": 53 + 37, "3": 48 + 15, "4": 22 + 12, "5": 1 + 3}
    assert all(e.columns["mask"] == e.uri.replace("images", "masks") for e in entries)


def test_radiographs_with_patients():
    columns = "path=filename,group=patientid,site=location,label=finding"
    entries, _ = listed("covid-cxr/metadata.csv", columns)
    assert len(entries) == 544 and all(entry.uri.startswith("images/") for entry in entries)
    first = {"group": "281", "site": "Barcelona, Spain", "label": "Pneumonia"}
    assert entries[0].uri == "images/000001-12.jpg" and entries[0].columns == first


def test_steel_with_boxes():
    columns = "split={0},label={1},boxes=boxes/{stem}.txt"
    entries, _ = listed("neu", columns, include=("train/*", "test/*"))
    assert count(entries, "split") == {"train": 1440, "test": 360}
    assert set(count(entries, "label").values()) == {300}
    assert sum(len(entry.columns["boxes"].boxes) for entry in entries) == 4108  # lines of the files


def test_blood_smears_by_their_lists():
    columns = "split={table},boxes=Annotations/{stem}.xml"
    entries, others = listed("bccd/ImageSets/Main/{train,val,test}.txt", columns, root=str(DATA / "bccd"))
    assert count(entries, "split") == {"train": 205, "val": 87, "test": 72} and not others
    boxes = Counter(box.label for entry in entries for box in entry.columns["boxes"].boxes)
    assert boxes == {"RBC": 4155, "WBC": 372, "Platelets": 361}


def test_tiles_with_masks():
    entries, others = listed("magnetic-tile", "label={1},mask=masks/{1}/{stem}.png")
    labels = {"free": 500, "blowhole": 115, "uneven": 103, "break": 85, "crack": 57, "fray": 32}
    assert count(entries, "label") == labels and others == {"masks": 392}
    assert count(entries, "mask")[None] == 500
