"""The page in headless Chromium: from the first label to the last by keyboard, and nothing leaves 127.0.0.1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import Browser
from helpers import tiny_encoder
from PIL import Image

import selfsight
from selfsight.data.collection import Collection
from selfsight.data.decisions import Journal
from selfsight.data.importers import open_source
from selfsight.encoders.store import save
from selfsight.pages.answers import Answers
from selfsight.pages.label import labelling
from selfsight.pages.neighbours import Neighbours, Watch
from selfsight.pages.pictures import Pictures
from selfsight.verbs.label_heads import of_head

Page = Callable[..., Any]
ENTER = "\ue007"  # as WebDriver names the key


@pytest.fixture
def app_of(items: Collection) -> Page:
    def make(by: str = "local", kind: str = "class", suggests: bool = False, order: list[str] | None = None) -> Any:
        answers = Answers(Collection.open(items.path), by, kind)  # type: ignore[arg-type]
        order = order or sorted(answers.ids, key=lambda item: bool(answers.label(item)))
        if not suggests:
            return labelling(answers, Pictures(items), order, "/data/plates")
        kinds = [int(uri[6:9]) % 4 for uri in items.usable["uri"].to_pylist()]
        suggest = Neighbours(answers.ids, np.eye(4, dtype=np.float32)[kinds], answers)
        return labelling(answers, Pictures(items), order, "/data/plates", suggest, Watch(suggest, answers))

    return make


def truth(browser: Browser) -> str:
    """The kind of the plate that is shown."""
    return ("good", "scratch", "spot", "dent")[int(browser.text("#name")[6:9]) % 4]


def lines(items: Collection) -> list[tuple[object, object, str]]:
    return [(d.old, d.new, d.by) for d in Journal(items.path).read()[0]]


def test_from_the_first_label_to_the_last_by_keyboard(
    browser: Browser, items: Collection, app_of: Page, serve: Callable[[Any], Any]
) -> None:
    with serve(app_of()) as visitor:
        address = f"http://127.0.0.1:{visitor.port}/{visitor.token}/"
        browser.open(address)
        assert (browser.text("#labelled"), browser.text("#asked")) == ("0", "12")
        keys: dict[str, str] = {}
        given = []
        for i in range(12):
            name = truth(browser)
            given.append((None, name, "local"))
            if name in keys:
                browser.answer(keys[name]) if i < 11 else browser.press(keys[name])
            else:
                browser.answer("/", name, "\ue007")  # Enter
                browser.until(lambda name=name: name in browser.texts(".class .cut"))
                keys[name] = str(len(keys) + 1)
            if i == 2:  # the wrong key, taken back
                wrong, name = next(iter(keys)), truth(browser)
                shown = browser.text("#name")
                browser.answer(keys[wrong])
                browser.press("z")
                browser.until(lambda shown=shown: browser.text("#name") == shown)
                given += [(None, wrong, "local"), (wrong, None, "local")]
        browser.until(lambda: browser.text("#labelled") == "12")
        browser.saved()
        assert lines(items) == given
        assert "every item has its label" in browser.text("#note")
        counts = dict(zip(browser.texts(".class .cut"), browser.texts(".class .soft"), strict=True))
        assert counts == dict.fromkeys(keys, "3") and list(counts) == list(keys)
        assert browser.texts(".class kbd") == ["1", "2", "3", "4"] and len(browser.texts(".cell .badge")) == 12
        assert browser.complaints() == []
        asked = browser.requests()
    assert len(asked) > 30 and all(url.startswith((address, f"blob:http://127.0.0.1:{visitor.port}/")) for url in asked)
    kept = {url.rpartition("/")[2] for url in asked}
    assert {"label.js", "page.css", "small", "large", "answer", "undo", "state"} <= kept


def test_suggestions_are_confirmed_by_one_key(
    browser: Browser, items: Collection, app_of: Page, serve: Callable[[Any], Any]
) -> None:
    with serve(app_of(suggests=True)) as visitor:
        browser.open(f"http://127.0.0.1:{visitor.port}/{visitor.token}/")
        browser.press(" ")
        browser.until(lambda: "no suggestion" in browser.text("#note").lower())
        seen: list[str] = []
        for i in range(12):
            name = truth(browser)
            if name in seen and len(seen) > 1:
                browser.until(lambda name=name: browser.text(".suggested b") == name)
                browser.answer(" ") if i < 11 else browser.press("\ue007")
            elif name in seen:
                browser.answer("1")
            else:
                browser.answer("/", name, "\ue007")
                seen.append(name)
        browser.until(lambda: browser.text("#labelled") == "12")
        browser.saved()
    labels = {d.id: d.new for d in Journal(items.path).read()[0]}
    for row in items.usable.to_pylist():
        assert labels[row["id"]] == ("good", "scratch", "spot", "dent")[int(row["uri"][6:9]) % 4]
    assert browser.complaints() == []


def test_several_classes_are_marked_and_saved(
    browser: Browser, items: Collection, app_of: Page, serve: Callable[[Any], Any]
) -> None:
    with serve(app_of(kind="classes")) as visitor:
        browser.open(f"http://127.0.0.1:{visitor.port}/{visitor.token}/")
        browser.press("\ue007")
        browser.until(lambda: "Mark a class first" in browser.text("#note"))
        browser.press("/", "wet", "\ue007", "/", "bent", "\ue007")
        assert lines(items) == []
        browser.answer("\ue007")
        browser.answer("1", "2", "1", "\ue007")
        assert lines(items) == [(None, ["bent", "wet"], "local"), (None, ["wet"], "local")]
        browser.press("\ue012")  # to the left: the item before, with what was said of it
        browser.until(lambda: browser.js("return document.querySelectorAll('.class[aria-pressed=true]').length") == 1)
    assert browser.complaints() == []


def test_keys_move_zoom_and_do_nothing_while_a_name_is_typed(
    browser: Browser, items: Collection, app_of: Page, serve: Callable[[Any], Any]
) -> None:
    uris = items.usable["uri"].to_pylist()
    right, left, down, up, escape = "\ue014", "\ue012", "\ue015", "\ue013", "\ue00c"
    with serve(app_of()) as visitor:
        browser.open(f"http://127.0.0.1:{visitor.port}/{visitor.token}/")
        for keys, place in (((right,), 1), ((left,), 0), ((left,), 0), ((down,), 3), ((right, right), 5), ((up,), 2)):
            browser.press(*keys)
            browser.until(lambda place=place: browser.text("#name") == uris[place])
        browser.until(lambda: browser.text("#zoom").strip(" %").isdigit())
        whole = int(browser.text("#zoom").strip(" %"))
        browser.press("+", "+")
        assert int(browser.text("#zoom").strip(" %")) == pytest.approx(whole * 1.25**2, abs=1)
        browser.press("-", escape)
        assert int(browser.text("#zoom").strip(" %")) == whole
        wheel = "new WheelEvent('wheel', {deltaY: -300, clientX: 500, clientY: 300})"
        browser.js(f"document.getElementById('view').dispatchEvent({wheel})")
        assert int(browser.text("#zoom").strip(" %")) == pytest.approx(whole * np.e, abs=1)
        browser.press("/", "z1 .")
        assert browser.js("return document.getElementById('new').value") == "z1 ." and browser.text("#name") == uris[2]
        browser.press(escape)
        assert browser.js("return document.getElementById('new').value") == ""
        browser.press("q", "9")  # keys of no class
        assert lines(items) == [] and browser.text("#name") == uris[2]
    assert browser.complaints() == []


def test_two_people_settle_what_they_differ_about(
    browser: Browser, items: Collection, app_of: Page, serve: Callable[[Any], Any]
) -> None:
    anna, ben = Answers(items, "anna"), Answers(Collection.open(items.path), "ben")
    for i, item in enumerate(anna.ids):
        anna.give(item, [("low", "high")[i % 2]])
        if i < 6:
            ben.give(item, ["low"])
    with serve(app_of(by="ben")) as visitor:
        browser.open(f"http://127.0.0.1:{visitor.port}/{visitor.token}/")
        assert browser.texts("#queues button") == ["Items 12", "Second look 6", "Differ 3"]
        assert browser.texts(".cell .badge").count("•") == 6  # what ben has not said is hidden from him
        assert "anna and ben agree on 50 % of 6 items, kappa 0.00." in browser.text("#notes")
        browser.js("document.querySelectorAll('#queues button')[2].click()")
        browser.until(
            lambda: "anna says high" in browser.text("#opinions") and "ben says low" in browser.text("#opinions")
        )
        key = browser.texts(".class kbd")[browser.texts(".class .cut").index("high")]
        browser.answer(key)
        browser.answer(key)
        browser.press(key)
        browser.until(lambda: browser.texts("#queues button") == ["Items 12", "Second look 6", "Differ 0"])
        browser.js("document.querySelectorAll('#queues button')[1].click()")
        browser.until(lambda: browser.text("#opinions") == "" and browser.text("#name"))
        browser.answer(key)
        browser.saved()
    fresh = Answers(Collection.open(items.path), "ben")
    assert (
        len(fresh.disputed) == 1 and len(fresh.second) == 5 and browser.complaints() == []
    )  # high, where anna said low


def test_names_are_text_and_a_refused_one_changes_nothing(
    browser: Browser, tmp_path: Path, serve: Callable[[Any], Any]
) -> None:
    evil = "<img src=x onerror=alert(1)>"
    folder = tmp_path / "<script>alert(2)<"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 20), (60 * i, 0, 0)).save(folder / f"{evil}{i}.png")
    items = open_source(folder)
    answers = Answers(items)
    with serve(labelling(answers, Pictures(items), answers.ids, str(folder))) as visitor:
        browser.open(f"http://127.0.0.1:{visitor.port}/{visitor.token}/")
        assert browser.text("#name").startswith(evil) and browser.text("#location") == str(folder)
        browser.answer("/", evil, "\ue007")
        assert browser.texts(".class .cut") == [evil] and evil in browser.texts(".cell .badge")
        shown = browser.text("#name")
        browser.press("/", "a|b", "\ue007")
        browser.until(
            lambda: "cannot be the name of a class" in browser.text("#note") and browser.text("#name") == shown
        )
        assert browser.text("#labelled") == "1" and browser.texts(".class .cut") == [evil]
        assert browser.js("return document.querySelectorAll('img[src=x], main script').length") == 0
        browser.answer("1")
    assert [d.new for d in Journal(items.path).read()[0]] == [evil, evil]
    assert not [text for text in browser.complaints() if "400" not in text]


def test_a_server_that_is_gone_is_said_and_answers_are_not_taken(
    browser: Browser, items: Collection, app_of: Page, serve: Callable[[Any], Any]
) -> None:
    with serve(app_of()) as visitor:
        browser.open(f"http://127.0.0.1:{visitor.port}/{visitor.token}/")
        browser.answer("/", "a", "\ue007")
        browser.until(lambda: browser.texts(".class kbd") == ["a"])  # its own letter
    browser.press("a")
    browser.until(lambda: "The server does not answer" in browser.text("#banner"))
    assert browser.text("#saved") == "not saved"
    shown = browser.text("#labelled")
    browser.press("a", "a")
    assert browser.text("#labelled") == shown and len(lines(items)) == 1


def test_from_the_first_label_to_a_trained_classifier(tmp_path: Path, browser: Browser, serve: Page) -> None:
    """A person labels twelve pictures of two kinds on the page; a head learns from them and names the other twenty."""
    rng = np.random.default_rng(0)
    truth: dict[str, str] = {}
    (tmp_path / "photos").mkdir()
    for i in range(32):
        pixels = rng.normal(110, 30, (32, 32, 3))
        pixels[:, :, i % 2] += 50
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "photos" / f"{i:02d}.png")
        truth[f"{i:02d}.png"] = ("red", "green")[i % 2]
    save(tiny_encoder(32), tmp_path / "encoder")
    items = open_source(tmp_path / "photos")
    answers = Answers(items)
    order = answers.ids[:12]
    with serve(labelling(answers, Pictures(items), order, "photos")) as page:
        browser.open(f"http://{page.host}/{page.token}/")
        keys: dict[str, str] = {}
        name = ""
        for done in range(1, 13):
            before = name
            browser.until(lambda before=before: browser.text("#name") not in ("", before))
            name = browser.text("#name")
            if (kind := truth[name]) in keys:
                browser.press(keys[kind])
            else:
                keys[kind] = str(len(keys) + 1)
                browser.press("/", *kind, ENTER)
            browser.until(lambda done=done: len(answers.labels) == done)
    photos, head = str(tmp_path / "photos"), str(tmp_path / "head")
    result = selfsight.train.classify(photos, model=str(tmp_path / "encoder"), out=head)
    assert (result.items, result.unlabelled, result.classes) == (12, 20, ["green", "red"])
    table = selfsight.predict(photos, head=head).table
    new = [row for row in table.to_pylist() if row["id"] not in order]
    assert len(new) == 20 and sum(row["label"] == truth[row["uri"]] for row in new) >= 17
    with serve(
        labelling(answers, Pictures(items), answers.ids, "photos", of_head(items, str(tmp_path / "head")))
    ) as page:
        said = page.get(f"api/items/{new[0]['id']}").json["suggestions"][0]
        assert said["name"] == new[0]["label"] and said["probability"] == pytest.approx(new[0]["score"], abs=1e-5)
