"""A service from its start to its end: what it does not start with, HTTPS, hostile requests, what it leaves."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import ssl
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from caller import serving

import selfsight
from selfsight.errors import DataError, MachineError, SelfsightError


@pytest.fixture
def heads(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place / "heads" / "colours", tmp_path / "heads" / "colours")
    return tmp_path / "heads"


def test_what_it_does_not_start_with(heads: Path, tmp_path: Path) -> None:
    colours, state = str(heads / "colours"), str(tmp_path / "state")
    with pytest.raises(SelfsightError, match="Give one head or more"):
        selfsight.serve(state=state)
    with pytest.raises(DataError, match="is not a head"):
        selfsight.serve(str(tmp_path), state=state, port=0)
    with pytest.raises(DataError, match="There is no head package:efficientnet_lite0: serve takes folders"):
        selfsight.serve("package:efficientnet_lite0", state=state, port=0)
    with pytest.raises(SelfsightError, match="Two heads are called colours"):
        selfsight.serve(colours, colours, state=state, port=0)
    shutil.copytree(heads / "colours", heads / "my colours")
    with pytest.raises(SelfsightError, match="cannot stand in an address"):
        selfsight.serve(str(heads / "my colours"), state=state, port=0)
    with pytest.raises(SelfsightError, match="both --tls-cert and --tls-key"):
        selfsight.serve(colours, tls_cert="a.pem", state=state, port=0)
    with pytest.raises(DataError, match="no certificate"):
        selfsight.serve(colours, tls_cert=str(tmp_path / "no.pem"), tls_key=colours, state=state, port=0)
    if shutil.which("openssl") is not None:
        command = "openssl req -x509 -newkey rsa:2048 -passout pass:x -keyout key.pem -out cert.pem -subj /CN=localhost"
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
        keys = {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
        with pytest.raises(SelfsightError, match="is encrypted, and a service has nobody to ask"):
            selfsight.serve(colours, **keys, state=state, port=0)
    (tmp_path / "short").write_text("secret")
    with pytest.raises(DataError, match="holds no token"):
        selfsight.serve(colours, token_file=str(tmp_path / "short"), state=state, port=0)
    (tmp_path / "open").write_text("s" * 30)
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(DataError, match="chmod 600"):
        selfsight.serve(colours, token_file=str(tmp_path / "open"), state=state, port=0)
    with pytest.raises(MachineError, match=r"no address nowhere\.invalid"):
        selfsight.serve(colours, host="nowhere.invalid", state=state, port=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="Give another --state"):
        selfsight.serve(colours, state=str(tmp_path / "file"), port=0)


def test_licences_that_forbid_commercial_use_are_refused(heads: Path, tmp_path: Path) -> None:
    file = heads / "colours" / "head.json"
    for licence, words in (("cc-by-nc-4.0", "forbids commercial use"), ("unknown", "is unknown")):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"licence": licence}))
        with pytest.raises(SelfsightError, match=words):
            selfsight.serve(str(heads / "colours"), commercial=True, state=str(tmp_path / "state"), port=0)


def certificate(folder: Path) -> ssl.SSLContext:
    """cert.pem and key.pem of 127.0.0.1, and who trusts them alone."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"], cwd=folder, check=True, capture_output=True
    )
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


