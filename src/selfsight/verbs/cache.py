"""cache: what the cache folder holds, and clearing it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from selfsight.errors import SelfsightError
from selfsight.results import Result
from selfsight.verbs.arguments import checked


@dataclass(frozen=True)
class Entry(Result):
    """name: in the cache folder. kind: collections, canvases or torchvision. source: where its images are, None if it
    cannot tell."""

    name: str
    kind: str
    source: str | None
    bytes: int


@dataclass(frozen=True)
class Features(Result):
    """A place where features lie: a folder beside a collection, or what `embed -o` wrote. collection: whose items."""

    path: str
    collection: str
    bytes: int


@dataclass(frozen=True)
class Cached(Result):
    """folder: the cache folder. entries: all of them, of `list`. features: of `list`, every place that is known, in the
    cache folder or not. cleared, kept: of `clear`; kept are those with decisions of people."""

    if_any: ClassVar = ("entries", "features", "cleared", "kept")
    folder: str
    entries: list[Entry] | None = None
    features: list[Features] | None = None
    cleared: list[Entry] | None = None
    kept: list[Entry] | None = None


@checked
def cache(action: Literal["list", "clear"] = "list", *names: str) -> Cached:
    """List what is kept in the cache folder, or clear it.

    It holds what can be made again from your files: tables of items, decoded pixels (canvases) and
    features. What people decided (labels, which items are forgotten) cannot be made again and is never cleared.

    Parameters
    ----------
    action
        list: every entry with its size, and every place that is known where features lie. clear: delete the entries
        named, or all.
    names
        Entries, by the names that `list` shows.

    """
    from selfsight.data.cache import cache_folder

    folder = cache_folder()
    entries = _entries(folder)
    if action == "list":
        return Cached(str(folder), entries, _features())
    unknown = sorted(set(names) - {entry.name for entry in entries})
    if unknown:
        raise SelfsightError(f"The cache has no {', '.join(unknown)}. See: selfsight cache list")
    cleared, kept = [], []
    for entry in entries:
        if names and entry.name not in names:
            continue
        path = folder / entry.kind / entry.name
        if _decided(path):
            kept.append(entry)
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        cleared.append(entry)
    return Cached(str(folder), cleared=cleared, kept=kept)


def _entries(folder: Path) -> list[Entry]:
    from selfsight.files import bytes_in

    return [
        Entry(path.name, kind, _source(path), bytes_in(path) if path.is_dir() else path.stat().st_size)
        for kind in ("collections", "canvases", "torchvision")
        for path in sorted((folder / kind).glob("*"))
    ]


def _features() -> list[Features]:
    from selfsight.data.features import FeatureStore
    from selfsight.data.written import collections, written
    from selfsight.files import bytes_in

    found = [(path, table) for table in collections() for path in FeatureStore(table).folders]
    found += [(Path(line.path), Path(line.collection)) for line in written("features")]
    return [
        Features(str(path), str(table), bytes_in(path) if path.is_dir() else path.stat().st_size)
        for path, table in found
    ]


def _decided(path: Path) -> bool:
    """Whether people decided something in an entry: labels, or which items are to stay forgotten."""
    from selfsight.data.collection import Collection
    from selfsight.data.decisions import Journal

    table = path / "items.lance"
    try:
        return bool(Journal(table).files) or bool(Collection.open(table).about.forgotten)
    except (SelfsightError, ValueError, KeyError):  # no collection, or damaged
        return False


def _source(path: Path) -> str | None:
    """Where the images of an entry are, None if it cannot tell."""
    import json

    from selfsight.data.collection import Collection

    if path.parent.name == "torchvision":
        return "torchvision"
    try:
        if (path / "about.json").exists():
            return str(json.loads((path / "about.json").read_text(encoding="utf-8"))["location"])
        return Collection.open(path / "items.lance").about.location
    except (SelfsightError, ValueError, KeyError):  # unfinished or damaged: it can still be cleared
        return None


def show(result: Cached) -> None:
    """Print a table of the entries, or what was cleared."""
    from rich.table import Table

    from selfsight.console import results

    console = results()
    rows = result.entries or result.cleared or []
    total = sum(row.bytes for row in rows)
    if result.entries is None:
        console.print(f"Cleared {len(rows)} entries, {total / 1e6:,.1f} MB, of {result.folder}.")
        for row in result.kept or []:
            console.print(f"Kept {row.name}: it holds what people decided. Delete that folder yourself if you mean it.")
        return
    table = Table("name", "kind", "of", "MB", box=None)
    for row in rows:
        table.add_row(row.name, row.kind, row.source or "unfinished", f"{row.bytes / 1e6:,.1f}")
    console.print(table)
    console.print(f"{total / 1e6:,.1f} MB in {result.folder}")
    if result.features:
        said = "\nFeatures lie in these places. Only those in the cache folder are cleared with it."
        console.print(said, soft_wrap=True)
        for place in result.features:  # whole paths, that can be copied
            console.print(f"{place.bytes / 1e6:9,.1f} MB  {place.path}", soft_wrap=True)
