"""The security rule, held against real requests: who is refused, how, and before what."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.request import urlopen

import pytest
from fastapi import FastAPI, Request

from selfsight.errors import MachineError
from selfsight.pages import gate
from selfsight.pages.gate import HEADERS, MOST_BYTES, Gate
from selfsight.pages.server import Server


@pytest.fixture(scope="module")
def seen() -> list[tuple[str, str, int]]:
    """(method, path, bytes) of what came through."""
    return []


@pytest.fixture(scope="module")
def visitor(seen: list[tuple[str, str, int]], serve: Any) -> Iterator[Any]:
    app = FastAPI(openapi_url=None, redirect_slashes=False)

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
    async def anything(path: str, request: Request) -> str:
        seen.append((request.method, request.url.path, len(await request.body())))
        return "through"

    with serve(app) as there:
        yield there


@pytest.fixture(autouse=True)
def none_before(seen: list[tuple[str, str, int]]) -> None:
    seen.clear()


def test_who_has_the_address_comes_through_without_the_token(visitor: Any, seen: list[Any]) -> None:
    assert visitor.get("api/x").status == 200 and visitor.get("").status == 200
    assert visitor.post("api/x", {"a": 1}).status == 200
    assert seen == [("GET", "/api/x", 0), ("GET", "/", 0), ("POST", "/api/x", 8)]
    assert visitor.raw("GET", f"/{visitor.token}/x", {"Host": f"localhost:{visitor.port}"}).status == 200


def wrong(visitor: Any) -> dict[str, tuple[str, str, dict[str, str]]]:
    token, host = visitor.token, visitor.host
    mine = {"Host": host}
    post = mine | {"Origin": f"http://{host}", "Content-Type": "application/json"}
    other = "A" if token[0] != "A" else "B"
    return {
        "no token": ("GET", "/", mine),
        "no token, a path": ("GET", "/api/state", mine),
        "another token": ("GET", f"/{other}{token[1:]}/", mine),
        "half a token": ("GET", f"/{token[:16]}/", mine),
        "a longer token": ("GET", f"/{token}x/", mine),
        "a token in the query": ("GET", f"/?token={token}", mine),
        "a token later": ("GET", f"/x/{token}/", mine),
        "two slashes": ("GET", f"//{token}/", mine),
        "letters that are no ASCII": ("GET", "/%ff%fe/", mine),
        "no host": ("GET", f"/{token}/", {}),
        "a name that points here": ("GET", f"/{token}/", {"Host": f"evil.example:{visitor.port}"}),
        "another port": ("GET", f"/{token}/", {"Host": "127.0.0.1:1"}),
        "no port": ("GET", f"/{token}/", {"Host": "127.0.0.1"}),
        "a name that begins alike": ("GET", f"/{token}/", {"Host": f"127.0.0.1.evil.example:{visitor.port}"}),
        "another origin": ("GET", f"/{token}/", mine | {"Origin": "http://evil.example"}),
        "an origin of another port": ("POST", f"/{token}/", post | {"Origin": "http://127.0.0.1:1"}),
        "an origin of another scheme": ("POST", f"/{token}/", post | {"Origin": f"https://{host}"}),
        "no origin at all": ("POST", f"/{token}/", mine | {"Content-Type": "application/json"}),
        "an origin that is null": ("POST", f"/{token}/", post | {"Origin": "null"}),
        "PUT": ("PUT", f"/{token}/", post),
        "DELETE": ("DELETE", f"/{token}/", post),
        "OPTIONS": ("OPTIONS", f"/{token}/", post),
        "HEAD": ("HEAD", f"/{token}/", mine),
    }


@pytest.mark.parametrize("case", sorted(wrong(type("Any", (), {"token": "t" * 32, "host": "", "port": 0}))))
def test_what_is_wrong_is_refused_before_the_app(visitor: Any, seen: list[Any], case: str) -> None:
    method, path, headers = wrong(visitor)[case]
    reply = visitor.raw(method, path, headers, b"{}" if method in ("POST", "PUT") else None)
    assert reply.status in (400, 403) if case == "no host" else reply.status == 403, reply
    assert not seen
    if reply.status == 403:
        assert visitor.token.encode() not in reply.body
        assert all(reply.headers[name] == value for name, value in HEADERS.items())


def test_every_answer_forbids_to_keep_it_and_to_load_from_elsewhere(visitor: Any) -> None:
    for reply in (visitor.get(""), visitor.post("x", 1)):
        assert all(reply.headers[name] == value for name, value in HEADERS.items())
        assert reply.headers["cache-control"] == "no-store" and "server" not in reply.headers
    assert "default-src 'none'" in HEADERS["content-security-policy"]


def test_a_body_that_is_too_long_is_refused_as_soon_as_it_is(visitor: Any, seen: list[Any]) -> None:
    assert visitor.post("x", "a" * (MOST_BYTES - 2)).status == 200 and seen[0][2] == MOST_BYTES
    assert visitor.post("x", "a" * (MOST_BYTES - 1)).status == 413 and len(seen) == 1
    sent = 0
    with socket.create_connection(("127.0.0.1", visitor.port), 30) as line:  # chunks without end
        head = f"POST /{visitor.token}/x HTTP/1.1\r\nHost: {visitor.host}\r\nOrigin: http://{visitor.host}\r\n"
        line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        line.settimeout(0.01)
        answer = b""
        while not answer and sent < 2**26:
            try:
                line.sendall(b"1000\r\n" + b"a" * 4096 + b"\r\n")
                sent += 4096
                answer = line.recv(100)
            except TimeoutError:
                continue
            except OSError:  # the server hung up
                break
    assert answer.startswith(b"HTTP/1.1 413") and sent < 2**22 and len(seen) == 1


def test_a_body_without_the_token_is_not_read(visitor: Any) -> None:
    with socket.create_connection(("127.0.0.1", visitor.port), 10) as line:
        line.sendall(f"POST /x/ HTTP/1.1\r\nHost: {visitor.host}\r\nContent-Length: 1000\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 403")  # though nothing of the body was sent


def test_a_body_that_does_not_come_is_not_waited_for(visitor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "SECONDS", 0.3)
    head = f"POST /{visitor.token}/x HTTP/1.1\r\nHost: {visitor.host}\r\nOrigin: http://{visitor.host}\r\n"
    with socket.create_connection(("127.0.0.1", visitor.port), 10) as line:
        line.sendall(f"{head}Content-Length: 1000\r\n\r\nabc".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 408")


def test_only_this_machine_is_listened_to_and_every_server_has_a_token_of_its_own() -> None:
    servers = [Server(lambda *_: None) for _ in range(20)]
    assert len({server.address for server in servers}) == 20
    assert all(server.address.startswith("http://127.0.0.1:") and len(server.address) > 50 for server in servers)
    port = int(servers[0].address.split(":")[2].split("/")[0])
    with pytest.raises(MachineError, match=f"Port {port} cannot be used"):
        Server(lambda *_: None, port)
    with pytest.raises(MachineError, match="no port 99999"):
        Server(lambda *_: None, 99999)
    mine = {address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in mine - {"127.0.0.1"}:
        with pytest.raises(OSError):
            socket.create_connection((address, port), 2)


def test_stopping_lets_a_request_under_way_end(serve: Callable[[Any], Any]) -> None:
    app, begun = FastAPI(), threading.Event()

    @app.get("/slow")
    def slow() -> str:
        begun.set()
        time.sleep(0.7)
        return "whole"

    replies: list[Any] = []
    with serve(app) as visitor:
        thread = threading.Thread(target=lambda: replies.append(visitor.get("slow")))
        thread.start()
        assert begun.wait(10)
    thread.join(10)
    assert replies[0].status == 200 and replies[0].json == "whole"


def test_a_port_can_be_used_again_at_once(serve: Callable[[Any], Any]) -> None:
    with serve(FastAPI()) as visitor:
        visitor.get("")
    assert f":{visitor.port}/" in Server(FastAPI(), visitor.port).address  # which is an error while a port is held


def test_a_page_is_served_from_a_notebook_too() -> None:
    """Which calls it within a running event loop."""
    app = FastAPI()
    app.get("/x")(lambda: "here")
    server, replies = Server(app), []

    def visit() -> None:
        with urlopen(server.address + "x", timeout=30) as reply:
            replies.append(reply.read())
        server.stop()

    async def cell() -> None:
        threading.Timer(0.3, visit).start()
        server.run()

    asyncio.run(cell())
    assert replies == [b'"here"']


def test_websockets_do_not_pass() -> None:
    async def reached(*_: object) -> None:
        raise AssertionError("the app was reached")

    asyncio.run(Gate(reached, "t", 1)({"type": "websocket", "path": "/t/", "headers": []}, None, None))  # type: ignore[arg-type]
