"""What `curate` finds, as Python objects and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from selfsight.results import Result


@dataclass(frozen=True)
class Partner(Result):
    """The other item of a pair: its id, and its path relative to the source."""

    id: str
    uri: str


@dataclass(frozen=True)
class Issue(Result):
    """An item that may be at fault.

    id: of the item; of a pair, of the one that would be dropped.
    uri: its path, relative to the source.
    score: from 1, surely at fault, down to 0.
    pair: the item that it shows the picture of.
    suggested: the label that it may have in truth.
    box: what of it may have it, x0, y0, x1, y1 in pixels of the upright item, where boxes or masks have the labels.
    page: page or frame in a file that holds several.
    """

    if_any: ClassVar = ("pair", "suggested", "box", "page")
    id: str
    uri: str
    score: float
    pair: Partner | None = None
    suggested: str | None = None
    box: list[float] | None = None
    page: int | None = None

    @property
    def name(self) -> str:
        """Its file, and which page or frame of it."""
        return self.uri if self.page is None else f"{self.uri} #{self.page}"


@dataclass(frozen=True)
class Issues(Result):
    """The items that may have one fault.

    estimated: how many of them are thought to be at fault.
    items: at most twice as many, the most likely first.
    """

    estimated: int
    items: list[Issue]


@dataclass(frozen=True)
class Slimmed(Result):
    """A part that covers the whole.

    file: a CSV, the item that covers most first.
    items: how many stay.
    coverage: how near an item is on average to the most like it that stays, 1 where all stay.
    random: the same of as many items drawn by chance.
    classes_kept: how many classes stay.
    classes: how many there are.
    """

    if_any: ClassVar = ("classes_kept", "classes")
    file: str
    items: int
    coverage: float
    random: float
    classes_kept: int | None
    classes: int | None


@dataclass(frozen=True)
class Measured(Result):
    """A value with its bounds of 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Source(Result):
    """A site, camera or batch.

    source: its name.
    items: how many were looked at.
    labelled: how many of them have a label that counts.
    verdict: remove, look or keep.
    why: the reason.
    difference: how far its pictures are from those of the others, in standard deviations within a source.
    harm: the part lost of what it should teach; None where nobody can tell.
    evidence: the harm by its labels, by being inverted, by noise and by lack of spread, as far as measured.
    gain: what a probe of the others gains on others without it, in points of the variance of labels explained.
    loss: its self-supervised loss less that of the others, in standard deviations between sources.
    """

    if_any: ClassVar = ("gain", "loss")
    source: str
    items: int
    labelled: int
    verdict: str
    why: str
    difference: Measured
    harm: Measured | None
    evidence: dict[str, Measured]
    gain: Measured | None
    loss: Measured | None


@dataclass(frozen=True)
class Curation(Result):
    """What is wrong with a collection. `--json` has each kind of fault by its name, beside the rest.

    faults: {kind: issues}.
    intervals: {kind: [low, high]}, the interval of 95 % of how many are at fault.
    error_rate: the share of sound items that the estimates allow for.
    source: that was looked at.
    items: how many items were looked at.
    set_aside: how many were not, as they cannot be read or were dropped.
    reasons: why, with the number of items for each.
    settled: how many faults are not listed, as they were decided about.
    notes: what a reader must know.
    decided: how many decisions the automatic mode made. decisions: which.
    undone: how many decisions were taken back.
    exported: {file: how many items} of what is left.
    slim: the part that was asked for.
    split: {split: how many items} of the split that was asked for.
    report: the folder of the report.
    sources: the sites, cameras or batches that items are from, the most harmful first.
    summary: the file that tells of the source.
    reviewed: how many decisions were made on the page.
    """

    if_any: ClassVar = (
        "sources",
        "summary",
        "decided",
        "decisions",
        "undone",
        "reviewed",
        "exported",
        "slim",
        "split",
        "report",
    )
    faults: dict[str, Issues]
    intervals: dict[str, list[int]]
    error_rate: float
    source: str
    items: int
    set_aside: int
    reasons: dict[str, int]
    settled: int
    notes: list[str]
    decided: int | None = None
    decisions: list[str] | None = None
    undone: int | None = None
    exported: dict[str, int] | None = None
    slim: Slimmed | None = None
    split: dict[str, int] | None = None
    report: str | None = None
    sources: list[Source] | None = None
    summary: str | None = None
    reviewed: int | None = None

    def to_dict(self) -> dict[str, object]:
        rest = {name: value for name, value in super().to_dict().items() if name != "faults"}
        return {kind: issues.to_dict() for kind, issues in self.faults.items()} | rest
