"""serve: heads as a service, over HTTP."""

from __future__ import annotations

import os
import re
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path

from selfsight.errors import DataError, MachineError, SelfsightError, in_words
from selfsight.results import Result
from selfsight.verbs.arguments import checked

TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,}")  # it stands in the address of the page
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Served(Result):
    """What a service did until it was stopped.

    heads: {name: digest} of those that were served in the end. images: that were answered. state: the folder that holds
    the audit log and the labels that came back.
    """

    heads: dict[str, str]
    images: int
    state: str


@checked
def serve(
    *heads: str,
    port: int = 8080,
    host: str = "127.0.0.1",
    token_file: str | None = None,
    state: str = "selfsight-state",
    tls_cert: str | None = None,
    tls_key: str | None = None,
    commercial: bool = False,
    log_names: bool = False,
    device: str | None = None,
) -> Served:
    """Answer for images over HTTP with the predictions of heads, until Ctrl-C.

    POST /v1/heads/NAME/predict takes an image as it is, or several as multipart/form-data, and gives the columns of
    `selfsight predict` as JSON; of objects and masks also COCO (?format=coco), and with ?pictures=true masks, maps and
    overlays. NAME is that of the folder. POST /v1/heads/NAME/feedback takes the true label of an image.
    POST /v1/admin/load serves another version, once it has answered for an example; POST /v1/admin/rollback goes back.
    GET /card says what each head is for, /metrics is for Prometheus, /openapi.json lists it all, and / is a page to
    drop images on.

    Whoever asks sends the token: Authorization: Bearer TOKEN. Only /health and /ready answer without it. No pixel and
    no name of an image is written anywhere unless you ask for it.

    Parameters
    ----------
    heads
        Heads, made by `selfsight train`. Their versions lie beside them. A head whose export lies beside it
        (`selfsight export heads/steel -o heads/steel.onnx`) computes with ONNX Runtime, else with PyTorch.
    port
        To listen on.
    host
        Address to listen on. 127.0.0.1 is for programs on this machine alone, 0.0.0.0 for whoever reaches it.
    token_file
        File that holds the token; one is made, readable for you alone, where there is none. STATE/token if not given.
    state
        Folder for all that is written: the audit log, the labels that came back, the token. Everything else may be
        read-only.
    tls_cert
        File of a certificate, with its chain, to speak HTTPS. It needs --tls-key.
    tls_key
        File of the certificate's key.
    commercial
        Refuse heads whose encoder has a licence that forbids commercial use, or may.
    log_names
        Write the names that images are sent under into the audit log.
    device
        Where to compute: cpu, cuda, cuda:1 or mps; the best there is if not given.
    """
    if not heads:
        raise SelfsightError("Give one head or more to serve: selfsight serve heads/steel --token-file token")
    try:
        from selfsight.deploy.gate import AT_ONCE, SECONDS, ServiceGate
        from selfsight.deploy.service import Service, app_of
        from selfsight.deploy.versions import Versions
        from selfsight.pages.server import Listening, Patient, until_terminated
    except ModuleNotFoundError as missing:
        raise MachineError(f"A service needs {missing.name}: pip install 'selfsight[serve]'") from None
    tls = _tls(tls_cert, tls_key)
    folder = Path(state).expanduser()
    server = Listening(host, port, backlog=2 * AT_ONCE)
    try:
        (folder / "heads").mkdir(parents=True, exist_ok=True)
        file = Path(token_file).expanduser() if token_file else folder / "token"
        token, made = token_of(file)
        versions = Versions(heads, commercial)
        service = Service(versions, folder, log_names)
    except OSError as error:
        raise MachineError(f"{folder} cannot be written: {in_words(error)}. Give another --state.") from None
    gate = ServiceGate(app_of(service, versions), token, host in LOCAL, service.figures.answered)
    server.serve(gate, http=Patient, log_level="critical", timeout_graceful_shutdown=int(SECONDS) + 5, **tls)
    _say(versions, f"{'https' if tls else 'http'}://{_shown(host)}:{server.port}", file, made, host)
    try:
        with until_terminated():
            server.run()
    finally:
        service.close()
    return Served({each.name: each.head.digest for each in versions}, service.images, str(folder))


def token_of(file: Path) -> tuple[str, bool]:
    """(the token that a file holds, whether it was made now). Raises `DataError` for one that can be guessed or that
    others can read."""
    made = False
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(handle, (secrets.token_urlsafe(32) + "\n").encode())
        os.close(handle)
        made = True
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not TOKEN.fullmatch(token):
        raise DataError(
            f"{file} holds no token: 16 letters, digits, . _ ~ - or more. Name a file that is not there: one is made."
        )
    if os.name == "posix" and file.stat().st_mode & 0o077:
        raise DataError(f"{file} can be read by others. Run: chmod 600 {shlex.quote(str(file))}")
    return token, made


def _tls(cert: str | None, key: str | None) -> dict[str, str]:
    """The settings of uvicorn for a certificate. Raises `SelfsightError` for half of one, `DataError` for a bad one."""
    import ssl

    if cert is None and key is None:
        return {}
    if cert is None or key is None:
        raise SelfsightError("HTTPS takes both --tls-cert and --tls-key.")

    def asked() -> str:
        raise SelfsightError(f"{key} is encrypted, and a service has nobody to ask. Write it without a passphrase.")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, asked)
    except OSError as error:  # an SSLError is one too
        raise DataError(f"{cert} and {key} are no certificate and its key: {in_words(error)}.") from None
    return {"ssl_certfile": cert, "ssl_keyfile": key}


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _say(versions: object, address: str, file: Path, made: bool, host: str) -> None:
    """The first lines: where it is, what it serves, and how it is called."""
    from selfsight.console import console
    from selfsight.deploy.exported import Exported
    from selfsight.deploy.versions import Versions

    assert isinstance(versions, Versions)
    said, path = console(), shlex.quote(str(file))
    names = [each.name for each in versions]
    said.print(f"Serving at {address}, until Ctrl-C:", soft_wrap=True)
    for each in versions:
        by = "ONNX Runtime" if isinstance(each.head, Exported) else "PyTorch"
        said.print(f"  {each.name}  {each.head.about.task}, {each.head.digest}, by {by}", soft_wrap=True)
    said.print(f"Token: in the file {path}{', made now' if made else ''}", soft_wrap=True)
    bearer = f'-H "Authorization: Bearer $(cat {path})"'
    said.print(f"Call:  curl {bearer} --data-binary @IMAGE {address}/v1/heads/{names[0]}/predict", soft_wrap=True)
    said.print(f'Page:  "{address}/$(cat {path})/"', soft_wrap=True)
    if host not in LOCAL:
        secret = "" if address.startswith("https") else " and read the token on the way, as this is not HTTPS"
        said.print(f"Whoever reaches {host} on the network can ask{secret}.", soft_wrap=True)


def show(result: Served) -> None:
    """Print what was answered, and where the log is."""
    from selfsight.console import results

    results(soft_wrap=True).print(f"{result.images:,} images answered. The log is {result.state}/audit.jsonl")
