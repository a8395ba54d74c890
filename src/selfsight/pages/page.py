"""What every page begins with: its files, the pictures of the items, and one way to say what went wrong.

A page of its own is an HTML file and a module in this folder, and a function that adds its routes to `page(...)`. The
paths that it asks for are relative, so that they carry the token; items are named by their ids.
"""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from selfsight.data.formats.format import Unreadable
from selfsight.errors import MachineError, SelfsightError
from selfsight.pages.gate import refusal
from selfsight.pages.pictures import Pictures

_HERE = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SHARED = ("page.css", "icon.svg", "ask.js", "grid.js", "view.js")


def page(html: str, files: tuple[str, ...], pictures: Pictures) -> FastAPI:
    """An app that shows the file `html` of this folder, which may load `files` and the shared ones."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    content = {name: (_HERE / name).read_bytes() for name in (*SHARED, *files)}
    content[html] = (_HERE / html).read_bytes()

    @app.get("/")
    @app.get("/{name}")
    def file(name: str = html) -> Response:
        if name not in content:
            return refusal(HTTPStatus.NOT_FOUND, "There is nothing here.")
        return Response(content[name], media_type=_TYPES[Path(name).suffix])

    @app.get("/pictures/{item}/{size}")
    def picture(item: str, size: Literal["small", "large"]) -> Response:
        if item not in pictures:
            return refusal(HTTPStatus.NOT_FOUND, "There is no such item.")
        try:
            data, kind = pictures.encoded(item, size)
        except Unreadable as reason:
            return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"This picture cannot be read: {reason}.")
        return Response(data, media_type=kind)

    @app.exception_handler(SelfsightError)
    def said(request: Request, error: Exception) -> Response:
        machine = isinstance(error, MachineError)
        return refusal(HTTPStatus.INSUFFICIENT_STORAGE if machine else HTTPStatus.BAD_REQUEST, str(error))

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: Exception) -> Response:
        return refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "The request is not what this page sends.", "Load it again.")

    return app
