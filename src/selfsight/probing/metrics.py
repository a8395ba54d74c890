"""Classification metrics of class scores, from scikit-learn where it has them, with bootstrap intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from selfsight.data.groups import group_numbers
from selfsight.probing.evaluation import Interval

UNEVEN = 1.5  # times as many items of the commonest class as of the rarest: more is uneven
NAMES = ("top1", "balanced", "top2", "macro_f1", "auroc")


def metrics(scores: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """The metrics of `NAMES`, fractions in [0, 1]. scores [N, C], larger is likelier; truth [N] class numbers.

    top1: accuracy.
    balanced: mean recall over classes.
    top2: truth among the best two; None for two classes, where it always is.
    macro_f1: mean F1 over classes.
    auroc: mean one-against-rest area, None where a class has no example or every one.
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

    guess = scores.argmax(1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    present = np.unique(truth)
    areas = [roc_auc_score(truth == c, scores[:, c]) for c in present] if len(present) > 1 else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is guessed but absent from the truth
        return {
            "top1": float(accuracy_score(truth, guess)),
            "balanced": float(balanced_accuracy_score(truth, guess)),
            "top2": float((best == truth[:, None]).any(1).mean()) if scores.shape[1] > 2 else None,
            "macro_f1": float(f1_score(truth, guess, average="macro")),
            "auroc": float(np.mean(areas)) if areas else None,
        }


def leading(truth: np.ndarray) -> str:
    """The metric that tells most for test items of class numbers `truth` [N]: "balanced" where the commonest of its
    classes has more than 1.5 times the items of the rarest, else "top1"."""
    sizes = np.bincount(truth)
    sizes = sizes[sizes > 0]
    return "balanced" if sizes.max() > UNEVEN * sizes.min() else "top1"


def balancing(truth: np.ndarray) -> np.ndarray:
    """Weights [N] of items of class numbers `truth` [N] that sum to 1, and to the same for each class that is there:
    the sum over the items that are right is then the balanced accuracy."""
    sizes = np.bincount(truth)
    return np.asarray(1.0 / (np.count_nonzero(sizes) * sizes[truth]))


def ece(probabilities: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of `probabilities` [N, C]: sum over bins of n_b / N |accuracy_b - confidence_b|.

    A bin holds the n_b items whose largest probability is in (i / bins, (i + 1) / bins]. confidence_b is the mean of
    these probabilities, accuracy_b the share of items whose likeliest class is the true one. Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, equation 3. 0 is best. Raises `ValueError` for rows that are not
    probabilities.
    """
    p = _probabilities(probabilities)
    confidence, right = p.max(1), p.argmax(1) == truth
    place = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)  # n_b (accuracy_b - confidence_b)
    return float(np.abs(gaps).sum() / len(p))


def nll(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean of -log of the probability [N, C] of the true class, in nats; a probability of 0 counts as 2.2e-16.

    Raises `ValueError` for rows that are not probabilities.
    """
    from sklearn.metrics import log_loss

    return float(log_loss(truth, _probabilities(probabilities), labels=np.arange(probabilities.shape[1])))


def brier(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Brier score of `probabilities` [N, C]: mean over items of the sum over classes of (p_c - [c is true])^2.

    It goes from 0, the best, to 2. For two classes it is twice the common form, which counts one class only. Brier,
    "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 1950. Raises `ValueError` for
    rows that are not probabilities.
    """
    p = _probabilities(probabilities)
    return float(((p - np.eye(p.shape[1])[truth]) ** 2).sum(1).mean())


def _probabilities(scores: np.ndarray) -> np.ndarray:
    p = np.asarray(scores, dtype=np.float64)
    if not ((p >= 0).all() and np.allclose(p.sum(1), 1.0, atol=1e-4)):
        raise ValueError("these scores are not probabilities: each row must have no value below 0 and sum to 1")
    return p


def kappa(scores: np.ndarray, truth: np.ndarray) -> float:
    """Cohen's kappa of the likeliest class of `scores` [N, C] and `truth` [N], for classes that are ordered grades.

    A disagreement is weighted by the square of its distance in grades. 1: all agree. 0: as by chance. nan: truth and
    guesses are all of one grade.
    """
    from sklearn.metrics import cohen_kappa_score

    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")  # one grade only
        return float(cohen_kappa_score(truth, scores.argmax(1), weights="quadratic", labels=np.arange(scores.shape[1])))


def sensitivity(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The share of each class's items that `scores` [N, C] find, [C]; nan for a class without items."""
    found, missed, _, _ = _counts(scores, truth)
    return _share(found, missed)


def specificity(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """For each class, the share of other classes' items that `scores` [N, C] do not take for it, [C]; nan if none."""
    _, _, passed, mistaken = _counts(scores, truth)
    return _share(passed, mistaken)


def _counts(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(true positives, false negatives, true negatives, false positives) of each class, each [C]."""
    from sklearn.metrics import multilabel_confusion_matrix

    tables = multilabel_confusion_matrix(truth, scores.argmax(1), labels=np.arange(scores.shape[1]))  # [C, 2, 2]
    return tables[:, 1, 1], tables[:, 1, 0], tables[:, 0, 0], tables[:, 0, 1]


def _share(some: np.ndarray, rest: np.ndarray) -> np.ndarray:
    whole = some + rest
    return np.where(whole > 0, some / np.maximum(whole, 1), np.nan)


def interval(
    statistic: Callable[..., float | None],
    arrays: Sequence[np.ndarray],
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`statistic(*arrays)` with its percentile bootstrap interval. Items, the rows of all `arrays`, are resampled.

    groups: a name for each item, or None for an item that is alone. Whole groups are then resampled.
    draws: number of resamplings. Those for which the statistic is None or nan are left out.
    seed: the same seed gives the same interval.
    level: share of the resampled values inside the interval.

    With one item or group, low and high are None: nothing tells how others would differ. Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13. Raises `ValueError` for no items, arrays of different lengths, or
    a level not between 0 and 1.
    """
    sizes = {len(array) for array in arrays}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(f"arrays of {sorted(sizes)} items: all need the same number, one at least")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    numbers = group_numbers(groups, sizes.pop())
    count = int(numbers.max()) + 1
    value = _known(statistic(*arrays))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws if count > 1 else 0):
        times = np.bincount(rng.integers(0, count, count), minlength=count)[numbers]  # [N]: how often each item is in
        rows = np.repeat(np.arange(len(numbers)), times)
        found.append(_known(statistic(*(array[rows] for array in arrays))))
    known = [one for one in found if not math.isnan(one)]
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]).tolist() if known else (None, None)
    return Interval(None if math.isnan(value) else value, low, high)


def paired_interval(
    statistic: Callable[..., float | None],
    one: np.ndarray,
    other: np.ndarray,
    arrays: Sequence[np.ndarray],
    groups: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """`statistic(one, *arrays) - statistic(other, *arrays)` with its interval, for two predictions of the same items.

    Both are measured on the same resampled items, so items that are hard for both do not widen the interval. `arrays`
    are what both share, such as the truth. The other arguments are as in `interval`.
    """

    def difference(one: np.ndarray, other: np.ndarray, *rest: np.ndarray) -> float:
        return _known(statistic(one, *rest)) - _known(statistic(other, *rest))

    return interval(difference, (one, other, *arrays), groups, draws, seed, level)


def paired_gain(
    one: np.ndarray,
    other: np.ndarray,
    groups: Sequence[str | None] | np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    weights: np.ndarray | None = None,
) -> Interval:
    """The mean of `one` [S, N] minus the mean of `other` [R, N], with its interval: N items, S and R draws of the
    labels.

    weights: of the items [N], all the same if not given. Means are weighted by them; an item keeps its weight however
        often its class is drawn.

    Items (or groups, see `interval`) and draws of the labels are both resampled with replacement, as other items could
    have been tested and other labels given. If S equals R, both sides are taken to have learnt from the same labels,
    and their draws are resampled together. Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007, which
    is mildly conservative. Raises `ValueError` for different numbers of items.
    """
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"{one.shape[1]} and {other.shape[1]} items: a pair needs the same items")
    numbers = group_numbers(groups, one.shape[1])
    count = int(numbers.max()) + 1
    weights = np.ones(len(numbers)) if weights is None else weights
    sizes = np.bincount(numbers, weights)
    sums = [np.stack([np.bincount(numbers, row * weights, count) for row in side]) for side in (one, other)]
    value = float((sums[0].sum(1).mean() - sums[1].sum(1).mean()) / sizes.sum())
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws if count > 1 else 0):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        rows = [rng.integers(0, len(side), len(side)) for side in sums]
        if len(sums[0]) == len(sums[1]):
            rows[1] = rows[0]
        means = [(side[some] @ times).mean() / (sizes @ times) for side, some in zip(sums, rows, strict=True)]
        found.append(means[0] - means[1])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2]).tolist() if found else (None, None)
    return Interval(value, low, high)


def _known(value: float | None) -> float:
    return math.nan if value is None else float(value)
