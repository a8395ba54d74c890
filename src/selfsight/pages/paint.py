"""The page on which people paint masks with a brush."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Annotated, TypeAlias

from fastapi import FastAPI, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from selfsight.data.annotations.outlines import MaskValue
from selfsight.pages.gate import refusal
from selfsight.pages.guesses import SECONDS, Guesses, Told
from selfsight.pages.marking import changed, marking
from selfsight.pages.painted import MOST_REGIONS, Painted, regions_of
from selfsight.pages.pictures import SIDES, Pictures

MOST_BYTES = 2**22  # of a mask as the page sends it
Guess: TypeAlias = Callable[[str], MaskValue | None]  # what a head makes of an item
Side = Annotated[int, Query(ge=1, le=SIDES["large"])]


class Region(BaseModel):
    """The pixels of a class, or of one object of it (`told`): run lengths as COCO's text."""

    name: Annotated[str, Field(max_length=200)]
    told: bool
    counts: Annotated[str, Field(max_length=MOST_BYTES)]


class Given(BaseModel):
    """A mask, painted on a picture of this size."""

    id: Annotated[str, Field(max_length=64)]
    height: Annotated[int, Field(ge=1, le=SIDES["large"])]
    width: Annotated[int, Field(ge=1, le=SIDES["large"])]
    regions: Annotated[list[Region], Field(max_length=MOST_REGIONS)]


def painting(
    painted: Painted, pictures: Pictures, order: Sequence[str], location: str, guess: Guess | None = None,
    seconds: float = SECONDS,
) -> FastAPI:  # fmt: skip
    """The app of the page. order: ids of the items that are asked for. location: where they are from. guess: what is
    shown of an item without a mask, to be corrected, if it is there after these seconds."""
    app = marking("paint.html", ("paint.js", "runs.js"), painted, pictures, order, location, guess is not None)
    guesses = None if guess is None else Guesses(guess, seconds)

    @app.get("/api/items/{item}")
    def one(item: str, height: Side, width: Side) -> Response:
        if item not in pictures:
            return refusal(HTTPStatus.NOT_FOUND, "There is no such item.")
        with painted.lock:
            regions = painted.regions(item, height, width)
        told: Told[MaskValue | None] = Told(None)
        if regions is None and guesses is not None:
            told = guesses.told(item)
        guessed = None if told.made is None else regions_of(told.made, painted.size(item), (height, width))
        said = {"regions": regions, "guess": guessed, "late": told.late, "failed": told.failed}
        return JSONResponse(pictures.facts(item) | said)

    @app.post("/api/mask")
    def mask(given: Given) -> Response:
        painted.give(given.id, given.height, given.width, [region.model_dump() for region in given.regions])
        return changed(painted, given.id)

    return app
