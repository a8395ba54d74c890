"""The page on which people label items."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from selfsight.pages.answers import Answers
from selfsight.pages.gate import refusal
from selfsight.pages.neighbours import Suggest, Watch
from selfsight.pages.page import page
from selfsight.pages.pictures import Pictures

SHOWN = 5  # suggestions of an item


class Given(BaseModel):
    """An answer.

    id: of the item.
    labels: the class, or several.
    """

    id: Annotated[str, Field(max_length=64)]
    labels: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=200)]


def labelling(
    answers: Answers,
    pictures: Pictures,
    order: Sequence[str],
    location: str,
    suggest: Suggest | None = None,
    watch: Watch | None = None,
) -> FastAPI:
    """The app of the page.

    order: ids of the items that are asked for.
    location: where they are from, as people call it.
    suggest: what may be their labels.
    watch: how much the last labels changed that.
    """
    app = page("label.html", ("label.js",), pictures)
    asked = set(order)

    def now() -> dict[str, object]:
        return {
            "classes": [{"name": name, "count": count} for name, count in answers.counts.items()],
            "labelled": sum(item in asked for item in answers.labels),
            "second": answers.second,
            "disputed": answers.disputed,
            "agreement": [each.to_dict() for each in answers.agreement],
            "change": watch.change.to_dict() if watch and watch.change else None,
            "damaged": answers.damaged,
        }

    def told(item: str) -> Response:
        with answers.lock:
            said = {"id": item, "label": answers.label(item), "mine": answers.own(item), "now": now()}
        return JSONResponse(said)

    @app.get("/api/state")
    def state() -> Response:
        about = {"location": location, "by": answers.by, "kind": answers.kind, "order": list(order)}
        with answers.lock:
            answers.refresh()
            said = {"labels": answers.labels, "mine": answers.mine, "suggests": suggest is not None, "now": now()}
        return JSONResponse(about | said)

    @app.get("/api/items/{item}")
    def one(item: str) -> Response:
        if item not in pictures:
            return refusal(HTTPStatus.NOT_FOUND, "There is no such item.")
        with answers.lock:  # the first answer of a person is their own: what others said is shown after it
            blind = not answers.own(item) and not answers.in_dispute(item)
            opinions = {} if blind else answers.opinions(item)
        said = suggest([item]).get(item, []) if suggest else []
        suggestions = [{"name": name, "probability": share} for name, share in said[:SHOWN]]
        return JSONResponse(pictures.facts(item) | {"opinions": opinions, "suggestions": suggestions})

    @app.post("/api/answer")
    def answer(given: Given) -> Response:
        answers.give(given.id, given.labels)
        if watch:
            watch.answered()
        return told(given.id)

    @app.post("/api/undo")
    def undo() -> Response:
        item = answers.undo()
        return JSONResponse({"id": None}) if item is None else told(item)

    return app
