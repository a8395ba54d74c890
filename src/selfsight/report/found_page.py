"""The page and the pictures of a search: what was looked for, and what was found, best first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from selfsight.data.canvases import decoded
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.heads.alike import Spot
from selfsight.heads.pictures import overlay
from selfsight.report.pictures import GREY, as_picture, data_uri
from selfsight.report.template import render

SIDE = 320  # px of the longer side, to which small pictures are enlarged, so that a line is thin beside what it marks
THINNEST = 2  # px of the shorter side, so that a strip is seen, also where the sheet halves it
EDGE = (0, 208, 255)  # which no likeness has


class Found(NamedTuple):
    """A picture with the box in it, and, where a part was looked for, in grey with the likeness over it."""

    picture: Image.Image
    heat: Image.Image | None = None

    @classmethod
    def of(
        cls, pixels: np.ndarray, geometry: Geometry, box: Sequence[float] | None = None, spot: Spot | None = None
    ) -> Found:
        """pixels: [H, W, C] of own depth. box: in these pixels."""
        height, width = pixels.shape[:2]
        scale = SIDE / max(height, width)
        size = max(THINNEST, round(scale * width)), max(THINNEST, round(scale * height))
        picture = as_picture(pixels, geometry).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        heat = None
        if spot is not None:
            small = Image.fromarray(spot.map().astype(np.float32)).resize(picture.size, Image.Resampling.BILINEAR)
            grey = np.asarray(picture.convert("L"))
            heat = overlay(grey, np.asarray(small), float(np.median(spot.heat)), spot.level)
        for image in (picture, heat):
            if box is not None and image is not None:
                x0, y0, x1, y1 = (np.asarray(box) * np.tile(np.divide(size, (width, height)), 2)).round().tolist()
                ImageDraw.Draw(image).rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=EDGE, width=2)
        return cls(picture, heat)


def drawn(items: Collection, rows: pa.Table, encoder: Encoder, spots: Sequence[Spot | None]) -> list[Found]:
    """The pictures of `rows`, each with its spot. One that cannot be read is a grey square."""
    out = [Found(Image.new("RGB", (SIDE, SIDE), GREY))] * len(rows)
    for number, pixels in decoded(items, rows, encoder.geometry.format, None, "Drawing"):
        if not isinstance(pixels, Unreadable):
            spot = spots[number]
            out[number] = Found.of(pixels, encoder.geometry, spot.box if spot else None, spot)
    return out


def build(name: str, query: Found, found: Sequence[Found], captions: Sequence[Sequence[str]], compared: int) -> str:
    """The page as HTML: the picture `name`, and what was found among as many pictures, with two lines of caption."""
    tiles = [
        {"picture": data_uri(each.picture), "heat": data_uri(each.heat) if each.heat else "", "rank": rank, "name": of}
        for each, (rank, of) in zip(found, captions, strict=True)
    ]
    content = {"title": name, "query": data_uri(query.picture), "tiles": tiles, "compared": compared}
    return render("found_page.html", content | {"part": any(each.heat for each in found)})
