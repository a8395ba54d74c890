"""The figures of an evaluation: the encoder beside the controls that it must beat, as measured, stored and shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from selfsight.results import Result


@dataclass(frozen=True)
class Draws:
    """A figure in [0, 1] over draws of the labels.

    mean: over the draws.
    std: standard deviation over the draws.
    """

    mean: float
    std: float


@dataclass(frozen=True)
class Accuracy(Draws):
    """An accuracy over draws of the labels, and what counts where classes are uneven.

    balanced: the mean recall over classes; None if an older version measured.
    auroc: the mean one-against-rest area; None where it has no meaning, too.
    """

    balanced: Draws | None = None
    auroc: Draws | None = None

    def by(self, metric: str) -> Draws | None:
        """The figure of "top1", "balanced" or "auroc"."""
        return {"top1": self, "balanced": self.balanced, "auroc": self.auroc}[metric]


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval. Values are None where nothing can be said.

    value: the figure.
    low: lower end of the interval.
    high: upper end.
    """

    value: float | None
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """1 if the whole interval is above 0, -1 if it is below, 0 if nothing is proven."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Probes:
    """The figures of one set of features.

    knn: metrics of the k-NN probe by name (`probing.metrics.NAMES`), None where one has no meaning, and the power by
        which it whitened the features.
    linear: the same for the linear probe, and its strength C.
    few_shot: accuracy by labels per class, "all" for every label.
    recall: of the linear probe, by class: the share of the test items found, None for a class without test items.
    """

    knn: dict[str, float | None]
    linear: dict[str, float | None]
    few_shot: dict[str, Accuracy]
    recall: dict[str, float | None] = field(default_factory=dict)

    def with_earlier(self, earlier: Probes | None) -> Probes:
        """These figures, with the few-shot figures that only `earlier` has."""
        return self if earlier is None else replace(self, few_shot=_joined(earlier.few_shot, self.few_shot))


@dataclass(frozen=True)
class About:
    """What was measured, and on what.

    model: as it was named.
    classes: in the order of the class numbers.
    train_items: train items with a label that could be read.
    test_items: test items with a label that could be read.
    seeds: draws of the labels.
    notes: what a reader of the figures must know.
    test_of: test items of each class.
    passes: over the training images, if the model is a run.
    minutes: of training, if the model is a run.
    encoder: its digest.
    labels: their digest. Figures of the same encoder and labels belong together.
    leading: the metric that gains and sentences are of: "top1", or "balanced" where the test classes are uneven.
    beside: digests of the encoders beside it, by name.
    """

    model: str = ""
    classes: list[str] = field(default_factory=list)
    train_items: int = 0
    test_items: int = 0
    seeds: int = 0
    notes: list[str] = field(default_factory=list)
    test_of: dict[str, int] = field(default_factory=dict)
    passes: float | None = None
    minutes: float | None = None
    encoder: str = ""
    labels: str = ""
    leading: str = "top1"
    beside: dict[str, str] = field(default_factory=dict)


OWN = ("encoder", "start", "random", "pixels", "commonest")  # the sides that every evaluation has, with `start` if any


@dataclass(frozen=True)
class Evaluation(Result):
    """The figures of the encoder beside those of the controls.

    encoder: of the encoder's features.
    random: of the same encoder with random weights.
    start: of the starting weights; None if they were random.
    pixels: of raw pixels, without an encoder.
    about: what was measured.
    commonest: of always answering the commonest class of train; None if an older version measured.
    gains: by control, then by "knn" or labels per class: how much more accurate the encoder is, on the same test items
        and with the same labels.
    more: by labels per class, and "half" of all: how much more accurate the encoder is with all labels.
    beside: of further encoders that were asked for, by name.
    """

    if_any: ClassVar = ("start", "commonest")
    encoder: Probes
    random: Probes
    start: Probes | None
    pixels: Probes
    about: About
    commonest: Probes | None = None
    gains: dict[str, dict[str, Interval]] = field(default_factory=dict)
    more: dict[str, Interval] = field(default_factory=dict)
    beside: dict[str, Probes] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, Probes]:
        """The encoder and the controls that there are, by name, in the order of every table."""
        *first, last = ((name, getattr(self, name)) for name in OWN)
        return {name: probes for name, probes in (*first, *self.beside.items(), last) if probes is not None}

    @classmethod
    def of(cls, content: dict[str, Any]) -> Evaluation:
        """From what `to_dict` gave, of this version or an older one; names that are not known are left out. Raises
        `KeyError`, `TypeError` or `AttributeError` for anything else."""
        known = {f.name for f in fields(About)}
        about = About(**{name: value for name, value in content.get("about", {}).items() if name in known})
        start, commonest = (_probes(content[name]) if name in content else None for name in ("start", "commonest"))
        encoder, random, pixels = (_probes(content[name]) for name in ("encoder", "random", "pixels"))
        gains = {control: _intervals(found) for control, found in content.get("gains", {}).items()}
        beside = {name: _probes(found) for name, found in content.get("beside", {}).items()}
        return cls(encoder, random, start, pixels, about, commonest, gains, _intervals(content.get("more", {})), beside)

    def with_earlier(self, earlier: Evaluation) -> Evaluation:
        """With the few-shot figures that only `earlier` has, and with its encoders beside this one, if it is of the
        same encoder, labels and draws. An encoder beside it that is another one by now is measured as new."""
        mine, theirs = (
            (about.encoder, about.labels, about.seeds, about.leading) for about in (self.about, earlier.about)
        )
        if not self.about.encoder or mine != theirs:
            return self
        now, then = self.about.beside, earlier.about.beside
        same = [name for name in earlier.beside if now.get(name, then.get(name)) == then.get(name)]
        gains = {
            name: _joined({} if name in self.beside and name not in same else earlier.gains.get(name, {}), found)
            for name, found in self.gains.items()
        }
        gone = [name for name in same if name not in self.beside]
        return replace(
            self,
            encoder=self.encoder.with_earlier(earlier.encoder),
            random=self.random.with_earlier(earlier.random),
            start=self.start and self.start.with_earlier(earlier.start),
            pixels=self.pixels.with_earlier(earlier.pixels),
            commonest=self.commonest and self.commonest.with_earlier(earlier.commonest),
            about=replace(self.about, beside=now | {name: then.get(name, "") for name in gone}),
            gains=gains | {name: earlier.gains.get(name, {}) for name in gone},
            beside={
                name: probes.with_earlier(earlier.beside[name] if name in same else None)
                for name, probes in self.beside.items()
            }
            | {name: earlier.beside[name] for name in gone},
            more=_joined(earlier.more, self.more),
        )


def _joined(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Both, by labels per class, "knn" first and words last; what was measured now counts."""
    both = earlier | now

    def place(name: str) -> float:
        return float(name) if name.isdecimal() else -1.0 if name == "knn" else math.inf

    return {name: both[name] for name in sorted(both, key=place)}


def _probes(content: dict[str, Any]) -> Probes:
    few = {
        count: Accuracy(value["mean"], value["std"], *(_draws(value.get(name)) for name in ("balanced", "auroc")))
        for count, value in content["few_shot"].items()
    }
    return Probes(dict(content["knn"]), dict(content["linear"]), few, dict(content.get("recall", {})))


def _draws(content: dict[str, float] | None) -> Draws | None:
    return None if content is None else Draws(content["mean"], content["std"])


def _intervals(content: dict[str, Any]) -> dict[str, Interval]:
    return {name: Interval(value["value"], value["low"], value["high"]) for name, value in content.items()}
