"""What a head is worth, as sentences and tables: for its page, and for the verbs that print it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from selfsight.heads.calibration import Decision
from selfsight.heads.classify_voice import ClassifyAbout
from selfsight.heads.comparison import HeadComparison
from selfsight.heads.evaluation import HeadEvaluation
from selfsight.heads.metrics import PLAIN, TITLES, leading, number, percent, plainly
from selfsight.probing.evaluation import Interval
from selfsight.report.verdict import Verdict
from selfsight.report.worth import Cell, Row, Table, points

FLATTERED = "Test items, or groups of them, were learnt from, so these figures flatter: see the notes."
NOTHING = "Nothing could be held out from this head, and it was not tested, so what it is worth is not known."
# What the least useful answer is called, by kind: always the same one.
ALWAYS = {"class": "the commonest class", "grade": "the commonest grade", "classes": "chance", "number": "the mean"}


# -- sentences --


def verdict(about: ClassifyAbout, learnt: Mapping[str, int], measured: HeadEvaluation | None, tested: bool) -> Verdict:
    """How good a head is, beside an answer that is always the same.

    learnt: {class: items that it learnt from}. measured: its figures, of test items if it was `tested`, else of items
    that were held out in turn; None where there are none.
    """
    if measured is None:
        return Verdict("not measured", NOTHING)
    name = leading(about.kind, measured.of_class.values())
    found, least = measured.metrics[name], _least(name, learnt, measured)
    sign = Interval(found.value, *(None if end is None else end - least for end in (found.low, found.high))).sign
    word = {1: "better than {}", 0: "not measurably better than {}", -1: "worse than {}"}[sign]
    of = f"{measured.items:,} {'test items' if tested else 'items that were held out in turn'}"
    sentence = _sentence(learnt, measured, of)
    if any(note.endswith("figures flatter") for note in measured.notes):
        sentence = f"{sentence} {FLATTERED}"
    figures = {name: found.value or 0.0, "least": least, "items": float(measured.items)}
    return Verdict(word.format(ALWAYS[about.kind]), sentence, figures)


def _least(name: str, learnt: Mapping[str, int], measured: HeadEvaluation) -> float:
    """What an answer that is always the same reaches in a metric."""
    there = [size / measured.items for size in measured.of_class.values() if size]
    if name == "top1":
        return measured.of_class[_commonest(learnt, measured)] / measured.items
    return {"balanced": 1 / max(1, len(there)), "map": sum(there) / max(1, len(there))}.get(name, 0.0)


def _commonest(learnt: Mapping[str, int], measured: HeadEvaluation) -> str:
    """Of those that were learnt from; of several as common ones, that of what was measured."""
    return max(learnt, key=lambda name: (learnt[name], measured.of_class[name]))


def _sentence(learnt: Mapping[str, int], measured: HeadEvaluation, of: str) -> str:
    metrics = measured.metrics
    if measured.kind == "number":
        off = f"Off by {plainly(metrics['mae'])} on average on {of}"
        return f"{off}; R² is {plainly(metrics['r2'])}, where always answering the mean would have 0."
    if measured.kind == "classes":
        chance = _least("map", learnt, measured)
        return f"Mean average precision {plainly(metrics['map'])} on {of}, where chance would have {chance:.2g}."
    share = 100 * _least("top1", learnt, measured)
    alone = list(learnt.values()).count(max(learnt.values())) == 1
    always = f"{_commonest(learnt, measured)}, {ALWAYS[measured.kind]}," if alone else "the same class"
    said = (
        f"Right on {percent(metrics['top1'])} of {of}, where always answering {always} would be right on {share:.1f} %"
    )
    if leading(measured.kind, measured.of_class.values()) == "balanced":
        least = 100 * _least("balanced", learnt, measured)
        said += f"; balanced over classes {percent(metrics['balanced'])}, where that would have {least:.1f} %"
    if measured.kind == "grade":
        said += f"; kappa is {plainly(metrics['kappa'])}, where that would have 0"
    return f"{said}."


def decided(decision: Decision) -> list[str]:
    """What the rule is, and what it costs, in sentences; none for the likeliest class."""
    price = decision.price
    if decision.rule == "balanced":
        return ["Classes are uneven, so probabilities are weighed against the classes' shares: best macro-F1."]
    if decision.rule == "threshold":
        return [
            f"From a probability of {decision.threshold:.3g} on an item is called {decision.positive}: on held-out "
            f"items {percent(price['miss_rate'])} of them are missed (promised: at most "
            f"{100 * price['promised']:g} %), and "
            f"{percent(price['false_alarms'])} of the others raise a false alarm."
        ]
    if decision.rule == "costs":
        return [
            f"The answer of least expected cost is given: {price['mean_cost']:.3g} an item on held-out items, where "
            f"the likeliest class would cost {price['mean_cost_of_the_likeliest']:.3g}."
        ]
    return []


def promised(about: ClassifyAbout) -> str:
    """What its prediction sets promise; "" where labels were too few to promise anything."""
    if "coverage" not in about.metrics["held_out"]:
        return ""
    share = f"{100 * about.coverage:g} %"
    said = {"number": f"{share} of the intervals from low to high hold the truth",
            "classes": f"its prediction sets hold {share} of the classes of an item on average"}  # fmt: skip
    return f"Promised: {said.get(about.kind, f'{share} of its prediction sets hold the truth')}, for items like these."


def preferred(result: HeadComparison) -> str:
    """Which of two heads is better, and by how much."""
    name, gap = result.leading, result.difference[result.leading]
    one, other = (alone(name, side[name]) for side in result.metrics)
    by = f"{difference(name, gap)}{'' if name in PLAIN else ' points'} on {result.items:,} items"
    both = f"{TITLES[name]} {one} of {result.heads[0]}, {other} of {result.heads[1]}, {by}"
    if result.better is None:
        return f"No measurable difference: {both}."
    return f"{result.heads[result.better]} is better: {both}."


def alone(name: str, found: Interval) -> str:
    """A metric without its interval."""
    return number(name, replace(found, low=None, high=None))


def difference(name: str, gap: Interval) -> str:
    """How much larger a metric is, with the interval: in points, where the metric is shown in %."""
    if name not in PLAIN or gap.value is None:
        return points(gap)
    return f"{'+' if gap.value >= 0 else ''}{plainly(gap)}"


# -- tables --


def figures_table(sides: Mapping[str, Mapping[str, Interval]]) -> Table:
    """A row for each metric, a column for each of `sides`, which are named by what was measured on."""
    names = dict.fromkeys(name for side in sides.values() for name in side)
    cells = {name: [Cell(_told(name, side), 0) for side in sides.values()] for name in names}
    return Table(list(sides), [Row(name, TITLES[name], cells[name]) for name in names])


def metrics_table(sides: Mapping[str, HeadEvaluation]) -> Table:
    """The same of the figures that have a value on one side."""
    there = {name for side in sides.values() for name, found in side.metrics.items() if found.value is not None}
    return figures_table(
        {title: {name: found for name, found in side.metrics.items() if name in there} for title, side in sides.items()}
    )


def by_table(parts: Mapping[str, Mapping[str, Interval]]) -> Table:
    """A row for each of `parts`, such as the values of the column of `--by`, a column for each metric."""
    names = dict.fromkeys(name for part in parts.values() for name in part)
    rows = [Row(title, title, [Cell(_told(name, part), 0) for name in names]) for title, part in parts.items()]
    return Table([TITLES[name] for name in names], rows)


def _told(name: str, figures: Mapping[str, Interval]) -> str:
    return number(name, figures[name]) if name in figures else "–"


def recall_table(measured: HeadEvaluation, learnt: Mapping[str, int]) -> Table:
    """A row for each class, the one that is found least first."""

    def found(name: str) -> float:
        value = measured.recall[name]["sensitivity"].value
        return 2.0 if value is None else value

    rows = []
    for name in sorted(measured.recall, key=found):
        cells = [f"{learnt.get(name, 0):,}", f"{measured.of_class[name]:,}"]
        cells += [percent(measured.recall[name][which]) for which in ("sensitivity", "specificity")]
        rows.append(Row(name, name, [Cell(text, 0) for text in cells]))
    return Table(["learnt from", "measured on", "sensitivity", "specificity"], rows)


def confused(measured: HeadEvaluation, most: int) -> list[tuple[str, str, int]]:
    """(truth, answer, items) of the pairs of classes that are most often confused."""
    pairs = [
        (truth, answer, count)
        for truth, row in zip(measured.classes, measured.confusion, strict=True)
        for answer, count in zip(measured.classes, row, strict=True)
        if truth != answer and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]
