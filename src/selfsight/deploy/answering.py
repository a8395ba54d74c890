"""From the images of a request to the rows that a head says of them."""

from __future__ import annotations

import asyncio
import base64
import io
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import NamedTuple, TypeVar

from selfsight.data.annotations import coco
from selfsight.data.annotations.masks import read_mask
from selfsight.data.annotations.outlines import Outlines
from selfsight.data.formats.format import Unreadable
from selfsight.deploy.batching import Batching, Room
from selfsight.deploy.received import Page, Refused, Sent, bytes_of, pages_of, pixels_of
from selfsight.heads.detect_voice import DetectAbout
from selfsight.heads.outlined import OutlinedAbout, needs_masks, numbered, outlines_of
from selfsight.heads.placed import Placed
from selfsight.heads.predictions import Row
from selfsight.heads.segment_voice import SegmentAbout
from selfsight.heads.voice import Voice
from selfsight.machine import usable_cores

T = TypeVar("T")
ROOM = 256 * 2**20  # bytes of decoded pixels at a time


class Answered(NamedTuple):
    """What a head says of a page: its row of predictions, pictures as bytes."""

    page: Page
    row: Row


class Answering:
    """Answers of heads about images as they were sent. Decoding has a thread for each core."""

    def __init__(self, batching: Batching) -> None:
        self._batching, self._room = batching, Room(ROOM)
        self._pool = ThreadPoolExecutor(usable_cores(), "decoding")

    async def about(self, head: Voice, images: Sequence[Sent], drawn: bool) -> list[Answered]:
        """A row for each page of each image, in their order, with the columns of `predict`. drawn: whether pictures are
        wanted. Raises `Refused` where none of them can be read."""
        found = [
            each for some in await asyncio.gather(*(self._one(head, one, drawn) for one in images)) for each in some
        ]
        if all(each.row["reason"] for each in found):
            which = "The image" if len(found) == 1 else f"None of {len(found)} images"
            raise Refused(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"{which} can{'not' if len(found) == 1 else ''} be read: {found[0].row['reason']}.",
                "Send JPEG, PNG, TIFF or another image that selfsight import takes.",
            )
        return found

    async def pages(self, sent: Sent) -> list[Page]:
        """What the header of an image says. Raises `Refused` where it cannot be read."""
        pages = await self._decoding(pages_of, sent)
        if pages[0].reason:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"The image cannot be read: {pages[0].reason}.")
        return pages

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    async def _one(self, head: Voice, sent: Sent, drawn: bool) -> list[Answered]:
        pages = await self._decoding(pages_of, sent)
        taken = await self._room.take(bytes_of(pages, head.geometry.format))
        try:
            placed = await self._decoding(_placed, head, sent, pages)
            asked = [self._batching.say(head, one, drawn) for one in placed if isinstance(one, Placed)]
            said = iter(await asyncio.gather(*asked))
        finally:
            await self._room.give(taken)
        found = []
        for page, one in zip(pages, placed, strict=True):
            row = page.told | ({"reason": one} if isinstance(one, str) else next(said)) | {"head": head.digest}
            found.append(Answered(page, row))
        return found

    def _decoding(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


def _placed(head: Voice, sent: Sent, pages: list[Page]) -> list[Placed | str]:
    """Each page as inputs of a head, or the reason why it cannot be."""
    fine = [page for page in pages if not page.reason]
    decoded = iter(pixels_of(sent, fine, head.geometry.format) if fine else [])
    found: list[Placed | str] = []
    for page in pages:
        if page.reason:
            found.append(page.reason)
            continue
        try:
            pixels = next(decoded)
            if isinstance(pixels, Unreadable):
                raise pixels
            found.append(head.place(0, pixels))
        except Unreadable as reason:
            found.append(str(reason))
    return found


def plain(value: object) -> object:
    """A value for JSON: a number that is none is null, the bytes of a picture are base64."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def as_coco(head: Voice, found: Sequence[Answered]) -> bytes:
    """What a head that finds objects or classes says, as a COCO file. Raises `Refused` for another head."""
    about = check_coco(head)
    images: dict[str, Outlines] = {}
    for number, (page, row) in enumerate(found, 1):
        if row["reason"]:
            continue
        name = page.row["uri"] or f"image-{number}"
        mask = read_mask(io.BytesIO(row["mask"])) if needs_masks(about) else None
        outlines = outlines_of(row, about, (page.row["width"], page.row["height"]), mask)
        images[f"{number}-{name}" if name in images else name] = outlines
    return coco.write(images, numbered(about))


def check_coco(head: Voice) -> OutlinedAbout:
    """What a head that finds objects or classes says of itself. Raises `Refused` for another head."""
    if isinstance(head.about, SegmentAbout | DetectAbout):
        return head.about
    raise Refused(
        HTTPStatus.BAD_REQUEST, f"COCO holds objects and regions, and this head is for {head.about.task}.",
        "Ask for JSON.",
    )  # fmt: skip
