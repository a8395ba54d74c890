"""What a head that says where draws of each item: a map, a mask and an overlay, in the file's own pixels.

`maps/NAME.png` is 16-bit grey, linear from 0: 16384 is the threshold from which a pixel is in the mask, 65535 four
times it and all above. `masks/NAME.png` is 1 bit. `overlays/NAME.png` is the picture in grey with the map over it in
colour and the mask outlined. NAME is the item's uri without its suffix; two that differ in suffix only keep it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.ndimage import binary_erosion

from selfsight.data.annotations.folders import names_of
from selfsight.data.geometry import Geometry
from selfsight.errors import SelfsightError
from selfsight.files import write_whole
from selfsight.heads.predictions import FORMATS

AT_THRESHOLD = 16_384  # the grey of the threshold in a map
KINDS = ("maps", "masks", "overlays")
JOURNAL = "predictions.jsonl.partial"  # rows of a command that was stopped
STRONGEST = 0.65  # share of colour in an overlay
OUTLINE = (255, 255, 255)
STRIP = 256  # rows that are drawn at a time, so that a large picture takes little memory beside its own


def is_folder(out: str, draws: bool) -> bool:
    """Whether predictions under this name are a folder with pictures: it has no suffix of a table. draws: whether the
    head has pictures. Raises `SelfsightError` where the name is a file."""
    path = Path(out)
    if not draws or "://" in out or (path.suffix.lower() in FORMATS and not out.endswith("/")):
        return False
    if path.is_file():
        raise SelfsightError(f"{out} is a file. Give a folder, or a file that ends in one of {', '.join(FORMATS)}.")
    return True


class Pictures:
    """The pictures of some rows in a folder. done: {id: its row of predictions} of those that were drawn before by a
    command that was stopped. levels: the values of a map from which overlays are coloured, and of the threshold."""

    shown: ClassVar[str] = "map"  # the column with the path of the first of an item's pictures

    def __init__(self, folder: Path, rows: pa.Table, head: str, levels: tuple[float, float]) -> None:
        self.folder, self.rows, self.head = folder, rows, head
        self.usual, self.threshold = levels
        self.names = names_of(rows["uri"].to_pylist(), rows["page"].to_pylist())
        self.ids: list[str] = rows["id"].to_pylist()
        self.contents = dict(zip(self.ids, rows["content_hash"].to_pylist(), strict=True))
        self.done = self._before()

    def _before(self) -> dict[str, dict[str, object]]:
        """Rows of the journal that are of this head, of the same content, and whose map is there."""
        try:
            lines = (self.folder / JOURNAL).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return {}
        found = {}
        for line in lines:
            try:
                row = json.loads(line)
                same = row.pop("head") == self.head and row.pop("content") == self.contents.get(row["id"], "")
                if same and (self.folder / row[self.shown]).is_file():
                    found[row.pop("id")] = row
            except (ValueError, KeyError, TypeError, AttributeError):  # a kill may have cut it
                continue
        return found

    def draw(self, number: int, grey: np.ndarray, scores: np.ndarray, row: Mapping[str, object]) -> dict[str, object]:
        """Draw the pictures of a row, of the picture in `grey` [H, W] uint8 and its map `scores` [H, W]; returns its
        predictions with the path of the map, relative to the folder."""
        name, mask = self.names[number], scores >= self.threshold
        self._write("maps", name, Image.fromarray(as_grey(scores, self.threshold)))
        self._write("masks", name, Image.fromarray(mask))
        self._write("overlays", name, overlay(grey, scores, self.usual, self.threshold))
        row = {**row, "map": f"maps/{name}.png"}
        line = {"id": self.ids[number], "content": self.contents[self.ids[number]], "head": self.head} | row
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return row

    def _write(self, kind: str, name: str, image: Image.Image) -> None:
        path = self.folder / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, as_png(image))


def as_png(image: Image.Image) -> bytes:
    """The bytes of a PNG."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def as_grey(scores: np.ndarray, threshold: float) -> np.ndarray:
    """A map [H, W] as uint16, `AT_THRESHOLD` where it has the value of the threshold."""
    grey = np.empty(scores.shape, np.uint16)
    for start in range(0, len(scores), STRIP):
        rows = np.s_[start : start + STRIP]
        scaled = np.asarray(scores[rows], np.float64) / max(threshold, 1e-12) * AT_THRESHOLD
        grey[rows] = np.floor(scaled).clip(0, 65535)  # at the threshold exactly where the mask is
    return grey


def in_grey(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Pixels [H, W, C] of own depth as grey [H, W] uint8, through the geometry's intensity window."""
    grey = np.empty(pixels.shape[:2], np.uint8)
    for start in range(0, len(pixels), STRIP):
        rows = np.s_[start : start + STRIP]
        unit = geometry.unit_of(pixels[rows])
        grey[rows] = (255.0 * unit[:, :, :3].mean(2)).round()
    return grey


def overlay(grey: np.ndarray, scores: np.ndarray, usual: float, threshold: float) -> Image.Image:
    """A picture [H, W] uint8 with the map over it, from the `usual` value on, yellow, to red as far above the threshold
    as that is above the usual, and the mask outlined in white."""
    drawn = np.empty((*grey.shape, 3), np.uint8)
    for start in range(0, len(grey), STRIP):
        rows = np.s_[start : start + STRIP]
        above = (np.asarray(scores[rows], np.float32) - usual) / max(2.0 * (threshold - usual), 1e-12)
        heat = above.clip(0.0, 1.0)[:, :, None]
        colour = np.concatenate([np.full_like(heat, 255.0), 220.0 * (1.0 - heat), np.zeros_like(heat)], 2)
        share = STRONGEST * heat**0.5
        drawn[rows] = ((1.0 - share) * grey[rows, :, None] + share * colour).round().clip(0, 255)
    mask = scores >= threshold
    drawn[mask & ~binary_erosion(mask, iterations=max(1, min(grey.shape) // 300))] = OUTLINE
    return Image.fromarray(drawn)
