"""Features of a collection's items: decoded as the encoder asks, in float32, in eval mode."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch

from selfsight.console import console
from selfsight.data.canvases import decoded, nothing_decoded
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.errors import SelfsightError, in_words
from selfsight.machine import best_device

BATCH = 256
KEEP_EVERY = 16 * BATCH  # items, after which features are kept whatever happens next


def input_batches(
    collection: Collection, rows: pa.Table, geometry: Geometry, title: str
) -> Iterator[tuple[list[int], np.ndarray, dict[int, str]]]:
    """Batches of (row numbers, pixels [B, S, S, C], {row number: reason} of rows that cannot be decoded).

    Rows come file by file, not in their own order.
    """

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


def _keep(collection: Collection, digest: str, rows: pa.Table, features: np.ndarray) -> None:
    """Keep features for the next time, where there is room and permission: they are at hand without it."""
    try:
        collection.add_features(digest, rows, features)
    except (SelfsightError, OSError) as error:
        console().print(f"Features are not kept for the next time: {in_words(error)}", soft_wrap=True, style="dim")


@torch.inference_mode()
def pooled(
    encoder: Encoder, collection: Collection, rows: pa.Table | None = None
) -> tuple[pa.Table, np.ndarray, dict[str, str]]:
    """Pooled features of `rows` (all usable ones if not given), each item encoded once and kept.

    Returns the rows that could be decoded, their features [N, D] float32, and {id: reason} of the rest.
    """
    assert not encoder.training, "an encoder is measured in eval mode"
    rows = collection.usable if rows is None else rows
    digest = encoder.digest
    known, kept = collection.read_features(digest, rows)
    missing = np.flatnonzero(~known)
    features = np.zeros((len(rows), encoder.dim), dtype=np.float32)
    if known.any():
        features[known] = kept
    bad: dict[str, str] = {}
    if len(missing):
        todo = rows.take(missing)
        fresh = np.zeros((len(todo), encoder.dim), dtype=np.float32)
        done: list[int] = []
        device = best_device()
        encoder = encoder.to(device)
        try:
            for numbers, pixels, failed in input_batches(collection, todo, encoder.geometry, "Encoding"):
                bad |= {todo["id"][i].as_py(): reason for i, reason in failed.items()}
                if numbers:
                    images = encoder.geometry.to_input(pixels).to(device)
                    fresh[numbers] = encoder(images).pooled.float().cpu().numpy()
                    done += numbers
                if len(done) >= KEEP_EVERY:
                    _keep(collection, digest, todo.take(done), fresh[done])
                    done = []
        finally:  # also what Ctrl-C leaves
            if done:
                _keep(collection, digest, todo.take(done), fresh[done])
        features[missing] = fresh
    keep = [i for i, item in enumerate(rows["id"].to_pylist()) if item not in bad]
    if not keep:
        raise nothing_decoded(collection, list(bad.values()))
    return rows.take(keep), features[keep], bad
