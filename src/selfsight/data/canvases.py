"""Resident canvases: every item decoded once into one memory-mapped file, then only indexed.

The file holds the pixels of all items one after another, each [H, W, C] in its own size. It lives
beside the collection in the cache folder and is found again by a key of what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from selfsight.data.collection import Collection
from selfsight.data.decoding import MOST_ELONGATED, Unreadable, decode
from selfsight.data.threads import console, in_threads
from selfsight.errors import SelfsightError


@dataclass
class Canvases:
    """Decoded items, ordered by id.

    `ids` are the items held; `shapes` [N, 2] their height and width; `set_aside` maps the ids that
    could not be decoded to the reason. `window` (low, high) is the intensity that maps to [0, 1].
    """

    rows: pa.Table
    shapes: np.ndarray
    offsets: np.ndarray
    pixels: np.ndarray
    channels: int
    window: tuple[float, float]
    set_aside: dict[str, str]

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def ids(self) -> list[str]:
        """Ids of the items held, ascending."""
        return list(self.rows["id"].to_pylist())

    def __getitem__(self, index: int) -> np.ndarray:
        """Pixels [H, W, C] of the item at `index`, without a copy."""
        height, width = self.shapes[index]
        start = self.offsets[index]
        return self.pixels[start : start + height * width * self.channels].reshape(height, width, self.channels)


def canvas_bytes(rows: pa.Table, channels: int, short_side: int) -> np.ndarray:
    """Bytes that each item's canvas will take, from the header alone."""
    sizes = np.stack([rows["height"].to_numpy(), rows["width"].to_numpy()], 1).astype(np.float64)
    sizes = np.minimum(sizes, MOST_ELONGATED * sizes.min(1, keepdims=True))
    factor = np.minimum(1.0, short_side / sizes.min(1, keepdims=True))
    sides = np.maximum(1, np.round(sizes * factor)).astype(np.int64)
    sizes_in_bytes: np.ndarray = sides.prod(1) * channels * (2 if max(rows["depth"].to_pylist()) > 8 else 1)
    return sizes_in_bytes


def resident(collection: Collection, channels: int, short_side: int) -> Canvases:
    """Decode the collection's usable items, or map what an earlier start decoded from unchanged data.

    Items that fail to decode are set aside with their reason. Raises `SelfsightError` when the disk
    is too small or nothing can be decoded.
    """
    rows = collection.usable
    dtype = np.uint16 if max(rows["depth"].to_pylist()) > 8 else np.uint8
    what = f"{collection.id_hash()} {channels} {short_side} {np.dtype(dtype).name} 1"
    folder = collection.path.parent / "canvases" / hashlib.blake2b(what.encode(), digest_size=8).hexdigest()
    if not (folder / "index.json").exists():
        _decode_all(collection, rows, channels, short_side, dtype, folder)
    index = json.loads((folder / "index.json").read_text())
    keep = [i for i, item in enumerate(rows["id"].to_pylist()) if item not in index["set_aside"]]
    shapes = np.array(index["shapes"], dtype=np.int64).reshape(-1, 2)
    ends = np.cumsum(shapes.prod(1) * channels)
    pixels = np.memmap(folder / "pixels.bin", dtype=dtype, mode="r")
    return Canvases(
        rows.take(keep), shapes, ends - shapes.prod(1) * channels, pixels, channels, tuple(index["window"]),
        index["set_aside"],
    )  # fmt: skip


def _decode_all(
    collection: Collection, rows: pa.Table, channels: int, short_side: int, dtype: type, folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    need, free = int(canvas_bytes(rows, channels, short_side).sum()), shutil.disk_usage(folder).free
    console().print(f"Canvases of {len(rows):,} items take {need / 1e6:,.0f} MB in {folder.parent}", style="dim")
    if need > free:
        raise SelfsightError(
            f"The canvases need {need / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. "
            "Free some, or set SELFSIGHT_CACHE to a larger disk."
        )

    def read(uri: str) -> np.ndarray | Unreadable:
        try:
            return decode(collection.file(uri), channels, short_side, deep=dtype is np.uint16)
        except Unreadable as error:
            return error

    shapes, set_aside, histogram = [], {}, np.zeros(np.iinfo(dtype).max + 1, dtype=np.int64)
    partial = folder / "pixels.bin.partial"
    with partial.open("wb") as out:
        decoded = in_threads(read, rows["uri"].to_pylist(), "Decoding")
        for item, canvas in zip(rows["id"].to_pylist(), decoded, strict=True):
            if isinstance(canvas, Unreadable):
                set_aside[item] = str(canvas)
                continue
            canvas = np.ascontiguousarray(canvas)
            out.write(canvas.data)
            shapes.append(canvas.shape[:2])
            if dtype is np.uint16:
                histogram += np.bincount(canvas.reshape(-1), minlength=len(histogram))
    if not shapes:
        raise SelfsightError(f"None of the {len(rows)} items in {collection.source} could be decoded.")
    os.replace(partial, folder / "pixels.bin")
    index = {"shapes": shapes, "set_aside": set_aside, "window": _window(histogram, dtype)}
    (folder / "index.json.partial").write_text(json.dumps(index))
    os.replace(folder / "index.json.partial", folder / "index.json")  # last: its presence says the rest is whole


def _window(histogram: np.ndarray, dtype: type) -> tuple[float, float]:
    """Intensities that map to [0, 1]: all of 8 bits; the 0.1 to 99.9 percentile of deeper data."""
    if dtype is np.uint8:
        return 0.0, 255.0
    share = np.cumsum(histogram) / histogram.sum()
    low, high = int(np.searchsorted(share, 0.001)), int(np.searchsorted(share, 0.999))
    return float(low), float(max(high, low + 1))
