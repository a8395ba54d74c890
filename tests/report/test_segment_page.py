"""The page of a segmentation: its figures, its pictures beside the truth, what it leaves out, how it looks."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells import SIDE, write_cells
from helpers import tiny_encoder
from PIL import Image

import selfsight
from selfsight.data.annotations.masks import read_mask, write_mask
from selfsight.data.importers import open_source
from selfsight.data.written import written
from selfsight.encoders.store import save
from selfsight.errors import DataError
from selfsight.heads.head import load_head
from selfsight.heads.segment_head import SegmentHead
from selfsight.heads.segment_voice import SegmentAbout
from selfsight.probing.evaluation import Interval
from selfsight.report.beside import pictures_of
from selfsight.report.nameless import without_folders
from selfsight.report.segment_page import one_class, verdict

WRONG = "3.png"  # the picture of the test whose mask misses its left half


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder/, train/, test/, and head/, tested; masks of the test miss the upper part, and one the left half too;
    one of training is broken. Tests only read them."""
    folder = tmp_path_factory.mktemp("page")
    save(tiny_encoder(64), folder / "secret-encoder")
    write_cells(folder / "train", 7, 0)
    write_cells(folder / "test", 5, 1)
    (folder / "train" / "masks" / "6.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    for number in range(5):  # no two are equally well found
        mask = true_mask(folder, f"{number}.png")
        mask[: 4 + 2 * number] = 0
        if f"{number}.png" == WRONG:
            mask[:, : SIDE // 2] = 0
        (folder / "test" / "masks" / f"{number}.png").write_bytes(write_mask(mask))
    how = {"model": str(folder / "secret-encoder"), "size": 64, "method": "linear", "objects": False}
    labels = str(folder / "train" / "masks")
    selfsight.train.segment(str(folder / "train" / "images"), labels=labels, out=str(folder / "head"), **how)
    shutil.copytree(folder / "head", folder / "untested")
    test = {"test": str(folder / "test" / "images"), "labels": str(folder / "test" / "masks")}
    selfsight.evaluate(str(folder / "head"), **test, by="format")
    return folder


def true_mask(folder: Path, name: str) -> np.ndarray:
    with (folder / "test" / "masks" / name).open("rb") as file:
        return read_mask(file)


def page(head: Path, out: Path, **how: bool) -> str:
    return Path(selfsight.report(str(head), out=str(out / "page.html"), **how).report).read_text(encoding="utf-8")


def words(html: str) -> str:
    """What a reader sees."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(style|svg|title).*?</\1>", "", html))).split())


def strip(html: str, title: str) -> str:
    return html.split(f"<h2>{title}</h2>")[1].split("</section>")[0]


def ious(true: np.ndarray, said: np.ndarray) -> list[float]:
    """Of background and cells, by sets of pixels."""
    return [((true == k) & (said == k)).sum() / max(1, ((true == k) | (said == k)).sum()) for k in (0, 1)]


def test_figures_are_those_of_the_masks_that_predict_draws(place: Path, tmp_path: Path) -> None:
    html = page(place / "head", tmp_path)
    selfsight.predict(str(place / "test" / "images"), head=str(place / "head"), out=str(tmp_path / "found"))
    names = [f"{n}.png" for n in range(5)]
    true = np.stack([true_mask(place, name) for name in names])
    said = np.stack([np.asarray(Image.open(tmp_path / "found" / "masks" / name)).astype(int) for name in names])
    every = ious(true, said)
    each = {name: float(np.mean(ious(true[n], said[n]))) for n, name in enumerate(names)}
    text = words(html)
    assert f"Its masks overlap the true ones by {np.mean(every):.3g} [" in text and "on 5 pictures of the test" in text
    everywhere = max((true == 0).mean(), (true == 1).mean()) / 2  # by one class, which overlaps itself and no other
    assert f"where background everywhere would have {everywhere:.3g}" in text
    assert re.search(rf"Apart by intersection over union, mean PNG {np.mean(every):.3g} \[", text)
    assert re.search(rf"1 6 {100 * (true == 1).mean():.3g} % {every[1]:.3g} \[", text)  # class, masks, pixels, IoU
    order = sorted(names, key=lambda name: each[name])
    worst, best = strip(html, "Worst pictures of the test"), strip(html, "Best pictures of the test")
    assert order[0] == WRONG
    for part, shown in ((worst, order[:3]), (best, order[:2:-1])):
        told = re.findall(r"overlap (\d\.\d{3}) (\d\.png)", words(part))
        assert told == [(f"{each[name]:.3f}", name) for name in shown]


def test_pictures_show_the_mask_and_beside_it_the_true_one(place: Path, tmp_path: Path) -> None:
    html = strip(page(place / "head", tmp_path), "Worst pictures of the test")
    first, second = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)[:2]
    said, true = (in_colour(picture) for picture in (first, second))
    wrong = true_mask(place, WRONG)
    whole = read_ids(place, WRONG) > 0
    assert (true == (wrong > 0)).mean() > 0.93 > (said == (wrong > 0)).mean()
    assert (said == whole).mean() > 0.93


def in_colour(picture: str) -> np.ndarray:
    """[H, W] whether a pixel of a picture in grey is orange."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").resize((SIDE, SIDE))).astype(
        int
    )
    return np.asarray(pixels[:, :, 0] - pixels[:, :, 2] > 25)