def test_over_https_in_a_folder_that_stays_as_it_is(heads: Path, place: Path, tmp_path: Path) -> None:
    """Only the state is written, and SIGTERM ends it as Ctrl-C does: what is under way is answered."""
    trusts = certificate(tmp_path)
    empty = {name: str(tmp_path / name.lower()) for name in ("HOME", "TMPDIR", "SELFSIGHT_CACHE", "XDG_CACHE_HOME")}
    for path in empty.values():
        Path(path).mkdir()
    words = [
        "heads/colours",
        "--state",
        "state",
        "--host",
        "0.0.0.0",
        "--tls-cert",
        "cert.pem",
        "--tls-key",
        "key.pem",
        "--log-names",
    ]
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    image = (place / "new" / "colour-0.png").read_bytes()
    statuses: list[int] = []
    with serving(tmp_path, *words, "--token-file", "state/token", tls=trusts, **empty, OMP_NUM_THREADS="1") as caller:

        def ask() -> None:
            statuses.append(caller.several("colours", [(f"part-{i}.png", image) for i in range(40)]).status)

        assert caller.predict("colours", image).status == 200
        page = {"Host": f"127.0.0.1:{caller.port}", "Origin": f"https://127.0.0.1:{caller.port}"}
        assert caller.ask("POST", f"/{caller.token}/v1/heads/colours/predict", image, page).status == 200
        asking = [threading.Thread(target=ask) for _ in range(6)]
        for thread in asking:
            thread.start()
        time.sleep(0.3)
        caller.process.send_signal(signal.SIGTERM)
        for thread in asking:
            thread.join()
        assert caller.process.wait(60) == 0
    assert statuses == [200] * 6
    said = (tmp_path / "said.txt").read_text()
    assert "242 images answered" in said and "Traceback" not in said
    assert "Whoever reaches 0.0.0.0 on the network can ask." in said
    lines = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").open()]
    assert len(lines) == 8 and lines[-1]["names"][-1] == "part-39.png"  # which was asked for
    assert stat.S_IMODE((tmp_path / "state" / "token").stat().st_mode) == 0o600
    after = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    new = {file.relative_to(tmp_path).parts[0] for file in after if after[file] != before.get(file)}
    assert new == {"state", "said.txt"}


def hostile(rng: random.Random, images: list[bytes], token: str) -> tuple[str, str, bytes, dict[str, str]]:
    """(method, path, body, headers) of a request that nobody means well with."""
    bearer = {"Authorization": f"Bearer {token}"}
    path = f"/v1/heads/{rng.choice(['colours', 'colours', 'none', '..%2f..%2fetc', '%00', 'a' * 3000])}/"
    path += rng.choice(["predict", "predict", "feedback", "predict?format=xml", "predict?pictures=%ff", "x"])
    data = bytearray(rng.choice(images))
    for _ in range(rng.randrange(1, 30)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    body = bytes(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
    kind = rng.randrange(8)
    if kind == 0:
        bearer = {"Authorization": f"Bearer {token[: rng.randrange(20)]}x"}
    elif kind == 1:
        tricks = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/token", "/state/audit.jsonl"]
        tricks += [f"/{token}/../../etc/passwd", f"/{token}/page.css/../../server.py", "/v1/admin/load"]
        path = rng.choice(tricks)
    elif kind == 2:
        bearer["Content-Type"] = rng.choice(["multipart/form-data; boundary=x", "multipart/form-data", "a/b;c" * 50])
    elif kind == 3:
        body = rng.choice(
            [b"{", b"null", b'{"request_id": 1e999}', b"[" * 5000, b'{"name": "colours", "folder": "../x"}']
        )
        path = rng.choice(["/v1/heads/colours/feedback", "/v1/admin/load", "/v1/admin/rollback"])
        bearer["Content-Type"] = "application/json"
    method = rng.choice(["POST", "POST", "POST", "GET", "PUT", "DELETE", "OPTIONS"])
    return method, path, body, bearer


def test_hostile_requests_are_refused_in_a_sentence(service: Any, place: Path) -> None:
    rng = random.Random(0)
    images = [file.read_bytes() for file in sorted((place / "new").iterdir())]
    images += [b"\x00" * 50, b"II*\0" + os.urandom(300), b"GIF89a" + bytes(40), b"<svg/>", b"\x93NUMPY" + bytes(90)]
    for number in range(300):
        method, path, body, headers = hostile(rng, images, service.token)
        reply = service.ask(method, path, body, headers)
        assert reply.status < 500, (number, method, path, reply)
        assert b"root:" not in reply.body and b"Traceback" not in reply.body and b'File "' not in reply.body
        if reply.status >= 400:
            assert reply.json["what"].endswith("."), reply
    said = (service.folder / "said.txt").read_text()
    assert "Traceback" not in said and "failed" not in said
    assert service.predict("colours", images[1]).status == 200
