"""Online k-NN: accuracy on a few labelled images during training. Nothing learns from their labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from selfsight.console import console
from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import BATCH, encode, input_batches
from selfsight.errors import DataError
from selfsight.probing.neighbours import fit_knn

MOST = 2000  # images; half of them are the neighbours, half are asked
TIMES = 10  # in a run, and once at its beginning


def is_due(progress: float, before: float) -> bool:
    """Whether a figure that is measured `TIMES` per run is due at `progress`.

    before: progress of the last row; -1 if there was none, 1 when a finished run is extended.
    """
    return before < 0 or progress >= 1.0 or int(TIMES * progress) != int(TIMES * before)


def online_knn(encoder: Encoder, items: Collection) -> Callable[[float, float], dict[str, float]]:
    """A function of (progress, progress of the row before) that returns {"knn": accuracy} at each tenth of the run,
    else {}.

    Of up to `MOST` labelled images every second one is classified by the others. Raises `SelfsightError` for fewer than
    two classes or four images with a label.
    """
    given = Labels.of(items).labelled()
    if given.doubt:
        console().print(f"{given.doubt}.", soft_wrap=True)
    given = given.take(spread(len(given), MOST))
    numbers, pixels = [], []
    for some, squares, _ in input_batches(items, given.rows, encoder.geometry, "Reading labelled images"):
        numbers += some
        pixels += [squares] if some else []
    order = np.argsort(numbers, kind="stable")  # by id, however they were decoded
    squares = np.concatenate(pixels)[order] if pixels else np.empty(0)
    given = given.take(np.sort(np.array(numbers, dtype=int)))
    names = given.classes
    labels = given.numbers(names)
    if len(names) < 2 or len(squares) < 4:
        raise DataError(f"{items.about.location} has too few labelled images: --probe needs two classes.")

    def measure(progress: float, before: float) -> dict[str, float]:
        if not is_due(progress, before):
            return {}
        parts = ((i, encoder.geometry.to_input(squares[i : i + BATCH])) for i in range(0, len(squares), BATCH))
        features = np.concatenate([some for _, some in encode(encoder, parts)])
        votes = fit_knn(features[::2], labels[::2], len(names)).scores(features[1::2])
        return {"knn": float((votes.argmax(1) == labels[1::2]).mean())}

    return measure
