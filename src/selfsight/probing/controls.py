"""An encoder beside the encoders that it must beat, and what all of them make of the same labelled items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from selfsight.data.collection import Collection
from selfsight.data.splits import Side
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import pooled_labelled
from selfsight.encoders.statistics import measure_batch_norm, some_inputs
from selfsight.encoders.store import random_like, read_folder
from selfsight.encoders.whitening import whitened
from selfsight.probing.probes import Labelled

Pair: TypeAlias = tuple[Labelled, Labelled]  # train, test


def with_controls(folder: Path | None, encoder: Encoder, items: Collection, notes: list[str]) -> dict[str, Encoder]:
    """The encoder as "encoder", and the controls that are encoders, where it is: "random" weights, with the batch norm
    statistics of `items`, and "start", if `folder` is a run that began with given weights. A note is added where these
    are missing."""
    found: dict[str, Encoder] = {"encoder": encoder, "random": random_like(encoder).to(encoder.device)}
    measure_batch_norm(found["random"], some_inputs(items, encoder.geometry))
    if folder and (folder / "start" / "config.json").exists():
        found["start"] = read_folder(folder / "start").to(encoder.device)
    elif encoder.about.get("starting_weights") and "view_size" in encoder.about:  # untrained, it is its own start
        notes.append(
            f"{folder or 'The encoder'} has no folder start, so its starting weights are not among the controls"
        )
    return found


def features_of(
    encoders: Mapping[str, Encoder], sides: Sequence[Side], classes: list[str], notes: list[str]
) -> dict[str, Pair]:
    """Features of train and test by each of `encoders`, by name. Where the one called "encoder" is whitened, those that
    have no whitening of their own are too. What fails to decode is noted."""
    found: dict[str, Pair] = {}
    for name, candidate in encoders.items():
        train, test = (_labelled(candidate, side, classes, notes) for side in sides)
        plain = encoders["encoder"].net.num_classes and not candidate.net.num_classes
        found[name] = changed((train, test), whitened) if plain else (train, test)
    return found


def changed(pair: Pair, change: Callable[[list[np.ndarray]], list[np.ndarray]]) -> Pair:
    """Train and test with other features of the same items."""
    train, test = change([part.features for part in pair])
    return pair[0]._replace(features=train), pair[1]._replace(features=test)


def readable(encoder: Encoder, sides: Sequence[Side], notes: list[str]) -> list[Side]:
    """The items of `sides` that can be decoded for the encoder, by id; what cannot is noted."""
    found = []
    for side in sides:
        labels, _, bad = pooled_labelled(encoder, side.items, side.labels)
        _note(side, bad, notes)
        found.append(Side(side.items, labels.take(np.argsort(labels.ids, kind="stable"))))
    return found


def _labelled(encoder: Encoder, side: Side, classes: list[str], notes: list[str]) -> Labelled:
    """Features and classes of labelled items; what fails to decode is noted, once."""
    labels, features, bad = pooled_labelled(encoder, side.items, side.labels)
    _note(side, bad, notes)
    return Labelled(features, labels.numbers(classes), labels.groups)


def _note(side: Side, bad: Mapping[str, str], notes: list[str]) -> None:
    where = side.items.about.location
    for note in sorted(f"{where}: {side.items.uri_of(item)} {reason}" for item, reason in bad.items()):
        if note not in notes:
            notes.append(note)
