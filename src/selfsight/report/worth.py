"""What an encoder is worth, in tables and sentences: the same on the page and in the terminal."""

from __future__ import annotations

import math
import re
import shlex
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
_LAST = (("top-2", "linear", "top2"), ("macro-F1", "linear", "macro_f1"), ("AUROC", "linear", "auroc"))
COLUMNS = {  # by the metric that leads: (title, probe, metric)
    "top1": (
        ("k-NN", "knn", "top1"), ("linear", "linear", "top1"), ("balanced", "linear", "balanced"), *_LAST,
    ),
    "balanced": (
        ("k-NN", "knn", "balanced"), ("linear", "linear", "balanced"), ("top-1", "linear", "top1"), *_LAST,
    ),
}  # fmt: skip
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


def titles(evaluation: Evaluation) -> dict[str, str]:
    """What each side is called, by name; those of every evaluation first, whether it has them or not."""
    return ROWS | {name: name for name in evaluation.beside}


def _controls(evaluation: Evaluation) -> list[str]:
    """Those that must be beaten."""
    return ["random", "start", "pixels", *evaluation.beside]


# -- tables --


def accuracy_table(evaluation: Evaluation) -> Table:
    """A row for each side, a column for each metric, in %; the best of each column is marked. Where classes are uneven,
    accuracy is balanced, and few labels have their AUROC too."""
    counts, sides, leading = list(evaluation.encoder.few_shot), evaluation.sides, evaluation.about.leading
    all_columns = COLUMNS[leading]
    plain = [one for one in all_columns if any(metric(probes, *one[1:]) is not None for probes in sides.values())]
    few = [(count, leading) for count in counts]
    if leading == "balanced":
        few += [(count, "auroc") for count in counts if count != "all"]
    values = {
        name: [(metric(probes, *where), None) for _, *where in plain]
        + [_drawn(probes.few_shot.get(count), count, which) for count, which in few]
        for name, probes in sides.items()
    }
    rows, names = [], titles(evaluation)
    for name, cells in values.items():
        marked = []
        for i, (mean, std) in enumerate(cells):
            known = [value for other in values.values() if (value := other[i][0]) is not None]
            best = mean is not None and len(known) > 1 and f"{mean:.3f}" == f"{max(known):.3f}"
            marked.append(Cell(percent(mean, std), int(best)))
        rows.append(Row(name, names[name], marked))
    heads = [_labels(count, short=True) + (" AUROC" if which == "auroc" else "") for count, which in few]
    return Table([title for title, _, _ in plain] + heads, rows)


def gain_table(evaluation: Evaluation) -> Table:
    """A row for each number of labels, a column for each control: points gained, with their interval."""
    controls = [name for name in _controls(evaluation) if evaluation.gains.get(name)]
    counts = dict.fromkeys(count for name in controls for count in evaluation.gains[name])
    rows = []
    for count in counts:
        found = [evaluation.gains[name].get(count, Interval(None, None, None)) for name in controls]
        title = "k-NN, all labels" if count == "knn" else _labels(count)
        rows.append(Row(count, title, [Cell(points(gain), gain.sign) for gain in found]))
    names = titles(evaluation)
    return Table([f"over {names[name]}" for name in controls], rows)


def recall_table(evaluation: Evaluation) -> Table:
    """A row for each class, the least found first: its test images, and the share that each side finds."""
    sides = {name: probes for name, probes in evaluation.sides.items() if probes.recall and name != "commonest"}
    if "encoder" not in sides:
        return Table([], [])
    mine = evaluation.encoder.recall
    rows = []
    for name in sorted(mine, key=lambda name: math.inf if (found := mine[name]) is None else found):
        shares = [Cell(percent(probes.recall.get(name)), 0) for probes in sides.values()]
        rows.append(Row(name, name, [Cell(f"{evaluation.about.test_of.get(name, 0):,}", 0), *shares]))
    names = titles(evaluation)
    return Table(["test images", *(names[side] for side in sides)], rows)


def metric(probes: Probes, probe: str, name: str) -> float | None:
    """A metric of the "knn" or the "linear" probe; None where there is none."""
    return (probes.knn if probe == "knn" else probes.linear).get(name)


def _drawn(accuracy: Accuracy | None, count: str, metric: str) -> tuple[float | None, float | None]:
    draws = accuracy and accuracy.by(metric)
    return (None, None) if draws is None else (draws.mean, draws.std if count != "all" else None)


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
    if count in ("all", "knn"):
        return "all labels" if count == "all" else "k-NN"
    return f"{count}/class" if short else f"{count} label{'' if count == '1' else 's'} per class"


# -- sentences --


