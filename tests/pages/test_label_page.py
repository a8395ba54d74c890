"""The page's server, over real HTTP: what it serves, what it writes, what it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import garble
from PIL import Image

from selfsight.data.collection import Collection
from selfsight.data.decisions import Journal
from selfsight.pages.answers import Answers
from selfsight.pages.label import labelling
from selfsight.pages.neighbours import Neighbours, Watch
from selfsight.pages.pictures import Pictures

HERE = Path(__file__).parents[2] / "src" / "selfsight" / "pages"


def lines(items: Collection) -> list[tuple[object, object, str]]:
    return [(d.old, d.new, d.by) for d in Journal(items.path).read()[0]]


def app_of(items: Collection, by: str = "local", kind: str = "class", features: np.ndarray | None = None) -> Any:
    answers = Answers(Collection.open(items.path), by, kind)  # type: ignore[arg-type]
    suggest = None if features is None else Neighbours(answers.ids, features, answers)
    watch = None if suggest is None else Watch(suggest, answers)
    return labelling(answers, Pictures(items), answers.ids[:10], "plates <here>", suggest, watch)


@pytest.fixture
def visitor(items: Collection, serve: Callable[[Any], Any]) -> Iterator[Any]:
    with serve(app_of(items)) as there:
        yield there


def test_the_page_and_its_files(visitor: Any) -> None:
    page = visitor.get("")
    assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    head = (HERE / "head.html").read_text(encoding="utf-8").replace("{{ page }}.js", "label.js")
    assert page.body.decode() == head + (HERE / "label.html").read_text(encoding="utf-8") and "label.js" in head
    for name in ("label.js", "ask.js", "grid.js", "view.js", "page.css", "icon.svg"):
        reply = visitor.get(name)
        assert reply.body == (HERE / name).read_bytes()
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
        assert reply.headers["content-type"].startswith(kind)


@pytest.mark.parametrize(
    "path",
    [
        "label.py", "page.py", "nothing", "docs", "openapi.json", "../label.html", "..%2flabel.py", "%2e%2e/label.py",
        "api", "api/items", "api/items/nothing", "api/items/../state/x", "pictures/nothing/small", "pictures",
        "pictures/..%2f..%2fetc%2fpasswd/small", "pictures/%2fetc%2fpasswd/large", "label.html/", "api/answer/x",
    ],
)  # fmt: skip
def test_there_is_nothing_else(visitor: Any, path: str) -> None:
    assert visitor.get(path).status == 404


def test_names_and_paths_of_files_open_nothing(visitor: Any, items: Collection, plates: Path) -> None:
    first = items.usable["uri"][0].as_py()
    for name in (first, str(plates / first).replace("/", "%2f")):
        assert visitor.get(f"pictures/{name}/small").status == 404 and visitor.get(f"api/items/{name}").status == 404
        assert visitor.answer(name, "a").status in (400, 422)
    assert not items.decisions.files


def test_pictures_have_two_sizes(visitor: Any, items: Collection) -> None:
    item = items.usable["id"][0].as_py()
    for size in ("small", "large"):
        reply = visitor.get(f"pictures/{item}/{size}")
        assert reply.headers["content-type"] in ("image/png", "image/jpeg")
        assert Image.open(io.BytesIO(reply.body)).size == (64, 48)
    assert visitor.get(f"pictures/{item}/huge").status == 422


def test_a_picture_that_became_unreadable_is_said(visitor: Any, items: Collection, plates: Path) -> None:
    garble(plates / items.usable["uri"][0].as_py())
    reply = visitor.get(f"pictures/{items.usable['id'][0].as_py()}/large")
    assert reply.status == 422 and "cannot be read" in reply.json["what"]


def test_the_journal_holds_each_answer_when_it_is_confirmed(visitor: Any, items: Collection) -> None:
    state = visitor.get("api/state").json
    assert state["order"] == items.usable["id"].to_pylist()[:10] and state["labels"] == {} and state["kind"] == "class"
    assert (state["location"], state["by"], state["suggests"]) == ("plates <here>", "local", False)
    said = []
    for i, item in enumerate(state["order"]):
        name = "<b>bad</b>" if i % 3 else "good"
        reply = visitor.answer(item, name)
        said.append((None, name, "local"))
        assert reply.status == 200 and lines(items) == said
        assert reply.json["label"] == reply.json["mine"] == [name] and reply.json["now"]["labelled"] == i + 1
    assert reply.json["now"]["classes"] == [{"name": "good", "count": 4}, {"name": "<b>bad</b>", "count": 6}]
    undone = visitor.post("api/undo", {})
    assert (
        undone.json["id"] == state["order"][-1] and undone.json["label"] == [] and undone.json["now"]["labelled"] == 9
    )
    assert lines(items) == [*said, ("good", None, "local")]
    state = visitor.get("api/state").json
    assert len(state["labels"]) == 9 and state["mine"] == state["labels"]


def test_undo_with_nothing_to_take_back(visitor: Any, items: Collection) -> None:
    assert visitor.post("api/undo", {}).json == {"id": None} and not items.decisions.files


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'{"id": 1, "labels": ["a"]}', b'{"id": "x"}', b'{"labels": ["a"]}',
        b'{"id": "x", "labels": "a"}', b'{"id": "x", "labels": [["a"]]}', b'{"id": "x", "labels": [null]}', b"\xff\xfe",
        json.dumps({"id": "x" * 65, "labels": ["a"]}).encode(), json.dumps({"id": "x", "labels": ["a"] * 201}).encode(),
    ],
    ids=range(13),
)  # fmt: skip
def test_what_is_no_answer_is_refused(visitor: Any, items: Collection, body: bytes) -> None:
    headers = {"Host": visitor.host, "Origin": f"http://{visitor.host}", "Content-Type": "application/json"}
    reply = visitor.raw("POST", f"/{visitor.token}/api/answer", headers, body)
    assert reply.status in (400, 422) and not items.decisions.files
    assert visitor.answer(items.usable["id"][0].as_py(), "a").status == 200  # and the server is well


def test_names_that_no_class_can_have_are_one_sentence(visitor: Any, items: Collection) -> None:
    item = items.usable["id"][0].as_py()
    for name in ("a|b", "", "NA", "x" * 100, "a\u202eb"):
        reply = visitor.answer(item, name)
        assert reply.status == 400 and "cannot be the name of a class" in reply.json["what"]
    assert visitor.answer(item, "\ud800").status == 422  # half a letter
    assert not items.decisions.files


@pytest.mark.parametrize("path", ["api/answer", "api/undo"])
def test_what_changes_something_takes_a_post(visitor: Any, items: Collection, path: str) -> None:
    assert visitor.get(path).status in (404, 405) and not items.decisions.files


@pytest.mark.parametrize("path", ["", "api/state", "label.js"])
def test_what_shows_something_takes_a_get(visitor: Any, path: str) -> None:
    assert visitor.post(path, {}).status in (404, 405)


def test_a_journal_that_cannot_be_written_is_said_and_nothing_counts(visitor: Any, items: Collection) -> None:
    items.decisions.folder.write_text("in its place")
    item = items.usable["id"][0].as_py()
    reply = visitor.answer(item, "a")
    assert reply.status == 507 and "cannot be written" in reply.json["what"]
    assert visitor.get("api/state").json["labels"] == {}
    items.decisions.folder.unlink()
    assert visitor.answer(item, "a").status == 200 and lines(items) == [(None, "a", "local")]


def test_two_people_at_once_see_each_other_but_not_what_they_have_not_answered(
    items: Collection, serve: Callable[[Any], Any]
) -> None:
    with serve(app_of(items, "anna")) as anna, serve(app_of(items, "ben")) as ben:
        order = anna.get("api/state").json["order"]
        for item in order[:4]:
            anna.answer(item, "a")
        state = ben.get("api/state").json
        assert state["now"]["second"] == order[:4] and state["mine"] == {} and state["now"]["labelled"] == 4
        assert ben.get(f"api/items/{order[0]}").json["opinions"] == {}  # his own answer first
        ben.answer(order[0], "a")
        now = ben.answer(order[1], "b").json["now"]
        assert now["disputed"] == [order[1]] and now["second"] == order[2:4]
        assert now["agreement"] == [{"first": "anna", "second": "ben", "items": 2, "same": 0.5, "kappa": 0.0}]
        assert ben.get(f"api/items/{order[1]}").json["opinions"] == {"anna": ["a"], "ben": ["b"]}
        assert anna.get("api/state").json["now"]["disputed"] == [order[1]]
        assert anna.answer(order[1], "b").json["now"]["disputed"] == []
        assert "labelled again since" in ben.post("api/undo", {}).json["what"]
    assert lines(items)[4:] == [("a", "a", "ben"), ("a", "b", "ben"), ("b", "b", "anna")]


def test_suggestions_and_the_hint(items: Collection, serve: Callable[[Any], Any]) -> None:
    features = np.repeat(np.eye(2, dtype=np.float32), 6, axis=0)
    with serve(app_of(items, features=features)) as visitor:
        order = visitor.get("api/state").json["order"]
        assert (
            visitor.get("api/state").json["suggests"] and visitor.get(f"api/items/{order[0]}").json["suggestions"] == []
        )
        visitor.answer(order[0], "low")
        visitor.answer(order[6], "high")
        for item, name in ((order[1], "low"), (order[7], "high"), (order[0], "high")):
            first, second = visitor.get(f"api/items/{item}").json["suggestions"]
            assert first["name"] == name and 0.5 < first["probability"] < 1 and second["probability"] < 0.5
        for name in ["low", "other"] * 9:
            now = visitor.answer(order[1], name).json["now"]
        assert now["change"] == {"labels": 20, "share": 1.0, "items": 9, "enough": False}


def test_several_classes_are_a_list(items: Collection, serve: Callable[[Any], Any]) -> None:
    with serve(app_of(items, kind="classes")) as visitor:
        item = visitor.get("api/state").json["order"][0]
        assert visitor.answer(item, "b", "a").json["label"] == ["a", "b"]
        assert visitor.answer(item).status == 400
    assert lines(items) == [(None, ["a", "b"], "local")]
