"""The page without names, for data that must not travel: texts in place of paths, file names and ids."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from selfsight.probing.evaluation import Evaluation
from selfsight.training.recipe import Recipe
from selfsight.training.run import Event

T = TypeVar("T")
# In commands. No such folder exists, so that none of them runs by accident on something else.
RUN, IMAGES, HEAD = "RUN", "IMAGES", "HEAD"
MISSING = "The map and the gallery are missing. Without --no-names the page says why."
NO_PICTURES = "The pictures are missing. Without --no-names the page says why."
# Notes of a head, and of its evaluation, that name nothing but classes.
PLAIN = (
    r"\d+ labels are too few to promise .*", r"all labels are of one group, .*", r"with one label, or one group, .*",
    r".*: one label or group only, .*", r"[\d,]+ test images? (was|were) learnt from, byte for byte; .*",
    r"The test in evaluation.json is of this head as it was before, .*",
    r"(one mask only|all masks are of one group), so nothing could be held out: .*",
    r"the encoder takes inputs of \d+ x \d+ px alone, .*", r"the files, of [\d,]+ px, are .*",
    r"the numbers in the masks are taken for those of .*", r"the decoder learnt from [\d,]+ of [\d,]+ masks, .*",
    r"classes of nearly no pixels, .*", r"no mask has a pixel of .*", r"[\d,]+ of the pictures are among those .*",
    r"pixels of classes that are not known are left out: .*",
)  # fmt: skip
SAID = ("alarm", "skipped", "resumed", "extended", "finished", "note")  # events whose text is selfsight's own


def reason(text: str) -> str:
    """The reason `text`, cut where it may begin to name a file."""
    return re.split(r": | \(| within ", text, maxsplit=1)[0]


def reasons(counts: Counter[str]) -> Counter[str]:
    """Counts of files by `reason`."""
    found: Counter[str] = Counter()
    for text, count in counts.items():
        found[reason(text)] += count
    return found


def others(counts: dict[str, int] | None) -> dict[str, int] | None:
    """The number of other files, without their suffixes, which are parts of names."""
    return {"of any kind": sum(counts.values())} if counts else counts


def evaluation(measured: Evaluation) -> Evaluation:
    """The evaluation with the number of its notes in place of them, as notes may name files and groups, and without the
    paths of encoders beside it."""
    told = [text for note in measured.about.notes if (text := _told(note))]
    if count := len(measured.about.notes) - len(told):
        told.append(
            f"{count} note{'' if count == 1 else 's'} on these figures may name files: read evaluation.json of the run"
        )
    named = {name: name if is_public(name) else f"MODEL{i}" for i, name in enumerate(measured.beside, 1)}
    about = replace(measured.about, model="", notes=told, beside=_renamed(measured.about.beside, named))
    beside, gains = _renamed(measured.beside, named), _renamed(measured.gains, named)
    return replace(measured, about=about, beside=beside, gains=gains)


def head_notes(notes: list[str]) -> list[str]:
    """The notes of a head with the number of those in place of them that may name files and groups."""
    told = []
    for note in notes:
        groups = re.match(r"([\d,]+ groups of the test), such as ", note)
        told.append(f"{groups[1]} were learnt from; the figures flatter" if groups else note if _is_plain(note) else "")
    count = told.count("")
    may = f"{count} note{'' if count == 1 else 's'} may name files: read head.json and evaluation.json of the head"
    return [*filter(None, told), *([may] if count else [])]


def _is_plain(note: str) -> bool:
    return any(re.fullmatch(pattern, note) for pattern in PLAIN)


def is_public(weights: str) -> bool:
    """Whether the name of weights names no file."""
    return weights.partition(":")[0] in ("timm", "torchvision", "package")


def _renamed(content: dict[str, T], named: dict[str, str]) -> dict[str, T]:
    return {named.get(name, name): value for name, value in content.items()}


def _told(note: str) -> str:
    """What a note says of the split of train and test, without names; "" for other notes."""
    if note.startswith("train and test are ") or re.fullmatch(r"\d+ images? (is|are) in both train and test, .*", note):
        return note
    groups = re.match(r"(\d+ of \d+ groups of test), such as ", note)
    return f"{groups[1]} are in train too; the figures flatter" if groups else ""


def recipe(chosen: Recipe) -> Recipe:
    """The recipe, with only the last part of a path of weights."""
    return chosen if is_public(chosen.weights) else replace(chosen, weights=Path(chosen.weights).name)


def events(happened: list[Event]) -> list[Event]:
    """The events, without the messages of other software."""
    return [event if event.kind in SAID else event._replace(text="") for event in happened]


def intended(use: str) -> str:
    """The intended use of a head, without the name of the folder that it learnt from."""
    return re.sub(r"(?s)( like those| ones) of .*\. Not tested", r"\1 that it learnt from. Not tested", use)


def without_folders(text: str) -> str:
    """A text in which absolute paths are cut to their last part."""
    return re.sub(r"(?<![\w.~/\\])(?:[A-Za-z]:)?[\\/](?:[^\s/\\'\"]+[\\/])*(?=[^\s/\\])", "", text)
