"""Label errors: items that look like another class than theirs.

Two views are added up, as log odds. One is of the neighbours: how far the nearest items of an item's own class are, and
those of others (the ratio of squared distances of Gröger et al., "Intrinsic Self-Supervision for Data Quality Audits",
NeurIPS 2024). The other is a linear classifier that has not seen the item (Northcutt et al., "Confident Learning",
JAIR 2021). Both can be asked about any class, so what they would say of the items of a class, if these had another
label, is known: it tells how many have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.special import expit

from selfsight.console import track
from selfsight.curation.ranking import Ranking
from selfsight.data.groups import deal
from selfsight.data.spread import spread
from selfsight.probing.linear import fit_linear, unit_rows

FOLDS = 5
STRENGTH = 3.0  # of the classifier: weak, as some of its labels are wrong
LEARNT = 10_000  # items that a classifier learns from at most, and among which neighbours are looked for
NEAREST = 3  # items of a class, whose mean distance is that of the class
PARTS = (1.0, 0.5, 0.4, 0.3, 0.2)  # of the items of a class, its most typical ones, that wrong labels are counted by
FEWEST = 4  # items of a class that tell how doubtful another label of theirs would be
EVEN = 0.7  # items of a class with the label of another for each with its own, the mean of both ways
ERRORS = 3.0  # standard errors that classes are told better than by chance
BLOCK = 2**24  # distances in memory at a time


def label_errors(
    features: np.ndarray, classes: np.ndarray, names: Sequence[str], groups: np.ndarray | None = None
) -> Ranking:
    """The items that have a class, those whose class is most doubtful first, each with the class suggested.

    features: [N, D]. classes: numbers [N] of `names`; -1 where an item has none.
    groups: numbers [N]; items of one group, as near duplicates, are never asked of each other.

    The estimate supposes that who gave a wrong label looked at the class of an item, not at how it differs from others
    of the class.
    """
    known = np.flatnonzero(classes >= 0)
    present, labels = np.unique(classes[known], return_inverse=True)
    if len(present) < 2:
        return Ranking("label_errors", np.empty(0, np.int64), np.empty(0), 0, 0, 0, ())
    own = np.arange(len(known)) if groups is None else np.unique(groups[known], return_inverse=True)[1]
    doubt, likeliest = doubts(unit_rows(features[known]).astype(np.float32), labels, own)
    value = doubt[np.arange(len(known)), labels]
    order = np.argsort(-value, kind="stable")
    suggested = tuple(names[present[one]] for one in likeliest[order])
    moved, error, estimated, low, high = _wrong(doubt, labels)
    alarms = _alarms(doubt, labels, value[order], moved * max(0.0, 1.0 - error))
    return Ranking("label_errors", known[order], expit(value[order] / 4), estimated, low, high, suggested, alarms)


def doubts(units: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(log odds [N, C] that each class is wrong for each item; the likeliest class [N] that is not its own).

    units: [N, D]. labels: class numbers [N], all below C occurring. groups: numbers [N], from 0 on.
    """
    every = np.arange(len(labels))
    chance = _out_of_sample(units, labels, groups)
    far = _class_distances(units, labels, groups)
    doubt = np.log(_others(chance) / chance) + 4.0 * np.log(far / -_others(-far))
    chosen = doubt.copy()
    chosen[every, labels] = np.inf
    return doubt, chosen.argmin(1)


def worst_regions(ranking: Ranking, items: np.ndarray) -> tuple[Ranking, np.ndarray]:
    """(the ranking of items, the region [K] that each is ranked by), of a ranking of regions.

    Regions are boxes, or what a mask holds of one class. Their ranking is `label_errors` of features of their crops,
    with `items` as groups, so that regions of one item are never asked of each other. items: the number of the item
    that each region is of, [R].
    """
    owners = items[ranking.numbers]
    first = np.sort(np.unique(owners, return_index=True)[1])
    counts = [len(np.unique(owners[:many])) for many in (ranking.estimated, ranking.low, ranking.high)]
    suggested = tuple((ranking.suggested or ())[place] for place in first)
    estimated, low, high = counts
    alarms = None if ranking.alarms is None else ranking.alarms[first]
    items_ = Ranking(ranking.kind, owners[first], ranking.score[first], estimated, low, high, suggested, alarms)
    return items_, ranking.numbers[first]


