"""The page on which people draw boxes with the mouse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, TypeAlias

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from selfsight.data.boxes import Box
from selfsight.pages.drawn import Drawn, Objects
from selfsight.pages.gate import refusal
from selfsight.pages.guesses import SECONDS, Guesses, Told
from selfsight.pages.marking import changed, marking
from selfsight.pages.pictures import Pictures

MOST_BOXES = 5_000  # of a picture
MOST_BYTES = 2**22  # of its boxes as the page sends them
Guess: TypeAlias = Callable[[str], Objects]  # what a head finds in an item, each with its score
Edge = Annotated[float, Field(allow_inf_nan=False)]


class Sent(BaseModel):
    """A box, in pixels of the upright file, with the flags that it came with."""

    label: Annotated[str, Field(max_length=200)]
    x0: Edge
    y0: Edge
    x1: Edge
    y1: Edge
    iscrowd: bool = False
    difficult: bool = False
    truncated: bool = False


class Given(BaseModel):
    """All boxes of an item; none where it is background."""

    id: Annotated[str, Field(max_length=64)]
    boxes: Annotated[list[Sent], Field(max_length=MOST_BOXES)]


def drawing(
    drawn: Drawn, pictures: Pictures, order: Sequence[str], location: str, guess: Guess | None = None,
    seconds: float = SECONDS,
) -> FastAPI:  # fmt: skip
    """The app of the page. order: ids of the items that are asked for. location: where they are from. guess: what is
    shown of an item without boxes, to be accepted one by one, if it is there after these seconds."""
    app = marking("draw.html", ("draw.js", "draw.css"), drawn, pictures, order, location, guess is not None)
    guesses = None if guess is None else Guesses(guess, seconds)

    @app.get("/api/items/{item}")
    def one(item: str) -> Response:
        if item not in pictures:
            return refusal(HTTPStatus.NOT_FOUND, "There is no such item.")
        with drawn.lock:
            return JSONResponse(pictures.facts(item) | {"boxes": drawn.boxes(item)})

    @app.get("/api/guesses/{item}")
    def guessed(item: str) -> Response:
        if item not in pictures:
            return refusal(HTTPStatus.NOT_FOUND, "There is no such item.")
        told: Told[Objects] = Told(None) if guesses is None else guesses.told(item)
        return JSONResponse({"objects": told.made or [], "late": told.late, "failed": told.failed})

    @app.post("/api/boxes")
    def boxes(given: Given) -> Response:
        aside = drawn.give(given.id, [Box(**box.model_dump()) for box in given.boxes])
        return changed(drawn, given.id, aside=aside)

    @app.post("/api/undo")
    def undo() -> Response:
        return changed(drawn, drawn.undo())

    return app
