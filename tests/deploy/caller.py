"""A service as a process of its own, and whoever calls it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from replies import Reply


class Caller:
    """Calls the service on a port of this machine with a token."""

    def __init__(self, port: int, token: str, process: Any = None, tls: ssl.SSLContext | None = None) -> None:
        self.port, self.token, self.process, self.tls = port, token, process, tls
        self.bearer = {"Authorization": f"Bearer {token}"}

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Reply:
        """A request with the token, unless `headers` say otherwise."""
        connection = self.connect()
        try:
            connection.request(method, path, body, dict(self.bearer if headers is None else headers))
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.ask("GET", path)

    def predict(self, head: str, data: bytes, query: str = "") -> Reply:
        return self.ask("POST", f"/v1/heads/{head}/predict{query}", data)

    def several(self, head: str, files: Sequence[tuple[str, bytes]], query: str = "") -> Reply:
        return self.form(f"/v1/heads/{head}/predict{query}", files, {})

    def form(self, path: str, files: Sequence[tuple[str, bytes]], fields: Mapping[str, str]) -> Reply:
        kind, body = multipart(files, fields)
        return self.ask("POST", path, body, self.bearer | {"Content-Type": kind})

    def tell(self, path: str, value: object) -> Reply:
        headers = self.bearer | {"Content-Type": "application/json"}
        return self.ask("POST", path, json.dumps(value).encode(), headers)

    def raw(self, data: bytes, seconds: float = 10.0) -> bytes:
        """What comes back on a connection on which these bytes are sent."""
        with socket.create_connection(("127.0.0.1", self.port), seconds) as line:
            line.sendall(data)
            found = b""
            with suppress(OSError):  # hung up on: what came until then is the answer
                while part := line.recv(65536):
                    found += part
            return found


def multipart(files: Sequence[tuple[str, bytes]], fields: Mapping[str, str]) -> tuple[str, bytes]:
    """(content type, body) of a form, as curl -F writes it."""
    boundary = uuid.uuid4().hex
    body = b""
    for name, value in fields.items():
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    for name, data in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        body += head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


@contextmanager
def serving(folder: Path, *words: str, tls: ssl.SSLContext | None = None, **environment: str) -> Iterator[Caller]:
    """`selfsight serve` with these words, in `folder`, on a free port; it is ended with SIGINT."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "selfsight", "serve", *words, "--port", str(port)]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, env=os.environ | environment)
    try:
        token_file = Path(
            words[words.index("--token-file") + 1] if "--token-file" in words else "selfsight-state/token"
        )
        caller, end = Caller(port, "", process, tls), time.monotonic() + 90
        while process.poll() is None and time.monotonic() < end:
            try:
                if caller.ask("GET", "/ready", headers={}).status == 200:
                    break
            except OSError:
                time.sleep(0.1)
        assert process.poll() is None, (folder / "said.txt").read_text()
        yield Caller(port, (folder / token_file).read_text().strip(), process, tls)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