def conclusion(evaluation: Evaluation) -> list[str]:
    """Sentences on what pretraining gained. First what is better than this encoder, and what to do then; after that the
    gain over random weights, and where another control is not beaten. Only what an interval proves is called a gain."""
    found = {control: _by_sign(gains) for control in _controls(evaluation) if (gains := evaluation.gains.get(control))}
    if "random" not in found:
        return ["This evaluation has no intervals. Measure again to get them."]
    if all(gain.low is None for gain in evaluation.gains["random"].values()):
        return ["One test image, or one group of them, cannot tell what pretraining gains. Measure on more."]
    better, same, worse = found["random"]
    winner, said = _beaten(evaluation)
    said += [FLATTERED] if any(note.endswith("figures flatter") for note in evaluation.about.notes) else []
    unit = "points of balanced accuracy" if evaluation.about.leading == "balanced" else "points"
    if better:
        where = f" with {_with(better)}" if same or worse else ""
        values = sorted(gain.value or 0.0 for gain in better.values())
        span = " to ".join(dict.fromkeys(_point(value, "+") for value in (values[0], values[-1])))
        if _only_the_commonest(evaluation):
            said.append(f"This encoder gains {span} {unit} over random weights{where}, but that is not of use yet.")
        else:
            said.append(f"Pretraining helps{where}: {span} {unit} over random weights.")
    for control in found:
        same, worse = found[control][1], _lost(evaluation.gains[control])
        if worse and control != winner:
            said.append(f"{_better(control, worse, evaluation.about.leading)}.")
        if same:
            everywhere, name = len(same) == sum(map(len, found[control])), ROWS.get(control, control)
            said.append(f"No measurable gain over {name}" + ("." if everywhere else f" with {_with(same)}."))
        if control == "random" and winner != "pixels" and (not better or _only_the_commonest(evaluation)):
            said += _few_passes(evaluation)
    return said + _beside_the_commonest(evaluation)


def _beaten(evaluation: Evaluation) -> tuple[str, list[str]]:
    """The control other than random weights that is better by most at k-NN or with few labels, as an interval proves,
    and the sentence that says so with what to do then; "" and none where there is none."""
    lost: dict[str, dict[str, Interval]] = {}
    for control in _controls(evaluation)[1:]:
        worse = _lost(evaluation.gains.get(control, {}))
        if worse.keys() - {"all"}:
            lost[control] = worse
    if not lost:
        return "", []
    winner = min(lost, key=lambda name: min(gain.value or 0.0 for count, gain in lost[name].items() if count != "all"))
    return winner, [f"{_better(winner, lost[winner], evaluation.about.leading)}: {_instead(evaluation, winner)}."]


def _lost(gains: Mapping[str, Interval]) -> dict[str, Interval]:
    """Where a control is better, as an interval proves, k-NN included."""
    return {count: gain for count, gain in gains.items() if gain.sign < 0}


def _better(control: str, worse: Mapping[str, Interval], leading: str) -> str:
    name, verb = (ROWS[control].capitalize(), "are") if control in ROWS else (control, "is")
    what = " in balanced accuracy" if leading == "balanced" else ""
    return f"{name} {verb} better than this encoder{what} with {_with(worse, lost=True)}"


def _instead(evaluation: Evaluation, winner: str) -> str:
    """What to do where `winner` is better than the encoder."""
    if winner == "start":
        start = f"{evaluation.about.model or 'RUN'}/start"
        return f"use them as they are, with --model {shlex.quote(start)}"
    if winner in evaluation.beside:
        named = "" if re.fullmatch(r"Encoder \d+", winner) else f" with --weights {shlex.quote(winner)}"
        return f"use it as it is, or start from it{named}"
    passes = evaluation.about.passes
    if passes is None:
        return "try another encoder, or pretrain one on your own images"
    needed = _minutes(evaluation)
    return (
        f"try --minutes {needed}, as {passes:,.1f} passes over the images are few"
        if needed
        else "try more --minutes, or start from --weights"
    )


def uneven(evaluation: Evaluation) -> str:
    """Why balanced accuracy leads; "" where it does not."""
    sizes = {name: count for name, count in evaluation.about.test_of.items() if count}
    if evaluation.about.leading != "balanced" or not sizes:
        return ""
    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    return (
        f"Test images are uneven over classes ({sizes[least]:,} of {least}, {sizes[most]:,} of {most}), so accuracy is "
        "balanced: the mean over classes of the share that is found."
    )


def _only_the_commonest(evaluation: Evaluation) -> bool:
    """Whether the most labels that were given do no more than name the commonest class, as far as was measured."""
    gains = list(evaluation.gains.get("commonest", {}).values())
    return bool(gains) and gains[-1].sign <= 0


def _beside_the_commonest(evaluation: Evaluation) -> list[str]:
    """What a reader must know where that is so."""
    if not _only_the_commonest(evaluation) or evaluation.commonest is None:
        return []
    count, share = list(evaluation.gains["commonest"])[-1], percent(evaluation.commonest.linear.get("top1"))
    said = f"With {_labels(count)} this encoder is not measurably better than always the commonest class, which "
    if evaluation.about.leading == "balanced":
        return [f"{said}has a balanced accuracy of {percent(evaluation.commonest.linear.get('balanced'))} %."]
    return [f"{said}is right on {share} %: look at balanced accuracy and recall."]


def _by_sign(gains: Mapping[str, Interval]) -> tuple[dict[str, Interval], dict[str, Interval], dict[str, Interval]]:
    """(proven gains, unproven ones, proven losses), each by labels per class."""
    few = {count: gain for count, gain in gains.items() if count != "knn"}
    better, same, worse = ({count: gain for count, gain in few.items() if gain.sign == sign} for sign in (1, 0, -1))
    return better, same, worse


def _few_passes(evaluation: Evaluation) -> list[str]:
    """The advice to train longer, if the encoder has seen the images only a few times; else empty."""
    needed = _minutes(evaluation)
    return [f"{evaluation.about.passes:,.1f} passes over the images are few: try --minutes {needed}."] if needed else []


def _minutes(evaluation: Evaluation) -> int | None:
    """How long to train where the encoder has seen the images only a few times; None where it has not, or that is not
    known."""
    passes, minutes = evaluation.about.passes, evaluation.about.minutes
    if passes is None or minutes is None or passes >= FEW_PASSES:
        return None
    return max(FIRST_MINUTES, math.ceil(minutes * FEW_PASSES / max(passes, 0.1)))


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
