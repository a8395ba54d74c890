"""The page without names, for data that must not travel: what stands where a path, a file name or an id would."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from selfsight.probing.evaluation import Evaluation
from selfsight.training.recipe import Recipe
from selfsight.training.run import Event

# In commands. No such folder exists, so that none of them runs by accident on something else.
RUN, IMAGES = "RUN", "IMAGES"
MISSING = "The map and the gallery are missing. Without --no-names the page says why."
SAID = ("alarm", "skipped", "resumed", "extended", "finished", "note")  # events whose text is selfsight's own


def reason(text: str) -> str:
    """What is wrong with a file, up to where the reason may begin to name one."""
    return re.split(r": | \(| within ", text, maxsplit=1)[0]


def reasons(counts: Counter[str]) -> Counter[str]:
    """How many files each `reason` has."""
    found: Counter[str] = Counter()
    for text, count in counts.items():
        found[reason(text)] += count
    return found


def others(counts: dict[str, int] | None) -> dict[str, int] | None:
    """How many other files there are, whatever their suffixes: these are parts of names."""
    return {"of any kind": sum(counts.values())} if counts else counts


def evaluation(measured: Evaluation) -> Evaluation:
    """The figures with their classes; of the notes, which may name files and groups, how many there are."""
    count = len(measured.about.notes)
    left = f"{count} note{'' if count == 1 else 's'} on these figures may name files: read evaluation.json of the run"
    return replace(measured, about=replace(measured.about, model="", notes=[left] if count else []))


def recipe(chosen: Recipe) -> Recipe:
    """What was chosen, with the last part of a path of weights."""
    known = chosen.weights.partition(":")[0] in ("timm", "torchvision", "package")
    return chosen if known else replace(chosen, weights=Path(chosen.weights).name)


def events(happened: list[Event]) -> list[Event]:
    """What happened, without what other software said of it."""
    return [event if event.kind in SAID else event._replace(text="") for event in happened]
