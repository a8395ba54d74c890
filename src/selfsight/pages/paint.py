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
from selfsight.pages.page import page
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
    painted: Painted, pictures: Pictures, order: Sequence[str], location: str, guess: Guess | None = None
) -> FastAPI:
    """The app of the page. order: ids of the items that are asked for. location: where they are from. guess: what is
    shown of an item without a mask, to be corrected."""
    app = page("paint.html", ("paint.js", "runs.js"), pictures)

    def now() -> dict[str, object]:
        return {"masked": painted.masked, "classes": painted.counts, "damaged": painted.damaged}

    @app.get("/api/state")
    def state() -> Response:
        about = {"location": location, "by": painted.by, "order": list(order), "guesses": guess is not None}
        with painted.lock:
            return JSONResponse(about | {"now": now()})

    @app.get("/api/items/{item}")
    def one(item: str, height: Side, width: Side) -> Response:
        if item not in pictures:
            return refusal(HTTPStatus.NOT_FOUND, "There is no such item.")
        row = pictures.row(item)
        known = {name: row[name] for name in ("uri", "page", "width", "height", "mode", "depth")}
        with painted.lock:
            regions = painted.regions(item, height, width)
        guessed = None
        if regions is None and guess is not None and (said := guess(item)) is not None:
            guessed = regions_of(said, painted.size(item), (height, width))
        return JSONResponse(known | {"regions": regions, "guess": guessed})

    @app.post("/api/mask")
    def mask(given: Given) -> Response:
        painted.give(given.id, given.height, given.width, [region.model_dump() for region in given.regions])
        with painted.lock:
            return JSONResponse({"now": now()})

    return app
