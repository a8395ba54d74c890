"""One web server: for a page on 127.0.0.1 only, for whoever has its address, or for a service; until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from selfsight.errors import MachineError
from selfsight.pages.gate import MOST_BYTES, Gate, refusal

AT_ONCE = 64  # requests; the next ones are told to come again
SECONDS = 3  # that requests under way have to end in, after Ctrl-C
MOST_CONNECTIONS = 512
FULL = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
PATIENCE = 20.0  # seconds, twice which a connection may say nothing or half of a request


class Listening:
    """A server that listens from the start, so that no other program takes the port, and answers in `run`."""

    def __init__(self, host: str = "127.0.0.1", port: int | None = None, backlog: int = AT_ONCE) -> None:
        """port: a free one if not given. Raises `MachineError` where it cannot listen there."""
        self._socket = _listening(host, port or 0, backlog)
        self.port: int = self._socket.getsockname()[1]
        self._server: uvicorn.Server | None = None

    def serve(self, app: ASGIApp, **settings: object) -> None:
        """What answers in `run`. settings: of uvicorn."""
        own: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "log_config": None, "access_log": False}
        own |= {"server_header": False, "proxy_headers": False}
        self._server = uvicorn.Server(uvicorn.Config(app, **(own | settings)))

    def run(self) -> None:
        """Answer until Ctrl-C, or until `stop` is called from another thread. Requests under way end first."""
        with suppress(KeyboardInterrupt):
            if _in_notebook():
                thread = threading.Thread(target=self._serve)
                thread.start()
                try:
                    thread.join()
                finally:
                    self.stop()
                    thread.join()
            else:
                self._serve()
        self._socket.close()

    def _serve(self) -> None:
        assert self._server is not None
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let `run` end."""
        if self._server is not None:
            self._server.should_exit = True


class Server(Listening):
    """The server of a page.

    address: of the page, with the token: whoever has it may do what the page does.
    """

    def __init__(self, app: ASGIApp, port: int | None = None, most: int = MOST_BYTES) -> None:
        """port: a free one if not given. most: bytes of the body of a request. Raises `MachineError` if it is taken."""
        super().__init__(port=port)
        token = secrets.token_urlsafe(24)
        self.address = f"http://127.0.0.1:{self.port}/{token}/"
        gate = Gate(app, token, self.port, most)
        self.serve(gate, limit_concurrency=AT_ONCE, timeout_graceful_shutdown=SECONDS)


class Patient(H11Protocol):
    """A connection that is closed where it says nothing, or half of a request, for long; and that says what is wrong
    with a request that is no HTTP as any other error is said."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.write(FULL)
            transport.close()
        self._before: object = None
        self._timer = self.loop.call_later(PATIENCE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        here = (self.cycle, self.conn.their_state)
        if here == self._before and self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self.transport.close()
            return
        self._before = here
        self._timer = self.loop.call_later(PATIENCE, self._look)

    def send_400_response(self, msg: str) -> None:
        answer = refusal(400, "This is not a request of HTTP/1.1.", "Send it by curl or any library for HTTP.")
        headers = [*answer.raw_headers, (b"connection", b"close")]
        events = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
        )
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.writelines([self.conn.send(event) or b"" for event in (*events, h11.EndOfMessage())])
        self.transport.close()


@contextmanager
def until_terminated() -> Iterator[None]:
    """Within it SIGTERM ends this process as Ctrl-C does: what is under way is finished first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_notebook() -> bool:
    """Whether an event loop runs in this thread already, beside which no second one can."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _listening(host: str, port: int, backlog: int) -> socket.socket:
    """A socket. Raises `MachineError`."""
    if not 0 <= port < 2**16:
        raise MachineError(f"There is no port {port}. Give one from 1024 to 65535, or leave --port out.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        if (error.errno or 0) < 0:  # as of looking up a name
            raise MachineError(
                f"There is no address {host} here. Give 127.0.0.1, 0.0.0.0 or one of this machine."
            ) from None
        reason = os.strerror(error.errno or 0)
        where = f"Port {port}" if host == "127.0.0.1" else f"Port {port} of {host}"
        raise MachineError(f"{where} cannot be used ({reason}). Give another --port, or none.") from None
