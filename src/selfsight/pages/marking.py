"""What both pages on which people draw have in common: the items, what is drawn on them, and what an answer changes."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from selfsight.pages.marked import Marked
from selfsight.pages.page import page
from selfsight.pages.pictures import Pictures

SCRIPT = "marking.js"


def marking(
    html: str, files: tuple[str, ...], marked: Marked, pictures: Pictures, order: Sequence[str], location: str,
    guesses: bool,
) -> FastAPI:  # fmt: skip
    """An app that shows the file `html`, and says what is asked for. order: ids of the items. location: where they are
    from. guesses: whether a head shows what may be there."""
    app = page(html, (SCRIPT, *files), pictures)

    @app.get("/api/state")
    def state() -> Response:
        about = {"location": location, "by": marked.by, "order": list(order), "guesses": guesses}
        with marked.lock:
            marked.refresh()
            drawn = {"marked": marked.marked, "classes": marked.counts, "damaged": marked.damaged}
        return JSONResponse(about | drawn)

    return app


def changed(marked: Marked, item: str | None, **more: object) -> Response:
    """What an answer changed: the classes of an item, and how many items have each."""
    with marked.lock:
        now = {"id": item, "marked": None if item is None else marked.marked.get(item), "classes": marked.counts}
    return JSONResponse(now | more)