def _wrong(doubt: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float, int, int, int]:
    """(how many items of each class have the label of each other [C, C], the standard error of their sum as a share of
    it, how many labels are wrong, and its interval of 95 %), from the doubts [N, C] of each class.

    For each two classes: items of one that look like it tell how doubtful the other would be as their label. So many of
    those with the other label are at least as doubtful as the most typical part of these, that the ratio is of wrong
    labels to right ones; of right ones next to none are. Where classes overlap some are, the fewer the smaller the
    part, but a smaller part counts fewer. So the part is taken whose interval ends lowest (Blanchard et al.,
    "Semi-Supervised Novelty Detection", JMLR 2010, of the share of a mixture). The interval is that of the counts, for
    the parts that give the least and, but for the whole, the most.

    Two classes that have the labels of each other about as often as their own are not told apart by the features, which
    is no fault of labels; nor is anything, where features tell no class.
    """
    classes = doubt.shape[1]
    first, second = np.argsort(doubt, axis=1)[:, :2].T
    every = np.arange(len(labels))
    told = doubt[every, first] < doubt[every, second]  # where two classes are as likely, nothing says which it is
    members = [np.flatnonzero(labels == kind) for kind in range(classes)]
    hits, worth = np.zeros((2, len(PARTS), classes, classes))  # with another label; a hit, per right item of the class
    for kind, mine in enumerate(members):
        best = np.where(first == kind, second, first)
        for other in np.unique(best[mine]):
            like = members[other][(first[members[other]] == other) & told[members[other]]]
            if len(like) < FEWEST:
                continue
            known, asked = np.sort(doubt[like, kind] - doubt[like, other]), mine[best[mine] == other]
            odds = doubt[asked, kind] - doubt[asked, other]
            starts = [int((1.0 - part) * len(known)) for part in PARTS]
            hits[:, other, kind] = [(odds >= known[start]).sum() for start in starts]
            worth[:, other, kind] = [1.0 / (len(known) - start) for start in starts]
    sizes = np.array([len(mine) for mine in members], float)
    moved = hits * worth
    even = np.sqrt(np.median(moved * moved.transpose(0, 2, 1), axis=0)) > EVEN
    moved[:, even | (not tell_apart(first, labels))] = 0.0
    right = [np.linalg.lstsq(np.eye(classes) + each.T, sizes)[0].clip(0, sizes)[:, None] for each in moved]
    worth, moved = worth * right, moved * right
    found = moved.sum((1, 2))
    reach = 2.0 * np.sqrt((moved * worth).sum((1, 2)) + worth.max((1, 2)) ** 2)  # one more may have been hit
    chosen = (found + reach).argmin()
    least, most = max(0.0, (found - reach).min()), (found + reach)[1:].max()
    many, error = min(found[chosen], len(labels)), reach[chosen] / 2.0 / max(found[chosen], 1.0)
    return moved[chosen], error, round(many), int(least), min(int(np.ceil(most)), len(labels))


def tell_apart(told: np.ndarray, labels: np.ndarray) -> bool:
    """Whether classes [N] told of items agree with their labels [N] more often than by chance, which Cohen's kappa is
    above 0 by."""
    many = int(max(told.max(), labels.max())) + 1
    chance = float((np.bincount(told, minlength=many) * np.bincount(labels, minlength=many)).sum()) / len(labels) ** 2
    error = np.sqrt(chance * (1.0 - chance) / len(labels))
    return bool((told == labels).mean() - chance > ERRORS * error)


def _alarms(doubt: np.ndarray, labels: np.ndarray, values: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """The share [N] of the items with a right label whose doubt is thought to be at least each of `values` [N], highest
    first.

    Of all that many the wrong labels are taken away: as many of them are as doubtful as their label would be for the
    items of their class that look like it. moved: how many items of each class have the label of each other, [C, C].
    """
    like = [doubt[(labels == kind) & (doubt.argmin(1) == kind)] for kind in range(doubt.shape[1])]
    wrong = np.zeros(len(values))
    for own, said in np.argwhere(moved):
        known = np.sort(-like[own][:, said])
        wrong += moved[own, said] * np.searchsorted(known, -values, side="right") / len(known)
    sound = np.maximum.accumulate(np.arange(1, len(values) + 1) - wrong)
    return np.asarray((sound / max(1.0, len(values) - moved.sum())).clip(0, 1))


def _others(values: np.ndarray) -> np.ndarray:
    """[N, C] the largest of the other columns."""
    top = np.sort(values, axis=1)[:, -2:]
    best = np.broadcast_to(top[:, 1:], values.shape).copy()
    best[np.arange(len(values)), values.argmax(1)] = top[:, 0]
    return best


def _out_of_sample(units: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Probabilities [N, C] of the classes of each item, by a linear classifier of other groups."""
    classes = int(labels.max()) + 1
    parts = deal(groups, labels, [1 / FOLDS] * FOLDS)
    said = np.full((len(labels), classes), 1.0 / classes)
    for part in track(np.unique(parts), "Learning the classes", len(np.unique(parts))):
        here, rest = parts == part, np.flatnonzero(parts != part)
        rest = rest[spread(len(rest), LEARNT)]
        if len(np.unique(labels[rest])) > 1:
            said[here] = fit_linear(units[rest], labels[rest], classes, STRENGTH).scores(units[here])
    return said.clip(1e-6, 1.0)


def _class_distances(units: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[N, C] mean cosine distance of each item to its 3 nearest of each class, those of its own group left out."""
    bank = spread(len(units), LEARNT)
    bank = bank[np.argsort(labels[bank], kind="stable")]
    ends = np.searchsorted(labels[bank], np.arange(int(labels.max()) + 2))
    found = np.full((len(units), len(ends) - 1), 1.0)
    for part in np.array_split(np.arange(len(units)), -(-len(units) * len(bank) // BLOCK)):
        far = (1.0 - units[part] @ units[bank].T).clip(1e-6)
        far[groups[part][:, None] == groups[bank]] = 2.0  # as far as can be
        for number, (start, end) in enumerate(pairwise(ends)):
            if count := min(NEAREST, end - start):
                few = np.partition(far[:, start:end], count - 1, axis=1)[:, :count]
                found[part, number] = few.mean(1)
    return found
