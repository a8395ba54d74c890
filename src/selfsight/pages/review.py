"""The page on which people decide of what a curation doubts: pairs side by side, single items, and a map of all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from selfsight.curation.faults import KINDS
from selfsight.data.collection import Collection
from selfsight.pages.gate import refusal
from selfsight.pages.page import page
from selfsight.pages.pictures import Pictures
from selfsight.pages.reviewed import Action, Reviewed
from selfsight.report.cloud import Cloud

MOST_ITEMS = 1_000_000  # of one decision, such as of a lasso
MOST_BYTES = 2**26  # of a request, that many ids
FACTS = ("uri", "page", "width", "height", "mode", "depth", "bytes", "split", "group", "site")


class Given(BaseModel):
    """A decision about some items. label: for the action `label`."""

    ids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=MOST_ITEMS)]
    action: Action
    label: Annotated[str, Field(max_length=200)] = ""


def reviewing(items: Collection, reviewed: Reviewed, cloud: Callable[[], Cloud] | None = None) -> FastAPI:
    """The app of the page, for a `Server(app, port, MOST_BYTES)`.

    cloud: draws the map when it is first asked for; without it there is none.
    """
    pictures = Pictures(items)
    app = page("review.html", ("review.css", "review.js", "difference.js", "map.js"), pictures)
    drawn: list[Cloud] = []
    drawing = threading.Lock()

    def told(ids: list[str]) -> Response:
        with reviewed.lock:
            said = {
                "ids": ids,
                "items": {item: {"state": reviewed.state(item), "label": reviewed.label(item)} for item in ids},
                "outcomes": {number: reviewed.outcome(number) for number in reviewed.cases_with(ids)},
            }
        return JSONResponse(said)

    @app.get("/api/state")
    def state() -> Response:
        with reviewed.lock:
            reviewed.refresh()
            cases = [
                {"kind": case.kind, "items": case.items, "score": case.score, "suggested": case.suggested,
                 "outcome": reviewed.outcome(number)}
                for number, case in enumerate(reviewed.cases)
            ]  # fmt: skip
            said = {"cases": cases, "classes": reviewed.classes, "damaged": reviewed.damaged}
        kinds = {kind: (*KINDS.get(kind, (kind, "")), count) for kind, count in reviewed.estimated.items()}
        about = {"location": items.about.location, "by": reviewed.by, "lost": reviewed.lost, "map": cloud is not None,
                 "kinds": kinds}  # fmt: skip
        return JSONResponse(about | said)

    @app.get("/api/items/{item}")
    def one(item: str) -> Response:
        if item not in pictures:
            return refusal(HTTPStatus.NOT_FOUND, "There is no such item.")
        row = pictures.row(item)
        known = {name: row.get(name) for name in FACTS}
        with reviewed.lock:
            return JSONResponse(known | {"label": reviewed.label(item), "state": reviewed.state(item)})

    @app.get("/api/map")
    def plane() -> Response:
        if cloud is None:
            return refusal(HTTPStatus.NOT_FOUND, "There is no map.")
        with drawing:  # not the lock of decisions, which are not to wait for it
            if not drawn:
                drawn.append(cloud())
        with reviewed.lock:
            states = {item: said for item in drawn[0].ids if (said := reviewed.state(item))}
        return JSONResponse(drawn[0].to_dict() | {"states": states})

    @app.post("/api/decide")
    def decide(given: Given) -> Response:
        reviewed.decide(given.ids, given.action, given.label)
        return told(given.ids)

    @app.post("/api/undo")
    def undo() -> Response:
        return told(reviewed.undo())

    return app
