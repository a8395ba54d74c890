"""Classify: one class, several, an ordered grade or a number an item, learnt from frozen features of a few labels.

What was not named is chosen by cross-validation on the labels at hand, with groups on one side. The same held-out
scores calibrate the probabilities, size the prediction sets, price the operating point and measure the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from selfsight.data.groups import group_numbers
from selfsight.data.labels import Labels
from selfsight.data.spread import spread
from selfsight.errors import DataError, SelfsightError, meant
from selfsight.heads import calibration as cal
from selfsight.heads.fits import Fit, More, cross_fitted, fitted, methods
from selfsight.heads.metrics import uneven
from selfsight.heads.modules import NEAREST, Calibrate, Memory, Scores
from selfsight.heads.targets import Targets
from selfsight.probing.neighbours import nearest

CHOICE_ITEMS = 3_000  # on which methods are compared
HELD_ITEMS = 20_000  # that are held out in turn, to calibrate and to measure
FOLDS, FEW_FOLDS, FEW = 5, 10, 500  # more folds where labels are few
LEAST_FOLDS = 3
MEMORY = 5_000  # items that are kept to tell what is new, and which examples are like an item
LEAST_NUMBERS = 5  # labels of a number
ALWAYS = -2  # in place of its fold, of an item that every fit learns from


@dataclass(frozen=True)
class Learnt:
    """A fitted head, before it has a folder.

    targets: what it was taught, N items.
    method: see `fits.methods`. setting: of the method.
    scorer: features to scores. kept: numbers [M] of the items that it keeps the features of.
    calibrate: what turns scores into probabilities. decision: and these into labels.
    coverage: promised of sets. threshold: the least probability of a class in a set; None where nothing is promised.
    folds: of each item [N], -1 for one that was not held out.
    held: probabilities, or values, [N, K] by a head that did not learn from the item; nan where there is none.
    tried: {method and setting: loss}, least first.
    notes: what a user must know.
    """

    targets: Targets
    method: str
    setting: str
    scorer: nn.Module
    kept: np.ndarray
    calibrate: Calibrate
    decision: cal.Decision
    coverage: float
    threshold: float | None
    folds: np.ndarray
    held: np.ndarray
    tried: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def task(self, features: np.ndarray) -> Scores:
        """The module from features [B, D] to scores; `features` [N, D] are of all items."""
        return Scores(self.scorer, Memory(_unit(features[self.kept])))


@dataclass(frozen=True)
class Wish:
    """What a user asked of a head.

    method: one of `fits.methods`; chosen if None.
    coverage: of the prediction sets.
    miss_rate: the most that may be missed of the class `positive`.
    positive: that class.
    costs: table of costs, see `calibration.read_costs`.
    seed: of the folds.
    """

    method: str | None = None
    coverage: float = 0.9
    miss_rate: float | None = None
    positive: str | None = None
    costs: str | None = None
    seed: int = 0


Guesses = Callable[[int | None], More]  # what else is learnt from without a fold; None: with all labels


def learn(
    labels: Labels, features: np.ndarray, wish: Wish, seen: np.ndarray | None = None, more: Guesses | None = None
) -> Learnt:
    """Fit a head to `features` [N, D] of items that all have a label.

    seen: which [N] of the labels the encoder was tuned on. They are always learnt from and never held out. more: what
    is learnt from beside the labels, which nearest neighbours cannot.

    Raises `SelfsightError` for a method that there is not, and for labels that are too few.
    """
    targets = Targets.of(labels)
    _check(targets, labels, wish)
    choices = _choices(targets, wish.method)
    if more is not None:
        choices.pop("knn", None)
    folds, notes = _folds(labels, targets, wish.seed, seen)
    method, setting, tried = _chosen(choices, targets, features, folds, more)
    fit = choices[method][setting]
    held = np.full_like(targets.values, np.nan)
    there = np.flatnonzero(folds >= 0)
    temperature, threshold, width = 1.0, None, None
    if len(there):
        scores, taught = _held_out(fit, targets, features, folds, HELD_ITEMS, more)
        if targets.kind == "number":
            held[there] = scores
            width = cal.half_width(taught.values[:, 0], scores[:, 0], wish.coverage)
        else:
            temperature = cal.fit_temperature(taught, scores)
            held[there] = cal.probabilities(targets.kind, scores, temperature)
            threshold = cal.set_threshold(taught, held[there], wish.coverage)
        if threshold is None and width is None:
            notes.append(
                f"{len(there)} labels are too few to promise that {100 * wish.coverage:g} % of the prediction sets "
                "hold the truth"
            )
    decision = _decision(targets.take(there), held[there], targets, wish)
    kept = np.arange(len(targets)) if method == "knn" else spread(len(targets), MEMORY)
    calibrate = Calibrate(
        targets.kind,
        torch.tensor(temperature, dtype=torch.float32),
        torch.tensor(float("inf") if width is None else width, dtype=torch.float32),
        torch.from_numpy(_distances(features[kept], [labels.groups[i] for i in kept])),
    )
    scorer = fitted(fit, features, targets, more and more(None))
    return Learnt(
        targets, method, setting, scorer, kept, calibrate, decision, wish.coverage, threshold, np.maximum(folds, -1),
        held, tried, notes,
    )  # fmt: skip


def _check(targets: Targets, labels: Labels, wish: Wish) -> None:
    """Raise `SelfsightError` for a wish that these labels cannot be given."""
    if not 0.5 <= wish.coverage < 1.0:
        raise SelfsightError(f"--coverage lies from 0.5 to below 1, not at {wish.coverage:g}.")
    if targets.kind == "number":
        if len(targets) < LEAST_NUMBERS:
            raise DataError(f"{labels.location} has {len(targets)} numbers; {LEAST_NUMBERS} or more are needed.")
        if float(targets.values.std()) == 0.0:
            raise DataError(
                f"All numbers of {labels.location} are {targets.values[0, 0]:g}; there is nothing to learn."
            )
    asked = {"--miss-rate": wish.miss_rate, "--positive": wish.positive, "--costs": wish.costs}
    given = [name for name, value in asked.items() if value is not None]
    if given and targets.kind not in ("class", "grade"):
        raise SelfsightError(f"{given[0]} is for one class an item; these labels are of the kind {targets.kind}.")
    if wish.costs is not None and wish.miss_rate is not None:
        raise SelfsightError("--miss-rate and --costs are two ways to decide. Give one of them.")
    if wish.positive is not None and wish.miss_rate is None:
        raise SelfsightError("--positive names the class of --miss-rate. Give both.")
    if wish.miss_rate is not None and not 0.0 < wish.miss_rate < 1.0:
        raise SelfsightError(f"--miss-rate lies between 0 and 1, not at {wish.miss_rate:g}.")
    if wish.positive is not None and wish.positive not in targets.classes:
        raise SelfsightError(
            f"There is no class {wish.positive!r} for --positive.{meant(wish.positive, targets.classes)}"
        )
    if wish.miss_rate is not None and wish.positive is None and len(targets.classes) > 2:
        raise SelfsightError(f"Say which class must not be missed, --positive: one of {', '.join(targets.classes)}.")


def _choices(targets: Targets, method: str | None) -> dict[str, dict[str, Fit]]:
    found = methods(targets.kind, len(targets))
    if method is None:
        return found
    if method not in found:
        raise SelfsightError(
            f"--method {method} cannot be had for {len(targets):,} labels of the kind {targets.kind}. Choose one of "
            f"{', '.join(found)}.{meant(method, found)}"
        )
    return {method: found[method]}


def _folds(labels: Labels, targets: Targets, seed: int, seen: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
    """([N] the fold in which each item is held out, -1 for never, ALWAYS for one that is always learnt from; notes). An
    item is held out if its class has others, which it is then measured by."""
    nobody = np.full(len(targets), -1, dtype=np.int64)
    some = np.arange(len(targets))
    if seen is not None:
        nobody[seen], some = ALWAYS, np.flatnonzero(~seen)
    some = some[spread(len(some), HELD_ITEMS)]
    groups = len(np.unique(group_numbers([labels.groups[i] for i in some], len(some))))
    count = min(_fold_count(targets.take(some)), groups)
    if count < 2:
        return nobody, ["all labels are of one group, so nothing can be held out: the head is neither chosen, "
                        "calibrated nor measured"]  # fmt: skip
    folds = nobody.copy()
    folds[some] = labels.take(some).folds(count, seed)
    if targets.kind not in ("class", "grade"):
        return folds, []
    numbers = targets.numbers
    counts = np.zeros((len(targets.classes), count), dtype=np.int64)
    np.add.at(counts, (numbers[some], folds[some]), 1)
    always = np.bincount(numbers[folds == ALWAYS], minlength=len(targets.classes))
    lonely = some[(counts.sum(1) + always)[numbers[some]] == counts[numbers[some], folds[some]]]
    folds[lonely] = -1
    names = sorted({targets.classes[number] for number in numbers[lonely]})
    if len(np.unique(numbers[folds >= 0])) < 2:
        return nobody, ["with one label, or one group, per class nothing can be held out: the head is neither chosen, "
                        "calibrated nor measured. Give two or more labels per class"]  # fmt: skip
    told = f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
    return folds, [f"{told}: one label or group only, which cannot be held out and measured"] if names else []


def _fold_count(targets: Targets) -> int:
    """How many folds. Where classes have a handful of labels, as many as the smallest has, so that each fold takes one
    label of every class: a class that lacks one beside others that do not would be guessed too rarely."""
    usual = FEW_FOLDS if len(targets) <= FEW else FOLDS
    if targets.kind not in ("class", "grade"):
        return usual
    sizes = targets.values.sum(0)
    least = int(sizes[sizes > 0].min(initial=usual))
    return least if LEAST_FOLDS <= least < usual else usual


def _held_out(
    fit: Fit, targets: Targets, features: np.ndarray, folds: np.ndarray, most: int, more: Guesses | None
) -> tuple[np.ndarray, Targets]:
    """(scores, targets) of up to `most` of the items that are held out, in their order."""
    parts = [np.flatnonzero(folds >= 0), np.flatnonzero(folds == ALWAYS)]
    used = np.sort(np.concatenate([some[spread(len(some), most)] for some in parts]))
    asked = folds[used] >= 0
    scores = cross_fitted(fit, features[used], targets.take(used), folds[used], more)
    return scores[asked], targets.take(used[asked])


def _chosen(
    choices: dict[str, dict[str, Fit]], targets: Targets, features: np.ndarray, folds: np.ndarray,
    more: Guesses | None = None,
) -> tuple[str, str, dict[str, float]]:  # fmt: skip
    """(method, setting, {method and setting: loss}) of the least loss on held-out items, after calibration."""
    first = next(iter(choices))
    if not (folds >= 0).any():
        settings = list(choices[first])
        return first, settings[len(settings) // 2], {}
    tried: dict[tuple[str, str], float] = {}
    for method, setting, fit in _each(choices):
        scores, taught = _held_out(fit, targets, features, folds, CHOICE_ITEMS, more)
        temperature = 1.0 if targets.kind == "number" else cal.fit_temperature(taught, scores)
        tried[method, setting] = float(cal.losses(taught, scores, temperature).mean())
    best = min(tried, key=tried.__getitem__)
    ordered = sorted(tried, key=tried.__getitem__)
    return *best, {" ".join(filter(None, each)): tried[each] for each in ordered}


def _each(choices: dict[str, dict[str, Fit]]) -> Iterator[tuple[str, str, Fit]]:
    for method, settings in choices.items():
        for setting, fit in settings.items():
            yield method, setting, fit


def _decision(held: Targets, p: np.ndarray, targets: Targets, wish: Wish) -> cal.Decision:
    if wish.miss_rate is not None:
        positive = wish.positive or targets.classes[int(targets.values.sum(0).argmin())]
        return cal.at_miss_rate(held, p, wish.miss_rate, positive)
    if wish.costs is not None:
        return cal.at_costs(held, p, cal.read_costs(wish.costs, targets.classes))
    single = targets.kind in ("class", "grade")
    return cal.balanced(held, p, targets) if single and len(p) and uneven(targets.values.sum(0)) else cal.Decision()


def _distances(features: np.ndarray, groups: list[str | None]) -> np.ndarray:
    """Distances [M] float32, ascending, of items to the 10 nearest of other groups, as `Memory` measures them."""
    numbers = group_numbers(groups, len(groups))
    similarity, _ = nearest(features, features, NEAREST, (numbers, numbers))
    known = np.isfinite(similarity)
    far = 1.0 - np.where(known, similarity, 0.0).sum(1) / np.maximum(known.sum(1), 1)
    return np.sort(far[known.any(1)]).astype(np.float32)


def _unit(features: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(features, np.float32)), dim=1)
