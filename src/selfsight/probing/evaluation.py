"""What features reach with labels, beside the controls that must be beaten: as measured, stored and shown."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from selfsight.results import Result


@dataclass(frozen=True)
class Accuracy:
    """Mean and standard deviation, over draws of the labels, of a share in [0, 1]."""

    mean: float
    std: float


@dataclass(frozen=True)
class Probes:
    """What one set of features reaches. knn, linear: metric by name (`probing.metrics.NAMES`; of the linear probe its
    strength C too), None where it has no meaning. few_shot: accuracy by labels per class, "all" for every label."""

    knn: dict[str, float | None]
    linear: dict[str, float | None]
    few_shot: dict[str, Accuracy]


@dataclass(frozen=True)
class About:
    """model: as it was named. seeds: draws of the labels. notes: what a reader of the figures must know."""

    model: str = ""
    classes: list[str] = field(default_factory=list)
    train_items: int = 0
    test_items: int = 0
    seeds: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation(Result):
    """encoder: the features in question. Controls: random, the same encoder with random weights; start, with the
    weights that it started from, None if these were random; pixels, no encoder."""

    if_any: ClassVar = ("start",)
    encoder: Probes
    random: Probes
    start: Probes | None
    pixels: Probes
    about: About

    @property
    def sides(self) -> dict[str, Probes]:
        """The encoder and the controls that there are, by name."""
        found = {name: getattr(self, name) for name in ("encoder", "random", "start", "pixels")}
        return {name: probes for name, probes in found.items() if probes is not None}

    @classmethod
    def of(cls, content: dict[str, Any]) -> Evaluation:
        """From what `to_dict` gave, of this version or an older one; names that are not known are left out. Raises
        `KeyError`, `TypeError` or `AttributeError` for anything else."""
        known = {f.name for f in fields(About)}
        about = About(**{name: value for name, value in content.get("about", {}).items() if name in known})
        start = _probes(content["start"]) if "start" in content else None
        encoder, random, pixels = (_probes(content[name]) for name in ("encoder", "random", "pixels"))
        return cls(encoder, random, start, pixels, about)


def _probes(content: dict[str, Any]) -> Probes:
    few = {count: Accuracy(value["mean"], value["std"]) for count, value in content["few_shot"].items()}
    return Probes(dict(content["knn"]), dict(content["linear"]), few)
