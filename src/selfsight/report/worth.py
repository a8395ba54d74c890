"""What an encoder is worth, in tables and sentences: the same on the page and in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from selfsight.probing.evaluation import Accuracy, Evaluation, Interval, Probes

# Who is compared and what is measured, in the order of every table.
ROWS = {
    "encoder": "this encoder",
    "start": "starting weights",
    "random": "random weights",
    "pixels": "raw pixels",
    "commonest": "commonest class",
}
CONTROLS = ("random", "start", "pixels")
COLUMNS = (
    ("k-NN", "knn", "top1"),
    ("linear", "linear", "top1"),
    ("balanced", "linear", "balanced"),
    ("top-2", "linear", "top2"),
    ("macro-F1", "linear", "macro_f1"),
    ("AUROC", "linear", "auroc"),
)
FEW_PASSES = 20  # over the images; with fewer an encoder has hardly begun
FIRST_MINUTES = 20  # what is advised at least
FLATTERED = "Images or groups are both in train and in test, so these figures flatter: see the notes."
LITTLE = 0.01  # of accuracy: labels that cannot bring more are not worth giving


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    text: in % or points.
    good: of an accuracy, 1 if no row has more. Of a gain, 1 if proven above 0, -1 if proven below 0.
    """

    text: str
    good: int


@dataclass(frozen=True)
class Row:
    """A row of a table.

    name: of the side, or the labels per class.
    title: for people.
    cells: one per column.
    """

    name: str
    title: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """A table.

    columns: their titles.
    rows: each with a cell per column.
    """

    columns: list[str]
    rows: list[Row]


# -- tables --


def accuracy_table(evaluation: Evaluation) -> Table:
    """A row for each side, a column for each metric, in %; the best of each column is marked."""
    counts, sides = list(evaluation.encoder.few_shot), evaluation.sides
    plain = [column for column in COLUMNS if any(metric(probes, *column[1:]) is not None for probes in sides.values())]
    values = {
        name: [(metric(sides[name], *where), None) for _, *where in plain]
        + [_accuracy(sides[name].few_shot.get(count), count) for count in counts]
        for name in ROWS
        if name in sides
    }
    rows = []
    for name, cells in values.items():
        marked = []
        for i, (mean, std) in enumerate(cells):
            known = [value for other in values.values() if (value := other[i][0]) is not None]
            best = mean is not None and len(known) > 1 and f"{mean:.3f}" == f"{max(known):.3f}"
            marked.append(Cell(percent(mean, std), int(best)))
        rows.append(Row(name, ROWS[name], marked))
    return Table([title for title, _, _ in plain] + [_labels(count, short=True) for count in counts], rows)


def gain_table(evaluation: Evaluation) -> Table:
    """A row for each number of labels, a column for each control: points gained, with their interval."""
    controls = [name for name in CONTROLS if evaluation.gains.get(name)]
    counts = dict.fromkeys(count for name in controls for count in evaluation.gains[name])
    rows = []
    for count in counts:
        found = [evaluation.gains[name].get(count, Interval(None, None, None)) for name in controls]
        title = "k-NN, all labels" if count == "knn" else _labels(count)
        rows.append(Row(count, title, [Cell(points(gain), gain.sign) for gain in found]))
    return Table([f"over {ROWS[name]}" for name in controls], rows)


def recall_table(evaluation: Evaluation) -> Table:
    """A row for each class, the least found first: its test images, and the share that each side finds."""
    sides = {name: probes for name, probes in evaluation.sides.items() if probes.recall and name != "commonest"}
    if "encoder" not in sides:
        return Table([], [])
    mine = evaluation.encoder.recall
    rows = []
    for name in sorted(mine, key=lambda name: math.inf if (found := mine[name]) is None else found):
        shares = [Cell(percent(sides[side].recall.get(name)), 0) for side in ROWS if side in sides]
        rows.append(Row(name, name, [Cell(f"{evaluation.about.test_of.get(name, 0):,}", 0), *shares]))
    return Table(["test images", *(ROWS[side] for side in ROWS if side in sides)], rows)


def metric(probes: Probes, probe: str, name: str) -> float | None:
    """A metric of the "knn" or the "linear" probe; None where there is none."""
    return (probes.knn if probe == "knn" else probes.linear).get(name)


def _accuracy(accuracy: Accuracy | None, count: str) -> tuple[float | None, float | None]:
    return (None, None) if accuracy is None else (accuracy.mean, accuracy.std if count != "all" else None)


