"""The page of a curation: each kind of fault with its pictures, how many are thought to be real, what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.curation.faults import KINDS, PAIRS, Found, crosses
from selfsight.curation.ranking import Ranking
from selfsight.data.canvases import measure_format
from selfsight.data.collection import Collection
from selfsight.data.geometry import Geometry
from selfsight.report.pictures import data_uris, pictures_of
from selfsight.report.template import render

THUMBNAIL = 160  # px
MOST = 24  # items or pairs of a kind
MOST_BYTES = 8_000_000  # of all pictures on the page
PRINTED_LABEL = 40  # letters


class Shown(NamedTuple):
    """An item on the page: its picture, "" for none, its name, and its label, "" for none."""

    picture: str
    name: str
    label: str


class Tile(NamedTuple):
    """One or two items on the page, the score, and why they are there."""

    items: list[Shown]
    score: float
    why: str


class Strip(NamedTuple):
    """A kind of fault on the page. more: how many more are in issues.json."""

    kind: str
    title: str
    sentence: str
    estimate: str
    tiles: list[Tile]
    more: int


def build(
    items: Collection,
    found: Found,
    thumbnails: bool,
    lines: Sequence[str],
    commands: Sequence[str],
    counts: Sequence[tuple[str, str]],
    sources: tuple[Sequence[str], Sequence[Sequence[str]]] = ((), ()),
) -> str:
    """The page as HTML.

    found: with rankings of what is to be shown. lines: what is to be said first. commands: what to do next. counts: of
    the collection, (name, value). sources: headings and rows of the table of sites, cameras or batches.
    """
    chosen = {ranking.kind: ranking.numbers[: min(MOST, 2 * ranking.estimated)] for ranking in found.rankings}
    places = sorted({int(place) for numbers in chosen.values() for place in numbers.ravel()})
    pictures = _pictures(items, found.rows, places) if thumbnails else {}
    strips = [_strip(found, ranking, len(chosen[ranking.kind]), pictures) for ranking in found.rankings]
    content: dict[str, object] = {
        "title": items.source.name, "lines": list(lines), "notes": found.notes, "thumbnails": thumbnails,
        "strips": [strip for strip in strips if strip.tiles], "commands": list(commands), "counts": list(counts),
        "sources": sources, "nothing": [strip.title for strip in strips if not strip.tiles],
    }  # fmt: skip
    return render("curation_page.html", content)


def estimate_of(ranking: Ranking) -> str:
    """How many are thought to be at fault, in words."""
    if ranking.kind in ("exact_duplicates", "odd_channels", "harmful_sources"):
        return f"{ranking.estimated:,}, counted"
    return f"about {ranking.estimated:,} ({ranking.low:,} to {ranking.high:,})"


def _strip(found: Found, ranking: Ranking, shown: int, pictures: dict[int, str]) -> Strip:
    title, sentence = KINDS[ranking.kind]
    tiles = []
    for n, numbers in enumerate(ranking.numbers[:shown]):
        places = [int(place) for place in np.atleast_1d(numbers)]
        why = ranking.suggested[n] if ranking.suggested else ""
        why = f"looks like {why[:PRINTED_LABEL]}" if why else ""
        if why and (box := found.regions.get(places[0])) is not None:
            why = f"{box.label[:PRINTED_LABEL]} at {box.x0:.0f}, {box.y0:.0f} {why}"
        if ranking.kind in PAIRS and (what := crosses(found, places)):
            why = f"across {what}"
        tiles.append(Tile([_shown(found, place, pictures) for place in places], float(ranking.score[n]), why))
    more = max(0, min(2 * ranking.estimated, len(ranking.numbers)) - shown)
    return Strip(ranking.kind, title, sentence, estimate_of(ranking), tiles, more)


def _shown(found: Found, place: int, pictures: dict[int, str]) -> Shown:
    page, label = found.rows["page"][place].as_py(), found.labels.values[place]
    name = found.rows["uri"][place].as_py() + ("" if page is None else f" #{page}")
    said = "|".join(map(str, label)) if isinstance(label, tuple) else "" if label is None else str(label)
    return Shown(pictures.get(place, ""), name, said[:PRINTED_LABEL])


def _pictures(items: Collection, rows: pa.Table, places: list[int]) -> dict[int, str]:
    """{place: picture} of the items at these places, as data URIs."""
    if not places:
        return {}
    format = measure_format(items)
    plain = (0.0,) * format.channels, (1.0,) * format.channels
    geometry = Geometry(format.channels, THUMBNAIL, format.window, *plain, format.depth, format.mode)
    drawn = pictures_of(items, rows.take(pa.array(places)), geometry, THUMBNAIL)
    return dict(zip(places, data_uris([drawn[n].convert("RGB") for n in range(len(places))], MOST_BYTES), strict=True))
