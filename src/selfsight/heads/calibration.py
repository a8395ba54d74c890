"""From scores of held-out items to probabilities that hold, sets that cover, and decisions at a stated price."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from selfsight.errors import DataError, SelfsightError
from selfsight.heads.targets import Targets
from selfsight.probing.evaluation import Interval

PRIOR = 1.0  # standard deviation of the logarithm of a temperature, before any label was seen
RANGE = (-4.0, 4.0)  # of that logarithm
FLOOR = 1e-12
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a class's share of the labels, that its probability is divided by


def probabilities(kind: str, scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """[N, K] float64, as `modules.probabilities` gives them."""
    s = scores.astype(np.float64) / temperature
    if kind == "classes":
        return np.asarray(1.0 / (1.0 + np.exp(-s)))
    odds = np.exp(s - s.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def losses(targets: Targets, scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """How wrong each item's scores [N, K] are, [N], by a proper rule: -log of the probability of the class; for several
    classes its mean over them; for a grade the ranked probability score (Epstein 1969); for a number the square."""
    if targets.kind == "number":
        return np.asarray((scores[:, 0] - targets.values[:, 0]) ** 2)
    p, truth = probabilities(targets.kind, scores, temperature), targets.values
    if targets.kind == "grade":
        return np.asarray(((p.cumsum(1) - truth.cumsum(1)) ** 2).sum(1))
    if targets.kind == "classes":
        return np.asarray(-np.log(np.where(truth > 0, p, 1.0 - p).clip(FLOOR)).mean(1))
    return np.asarray(-np.log((p * truth).sum(1).clip(FLOOR)))


def fit_temperature(targets: Targets, scores: np.ndarray) -> float:
    """The temperature at which held-out scores [N, K] are likeliest, drawn towards 1 where items are few. Guo et al.,
    "On Calibration of Modern Neural Networks", ICML 2017."""
    from scipy.optimize import minimize_scalar

    likely = Targets("class" if targets.kind == "grade" else targets.kind, targets.classes, targets.values)
    found = minimize_scalar(
        lambda log: losses(likely, scores, np.exp(log)).sum() + log * log / (2.0 * PRIOR**2),
        bounds=RANGE,
        method="bounded",
    )
    return float(np.exp(found.x))


# -- sets that cover --


def conformal_rank(count: int, coverage: float) -> int | None:
    """Which of `count` held-out scores, counted from 1 in ascending order, a new one exceeds with a probability of at
    most 1 - `coverage`; None if there are too few to promise it."""
    rank = int(np.ceil((count + 1) * coverage - 1e-9))
    return rank if rank <= count else None


def set_threshold(targets: Targets, p: np.ndarray, coverage: float) -> float | None:
    """The least probability of a class in a prediction set, by held-out probabilities `p` [N, K]; None if there are too
    few items to promise the coverage.

    One class or grade: sets hold the true one with a probability of `coverage` (split conformal; Vovk et al., 2005).
    Several: sets hold on average that share of an item's classes (conformal risk control; Angelopoulos et al., 2022).
    """
    if targets.kind == "classes":
        return _several_threshold(targets.values, p, coverage)
    wrong = np.sort(1.0 - (p * targets.values).sum(1))
    rank = conformal_rank(len(wrong), coverage)
    return None if rank is None else float(1.0 - wrong[rank - 1])


def _several_threshold(truth: np.ndarray, p: np.ndarray, coverage: float) -> float | None:
    some = truth.sum(1) > 0
    truth, p = truth[some], p[some]
    steps = np.unique(p[truth > 0])  # the share that is missed grows from one to the next
    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        missed = ((truth * (p < steps[middle])).sum(1) / truth.sum(1)).sum()
        low, high = (middle + 1, high) if (missed + 1.0) / (len(p) + 1) <= 1.0 - coverage + 1e-9 else (low, middle)
    return float(steps[low - 1]) if low else None


def half_width(truth: np.ndarray, values: np.ndarray, coverage: float) -> float | None:
    """Half of the interval of a number around held-out `values` [N] that holds the truth; None if there are too few."""
    far = np.sort(np.abs(truth - values))
    rank = conformal_rank(len(far), coverage)
    return None if rank is None else float(far[rank - 1])


# -- decisions --


@dataclass(frozen=True)
class Decision:
    """How probabilities become a label.

    rule: "likeliest"; "balanced", the likeliest against a power of its share of the labels; "threshold", `positive`
        from `threshold` on; or "costs", the least expected cost.
    weights: of "balanced", one per class.
    positive: of "threshold".
    threshold: of "threshold".
    costs: of "costs": a row per true class, a column per answer.
    price: what the rule costs, by held-out items: {"miss_rate", "false_alarms", …} with intervals.
    """

    rule: str = "likeliest"
    weights: list[float] = field(default_factory=list)
    positive: str = ""
    threshold: float = 0.0
    costs: list[list[float]] = field(default_factory=list)
    price: dict[str, Any] = field(default_factory=dict)

    def answers(self, classes: tuple[str, ...], p: np.ndarray) -> np.ndarray:
        """The class number [N] that is decided for probabilities `p` [N, K]."""
        if self.rule == "balanced":
            return np.asarray((p * np.array(self.weights)).argmax(1))
        if self.rule == "costs":
            return np.asarray((p @ np.array(self.costs)).argmin(1))
        if self.rule == "threshold":
            place = classes.index(self.positive)
            others = p.copy()
            others[:, place] = -1.0
            return np.where(p[:, place] >= self.threshold, place, others.argmax(1))
        return np.asarray(p.argmax(1))


def balanced(held: Targets, p: np.ndarray, targets: Targets) -> Decision:
    """The likeliest class against its share of the labels `targets`, to a power from 0 to 1: the least at which
    held-out `p` [N, K] of the items `held` have the best macro-F1. A full power finds the most of rare classes, but
    calls too much by their names where they are a handful."""
    from sklearn.metrics import f1_score

    shares = targets.values.mean(0)
    rules = [Decision("balanced", [float(weight) for weight in shares**-power]) for power in POWERS]
    worth = [
        f1_score(held.numbers, rule.answers(held.classes, p), average="macro", zero_division=0.0) for rule in rules
    ]
    best = next(rule for rule, found in zip(rules, worth, strict=True) if found > max(worth) - 1e-9)
    return best if best is not rules[0] else Decision()


def at_miss_rate(targets: Targets, p: np.ndarray, rate: float, positive: str) -> Decision:
    """The rule that misses at most a share `rate` of the items of the class `positive`, by held-out `p` [N, K]; its
    price is the share of the others that raise a false alarm.

    Raises `SelfsightError` where there are too few of them to promise it: n items promise no less than 1 / (n + 1).
    """
    place = targets.classes.index(positive)
    is_one = targets.values[:, place] > 0
    found = np.sort(p[is_one, place])
    allowed = int(np.floor((len(found) + 1) * rate + 1e-9))  # that may lie below the threshold
    if allowed < 1:
        raise DataError(
            f"{len(found)} labelled items of {positive} cannot promise that no more than {100 * rate:g} % are missed: "
            f"{int(np.ceil(1 / rate)) - 1} are needed. Label more of them, or give a larger --miss-rate."
        )
    threshold = float(found[allowed - 1])
    alarms = p[~is_one, place] >= threshold
    missed = p[is_one, place] < threshold
    price = {"miss_rate": share_of(missed), "false_alarms": share_of(alarms), "promised": rate}
    return Decision("threshold", positive=positive, threshold=threshold, price=price)


def share_of(hits: np.ndarray) -> Interval:
    """The share of `hits` [N] bool with its 95 % interval: Wilson, "Probable Inference", JASA 1927."""
    count, z = len(hits), 1.959964
    if not count:
        return Interval(None, None, None)
    share = float(hits.mean())
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Interval(share, max(0.0, float(middle - half)), min(1.0, float(middle + half)))


def at_costs(targets: Targets, p: np.ndarray, costs: np.ndarray) -> Decision:
    """The rule of least expected cost. costs: [K, K], a row per true class, a column per answer. Its price is the mean
    cost of a held-out item, beside that of the likeliest class."""
    rule = Decision("costs", costs=costs.tolist())
    truth = targets.numbers
    mean = float(costs[truth, rule.answers(targets.classes, p)].mean())
    likeliest = float(costs[truth, p.argmax(1)].mean())
    return Decision("costs", costs=costs.tolist(), price={"mean_cost": mean, "mean_cost_of_the_likeliest": likeliest})


def read_costs(path: str, classes: tuple[str, ...]) -> np.ndarray:
    """The table of costs in a CSV or Parquet: columns `truth`, `answer` and `cost`; what is not named costs 1, and a
    right answer 0. Raises `SelfsightError` for a class that there is not, and a cost that is no number."""
    from selfsight.data.sources.table import open_table

    costs = 1.0 - np.eye(len(classes))
    with open_table(path, path) as table:
        columns = ("truth", "answer", "cost")
        if missing := [name for name in columns if name not in table.header]:
            raise DataError(f"{path} has no column {missing[0]}. A table of costs has truth, answer and cost.")
        for number, cells, problem in table.rows(list(columns)):
            if problem:
                raise DataError(f"{path}, row {number}: {problem}. Correct it.")
            names = [str(cells[name]) for name in columns[:2]]
            if strange := [name for name in names if name not in classes]:
                raise SelfsightError(f"{path}, row {number}: no class {strange[0]!r}. There are {', '.join(classes)}.")
            try:
                cost = float(cells["cost"])
            except (TypeError, ValueError):
                cost = -1.0
            if not 0.0 <= cost < np.inf:
                raise DataError(f"{path}, row {number}: the cost {cells['cost']!r} is not a number from 0 on.")
            costs[classes.index(names[0]), classes.index(names[1])] = cost
    return costs
