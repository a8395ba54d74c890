"""Collections to label, pages that are served for real, and what a browser or an intruder asks of them."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browsing import Browser
from helpers import chromium
from plates import write_plates
from replies import Reply

from selfsight.data.collection import Collection
from selfsight.data.importers import open_source


class Visitor:
    """Speaks to the page at an address as a browser does, unless told otherwise."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.port, self.token = int(parts.port or 0), parts.path.strip("/")
        self.host = f"127.0.0.1:{self.port}"

    def raw(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Reply:
        """A request with exactly these headers, Host among them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None and "Content-Length" not in headers:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        reply = Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return reply

    def get(self, path: str) -> Reply:
        return self.raw("GET", f"/{self.token}/{path}", {"Host": self.host})

    def post(self, path: str, value: object) -> Reply:
        headers = {"Host": self.host, "Origin": f"http://{self.host}", "Content-Type": "application/json"}
        return self.raw("POST", f"/{self.token}/{path}", headers, json.dumps(value).encode())

    def answer(self, item: str, *labels: str) -> Reply:
        return self.post("api/answer", {"id": item, "labels": labels})


@contextmanager
def served(app: Any) -> Iterator[Visitor]:
    """An app on a real server in a thread."""
    from selfsight.pages.server import Server

    server = Server(app)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Visitor(server.address)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    """Twelve small plates in one folder."""
    return write_plates(tmp_path / "plates", 12, size=(48, 64))


@pytest.fixture
def items(plates: Path) -> Collection:
    return open_source(plates)


@pytest.fixture(scope="session")
def serve() -> Callable[[Any], Any]:
    return served


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as there:
        metrics = {"width": 1440, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        there.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield there


@pytest.fixture
def browser(driver: Any) -> Iterator[Browser]:
    driver.get("about:blank")
    for log in ("performance", "browser"):
        driver.get_log(log)
    yield Browser(driver)
