"""Pictures of items for a page: small ones for a grid, large ones to look at, decoded when they are asked for."""

from __future__ import annotations

import io
import math
import threading

from PIL import Image

from selfsight.data.canvases import COLUMNS, measure_format
from selfsight.data.collection import Collection
from selfsight.data.decoding import read_items
from selfsight.data.formats.format import Unreadable
from selfsight.data.geometry import Geometry
from selfsight.data.pixels import MOST_ELONGATED
from selfsight.machine import usable_cores
from selfsight.report.pictures import as_picture

SIDES = {"small": 200, "large": 2000}  # px of the longer side at most
EXACT = {"small": 64, "large": 512}  # px: pictures up to this side lose nothing, as they are enlarged to be looked at
QUALITY = {"small": 82, "large": 92}  # of JPEG


class Pictures:
    """The pictures of a collection's usable items, through its own intensity window, in 8 bits.

    Safe to use from many threads; as many pictures are decoded at a time as there are cores.
    """

    def __init__(self, items: Collection) -> None:
        self.rows = items.usable
        self._source = items.source
        self._numbers = {item: number for number, item in enumerate(self.rows["id"].to_pylist())}
        format = measure_format(items)
        none = (0.0,) * format.channels
        self._geometry = Geometry(format.channels, 1, format.window, none, none, format.depth, format.mode)
        self._turns = threading.BoundedSemaphore(usable_cores())

    def __contains__(self, item: str) -> bool:
        return item in self._numbers

    def row(self, item: str) -> dict[str, object]:
        """What the collection says of the item with this id, one of the usable ones."""
        [row] = self.rows.slice(self._numbers[item], 1).to_pylist()
        return row  # type: ignore[no-any-return]

    def facts(self, item: str) -> dict[str, object]:
        """What a page shows of an item beside its picture."""
        row = self.row(item)
        return {name: row[name] for name in ("uri", "page", "width", "height", "mode", "depth")}

    def encoded(self, item: str, size: str) -> tuple[bytes, str]:
        """(bytes, media type) of the picture of an item: JPEG, or PNG where it is small. size: one of `SIDES`.

        Raises `Unreadable` with the reason.
        """
        with self._turns:
            picture = self._picture(self._numbers[item], SIDES[size])
        out, exact = io.BytesIO(), max(picture.size) <= EXACT[size]
        if exact:
            picture.save(out, "PNG")
        else:
            picture.save(out, "JPEG", quality=QUALITY[size])
        return out.getvalue(), "image/png" if exact else "image/jpeg"

    def _picture(self, number: int, side: int) -> Image.Image:
        row = self.rows.select(COLUMNS).slice(number, 1).to_pylist()
        height, width = self.rows["height"][number].as_py(), self.rows["width"][number].as_py()
        short, long = sorted((height, width))
        # Decoding to a short side is quick, but it cuts pictures that are very long.
        wanted = math.ceil(side * short / long) if long <= MOST_ELONGATED * short else None
        [pixels] = read_items(self._source, row, self._geometry.format, wanted)
        if isinstance(pixels, Unreadable):
            raise pixels
        picture = as_picture(pixels, self._geometry)
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
        return picture
