"""Inspect: what normal parts look like, learnt from good ones alone, and how unlike them a part may be.

Each good part is judged by what did not learn from it, and the share of good parts that may be called a defect sets the
limit (conformal prediction: Vovk et al., "Algorithmic Learning in a Random World", 2005; cross-conformal, 2015). Known
defects are never learnt from: they choose between methods and input sizes, and say how many would be found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from selfsight.data.collection import Collection
from selfsight.data.geometry import Rule
from selfsight.data.labels import Labels
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.inspect_modules import Conformal, Gaussian, Inspect, InspectModule, PatchMemory
from selfsight.heads.normality import Gaussians, Memories, Normality, Part, judged, likelihood
from selfsight.heads.parts import Parts
from selfsight.heads.view import Seen, View
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import interval

METHODS = ("memory", "gaussian")
FOLDS = 25  # a memory without one of them is nearly the whole, so that held-out scores are like those of new parts
MOST = 2_000  # good parts that are learnt from
CHOICE = 100  # good parts, and defects, on which methods and sizes are compared
LEAST_DEFECTS = 5  # with which they are compared
FACTORS = (1, 2, 4)  # of the training size, that are tried
OTHER = 2  # of them, by which it is seen whether an encoder takes another size at all
LARGE = 4  # times the training size, from which files are looked at in tiles
ENLARGED = 1.5  # times a file's longer side, above which no input size is tried


@dataclass(frozen=True)
class Wish:
    """What a user asked of an inspection. false_alarms: the share of good parts that may be called a defect. method,
    size (px of the input) and rule: chosen if None. seed: of folds, and of the patches that are drawn."""

    false_alarms: float = 0.05
    method: str | None = None
    size: int | None = None
    rule: Rule | None = None
    seed: int = 0


@dataclass(frozen=True)
class Learnt:
    """A fitted inspection, before it has a folder.

    view: how it looks. normal: what it knows of normal parts. good: the parts that it learnt from, N. folds: of each,
    [N]. held: the score of each [N] by what did not learn from it. rate: the share of good parts that may be called a
    defect, that can be promised. threshold: of maps, and what half of the good
    parts reach, `usual`. defects: those that are known, with `found`, their scores. tried:
    {method and size: AUROC}. bad: {id: reason} of items that cannot be read. metrics: on held-out items. notes: what a
    user must know.
    """

    view: View
    method: str
    setting: str
    normal: Normality
    good: Labels
    folds: np.ndarray
    held: np.ndarray
    rate: float
    threshold: float
    usual: float
    defects: Labels
    found: np.ndarray
    tried: dict[str, float] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Interval] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def module(self) -> InspectModule:
        """The network."""
        held = torch.from_numpy(np.sort(self.held).astype(np.float32))
        rate, threshold = (torch.tensor(value, dtype=torch.float32) for value in (self.rate, self.threshold))
        task = Inspect(self.view.patches, self.normal.scorer())
        return InspectModule(self.view.encoder, task, Conformal(held, rate, threshold))


def learn(encoder: Encoder, items: Collection, parts: Parts, wish: Wish, roi: np.ndarray | None = None) -> Learnt:
    """Fit an inspection to the good parts of a collection. roi: [H, W] bool, where it looks.

    Raises `SelfsightError` for a wish that cannot be had, and for parts that are too few.
    """
    _check(parts, wish)
    good, notes = parts.good, list(parts.notes)
    if len(good) > MOST:
        good = good.take(spread(len(good), MOST))
        notes.append(f"it learnt from {MOST:,} of {len(parts.good):,} good parts, spread evenly")
    methods = list(METHODS if wish.method is None else (wish.method,))
    sizes, rule, told = sizes_for(encoder, good, wish)
    notes += [told] if told else []
    tried: dict[str, float] = {}
    method, size = methods[0], sizes[0]
    if len(parts.defects) >= LEAST_DEFECTS and len(methods) * len(sizes) > 1:
        method, size, tried = _chosen(encoder, items, Parts(good, parts.defects, 0), methods, sizes, rule, wish, roi)
    elif len(sizes) > 1:
        notes.append(
            f"the input size is that of training, {size} px: {LEAST_DEFECTS} known defects or more in the labels would "
            "choose it and the method"
        )
    view = View(encoder, size, rule, roi)
    view.measure(items, good.rows)
    seen = Seen(view, items, good.rows, "Looking at good parts")
    normal, folds = fitted(method, seen, good, wish.seed, notes)
    held, peaks = held_out(normal, seen, folds)
    there = np.flatnonzero(~np.isnan(held))
    bad = {good.ids[number]: reason for number, reason in seen.bad.items()}
    good, folds, held, peaks = good.take(there), folds[there], held[there], peaks[there]
    rate, threshold = limits(held, peaks, wish.false_alarms, notes)
    defects, found, more = _defects(view, items, parts.defects, normal)
    setting = f"{len(normal.scorer().bank):,} patches" if isinstance(normal, Memories) else normal_said(normal)
    learnt = Learnt(
        view, method, setting, normal, good, folds, held, rate, threshold, float(np.median(peaks)), defects, found,
        tried, bad | more,
    )  # fmt: skip
    return replace(learnt, metrics=_metrics(learnt), notes=notes)


def _check(parts: Parts, wish: Wish) -> None:
    if not 0.0 < wish.false_alarms < 1.0:
        raise SelfsightError(f"--false-alarms lies between 0 and 1, not at {wish.false_alarms:g}.")
    if len(parts.good) < 2:
        raise too_few(len(parts.good), parts.good.location)


def too_few(count: int, location: str, bad: dict[str, str] | None = None) -> DataError:
    """The error where nothing can be held out."""
    some = next(iter((bad or {}).values()), "")
    unread = f" that can be read (of another: {some})" if some else ""
    have = f"one good part{unread} only" if count else f"no good part{unread}"
    return DataError(f"{location} has {have}. Give 20 or more: what is normal is learnt from how they differ.")


# -- how to look --


def longer_side(good: Labels) -> float:
    """The median longer side of the files, in px."""
    sides = np.maximum(good.rows["width"].to_numpy(), good.rows["height"].to_numpy())
    return float(np.median(sides))


def sizes_for(encoder: Encoder, good: Labels, wish: Wish) -> tuple[list[int], Rule, str]:
    """(sizes of input that may be chosen, the rule of the geometry, a note or "")."""
    size, longer = encoder.geometry.size, longer_side(good)
    if wish.size is not None and wish.size < 16:
        raise SelfsightError(f"--size is the side of the input in px, 16 or more, not {wish.size}.")
    if not takes(encoder, size * OTHER):
        if wish.size not in (None, size) or wish.rule not in (None, "squash"):
            raise SelfsightError(f"This encoder takes inputs of {size} x {size} px alone. Leave --size and --rule out.")
        return [size], "squash", f"the encoder takes inputs of {size} x {size} px alone, so no other size is tried"
    rule: Rule = wish.rule or ("tiles" if longer > LARGE * size else "fit")
    told = ""
    if rule == "tiles":
        told = f"the files, of {longer:,.0f} px, are looked at in tiles at their own scale"
    if wish.size is not None:
        return [wish.size], rule, told
    if rule == "tiles":
        return [size * OTHER], rule, told
    return [size * factor for factor in FACTORS if factor == 1 or size * factor <= ENLARGED * longer], rule, told


def takes(encoder: Encoder, size: int) -> bool:
    """Whether an encoder takes inputs of another size than its own."""
    side = max(encoder.level_strides) * max(1, size // max(encoder.level_strides))
    try:
        encoder.encode(torch.zeros(1, encoder.geometry.channels, side, side), levels=True)
    except (AssertionError, RuntimeError, ValueError):  # timm's models say it in several ways
        return False
    return True


def _chosen(
    encoder: Encoder, items: Collection, parts: Parts, methods: list[str], sizes: list[int], rule: Rule, wish: Wish,
    roi: np.ndarray | None,
) -> tuple[str, int, dict[str, float]]:  # fmt: skip
    """(method, size, {method and size: AUROC}) that tell known defects best from good parts that were held out. A size
    is tried as long as the one before it was better than the one before that."""
    good = parts.good.take(spread(len(parts.good), CHOICE))
    defects = parts.defects.take(spread(len(parts.defects), CHOICE))
    tried: dict[tuple[str, int], float] = {}
    best = -1.0
    for size in sizes:
        view = View(encoder, size, rule, roi)
        view.measure(items, good.rows)
        seen = Seen(view, items, good.rows, f"Trying {size} px")
        wrong = Seen(view, items, defects.rows, f"Trying {size} px on defects")
        for method in methods:
            normal, folds = fitted(method, seen, good, wish.seed, [])
            held, _ = held_out(normal, seen, folds)
            scorer = normal.scorer()
            found = np.array([judged(scorer, part)[0] for _, part in wrong])
            tried[method, size] = auroc(held[~np.isnan(held)], found)
        here = max(tried[method, size] for method in methods)
        if here <= best:
            break
        best = here
    method, size = max(tried, key=lambda each: (tried[each], -each[1]))
    ordered = sorted(tried, key=lambda each: -tried[each])
    return method, size, {f"{name} {side} px": tried[name, side] for name, side in ordered}


# -- what is normal --


def fitted(method: str, seen: Seen, good: Labels, seed: int, notes: list[str]) -> tuple[Normality, np.ndarray]:
    """(what is normal, by folds; the fold [N] of each good part)."""
    folds = _folds(good, seed, notes)
    count = int(folds.max()) + 1
    if method == "memory":
        memory = Memories(count, len(good), seed)
        for number, part in seen:
            memory.add(part, int(folds[number]), number)
        _check_read(seen, good, folds)
        memory.done()
        return memory, folds
    models = [Gaussians(count, seed, placed) for placed in ((False, True) if _same_grid(seen) else (False,))]
    for number, part in seen:
        for model in models:
            model.add(part, int(folds[number]), number)
    _check_read(seen, good, folds)

    def by_fold() -> Iterator[tuple[int, Part]]:
        for number, part in seen:
            yield int(folds[number]), part

    best = max(models, key=lambda model: likelihood(model, by_fold())) if len(models) > 1 else models[0]
    return best, folds


def _check_read(seen: Seen, good: Labels, folds: np.ndarray) -> None:
    """Raise `DataError` if what could be read does not reach two folds."""
    if len(set(np.delete(folds, list(seen.bad)).tolist())) < 2:
        raise too_few(len(good) - len(seen.bad), good.location, {str(key): why for key, why in seen.bad.items()})


def normal_said(normal: Gaussians) -> str:
    """The setting of a Gaussian, in words."""
    return "one mean a place" if normal.placed else "one mean for all places"


def _same_grid(seen: Seen) -> bool:
    """Whether all parts are single inputs of one shape."""
    shapes = {tuple(look.patches.shape) for _, part in seen for look in part}
    return len(shapes) == 1 and all(len(part) == 1 for _, part in seen)


def _folds(good: Labels, seed: int, notes: list[str]) -> np.ndarray:
    groups = {group for group in good.groups if group} | {i for i, group in enumerate(good.groups) if not group}
    if len(groups) < 2:
        notes.append("all good parts are of one group, so they were held out one by one, and the limit may be too low")
        good = replace(good, rows=good.rows.drop_columns(["group"]))
        return good.folds(min(FOLDS, len(good)), seed)
    return good.folds(min(FOLDS, len(groups)), seed)


def held_out(normal: Normality, seen: Iterable[tuple[int, Part]], folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scores [N], highest values of the maps [N]) of good parts, each by what did not learn from its fold; nan for one
    that cannot be read."""
    scores, peaks = np.full(len(folds), np.nan), np.full(len(folds), np.nan)
    scorers: dict[int, PatchMemory | Gaussian] = {}
    for number, part in seen:
        fold = int(folds[number])
        if fold not in scorers:
            scorers[fold] = normal.scorer(fold)
        scores[number], peaks[number] = judged(scorers[fold], part)
    return scores.astype(np.float32), peaks.astype(np.float32)


