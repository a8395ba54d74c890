"""The tables and sentences of the page: before and after, the recipe with its reasons, what was set aside."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

from selfsight.data.collection import Collection
from selfsight.encoders.licences import concern
from selfsight.probing.evaluation import Evaluation
from selfsight.report.worth import COLUMNS, ROWS, metric, percent
from selfsight.training.recipe import Recipe
from selfsight.training.run import Run

MOST_EVENTS = 60  # of the history; the rest is counted


LARGE_DRIFT = 0.5  # what as much noise as there was signal would do


def drift_in_words(drift: float | None) -> str | None:
    """A sentence about a drift that is large; None for any other."""
    if drift is None or drift < LARGE_DRIFT:
        return None
    return (
        f"The features have drifted by {drift:.2f} of 1 from those of the starting weights: much of what these knew "
        "may be gone. Measure both (selfsight evaluate has the starting weights beside it); a shorter run or a lower "
        "encoder_lr_scale in the recipe keeps more."
    )


def adaptation(
    content: dict[str, Any] | None, about: dict[str, Any], evaluation: Evaluation | None
) -> dict[str, Any] | None:
    """The page's comparison of the starting weights and the encoder: {origin, licence, warning, kept, drift, images,
    columns, rows}; None for a run from random weights."""
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
        for title, *where in COLUMNS[evaluation.about.leading][:2]:
            columns.append(f"{title}, %")
            for row, values in cells.items():
                values.append(percent(metric(evaluation.sides[row], *where)))
    licence = str(about.get("licence", "unknown"))
    return {
        "origin": about["starting_weights"], "licence": licence, "warning": concern(licence), "columns": columns,
        "drift": drift_in_words(drift), "images": (content or {}).get("images", 0),
        "kept": (content or {}).get("kept", {}).get("why"),
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
    """{value, detail}: a short text, and the whole value if the text shortens it."""
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
    """{name, reason} of each item that could not be read, at import or when the run decoded it."""
    found: dict[str, tuple[str, str]] = {}
    names: dict[str, str] = {}
    if collection is not None:
        names = dict(zip(collection.table["id"].to_pylist(), collection.table["uri"].to_pylist(), strict=True))
        columns = (collection.set_aside[name].to_pylist() for name in ("id", "uri", "reason"))
        found = {item: (uri, reason) for item, uri, reason in zip(*columns, strict=True)}
    for item in run.read_set_aside():
        found[item.id] = (item.uri or names.get(item.id, f"item {item.id}"), item.reason)
    return [{"name": name, "reason": reason} for name, reason in sorted(found.values())]


def history(run: Run) -> dict[str, Any]:
    """{sentence, events}: alarms, resumes, skipped steps, damaged checkpoints, extensions and changes of the number of
    threads, oldest first.

    The sentence counts them. If there are more than `MOST_EVENTS`, the first and the last halves of these are kept.
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
        "threads": ("change of the number of threads", "changes of the number of threads"),
    }
    said = [f"{counts[kind]:,} {words[counts[kind] > 1]}" for kind, words in names.items() if counts[kind]]
    sentence = f"{'; '.join(said) or 'No alarm, no stop, no skipped step'}."
    if len(events) > MOST_EVENTS:
        events = events[: MOST_EVENTS // 2] + events[-MOST_EVENTS // 2 :]
        sentence += f" The first and last {MOST_EVENTS // 2} events are shown, run.log holds all."
    return {"sentence": sentence, "events": events}
