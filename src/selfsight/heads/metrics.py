"""The figures of a head's answers, with intervals: of items it was held out from, or of test items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from selfsight.heads.targets import Targets
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import UNEVEN, ece, interval, paired_interval

TITLES = {
    "top1": "accuracy", "top2": "among the two likeliest", "balanced": "balanced accuracy", "macro_f1": "macro-F1",
    "auroc": "AUROC", "kappa": "kappa, quadratic", "ece": "calibration error", "coverage": "coverage of the sets",
    "map": "mean average precision", "mae": "mean absolute error", "r2": "R²", "abstained": "left open",
    "pixel_auroc": "AUROC of pixels", "pro": "overlap of regions (PRO)", "found": "defects found",
    "false_alarms": "false alarms", "false_alarms_at_95": "false alarms where 95 % of defects are found",
    "miou": "intersection over union, mean", "ap": "objects found, boxes close (AP)", "ap50": "objects found (AP50)",
    "count_error": "count off by",
    "top1_of_the_rest": "accuracy on the rest", "sensitivity": "sensitivity", "specificity": "specificity",
}  # fmt: skip
PLAIN = (
    "miou",
    "ap",
    "ap50",
    "count_error",
    "mae",
    "r2",
    "kappa",
    "ece",
    "auroc",
    "map",
    "pixel_auroc",
    "pro",
)  # that are not shown in %
LESS = ("mae", "ece", "count_error")  # that are better where they are less
LEADING = {"class": "top1", "grade": "kappa", "classes": "map", "number": "r2"}
FULL, FEW = 1000, 200  # resamplings: usually, and of many items
MANY = 4000


@dataclass(frozen=True)
class Answers:
    """What a head says of N items.

    probabilities: [N, K]; the values [N, 1] of a number.
    decided: the class numbers [N]; of several classes [N, K] bool.
    sets: [N, K] bool, the classes of the set that covers; of a number [N, 2], the ends of its interval. None where no
        coverage is promised.
    abstained: [N] bool.
    """

    probabilities: np.ndarray
    decided: np.ndarray
    sets: np.ndarray | None
    abstained: np.ndarray

    def take(self, places: np.ndarray) -> Answers:
        """Those of the items at these places."""
        sets = None if self.sets is None else self.sets[places]
        return Answers(self.probabilities[places], self.decided[places], sets, self.abstained[places])


def figures(targets: Targets, answers: Answers, groups: Sequence[str | None] | None = None) -> dict[str, Interval]:
    """Each metric of the kind with its bootstrap interval, over groups where there are groups."""
    rows = [targets.values, answers.probabilities, answers.decided]
    named = None if groups is None else np.array(list(groups), dtype=object)
    draws = FULL if len(targets) <= MANY else FEW

    def over(statistic: Callable[..., float | None], *arrays: np.ndarray) -> Interval:
        return interval(statistic, arrays, named, draws)

    found = {name: over(statistic, *rows) for name, statistic in STATISTICS[targets.kind].items()}
    if answers.sets is not None:
        found["coverage"] = over(_covered[targets.kind], targets.values, answers.sets)
    if answers.abstained.any() and targets.kind in ("class", "grade"):
        found["abstained"] = over(lambda open: float(open.mean()), answers.abstained)
        rest = ~answers.abstained
        if rest.any():
            named = None if named is None else named[rest]
            found["top1_of_the_rest"] = over(_top1, *(array[rest] for array in rows))
    return found


def value_of(name: str, targets: Targets, answers: Answers) -> float | None:
    """One metric, without an interval, which takes longer."""
    return STATISTICS[targets.kind][name](targets.values, answers.probabilities, answers.decided)


def difference(
    targets: Targets,
    one: Answers,
    other: Answers,
    groups: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """How much larger each metric (or those of `names`) is for `one` than for `other`, two heads' answers on the same
    items, with its paired bootstrap interval."""
    named = None if groups is None else np.array(list(groups), dtype=object)
    draws, found = FULL if len(targets) <= MANY else FEW, {}
    for name, statistic in STATISTICS[targets.kind].items():
        if names is not None and name not in names:
            continue

        def on(side: np.ndarray, truth: np.ndarray, statistic: Callable[..., float | None] = statistic) -> float | None:
            width = truth.shape[1]
            p, decided = side[:, :width], side[:, width:]
            return statistic(truth, p, decided if decided.shape[1] > 1 else decided[:, 0].astype(np.int64))

        sides = [np.column_stack([each.probabilities, each.decided]) for each in (one, other)]
        found[name] = paired_interval(on, sides[0], sides[1], [targets.values], named, draws)
    return found


def leading(kind: str, sizes: Iterable[float]) -> str:
    """The metric that tells most for items of a kind: "balanced" where classes of these `sizes` are uneven, else that
    of `LEADING`."""
    return "balanced" if kind == "class" and uneven(sizes) else LEADING[kind]


def uneven(sizes: Iterable[float]) -> bool:
    """Whether the commonest class has more than 1.5 times as many items as the rarest that is there."""
    there = [size for size in sizes if size > 0]
    return max(there) > UNEVEN * min(there)


def with_intervals(value: object) -> object:
    """What JSON holds, with an `Interval` in place of each {value, low, high}."""
    if isinstance(value, list):
        return [with_intervals(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"value", "low", "high"} and not any(isinstance(each, dict) for each in value.values()):
        return Interval(**value)
    return {name: with_intervals(each) for name, each in value.items()}


def shown(metrics: dict[str, Interval]) -> list[tuple[str, str]]:
    """(title, value with its interval) of each metric that has a value, for people."""
    return [(TITLES[name], number(name, found)) for name, found in metrics.items() if found.value is not None]


def number(name: str, found: Interval) -> str:
    """A metric with its interval: shares in %."""
    return plainly(found) if name in PLAIN else percent(found)


def percent(found: Interval) -> str:
    """`91.3 % [89.0, 93.2]`; a dash where it is unknown."""
    return _spanned(found, 100.0, ".1f", " %")


def plainly(found: Interval) -> str:
    """`0.913 [0.890, 0.932]`; a dash where it is unknown."""
    return _spanned(found, 1.0, ".3g")


def _spanned(found: Interval, scale: float, style: str, unit: str = "") -> str:
    if found.value is None:
        return "–"
    ends = [] if found.low is None or found.high is None else [found.low, found.high]
    between = f" [{', '.join(f'{scale * end:{style}}' for end in ends)}]" if ends else ""
    return f"{scale * found.value:{style}}{unit}{between}"


def _top1(truth: np.ndarray, p: np.ndarray, decided: np.ndarray) -> float:
    return float((truth.argmax(1) == decided).mean())


def _balanced(truth: np.ndarray, p: np.ndarray, decided: np.ndarray) -> float:
    right = truth.argmax(1) == decided
    there = truth.sum(0) > 0
    return float(((truth * right[:, None]).sum(0)[there] / truth.sum(0)[there]).mean())


def _macro_f1(truth: np.ndarray, p: np.ndarray, decided: np.ndarray) -> float:
    chosen = np.eye(truth.shape[1])[decided]
    return _f1(truth, chosen)


def _f1(truth: np.ndarray, chosen: np.ndarray) -> float:
    """Mean F1 over the classes that are true of an item or named."""
    both, either = (truth * chosen).sum(0), truth.sum(0) + chosen.sum(0)
    there = either > 0
    return float((2 * both[there] / either[there]).mean())


def _top2(truth: np.ndarray, p: np.ndarray, decided: np.ndarray) -> float | None:
    if truth.shape[1] < 3:
        return None
    best = np.argsort(-p, axis=1, kind="stable")[:, :2]
    return float((best == truth.argmax(1)[:, None]).any(1).mean())


def _auroc(truth: np.ndarray, p: np.ndarray, decided: np.ndarray) -> float | None:
    """Mean one-against-rest area over the classes that some items have and some have not."""
    from scipy.stats import rankdata

    counts = truth.sum(0)
    some = (counts > 0) & (counts < len(truth))
    if not some.any():
        return None
    ones, ranks = counts[some], rankdata(p[:, some], axis=0)
    return float((((ranks * truth[:, some]).sum(0) - ones * (ones + 1) / 2) / (ones * (len(truth) - ones))).mean())


def _map(truth: np.ndarray, p: np.ndarray, decided: np.ndarray) -> float | None:
    from sklearn.metrics import average_precision_score

    some = truth.sum(0) > 0
    return float(average_precision_score(truth[:, some], p[:, some], average="macro")) if some.any() else None


def _kappa(truth: np.ndarray, p: np.ndarray, decided: np.ndarray) -> float:
    """Cohen's kappa, weighted by the square of the distance in grades."""
    grades = np.arange(truth.shape[1])
    away = (grades[:, None] - grades) ** 2
    table = truth.T @ np.eye(truth.shape[1])[decided]
    chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    expected = float((away * chance).sum())
    return float("nan") if expected == 0 else 1.0 - float((away * table).sum()) / expected