def limits(held: np.ndarray, peaks: np.ndarray, asked: float, notes: list[str]) -> tuple[float, float]:
    """(the rate of false alarms that can be promised, the value that maps of no more good parts than that reach)."""
    count = len(held)
    rate = asked
    if asked < 1.0 / (count + 1):
        rate = 1.0 / (count + 1)
        need = math.ceil(1.0 / asked) - 1
        notes.append(
            f"{count} good parts are too few to promise {100 * asked:g} % of false alarms: {need} or more are needed; "
            f"{100 * rate:.1f} % can be promised, and a part that is less normal than all of them is called a defect"
        )
    place = min(count, math.ceil(round((count + 1) * (1.0 - rate), 9)))
    return rate, float(np.nextafter(np.sort(peaks)[place - 1], np.float32(np.inf)))


def p_values(held: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(1 + good parts that score as high) / (n + 1) of each score: [N] of held-out good parts, [M] to [M]."""
    below = np.searchsorted(np.sort(held).astype(np.float32), scores.astype(np.float32))
    return np.asarray((1.0 + len(held) - below) / (1.0 + len(held)))


# -- known defects --


def _defects(
    view: View, items: Collection, defects: Labels, normal: Normality
) -> tuple[Labels, np.ndarray, dict[str, str]]:
    """(known defects that can be read, their scores, {id: reason} of the others)."""
    bad: dict[int, str] = {}
    scores = np.full(len(defects), np.nan, np.float32)
    if len(defects):
        scorer = normal.scorer()
        for number, part in view.parts(items, defects.rows, bad, "Looking at defects"):
            scores[number] = judged(scorer, part)[0]
    there = np.flatnonzero(~np.isnan(scores))
    return defects.take(there), scores[there], {defects.ids[number]: reason for number, reason in bad.items()}


def _metrics(learnt: Learnt) -> dict[str, Interval]:
    """AUROC and the share of known defects that would be found, with 95 % intervals."""
    if not len(learnt.defects):
        return {}
    scores = np.concatenate([learnt.held, learnt.found])
    truth = np.arange(len(scores)) >= len(learnt.held)
    called = p_values(learnt.held, learnt.found) <= learnt.rate
    groups = np.array([*learnt.good.groups, *learnt.defects.groups], dtype=object)
    named = groups if any(groups) else None
    return {
        "auroc": interval(lambda s, t: auroc(s[~t], s[t]) if 0 < t.sum() < len(t) else None, [scores, truth], named),
        "found": interval(lambda c: float(c.mean()), [called], None if named is None else named[len(learnt.held) :]),
    }


def auroc(good: np.ndarray, bad: np.ndarray) -> float:
    """How often a defect scores above a good part; ties count half."""
    ordered = np.sort(good)
    below = np.searchsorted(ordered, bad, "left") + np.searchsorted(ordered, bad, "right")
    return float(below.mean() / (2.0 * len(good)))