def read_ids(folder: Path, name: str) -> np.ndarray:
    with (folder / "test" / "ids" / name).open("rb") as file:
        return read_mask(file)


def test_where_it_does_not_look_the_true_mask_has_nothing(place: Path) -> None:
    """Where the true mask is shown outside --roi, a reader takes what is not asked for as missed."""
    head = load_head(place / "untested")
    assert isinstance(head, SegmentHead)
    head.roi = np.zeros((SIDE, SIDE), bool)
    head.roi[:, SIDE // 2 :] = True
    items = open_source(place / "test" / "images")
    ids = dict(zip(items.usable["uri"].to_pylist(), items.usable["id"].to_pylist(), strict=True))
    shown, _ = pictures_of(head, str(items.path), str(place / "test" / "masks"), [ids["0.png"]])
    for picture in shown[ids["0.png"]]:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("RGB"), int)
        colour = np.ptp(pixels, axis=2)
        assert colour[:, : SIDE // 2 - 2].max() < 40 < colour[:, SIDE // 2 + 2 :].max()


def test_it_says_what_was_tried_and_learnt_from(place: Path, tmp_path: Path) -> None:
    html = page(place / "head", tmp_path)
    text, about = words(html), load_head(place / "head").about
    assert isinstance(about, SegmentAbout)
    for setting, value in about.tried.items():
        assert f"{setting} {value:.3f}" in text
    assert "learnt from 6 masks" in text and "Set aside: 6.png: no mask of PNG" in text
    assert about.licence in text and "selfsight predict NEW/ --head head -o found/" in text
    held = about.metrics["classes"]
    mean = np.mean([held[name].value for name in about.classes])
    assert mean == pytest.approx(about.metrics["held_out"]["miou"].value)
    assert sum(about.pixels.values()) == 6 * SIDE * SIDE
    items = load_head(place / "head").items.sort_by("held_out").to_pylist()
    told = re.findall(r"overlap (\d\.\d{3}) (\d\.png)", words(strip(html, "Worst pictures that it learnt from")))
    assert told == [(f"{row['held_out']:.3f}", row["uri"]) for row in items]


def test_it_loads_nothing_and_says_no_absolute_path(place: Path, tmp_path: Path) -> None:
    html = page(place / "head", tmp_path)
    addresses = re.findall(r'(?:src|href|action|srcset)="([^"]*)"', html)
    assert len(addresses) == 1 + 2 * (5 + 6) and all(address.startswith("data:") for address in addresses)
    assert not re.search(r"<(script|iframe|form|object|embed|base)", html) and "url(" not in html
    assert "default-src 'none'" in html and len(html) < 400_000
    assert str(place) not in html and "secret-encoder" in html
    assert page(place / "head", tmp_path) == html  # the same twice
    noted = {line.collection for line in written("pictures") if line.path == str(tmp_path / "page.html")}
    assert len(noted) == 2  # that of training and that of the test


def test_what_must_not_travel_is_left_out(place: Path, tmp_path: Path) -> None:
    bare = page(place / "head", tmp_path, thumbnails=False)
    assert "data:image" not in bare and WRONG in bare and "Pictures are left out" in bare
    nameless = page(place / "head", tmp_path, names=False)
    assert nameless.count("data:image/jpeg") == 2 * (5 + 6)
    for html in (nameless, page(place / "head", tmp_path, private=True)):
        assert not re.search(r"\d\.png|images|secret|of-root", html)
        assert "in pictures like those that it learnt from. Not tested" in html and "--head HEAD" in html
        assert "1 mask could not be used" in words(html) and "by the values of a column are left out" in words(html)
    assert "data:image" not in page(place / "head", tmp_path, private=True)


def test_untested_it_speaks_of_what_was_held_out(place: Path, tmp_path: Path) -> None:
    text = words(page(place / "untested", tmp_path))
    assert "on 6 pictures that were held out in turn" in text and "A test on other pictures says more" in text
    assert "of the test" not in text and "Worst pictures that it learnt from" in text


def test_of_one_mask_it_says_that_nothing_is_known(place: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(place / "train" / "masks" / "0.png", tmp_path / "one")
    model = str(place / "secret-encoder")
    how = {"labels": str(tmp_path / "one"), "out": str(tmp_path / "head"), "size": 64}
    selfsight.train.segment(str(place / "train" / "images"), model=model, **how)
    told = selfsight.report(str(tmp_path / "head"))
    assert told.verdict.word == "not measured" and told.items == 1
    text = words(Path(told.report).read_text(encoding="utf-8"))
    assert "It learnt from 1 mask, and none was held out" in text and "one mask only, so nothing" in text


def test_what_is_gone_is_said(place: Path, tmp_path: Path) -> None:
    (place / "test" / "masks").rename(place / "test" / "elsewhere")
    try:
        html = strip(page(place / "head", tmp_path), "Worst pictures of the test")
    finally:
        (place / "test" / "elsewhere").rename(place / "test" / "masks")
    assert html.count("data:image/jpeg") == 3 and "The true masks are not there any more" in html
    (place / "test").rename(place / "gone")
    try:
        html = page(place / "head", tmp_path)
    finally:
        (place / "gone").rename(place / "test")
    part = strip(html, "Worst pictures of the test")
    assert "data:image/jpeg" not in part and "not there any more" in part and str(place) not in html
    shutil.copytree(place / "head", tmp_path / "head")
    (tmp_path / "head" / "evaluation.json").write_text("{}")
    with pytest.raises(DataError, match=r"cannot be read\. Remove it"):
        selfsight.report(str(tmp_path / "head"))


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.42, 0.6, "better than"), (0.38, 0.6, "not measurably better than"), (0.2, 0.39, "worse than")],
)
def test_the_verdict_is_beside_one_class(place: Path, low: float, high: float, word: str) -> None:
    about = load_head(place / "head").about
    assert isinstance(about, SegmentAbout)
    about.metrics["held_out"] = {"miou": Interval(0.5, low, high)}
    about.metrics["classes"] = {"background": Interval(0.9, 0.8, 1.0), "1": Interval(0.1, 0.0, 0.2)}
    about.pixels.update({"background": 80, "1": 20})  # alone: 0.8 / 2
    found = verdict(about, None)
    assert found.word == f"{word} one class everywhere" and "Weakest class: 1, 0.1 [0, 0.2]." in found.sentence
    assert one_class({"a": 30, "b": 70, "c": 0}, {}) == ("b", 0.35)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("selfsight train /work/a/b.lance -o heads/x", "selfsight train b.lance -o heads/x"),
        (r"C:\Users\me\x.lance is gone", "x.lance is gone"),
        ("1/2 of and/or ../x/y ~/z", "1/2 of and/or ../x/y ~/z"),
    ],
)
def test_absolute_paths_are_cut(text: str, short: str) -> None:
    assert without_folders(text) == short


def test_it_fits_a_phone_and_nothing_is_refused(browser: Any, place: Path, tmp_path: Path) -> None:
    page(place / "head", tmp_path)
    for width in (390, 1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((tmp_path / "page.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.execute_script(broken) == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
