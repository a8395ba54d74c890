"""What is left of a collection after cleaning, as files: a manifest, annotations, a part that covers it, a split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from selfsight.curation.faults import Found
from selfsight.curation.selection import Pool, choose, stands_for
from selfsight.data.annotations import coco
from selfsight.data.annotations.folders import OF_BOXES, in_files, names_of
from selfsight.data.annotations.outlines import BACKGROUND, Outline, Outlines
from selfsight.data.boxes import Box
from selfsight.data.collection import Collection
from selfsight.data.groups import deal
from selfsight.data.labels import Labels, table_of
from selfsight.errors import DataError, SelfsightError
from selfsight.files import save_table, write_whole
from selfsight.probing.neighbours import nearest

MANIFESTS = (".csv", ".parquet")
OF_THE_FILE = ("uri", "status", "reason", "bytes", "modified_ns", "exif_orientation", "mode", "boxes", "mask")
RANDOM_DRAWS = 5
NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}


@dataclass(frozen=True)
class Slim:
    """A part of a collection that covers it.

    numbers: of the items [K], the one that covers most first. stands_for: [K] how many items each is the most like.
    coverage: how near an item is on average to the most like it that stays: exp(-d^2) of features of unit length, 1 for
        all. random: that of as many items drawn by chance, the mean of 5 draws.
    classes: how many classes of labels stay, of how many; None where there are no labels.
    """

    numbers: np.ndarray
    stands_for: np.ndarray
    coverage: float
    random: float
    classes: tuple[int, int] | None


def check_export(out: str) -> None:
    """Raise `SelfsightError` for a name under which nothing is written."""
    path = Path(out)
    if path.suffix.lower() not in (*MANIFESTS, ".json") and path.name not in OF_BOXES:
        raise SelfsightError(
            f"What is left is written as {', '.join(MANIFESTS)}, as .json (COCO), or into a folder called "
            f"{' or '.join(OF_BOXES)}, not as {out!r}. For example: --export clean.csv"
        )
    if path.name in OF_BOXES and path.exists() and (path.is_file() or any(path.iterdir())):
        raise SelfsightError(f"{out} is there already and holds something. Give --export another place.")


def export(items: Collection, out: Path, labels: str | None) -> int:
    """Write the usable items in the form that the name says; returns how many. See `check_export`.

    Raises `SelfsightError` for a file of boxes where no item has any.
    """
    if out.suffix.lower() in MANIFESTS:
        rows = manifest(items, Labels.of(items, path=table_of(labels), kind="classes"))
        save_table(rows, out)
        return len(rows)
    given = Labels.of(items, kind="boxes", path=labels)
    if given.kind == "none":
        raise DataError(f"No item of {items.about.location} has boxes, so there are none for {out}. Write a .csv.")
    return write_boxes(given.labelled(), out)


def write_boxes(given: Labels, out: Path) -> int:
    """Write the boxes of items to a COCO file, or into a folder of VOC or YOLO files, as the name says; returns of how
    many items. One without a box is written too: it was looked at."""
    sizes = zip(given.rows["width"].to_pylist(), given.rows["height"].to_pylist(), strict=True)
    found = [
        Outlines(tuple(Outline(box.label, None, box, box.iscrowd) for box in boxes), size)
        for boxes, size in zip(map(_boxes, given.values), sizes, strict=True)
    ]
    uris, pages = (given.rows[name].to_pylist() for name in ("uri", "page"))
    if out.suffix.lower() == ".json":
        out.parent.mkdir(parents=True, exist_ok=True)
        called = [uri if page is None else f"{uri}.{page}" for uri, page in zip(uris, pages, strict=True)]
        write_whole(out, coco.write(dict(zip(called, found, strict=True)), given.classes))
        return len(found)
    named = dict(zip(names_of(uris, pages), found, strict=True))
    for file, data in in_files(out.name, named, [BACKGROUND, *given.classes], []).items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        write_whole(out / file, data)
    return len(named)


def _boxes(value: object) -> tuple[Box, ...]:
    return tuple(box for box in value if isinstance(box, Box)) if isinstance(value, tuple) else ()


def manifest(items: Collection, labels: Labels, rows: pa.Table | None = None) -> pa.Table:
    """A row an item: id, path (relative to the source), label as it is now, and what else is known of it. Columns in
    which nothing is are left out."""
    rows = items.usable if rows is None else rows
    said = dict(zip(labels.ids, labels.values, strict=True))
    named = ["|".join(map(str, v)) if isinstance(v := said.get(item), tuple) else v for item in rows["id"].to_pylist()]
    columns: dict[str, object] = {"id": rows["id"], "path": rows["uri"], "label": pa.array(named, pa.string())}
    for name in rows.column_names:
        if name not in (*OF_THE_FILE, *columns) and rows[name].null_count < len(rows):
            columns[name] = rows[name]
    return pa.table({name: column for name, column in columns.items() if name != "label" or any(named)})


def slim(found: Found, stay: np.ndarray, count: int, seed: int = 0) -> Slim:
    """The up to `count` items that cover the others best, of those that `stay` [N] and have features. Raises
    `DataError` where none have any."""
    if found.units is None or found.graph is None or found.places is None or not stay[found.places].any():
        raise DataError("A part that covers the whole is chosen by features, and no item has any. Give --model RUN")
    there = np.flatnonzero(stay[found.places])
    every = Pool(
        found.units.astype(np.float32), found.graph, np.arange(len(found.units)), np.full(len(found.units), -1)
    )
    pool, places = every.take(there), found.places[there]
    chosen, _ = choose(pool, count, "cover", seed)
    units = pool.features
    rng = np.random.default_rng(seed)
    draws = [rng.choice(len(units), len(chosen), replace=False) for _ in range(RANDOM_DRAWS)]
    values = [found.labels.values[place] for place in places]
    classes = {str(value) for value in values if value is not None}
    left = {str(values[number]) for number in chosen if values[number] is not None}
    return Slim(
        places[chosen], stands_for(units, chosen), coverage(units, chosen),
        float(np.mean([coverage(units, draw) for draw in draws])), (len(left), len(classes)) if classes else None,
    )  # fmt: skip


def coverage(units: np.ndarray, chosen: np.ndarray) -> float:
    """How near an item of `units` [N, D] is on average to the nearest of the `chosen` [K]: the mean of exp(-d^2)."""
    cosine = nearest(units, units[chosen], 1)[0][:, 0].astype(np.float64)
    return float(np.exp(2.0 * np.minimum(cosine, 1.0) - 2.0).mean())


def shares_of(text: str) -> tuple[float, ...]:
    """The shares that `--split` names. Raises `SelfsightError` unless they are two or three that sum to 1."""
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) not in NAMES or not all(share > 0 for share in shares) or abs(sum(shares) - 1.0) > 1e-6:
        raise SelfsightError(f"--split is two or three shares that sum to 1, not {text!r}. For example: 0.8,0.1,0.1")
    return shares


def split(found: Found, stay: np.ndarray, shares: Sequence[float], seed: int = 0) -> list[str]:
    """The split, by name, of each item that is to `stay` [N]: groups, and items that show one picture, on one side, and
    of each class about its share. Raises `DataError` where a side were empty."""
    places = np.flatnonzero(stay)
    ids, groups = found.rows["id"].take(pa.array(places)).to_pylist(), found.groups[places]
    turn = [hashlib.blake2b(f"{seed} {item}".encode(), digest_size=8).digest() for item in ids]
    order = np.array(sorted(range(len(ids)), key=turn.__getitem__), np.int64)
    classes = np.unique([str(found.labels.values[place]) for place in places], return_inverse=True)[1]
    parts = np.empty(len(ids), np.int64)
    parts[order] = deal(groups[order], classes[order], shares)
    if len(np.unique(parts)) < len(shares):
        raise DataError(
            f"{found.labels.location} cannot be split in {len(shares)}: its {len(ids):,} items lie in "
            f"{len(np.unique(groups)):,} groups, which stay together."
        )
    return [NAMES[len(shares)][part] for part in parts]
