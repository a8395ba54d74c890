"""Sheets of objects that were found without labels: one of each cluster, and one of pictures with their objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from selfsight.data.canvases import decoded
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.files import write_whole
from selfsight.heads.discovered import Discovered
from selfsight.heads.segment_pictures import COLOURS
from selfsight.report.pictures import GREY, as_picture
from selfsight.report.sheet import TILE, contact_sheet

SHOWN = 40  # objects on the sheet of a cluster, and pictures on that of all
MARGIN = 0.15  # of the longer side of an object, that its sheet shows around it


def draw(
    items: Collection, rows: pa.Table, encoder: Encoder, found: Sequence[Discovered], names: Sequence[str], out: Path
) -> dict[str, Path]:
    """{name of a cluster: its sheet} in OUT/clusters; OUT/discover.png shows the first pictures with their objects.

    names: of the cluster of each object of `found`, whose rows are numbers of `rows`. A file is decoded once.
    """
    shown = _shown(found, names)
    first = sorted({one.row for one in found})[:SHOWN]
    unread = Image.new("RGB", (TILE, TILE), GREY)
    crops: dict[int, Image.Image] = {}
    marked: dict[int, Image.Image] = {}
    wanted = sorted({found[i].row for several in shown.values() for i in several} | set(first))
    of_row: dict[int, list[int]] = {}
    for i, one in enumerate(found):
        of_row.setdefault(one.row, []).append(i)
    for place, pixels in decoded(items, rows.take(wanted), encoder.geometry.format, None, "Drawing"):
        if isinstance(pixels, Unreadable):  # since it was looked at
            continue
        picture, mine = as_picture(pixels, encoder.geometry).convert("RGB"), of_row[wanted[place]]
        crops |= {i: _cropped(picture, found[i].box) for i in mine}
        marked[wanted[place]] = _marked(picture, [found[i].box for i in mine], [names[i] for i in mine])
    uris = rows["uri"].to_pylist()
    sheets = {name: out / "clusters" / f"{name}.png" for name in shown}
    (out / "clusters").mkdir(exist_ok=True)
    for name, several in shown.items():
        captions = [[uris[found[i].row]] for i in several]
        write_whole(sheets[name], contact_sheet([crops.get(i, unread) for i in several], captions))
    tiles = [marked.get(number, unread) for number in first]
    write_whole(out / "discover.png", contact_sheet(tiles, [[uris[number]] for number in first]))
    return sheets


def _shown(found: Sequence[Discovered], names: Sequence[str]) -> dict[str, list[int]]:
    """{cluster: the objects on its sheet}, spread evenly over how near they are to its middle, so that a cluster of two
    kinds shows both."""
    shown = {}
    for name in sorted(set(names)):
        mine = np.array([i for i, other in enumerate(names) if other == name])
        features = np.stack([found[i].feature for i in mine])
        nearest = mine[np.argsort(-(features @ features.mean(0)), kind="stable")]
        shown[name] = [int(i) for i in nearest[spread(len(nearest), SHOWN)]]
    return shown


def _cropped(picture: Image.Image, box: Sequence[float]) -> Image.Image:
    """The picture in a box and a little around it, at most `TILE` px long."""
    x0, y0, x1, y1 = box
    margin = MARGIN * max(x1 - x0, y1 - y0)
    edges = max(0, x0 - margin), max(0, y0 - margin), min(picture.width, x1 + margin), min(picture.height, y1 + margin)
    crop = picture.crop((int(edges[0]), int(edges[1]), int(np.ceil(edges[2])), int(np.ceil(edges[3]))))
    crop.thumbnail((TILE, TILE), Image.Resampling.BICUBIC)
    return crop


def _marked(picture: Image.Image, boxes: Sequence[Sequence[float]], names: Sequence[str]) -> Image.Image:
    """The picture, at most `TILE` px long, with its objects; one colour a cluster."""
    scale = TILE / max(picture.size)
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    pen = ImageDraw.Draw(small)
    for box, name in zip(boxes, names, strict=True):
        x0, y0, x1, y1 = (edge * scale for edge in box)
        tone = tuple(COLOURS[(int(name.split("-")[-1]) - 1) % len(COLOURS)])
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=tone, width=2)
    return small