def _mae(truth: np.ndarray, value: np.ndarray, decided: np.ndarray) -> float:
    return float(np.abs(truth[:, 0] - value[:, 0]).mean())


def _r2(truth: np.ndarray, value: np.ndarray, decided: np.ndarray) -> float | None:
    spread = float(((truth[:, 0] - truth[:, 0].mean()) ** 2).sum())
    return None if spread == 0 else 1.0 - float(((truth[:, 0] - value[:, 0]) ** 2).sum()) / spread


def _ece(truth: np.ndarray, p: np.ndarray, decided: np.ndarray) -> float:
    return ece(p, truth.argmax(1))


_ONE: dict[str, Callable[..., float | None]] = {
    "top1": _top1, "top2": _top2, "balanced": _balanced, "macro_f1": _macro_f1, "auroc": _auroc, "ece": _ece,
}  # fmt: skip
STATISTICS: dict[str, dict[str, Callable[..., float | None]]] = {
    "class": _ONE,
    "grade": _ONE | {"kappa": _kappa},
    "classes": {"map": _map, "auroc": _auroc, "macro_f1": lambda truth, p, decided: _f1(truth, decided)},
    "number": {"mae": _mae, "r2": _r2},
}


def _any_class(truth: np.ndarray, sets: np.ndarray) -> float:
    return float((truth * sets).sum(1).mean())


