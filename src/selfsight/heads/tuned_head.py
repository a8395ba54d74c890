"""A head on an encoder that its labels tuned, beside the head on the frozen encoder.

A tuned encoder has seen the labels of the items that it is then measured on, and knows them by heart. So a fifth of the
labels, groups whole, is kept from tuning. On these alone the head is calibrated and measured, and compared with a
frozen one; each of them is in turn left out of the linear fit too. The fit in the end learns from all labels. Where the
frozen head is not worse, it is kept: it costs nothing, and learns from all labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import pooled_labelled
from selfsight.errors import DataError
from selfsight.heads.classify import Learnt, Wish, learn
from selfsight.heads.classify_head import held_out
from selfsight.heads.metrics import TITLES, difference, leading, number, value_of
from selfsight.heads.tuning import check_way, tuned
from selfsight.probing.evaluation import Interval
from selfsight.training.recipe import Budget

HELD = 0.2  # of the labels, that tuning does not see


@dataclass(frozen=True)
class TunedHead:
    """What tuning came to.

    encoder: tuned, or as it was. features: of all items [N, D], by it. learnt: the head on them. gain: of the tuned
    head over the frozen one, in the metric that leads, on the labels that tuning did not see. kept: whether the tuned
    one is the head. note: both figures, in a sentence.
    """

    encoder: Encoder
    features: np.ndarray
    learnt: Learnt
    gain: Interval
    kept: bool
    note: str


def tuned_head(
    encoder: Encoder, items: Collection, labels: Labels, features: np.ndarray, wish: Wish, budget: Budget | None,
    folder: Path, started: float,
) -> TunedHead:  # fmt: skip
    """Tune the encoder and fit a head to it, or keep the frozen one.

    labels: of items that all have one. features: frozen ones [N, D]. wish: whose method is of `tuning.WAYS`. folder:
    for checkpoints, from which the same call goes on. started: `time.monotonic()` of the command.
    """
    method = str(wish.method)
    check_way(encoder, method)
    shown, hidden = labels.hold_out(HELD, wish.seed)
    seen = np.zeros(len(labels), bool)
    seen[shown] = True
    frozen = learn(labels, features, replace(wish, method=None), seen)
    made = tuned(encoder, items, labels.take(shown), method, budget, wish.seed, folder, started)
    known, after, bad = pooled_labelled(made, items, labels)
    if bad:
        raise DataError(f"{items.uri_of(next(iter(bad)))} cannot be read any more. Run the same command again.")
    learnt = learn(known, after, replace(wish, method="linear"), seen)
    gain, told = _compared(learnt, frozen, labels)
    if gain.value is None or gain.value <= 0.0:
        plain = learn(labels, features, replace(wish, method=None))
        note = f"the frozen head is kept, as the tuned one is not better: {told}"
        return TunedHead(encoder, features, plain, gain, False, note)
    learnt = replace(learnt, method=method, notes=[*learnt.notes, *_caution(len(hidden))])
    return TunedHead(made, after, learnt, gain, True, f"the tuned head is better than the frozen one: {told}")


def _compared(tuned: Learnt, frozen: Learnt, labels: Labels) -> tuple[Interval, str]:
    """(how much better the tuned head is, both figures in words), on the items that were held out."""
    there, name = np.flatnonzero(tuned.folds >= 0), leading(tuned.targets.kind, tuned.targets.values.sum(0))
    if not len(there):
        return Interval(None, None, None), "nothing could be held out to compare them"
    groups = [labels.groups[place] for place in there] if any(labels.groups) else None
    taught, one, other = tuned.targets.take(there), held_out(tuned), held_out(frozen)
    gain = difference(taught, one, other, groups, [name])[name]
    now, before = (number(name, Interval(value_of(name, taught, side), None, None)) for side in (one, other))
    apart = f"a difference of {number(name, gain)}, on {len(there):,} labels that tuning did not see"
    return gain, f"{TITLES[name]} {now} tuned and {before} frozen, {apart}"


def _caution(held: int) -> list[str]:
    few = "" if held >= 100 else ", which are few: a test set of your own says more"
    return [f"tuning saw {100 - 100 * HELD:g} % of the labels; calibration and figures are of the other {held:,}{few}"]
