"""Labels of parts of items: the classes of boxes, and of what masks hold, doubted by the features of their crops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from selfsight.curation.label_errors import label_errors, worst_regions
from selfsight.curation.ranking import Ranking
from selfsight.data.annotations.outlines import BACKGROUND, IGNORED, Outline, Outlines, is_polygons
from selfsight.data.boxes import Box
from selfsight.data.canvases import decoded
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.labels import Labels
from selfsight.data.masks import Masks
from selfsight.data.pixels import resize
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import BATCH, encode

LEAST_SIDE = 4  # px; of smaller regions nobody can say what they are


@dataclass(frozen=True)
class Regions:
    """Parts of items that have a class.

    items: the place of the item that each is of, among all usable ones [R]. boxes: around them, in pixels of the
    upright item.
    """

    items: np.ndarray
    boxes: list[Box]

    @classmethod
    def of(cls, items: Collection, path: str | None) -> Regions:
        """The boxes of the items, or the boxes around the regions of each class where they have masks. path: of a COCO
        file, or a folder of annotations; the collection's columns if None."""
        given = Labels.of(items, path=path, kind="boxes")  # of the column, or drawn by people
        if given.kind == "none":
            masks = Labels.of(items, path=path, kind="masks")
            if masks.kind == "none":
                return cls(np.empty(0, np.int64), [])
            read = Masks.of(items, masks)
            rows, values = read.labels.rows, [_around(*each) for each in zip(
                read.values, read.labels.rows["width"].to_pylist(), read.labels.rows["height"].to_pylist(), strict=True
            )]  # fmt: skip
        else:
            known = given.labelled()
            rows = known.rows
            values = [[box for box in value if isinstance(box, Box)] for value in known.values if value is not None]  # type: ignore[union-attr]
        place = {item: number for number, item in enumerate(items.usable["id"].to_pylist())}
        owners = [place[item] for item in rows["id"].to_pylist()]
        pairs = [
            (owner, box)
            for owner, boxes in zip(owners, values, strict=True)
            for box in boxes
            if not box.iscrowd and min(box.x1 - box.x0, box.y1 - box.y0) >= LEAST_SIDE
        ]
        return cls(np.array([owner for owner, _ in pairs], np.int64), [box for _, box in pairs])


def _around(value: dict[str, object], width: int, height: int) -> list[Box]:
    """The boxes around the regions of a mask, of each class or each object."""
    regions = {name: [of] if isinstance(of, dict) or is_polygons(of) else of for name, of in value.items()}  # type: ignore[arg-type]
    objects = [Outline(name, one) for name, several in regions.items() for one in several  # type: ignore[attr-defined]
               if name not in (BACKGROUND, IGNORED)]  # fmt: skip
    return list(Outlines(tuple(objects), (width, height)).boxes.boxes)


def region_errors(items: Collection, encoder: Encoder, regions: Regions) -> tuple[Ranking, dict[int, Box]]:
    """(the items whose regions have the most doubtful classes, by their places among the usable ones; {place: the
    region that it is ranked by})."""
    names = sorted({box.label for box in regions.boxes})
    numbers, parts = [], []
    for which, features in encode(encoder, _crops(items, encoder, regions)):
        numbers += which
        parts.append(features)
    if len(names) < 2 or not parts:
        empty = np.empty(0, np.int64)
        return Ranking("label_errors", empty, np.empty(0), 0, 0, 0, ()), {}
    known, features = np.array(numbers, np.int64), np.concatenate(parts)
    order = np.argsort(known)
    known, features = known[order], features[order]
    classes = np.array([names.index(regions.boxes[number].label) for number in known.tolist()])
    owners = np.unique(regions.items[known], return_inverse=True)
    ranking, worst = worst_regions(label_errors(features, classes, names, owners[1]), owners[1])
    places = owners[0][ranking.numbers]
    boxes = {int(place): regions.boxes[int(known[region])] for place, region in zip(places, worst, strict=True)}
    return ranking.of(owners[0]), boxes


def _crops(items: Collection, encoder: Encoder, regions: Regions) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of (numbers of regions, the crops as the encoder takes them): each region with a tenth of its sides
    around it, squashed to the encoder's input."""
    asked = np.unique(regions.items)
    of = {int(item): np.flatnonzero(regions.items == item).tolist() for item in asked}
    rows = items.usable.take(pa.array(asked))
    numbers: list[int] = []
    crops: list[np.ndarray] = []
    for number, pixels in decoded(items, rows, encoder.geometry.format, None, "Looking at regions"):
        if isinstance(pixels, Unreadable):
            continue
        for region in of[int(asked[number])]:
            numbers.append(region)
            crops.append(crop(pixels, regions.boxes[region], encoder.geometry.size))
        while len(crops) >= BATCH:
            yield numbers[:BATCH], encoder.geometry.to_input(np.stack(crops[:BATCH]))
            numbers, crops = numbers[BATCH:], crops[BATCH:]
    if crops:
        yield numbers, encoder.geometry.to_input(np.stack(crops))


def crop(pixels: np.ndarray, box: Box, side: int) -> np.ndarray:
    """[side, side, C] the box of pixels [H, W, C] and a tenth of its sides around it."""
    height, width = pixels.shape[:2]
    wide, tall = 0.1 * (box.x1 - box.x0), 0.1 * (box.y1 - box.y0)
    x0, y0 = max(0, int(box.x0 - wide)), max(0, int(box.y0 - tall))
    x1, y1 = min(width, int(np.ceil(box.x1 + wide))), min(height, int(np.ceil(box.y1 + tall)))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return resize(pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)], side, side)