def _share_of_classes(truth: np.ndarray, sets: np.ndarray) -> float | None:
    some = truth.sum(1) > 0
    return float(((truth * sets).sum(1)[some] / truth.sum(1)[some]).mean()) if some.any() else None


_covered: dict[str, Callable[..., float | None]] = {
    "class": _any_class, "grade": _any_class, "classes": _share_of_classes,
    "number": lambda truth, ends: float(((ends[:, :1] <= truth) & (truth <= ends[:, 1:])).mean()),
}  # fmt: skip


def recall(
    targets: Targets, answers: Answers, groups: Sequence[str | None] | None = None
) -> dict[str, dict[str, Interval]]:
    """{class: {"sensitivity", "specificity"}}, each with its interval; of numbers none."""
    if targets.kind == "number":
        return {}
    chosen = answers.decided if answers.decided.ndim == 2 else np.eye(targets.values.shape[1])[answers.decided]
    named = None if groups is None else np.array(list(groups), dtype=object)
    found = {}
    for place, name in enumerate(targets.classes):
        truth, said = targets.values[:, place], np.asarray(chosen[:, place], dtype=np.float64)
        rows = {"sensitivity": (truth, said), "specificity": (1.0 - truth, 1.0 - said)}
        found[name] = {which: interval(_share, arrays, named, FEW) for which, arrays in rows.items()}
    return found


def _share(truth: np.ndarray, said: np.ndarray) -> float | None:
    return float((truth * said).sum() / truth.sum()) if truth.sum() else None
