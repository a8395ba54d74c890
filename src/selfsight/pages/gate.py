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
_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


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
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        refused = self._refused(scope)
        body = b""
        if refused is None:
            try:
                async with asyncio.timeout(SECONDS):
                    body = await _body(receive, self._most)
            except TimeoutError:
                refused = refusal(HTTPStatus.REQUEST_TIMEOUT, f"The request did not arrive in {SECONDS:g} seconds.")
            except ValueError:
                refused = refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request has at most {self._most:,} bytes.")
        if refused is not None:
            await refused(scope, receive, sent)
            return
        path = "/" + scope["path"].partition("/")[2].partition("/")[2]
        inner = {**scope, "path": path, "raw_path": path.encode("utf-8", "surrogateescape")}
        await self._app(inner, _replayed(body, receive), sent)

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
        given = scope["path"].partition("/")[2].partition("/")[0].encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._token):
            return refusal(forbidden, "The token in the address is missing or wrong.", OPEN)
        return None


OPEN = "Open the address that selfsight printed when it started, token and final / included."


def refusal(status: HTTPStatus, what: str, do: str = "") -> JSONResponse:
    """An answer that says no: what is wrong, and what to do."""
    return JSONResponse({"error": status.phrase, "what": what, "do": do}, status)


async def _body(receive: Receive, most: int) -> bytes:
    """All of a body. Raises `ValueError` as soon as it is longer than `most` bytes."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > most:
            raise ValueError("too long")
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives the body once more, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
