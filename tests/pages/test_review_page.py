"""The page of a review, over real HTTP and in headless Chromium: decisions by keyboard, pairs, and the map."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Browser
from PIL import Image

from selfsight.data.collection import Collection
from selfsight.data.decisions import Journal
from selfsight.data.importers import open_source
from selfsight.pages.review import reviewing
from selfsight.pages.reviewed import Reviewed
from selfsight.report.atlas import Colouring
from selfsight.report.cloud import Cloud

ENTER, TAB, ESCAPE = "\ue007", "\ue004", "\ue00c"
Serve = Callable[[Any], Any]


@pytest.fixture
def doubted(tmp_path: Path) -> Collection:
    """Pictures in two folders; b.png is a.png mirrored, with a white spot."""
    rng = np.random.default_rng(0)
    for name in ("dent", "spot"):
        (tmp_path / "parts" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 120, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(tmp_path / "parts" / name / f"{i}.png")
    twin = np.asarray(Image.open(tmp_path / "parts" / "dent" / "0.png"))[:, ::-1].copy()
    twin[8:16, 8:16] = 255
    Image.fromarray(twin).save(tmp_path / "parts" / "dent" / "twin.png")
    return open_source(tmp_path / "parts")


@pytest.fixture
def ids(doubted: Collection) -> dict[str, str]:
    return dict(zip(doubted.usable["uri"].to_pylist(), doubted.usable["id"].to_pylist(), strict=True))


@pytest.fixture
def issues(ids: dict[str, str]) -> dict[str, Any]:
    def one(uri: str, score: float, **more: object) -> dict[str, object]:
        return {"id": ids[uri], "uri": uri, "score": score} | more

    def twin(uri: str) -> dict[str, str]:
        return {"id": ids[uri], "uri": uri}

    pairs = [one("dent/0.png", 0.9, pair=twin("dent/twin.png")), one("dent/1.png", 0.8, pair=twin("dent/2.png"))]
    return {
        "near_duplicates": {"estimated": 1, "items": pairs},
        "label_errors": {"estimated": 2, "items": [one(f"spot/{i}.png", 0.5, suggested="dent") for i in (3, 4, 5)]},
        "off_topic": {"estimated": 1, "items": [one("spot/1.png", 0.7), one("spot/2.png", 0.6)]},
    }


@pytest.fixture
def cloud(doubted: Collection) -> Cloud:
    """All items on a line from the upper left to the lower right, coloured by folder and by number."""
    ids = doubted.usable["id"].to_pylist()
    along = np.linspace(0, 1, len(ids))
    codes = [int(uri.startswith("spot")) for uri in doubted.usable["uri"].to_pylist()]
    columns = {"label": Colouring([(0, "dent (9)"), (1, "spot (8)")], codes),
               "bytes": Colouring(numbers=[float(i) for i in range(len(ids))])}  # fmt: skip
    return Cloud(ids, np.stack([along, along], 1), "pca", columns)


@pytest.fixture
def visitor(doubted: Collection, issues: dict[str, Any], cloud: Cloud, serve: Serve) -> Iterator[Any]:
    with serve(reviewing(doubted, Reviewed(doubted, issues), lambda: cloud)) as there:
        yield there


def lines(items: Collection) -> list[tuple[str, object, object, object]]:
    uris = dict(zip(items.table["id"].to_pylist(), items.table["uri"].to_pylist(), strict=True))
    return [(uris[d.id], d.field, d.old, d.new) for d in Journal(items.path).read()[0]]


def address(visitor: Any) -> str:
    return f"http://127.0.0.1:{visitor.port}/{visitor.token}/"


# -- over HTTP --


@pytest.mark.parametrize(
    "path",
    ["review.py", "label.js", "api", "api/items/nothing", "api/items/dent%2f0.png", "pictures/dent%2f0.png/small",
     "pictures/..%2f..%2fetc%2fpasswd/small", "..%2freview.py", "map", "api/map/x"],
)  # fmt: skip
def test_there_is_nothing_else(visitor: Any, path: str) -> None:
    assert visitor.get(path).status == 404


def test_ids_and_never_paths(visitor: Any, doubted: Collection) -> None:
    for name in ("dent/0.png", str(Path(doubted.about.location) / "dent" / "0.png"), "0" * 32):
        reply = visitor.post("api/decide", {"ids": [name], "action": "drop"})
        assert reply.status in (400, 422) and not doubted.decisions.files


@pytest.mark.parametrize(
    "body",
    [{}, [], {"ids": [], "action": "drop"}, {"ids": ["x"]}, {"ids": ["x"], "action": "delete"},
     {"ids": "x", "action": "drop"},
     {"ids": ["x" * 65], "action": "drop"}, {"ids": ["x"], "action": "label", "label": "y" * 201}],
    ids=range(8),
)  # fmt: skip
def test_what_is_no_decision_is_refused(visitor: Any, doubted: Collection, ids: dict[str, str], body: object) -> None:
    assert visitor.post("api/decide", body).status in (400, 422) and not doubted.decisions.files
    item = ids["dent/0.png"]
    assert visitor.get("api/decide").status in (404, 405) and visitor.get("api/undo").status in (404, 405)
    for label in ("", "a|b", "NA"):
        reply = visitor.post("api/decide", {"ids": [item], "action": "label", "label": label})
        assert reply.status == 400 and "cannot be the name of a class" in reply.json["what"]
    assert not doubted.decisions.files


def test_another_site_and_a_wrong_token_decide_nothing(visitor: Any, doubted: Collection, ids: dict[str, str]) -> None:
    body = json.dumps({"ids": [ids["dent/0.png"]], "action": "drop"}).encode()
    kind = {"Content-Type": "application/json"}
    for token, headers in (
        (visitor.token, {"Host": visitor.host, "Origin": "http://evil.example"}),
        (visitor.token, {"Host": visitor.host}),
        (visitor.token, {"Host": "evil.example", "Origin": f"http://{visitor.host}"}),
        ("x" * 32, {"Host": visitor.host, "Origin": f"http://{visitor.host}"}),
    ):
        assert visitor.raw("POST", f"/{token}/api/decide", headers | kind, body).status == 403
    assert not doubted.decisions.files


def test_without_a_map_there_is_none(doubted: Collection, issues: dict[str, Any], serve: Serve) -> None:
    with serve(reviewing(doubted, Reviewed(doubted, issues))) as visitor:
        assert visitor.get("api/state").json["map"] is False and visitor.get("api/map").status == 404


# -- in a browser --


def test_every_case_is_decided_by_keyboard_and_undone(browser: Browser, visitor: Any, doubted: Collection) -> None:
    browser.open(address(visitor))
    browser.until(lambda: browser.texts("#sides figcaption .cut") == ["dent/0.png", "dent/twin.png"])
    assert (browser.text("#decided"), browser.text("#asked")) == ("0", "7")
    browser.press("x")
    browser.until(lambda: "Which one?" in browser.text("#note"))
    browser.press("l")
    browser.until(lambda: browser.texts("#sides figcaption .cut") == ["dent/1.png", "dent/2.png"])
    browser.press("k")
    browser.until(lambda: "Nothing is left of this kind" in browser.text("#note"))
    browser.press(TAB)
    browser.until(lambda: browser.text("#name") == "spot/3.png" and "Label: dent" in browser.text("#actions"))
    browser.press(" ", "k", "/", "new one", ENTER)  # faster than the server answers
    browser.until(lambda: browser.text("#decided") == "5")
    browser.press(TAB)
    browser.until(lambda: browser.text("#name") == "spot/1.png")
    browser.press("x", "x")
    browser.until(lambda: "every case is decided" in browser.text("#note"))
    browser.saved()
    said = [
        ("dent/0.png", "drop", None, True), ("dent/1.png", "keep", None, True), ("dent/2.png", "keep", None, True),
        ("spot/3.png", "label", "spot", "dent"), ("spot/4.png", "keep", None, True),
        ("spot/5.png", "label", "spot", "new one"), ("spot/1.png", "drop", None, True),
        ("spot/2.png", "drop", None, True),
    ]  # fmt: skip
    assert lines(doubted) == said
    assert browser.texts(".cell .badge") == ["dropped", "dropped"] and browser.text("#decided") == "7"
    browser.press("z", "z", "z")
    browser.until(lambda: browser.text("#name") == "spot/5.png" and browser.text("#decided") == "4")
    browser.saved()
    undone = [("spot/2.png", "drop", True, None), ("spot/1.png", "drop", True, None),
              ("spot/5.png", "label", "new one", "spot")]  # fmt: skip
    assert lines(doubted) == said + undone and browser.complaints() == []
    browser.driver.refresh()  # what was decided is not shown again
    browser.until(lambda: browser.text("#name") == "spot/5.png" and browser.text("#decided") == "4")
    asked = browser.requests()
    assert all(url.startswith((address(visitor), f"blob:http://{visitor.host}/")) for url in asked)


def test_the_difference_is_of_the_mirrored_twin(browser: Browser, visitor: Any) -> None:
    browser.open(address(visitor))
    loaded = "return ['left', 'right'].every(id => document.querySelector(`#${id} img`).naturalWidth === 64)"
    browser.until(lambda: browser.js(loaded))
    browser.press("d")
    pixels = """const canvas = document.querySelector('#left canvas');
        if (!canvas.width) return null;
        const read = (x, y) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3);
        return [read(52, 12), read(12, 12), read(30, 40), canvas.width];"""
    spot, *rest, width = browser.until(lambda: browser.js(pixels))
    assert min(spot) > 200 and rest == [[0, 0, 0], [0, 0, 0]] and width == 64
    browser.press("+", "+", "d")
    same = "return ['left', 'right'].map(id => document.querySelector(`#${id} img`).style.width)"
    one, other = browser.js(same)
    assert one == other and not browser.js("return document.querySelector('#left canvas').width")


def drag(browser: Browser, *points: tuple[float, float]) -> None:
    """A line around points of the square of the map, each from 0 to 1."""
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = browser.driver.find_element("id", "map")
    width, height = canvas.size["width"], canvas.size["height"]
    side = min(width, height) - 24
    places = [(round((x - 0.5) * side), round((y - 0.5) * side)) for x, y in points]
    chain = ActionChains(browser.driver, duration=20).move_to_element_with_offset(canvas, *places[0]).click_and_hold()
    for place in places[1:]:
        chain = chain.move_to_element_with_offset(canvas, *place)
    chain.release().perform()


def test_points_within_a_line_are_dropped_labelled_and_taken_back(
    browser: Browser, visitor: Any, doubted: Collection, cloud: Cloud
) -> None:
    browser.open(address(visitor))
    browser.js("[...document.querySelectorAll('#kinds button')].pop().click()")
    browser.until(lambda: "17 items, principal components" in browser.text("#why"))
    assert browser.texts("#column option") == ["label", "bytes", "none"] and "spot (8)" in browser.text("#key")
    uris = doubted.usable["uri"].to_pylist()
    drag(browser, (-0.01, -0.01), (0.3, -0.01), (0.3, 0.3), (-0.01, 0.3))
    inside = [uri for uri, (x, _) in zip(uris, cloud.projection, strict=True) if x < 0.3]
    browser.until(lambda: browser.text("#facts").startswith(f"{len(inside)} chosen"))
    browser.press("x")
    browser.until(lambda: f"{len(inside)} items dropped" in browser.text("#note"))
    assert lines(doubted) == [(uri, "drop", None, True) for uri in inside]
    drag(browser, (0.9, 0.9), (1.01, 0.9), (1.01, 1.01), (0.9, 1.01))
    browser.until(lambda: browser.text("#facts").startswith("2 chosen"))
    browser.press("/", "crack", ENTER)
    browser.until(lambda: "2 items labelled crack" in browser.text("#note"))
    assert lines(doubted)[len(inside) :] == [(uri, "label", uri.split("/")[0], "crack") for uri in uris[-2:]]
    browser.press(ESCAPE, "z", "z")
    browser.until(lambda: len(lines(doubted)) == 2 * len(inside) + 4)
    latest = {(uri, field): new for uri, field, _, new in lines(doubted)}
    for (uri, field), new in latest.items():  # as before any decision
        assert new == (uri.split("/")[0] if field == "label" else None)
    assert browser.complaints() == []
