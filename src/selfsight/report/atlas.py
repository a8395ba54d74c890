"""The atlas of a collection by its features: where items lie, and which lie nearest to which."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from selfsight.curation.odd import least_alike
from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import pooled
from selfsight.encoders.weights import load
from selfsight.errors import DataError, SelfsightError, first_line
from selfsight.machine import best_device
from selfsight.probing.neighbours import nearest_others
from selfsight.report.pictures import data_uri, data_uris, thumbnails_of
from selfsight.training.run import Run

MOST_ITEMS = 1500  # of the map: t-SNE stays within seconds and the page within 8 MB
FEWEST_FOR_TSNE = 10
MAP_SIDE, GALLERY_SIDE = 56, 88  # px
MAP_BYTES = 2_400_000  # of the pictures on the map; plotly.js itself takes 4.8 MB
QUERIES, NEIGHBOURS = 10, 8
ODD = 16  # pictures: two rows
COLOURS = 10  # that can be told apart, as the style sheet has them
UNCOLOURED = ("id", "uri", "content_hash", "status", "reason", "modified_ns", "boxes", "mask", "intrinsics")

FACTS = ("page", "format", "width", "height", "exif_orientation", "mode", "channels", "depth", "split", "bytes")


@dataclass(frozen=True)
class Colouring:
    """How a column colours the items: by words or by numbers.

    key: for words, (code, text) of each colour, most common first; rare words share the last code.
    codes: for words, one code per item.
    numbers: for numbers, one per item; None for words.
    """

    key: list[tuple[int, str]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    numbers: list[float] | None = None


@dataclass(frozen=True)
class Atlas:
    """The items on the map, with their nearest neighbours.

    names: of the items; "" if they are not to be shown.
    projection: [N, 2], the items' features on a plane.
    columns: what can colour the items, by name (see `columns`).
    pictures: one data URI per item, or none at all.
    gallery: query items with their nearest neighbours.
    odd: the items least like the others, the least like first.
    total: items from which the map's were drawn.
    unread: drawn items that could not be read.
    """

    names: list[str]
    projection: np.ndarray
    columns: dict[str, Colouring]
    pictures: list[str]
    gallery: list[dict[str, object]]
    odd: list[dict[str, object]]
    total: int
    unread: int


def draw(run: Run, collection: Collection, thumbnails: bool, names: bool = True) -> Atlas:
    """The atlas of `collection` by the encoder of `run`, with or without pictures and names.

    Raises `SelfsightError` saying why it cannot be drawn.
    """
    try:
        collection.source  # noqa: B018
    except SelfsightError as error:
        raise DataError(f"the images are not there: {error}") from None
    encoder = load(run.path).to(best_device())
    usable = collection.usable
    rows, features, bad = pooled(encoder, collection, usable.take(spread(len(usable), MOST_ITEMS)))
    if not len(rows):
        reason = first_line(Exception(next(iter(bad.values()), "no item")))
        raise DataError(f"the images are not there: none in {collection.about.location} can be read ({reason})")
    called: list[str] = rows["uri"].to_pylist() if names else [""] * len(rows)
    pictures, gallery, odd = [], [], []
    if thumbnails:
        pictures = data_uris(list(thumbnails_of(collection, rows, encoder, MAP_SIDE).values()), MAP_BYTES)
        gallery = _gallery(encoder, collection, rows, features, called)
        odd = _odd(encoder, collection, rows, features, called)
    colours = columns(collection, rows)
    if not names:
        colours = {name: colour for name, colour in colours.items() if name in _nameless(rows)}
    return Atlas(called, project(features), colours, pictures, gallery, odd, len(usable), len(bad))


def project(features: np.ndarray) -> np.ndarray:
    """The projection [N, 2] of `features` [N, D] onto a plane: t-SNE of their directions, principal components if
    few."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    varied = float(unit.std(0).max()) > 1e-6  # t-SNE starts from components scaled to deviation 1
    if len(unit) >= FEWEST_FOR_TSNE and varied and unit.shape[1] >= 2:
        perplexity = min(30.0, (len(unit) - 1) / 3)
        return np.asarray(TSNE(random_state=0, init="pca", perplexity=perplexity).fit_transform(unit))
    out = np.zeros((len(unit), 2))
    dimensions = min(2, *unit.shape)
    if len(unit) > 1 and varied:
        out[:, :dimensions] = PCA(dimensions, random_state=0).fit_transform(unit)
    return out


def columns(collection: Collection, rows: pa.Table) -> dict[str, Colouring]:
    """{name: colouring} of the columns that can colour a map of `rows`, labels first. Left out are columns of one
    value, and columns of words that are nearly all different."""
    labels = Labels.of(collection, rows).values
    named: dict[str, list[Any]] = {"label": ["|".join(map(str, v)) if isinstance(v, tuple) else v for v in labels]}
    named |= {name: rows[name].to_pylist() for name in rows.column_names if name not in (*UNCOLOURED, "label")}
    out: dict[str, Colouring] = {}
    for name, values in named.items():
        found = Counter(value for value in values if value not in (None, ""))
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
        if numeric and len(found) > COLOURS:
            out[name] = Colouring(numbers=values)
        elif len(found) > 1 and (numeric or name == "label" or len(found) <= len(values) / 2):
            codes = {value: code for code, (value, _) in enumerate(found.most_common(COLOURS - 1))}
            key = [(code, f"{value} ({found[value]:,})") for value, code in codes.items()]
            if rest := len(values) - sum(found[value] for value in codes):
                key.append((COLOURS - 1, f"others ({rest:,})"))
            out[name] = Colouring(key, [codes.get(value, COLOURS - 1) for value in values])
    return out


def _nameless(rows: pa.Table) -> tuple[str, ...]:
    """The columns whose values name no item, person, place or folder. Labels that come only from folders do."""
    said = rows["label"].null_count < len(rows)
    return (*FACTS, "label") if said else FACTS


def neighbours(features: np.ndarray) -> list[tuple[int, list[tuple[int, float]]]]:
    """Up to 10 items, evenly spaced over `features` [N, D], each with up to 8 neighbours (index, cosine), nearest
    first."""
    queries = spread(len(features), QUERIES)
    return list(zip(queries.tolist(), nearest_others(features, queries, NEIGHBOURS), strict=True))


def _gallery(
    encoder: Encoder, collection: Collection, rows: pa.Table, features: np.ndarray, names: list[str]
) -> list[dict[str, object]]:
    found = [(query, nearest) for query, nearest in neighbours(features) if nearest]
    shown = sorted({query for query, _ in found} | {i for _, nearest in found for i, _ in nearest})
    pictures = thumbnails_of(collection, rows.take(shown), encoder, GALLERY_SIDE)

    def tile(index: int, cosine: float = 1.0) -> dict[str, object]:
        picture = data_uri(pictures[shown.index(index)])
        return {"name": names[index], "picture": picture, "similarity": cosine}

    return [{"query": tile(query), "nearest": [tile(i, cosine) for i, cosine in near]} for query, near in found]


def _odd(
    encoder: Encoder, collection: Collection, rows: pa.Table, features: np.ndarray, names: list[str]
) -> list[dict[str, object]]:
    """{name, picture, score} of the items least like the others, the least like first."""
    numbers, scores = least_alike(features, rows["content_hash"].to_pylist())
    first = numbers[:ODD].tolist()
    pictures = thumbnails_of(collection, rows.take(first), encoder, GALLERY_SIDE).values()
    shown = zip(first, pictures, scores[:ODD].tolist(), strict=True)
    return [{"name": names[i], "picture": data_uri(picture), "score": score} for i, picture, score in shown]
