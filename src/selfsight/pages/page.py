"""What every page begins with: its files, the pictures of the items, and one way to say what went wrong.

A page of its own is an HTML file and a module in this folder, and a function that adds its routes to `page(...)`. The
paths that it asks for are relative, so that they carry the token; items are named by their ids.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from jinja2 import Environment, FileSystemLoader
from starlette.exceptions import HTTPException

from selfsight.data.formats.format import Unreadable
from selfsight.errors import MachineError, SelfsightError
from selfsight.pages.gate import refusal

if TYPE_CHECKING:  # which needs torch, and a service on ONNX Runtime does without
    from selfsight.pages.pictures import Pictures

_HERE = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SHARED = ("page.css", "icon.svg", "ask.js", "grid.js", "view.js")


def page(html: str, files: tuple[str, ...], pictures: Pictures) -> FastAPI:
    """An app that shows the file `html` of this folder, whose script has its name; it may load `files` and the shared
    ones."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    add_files(app, html, files)

    @app.get("/pictures/{item}/{size}")
    def picture(item: str, size: Literal["small", "large"]) -> Response:
        if item not in pictures:
            return refusal(HTTPStatus.NOT_FOUND, "There is no such item.")
        try:
            data, kind = pictures.encoded(item, size)
        except Unreadable as reason:
            return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"This picture cannot be read: {reason}.")
        return Response(data, media_type=kind)

    add_refusals(app, "The request is not what this page sends.", "Load it again.")
    return app


def add_files(app: FastAPI, html: str, files: tuple[str, ...]) -> None:
    """Let an app show the file `html` of this folder at `/`, and `files` and the shared ones by their names. Its script
    has its name."""
    for name in (html, *SHARED, *files):
        for path in (f"/{name}", *(["/"] if name == html else [])):
            app.get(path, include_in_schema=False)(_file(name))


def _file(name: str) -> Callable[[], Response]:
    content, kind = (_HERE / name).read_bytes(), _TYPES[Path(name).suffix]
    if name.endswith(".html"):
        parts = Environment(loader=FileSystemLoader(_HERE), autoescape=True, keep_trailing_newline=True)
        whole = [parts.get_template(part).render(page=Path(name).stem) for part in ("head.html", name)]
        content = "".join(whole).encode()
    return lambda: Response(content, media_type=kind)


def add_refusals(app: FastAPI, malformed: str, do: str) -> None:
    """Let an app say what is wrong in a sentence: `SelfsightError`s, what there is not, and requests that are
    `malformed`, with what to `do`. Requests that have an id are named by it."""

    def of(request: Request) -> dict[str, str]:
        known = getattr(request.state, "request_id", None)
        return {} if known is None else {"request_id": known}

    @app.exception_handler(SelfsightError)
    def said(request: Request, error: Exception) -> Response:
        machine = isinstance(error, MachineError)
        status = HTTPStatus.INSUFFICIENT_STORAGE if machine else HTTPStatus.BAD_REQUEST
        return refusal(status, str(error), **of(request))

    @app.exception_handler(RequestValidationError)
    def wrong(request: Request, error: Exception) -> Response:
        return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, malformed, do, **of(request))

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: Exception) -> Response:
        status = HTTPStatus(error.status_code) if isinstance(error, HTTPException) else HTTPStatus.NOT_FOUND
        what = "There is nothing here." if status == HTTPStatus.NOT_FOUND else f"{status.phrase}."
        return refusal(status, what, **of(request))
