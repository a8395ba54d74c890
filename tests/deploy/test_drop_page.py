"""The page of a service in a real browser: an image goes in, what a head says comes out, and nothing else is loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import chromium


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as there:
        yield there


def until(found: Any, seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def test_an_image_is_dropped_and_answered(driver: Any, service: Any, place: Path) -> None:
    driver.get("about:blank")
    for log in ("performance", "browser"):  # what the browser asked for when it began
        driver.get_log(log)
    driver.get(f"http://127.0.0.1:{service.port}/{service.token}/")

    def text(selector: str) -> str:
        return str(driver.find_element("css selector", selector).text)

    def choose(head: str, file: Path) -> dict[str, Any]:
        """The answer that the page shows, as JSON."""
        options = driver.find_elements("css selector", "#head option")
        next(option for option in options if option.text == head).click()
        before = driver.execute_script("return document.getElementById('json').textContent")
        driver.find_element("css selector", "#file").send_keys(str(file))
        script = "return document.getElementById('json').textContent"
        until(lambda: driver.execute_script(script) not in ("", before) and text("#answer") != "…")
        return json.loads(driver.execute_script(script))["predictions"][0]  # type: ignore[no-any-return]

    until(lambda: text("#digest"))
    assert driver.find_element("css selector", "#head option").text == "colours"
    assert text("#use").startswith("To tell blue, green, red apart")
    row = choose("colours", place / "new" / "colour-0.png")
    assert text("#answer") == row["label"] and "%" in text("#rows") and row["why"][0]["uri"] in text("#rows")
    assert driver.execute_script("return document.getElementById('picture').naturalWidth") == 40
    row = choose("parts", place / "new" / "colour-1.png")
    assert text("#answer") == ("defect" if row["defect"] else "good")
    row = choose("cells", place / "new" / "cells-0.png")
    assert text("#answer") == f"{len(row['objects'])} objects"
    assert driver.execute_script("return document.getElementById('picture').naturalWidth") == 64
    drawn = driver.execute_script("return document.getElementById('picture').src")
    driver.find_element("css selector", "#drawn").click()
    assert driver.execute_script("return document.getElementById('picture').src") != drawn  # the picture as it is
    driver.find_element("css selector", "#file").send_keys(str(place / "new" / "broken.png"))
    until(lambda: "cannot be read" in text("#banner"))
    assert text("#answer") == "No answer"
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    own = (f"http://127.0.0.1:{service.port}/{service.token}/", f"blob:http://127.0.0.1:{service.port}/")
    assert asked and all(url.startswith(own) for url in asked), asked
    complaints = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("422" in one for one in complaints), complaints  # the broken image alone
