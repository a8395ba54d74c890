"""The tables and sentences of the page: the evaluation, the recipe with its reasons, what was set aside."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import yaml

from selfsight.data.collection import Collection
from selfsight.encoders.licences import concern
from selfsight.probing.evaluation import Accuracy, Evaluation, Probes
from selfsight.training.recipe import Recipe
from selfsight.training.run import Run

MOST_EVENTS = 60  # of the history; the rest is counted
# Who is compared and what is measured, in the order of every table of an evaluation: on the page and in the terminal.
ROWS = {
    "encoder": "this encoder",
    "start": "starting weights",
    "random": "random weights",
    "pixels": "raw pixels",
}
COLUMNS = (
    ("k-NN", "knn", "top1"),
    ("linear", "linear", "top1"),
    ("balanced", "linear", "balanced"),
    ("top-2", "linear", "top2"),
    ("macro-F1", "linear", "macro_f1"),
    ("AUROC", "linear", "auroc"),
)


@dataclass(frozen=True)
class Cell:
    """text: in %. best: whether no row has more in this column."""

    text: str
    best: bool


@dataclass(frozen=True)
class Row:
    """name: of `ROWS`."""

    name: str
    title: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """columns: their titles, one a cell of each row."""

    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Gain:
    """What pretraining bought. points: with their sign; text: over what, with how many labels. sure: the difference is
    larger than the joint deviation of the draws of labels. good: it is above 0."""

    points: str
    text: str
    sure: bool
    good: bool


def evaluation_table(evaluation: Evaluation) -> Table:
    """The table of an evaluation, in %; the best of each column is marked."""
    counts = list(evaluation.encoder.few_shot)
    columns = [title for title, _, _ in COLUMNS] + [_shots(count, short=True) for count in counts]
    sides = evaluation.sides
    values = {name: _values(sides[name], counts) for name in ROWS if name in sides}
    rows = []
    for name, cells in values.items():
        marked = []
        for i, (mean, std) in enumerate(cells):
            known = [value for other in values.values() if (value := other[i][0]) is not None]
            best = mean is not None and len(known) > 1 and f"{mean:.3f}" == f"{max(known):.3f}"
            marked.append(Cell(percent(mean, std), best))
        rows.append(Row(name, ROWS[name], marked))
    return Table(columns, rows)


def _metric(probes: Probes, probe: str, metric: str) -> float | None:
    return (probes.knn if probe == "knn" else probes.linear).get(metric)


def _values(probes: Probes, counts: list[str]) -> list[tuple[float | None, float | None]]:
    """(value, spread) of every column."""
    plain: list[tuple[float | None, float | None]] = [(_metric(probes, p, name), None) for _, p, name in COLUMNS]
    return plain + [_share(probes.few_shot.get(count), count != "all") for count in counts]


def _share(accuracy: Accuracy | None, spread: bool) -> tuple[float | None, float | None]:
    return (None, None) if accuracy is None else (accuracy.mean, accuracy.std if spread else None)


def percent(value: float | None, spread: float | None = None) -> str:
    """A fraction as a percentage with one decimal, and its spread if there is one; a dash where it is unknown."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _shots(count: str, short: bool = False) -> str:
    if count == "all":
        return "all labels"
    return f"{count}/class" if short else f"{count} label{'' if count == '1' else 's'} per class"


def gains(evaluation: Evaluation) -> list[Gain]:
    """What pretraining bought, for each number of labels, over random and starting weights."""
    out = []
    for control in ("random", "start"):
        probes = evaluation.sides.get(control)
        for count, mine in evaluation.encoder.few_shot.items():
            if probes is None or (theirs := probes.few_shot.get(count)) is None:
                continue
            gain, noise = mine.mean - theirs.mean, math.hypot(mine.std, theirs.std)
            unit = "point" if f"{abs(100 * gain):.1f}" == "1.0" else "points"
            text = f"{unit} over {ROWS[control]} with {_shots(count)}"
            out.append(Gain(f"{100 * gain:+.1f}", text, abs(gain) > noise, gain > 0))
    return out


def beaten_by(evaluation: Evaluation) -> list[str]:
    """A sentence for each control that does better than the encoder with some number of labels."""
    out = []
    for control, title in ROWS.items():
        probes, where = evaluation.sides.get(control), []
        for count, mine in evaluation.encoder.few_shot.items():
            theirs = probes and probes.few_shot.get(count)
            if theirs and theirs.mean > mine.mean:
                where.append(f"{_shots(count)} (by {100 * (theirs.mean - mine.mean):.1f} points)")
        if where:
            out.append(f"{title.capitalize()} are better than this encoder with {', '.join(where)}.")
    return out


LARGE_DRIFT = 0.5  # what as much noise as there was signal would do


def drift_in_words(drift: float | None) -> str | None:
    """A sentence about a drift that is large; None for any other."""
    if drift is None or drift < LARGE_DRIFT:
        return None
    return (
        f"The features have drifted by {drift:.2f} of 1 from those of the starting weights: much of what these knew "
        "may be gone. Measure both (selfsight evaluate has the starting weights beside it); a shorter run or a lower "
        "encoder_rate in the recipe keeps more."
    )