def percent(value: float | None, spread: float | None = None) -> str:
    """A fraction as a percentage with one decimal, and its spread if there is one; a dash where it is unknown."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def points(gain: Interval) -> str:
    """A difference in points, and its interval if there is one: `+3.1 [1.2, 5.0]`."""
    if gain.value is None:
        return "–"
    between = "" if gain.low is None or gain.high is None else f" [{_point(gain.low)}, {_point(gain.high)}]"
    return f"{_point(gain.value, '+')}{between}"


def _point(value: float, sign: str = "") -> str:
    return f"{round(100 * value, 1) + 0.0:{sign}.1f}"  # + 0.0: no -0.0


def _labels(count: str, short: bool = False) -> str:
    if count == "all":
        return "all labels"
    return f"{count}/class" if short else f"{count} label{'' if count == '1' else 's'} per class"


# -- sentences --


def conclusion(evaluation: Evaluation) -> list[str]:
    """Sentences on what pretraining gained: over random weights first, then where it does not beat another control.
    Only what an interval proves is called a gain."""
    found = {control: _by_sign(gains) for control in CONTROLS if (gains := evaluation.gains.get(control))}
    if "random" not in found:
        return ["This evaluation has no intervals. Measure again to get them."]
    if all(gain.low is None for gain in evaluation.gains["random"].values()):
        return ["One test image, or one group of them, cannot tell what pretraining gains. Measure on more."]
    better, same, worse = found["random"]
    said = [FLATTERED] if any(note.endswith("figures flatter") for note in evaluation.about.notes) else []
    if better:
        where = f" with {_with(better)}" if same or worse else ""
        values = sorted(gain.value or 0.0 for gain in better.values())
        span = " to ".join(dict.fromkeys(_point(value, "+") for value in (values[0], values[-1])))
        if _only_the_commonest(evaluation):
            said.append(f"This encoder gains {span} points over random weights{where}, but that is not of use yet.")
        else:
            said.append(f"Pretraining helps{where}: {span} points over random weights.")
    for control in found:
        _, same, worse = found[control]
        if worse:
            said.append(f"{ROWS[control].capitalize()} are better than this encoder with {_with(worse, lost=True)}.")
        if same:
            everywhere = len(same) == sum(map(len, found[control]))
            said.append(f"No measurable gain over {ROWS[control]}" + ("." if everywhere else f" with {_with(same)}."))
        if control == "random" and (not better or _only_the_commonest(evaluation)):
            said += _few_passes(evaluation)
    return said + _beside_the_commonest(evaluation)


def _only_the_commonest(evaluation: Evaluation) -> bool:
    """Whether the most labels that were given do no more than name the commonest class, as far as was measured."""
    gains = list(evaluation.gains.get("commonest", {}).values())
    return bool(gains) and gains[-1].sign <= 0


def _beside_the_commonest(evaluation: Evaluation) -> list[str]:
    """What a reader must know where that is so."""
    if not _only_the_commonest(evaluation) or evaluation.commonest is None:
        return []
    count, share = list(evaluation.gains["commonest"])[-1], percent(evaluation.commonest.linear.get("top1"))
    return [
        f"With {_labels(count)} this encoder is not measurably better than always the commonest class, which is right "
        f"on {share} %: look at balanced accuracy and recall."
    ]


def _by_sign(gains: Mapping[str, Interval]) -> tuple[dict[str, Interval], dict[str, Interval], dict[str, Interval]]:
    """(proven gains, unproven ones, proven losses), each by labels per class."""
    few = {count: gain for count, gain in gains.items() if count != "knn"}
    better, same, worse = ({count: gain for count, gain in few.items() if gain.sign == sign} for sign in (1, 0, -1))
    return better, same, worse


def _few_passes(evaluation: Evaluation) -> list[str]:
    """The advice to train longer, if the encoder has seen the images only a few times; else empty."""
    passes, minutes = evaluation.about.passes, evaluation.about.minutes
    if passes is None or minutes is None or passes >= FEW_PASSES:
        return []
    needed = max(FIRST_MINUTES, math.ceil(minutes * FEW_PASSES / max(passes, 0.1)))
    return [f"{passes:,.1f} passes over the images are few: try --minutes {needed}."]


def _with(gains: Mapping[str, Interval], lost: bool = False) -> str:
    """`1 label per class and all labels`, with the points that are `lost` if so asked."""
    texts = [
        _labels(name) + (f" (by {_point(-(gain.value or 0.0))} points)" if lost else "") for name, gain in gains.items()
    ]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def enough(evaluation: Evaluation) -> str:
    """Whether there are enough labels: what all of them give over fewer, and what that says of more. "" where it was
    not measured."""
    more = {count: gain for count, gain in evaluation.more.items() if gain.low is not None and gain.high is not None}
    if not more:
        return ""
    half = more.pop("half", None)
    over = [f"{points(gain)} over {_labels(count)}" for count, gain in more.items()]
    if half is None or half.low is None or half.high is None:
        return f"All {evaluation.about.train_items:,} labels give, in points: {', '.join(over)}."
    over.append(f"{points(half)} over half of them")
    if _only_the_commonest(evaluation):
        word = "They do no better than the commonest class, so this says nothing of more labels."
    elif half.high < LITTLE:
        word = "So as many again would bring little."
    elif half.low > 0:
        word = "So more labels are likely to help."
    else:
        word = "So whether more would help is not certain."
    return f"All {evaluation.about.train_items:,} labels give, in points: {', '.join(over)}. {word}"
