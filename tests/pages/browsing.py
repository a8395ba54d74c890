"""A page in headless Chromium, with what a person does and what a test asks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any


class Browser:
    """A driver, with what a person does and what a test asks."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get(address)
        self.until(lambda: self.text("#name"))

    def press(self, *keys: str) -> None:
        """Keys go to the page as from a keyboard."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def drag(self, *points: tuple[float, float]) -> None:
        """With the left button, from point to point of the window; one point alone is a click."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder

        actions = ActionBuilder(self.driver, duration=10)
        for number, (x, y) in enumerate(points):
            actions.pointer_action.move_to_location(round(x), round(y))
            if number == 0:
                actions.pointer_action.pointer_down()
        actions.pointer_action.pointer_up()
        actions.perform()

    def text(self, css: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.textContent || ''", css))

    def texts(self, css: str) -> list[str]:
        return list(self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css))

    def js(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, holds: Callable[[], Any]) -> Any:
        end = time.monotonic() + 20
        while not (found := holds()):
            assert time.monotonic() < end, f"{self.text('#banner')} {self.text('#note')} {self.text('#saved')}"
            time.sleep(0.02)
        return found

    def saved(self) -> None:
        self.until(lambda: self.text("#saved") == "saved")

    def answer(self, *keys: str) -> None:
        """Press keys, and wait until the answer is saved and the next item is known."""
        before = self.text("#name")
        self.press(*keys)
        self.until(lambda: self.text("#name") not in ("", before))
        self.saved()

    def requests(self) -> list[str]:
        """The addresses of every request since the last call, whatever became of it."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
