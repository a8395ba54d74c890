"""An inspection on parts that it did not learn from: how many defects it finds, where, and at what price."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.data.annotations.masks import read_mask, upright_mask
from selfsight.data.annotations.outlines import BACKGROUND, IGNORED, drawn
from selfsight.data.collection import Collection
from selfsight.data.formats.format import Unreadable
from selfsight.data.labels import Labels
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.inspect import auroc
from selfsight.heads.inspect_head import InspectHead
from selfsight.heads.metrics import with_intervals
from selfsight.heads.parts import Parts, parts_of
from selfsight.heads.regions import BINS, counted, pixel_auroc, pro
from selfsight.heads.targets import written_label
from selfsight.heads.tested import places_by
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import interval
from selfsight.results import Result

WORST = 24  # mistakes of each kind that are named
FOUND = 0.95  # of the defects, at which false alarms are counted
PIXEL_DRAWS = 200
MASKS = (".png", ".tif", ".tiff", ".bmp", ".gif")
OF_DEFECTS = ("auroc", "pixel_auroc", "pro", "found")


@dataclass(frozen=True)
class Judged(Result):
    """A part that was tested: its id, uri, label, score and p-value."""

    id: str
    uri: str
    label: str
    score: float
    p: float


@dataclass(frozen=True)
class InspectEvaluation(Result):
    """The figures of an inspection on test parts.

    task: "inspect". head: its digest. metrics: by name, with 95 % intervals (over groups where there are groups): auroc
    of the parts; pixel_auroc and pro of maps, where there are masks; false_alarms_at_95, the share of good parts called
    a defect where the limit is such that 95 % of the defects are found; false_alarms and found, the shares of good
    parts and of defects that the head's own limit calls a defect. by: {value of the column: metrics}. defects: {class:
    metrics} of each kind of defect beside all good parts. promised: the rate of false alarms that the head promises.
    items: that were measured. good: how many of them are good. missed: defects with the lowest scores, lowest first.
    alarms: good parts with the highest, highest first. scores: {"good", "defect"}: all scores, ascending. collection:
    the table that they are from. notes: what a reader must know.
    """

    task: str
    head: str
    metrics: dict[str, Interval]
    by: dict[str, dict[str, Interval]]
    defects: dict[str, dict[str, Interval]]
    promised: float
    items: int
    good: int
    missed: list[Judged]
    alarms: list[Judged]
    scores: dict[str, list[float]]
    collection: str
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, content: Mapping[str, object]) -> InspectEvaluation:
        """From what evaluation.json holds. Raises `KeyError` or `TypeError` for anything else."""
        values: dict[str, Any] = {f.name: with_intervals(content[f.name]) for f in fields(cls)}
        for name in ("missed", "alarms"):
            values[name] = [Judged(**each) for each in values[name]]
        return cls(**values)


@dataclass
class Tested:
    """Test parts as the head judged them, N: rows, label (None for a good part), score, p, defect; and of those with a
    mask, or good, the counts of their pixels: [N, BINS] normal, abnormal, shares of regions, and regions [N]."""

    rows: pa.Table
    labels: list[str | None]
    score: np.ndarray
    p: np.ndarray
    defect: np.ndarray
    pixels: np.ndarray  # [N, 3, BINS]
    regions: np.ndarray  # [N], -1 where nothing is known of the pixels

    def take(self, places: np.ndarray) -> Tested:
        """Those of the parts at these places."""
        some = [self.labels[place] for place in places.tolist()]
        arrays = (each[places] for each in (self.score, self.p, self.defect, self.pixels, self.regions))
        return Tested(self.rows.take(pa.array(places)), some, *arrays)

    @property
    def bad(self) -> np.ndarray:
        """[N] bool, which of them have a defect."""
        return np.array([label is not None for label in self.labels], bool)

    @property
    def groups(self) -> np.ndarray | None:
        """[N] the group of each, None where no part has one."""
        named = self.rows["group"].to_pylist() if "group" in self.rows.column_names else [None]
        return np.array(named, dtype=object) if any(named) else None


def evaluate_inspection(
    head: InspectHead, items: Collection, labels: Labels, by: str | None, masks: str | None, table: bool
) -> InspectEvaluation:
    """Measure a head on the labelled items of a collection. masks: a folder of them, by the names of the items; if
    it is not given, those of the collection count. table: whether the labels are of a table that the user gave."""
    places_by(labels.rows[:0], by, labels.location)  # raises before the long part, where there is no such column
    tested, notes = tested_parts(head, items, labels, masks, table, head.about.normal)
    values = places_by(tested.rows, by, labels.location)
    return InspectEvaluation(
        "inspect", head.digest, figures(tested), {value: figures(tested.take(at)) for value, at in values.items()},
        _each_defect(tested), head.about.promised, len(tested.labels), int((~tested.bad).sum()),
        _named(tested, True), _named(tested, False),
        {"good": np.sort(tested.score[~tested.bad]).tolist(), "defect": np.sort(tested.score[tested.bad]).tolist()},
        str(items.path), notes,
    )  # fmt: skip


def tested_parts(
    head: InspectHead, items: Collection, labels: Labels, masks: str | None, table: bool, normal: Sequence[str]
) -> tuple[Tested, list[str]]:
    """(the parts as the head judged them, what a reader must know), see `evaluate_inspection`. normal: names of good
    parts, beside the usual. Raises `SelfsightError` where there are not both kinds of parts."""
    parts = parts_of(labels, [name for name in normal if name in labels.classes], table)
    if labels.kind == "none" or not len(parts.defects) or not len(parts.good):
        one = "good part" if len(parts.defects) else "defect"
        raise DataError(
            f"{labels.location} has no {one} among its labels; both kinds are needed to measure. Put them into folders "
            "such as good/ and scratch/, or give --labels."
        )
    notes = [*([labels.doubt] if labels.doubt else []), *parts.notes, *_seen(head, parts)]
    if parts.unlabelled:
        notes.append(f"{parts.unlabelled:,} items without a label are left out")
    return _tested(head, items, parts, Truth(items, masks), notes), notes


class Measure(NamedTuple):
    """A metric: `statistic` of `arrays`, each [N, …] of the parts, of those where `some` [N] bool is True."""

    statistic: Callable[..., float | None]
    arrays: tuple[np.ndarray, ...]
    some: np.ndarray


def measures(tested: Tested) -> dict[str, Measure]:
    """The metrics of parts; those of pixels where masks say where defects are."""
    bad, called = tested.bad, tested.defect.astype(float)
    every, known = np.ones(len(bad), bool), tested.regions >= 0

    def both(statistic: Callable[[np.ndarray, np.ndarray], float]) -> Callable[..., float | None]:
        return lambda s, t: statistic(s[~t], s[t]) if 0 < t.sum() < len(t) else None

    found = {"auroc": Measure(both(auroc), (tested.score, bad), every)}
    if tested.regions.max(initial=-1) > 0:
        normal, abnormal, shares = (np.ascontiguousarray(tested.pixels[:, i]) for i in range(3))
        found["pixel_auroc"] = Measure(pixel_auroc, (normal, abnormal), known)
        found["pro"] = Measure(pro, (normal, shares, tested.regions), known)
    found["false_alarms_at_95"] = Measure(both(false_alarms_at), (tested.score, bad), every)
    for name, some in (("false_alarms", ~bad), ("found", bad)):
        found[name] = Measure(lambda c: float(c.mean()), (called,), some)
    return found


def figures(tested: Tested) -> dict[str, Interval]:
    """The metrics of parts, with intervals; those that have no meaning have no value."""
    return {name: spanned([measure], tested.groups) for name, measure in measures(tested).items()}


def spanned(sides: Sequence[Measure], groups: np.ndarray | None) -> Interval:
    """A metric with its interval; of two sides, heads on the same parts, how much larger that of the first is."""
    some = np.flatnonzero(np.logical_and.reduce([side.some for side in sides]))
    if not len(some):
        return Interval(None, None, None)
    arrays = [array[some] for side in sides for array in side.arrays]
    draws, width = PIXEL_DRAWS if sides[0].arrays[0].ndim > 1 else 1000, len(sides[0].arrays)

    def value(*given: np.ndarray) -> float | None:
        found = [side.statistic(*given[k * width : (k + 1) * width]) for k, side in enumerate(sides)]
        if None in found:
            return None
        return found[0] if len(found) == 1 else found[0] - found[1]  # type: ignore[operator]

    return interval(value, arrays, None if groups is None else groups[some], draws)


def false_alarms_at(good: np.ndarray, bad: np.ndarray, share: float = FOUND) -> float:
    """The share of good parts that score as high as the limit that finds this share of the defects."""
    place = len(bad) - int(np.ceil(round(share * len(bad), 9)))
    return float((good >= np.sort(bad)[place]).mean())


def _tested(head: InspectHead, items: Collection, parts: Parts, truth: Truth, notes: list[str]) -> Tested:
    rows = pa.concat_tables([parts.good.rows, parts.defects.rows])
    labels: list[str | None] = [*[None] * len(parts.good), *map(written_label, parts.defects.values)]
    count = len(labels)
    score, p, defect = np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, bool)
    pixels, regions = np.zeros((count, 3, BINS), np.float32), np.full(count, -1, np.int64)
    bad: dict[int, str] = {}
    uris, unmasked = rows["uri"].to_pylist(), 0
    for one in head.inspect(items, rows, bad, maps=truth.some, title="Testing"):
        at = one.number
        score[at], p[at], defect[at] = one.score, one.p, one.defect
        if one.map is None:
            continue
        mask = np.zeros(one.map.shape, np.int32) if labels[at] is None else truth.mask(rows.slice(at, 1), one.map.shape)
        if mask is None:
            unmasked += 1
            continue
        looked = mask >= 0 if head.roi is None else (mask >= 0) & head.roi
        *of_pixels, regions[at] = counted(one.map, mask > 0, head.about.threshold, looked)
        pixels[at] = np.stack(of_pixels)
    notes += [f"{uris[number]} {reason}" for number, reason in sorted(bad.items())]
    if truth.some and unmasked:
        these = "1 defect has no mask, and does" if unmasked == 1 else f"{unmasked:,} defects have no mask, and do"
        notes.append(f"{these} not count for the figures of pixels")
    there = np.flatnonzero(~np.isnan(score))
    return Tested(rows, labels, score, p, defect, pixels, regions).take(there)


class Truth:
    """The masks of parts: of a folder, where a mask has the name of the item but for the suffix, or of the collection's
    column `mask` and the journal. Every value above 0 is a defect. some: whether there are any."""

    def __init__(self, items: Collection, folder: str | None) -> None:
        self.items, self.folder = items, None if folder is None else Path(folder)
        if self.folder is not None and not self.folder.is_dir():
            raise SelfsightError(f"There is no folder {folder} for --masks.")
        known = Labels.of(items, kind="masks")  # of the column and the journal
        pairs = zip(known.ids, known.values, strict=True)
        self.known: dict[str, Any] = {item: value for item, value in pairs if value is not None}
        self.some = self.folder is not None or bool(self.known)

    def mask(self, row: pa.Table, shape: Sequence[int]) -> np.ndarray | None:
        """The mask [H, W] int32 of an item, -1 where nothing is known, None where it has none. Raises `DataError` for
        one that cannot be read, or is of another size."""
        [about] = row.to_pylist()
        try:
            found = self._read(about)
            if found is None:
                return None
            orientation = about.get("exif_orientation") or 1
            return upright_mask(found, int(shape[0]), int(shape[1]), orientation)
        except (Unreadable, OSError, ValueError) as reason:
            raise DataError(f"The mask of {about['uri']} cannot be used: {reason}. Mend it or take it away.") from None

    def _read(self, about: dict[str, Any]) -> np.ndarray | None:
        if self.folder is not None:
            name = PurePosixPath(about["uri"])
            for suffix in MASKS:
                for path in (self.folder / name.with_suffix(suffix), self.folder / f"{name}{suffix}"):
                    if path.is_file():
                        with path.open("rb") as file:
                            return read_mask(file)
            return None
        value = self.known.get(about["id"])
        if value is None:
            return None
        if not isinstance(value, str):  # outlines, or painted
            names = ["", *sorted({*value} - {BACKGROUND, IGNORED})]
            return drawn(value, names, about["height"], about["width"])[0]
        with self.items.source.open(value) as file:
            return read_mask(file)


def _seen(head: InspectHead, parts: Parts) -> list[str]:
    """A note on test parts that the head has learnt from."""
    contents = set(head.items["content_hash"].to_pylist())
    shared = contents & {*parts.good.rows["content_hash"].to_pylist(), *parts.defects.rows["content_hash"].to_pylist()}
    if not shared:
        return []
    these = "1 test image was" if len(shared) == 1 else f"{len(shared):,} test images were"
    return [f"{these} learnt from, byte for byte; the figures flatter"]


def _each_defect(tested: Tested) -> dict[str, dict[str, Interval]]:
    kinds = sorted({label for label in tested.labels if label is not None})
    names = np.array([label or "" for label in tested.labels])
    found = {}
    for kind in kinds:
        some = figures(tested.take(np.flatnonzero(~tested.bad | (names == kind))))
        found[kind] = {name: value for name, value in some.items() if name in OF_DEFECTS}
    return found


def _named(tested: Tested, bad: bool) -> list[Judged]:
    """The worst mistakes, or what comes nearest to one: of defects those that look most normal, of good parts those
    that look least so."""
    places = np.flatnonzero(tested.bad == bad)
    order = places[np.argsort(tested.score[places] * (1 if bad else -1), kind="stable")][:WORST]
    ids, uris = tested.rows["id"].to_pylist(), tested.rows["uri"].to_pylist()
    return [
        Judged(ids[i], uris[i], tested.labels[i] or "good", float(tested.score[i]), float(tested.p[i]))
        for i in order.tolist()
    ]
