"""The report: the verdict on made-up rows, and the page of a real small run, read as text and in a browser."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from helpers import collection_of
from PIL import Image
from test_worth import MEASURED

import selfsight
from selfsight.data.collection import Collection
from selfsight.errors import SelfsightError
from selfsight.report.atlas import Colouring, columns, neighbours, project
from selfsight.report.verdict import judge
from selfsight.training.alarm import Alarm
from selfsight.training.run import LeftOut, Run

HOSTILE = "<script>alert(1)<"  # a folder, because "/" cannot be in a name: together "<script>alert(1)</script>.png"

# Of classes whose names are hostile too.
EVALUATION = MEASURED | {"about": MEASURED["about"] | {"classes": ["<b>a</b>", "b"], "test_of": {"<b>a</b>": 3}}}
EVALUATION |= {"encoder": MEASURED["encoder"] | {"recall": {"<b>a</b>": 0.25, "b": 1.0}}}


# -- the verdict --


def rows(steps: int, **ends: tuple[float, float]) -> list[dict[str, Any]]:
    """Rows of metrics whose figures go straight from the first to the second value, and stay from half way."""
    given = {
        "loss": (20.0, 15.0), "agreement": (0.6, 0.9), "contrast": (0.1, 0.5), "effective_rank": (30.0, 50.0),
        "spread": (0.8, 0.8), "centre_norm": (0.5, 0.5),
    } | ends  # fmt: skip
    at = [1, *range(10, steps + 1, 10)]
    return [
        {"step": s, "epoch": s / 10} | {k: a + (b - a) * min(1.0, 2 * s / steps) for k, (a, b) in given.items()}
        for s in at
    ]


@pytest.mark.parametrize(
    ("word", "measured"),
    [
        ("working", rows(500)),
        ("working", rows(500, contrast=(0.1, 0.1))),  # the loss alone
        ("working", rows(500, loss=(20.0, 20.0))),  # the contrast alone
        ("working", rows(500, centre_norm=(0.6, 0.95))),  # objectives that do not centre
        ("stuck", rows(500, contrast=(0.1, 0.11), loss=(20.0, 19.95))),
        ("stuck", rows(500, contrast=(0.3, 0.29), loss=(20.0, 20.0))),
        ("collapsed", rows(500, spread=(0.8, 0.02), contrast=(0.1, 0.0))),
        ("collapsed", rows(500, effective_rank=(30.0, 1.1), rank_share=(0.4, 0.02))),
        ("collapsed", rows(500, scale=(0.5, 0.01), contrast=(0.3, 0.02))),
        ("collapsed", rows(500, assignment_entropy=(0.5, 1.0))),
        ("not enough evidence", rows(40)),
        ("not enough evidence", rows(40, spread=(0.8, 0.02))),
        ("not enough evidence", []),
    ],
)
def test_the_verdict(word: str, measured: list[dict[str, Any]]) -> None:
    assert judge(measured).word == word


def test_the_verdict_says_its_figures_and_when_only_the_loss_moved() -> None:
    verdict = judge(rows(500, agreement=(0.9, 0.9), contrast=(0.4, 0.4)))
    assert "agree by 0.90 and views of different images by 0.50" in verdict.evidence
    assert "by its loss only" in verdict.sentence
    assert verdict.figures["steps"] == 500


def test_the_verdict_agrees_with_the_alarm_and_says_the_further_figures() -> None:
    measured = rows(
        500, spread=(0.8, 0.02), contrast=(0.4, 0.0), alignment=(0.8, 0.1), uniformity=(-2.0, -0.1),
        neighbour_stability=(0.2, 0.01),
    )  # fmt: skip
    alarm, verdict = Alarm(), judge(measured)
    (alert,) = [alert for row in measured for alert in alarm.look(row)]
    assert f"Collapsed ({alert.kind}), seen first at step {alert.step}. {alert.sentence}" == verdict.sentence
    assert "1% of their nearest neighbours in common, chance deducted; at the start 18%" in verdict.evidence
    assert "uniformity from -1.85 to -0.10" in verdict.evidence


def test_a_collapse_that_was_overcome_is_no_collapse() -> None:
    sunk = [row | {"spread": 0.01, "contrast": 0.0} if 100 < row["step"] < 250 else row for row in rows(500)]
    assert judge(sunk).word == "working"


def test_the_verdict_leaves_out_rows_that_are_not_finite() -> None:
    broken = [*rows(500), {"step": 510, "epoch": 51, "loss": math.nan}]
    assert judge(broken) == judge(rows(500))


def test_a_task_without_pairs_is_judged_by_its_loss_and_says_so():
    def alone(steps: int = 500, **ends: tuple[float, float]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in ("agreement", "contrast")} for row in rows(steps, **ends)]

    verdict = judge(alone())
    assert verdict.word == "working" and "by its loss only" in verdict.sentence
    assert "agree" not in verdict.sentence + verdict.evidence and "contrast" not in verdict.figures
    assert judge(alone(200, loss=(4.0, 4.1), spread=(0.5, 0.9))).word == "not enough evidence"
    assert judge(alone(500, loss=(4.0, 4.1))).word == "stuck"  # which the alarm says after 300 steps


# -- the geometry --


def test_neighbours_are_those_of_a_slow_search() -> None:
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for query, found in neighbours(features):
        expected = sorted((i for i in range(40) if i != query), key=lambda i: -float(unit[i] @ unit[query]))[:8]
        assert [i for i, _ in found] == expected


@pytest.mark.parametrize("shape", [(1, 4), (2, 4), (9, 1), (9, 4), (12, 4)])
def test_places_of_few_items_and_of_equal_ones_are_finite(shape: tuple[int, int]) -> None:
    drawn = project(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    assert drawn.shape == (shape[0], 2) and np.isfinite(drawn).all()
    assert np.isfinite(project(np.ones(shape, dtype=np.float32))).all()


def test_what_can_colour_the_map(tmp_path: Path) -> None:
    """Labels, the most common first; few words; numbers. Not what is the same for all, nor a word an item."""
    labels = ["common"] * 4 + [f"c{i % 10}" for i in range(20)]
    rows = [
        {"label": label, "site": ["north", "", "south"][i % 3], "split": "train", "remark": f"number {i}"}
        for i, label in enumerate(labels)
    ]
    items = collection_of(tmp_path / "c", rows, sizes=[(8, 8 + i) for i in range(24)])
    found = columns(items, items.usable)
    assert list(found) == ["label", "width", "site", "bytes"]
    assert found["width"] == Colouring(numbers=items.usable["width"].to_pylist())
    by_uri = dict(zip(items.usable["uri"].to_pylist(), range(24), strict=True))
    label, site = found["label"], found["site"]
    assert label.key[0] == (0, "common (4)") and label.key[-1] == (9, "others (4)") and len(label.key) == 10
    assert [label.codes[by_uri[f"{i}.png"]] for i in range(4)] == [0] * 4
    assert site.key == [(0, "north (8)"), (1, "south (8)"), (9, "others (8)")]
    assert [site.codes[by_uri[f"{i}.png"]] for i in range(3)] == [0, 9, 1]


# -- the page of a real run --


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("report")
    images, generator = folder / "images", np.random.default_rng(0)
    (images / HOSTILE).mkdir(parents=True)
    (images / "even").mkdir()
    for i in range(60):
        wave = np.sin(np.arange(32) * (0.4 if i % 2 else 1.2) + i)
        pixels = 128 + 80 * (wave[:, None] if i % 2 else wave[None, :]) + generator.normal(0, 12, (32, 32))
        name = (
            images / HOSTILE / "script>.png"
            if i == 0
            else images / ("even" if i % 2 == 0 else ".") / f"P{i:04d} 75.png"
        )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(name)
    (images / "broken<i>.png").write_bytes(b"no image")
    (images / "notes.txt").write_text("not an image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSIGHT_CACHE", str(folder / "cache"))
        out = folder / "run"
        selfsight.pretrain(str(images), out=str(out), steps=60, batch_size=8, encoder="test_resnet")
        (out / "evaluation.json").write_text(json.dumps(EVALUATION))
        yield out


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    result = selfsight.report(str(run))
    assert result.items == 60 and result.verdict.word != "not enough evidence"
    return Path(result.report)


class Seen(HTMLParser):
    """Tags, the addresses they load or link, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text, self.open = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open = tag
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open not in ("script", "style"):
            self.text += data


