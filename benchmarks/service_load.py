"""A service under load: mixed traffic, three times what it can bear, and requests that nobody means well with.

    python benchmarks/service_load.py heads/steel heads/inspect --images parts/ --minutes 3 --overload 1 --hostile 2000

The generator is pinned to core 0 and `selfsight serve` to core 1. First it is measured what the service can bear, with
as many who wait for their answer as it lets in. Then requests arrive at random, at 0.7 of that rate, whether or not the
last ones are answered; during --overload of the minutes at three times of it. Every answer is held against what
`predict` says of the same file. Last come hostile requests: fuzzed images of every format, paths, headers, sizes,
tokens, and bodies that never end. Rows, one a minute and one 500 hostile requests, go to results/service.jsonl; the
same command goes on after the last row of its own --name.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from fuzz import mutated
from fuzz_corpus import CORPUS

import selfsight
from selfsight.deploy.gate import AT_ONCE

RESULTS = Path(__file__).parent / "results" / "service.jsonl"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "NPY", "DICOM", "VIDEO", "CSV", "ZIP")
SHARE, OVERLOAD = 0.7, 3.0  # of what it can bear
CLEAR, CLOSE = 1e-3, 1e-4  # by how much scores may differ, and between which decisions may
BLOCK = 500  # hostile requests a row
Reply = tuple[int, bytes]


class Service:
    """`selfsight serve` on core 1, in a folder of its own."""

    def __init__(self, heads: list[str], folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = [
            "serve",
            *(str(Path(head).resolve()) for head in heads),
            "--port",
            str(self.port),
            "--token-file",
            "token",
        ]
        self.said = folder / "said.txt"
        with self.said.open("w") as said:
            self.process = subprocess.Popen(
                ["taskset", "-c", "1", sys.executable, "-m", "selfsight", *words], cwd=folder, stdout=said, stderr=said,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        while True:
            try:
                if self.ask("GET", "/ready", None, {})[0] == 200:
                    break
            except OSError:
                time.sleep(0.2)
            if self.process.poll() is not None:
                sys.exit(self.said.read_text())
        self.token = (folder / "token").read_text().strip()
        self.bearer = {"Authorization": f"Bearer {self.token}"}
        self._kept = threading.local()

    def ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str], seconds: float = 60) -> Reply:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def predict(self, head: str, data: bytes, query: str = "") -> Reply:
        """One request on the connection that this thread keeps."""
        for _ in range(2):
            if getattr(self._kept, "line", None) is None:
                self._kept.line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                self._kept.line.request("POST", f"/v1/heads/{head}/predict{query}", data, self.bearer)
                answer = self._kept.line.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException):  # it was idle for too long
                self._kept.line.close()
                self._kept.line = None
        return 0, b""

    @property
    def memory(self) -> dict[str, int]:
        """Megabytes now, those of them that are no file (libraries are), and at most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith(("Vm", "Rss"))}
        names = {"memory_mb": "VmRSS", "own_mb": "RssAnon", "peak_mb": "VmHWM"}
        return {name: int(found[of]) // 1000 for name, of in names.items()}

    def stop(self) -> int:
        self.process.send_signal(2)
        return self.process.wait(60)


class Traffic:
    """What is asked, and whether an answer is right."""

    def __init__(self, service: Service, heads: list[str], images: str, count: int) -> None:
        files = sorted(file for file in Path(images).rglob("*") if file.is_file())[:count]
        self.service, self.data = service, {file.name: file.read_bytes() for file in files}
        self.names = [Path(head).name for head in heads]
        with tempfile.TemporaryDirectory() as copied:
            for name, data in self.data.items():
                (Path(copied) / name).write_bytes(data)
            self.known = {
                Path(head).name: {row["uri"]: row for row in selfsight.predict(copied, head=head).table.to_pylist()}
                for head in heads
            }
        self.lock, self.statuses, self.seconds, self.wrong = threading.Lock(), Counter[int](), list[float](), 0

    def one(self, draw: random.Random) -> None:
        """One request, timed and judged."""
        head, name = draw.choice(self.names), draw.choice(list(self.data))
        query = "?pictures=true" if draw.random() < 0.05 else ""
        began = time.monotonic()
        status, body = self.service.predict(head, self.data[name], query)
        took = time.monotonic() - began
        right = status != 200 or self.same(self.known[head][name], json.loads(body)["predictions"][0])
        with self.lock:
            self.statuses[status] += 1
            self.wrong += not right
            if status == 200:
                self.seconds.append(took)

    def same(self, expected: dict[str, Any], said: dict[str, Any]) -> bool:
        """Whether an answer is that of `predict`, but for the last bits, which hang on the batch."""
        number = "value" if "value" in expected else "score"
        near = math.isclose(expected[number] or 0, said[number] or 0, rel_tol=CLOSE, abs_tol=CLOSE)
        if "objects" in expected:
            return near and len(expected["objects"]) == len(said["objects"])
        if "defect" in expected:
            return near and expected["defect"] == said["defect"]
        if "label" not in expected:
            return near
        two = sorted(expected["probabilities"])[-2:]
        return near and (expected["label"] == said["label"] or two[1] - two[0] < CLEAR)

    def row(self, elapsed: float) -> dict[str, Any]:
        """What came of the requests since the last row."""
        with self.lock:
            times = np.percentile([1000 * t for t in self.seconds] or [0], (50, 95, 99)).round(1).tolist()
            found = {"requests": sum(self.statuses.values()), "ok": self.statuses[200], "again": self.statuses[429]}
            found |= {"statuses": {str(k): v for k, v in sorted(self.statuses.items())}, "wrong": self.wrong}
            found |= dict(zip(("p50_ms", "p95_ms", "p99_ms"), times, strict=True))
            self.statuses, self.seconds, self.wrong = Counter(), [], 0
        return found | {"ok_a_second": round(found["ok"] / elapsed, 1), **self.service.memory}

    def capacity(self, seconds: float, workers: int = 24) -> float:
        """Answers a second where so many wait for theirs."""
        end = time.monotonic() + seconds

        def work(number: int) -> None:
            draw = random.Random(number)
            while time.monotonic() < end:
                self.one(draw)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(work, range(workers)))
        return float(self.row(seconds)["ok_a_second"])

    def minute(self, rate: float, seed: int, pool: ThreadPoolExecutor) -> dict[str, Any]:
        """Requests at random times for a minute."""
        draw, began = random.Random(seed), time.monotonic()
        at, number, waiting = 0.0, 0, []
        while at < 60:
            at += draw.expovariate(rate)
            time.sleep(max(0.0, began + at - time.monotonic()))
            waiting.append(pool.submit(self.one, random.Random(seed * 10**6 + number)))
            number += 1
        for each in waiting:
            each.result()
        return {"asked_a_second": round(number / 60, 1), **self.row(time.monotonic() - began)}