def adaptation(
    content: dict[str, Any] | None, about: dict[str, Any], evaluation: Evaluation | None
) -> dict[str, Any] | None:
    """What the page says of a run with starting weights: {origin, licence, warning, drift, images, columns, rows}, the
    starting weights and the encoder side by side; None for a run from random weights."""
    if not about.get("starting_weights"):
        return None
    columns: list[str] = []
    cells: dict[str, list[str]] = {"start": [], "encoder": []}
    if content is not None:
        for key, title in (("effective_rank", "effective rank"), ("neighbour_stability", "neighbours under views")):
            if key in content["before"]:
                columns.append(title)
                for row, side in (("start", "before"), ("encoder", "after")):
                    cells[row].append(f"{content[side][key]:.{1 if key == 'effective_rank' else 2}f}")
    drift = (content or {}).get("after", {}).get("drift")
    if drift is not None:
        columns.append("drift")
        cells["start"].append("0")
        cells["encoder"].append(f"{drift:.2f}")
    if evaluation is not None and evaluation.start is not None:
        for title, probe, metric in COLUMNS[:2]:
            columns.append(f"{title}, %")
            for row, values in cells.items():
                values.append(percent(_metric(evaluation.sides[row], probe, metric)))
    licence = str(about.get("licence", "unknown"))
    return {
        "origin": about["starting_weights"], "licence": licence, "warning": concern(licence), "columns": columns,
        "drift": drift_in_words(drift), "images": (content or {}).get("images", 0),
        "rows": [{"title": ROWS[row], "cells": values} for row, values in cells.items()],
    }  # fmt: skip


def recipe_rows(asked: dict[str, Any], recipe: Recipe) -> list[dict[str, str]]:
    """{name, value, detail, reason} of every value of the recipe."""
    rows = []
    for name, value in recipe.to_dict().items():
        if name == "reasons":
            continue
        reason = recipe.reasons.get(name, "")
        if name in asked or not reason:
            reason = (
                "you asked" if name in asked else f"from {asked['recipe']}" if asked.get("recipe") else "the default"
            )
        rows.append({"name": name.replace("_", " "), "reason": reason} | _shown(name, value))
    return rows


def _shown(name: str, value: Any) -> dict[str, str]:
    """{value, detail}: a short text, and the whole value where the text does not say all."""
    if name == "views":
        groups = " and ".join(f"{g['count']} of {g['size']} px" for g in value["groups"])
        return {"value": groups, "detail": yaml.safe_dump(value, sort_keys=False)}
    if name == "budget":
        return {"value": ", ".join(f"{v:g} {k}" for k, v in value.items() if v is not None), "detail": ""}
    if isinstance(value, bool):
        return {"value": "yes" if value else "no", "detail": ""}
    if isinstance(value, dict):
        return {"value": "; ".join(f"{k}: {v}" for k, v in value.items()) or "none", "detail": ""}
    return {"value": f"{value:g}" if isinstance(value, float) else str(value), "detail": ""}


def set_aside(run: Run, collection: Collection | None) -> list[dict[str, str]]:
    """{name, reason} of the items that could not be read: at import, and at the decoding for the run."""
    names: dict[str, str] = {}
    out: list[dict[str, str]] = []
    if collection is not None:
        table = collection.set_aside
        names = dict(zip(collection.table["id"].to_pylist(), collection.table["uri"].to_pylist(), strict=True))
        pairs = zip(table["uri"].to_pylist(), table["reason"].to_pylist(), strict=True)
        out = [{"name": uri, "reason": reason} for uri, reason in pairs]
    out += [{"name": names.get(item, f"item {item}"), "reason": why} for item, why in run.read_set_aside().items()]
    return sorted(out, key=lambda row: row["name"])


def history(run: Run) -> dict[str, Any]:
    """{sentence, events}: alarms, resumes, skipped steps, damaged checkpoints and extensions, oldest first.

    The sentence counts them; of the events the first and last `MOST_EVENTS` / 2 are kept if there are more.
    """
    events = run.read_log()
    counts = Counter(event.kind for event in events)
    names = {
        "alarm": ("alarm", "alarms"),
        "skipped": ("step skipped, as it was not finite", "steps skipped, as they were not finite"),
        "resumed": ("resume", "resumes"),
        "damaged": ("damaged checkpoint", "damaged checkpoints"),
        "extended": ("extension", "extensions"),
        "tracker": ("tracker given up", "trackers given up"),
    }
    said = [f"{counts[kind]:,} {words[counts[kind] > 1]}" for kind, words in names.items() if counts[kind]]
    sentence = f"{'; '.join(said) or 'No alarm, no stop, no skipped step'}."
    if len(events) > MOST_EVENTS:
        events = events[: MOST_EVENTS // 2] + events[-MOST_EVENTS // 2 :]
        sentence += f" The first and last {MOST_EVENTS // 2} events are shown, run.log holds all."
    return {"sentence": sentence, "events": events}