def test_the_page_loads_nothing_and_is_small(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    seen = Seen(html)
    assert seen.addresses and all(address.startswith("data:") for address in seen.addresses)
    assert seen.tags.count("link") == 1  # the empty icon
    assert not {"iframe", "object", "embed", "base", "form"} & set(seen.tags)
    assert "default-src 'none'" in html and "http-equiv" in html
    assert "@import" not in html.split("</style>")[0] and "url(" not in html.split("</style>")[0]
    assert page.stat().st_size < 8e6


def test_hostile_names_are_text(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html and "broken<i>" not in html
    seen = Seen(html)
    assert seen.tags.count("script") == 3  # the drawings, plotly.js, our own
    assert "broken<i>.png" in seen.text and "<b>a</b>" not in html
    drawings = html.split('id="drawings">')[1].split("</script>")[0]
    assert HOSTILE + "/script>.png" in json.loads(drawings)["names"]


def test_the_page_says_what_it_must(page: Path) -> None:
    text = " ".join(Seen(page.read_text(encoding="utf-8")).text.split())
    for words in ("+12.3 points over random weights", "+12.3 [10.0, 14.0]", "not images: 1 .txt", "a & b",
                  "holds text, not an image", "you asked", "1 image could not be read"):  # fmt: skip
        assert words in text


def test_the_page_shows_the_images_least_like_the_others_as_odd_finds_them(run: Path, page: Path) -> None:
    section = page.read_text(encoding="utf-8").split('<section id="odd">')[1].split("</section>")[0]
    shown = re.findall(r'src="data:image/jpeg[^"]+" alt="([^"]+)".*?<figcaption>([\d.]+)<', section)
    found = selfsight.odd(str(run.parent / "images"), model=str(run)).pictures[:16]
    assert [(unescape(name), score) for name, score in shown] == [(p.uri, f"{p.score:.2f}") for p in found]


def test_no_thumbnails_leaves_every_picture_out(run: Path, tmp_path: Path) -> None:
    result = selfsight.report(str(run), out=str(tmp_path / "page.html"), thumbnails=False)
    html = Path(result.report).read_text(encoding="utf-8")
    assert "data:image/" not in html.split("<script>")[0] and '"pictures": []' in html
    assert html.count("as asked with --no-thumbnails") == 4 and 'id="map"' in html


def test_a_private_page_holds_no_name_path_or_picture(run: Path, page: Path, tmp_path: Path) -> None:
    kept = Path(shutil.copytree(run, tmp_path / "kept" / "first"))
    _, _, data = Run.open(kept).read_recipe()
    items = Collection.open(data["collection"])
    about = {
        "classes": ["mild", "severe"],
        "notes": [
            f"{items.about.location}/P0007 75.png cannot be read",
            "P0007 leaks",
            "2 of 3 groups of test, such as P0007, are in train too; the figures flatter",
            "train and test are split by group: 3 values in train, 1 in test, none in both",
        ],
    }
    (kept / "evaluation.json").write_text(json.dumps(MEASURED | {"about": MEASURED["about"] | about}))
    Run.open(kept).log("tracker", f"wandb is given up: {kept}/wandb cannot be written.", 60)
    told = "3 files could be meant: P0001 75.png, P0002 75.png"
    Run.open(kept).write_set_aside([LeftOut(items.table["id"][5].as_py(), "", told)])
    uris, ids = items.table["uri"].to_pylist(), items.table["id"].to_pylist()
    names = {*uris, *ids, *(PurePosixPath(uri).stem for uri in uris), *(PurePosixPath(uri).name for uri in uris)}
    names |= {HOSTILE, "even (29)", "P0007", str(kept.parent), str(run.parent), items.about.location, str(items.path)}
    names -= {"script>"}  # of HOSTILE, and of every page

    def found(**how: bool) -> set[str]:
        html = Path(selfsight.report(str(kept), out=str(tmp_path / "page.html"), **how).report).read_text("utf-8")
        own = html.split("<script>")[0] + html.rsplit("<script>", 1)[1]  # without plotly.js, which has its own words
        drawings = json.dumps(json.loads(html.split('id="drawings">')[1].split("</script>")[0]), ensure_ascii=False)
        text = unescape(own) + drawings
        return {name for name in names if name in text or name in own}

    assert {*uris, "even (29)", "P0007", items.about.location, str(kept.parent)} <= found()
    assert found(names=False) == found(private=True) == set()
    text = " ".join(Seen((tmp_path / "page.html").read_text("utf-8")).text.split())
    for words in ("2 notes on these figures may name files", "train and test are split by group: 3 values in train",
                  "2 of 3 groups of test are in train too; the figures flatter",
                  "1 3 files could be meant", "1 holds text, not an image",
                  "Their names are left out", "selfsight embed IMAGES --model RUN"):  # fmt: skip
        assert words in text
    html = (tmp_path / "page.html").read_text("utf-8")
    assert "data:image/" not in html.split("<script>")[0] and '"pictures": []' in html


def test_the_page_is_the_same_twice(run: Path, page: Path, tmp_path: Path) -> None:
    again = selfsight.report(str(run), out=str(tmp_path / "again.html"))
    assert Path(again.report).read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_without_images_evaluation_or_end_it_still_says_what_it_can(run: Path, tmp_path: Path) -> None:
    lean = tmp_path / "lean"
    shutil.copytree(run, lean)
    (lean / "evaluation.json").unlink()
    images = run.parent / "images"
    images.rename(run.parent / "away")
    try:
        text = Seen(Path(selfsight.report(str(lean)).report).read_text(encoding="utf-8")).text
    finally:
        (run.parent / "away").rename(images)
    assert "The map and the gallery are missing because the images are not there" in text
    assert f"selfsight evaluate {lean} --train" in text
    shutil.rmtree(lean / "encoder")
    text = Seen(Path(selfsight.report(str(lean)).report).read_text(encoding="utf-8")).text
    assert "this run has not ended" in text


def test_the_command_that_trains_longer_keeps_what_was_asked_for(run: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(run, short)
    (short / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(True)[:2]))
    text = Seen(Path(selfsight.report(str(short)).report).read_text(encoding="utf-8")).text
    command = f"selfsight pretrain {run.parent / 'images'} -o {short}-2 --recipe {short / 'recipe.yaml'} --minutes 20"
    assert command in text
    _, verb, *arguments, _, _ = shlex.split(command)
    subprocess.run([sys.executable, "-m", "selfsight", verb, *arguments, "--steps", "2"], check=True)
    recipe = (tmp_path / "short-2" / "recipe.yaml").read_text()
    assert "encoder: test_resnet" in recipe and "batch_size: 8" in recipe


def test_mistakes_are_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SelfsightError, match="is not a run"):
        selfsight.report(str(tmp_path))
    shutil.copy(run / "recipe.yaml", tmp_path / "recipe.yaml")
    with pytest.raises(SelfsightError, match="measured nothing yet"):
        selfsight.report(str(tmp_path))
    with pytest.raises(SelfsightError, match="does not exist"):
        selfsight.report(str(run), out=str(tmp_path / "no" / "page.html"))
    shutil.copy(run / "metrics.jsonl", tmp_path / "metrics.jsonl")
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(SelfsightError, match="cannot be read"):
        selfsight.report(str(tmp_path))


# -- in a browser --


def _size(browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def _open(browser: Any, page: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page.as_uri())
    drawn = "return [...document.querySelectorAll('.chart')].every(c => c.querySelector('.main-svg .trace'))"
    WebDriverWait(browser, 30).until(lambda b: b.execute_script(drawn))


def _no_errors(browser: Any) -> None:
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_charts_are_drawn_and_pointing_at_the_map_shows_the_picture(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    _size(browser, 1280, 900)
    _open(browser, page)
    assert len(browser.find_elements(By.CSS_SELECTOR, ".chart .main-svg")) >= 10
    loaded = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    assert browser.execute_script(loaded) == []
    buttons = browser.find_elements(By.CSS_SELECTOR, "#map .modebar-btn")
    titles = [button.get_attribute("data-title") or "" for button in buttons]
    assert len(titles) == 4 and not any("loud" in title for title in titles)  # plotly 7 offers an upload by default
    picture = browser.find_element(By.CSS_SELECTOR, "#peek img")
    assert not picture.is_displayed()
    browser.execute_script("document.getElementById('map').scrollIntoView({block: 'center'})")
    points = browser.find_elements(By.CSS_SELECTOR, "#map .point")
    assert len(points) == 60

    def shown(_: Any) -> bool:  # the scroll event may come late and hide the picture: a hand would move again
        ActionChains(browser).move_to_element(points[7]).move_by_offset(1, 0).pause(0.2).perform()
        return bool(picture.is_displayed())

    WebDriverWait(browser, 10).until(shown)
    assert picture.get_attribute("src").startswith("data:image/jpeg") and picture.size["width"] > 40
    # Coloured by label: 29 in the folder `even`, one in another, 30 in none.
    fills = "return [...document.querySelectorAll('#map .point')].map(p => getComputedStyle(p).fill)"
    assert sorted(Counter(browser.execute_script(fills)).values()) == [1, 29, 30]
    assert browser.find_element(By.ID, "map-key").text.split("● ")[1:][0].strip() == "even (29)"
    browser.execute_script(
        "const c = document.getElementById('map-column'); c.value = ''; c.dispatchEvent(new Event('change'))"
    )
    assert len(set(browser.execute_script(fills))) == 1 and browser.find_element(By.ID, "map-key").text == ""
    _no_errors(browser)


def test_a_phone_needs_no_sideways_scrolling_and_a_tap_shows_the_picture(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    _size(browser, 390, 844)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    _open(browser, page)
    width, inner = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inner == 390 and width <= inner
    browser.execute_script("document.getElementById('map').scrollIntoView({block: 'center'})")
    script = "const b = document.querySelectorAll('#map .point')[7].getBoundingClientRect(); return [b.x + 3, b.y + 3]"
    x, y = browser.execute_script(script)
    for kind, touches in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    picture = browser.find_element(By.CSS_SELECTOR, "#peek img")
    WebDriverWait(browser, 5).until(lambda _: picture.is_displayed())
    _no_errors(browser)
