"""Canvases: every item's pixels as training holds them, decoded once beforehand or over and over on the way.

Resident canvases lie in one memory-mapped file of the cache folder, found again by a key of what they were
made from. Streamed canvases are decoded in threads, ahead of the step that wants them. Both give the
same pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfsight.console import console, track
from selfsight.data.cache import cache_folder
from selfsight.data.collection import Collection
from selfsight.data.decoding import Row, read_items
from selfsight.data.formats.format import Unreadable
from selfsight.data.geometry import Geometry
from selfsight.data.importers import refusal
from selfsight.data.pixels import MOST_ELONGATED, PixelFormat
from selfsight.data.spread import spread
from selfsight.data.threads import ordered
from selfsight.errors import DataError, MachineError, SelfsightError, in_words
from selfsight.files import clear_left, own_folder

PAGES = 16  # of one file read in one go: a video is then decoded forward, not sought for each frame
COLUMNS = ["uri", "page", "mode", "bytes", "modified_ns"]  # of a `Row`: what reading an item takes
SAMPLE = 256  # items that the intensity window is measured on,
SAMPLE_SIDE = 512  # at this shorter side at most, so that few of them are in memory at full size


class Canvases:
    """Items of a collection at one size, in the order of ids: `rows`, or all usable items by default.

    rows: the items, `len(canvases)` of them, unreadable ones included.
    format: mode, depth and intensity window.
    unit: the pixel values that stand for 0 and 1.
    sides: [N, 2] height and width of the canvases.
    set_aside: {id: reason} of the items known to be unreadable.
    strict: whether the first such item is an error instead.
    """

    def __init__(
        self,
        collection: Collection,
        format: PixelFormat,
        short_side: int,
        strict: bool = False,
        rows: pa.Table | None = None,
    ) -> None:
        self.strict = strict
        self.collection = collection
        self.rows = (collection.usable if rows is None else rows.sort_by("id")).combine_chunks()
        self.ids: list[str] = self.rows["id"].to_pylist()
        self.format = format
        self.short_side = short_side
        self.unit = (0.0, 1.0) if format.depth == 32 else format.window
        self.sides = canvas_sides(self.rows, short_side)
        self.set_aside: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> np.ndarray:
        """Pixels [H, W, C] of the item at `index`: uint8, uint16 or float16. Raises `Unreadable`."""
        raise NotImplementedError

    def prefetch(self, indices: Sequence[int]) -> None:
        """These items will be asked for soon."""

    def cancel(self) -> None:
        """Drop what `prefetch` announced."""

    def geometry(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Geometry:
        """The geometry of the pixels held, which `mean` and `std` of each channel normalise."""
        return Geometry(
            self.format.channels, self.short_side, self.unit, mean, std, self.format.depth, self.format.mode
        )

    def sample(self, items: int) -> Iterator[tuple[int, np.ndarray]]:
        """(index, pixels) of up to `items` items that can be read, spread evenly over the collection."""
        chosen = spread(len(self), items).tolist()
        for start in range(0, len(chosen), 64):
            self.prefetch(chosen[start : start + 64])
            for index in chosen[start : start + 64]:
                try:
                    yield index, self[index]
                except Unreadable:
                    continue

    def _put_aside(self, item: str, reason: str) -> None:
        self.set_aside[item] = reason
        if self.strict:
            raise refusal(self.collection.uri_of(item), reason)

    def _held(self, pixels: np.ndarray) -> np.ndarray:
        """Decoded pixels as they are kept: floats as float16 with the window at 0 to 1, so that none overflows."""
        if self.format.depth < 32:
            return pixels
        low, high = self.format.window
        return ((pixels - np.float32(low)) / np.float32(high - low)).clip(-1.0, 2.0).astype(np.float16)


class Resident(Canvases):
    """Canvases decoded once into the cache folder; a second start on unchanged data maps them and reads no image."""

    def __init__(
        self,
        collection: Collection,
        format: PixelFormat,
        short_side: int,
        strict: bool = False,
        rows: pa.Table | None = None,
    ) -> None:
        super().__init__(collection, format, short_side, strict, rows)
        self.dtype = np.dtype({8: np.uint8, 16: np.uint16, 32: np.float16}[format.depth])
        folder = folder_of(collection, format, short_side, rows)
        if not (folder / "about.json").exists():
            try:
                self._decode_all(folder)
            except OSError as error:  # a full disk, most likely
                raise MachineError(
                    f"Canvases cannot be written to {folder.parent}: {in_words(error)}. "
                    "Make room, set SELFSIGHT_CACHE to another disk, or give --canvases stream."
                ) from None
        for item, reason in json.loads((folder / "about.json").read_text(encoding="utf-8"))["set_aside"].items():
            self._put_aside(item, reason)
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            self.shapes, self.offsets = index["shapes"], index["offsets"]
        self.pixels = np.memmap(folder / "pixels.bin", dtype=self.dtype, mode="r")

    def __getitem__(self, index: int) -> np.ndarray:
        height, width = self.shapes[index].tolist()
        if not height:
            raise Unreadable(self.set_aside[self.ids[index]])
        start, channels = int(self.offsets[index]), self.format.channels
        return self.pixels[start : start + height * width * channels].reshape(height, width, channels)

    def _decode_all(self, folder: Path) -> None:
        """Decode into a folder of this process's own, which then takes its place in one step."""
        clear_left(folder)
        own = own_folder(folder)
        own.mkdir(parents=True, exist_ok=True)
        try:
            self._write(own)
            if folder.exists() and not (folder / "about.json").exists():
                shutil.rmtree(folder)
            if not folder.exists():  # else another process was quicker
                os.replace(own, folder)
        finally:
            shutil.rmtree(own, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        shapes = np.zeros((len(self), 2), dtype=np.int32)
        offsets = np.zeros(len(self), dtype=np.int64)
        at = 0
        with (folder / "pixels.bin").open("wb") as out:
            for index, pixels in decoded(self.collection, self.rows, self.format, self.short_side, "Decoding"):
                if isinstance(pixels, Unreadable):
                    self._put_aside(self.ids[index], str(pixels))
                    continue
                pixels = self._held(pixels)
                out.write(pixels.data)
                shapes[index], offsets[index] = pixels.shape[:2], at
                at += pixels.size
        if not at:
            raise nothing_decoded(self.collection, list(self.set_aside.values()))
        np.savez(folder / "index.npz", shapes=shapes, offsets=offsets, ids=np.array(self.ids, dtype="S32"))
        about: dict[str, Any] = {"collection": str(self.collection.path), "location": self.collection.about.location}
        about |= {"short_side": self.short_side, "format": str(self.format), "set_aside": self.set_aside}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


class Streamed(Canvases):
    """Canvases decoded whenever they are asked for, in `workers` threads as soon as `prefetch` names them."""

    def __init__(
        self,
        collection: Collection,
        format: PixelFormat,
        short_side: int,
        workers: int,
        strict: bool = False,
        rows: pa.Table | None = None,
    ) -> None:
        super().__init__(collection, format, short_side, strict, rows)
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")
        self._coming: dict[int, Future[np.ndarray | Unreadable]] = {}

    def prefetch(self, indices: Sequence[int]) -> None:
        for index in indices:
            if index not in self._coming and self.ids[index] not in self.set_aside:
                self._coming[index] = self._pool.submit(self._decode, index)

    def cancel(self) -> None:
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()

    def __getitem__(self, index: int) -> np.ndarray:
        if self.ids[index] in self.set_aside:
            raise Unreadable(self.set_aside[self.ids[index]])
        future = self._coming.pop(index, None)
        pixels = future.result() if future else self._decode(index)
        if isinstance(pixels, Unreadable):
            self._put_aside(self.ids[index], str(pixels))
            if len(self.set_aside) == len(self):
                raise nothing_decoded(self.collection, list(self.set_aside.values()))
            raise pixels
        return pixels

    def _decode(self, index: int) -> np.ndarray | Unreadable:
        row = self.rows.select(COLUMNS).slice(index, 1).to_pylist()
        pixels = read_items(self.collection.source, row, self.format, self.short_side)[0]
        return pixels if isinstance(pixels, Unreadable) else self._held(pixels)


class Part(Canvases):
    """Some items of other canvases, those at `places`, ascending; nothing is decoded twice."""

    def __init__(self, whole: Canvases, places: np.ndarray) -> None:
        super().__init__(whole.collection, whole.format, whole.short_side, whole.strict, whole.rows.take(places))
        self.whole, self.places, self.set_aside = whole, places.tolist(), whole.set_aside

    def __getitem__(self, index: int) -> np.ndarray:
        return self.whole[self.places[index]]

    def prefetch(self, indices: Sequence[int]) -> None:
        self.whole.prefetch([self.places[index] for index in indices])

    def cancel(self) -> None:
        self.whole.cancel()


def folder_of(collection: Collection, format: PixelFormat, short_side: int, rows: pa.Table | None = None) -> Path:
    """Where the resident canvases of `rows`, or of all usable items, lie, if they were made."""
    what = f"{collection.id_hash(rows)} {format.mode} {format.depth} {format.window} {short_side} 2"
    return cache_folder() / "canvases" / hashlib.blake2b(what.encode(), digest_size=8).hexdigest()


def remove_canvases(ids: set[str]) -> None:
    """Delete every folder of resident canvases that holds one of `ids`, or was never finished and may hold it."""
    for folder in sorted((cache_folder() / "canvases").glob("*")):
        held = _held(folder, ids)
        if held is None or held:
            shutil.rmtree(folder)


def decoded_before(ids: set[str]) -> set[str]:
    """Those of `ids` of which resident canvases are kept."""
    return {item for folder in (cache_folder() / "canvases").glob("*") for item in _held(folder, ids) or ()}


def _held(folder: Path, ids: set[str]) -> set[str] | None:
    """Those of `ids` whose canvases are in a folder; None if it was never finished."""
    try:
        with np.load(folder / "index.npz", allow_pickle=False) as index:
            return ids & {item.decode() for item in index["ids"].tolist()}
    except (OSError, ValueError, KeyError, EOFError):
        return None


def canvas_bytes(rows: pa.Table, format: PixelFormat, short_side: int) -> int:
    """Bytes that the canvases of `rows` will take, from the headers alone."""
    return int(canvas_sides(rows, short_side).prod(1).sum()) * format.channels * (1 if format.depth == 8 else 2)


def canvas_sides(rows: pa.Table, short_side: int) -> np.ndarray:
    """[N, 2] height and width of the canvases of `rows`, from the headers alone; see `pixels.fit`."""
    sizes = np.stack([rows["height"].to_numpy(), rows["width"].to_numpy()], 1).astype(np.float64)
    sizes = np.minimum(sizes, MOST_ELONGATED * sizes.min(1, keepdims=True))
    factor = np.minimum(1.0, short_side / sizes.min(1, keepdims=True))
    sides: np.ndarray = np.maximum(1, np.round(sizes * factor)).astype(np.int64)
    return sides


def decoded(
    collection: Collection,
    rows: pa.Table,
    format: PixelFormat,
    short_side: int | None,
    title: str,
    square: int | None = None,
    ahead: int = 64,
) -> Iterator[tuple[int, np.ndarray | Unreadable]]:
    """(number of the row, pixels) of all `rows`, file by file, decoded in threads, at most `ahead` files ahead; see
    `read_items`."""
    source = collection.source

    def read(task: list[tuple[int, Row]]) -> list[tuple[int, np.ndarray | Unreadable]]:
        pixels = read_items(source, [row for _, row in task], format, short_side, square)
        return [(number, p) for (number, _), p in zip(task, pixels, strict=True)]

    done = ordered(read, _tasks(rows), ahead)
    for task in track(done, title, len(rows), size=len):
        yield from task


def _tasks(rows: pa.Table) -> Iterator[list[tuple[int, Row]]]:
    """Numbers and rows, those of one file together in the order of their pages."""
    numbered = rows.select(COLUMNS).append_column("number", pa.array(range(len(rows))))
    numbered = numbered.sort_by([("uri", "ascending"), ("page", "ascending")])
    listed = (row for batch in numbered.to_batches(max_chunksize=4096) for row in batch.to_pylist())
    for _, same in groupby(listed, key=lambda row: row["uri"]):
        task = []
        for row in same:
            task.append((row["number"], row))
            if len(task) == PAGES:
                yield task
                task = []
        if task:
            yield task


def measure_format(collection: Collection) -> PixelFormat:
    """The collection's mode and depth, with its intensity window: all of 8 bits; of deeper data the 0.1 to 99.9
    percentile over the pixels of `SAMPLE` items, which a few hot or dead pixels do not move."""
    format = collection.pixel_format
    if format.depth == 8:
        return PixelFormat(format.mode, 8, (0.0, 255.0))
    rows = collection.usable
    chosen = rows.take(spread(len(rows), SAMPLE))
    values, reasons = [], []
    if format.depth == 32:  # without a window yet, so that what is not finite stays so and is not counted
        format = PixelFormat(format.mode, 32, (math.nan, math.nan))
    for number, pixels in decoded(collection, chosen, format, SAMPLE_SIDE, "Measuring intensities"):
        if isinstance(pixels, Unreadable):
            reasons.append(str(pixels))
        elif chosen["depth"][number].as_py() == format.depth:  # not what was translated from another depth
            finite = pixels[np.isfinite(pixels)]
            if finite.size:
                values.append(finite[:: max(1, finite.size // 16384)])
            else:
                reasons.append("no value in it is finite")
    if not values:
        raise nothing_decoded(collection, reasons)
    low, high = (float(p) for p in np.percentile(np.concatenate(values), [0.1, 99.9], method="nearest"))
    return PixelFormat(format.mode, format.depth, (low, high if high > low else low + 1.0))


def announce(canvases: str, rows: pa.Table, format: PixelFormat, short_side: int, reason: str) -> None:
    """Say how canvases are held, before anything big is written. Raises `SelfsightError` if the disk is too small."""
    need, free = canvas_bytes(rows, format, short_side), free_bytes()
    where = cache_folder()
    if canvases == "stream":
        console().print(f"Images are decoded as they are needed: {reason}.", style="dim", soft_wrap=True)
        return
    console().print(
        f"Canvases of {len(rows):,} items take {need / 1e6:,.0f} MB in {where}: {reason}.", style="dim", soft_wrap=True
    )
    if need > free:
        raise MachineError(
            f"The canvases need {need / 1e9:.1f} GB and {where} has {free / 1e9:.1f} GB free. "
            "Free some, set SELFSIGHT_CACHE to a larger disk, or give --canvases stream."
        )


def free_bytes() -> int:
    """Bytes that are free where the cache folder is."""
    where = cache_folder()
    while not where.exists():
        where = where.parent
    return shutil.disk_usage(where).free


def nothing_decoded(collection: Collection, reasons: list[str]) -> SelfsightError:
    """The error of a collection none of whose items can be decoded."""
    most = max(set(reasons), key=reasons.count)
    return DataError(f"None of the {len(reasons)} images in {collection.about.location} can be decoded ({most}).")
