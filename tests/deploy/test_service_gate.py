"""The layer before a service, held against real requests: who passes, what is refused, and before what."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from caller import Caller, multipart
from fastapi import FastAPI, Request

from selfsight.deploy import audit, gate, received
from selfsight.deploy.audit import Audit
from selfsight.deploy.gate import ServiceGate
from selfsight.pages import server
from selfsight.pages.server import Listening, Patient

TOKEN = "t" * 20


@pytest.fixture(scope="module")
def through() -> list[tuple[str, str, int]]:
    """(method, path, bytes) of what came through."""
    return []


@pytest.fixture(scope="module")
def caller(through: list[Any]) -> Iterator[Caller]:
    app = FastAPI(openapi_url=None, redirect_slashes=False)

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"])
    async def anything(path: str, request: Request) -> str:
        through.append((request.method, request.url.path, len(await request.body())))
        if path == "slow":
            await asyncio.sleep(1)
        if path == "broken":
            raise RuntimeError("with a secret in it")
        return "through"

    listening = Listening()
    told: list[Any] = []
    listening.serve(ServiceGate(app, TOKEN, True, lambda *said: told.append(said)), http=Patient, log_level="critical")
    thread = threading.Thread(target=listening.run)
    thread.start()
    there = Caller(listening.port, TOKEN)
    there.told = told  # type: ignore[attr-defined]
    yield there
    listening.stop()
    thread.join(20)


@pytest.fixture(autouse=True)
def none_before(through: list[Any]) -> None:
    through.clear()


WRONG: dict[str, dict[str, str]] = {
    "none": {},
    "another": {"Authorization": f"Bearer {TOKEN[:-1]}x"},
    "half": {"Authorization": f"Bearer {TOKEN[:10]}"},
    "longer": {"Authorization": f"Bearer {TOKEN}x"},
    "another kind": {"Authorization": f"Basic {TOKEN}"},
    "small letters": {"Authorization": f"bearer {TOKEN}"},
    "a cookie": {"Cookie": f"token={TOKEN}"},
    "letters that are no ASCII": {"Authorization": "Bearer ÿþ"},
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_without_the_token_nobody_passes(caller: Caller, through: list[Any], case: str) -> None:
    for method, path in (
        ("GET", "/card"),
        ("POST", "/v1/heads/a/predict"),
        ("GET", f"/?token={TOKEN}"),
        ("GET", "//health"),
    ):
        reply = caller.ask(method, path, b"x" if method == "POST" else None, WRONG[case])
        assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert set(reply.json) == {"error", "what", "do", "request_id"} and TOKEN.encode() not in reply.body
    assert not through


def test_the_token_is_looked_at_before_the_body(caller: Caller, through: list[Any]) -> None:
    """The body never comes, and the answer is there all the same."""
    head = "POST /v1/heads/a/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n"
    with socket.create_connection(("127.0.0.1", caller.port), 10) as line:
        line.sendall(f"{head}Authorization: Bearer wrong\r\n\r\n".encode())
        assert line.recv(4096).startswith(b"HTTP/1.1 401")
    with socket.create_connection(("127.0.0.1", caller.port), 10) as line:  # who waits to be asked for the body is not
        line.sendall(f"{head}Expect: 100-continue\r\nAuthorization: Bearer {TOKEN}x\r\n\r\n".encode())
        assert line.recv(4096).startswith(b"HTTP/1.1 401")


def test_health_is_open_and_says_nothing_else(caller: Caller, through: list[Any]) -> None:
    assert caller.ask("GET", "/health", headers={}).status == caller.ask("GET", "/ready", headers={}).status == 200
    assert caller.ask("POST", "/health", b"x", {}).status == 401
    assert caller.ask("PUT", "/card", b"x").status == 405


def test_a_body_is_counted_as_it_comes(caller: Caller, through: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_BYTES", 1000)
    assert caller.ask("POST", "/x", b"a" * 1000).status == 200
    assert caller.ask("POST", "/x", b"a" * 1001).status == 413
    sent = (
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nAuthorization: Bearer "
        + TOKEN.encode()
        + b"\r\n\r\n"
    )
    assert caller.raw(sent + 3 * (b"200\r\n" + b"a" * 512 + b"\r\n"), 2).startswith(b"HTTP/1.1 413")
    assert [size for *_, size in through] == [1000]


def test_one_deadline_for_body_and_answer(caller: Caller, through: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "SECONDS", 0.3)
    reply = caller.ask("GET", "/slow")
    assert reply.status == 408 and "0.3 seconds" in reply.json["what"]
    head = f"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nAuthorization: Bearer {TOKEN}\r\n\r\nabc"
    assert caller.raw(head.encode(), 2).startswith(b"HTTP/1.1 408")


def test_more_than_there_is_room_for_come_again(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "AT_ONCE", 2)
    status: list[tuple[int, str, float]] = []

    def ask() -> None:
        began = time.monotonic()
        reply = caller.ask("POST", "/slow", b"")
        status.append((reply.status, reply.headers.get("retry-after", ""), time.monotonic() - began))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert sorted(one[0] for one in status) == [200, 200, 429, 429, 429, 429]
    assert all(after == "1" and took < 0.9 for code, after, took in status if code == 429)  # at once
    assert caller.ask("POST", "/x", b"").status == 200  # and room is there again


def test_who_is_full_still_says_so(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "AT_ONCE", 0)
    assert caller.ask("POST", "/x", b"").status == 429 and caller.get("/metrics").status == 200


def test_what_is_cut_by_hanging_up_comes_to_nothing(caller: Caller, through: list[Any]) -> None:
    head = f"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nAuthorization: Bearer {TOKEN}\r\n\r\nabc"
    with socket.create_connection(("127.0.0.1", caller.port), 10) as line:
        line.sendall(head.encode())
    time.sleep(0.3)
    assert not through and caller.get("/card").status == 200


def test_bodies_that_wait_are_held_in_bounds(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_HELD", 150_000)
    head = f"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", caller.port), 10) as line:
        line.sendall(head + b"a" * 100_000)  # and not the last byte
        time.sleep(0.3)
        assert caller.ask("POST", "/x", b"a" * 100_000).status == 429
        line.sendall(b"a")
        assert line.recv(4096).startswith(b"HTTP/1.1 200")
    assert caller.ask("POST", "/x", b"a" * 100_000).status == 200


def test_what_breaks_inside_is_no_business_of_who_asked(caller: Caller, capfd: Any) -> None:
    reply = caller.get("/broken")
    assert reply.status == 500 and b"secret" not in reply.body and reply.json["request_id"] in reply.json["do"]
    said = capfd.readouterr().err
    assert "RuntimeError" in said and "secret" not in said and "Traceback" not in said
    time.sleep(0.2)
    assert caller.told[-1][1] == 500  # type: ignore[attr-defined]


def test_what_is_no_http_is_refused_in_a_sentence(caller: Caller) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"\0" * 500,
    ):
        answer = caller.raw(data, 3)
        assert answer.startswith(b"HTTP/1.1 400"), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["what"] == "This is not a request of HTTP/1.1."
    assert b"431" not in caller.raw(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 3)
    assert caller.ask("GET", "/health", headers={}).status == 200


def test_who_says_nothing_is_hung_up_on(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    for data in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"):
        began = time.monotonic()
        caller.raw(data, 5)
        assert time.monotonic() - began < 4


def test_connections_are_counted(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    lines = [socket.create_connection(("127.0.0.1", caller.port), 10) for _ in range(6)]
    assert [line.recv(100).startswith(b"HTTP/1.1 429") for line in lines[3:]] == [True] * 3
    for line in lines:
        line.close()
    time.sleep(0.2)
    assert caller.ask("GET", "/health", headers={}).status == 200


# -- what bodies hold --


def test_forms_of_all_kinds_are_read_or_refused() -> None:
    kind, body = multipart([("a.png", b"\r\n--x\r\n\0"), ("b.png", b"")], {"label": "ünd"})
    images, fields = received.parts_of(kind, body)
    assert images == [("a.png", b"\r\n--x\r\n\0"), ("b.png", b"")] and fields == {"label": "ünd"}
    assert received.parts_of("image/png", b"abc") == ([("", b"abc")], {})
    assert received.parts_of("", b"") == ([], {})
    wrong: list[tuple[str, bytes]] = [
        (kind, body[:-10]), (kind, b""), (kind, b"no form"), ("multipart/form-data", body),
        ("multipart/form-data; boundary=" + "b" * 100, body), (kind, multipart([("x", b"")] * 200, {})[1]),
    ]  # fmt: skip
    for header, data in wrong:
        with pytest.raises(received.Refused):
            received.parts_of(header, data)
    many = multipart([(f"{i}", b"x") for i in range(received.MOST_IMAGES + 1)], {})
    with pytest.raises(received.Refused, match="at most 64 images"):
        received.parts_of(*many)


def test_pixels_are_checked_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb says its size before a pixel is decoded; a file that names others is not read."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = 9000
    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    [page] = received.pages_of(received.Sent("bomb.png", bomb))
    assert "above the limit of 33,554,432 pixels" in page.reason
    [page] = received.pages_of(received.Sent("v.mp4", b"\0\0\0\x18ftypmp42" + bytes(300)))
    assert "video" in page.reason
    [page] = received.pages_of(received.Sent("x", b"#EXTM3U\nfile:///etc/passwd\n"))
    assert page.reason == "holds text, not an image"


def test_the_audit_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_BYTES", 1000)
    monkeypatch.setattr(audit, "KEPT", 3)
    log = Audit(tmp_path)
    for number in range(60):
        log.write("predict", str(number), "a", "d", ["x"])
    log.close()
    files = sorted(tmp_path.glob("audit.*.jsonl"))
    assert len(files) == 3 and all(file.stat().st_size <= 1000 for file in [*files, tmp_path / "audit.jsonl"])
    found = [json.loads(line)["request_id"] for file in [*files, tmp_path / "audit.jsonl"] for line in file.open()]
    assert found == [str(number) for number in range(60 - len(found), 60)]


def test_an_audit_log_that_cannot_be_rotated_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_BYTES", 300)
    log = Audit(tmp_path)
    written = 0

    def cannot(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(os, "replace", cannot)
        while True:
            log.write("predict", str(written), "a", "d", [])
            written += 1
    with (tmp_path / "other").open("w"):  # which would get the number of a file that was closed
        log.write("predict", str(written), "a", "d", [])
    log.close()
    lines = [line for file in sorted(tmp_path.glob("audit.*jsonl")) for line in file.read_text().splitlines()]
    assert [json.loads(line)["request_id"] for line in lines] == [str(number) for number in range(written + 1)]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the size of files")
def test_half_a_line_of_the_audit_log_is_taken_back(tmp_path: Path) -> None:
    import resource

    log = Audit(tmp_path)
    log.write("predict", "0", "a", "d", [])
    size, limits = (tmp_path / "audit.jsonl").stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="No space left"):
            log.write("predict", "1", "a", "d", [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write("predict", "2", "a", "d", [])
    log.close()
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == ["0", "2"]


def test_jobs_that_fail_together_are_answered_alone() -> None:
    """One image that a network cannot take spoils no other of its batch."""
    import numpy as np

    from selfsight.data.geometry import Geometry
    from selfsight.deploy.batching import Batching
    from selfsight.heads.placed import Placed, place

    geometry = Geometry(1, 4, (0, 255), (0.5,), (0.5,))

    class Picky:
        def say(self, several: list[Placed], drawn: bool) -> list[dict[str, Any]]:
            if any(one.pixels.max() == 7 for one in several):
                raise RuntimeError("seven")
            return [{"mean": float(one.pixels.mean())} for one in several]

    async def ask(batching: Batching, head: Any, values: list[int]) -> list[Any]:
        images = [place(0, np.full((4, 4, 1), value, np.uint8), geometry, 1, None) for value in values]
        return await asyncio.gather(*(batching.say(head, one, False) for one in images), return_exceptions=True)

    sizes: list[int] = []
    batching = Batching(sizes.append)
    said = asyncio.run(ask(batching, Picky(), [1, 7, 3]))
    assert [said[0], said[2]] == [{"mean": 1.0}, {"mean": 3.0}] and isinstance(said[1], RuntimeError)
    assert asyncio.run(ask(batching, Picky(), [5] * 40)) == [{"mean": 5.0}] * 40 and max(sizes) > 1
    batching.stop()


def test_room_is_given_in_turn() -> None:
    from selfsight.deploy.batching import Room

    held: list[int] = []

    async def use(room: Room, size: int, most: Callable[[int], None]) -> None:
        taken = await room.take(size)
        held.append(taken)
        most(sum(held))
        await asyncio.sleep(0.01)
        held.remove(taken)
        await room.give(taken)

    async def all() -> int:
        room, most = Room(100), [0]
        await asyncio.gather(*(use(room, size, lambda now: most.append(now)) for size in (60, 60, 30, 500, 10)))
        return max(most)

    assert asyncio.run(all()) <= 100


def test_what_is_remembered_is_bounded_by_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selfsight.deploy import feedback

    monkeypatch.setattr(feedback, "REMEMBERED", 10)
    known = feedback.Feedback(tmp_path)
    page = received.Page({"id": "i", "content_hash": "c", "status": "ok"})
    for number in range(5):
        known.remember(str(number), "a", [page] * 4)
    assert len(known.images_of("4", "a")) == len(known.images_of("3", "a")) == 4
    with pytest.raises(received.Refused, match="remembered"):
        known.images_of("2", "a")


def test_decisions_that_are_not_remembered_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selfsight.data.decisions import Journal
    from selfsight.deploy import feedback

    monkeypatch.setattr(feedback, "REMEMBERED", 3)
    items = [f"{number:032x}" for number in range(6)]
    decided = feedback.Decided(Journal(tmp_path / "a.lance"))
    for item in items:
        decided.decide(item, "hash", "label", f"first {item[-1]}", "anna")
    decided = feedback.Decided(Journal(tmp_path / "a.lance"))  # as after a restart
    for item in items:
        decided.decide(item, "hash", "label", "second", "ben")
    said = [(each.old, each.new) for each in Journal(tmp_path / "a.lance").read()[0]]
    assert said[:6] == [(None, f"first {number}") for number in range(6)]
    assert said[6:] == [(f"first {number}", "second") for number in range(6)]
