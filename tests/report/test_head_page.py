"""The page of a head: its words and figures, its pictures, what it leaves out, and how it looks in a browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_encoder, write_colours
from PIL import Image

import selfsight
from selfsight.data.importers import open_source
from selfsight.data.written import written
from selfsight.encoders.store import save
from selfsight.errors import SelfsightError
from selfsight.heads.classify_voice import ClassifyAbout as About
from selfsight.heads.evaluation import HeadEvaluation, evaluate_held_out
from selfsight.heads.head import load_head
from selfsight.probing.evaluation import Interval
from selfsight.report.head_worth import verdict
from selfsight.report.plane import BELOW, EDGE, LEFT, SIDE, Point, plane

COLOURS = ("red", "green", "blue")
HOSTILE = "<b>red</b>"  # a class


def write_table(images: Path, file: Path, label: Any, **columns: Any) -> str:
    """A table of the pictures in a folder; label and further columns are functions of (place, path)."""
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["path", "label", *columns])
        for place, name in enumerate(names):
            table.writerow([name, label(place, name), *(column(place, name) for column in columns.values())])
    return str(file)


def colour(place: int, name: str) -> str:
    return name.split("/")[0].replace("red", HOSTILE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder/, train/ and test/ with their collections, which name patients and sites, and head/, tested; a file of
    each cannot be read, one picture of train is in test too, and the labels of two pictures are wrong."""
    folder = tmp_path_factory.mktemp("place")
    save(tiny_encoder(32), folder / "secret-encoder")
    write_colours(folder / "train", 12)
    write_colours(folder / "test", 8, seed=1)
    shutil.copy(folder / "train" / "blue" / "003.png", folder / "test" / "blue" / "copy.png")

    def label(place: int, name: str) -> str:
        return "green" if name in ("blue/001.png", "blue/002.png") else colour(place, name)

    for side in ("train", "test"):
        table = write_table(
            folder / side, folder / f"{side}.csv", label,
            patient=lambda place, name: f"P{1000 + place // 2}", hospital=lambda place, name: f"Site-{place % 2}",
        )  # fmt: skip
        (folder / side / "red" / "004.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        columns = "group=patient,site=hospital"
        selfsight.import_(table, out=str(folder / f"{side}.lance"), root=str(folder / side), columns=columns)
    spoil(folder / "train" / "green" / "007.png")  # after it was imported
    train, test = (str(folder / f"{side}.lance") for side in ("train", "test"))
    selfsight.train.classify(train, model=str(folder / "secret-encoder"), out=str(folder / "head"), method="linear")
    selfsight.evaluate(str(folder / "head"), test=test, by="site")
    return folder


def spoil(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def page(head: Path, out: Path, **how: bool) -> str:
    return Path(selfsight.report(str(head), out=str(out / "page.html"), **how).report).read_text(encoding="utf-8")


def words(html: str) -> str:
    """What a reader sees."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", re.sub(r"(?s)<(style|svg|title).*?</\1>", "", html))).split())


def section(html: str, name: str) -> str:
    return html.split(f'<section id="{name}"')[1].split("</section>")[0]


def test_the_page_loads_nothing_runs_nothing_and_names_are_text(place: Path, tmp_path: Path) -> None:
    html = page(place / "head", tmp_path)
    addresses = re.findall(r'(?:src|href|action|srcset)="([^"]*)"', html)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert not re.search(r"<(script|iframe|form|object|embed|base)", html) and "url(" not in html
    assert "default-src 'none'" in html and "@import" not in html and len(html) < 400_000
    assert HOSTILE not in html and HOSTILE in words(html)
    assert page(place / "head", tmp_path) == html  # the same twice


def test_it_says_how_good_it_is_beside_the_commonest_class(place: Path, tmp_path: Path) -> None:
    """Counted here from what `predict` says of the files."""
    html = page(place / "head", tmp_path)
    table = selfsight.predict(str(place / "test.lance"), head=str(place / "head")).table
    truth = dict(
        zip(*(open_source(str(place / "test.lance")).table[c].to_pylist() for c in ("uri", "label")), strict=True)
    )
    rows = [row for row in table.to_pylist() if not row["reason"]]
    right = [row["label"] == truth[row["uri"]] for row in rows]
    learnt = [row["label"] for row in load_head(place / "head").items.to_pylist()]
    commonest = max(set(learnt), key=learnt.count)
    share = np.mean([truth[row["uri"]] == commonest for row in rows])
    said = words(section(html, "verdict"))
    assert said.split("]")[0].endswith(f"Right on {100 * np.mean(right):.1f} % [" + said.split("[")[1].split("]")[0])
    assert (
        f"of {len(rows)} test items, where always answering {commonest}, the commonest class, would be right on "
        in said
    )
    assert f"would be right on {100 * share:.1f} %" in said and "so these figures flatter" in said
    shown = words(html)
    for told in ("On 24 test items", "On 34 items held out in turn", "learnt from, byte for byte; the figures flatter",
                 "such as P1000, were learnt from", "selfsight predict NEW/", "held out as a whole"):  # fmt: skip
        assert told in shown
    assert f"tested on {place / 'test.lance'}" in shown and "green/007.png" in section(html, "notes")


def test_the_confusion_is_that_of_the_items_held_out(place: Path, tmp_path: Path) -> None:
    html = page(place / "head", tmp_path)
    content = json.loads((place / "head" / "head.json").read_text())
    held = [row for row in load_head(place / "head").items.to_pylist() if row["held_out"] is not None]
    counts = np.zeros((3, 3), int)
    for row in held:  # classes are even enough for the likeliest one to be the answer
        counts[content["classes"].index(row["label"]), int(np.argmax(row["held_out"]))] += 1
    cells = re.findall(r'<td style="--share[^>]*>([\d,]*)</td>', html.split("items held out in turn</strong>")[1])
    assert content["decision"]["rule"] == "likeliest"
    assert [int(cell or 0) for cell in cells] == counts.ravel().tolist()
    recall = load_head(place / "head").about.metrics["recall"]
    worst = min(recall, key=lambda name: recall[name]["sensitivity"].value)
    rows = re.findall(r"<tr><th>([^<]*)</th><td>12</td>|<tr><th>([^<]*)</th><td>\d+</td><td>\d+</td><td>", html)
    assert unescape("".join(rows[-3])) == worst


def test_the_surest_mistakes_are_shown(place: Path, tmp_path: Path) -> None:
    """The picture is that of the file, and wrong labels of the training are found."""
    html = page(place / "head", tmp_path)
    head = load_head(place / "head")
    held = evaluate_held_out(head)
    assert held is not None and held.mistakes
    sure = [mistake.probability for mistake in held.mistakes]
    assert sure == sorted(sure, reverse=True)
    assert {"blue/001.png", "blue/002.png"} & {mistake.uri for mistake in held.mistakes}
    part = html.split("items held out in turn</strong>")[1]
    shown = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"', part)
    assert [name for _, name in shown] == [mistake.uri for mistake in held.mistakes]
    for picture, name in shown[:4]:
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))), float).mean((0, 1))
        stored = np.asarray(Image.open(place / "train" / name), float).mean((0, 1))
        assert seen == pytest.approx(stored, abs=3.0)


def test_the_private_page_names_no_item_patient_place_or_path(place: Path, tmp_path: Path) -> None:
    names = {str(place), place.name, "secret-encoder", "train.lance", "test.lance", "train.csv"}
    for side in ("train", "test"):
        table = open_source(str(place / f"{side}.lance")).table
        for column in ("uri", "id", "content_hash", "group", "site"):
            names |= set(table[column].to_pylist()) - {None}
        names |= {Path(uri).name for uri in table["uri"].to_pylist()}

    def found(**how: bool) -> set[str]:
        html = page(place / "head", tmp_path, **how)
        return {name for name in names if name in html or name in unescape(html)}

    assert {str(place), "secret-encoder", "test.lance", "Site-0", "P1000", "green/007.png"} <= found()
    assert found(names=False) == found(private=True) == set()
    html = (tmp_path / "page.html").read_text()
    assert "data:image/" not in html and "P1000" not in html
    shown = words(html)
    for told in ("were learnt from; the figures flatter", "may name files: read head.json", "--head HEAD",
                 "those that it learnt from. Not tested", "values of a column are left out", HOSTILE):  # fmt: skip
        assert told in shown


def test_pictures_and_names_go_separately(place: Path, tmp_path: Path) -> None:
    plain, nameless = page(place / "head", tmp_path, thumbnails=False), page(place / "head", tmp_path, names=False)
    assert "data:image/" not in plain and "blue/001.png" in plain and "Pictures are left out" in plain
    assert "data:image/jpeg" in nameless and "blue/001.png" not in nameless


def test_moved_away_from_its_images_it_says_so(place: Path, tmp_path: Path) -> None:
    head = shutil.copytree(place / "head", tmp_path / "moved")
    (tmp_path / "moved" / "report.html").unlink(missing_ok=True)
    (place / "train").rename(place / "away")
    try:
        html = page(head, tmp_path)
        nameless = page(head, tmp_path, names=False)
    finally:
        (place / "away").rename(place / "train")
    assert "The pictures are not there any more" in html and "blue/001.png" in html
    assert str(place) not in nameless and "The pictures are missing" in nameless
    (head / "evaluation.json").unlink()
    (head / "lineage.json").unlink()
    assert "On 34 items held out in turn" in words(page(head, tmp_path))


def test_what_is_damaged_or_of_another_head(place: Path, tmp_path: Path) -> None:
    head = shutil.copytree(place / "head", tmp_path / "head")
    content = json.loads((head / "evaluation.json").read_text())
    assert HeadEvaluation.of(content).to_dict() == content
    (head / "evaluation.json").write_text(json.dumps(content | {"head": "another"}))
    said = words(page(head, tmp_path))
    assert "of this head as it was before" in said and "test items" not in said
    for damaged in ("{", "[]", '{"mistakes": 3}', json.dumps(content | {"metrics": None, "mistakes": [{"id": 1}]})):
        (head / "evaluation.json").write_text(damaged)
        with pytest.raises(SelfsightError, match=r"evaluation.json cannot be read. Remove it, and measure again"):
            selfsight.report(str(head))
    with pytest.raises(SelfsightError, match="is not a run"):
        selfsight.report(str(tmp_path))


def test_forget_takes_items_out_of_the_page(place: Path, tmp_path: Path) -> None:
    head = tmp_path / "heads" / "first"
    for side in ("train", "test"):
        shutil.copytree(place / side, tmp_path / side)
        table = write_table(tmp_path / side, tmp_path / f"{side}.csv", lambda i, name: ("a", "b")[i % 3 // 2])
        selfsight.import_(table, out=str(tmp_path / f"{side}.lance"), root=str(tmp_path / side))
    selfsight.train.classify(str(tmp_path / "train.lance"), model=str(place / "secret-encoder"), out=str(head))
    tested = selfsight.evaluate(str(head), test=str(tmp_path / "test.lance"))
    selfsight.report(str(head))
    selfsight.report(str(head), out=str(tmp_path / "mailed.html"))
    assert {line.collection for line in written("pictures")} == {
        str(tmp_path / f"{s}.lance") for s in ("train", "test")
    }
    wrong = tested.mistakes[0]
    result = selfsight.forget(str(tmp_path / "test.lance"), wrong.id)
    assert str(tmp_path / "mailed.html") in {other.path for other in result.elsewhere if other.kind == "pictures"}
    assert not (head / "report.html").exists()
    assert not any(wrong.id in path.read_text() or wrong.uri in path.read_text() for path in head.glob("*.json"))
    selfsight.report(str(head))
    learnt = load_head(head).items["id"][0].as_py()
    selfsight.forget(str(tmp_path / "train.lance"), learnt)
    assert not (head / "report.html").exists() and learnt not in page(head, tmp_path)


# -- other kinds --


@pytest.fixture(scope="module")
def kinds(place: Path) -> dict[str, str]:
    """{name: page} of heads of other kinds, untested."""
    images, rng, pages = place / "train", np.random.default_rng(0), {}
    grade = {"red": 1, "green": 2, "blue": 3}
    labels: dict[str, tuple[Any, dict[str, Any]]] = {
        "number": (lambda i, name: 2.0 * grade[name.split("/")[0]] + rng.normal(0, 0.1), {"kind": "number"}),
        "grade": (lambda i, name: grade[name.split("/")[0]], {"kind": "grade"}),
        "several": (lambda i, name: colour(i, name) + ("" if "blue" in name else "|warm"), {}),
        "strict": (lambda i, name: "red" if "red" in name else "other", {"miss_rate": 0.2, "positive": "red"}),
        "one": (lambda i, name: colour(i, name) if "000" in name else "", {}),
        "many": (lambda i, name: f"class {i % 24}", {"method": "prototypes"}),
    }
    for name, (label, how) in labels.items():
        table, out = write_table(images, place / f"{name}.csv", label), str(place / name)
        selfsight.train.classify(str(images), model=str(place / "secret-encoder"), out=out, labels=table, **how)
        pages[name] = Path(selfsight.report(out).report).read_text(encoding="utf-8")
    return pages


def test_a_number(place: Path, kinds: dict[str, str]) -> None:
    said, held = words(kinds["number"]), load_head(place / "number").about.metrics["held_out"]
    assert f"Off by {held['mae'].value:.3g} [" in said and f"R² is {held['r2'].value:.3g} [" in said
    assert "better than the mean" in said and "a number · linear" in said and "Farthest off" in said
    points = re.findall(r"<circle [^>]*><title>([^<]*): ([\d.-]+), answer ([\d.-]+)</title>", kinds["number"])
    rows = {row["uri"]: row for row in load_head(place / "number").items.to_pylist()}
    assert len(points) == 34
    for uri, truth, answer in points:
        assert float(truth) == pytest.approx(float(rows[uri]["label"]), rel=1e-3)
        assert float(answer) == pytest.approx(rows[uri]["held_out"][0], rel=1e-3)
    far = {uri: abs(float(truth) - float(answer)) for uri, truth, answer in points}
    assert re.findall(r'<img [^>]*alt="([^"]+)"', kinds["number"])[0] == max(far, key=lambda uri: far[uri])


def test_grades_several_classes_and_a_price(kinds: dict[str, str]) -> None:
    assert "3 grades" in words(kinds["grade"]) and "; kappa is 0." in words(kinds["grade"])
    several = words(kinds["several"])
    assert "better than chance" in several and "every class that has a probability of 50 % or more" in several
    assert "green|warm →" in several and 'class="confusion"' not in kinds["several"]
    assert "is called red: on held-out items" in words(section(kinds["strict"], "rule"))
    assert "raise a false alarm" in section(kinds["strict"], "rule")


def test_one_label_a_class_cannot_be_measured(kinds: dict[str, str]) -> None:
    said = words(kinds["one"])
    assert "not measured Nothing could be held out from this head" in said
    assert "Give two or more labels per class" in said and "How good it is" not in said and "What was tried" not in said


def test_many_classes_have_a_picture_and_the_pairs_that_are_confused(place: Path, kinds: dict[str, str]) -> None:
    held = evaluate_held_out(load_head(place / "many"))
    assert held is not None
    counts = np.array(held.confusion)
    np.fill_diagonal(counts, 0)
    pairs = re.findall(r"<tr><th>(class \d+)</th><td>(class \d+)</td><td>(\d+)</td></tr>", kinds["many"])
    assert [int(count) for *_, count in pairs] == sorted(counts.ravel().tolist(), reverse=True)[: len(pairs)]
    assert len(pairs) == 12 and "data:image/png" in kinds["many"] and 'class="confusion"' not in kinds["many"]
    badge = words(section(kinds["many"], "verdict"))  # of labels that say nothing
    assert "not measurably better than" in badge or "worse than" in badge


# -- sentences and the plane, by hand --


def measured(kind: str, sizes: dict[str, int], **metrics: tuple[float, float, float]) -> HeadEvaluation:
    found = {name: Interval(*ends) for name, ends in metrics.items()}
    count = sum(sizes.values()) or 50
    return HeadEvaluation("classify", kind, "d", found, {}, {}, list(sizes), [], [], [], count, sizes, "")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def about(place: Path) -> About:
    return load_head(place / "head").about


@pytest.mark.parametrize(
    ("word", "kind", "sizes", "metrics"),
    [
        ("better than the commonest class", "class", {"a": 50, "b": 40}, {"top1": (0.8, 0.56, 0.9)}),
        ("not measurably better than the commonest class", "class", {"a": 50, "b": 40}, {"top1": (0.8, 0.55, 0.9)}),
        ("worse than the commonest class", "class", {"a": 50, "b": 40}, {"top1": (0.5, 0.4, 0.55)}),
        ("not measurably better than the commonest class", "class", {"a": 90, "b": 10},
         {"top1": (0.95, 0.92, 0.97), "balanced": (0.55, 0.49, 0.6)}),  # where classes are uneven, they count the same
        ("better than the commonest grade", "grade", {"1": 50, "2": 40},
         {"top1": (0.6, 0.5, 0.7), "kappa": (0.2, 0.1, 0.3)}),
        ("better than chance", "classes", {"a": 40, "b": 20}, {"map": (0.8, 0.6, 0.9)}),
        ("worse than the mean", "number", {}, {"mae": (3.0, 2.0, 4.0), "r2": (-0.4, -0.6, -0.2)}),
    ],
)  # fmt: skip
def test_the_verdict(
    about: About, word: str, kind: Any, sizes: dict[str, int], metrics: dict[str, tuple[float, float, float]]
) -> None:
    found = verdict(replace(about, kind=kind), sizes, measured(kind, sizes, **metrics), True)
    assert found.word == word


def test_the_verdict_says_every_figure(about: About) -> None:
    side = measured("class", {"a": 90, "b": 10}, top1=(0.95, 0.92, 0.97), balanced=(0.75, 0.7, 0.8))
    assert verdict(about, {"a": 30, "b": 20}, side, False).sentence == (
        "Right on 95.0 % [92.0, 97.0] of 100 items that were held out in turn, where always answering a, the commonest "
        "class, would be right on 90.0 %; balanced over classes 75.0 % [70.0, 80.0], where that would have 50.0 %."
    )
    assert (
        "where always answering the same class would be right on 90.0 %"
        in verdict(about, {"b": 20, "a": 20}, side, True).sentence
    )


def test_points_lie_where_they_should() -> None:
    drawn = plane([Point(0.0, 1.0, "<a>", 1.0), Point(0.5, 0.5, "b")], "x & y", "y", shares=True)
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"><title>([^<]*)', drawn)
    assert [(float(x), float(y)) for x, y, *_ in circles] == [(LEFT, EDGE), (LEFT + SIDE / 2, EDGE + SIDE / 2)]
    assert [float(circle[2]) for circle in circles] == [13.0, 3.0] and circles[0][3] == "&lt;a&gt;"
    assert f'viewBox="0 0 {LEFT + SIDE + EDGE} {EDGE + SIDE + BELOW}"' in drawn and "x &amp; y" in drawn
    one = plane([Point(3.0, 3.0, "")], "x", "y")  # a range of nothing
    assert "nan" not in one and one.count("<circle") == 1


# -- in a browser --


def test_it_fits_a_phone_and_nothing_is_refused(browser: Any, place: Path, kinds: dict[str, str]) -> None:
    selfsight.report(str(place / "head"))
    for name in ("head", "several", "number", "many"):
        for width in (390, 1280):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get((place / name / "report.html").as_uri())
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, name
        broken = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert browser.execute_script(broken) == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
