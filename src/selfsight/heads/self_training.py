"""Self-training: a head guesses labels of unlabelled items, and learns from them where they are seen to be right.

First labels spread over the graph of neighbours of all items, labelled or not (Zhou et al., "Learning with Local and
Global Consistency", NeurIPS 2004, weighted as by Iscen et al., CVPR 2019). Then, round after round, a head that has
learnt from labels and guesses guesses anew. A guess is taken from a confidence on at which 95 % of them are right. How
many are is estimated on labelled items: each is held out in turn, and everything, thresholds included, is made without
its label. So a wrong label counts as a wrong guess, and with many of them nothing is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial

import numpy as np
import pyarrow as pa
import scipy.sparse as sparse

from selfsight.data.groups import group_numbers
from selfsight.data.labels import Labels
from selfsight.data.spread import spread
from selfsight.errors import SelfsightError
from selfsight.heads import calibration as cal
from selfsight.heads.classify import Learnt, Wish, learn
from selfsight.heads.classify_head import held_out
from selfsight.heads.fits import More, fit_linear, fitted, scored
from selfsight.heads.metrics import TITLES, difference, leading, percent
from selfsight.probing.evaluation import Interval
from selfsight.probing.neighbours import neighbour_graph
from selfsight.results import Result

WANTED = 0.95  # share of the guesses that are to be right
TRIED = ((WANTED, False), (0.965, False), (0.98, False), (WANTED, True))  # shares, and whether of each class apart
LEAST = 0.75  # that must be right for all that is known: the lower end of the 90 % interval of the estimate
LEAST_LABELS = 11  # which show that when the guesses of all of them are right: 0.75 ** 11 < 0.05
NEIGHBOURS, SHARPNESS, ALPHA = 10, 3, 0.95  # of the graph: neighbours, power of the cosine, share that spreads on
TINY = 1e-12
CLOSE, MOST_STEPS = 1e-7, 1000  # of the iteration: change at which it ends
ROUNDS = 3
STILL = 0.995  # share of the guesses that stay the same, at which rounds end
STRENGTH = 100.0  # of the logistic regression that guesses
POOL = 20_000  # items without a label, at most
USED = 2_000  # guesses that a head learns from, at most
RATIO = 1.0  # times the labels of its class, that the guesses of a class count together at most
UNKNOWN = Interval(None, None, None)


@dataclass(frozen=True)
class Round(Result):
    """A round of guesses.

    by: propagation or confidence. precision: share of the guesses that are right, estimated on labelled items, with its
    90 % interval. asked: labelled items of which that is. right: share of all guesses that are, sure or not. held:
    labelled items of which that is. guessed: items of each class. taken: whether they were learnt from.
    """

    by: str
    precision: Interval
    asked: int
    right: float
    held: int
    guessed: dict[str, int]
    taken: bool = True


@dataclass(frozen=True)
class SelfTraining(Result):
    """What self-training came to.

    kept: whether the head has learnt from guesses. why: in a sentence. unlabelled: items that could be guessed. rounds:
    of guesses. guessed: items of each class, of the guesses that are kept. precision: their estimate, as of a round.
    gain: how much better the head is with them, in the leading metric, on items that were held out in turn.
    """

    kept: bool
    why: str
    unlabelled: int
    rounds: list[Round] = field(default_factory=list)
    guessed: dict[str, int] = field(default_factory=dict)
    precision: Interval = UNKNOWN
    gain: Interval = UNKNOWN


def self_trained(
    learnt: Learnt, labels: Labels, features: np.ndarray, pool: Labels, of_pool: np.ndarray, wish: Wish
) -> tuple[Learnt, SelfTraining, pa.Table | None]:
    """The head that also learns from guesses, or `learnt` itself where they do not help; what came of it; and the rows
    of the guesses, as `head.items_of` has rows.

    learnt: from `labels` and `features` [N, D]. pool: the unlabelled items, with `of_pool` [P, D]. Raises
    `SelfsightError` for labels that are not one class an item.
    """
    check_kind(labels)
    held = int((learnt.folds >= 0).sum())
    if not len(pool):
        return learnt, SelfTraining(False, "no item is without a label", 0), None
    if len(labels) > POOL:
        return learnt, SelfTraining(False, f"{len(labels):,} labels are enough without guesses", len(pool)), None
    if held < LEAST_LABELS:
        few = f"{held} labels that can be held out are too few to tell how often guesses are right; {LEAST_LABELS} are"
        return learnt, SelfTraining(False, f"{few} needed", len(pool)), None
    work = Guessing(learnt, labels, features, pool, of_pool)
    rounds = list(work.rounds())
    if not rounds[0].taken:
        return learnt, SelfTraining(False, _why_none(rounds[0]), len(pool), rounds), None
    *_, last = [each for each in rounds if each.taken]
    new = learn(labels, features, wish, more=work.more)
    name = leading(learnt.targets.kind, learnt.targets.values.sum(0))
    there = np.flatnonzero(learnt.folds >= 0)
    groups = [labels.groups[place] for place in there] if any(labels.groups) else None
    gain = difference(learnt.targets.take(there), held_out(new), held_out(learnt), groups, [name])[name]
    done = SelfTraining(True, "", len(pool), rounds, last.guessed, last.precision, gain)
    if gain.value is None or gain.value < 0.0:
        why = f"with guesses the head is worse on held-out labels: {TITLES[name]} changes by {percent(gain)}"
        return learnt, replace(done, kept=False, why=why), None
    return new, replace(done, why=_why(done, last, sum(each.taken for each in rounds))), work.rows()


def check_kind(labels: Labels) -> None:
    """Raise `SelfsightError` for labels that are not one class an item."""
    if labels.kind not in ("class", "grade"):
        raise SelfsightError(f"--self-train is for one class an item; these labels are of the kind {labels.kind}.")


def _why_none(first: Round) -> str:
    return (
        f"nothing was guessed: guesses agree with {100 * first.right:.0f} % of the {first.held} labels that were held "
        f"out in turn, and from no confidence on is it shown that {100 * WANTED:g} % are right. Labels may be wrong, "
        "or the features do not tell the classes apart"
    )


def _why(done: SelfTraining, last: Round, rounds: int) -> str:
    count = sum(done.guessed.values())
    within = f"{100 * (last.precision.low or 0.0):.0f} to {100 * (last.precision.high or 0.0):.0f} %"
    return (
        f"{count:,} of {done.unlabelled:,} items without a label were guessed in {rounds} "
        f"round{'s' if rounds > 1 else ''}; an estimated "
        f"{100 * (last.precision.value or 0.0):.0f} % of them are right (90 % interval {within})"
    )


# -- the graph --


def graph_of(features: np.ndarray, k: int = NEIGHBOURS) -> sparse.csr_array:
    """The neighbour graph [M, M] of features [M, D], normalised: D^-1/2 W D^-1/2, where W adds cosine^3 of each item's
    k nearest others and of those whose neighbour it is, and D is diagonal with the sums of W."""
    found, count = neighbour_graph(features, k), len(features)
    rows = np.repeat(np.arange(count), found.index.shape[1])
    near = np.maximum(found.cosine.ravel().astype(np.float64), 0.0) ** SHARPNESS
    one_way = sparse.csr_array((near, (rows, found.index.ravel())), shape=(count, count))
    both = one_way + one_way.T
    scale = sparse.diags_array(1.0 / np.sqrt(np.maximum(both.sum(1), 1e-12)))
    return sparse.csr_array(scale @ both @ scale)


def propagated(graph: sparse.csr_array, given: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """What is `given` [M, K] of some items, spread over all of them: (1 - a) (I - a S)^-1 Y, by iteration."""
    found = given
    for _ in range(MOST_STEPS):
        before, found = found, alpha * (graph @ found) + (1.0 - alpha) * given
        if np.abs(found - before).max() <= CLOSE:
            break
    return found


# -- which guesses to take --


@dataclass(frozen=True)
class Asked:
    """Guesses of H labelled items that were held out.

    said: the class number that is guessed, [H]. sure: how sure the guess is. truth: the class number of the label.
    folds: in which it was held out. weights: how many items of the pool it stands for.
    """

    said: np.ndarray
    sure: np.ndarray
    truth: np.ndarray
    folds: np.ndarray
    weights: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """[H] bool, which guesses are right."""
        return np.asarray(self.said == self.truth)

    def take(self, chosen: np.ndarray) -> Asked:
        """Those that are `chosen`, [H] bool."""
        return Asked(*(getattr(self, each.name)[chosen] for each in fields(self)))

    def share_right(self) -> float:
        """The weighted share that is right."""
        return float((self.right * self.weights).sum() / max(float(self.weights.sum()), TINY))


@dataclass(frozen=True)
class Taken:
    """From which confidence on guesses are taken.

    thresholds: [K] of each class, infinite where none is. without: {fold: the same without its labels}. precision: the
    share of guesses that is right, with its 90 % interval. asked: labelled items behind that.
    """

    thresholds: np.ndarray
    without: dict[int, np.ndarray]
    precision: Interval
    asked: int

    @property
    def good(self) -> bool:
        return (self.precision.value or 0.0) >= WANTED and (self.precision.low or 0.0) >= LEAST


def taken_from(asked: Asked, classes: int) -> Taken:
    """The thresholds for guesses of so many classes.

    One threshold for all classes is tried first, for a larger and larger share that is right, then one for each class,
    above its surest mistakes: the first to be good is taken, as guesses of the surest items only teach little. A class
    of which no held-out guess passes is not guessed. The estimate is cross-fitted: whether a guess passes is decided by
    thresholds from the other folds.
    """
    found = []
    for share, apart in TRIED:
        without = {int(f): _thresholds(asked.take(asked.folds != f), classes, share, apart) for f in set(asked.folds)}
        limits = np.array([without[int(f)][c] for f, c in zip(asked.folds, asked.said, strict=True)])
        passed = asked.take(asked.sure >= limits)
        precision = _precision(passed)
        found.append(Taken(_thresholds(asked, classes, share, apart), without, precision, len(passed.said)))
        if found[-1].good:
            return found[-1]
    return found[0]


def _thresholds(asked: Asked, classes: int, share: float, apart: bool) -> np.ndarray:
    """[K] of all classes together, or of each `apart`."""
    least, out = _lowest(asked, share), np.full(classes, np.inf)
    for number in np.unique(asked.said):
        mine = asked.take((asked.said == number) & (asked.sure >= least))
        if len(mine.said):
            out[number] = _lowest(mine, share) if apart else least
    return out


def _lowest(asked: Asked, share: float) -> float:
    """The lowest confidence from which on this share is right; infinite if there is none."""
    order = np.argsort(-asked.sure, kind="stable")
    sure, weights, right = asked.sure[order], asked.weights[order], asked.right[order]
    found = (right * weights).cumsum() / np.maximum(weights.cumsum(), TINY)
    last = np.append(np.diff(sure) < 0, True)  # of those that are as sure all or none pass
    good = np.flatnonzero((found >= share) & last)
    return float(sure[good[-1]]) if len(good) else np.inf


def _precision(asked: Asked, level: float = 0.9) -> Interval:
    """The share that is right with the interval of Clopper and Pearson (Biometrika 1934), for as many items as the
    weights are worth (Kish)."""
    from scipy.stats import beta

    weights = asked.weights
    if not weights.sum():
        return UNKNOWN
    count, share = float(weights.sum() ** 2 / (weights**2).sum()), asked.share_right()
    hits, tail = share * count, (1.0 - level) / 2.0
    low = 0.0 if hits <= 0 else float(beta.ppf(tail, hits, count - hits + 1.0))
    high = 1.0 if hits >= count else float(beta.ppf(1.0 - tail, hits + 1.0, count - hits))
    return Interval(share, low, high)


# -- the rounds --


Seen = dict[int | None, tuple[np.ndarray, np.ndarray]]  # without each fold: (class [M], how sure [M])


class Guessing:
    """The guesses of N labelled and P unlabelled items, M in all: once from all labels, and once without the labels of
    each fold, which then are guessed like the rest."""

    def __init__(self, learnt: Learnt, labels: Labels, features: np.ndarray, pool: Labels, of_pool: np.ndarray) -> None:
        self.targets, self.folds, self.pool, self.count = learnt.targets, learnt.folds, pool, len(labels)
        self.truth, self.classes = learnt.targets.numbers, len(learnt.targets.classes)
        self.features = np.concatenate([features, of_pool])
        groups = group_numbers([*labels.groups, *pool.groups], len(self.features))
        self.views: list[int | None] = [*np.unique(self.folds[self.folds >= 0]).tolist(), None]
        # Items of the pool that share a group with a fold are no news to a head that is measured on that fold.
        self.apart = {v: v is not None and np.isin(groups, groups[: self.count][self.folds == v]) for v in self.views}
        self.guesses: dict[int | None, np.ndarray] = {}  # class numbers [M], -1 for none
        self.weight = 0.0

    def rounds(self) -> Iterator[Round]:
        """Round after round, until fewer are right, or guesses stay as they are."""
        right = 0.0
        for number in range(ROUNDS):
            seen = self._confident() if number else self._propagated()
            asked = self._asked(seen)
            taken, before, right = taken_from(asked, self.classes), right, asked.share_right()
            good = taken.good and right >= before
            guesses = {v: self._guessed(v, *seen[v], taken) for v in self.views}
            counts = np.bincount(guesses[None][guesses[None] >= 0], minlength=self.classes).tolist()
            by = dict(zip(self.targets.classes, counts, strict=True))
            how = "confidence" if number else "propagation"
            same = number and float((guesses[None] == self.guesses[None]).mean()) >= STILL
            if good:
                self.guesses, self.weight = guesses, float(taken.precision.low or 0.0)
            yield Round(how, taken.precision, taken.asked, right, len(asked.said), by, good)
            if same or not good:
                return

    def more(self, fold: int | None) -> More:
        """What a head learns from beside the labels, without a fold; for `learn`."""
        chosen = self.guesses[fold].copy()
        chosen[: self.count] = -1
        chosen[self.apart[fold]] = -1
        return self._more(chosen, fold)

    def rows(self) -> pa.Table:
        """The guesses of the pool, as rows of items.parquet: `guessed`, and of the weight that they count with."""
        chosen = self.guesses[None][self.count :]
        places = np.flatnonzero(chosen >= 0)
        some = self.pool.take(places)
        weights = self._weights(chosen[places], None)
        names = [self.targets.classes[number] for number in chosen[places]]
        columns = {name: some.rows[name] for name in ("id", "uri", "content_hash")}
        columns |= {"group": pa.array(some.groups, pa.string()), "label": pa.array(names, pa.string())}
        columns |= {"weight": pa.array(weights, pa.float64()), "guessed": pa.array(np.ones(len(names), bool))}
        return pa.table(columns)

    def _kept(self, fold: int | None) -> np.ndarray:
        return np.arange(self.count) if fold is None else np.flatnonzero(self.folds != fold)

    def _propagated(self) -> Seen:
        graph, seen = graph_of(self.features), {}
        for fold in self.views:
            given, kept = np.zeros((len(self.features), self.classes)), self._kept(fold)
            given[kept, self.truth[kept]] = 1.0
            found = propagated(graph, given)
            seen[fold] = _surest(found / np.maximum(found.sum(1, keepdims=True), 1e-12))
        return seen

    def _confident(self) -> Seen:
        seen = {}
        for fold in self.views:
            kept, more = self._kept(fold), self._more(self.guesses[fold], fold)
            fit = partial(fit_linear, strength=STRENGTH)
            scorer = fitted(fit, self.features[kept], self.targets.take(kept), more)
            seen[fold] = _surest(cal.probabilities("class", scored(scorer, self.features)))
        return seen

    def _asked(self, seen: Seen) -> Asked:
        """Labelled items stand for the pool: one of a class that is rarer there than among labels counts less."""
        held = np.flatnonzero(self.folds >= 0)
        said, sure = (np.array([seen[self.folds[i]][part][i] for i in held]) for part in (0, 1))
        labelled = np.bincount(self.truth[held], minlength=self.classes)
        there = np.bincount(seen[None][0][self.count :], minlength=self.classes)
        weights = (there / np.maximum(labelled, 1))[self.truth[held]]
        return Asked(said, sure, self.truth[held], self.folds[held], weights)

    def _guessed(self, fold: int | None, said: np.ndarray, sure: np.ndarray, taken: Taken) -> np.ndarray:
        thresholds = taken.thresholds if fold is None else taken.without[fold]
        chosen = np.where((sure >= thresholds[said]) & (sure > 0.0), said, -1)
        chosen[self._kept(fold)] = -1
        return chosen

    def _more(self, chosen: np.ndarray, fold: int | None) -> More:
        """The guesses `chosen` [M], a few of each class where there are many."""
        each = max(1, USED // self.classes)
        places = [np.flatnonzero(chosen == number) for number in range(self.classes)]
        used = np.sort(np.concatenate([some[spread(len(some), each)] for some in places]))
        values = np.eye(self.classes, dtype=np.float32)[chosen[used]]
        weights = self._weights(chosen[used], fold)
        return More(self.features[used], replace(self.targets, values=values), weights)

    def _weights(self, numbers: np.ndarray, fold: int | None) -> np.ndarray:
        """How much each guess of a class counts: never more than is likely to be right."""
        labels = np.bincount(self.truth[self._kept(fold)], minlength=self.classes)
        guesses = np.bincount(numbers, minlength=self.classes)
        return np.asarray(np.minimum(self.weight, (RATIO * labels / np.maximum(guesses, 1))[numbers]))


def _surest(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the class [M] of the largest share of each row, how far it is ahead of the next)."""
    said = shares.argmax(1)
    if shares.shape[1] < 2:
        return said, shares[:, 0]
    best = np.partition(shares, -2, axis=1)
    return said, best[:, -1] - best[:, -2]
