"""The one way to features, batch by batch: of any input of an encoder, and of the items of a collection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Protocol, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from selfsight.console import console
from selfsight.data.canvases import decoded, nothing_decoded
from selfsight.data.collection import Collection
from selfsight.data.features import Key
from selfsight.data.formats.format import Unreadable
from selfsight.data.geometry import Geometry
from selfsight.data.labels import Labels
from selfsight.encoders.encoder import Encoder, Features
from selfsight.errors import DataError, SelfsightError, in_words

BATCH = 256
KEEP_EVERY = 16 * BATCH  # items, after which features are kept whatever happens next
Single = Literal["pooled", "patches"]
K = TypeVar("K")
B = TypeVar("B")  # a batch of what an encoder takes
F = TypeVar("F")
Found = tuple[list[int], F, dict[int, str]]  # row numbers, their features, {row number: reason} of the unreadable
B_contra = TypeVar("B_contra", contravariant=True)


class Encodes(Protocol[B_contra]):
    """What `encode` asks of an encoder, be it of images, text or tables."""

    @property
    def digest(self) -> str:
        """Hash of everything that its features depend on."""

    @property
    def dim(self) -> int:
        """D of the pooled features."""

    @property
    def licence(self) -> str:
        """The licence that holds for what is made with it."""

    def encode(self, inputs: B_contra, levels: bool = False) -> Features:
        """Features of one batch in eval mode, without gradients, on the encoder's device. The encoder does not
        change."""


@overload
def encode(
    encoder: Encodes[B], inputs: Iterable[tuple[K, B]], kind: Single = "pooled"
) -> Iterator[tuple[K, np.ndarray]]: ...
@overload
def encode(
    encoder: Encodes[B], inputs: Iterable[tuple[K, B]], kind: Literal["levels"]
) -> Iterator[tuple[K, list[np.ndarray]]]: ...
def encode(
    encoder: Encodes[B], inputs: Iterable[tuple[K, B]], kind: Single | Literal["levels"] = "pooled"
) -> Iterator[tuple[K, np.ndarray | list[np.ndarray]]]:
    """Features of `inputs`, batch by batch: from (key, batch) to (key, features), with any key.

    Features are float32: pooled [B, D], patches [B, N, Dp], or levels, a list of [B, C, h, w]. The encoder stays on its
    device, is used in eval mode, and is afterwards as it was.
    """
    for key, batch in inputs:
        features = encoder.encode(batch, levels=kind == "levels")
        if kind == "levels":
            yield key, [_array(level) for level in features.levels or []]
        else:
            yield key, _array(features.patches if kind == "patches" else features.pooled)


def _array(features: Tensor) -> np.ndarray:
    return np.asarray(features.float().cpu().numpy())


# -- of the items of a collection --


def input_batches(
    collection: Collection, rows: pa.Table, geometry: Geometry, title: str
) -> Iterator[tuple[list[int], np.ndarray, dict[int, str]]]:
    """Batches of (row numbers, pixels [B, S, S, C], {row number: reason} of rows that cannot be decoded).

    Rows come file by file, not in their own order. Raises `SelfsightError` for a geometry that gives inputs of several
    sizes.
    """
    if geometry.rule != "squash":
        raise SelfsightError(
            f"Features of whole items are of inputs of one size, which the geometry rule {geometry.rule!r} does not "
            'give. Use an encoder of the rule "squash".'
        )
    numbers: list[int] = []
    pixels: list[np.ndarray] = []
    failed: dict[int, str] = {}
    done = decoded(collection, rows, geometry.format, None, title, square=geometry.size)
    for count, (number, image) in enumerate(done, start=1):
        if isinstance(image, Unreadable):
            failed[number] = str(image)
        else:
            numbers.append(number)
            pixels.append(image)
        if len(pixels) == BATCH or (count == len(rows) and (pixels or failed)):
            yield numbers, np.stack(pixels) if pixels else np.empty((0,)), failed
            numbers, pixels, failed = [], [], {}


@overload
def item_features(
    encoder: Encoder,
    collection: Collection,
    rows: pa.Table | None = None,
    kind: Single = "pooled",
    shard: tuple[int, int] | None = None,
) -> Iterator[Found[np.ndarray]]: ...
@overload
def item_features(
    encoder: Encoder,
    collection: Collection,
    rows: pa.Table | None = None,
    *,
    kind: Literal["levels"],
    shard: tuple[int, int] | None = None,
) -> Iterator[Found[list[np.ndarray]]]: ...
def item_features(
    encoder: Encoder,
    collection: Collection,
    rows: pa.Table | None = None,
    kind: Single | Literal["levels"] = "pooled",
    shard: tuple[int, int] | None = None,
) -> Iterator[Found[np.ndarray | list[np.ndarray]]]:
    """Features of `rows` (default: all usable ones), decoded by the encoder's geometry and not stored.

    Yields batches (row numbers, features as from `encode`, {row number: reason} of rows that cannot be decoded), file
    by file, not in the order of the rows. Where the last rows all fail, their batch has reasons and no features. Raises
    `DataError` for an encoder whose features are not finite.

    shard: (i, n) takes every n-th row in the order of ids, from the i-th on.
    """
    rows = collection.usable if rows is None else rows
    chosen = np.arange(len(rows)) if shard is None else sharded(rows, *shard)
    failed: dict[int, str] = {}

    def inputs() -> Iterator[tuple[list[int], Tensor]]:
        for numbers, pixels, bad in input_batches(collection, rows.take(chosen), encoder.geometry, "Encoding"):
            failed.update({int(chosen[number]): reason for number, reason in bad.items()})
            if numbers:
                yield chosen[numbers].tolist(), encoder.geometry.to_input(pixels)

    for numbers, features in encode(encoder, inputs(), kind):
        if not all(np.isfinite(part).all() for part in features):
            raise DataError(
                f"The encoder gives features of {rows['uri'][numbers[0]]} or its neighbours that are NaN or infinite: "
                "its weights are damaged. Load them again from their source, or pretrain again."
            )
        yield numbers, features, dict(failed)
        failed.clear()
    if failed:
        yield [], [] if kind == "levels" else np.empty((0,), np.float32), dict(failed)


def sharded(rows: pa.Table, index: int, count: int) -> np.ndarray:
    """Numbers of the rows of shard `index` of `count`: every `count`-th in the order of ids. Raises `SelfsightError` if
    `index` is not from 0 to `count` - 1."""
    if not 0 <= index < count:
        raise SelfsightError(f"There is no shard {index} of {count}: they are counted from 0 to {count - 1}.")
    order = pc.sort_indices(rows["id"]).to_numpy()
    return np.asarray(order[index::count].astype(np.int64))


def gathered(found: Iterable[Found[np.ndarray]], rows: pa.Table) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """The batches of `item_features` of `rows`, in one array.

    Returns (numbers [K] of the rows that could be decoded, in order; their features [K, …]; {id: reason} of the rest).
    """
    out = np.zeros((0,), np.float32)
    done = np.zeros(len(rows), dtype=bool)
    bad: dict[str, str] = {}
    for numbers, features, failed in found:
        bad |= {rows["id"][number].as_py(): reason for number, reason in failed.items()}
        if not numbers:
            continue
        if not done.any():
            out = np.zeros((len(rows), *features.shape[1:]), dtype=np.float32)
        out[numbers] = features
        done[numbers] = True
    return np.flatnonzero(done), out if done.all() else out[done[: len(out)]], bad


def pooled(
    encoder: Encoder, collection: Collection, rows: pa.Table | None = None
) -> tuple[pa.Table, np.ndarray, dict[str, str]]:
    """Pooled features of `rows` (default: all usable ones). Each item is encoded once, then stored with the collection.

    Returns the rows that could be decoded, their features [N, D] float32, and {id: reason} of the rest.
    """
    rows = collection.usable if rows is None else rows
    key = Key(encoder.digest, "pooled", encoder.geometry)
    known, features = collection.features.read(key, rows)
    missing = np.flatnonzero(~known)
    if not len(missing):
        return rows, features, {}
    todo = rows.take(missing)
    numbers, fresh, bad = gathered(_kept(encoder, collection, key, todo), todo)
    if not known.any() and not len(numbers):
        raise nothing_decoded(collection, list(bad.values()))
    if not known.any():
        return rows.take(numbers), fresh, bad
    whole = np.zeros((len(rows), encoder.dim), dtype=np.float32)
    whole[known] = features
    if len(numbers):
        whole[missing[numbers]] = fresh
        known[missing[numbers]] = True
    return rows.filter(pa.array(known)), whole[known], bad


def pooled_labelled(
    encoder: Encoder, collection: Collection, labels: Labels
) -> tuple[Labels, np.ndarray, dict[str, str]]:
    """Pooled features of the items of `labels`, as by `pooled`.

    Returns the labels of the items that could be decoded, their features [N, D] float32, and {id: reason} of the rest.
    """
    _, features, bad = pooled(encoder, collection, labels.rows)
    return labels.take(np.flatnonzero(~np.isin(labels.ids, list(bad)))), features, bad


def _kept(encoder: Encoder, collection: Collection, key: Key, rows: pa.Table) -> Iterator[Found[np.ndarray]]:
    """The pooled features of `rows`, stored as they come."""
    done: list[int] = []
    waiting: list[np.ndarray] = []

    def keep() -> None:
        try:
            collection.features.add(key, rows.take(done), np.concatenate(waiting), encoder.licence)
        except (SelfsightError, OSError) as error:  # no room, or no permission: they are at hand without it
            console().print(f"Features are not kept for the next time: {in_words(error)}", soft_wrap=True, style="dim")

    try:
        for numbers, features, failed in item_features(encoder, collection, rows):
            if numbers:
                done += numbers
                waiting.append(features)
            yield numbers, features, failed
            if len(done) >= KEEP_EVERY:
                keep()
                done, waiting = [], []
    finally:  # also what Ctrl-C leaves
        if done:
            keep()
