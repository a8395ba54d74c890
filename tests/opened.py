"""Commands that serve a page until Ctrl-C."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from typing import Any


class Opened(subprocess.Popen[str]):
    """A command that serves a page, in a process of its own, with what it answers."""

    def __init__(self, *words: str) -> None:
        line = [sys.executable, "-m", "selfsight", *words]
        super().__init__(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.stderr is not None
        self.said = ""
        for text in self.stderr:
            self.said += text
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]+)/", text):
                self.port, self.token = int(found[1]), found[2]
                return
        raise AssertionError(self.said)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        try:
            connection.request(method, f"/{self.token}/{path}", body and json.dumps(body), headers)
            answer = connection.getresponse()
            assert answer.status == 200
            return json.loads(answer.read())
        finally:
            connection.close()
