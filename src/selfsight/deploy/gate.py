"""The one layer before a service: who may pass, how much, for how long, and how many at once.

It comes before everything else. In this order: the token, before a byte of the body is read; whether there is room for
one more request; the body, counted as it comes; and one deadline for the body and the answer together. What goes wrong
behind it becomes an answer too, without a word of where in the code.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selfsight.console import console
from selfsight.pages.gate import ENCODED, METHODS, NAMES, first_of, refusal, replayed, whole_body, without_first

MOST_BYTES = 32 * 2**20  # of the body of a request
MOST_HELD = 8 * MOST_BYTES  # of the bodies of all requests together
AT_ONCE = 64  # requests that are answered or wait for it
SECONDS = 30.0  # for the body of a request to arrive and to be answered
OPEN = ("/health", "/ready")  # for whoever starts and watches the process: they say nothing else
HOW = "Send the header Authorization: Bearer TOKEN, with what the token file holds."
LATER = {"retry-after": "1"}
HOSTS = (*NAMES, "[::1]")  # by which this machine calls itself

# (path, status, seconds) of a request that was answered
Tell = Callable[[str, int, float], None]
Refuse = Callable[..., Awaitable[None]]


class ServiceGate:
    """An ASGI app before a service.

    token: of those who may pass. It comes as a bearer token, or, from a page, as the first part of the path; then the
    rules of pages hold: the request comes from this server's own pages. local: whether only this machine can ask, so
    that the name of the host is known too.
    """

    def __init__(self, app: ASGIApp, token: str, local: bool, tell: Tell) -> None:
        self._app, self._token, self._local, self._tell = app, token.encode("ascii"), local, tell
        self._inside = self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began, request_id, status, failed = time.monotonic(), uuid.uuid4().hex, 0, False
        scope["state"] = {"request_id": request_id}

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request_id.encode()), *ENCODED]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        async def refuse(code: int, what: str, do: str = "", headers: dict[str, str] | None = None) -> None:
            if not status:
                answer = refusal(code, what, do, request_id=request_id)
                answer.headers.update(headers or {})
                await answer(scope, receive, sent)

        async def answered(message: Message) -> None:  # by the app, whose own words for a failure are not ours
            nonlocal failed
            failed |= message["type"] == "http.response.start" and message["status"] == 500
            if not failed:
                await sent(message)

        try:
            await self._through(scope, receive, answered, refuse)
        except Exception as error:  # nothing of it is the business of who asked
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}:{place.lineno}"
            console().print(f"Request {request_id} failed: {type(error).__name__} at {where}", soft_wrap=True)
            await refuse(500, "The service failed at this request.", f"Tell its keeper the number {request_id}.")
        if status:  # else it hung up
            self._tell(scope["path"], status, time.monotonic() - began)

    async def _through(self, scope: Scope, receive: Receive, sent: Send, refuse: Refuse) -> None:
        if scope["path"] in OPEN and scope["method"] == "GET":
            return await self._app(scope, replayed(b"", receive), sent)
        by_page = hmac.compare_digest(first_of(scope), self._token)
        if not by_page and not self._bears(scope):
            return await refuse(401, "The token is missing or wrong.", HOW, {"www-authenticate": "Bearer"})
        if by_page and not self._from_here(scope):
            return await refuse(403, "The request comes from another page.", "Open the page of this service.")
        if scope["method"] not in METHODS:
            return await refuse(405, f"{scope['method'][:20]} is not among {', '.join(METHODS)}.")
        if scope["method"] == "POST" and self._inside >= AT_ONCE:
            return await refuse(429, f"{self._inside} requests wait already.", "Send it again in a second.", LATER)
        self._inside += 1
        held = self._held
        here = 0

        def count(size: int) -> None:
            nonlocal here
            here += size
            self._held += size
            if self._held > MOST_HELD:
                raise BlockingIOError

        try:
            async with asyncio.timeout(SECONDS) as deadline:
                try:
                    body = await whole_body(receive, MOST_BYTES, count)
                except ConnectionResetError:
                    return None
                except ValueError:
                    return await refuse(413, f"A request has at most {MOST_BYTES:,} bytes.", "Send fewer images.")
                except BlockingIOError:
                    what = f"Requests of {held:,} bytes wait already."
                    return await refuse(429, what, "Send it again in a second.", LATER)
                await self._app(without_first(scope) if by_page else scope, replayed(body, receive), sent)
        except TimeoutError:
            if not deadline.expired():
                raise
            await refuse(408, f"The request was not there and answered in {SECONDS:g} seconds.", "Send it again.")
        finally:
            self._inside -= 1
            self._held -= here

    def _bears(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], b"Bearer " + self._token)

    def _from_here(self, scope: Scope) -> bool:
        """Whether a browser sent it from a page of this server."""
        said = [(name, value) for name, value in scope["headers"] if name in (b"host", b"origin")]
        hosts = [value for name, value in said if name == b"host"]
        origins = [value for name, value in said if name == b"origin"]
        if len(hosts) != 1 or (self._local and hosts[0].rpartition(b":")[0].decode("latin-1") not in HOSTS):
            return False
        own = (b"http://" + hosts[0], b"https://" + hosts[0])
        return all(origin in own for origin in origins) and bool(origins or scope["method"] != "POST")
