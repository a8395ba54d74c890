"""The summaries of the sources of a collection: what `curation.sources` judges, from items and an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from selfsight.curation.ranking import Ranking
from selfsight.curation.sources import Judgement
from selfsight.curation.summaries import LEAST_ITEMS, Summary, summarise
from selfsight.data.canvases import decoded
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import encode, input_batches
from selfsight.errors import DataError, meant
from selfsight.training.losses import RunLoss

LOOKED_AT = 128  # images of a source, of which negatives, noise and loss are measured
USUAL_COLUMNS = ("site", "camera", "batch")  # that sources are taken from where no column is named


def source_column(rows: pa.Table, column: str | None = None) -> str | None:
    """The column that names the sources of items: `column`, else site, camera or batch, the first with two values; None
    where there is none of these. Raises `DataError` if there is no `column`."""
    if column is not None and column not in rows.column_names:
        names = sorted(rows.column_names)
        raise DataError(
            f"There is no column {column!r} to take sources from.{meant(column, names)} A collection gets one by: "
            f"selfsight import SOURCE -o NAME.lance --columns {column}=COLUMN"
        )
    there = [name for name in USUAL_COLUMNS if name in rows.column_names]
    several = [name for name in there if len(set(rows[name].to_pylist()) - {None, ""}) > 1]
    return column or next(iter(several), None)


def by_source(rows: pa.Table, column: str) -> dict[str, np.ndarray]:
    """{source: numbers of its items}, in the order of names; items without one belong to none."""
    named = np.array(["" if value is None else str(value) for value in rows[column].to_pylist()])
    return {name: np.flatnonzero(named == name) for name in sorted(set(named.tolist()) - {""})}


def summaries_of(
    encoder: Encoder,
    collection: Collection,
    rows: pa.Table,
    features: np.ndarray,
    sources: dict[str, np.ndarray],
    labels: Sequence[str | None],
    run: Path | None = None,
) -> list[Summary]:
    """The summary of each of the `sources` that has 20 items or more.

    rows: the items, with their pooled `features` [N, D] and their `labels` [N]. sources: {name: numbers of its items}.
    run: the run that the encoder is of, for the loss of its objective; None for other encoders.
    """
    large = {name: numbers for name, numbers in sources.items() if len(numbers) >= LEAST_ITEMS}
    some = {name: numbers[spread(len(numbers), LOOKED_AT)] for name, numbers in large.items()}
    asked = np.concatenate([*some.values(), np.empty(0, np.int64)])
    negatives = _negatives(encoder, collection, rows.take(asked))
    noises = _noises(encoder, collection, rows.take(asked))
    losses = None if run is None else _loss_of(run, encoder, collection)
    summaries, at = [], 0
    for name, numbers in large.items():
        mine = [(number, place) for place, number in enumerate(some[name].tolist(), start=at)]
        at += len(mine)
        both = [(number, negatives[place]) for number, place in mine if place in negatives]
        upright = (features[[number for number, _ in both]], np.stack([other for _, other in both])) if both else None
        loss = losses.of(rows.take(some[name])) if losses else None
        noise = np.array([noises[place] for _, place in mine if place in noises])
        given = [labels[number] for number in numbers.tolist()]
        summaries.append(summarise(name, encoder.digest, features[numbers], given, upright, noise, loss))
    return summaries


def ranked(judgements: Sequence[Judgement], sources: dict[str, np.ndarray]) -> Ranking:
    """The items of the sources to remove, as faults of a collection, then those of the sources to look at."""
    harmful = [(one, sources[one.source]) for one in judgements if one.verdict != "keep" and one.harm is not None]
    estimated = sum(len(numbers) for one, numbers in harmful if one.verdict == "remove")
    scores = [np.full(len(numbers), min(max(one.harm.value, 0.0), 1.0)) for one, numbers in harmful if one.harm]
    return Ranking(
        "harmful_sources",
        np.concatenate([np.empty(0, np.int64), *(numbers for _, numbers in harmful)]),
        np.concatenate([np.empty(0), *scores]),
        estimated,
        estimated,
        estimated,
    )


def noise_share(pixels: np.ndarray) -> float | None:
    """The share of the variance of an image's pixels [H, W, C] that is noise; None where there is nothing to measure.

    Noise has the median absolute deviation of the finest diagonal wavelets of Haar, which edges hardly move (Donoho and
    Johnstone, "Ideal spatial adaptation by wavelet shrinkage", Biometrika 1994).
    """
    grey = pixels.astype(np.float64).mean(2)
    grey = grey[: grey.shape[0] // 2 * 2, : grey.shape[1] // 2 * 2]
    if not grey.size or not (variance := float(grey.var())) > 0.0:
        return None
    diagonal = (grey[::2, ::2] - grey[1::2, ::2] - grey[::2, 1::2] + grey[1::2, 1::2]) / 2.0
    return min((float(np.median(np.abs(diagonal))) / 0.6745) ** 2 / variance, 1.0)


def _negatives(encoder: Encoder, collection: Collection, rows: pa.Table) -> dict[int, np.ndarray]:
    """{number of the row: features [D] of its negative}, of those that can be decoded."""
    low, high = encoder.geometry.window

    def inputs() -> Iterator[tuple[list[int], Tensor]]:
        for numbers, pixels, _ in input_batches(collection, rows, encoder.geometry, "Encoding negatives"):
            if numbers:
                yield numbers, encoder.geometry.to_input(low + high - pixels.astype(np.float32))

    return {
        number: one
        for numbers, features in encode(encoder, inputs())
        for number, one in zip(numbers, features, strict=True)
    }


def _noises(encoder: Encoder, collection: Collection, rows: pa.Table) -> dict[int, float]:
    """{number of the row: share of noise}, at the images' own size."""
    found = {}
    for number, pixels in decoded(collection, rows, encoder.geometry.format, None, "Measuring noise"):
        if not isinstance(pixels, Unreadable) and (share := noise_share(pixels)) is not None:
            found[number] = share
    return found


def _loss_of(run: Path, encoder: Encoder, collection: Collection) -> RunLoss | None:
    try:
        return RunLoss(run, encoder.geometry.format, collection)
    except LookupError:
        return None
