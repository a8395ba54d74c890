"""A head's guesses for the page: once each, one at a time, and nobody waits for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import numpy as np
import pytest

from selfsight.data.annotations.rle import encode
from selfsight.data.collection import Collection
from selfsight.pages.guesses import Guesses, Late
from selfsight.pages.paint import painting
from selfsight.pages.painted import Painted
from selfsight.pages.pictures import Pictures


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_clicks_run_it_once_and_no_two_at_once() -> None:
    running, most, asked, go = 0, 0, list[str](), threading.Event()

    def guess(item: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        asked.append(item)
        assert go.wait(20)
        running -= 1
        return item.upper()

    guesses = Guesses(guess, 20)
    with ThreadPoolExecutor(4) as pool:
        clicks = [pool.submit(guesses.of, "a") for _ in range(2)]
        until(lambda: asked == ["a"])
        passed = pool.submit(guesses.of, "b")
        until(lambda: "b" in guesses._asked)
        last = pool.submit(guesses.of, "c")  # whoever asked for b has gone on
        with pytest.raises(Late):
            passed.result(20)
        go.set()
        assert [click.result(20) for click in clicks] == ["A", "A"] and last.result(20) == "C"
    assert asked == ["a", "c"] and most == 1
    assert guesses.of("a") == "A" and asked == ["a", "c"]


def test_a_guess_that_failed_is_tried_again() -> None:
    errors = [ValueError("first")]

    def guess(item: str) -> str:
        if errors:
            raise errors.pop()
        return item

    guesses = Guesses(guess, 20)
    with pytest.raises(ValueError, match="first"):
        guesses.of("a")
    assert guesses.of("a") == "a"


def test_the_page_of_masks_says_why_there_is_no_guess_and_goes_on(
    items: Collection, serve: Callable[[Any], Any]
) -> None:
    def guess(item: str) -> None:
        raise ValueError("no memory is left")

    painted = Painted(items)
    with serve(painting(painted, Pictures(items), painted.ids, "plates", guess)) as visitor:
        found = visitor.get(f"api/items/{painted.ids[0]}?height=4&width=4").json
    assert found["failed"] == "The head has no guess for this one: no memory is left" and found["width"] == 64


def test_the_page_answers_without_a_late_guess_and_has_it_later(items: Collection, serve: Callable[[Any], Any]) -> None:
    painted, go = Painted(items), threading.Event()
    item = painted.ids[0]
    height, width = painted.size(item)

    def guess(_: str) -> dict[str, Any]:
        assert go.wait(20)
        return {"cell": dict(encode(np.ones((height, width), bool)))}

    app = painting(painted, Pictures(items), painted.ids, "plates", guess, 0.1)
    with serve(app) as visitor:
        path = f"api/items/{item}?height={height}&width={width}"
        first = visitor.get(path)
        assert first.status == HTTPStatus.OK
        assert first.json["late"] and first.json["guess"] is None and first.json["regions"] is None
        go.set()
        until(lambda: not visitor.get(path).json["late"])
        assert [region["name"] for region in visitor.get(path).json["guess"]] == ["cell"]
