"""A head that learns again with more labels: whether it takes the place of the one before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from selfsight.data.collection import Collection
from selfsight.data.importers import check_outside, open_source
from selfsight.data.labels import Labels
from selfsight.encoders.features import pooled_labelled
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.classify import Learnt
from selfsight.heads.classify_head import ClassifyHead, held_out
from selfsight.heads.head import Head, head_folder, load_head
from selfsight.heads.metrics import Answers, difference, leading
from selfsight.probing.evaluation import Interval

H = TypeVar("H", bound=Head)


def place_for(folder: Path) -> bool:
    """Whether a head is at `folder` already. Raises `SelfsightError` if something else is."""
    if head_folder(folder) is not None:
        return True
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise SelfsightError(f"{folder} holds something else than a head. Give another -o.")
    return False


def before_at(folder: Path, kind: type[H]) -> H | None:
    """The head that is at `folder` already, None if there is none that can be read. Raises `SelfsightError` if
    something else is, or a head of another task."""
    if not place_for(folder):
        return None
    try:
        before = load_head(folder)
    except DataError:  # damaged: whoever reads it is told to train it again
        return None
    if not isinstance(before, kind):
        raise SelfsightError(f"{folder} holds a head of the task {before.about.task}. Give another -o.")
    return before


def opened(source: str, out: str, kind: type[H]) -> tuple[Collection, Path, H | None]:
    """(the items of `source`, the folder `out` of a head that learns from them, the head that is there, see
    `before_at`). Raises `SelfsightError` for a folder within the source."""
    folder = Path(out)
    before = before_at(folder, kind)
    items = open_source(source)
    check_outside(out, items.about.location)
    return items, folder, before


def gain_over(before: ClassifyHead, learnt: Learnt, labels: Labels, items: Collection) -> Interval:
    """How much better the new head is than the one before, in the metric that leads for the kind, on the items that the
    new one was held out from. The one before answers as it did when it was held out itself, and as it is for items
    that it has not learnt from; others are left out. Nothing is known where nothing was held out.

    Raises `SelfsightError` if the one before is of another kind of labels.
    """
    targets = learnt.targets
    if before.about.kind != targets.kind:
        raise SelfsightError(
            f"{before.path} holds a head for labels of the kind {before.about.kind}; these are {targets.kind}. "
            "Give another -o."
        )
    known = dict(zip(before.items["id"].to_pylist(), before.items["held_out"].to_pylist(), strict=True))
    honest = np.array([item not in known or known[item] is not None for item in labels.ids])
    there = np.flatnonzero((learnt.folds >= 0) & honest)
    if not len(there):
        return Interval(None, None, None)
    some, features, bad = pooled_labelled(before.encoder, items, labels.take(there))
    if bad:
        raise DataError(f"{items.uri_of(next(iter(bad)))} cannot be read any more. Run the same command again.")
    found = before.tensors(features)
    told = "value" if targets.kind == "number" else "probabilities"
    for row, item in enumerate(some.ids):
        if known.get(item) is not None:
            found[told][row] = known[item][0] if targets.kind == "number" else known[item]
    old = _in_classes(before.answers(found), before.about.classes, targets.classes)
    groups = [labels.groups[place] for place in there] if any(labels.groups) else None
    name = leading(targets.kind, targets.values.sum(0))
    new = held_out(learnt).take(np.flatnonzero(honest[learnt.folds >= 0]))
    return difference(targets.take(there), new, old, groups, [name])[name]


def _in_classes(said: Answers, own: tuple[str, ...], asked: tuple[str, ...]) -> Answers:
    """The answers over the classes `asked`, in which a class that the head did not know has a probability of 0. A class
    that is not asked for any more counts as the last one, which is wrong for nearly all items."""
    if own == asked or not own:
        return said
    p = np.zeros((len(said.probabilities), len(asked)))
    places = {name: i for i, name in enumerate(asked)}
    for i, name in enumerate(own):
        if name in places:
            p[:, places[name]] = said.probabilities[:, i]
    if said.decided.ndim == 2:
        decided = p >= 0.5
    else:
        decided = np.array([places.get(name, len(asked) - 1) for name in own])[said.decided]
    return replace(said, probabilities=p, decided=decided)