# -- hostile requests --

PATHS = (
    *(
        "/../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/v1/heads/..%2f../predict",
        "/?" * 99,
        "/*",
    ),
    *("/v1/heads/%00/predict", "/v1/heads/" + "a" * 5000 + "/predict", "/token", "/selfsight-state/audit.jsonl"),
    *("/static/../token", "http://127.0.0.1/token", "/page.css/../../server.py"),
)
HEADERS = ("Content-Type", "Content-Encoding", "Range", "Expect", "Host", "X-Forwarded-Host", "Transfer-Encoding")
VALUES = ("gzip", "multipart/form-data", "bytes=0-", "\x7f\x01" * 9, "a" * 9000, "../../etc/passwd")
BODIES = (
    *(b"{", b"[" * 50_000, b'{"name": "../x"}', b'{"request_id": 1e999, "label": "a"}', b"\xff\xfe", b"1"),
    b'{"name": {"$ne": null}}',
)


def hostile(service: Service, head: str, corpora: dict[str, list[bytes]], number: int) -> tuple[str, int, bytes]:
    """(kind, status, answer) of hostile request `number`; status 0 where the service hung up."""
    draw = random.Random(f"hostile {number}")
    kind = draw.choice(("image", "image", "image", "path", "header", "token", "form", "json", "http", "size"))
    if number % 100 == 0:
        kind = "slow"
    path, bearer, method = f"/v1/heads/{head}/predict", dict(service.bearer), "POST"
    family = draw.choice(FORMATS)
    body = mutated(family, corpora[family], 0, number)
    if kind == "slow":
        head_ = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\nAuthorization: {bearer['Authorization']}"
        return kind, *spoken(service, head_.encode() + b"\r\n\r\n" + body[:99], 45)
    if kind == "http":
        start = draw.choice(
            (b"", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        )
        return kind, *spoken(service, start + draw.randbytes(draw.randrange(1, 400)) + b"\r\n\r\n", 5)
    if kind == "path":
        path = draw.choice((*PATHS, f"/{service.token}/../../../etc/passwd"))
        method = draw.choice(("GET", "POST", "HEAD", "TRACE", "PROPFIND"))
    elif kind == "token":
        wrong = ("Bearer ", f"Bearer {service.token[:-1]}", "Bearer " + "x" * 9000, f"Basic {service.token}")
        bearer = draw.choice(({}, {"Cookie": f"token={service.token}"}, {"Authorization": draw.choice(wrong)}))
    elif kind == "header":
        bearer |= {draw.choice(HEADERS): draw.choice(VALUES)}
    elif kind == "form":
        bearer["Content-Type"] = "multipart/form-data; boundary=x"
        name = draw.choice(("a.png", "../../x.png", "a" * 9000, 'q"uote', "\0"))
        part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="' + name.encode() + b'"\r\n\r\n'
        body = part * draw.choice((1, 1, 500)) + body + draw.choice((b"\r\n--x--\r\n", b"", b"\r\n--x"))
    elif kind == "json":
        bearer["Content-Type"] = "application/json"
        path = draw.choice((f"/v1/heads/{head}/feedback", "/v1/admin/load", "/v1/admin/rollback"))
        body = draw.choice((*BODIES, json.dumps({"name": head, "folder": "../../etc"}).encode()))
    elif kind == "size":
        bearer["Content-Length"] = draw.choice(("-1", "1e9", "99999999999", "0x10", "5, 6", ""))
    try:
        return kind, *service.ask(method, path, body, bearer, 45)
    except (OSError, http.client.HTTPException, ValueError) as error:  # hung up on, or not even sent by our library
        return kind, 0, type(error).__name__.encode()


def spoken(service: Service, data: bytes, seconds: float) -> Reply:
    """What comes back for bytes on a connection of their own."""
    found = b""  # where the service hangs up, what came until then is the answer
    with suppress(OSError), socket.create_connection(("127.0.0.1", service.port), seconds) as line:
        line.settimeout(seconds)
        line.sendall(data)
        while part := line.recv(65536):
            found += part
    return (int(found[9:12]) if found.startswith(b"HTTP/1.1 ") else 0), found


def block(service: Service, head: str, corpora: dict[str, list[bytes]], first: int) -> dict[str, Any]:
    """500 hostile requests."""
    statuses: Counter[str] = Counter()
    leaks = 0
    with ThreadPoolExecutor(32) as pool:
        for kind, status, body in pool.map(lambda n: hostile(service, head, corpora, n), range(first, first + BLOCK)):
            statuses[f"{kind} {status}"] += 1
            leaks += any(sign in body for sign in (b"root:", b"Traceback", b'File "', service.token.encode()))
            if status >= 400 and kind != "http" and body.startswith(b"{"):
                leaks += set(json.loads(body)) < {"error", "what", "do"}
    fives = sum(count for name, count in statuses.items() if name.split()[1].startswith("5"))
    said = service.said.read_text()
    row = {
        "requests": BLOCK,
        "fives": fives,
        "leaks": leaks,
        "tracebacks": said.count("Traceback"),
        "failed": said.count("failed"),
    }
    return row | {"statuses": dict(sorted(statuses.items())), **service.memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="+")
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=60, help="images that are sent")
    parser.add_argument("--minutes", type=int, default=20)
    parser.add_argument("--overload", type=int, default=5, help="of the minutes")
    parser.add_argument("--hostile", type=int, default=10_000)
    parser.add_argument("--name", default="first")
    words = parser.parse_args()
    os.sched_setaffinity(0, {0})
    rows = [json.loads(line) for line in RESULTS.open()] if RESULTS.exists() else []
    done = [row for row in rows if row["name"] == words.name]
    about = {"name": words.name, "machine": f"{psutil.cpu_count()} cores, one each for generator and service"}

    def keep(kind: str, row: dict[str, Any]) -> None:
        line = about | {"kind": kind, **row}
        print(json.dumps(line), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        service = Service(words.heads, Path(folder))
        try:
            load(Traffic(service, words.heads, words.images, words.count), words, done, keep)
            corpora = {name: CORPUS[name][1]() for name in FORMATS}
            hit = BLOCK * sum(row["kind"] == "hostile" for row in done)
            for first in range(hit, words.hostile, BLOCK):
                keep("hostile", {"first": first, **block(service, Path(words.heads[0]).name, corpora, first)})
        finally:
            code = service.stop()
        print(f"The service ended with {code}.")


def load(traffic: Traffic, words: argparse.Namespace, done: list[dict[str, Any]], keep: Callable[..., None]) -> None:
    """The minutes that are not done yet."""
    rate = next((row["ok_a_second"] for row in done if row["kind"] == "capacity"), 0.0)
    traffic.capacity(3)  # warm
    if not rate:
        rate = traffic.capacity(15)
        keep("capacity", {"ok_a_second": rate, "waiting": 24, "heads": traffic.names, **traffic.service.memory})
    over = set(range(1, words.overload + 1)) if words.minutes > words.overload else set(range(words.overload))
    with ThreadPoolExecutor(4 * AT_ONCE) as pool:
        for minute in range(sum(row["kind"] in ("mixed", "overload") for row in done), words.minutes):
            kind, share = ("overload", OVERLOAD) if minute in over else ("mixed", SHARE)
            keep(kind, {"minute": minute, **traffic.minute(share * rate, minute, pool)})


if __name__ == "__main__":
    main()
