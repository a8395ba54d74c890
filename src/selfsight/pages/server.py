"""One local web server: on 127.0.0.1 only, for whoever has its address, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

from selfsight.errors import MachineError
from selfsight.pages.gate import MOST_BYTES, Gate

AT_ONCE = 64  # requests; the next ones are told to come again
SECONDS = 3  # that requests under way have to end in, after Ctrl-C


class Server:
    """The server of a page. It listens from the start, so that no other program takes the port, and answers in `run`.

    address: of the page, with the token: whoever has it may do what the page does.
    """

    def __init__(self, app: ASGIApp, port: int | None = None, most: int = MOST_BYTES) -> None:
        """port: a free one if not given. most: bytes of the body of a request. Raises `MachineError` if it is taken."""
        self._socket = _listening(port or 0)
        token, port = secrets.token_urlsafe(24), self._socket.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/{token}/"
        config = uvicorn.Config(
            Gate(app, token, port, most), http="h11", ws="none", lifespan="off", server_header=False,
            proxy_headers=False, access_log=False, log_config=None, limit_concurrency=AT_ONCE,
            timeout_graceful_shutdown=SECONDS,
        )  # fmt: skip
        self._server = uvicorn.Server(config)

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
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let `run` end."""
        self._server.should_exit = True


def _in_notebook() -> bool:
    """Whether an event loop runs in this thread already, beside which no second one can."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _listening(port: int) -> socket.socket:
    """A socket on 127.0.0.1. Raises `MachineError`."""
    if not 0 <= port < 2**16:
        raise MachineError(f"There is no port {port}. Give one from 1024 to 65535, or leave --port out.")
    try:
        return socket.create_server(("127.0.0.1", port), backlog=AT_ONCE)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise MachineError(f"Port {port} cannot be used ({reason}). Give another --port, or none.") from None
