"""All faults of a collection: one ranking of items, or of pairs of items, for each kind."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from selfsight.curation.copies import groups_of, near_duplicates
from selfsight.curation.label_errors import label_errors
from selfsight.curation.off_topic import off_topic
from selfsight.curation.pixels import exact_duplicates, measure, odd_channels, pixel_faults
from selfsight.curation.ranking import Ranking
from selfsight.curation.regions import Regions, region_errors
from selfsight.curation.sources import Judgement, judge
from selfsight.curation.summaries import LEAST_ITEMS
from selfsight.curation.told import by_source, ranked, source_column, summaries_of
from selfsight.data.boxes import Box
from selfsight.data.canvases import measure_format
from selfsight.data.collection import Collection
from selfsight.data.groups import group_numbers
from selfsight.data.labels import TABLES, TEST, TRAIN, Labels
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import pooled
from selfsight.probing.neighbours import Graph, graph_of

LEAST = 3  # items, below which features say nothing of one beside the others

# {kind: (its heading, what it means)}, in the order in which they are to be looked at.
KINDS = {
    "near_duplicates": ("Near duplicates", "Two items of one picture: cropped, turned, brightened or saved anew."),
    "exact_duplicates": ("Exact duplicates", "Two items with the same bytes."),
    "label_errors": ("Label errors", "Items that look like another class than theirs."),
    "harmful_sources": ("Harmful sources", "Items of a site, camera or batch that does the others harm."),
    "off_topic": ("Off-topic", "Items that do not belong with the others."),
    "dark": ("Dark", "Even the brightest part is far darker than in the others."),
    "bright": ("Bright", "Even the darkest part is far brighter than in the others."),
    "blurred": ("Blurred", "Edges are far softer than in the others."),
    "low_information": ("Low information", "Nearly everything is of one grey, such as an empty or covered view."),
    "odd_size": ("Odd size", "Far more or fewer pixels than the others have."),
    "odd_ratio": ("Odd ratio", "A ratio of width to height that is far from that of the others."),
    "odd_channels": ("Odd channels", "Another number or kind of channels than nine in ten of the others have."),
}  # fmt: skip
PAIRS = ("near_duplicates", "exact_duplicates")


@dataclass(frozen=True)
class Found:
    """What was found in a collection.

    rows: the items that were looked at [N], in the order of ids; the rankings are of their places.
    rankings: a ranking of each kind, in the order of `KINDS`.
    labels: of the rows; of the kind "none" where there are none.
    splits: of the rows [N]; None where an item is in none.
    places: those [M] of the items that have features. units: these, of unit length, [M, D]. graph: of them. All three
        are None without an encoder.
    regions: {place: the box whose class is doubted} of items that were ranked by the classes of their parts.
    sources: what is thought of the sites, cameras or batches that items are from, the most harmful first.
    bad: {id: reason} of items that cannot be decoded.
    notes: what a reader must know.
    """

    rows: pa.Table
    rankings: list[Ranking]
    labels: Labels
    splits: list[str | None]
    places: np.ndarray | None = None
    units: np.ndarray | None = None
    graph: Graph | None = None
    regions: dict[int, Box] = field(default_factory=dict)
    sources: list[Judgement] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def copies(self) -> np.ndarray:
        """Pairs [K, 2] of items that are thought to be one picture."""
        sure = [ranking.numbers[: ranking.estimated] for ranking in self.rankings if ranking.kind in PAIRS]
        return np.concatenate([np.empty((0, 2), np.int64), *sure])

    @property
    def groups(self) -> np.ndarray:
        """Number [N] of the group of each item: those of one group (a patient, a scene) or one picture have one."""
        return groups_of(self.copies, len(self.rows), group_numbers(self.labels.groups, len(self.rows)))


def find_faults(
    items: Collection,
    encoder: Encoder | None = None,
    labels: str | None = None,
    sources: str | None = None,
    run: Path | None = None,
) -> Found:
    """The faults of the usable items: those of pixels, and with an encoder those that features tell.

    labels: a table of them, see `Labels.of`. sources: the column of sites, cameras or batches, if not `site`, `camera`
    or `batch`. run: the run of the encoder, if it is of one. Raises `SelfsightError` where the labels cannot be read,
    or there is no such column.
    """
    column = source_column(items.usable, sources)
    rows, format = items.usable, measure_format(items)
    drawn = labels is not None and Path(labels).suffix.lower() not in TABLES
    given = Labels.of(items, rows, None if drawn else labels)  # first: what is wrong is said before the long work
    regions = Regions.of(items, labels) if drawn or (encoder is not None and given.kind == "none") else None
    measures = measure(items, rows, format)
    rankings = [*pixel_faults(measures), odd_channels(rows["mode"].to_pylist())]
    rankings.append(exact_duplicates(rows["content_hash"].to_pylist()))
    names = rows["id"].to_pylist()
    found = Found(rows, rankings, given, splits_of(rows), bad={names[n]: why for n, why in measures.bad.items()})
    if encoder is not None:
        found = _by_features(found, items, encoder, measures.pictures, label_errors_of=regions is None)
        if regions is not None and len(regions.boxes):
            ranking, boxes = region_errors(items, encoder, regions)
            found = replace(found, rankings=[*found.rankings, ranking], regions=boxes)
        found = found if column is None else _by_sources(found, items, encoder, column, run)
    elif regions is not None:
        found.notes.append("The classes of boxes and masks are doubted by features: give an encoder, --model RUN")
    order = list(KINDS)
    leaks = [_leaks_first(ranking, found) for ranking in found.rankings]
    return _noted(found, sorted(leaks, key=lambda ranking: order.index(ranking.kind)))


def splits_of(rows: pa.Table) -> list[str | None]:
    """The split that each item is in: as the column says; without one the outermost folder, if all are called like
    splits."""
    if any(said := rows["split"].to_pylist()):
        return [split or None for split in said]
    folders = [uri.rpartition("/")[0].partition("/")[0] for uri in rows["uri"].to_pylist()]
    alike = {folder.lower() for folder in folders} <= {*TRAIN, *TEST}
    return list(folders) if alike else [None] * len(folders)


def _by_features(
    found: Found, items: Collection, encoder: Encoder, pictures: np.ndarray, label_errors_of: bool
) -> Found:
    """`found` with what the features of its items say; `pictures`: small ones of all [N, C, S, S]."""
    known, features, bad = pooled(encoder, items, found.rows)
    places = np.flatnonzero(np.isin(found.rows["id"].to_pylist(), known["id"].to_pylist()))
    bad = {**found.bad, **bad}
    if len(places) < LEAST:
        note = f"{len(places)} items have features: too few to compare"
        return replace(found, bad=bad, notes=[note])
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    graph = graph_of(encoder, items, known, features)
    apart = _apart(found, places)
    pairs = near_duplicates(units, graph, lambda numbers: pictures[places[numbers]], apart).of(places)
    rankings = [*found.rankings, pairs, off_topic(units).of(places)]
    whole = replace(found, rankings=rankings, places=places, units=units, graph=graph, bad=bad)
    given = found.labels.take(places)
    if label_errors_of and given.kind in ("class", "grade") and not _are_splits(given):
        errors = label_errors(features, given.numbers(given.classes), given.classes, whole.groups[places])
        whole.rankings.append(errors.of(places))
    return whole


def class_names(labels: Labels) -> list[str | None]:
    """The class of each item, None where it has none or several."""
    told = labels.kind in ("class", "grade") and not _are_splits(labels)
    return [value if told and isinstance(value, str) else None for value in labels.values]


def _by_sources(found: Found, items: Collection, encoder: Encoder, column: str, run: Path | None) -> Found:
    """`found` with what is thought of the sources that `column` names."""
    if found.places is None:
        return found
    rows, features, _ = pooled(encoder, items, found.rows.take(pa.array(found.places)))
    named = by_source(rows, column)
    labels = class_names(found.labels.take(found.places))
    told = summaries_of(encoder, items, rows, features, named, labels, run)
    notes = list(found.notes)
    if small := sorted(set(named) - {one.source for one in told}):
        notes.append(f"Sources of fewer than {LEAST_ITEMS} items are not judged: {', '.join(small)}")
    if len(told) < 2:
        return replace(found, notes=notes)
    judgements = judge(told)
    if all(one.loss is None for one in judgements):
        notes.append("Sources are compared without the loss: the model has no objective to give one")
    ranking = ranked(judgements, named).of(found.places)
    return replace(found, rankings=[*found.rankings, ranking], sources=judgements, notes=notes)


def _are_splits(labels: Labels) -> bool:
    return {name.lower() for name in labels.classes} <= {*TRAIN, *TEST}


def _apart(found: Found, places: np.ndarray) -> np.ndarray | None:
    """Numbers [M] of what a copy must not cross: the split, where there are two, else the group."""
    for names in (found.splits, found.labels.groups):
        if len({name for name in names if name}) > 1:
            return group_numbers([names[place] for place in places], len(places))
    return None


def _leaks_first(ranking: Ranking, found: Found) -> Ranking:
    """Exact copies across splits before those within one."""
    if ranking.kind != "exact_duplicates" or not len(ranking.numbers):
        return ranking
    across = np.array([crosses(found, pair) != "" for pair in ranking.numbers.tolist()])
    order = np.argsort(~across, kind="stable")
    return Ranking(ranking.kind, ranking.numbers[order], ranking.score[order], ranking.estimated, ranking.low,
                   ranking.high)  # fmt: skip


def crosses(found: Found, pair: list[int]) -> str:
    """What two items that show one picture are on two sides of, in words; "" for nothing."""
    for what, names in (("splits", found.splits), ("groups", found.labels.groups)):
        one, other = (names[place] for place in pair)
        if one and other and one != other:
            return f"{what} {one} and {other}"
    return ""


def _noted(found: Found, rankings: list[Ranking]) -> Found:
    """`found` with these rankings, and what is to be said of them."""
    notes = list(found.notes)
    copies = {tuple(pair) for ranking in rankings if ranking.kind in PAIRS
              for pair in np.sort(ranking.numbers[: ranking.estimated], 1).tolist()}  # fmt: skip
    across = [what for pair in copies if (what := crosses(found, list(pair)))]
    for kind in ("splits", "groups"):
        if count := sum(what.startswith(kind) for what in across):
            pairs = "1 pair of duplicates lies" if count == 1 else f"{count:,} pairs of duplicates lie"
            notes.append(f"{pairs} across {kind}; figures measured on one side flatter")
    if found.labels.doubt:
        notes.append(found.labels.doubt)
    if found.places is not None and found.labels.kind == "classes":
        notes.append("Items have several labels; label errors are looked for where each has one class")
    return replace(found, rankings=rankings, notes=notes)
