"""The one security rule: a page answers the person who was given its address, and nobody else.

The server listens on 127.0.0.1 only. Beyond that any program or web site on the machine could speak to it, so every
request passes here first. It must name this server as its host (a site whose name was made to point here does not),
come from this server's own pages if it says where from (a POST must say so), be a GET or a POST, begin its path with
the token, and carry a small body that arrives soon. Every answer forbids the browser to keep it, to load anything from
elsewhere, and to say where it came from.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost")
METHODS = ("GET", "POST")
MOST_BYTES = 2**16  # of the body of a request
SECONDS = 10.0  # for it to arrive
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
ENCODED = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Gate:
    """An ASGI app before another: it refuses what may not pass, and takes the token off the path of what may."""

    def __init__(self, app: ASGIApp, token: str, port: int, most: int = MOST_BYTES) -> None:
        self._app, self._most = app, most
        self._token = token.encode("ascii")
        self._hosts = [f"{name}:{port}".encode() for name in NAMES]
        self._origins = [b"http://" + host for host in self._hosts]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *ENCODED]}
            await send(message)

        refused = self._refused(scope)
        body = b""
        if refused is None:
            try:
                async with asyncio.timeout(SECONDS):
                    body = await whole_body(receive, self._most)
            except TimeoutError:
                refused = refusal(HTTPStatus.REQUEST_TIMEOUT, f"The request did not arrive in {SECONDS:g} seconds.")
            except ConnectionResetError:
                return
            except ValueError:
                refused = refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request has at most {self._most:,} bytes.")
        if refused is not None:
            await refused(scope, receive, sent)
            return
        await self._app(without_first(scope), replayed(body, receive), sent)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that may not pass, before any of its body is read."""
        said: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            said.setdefault(name, []).append(value)
        forbidden = HTTPStatus.FORBIDDEN
        if len(said.get(b"host", ())) != 1 or said[b"host"][0] not in self._hosts:
            return refusal(forbidden, "This server has another name or port.", OPEN)
        if scope["method"] not in METHODS:
            return refusal(forbidden, f"{scope['method']} is not among {', '.join(METHODS)}.")
        origins = said.get(b"origin", [])
        if any(origin not in self._origins for origin in origins) or (scope["method"] == "POST" and not origins):
            return refusal(forbidden, "The request comes from another page.", OPEN)
        if not hmac.compare_digest(first_of(scope), self._token):
            return refusal(forbidden, "The token in the address is missing or wrong.", OPEN)
        return None


OPEN = "Open the address that selfsight printed when it started, token and final / included."


def refusal(status: int, what: str, do: str = "", **more: str) -> JSONResponse:
    """An answer that says no: what is wrong, and what to do. more: fields beside these."""
    return JSONResponse({"error": HTTPStatus(status).phrase, "what": what, "do": do, **more}, status)


def first_of(scope: Scope) -> bytes:
    """The first part of the path, where a page has its token."""
    first: str = scope["path"].partition("/")[2].partition("/")[0]
    return first.encode("utf-8", "surrogateescape")


def without_first(scope: Scope) -> Scope:
    """The request as if its path had no first part."""
    path = "/" + scope["path"].partition("/")[2].partition("/")[2]
    return {**scope, "path": path, "raw_path": path.encode("utf-8", "surrogateescape")}


async def whole_body(receive: Receive, most: int, count: Callable[[int], object] = abs) -> bytes:
    """All of a body. count: told the bytes of each part as it comes. Raises `ValueError` as soon as it is longer than
    `most` bytes, `ConnectionResetError` where the other side hung up."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        part = message.get("body", b"")
        count(len(part))
        body += part
        if len(body) > most:
            raise ValueError("too long")
        if not message.get("more_body", False):
            return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives the body once more, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
