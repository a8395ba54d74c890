"""cache: what the cache folder holds, and clearing it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from selfsight.errors import SelfsightError, meant
from selfsight.results import Result
from selfsight.verbs.arguments import checked


@dataclass(frozen=True)
class Entry(Result):
    """An entry of the cache folder.

    name: in the cache folder.
    kind: collections, canvases or torchvision.
    source: where its images are; None if it does not say.
    bytes: its size.
    """

    name: str
    kind: str
    source: str | None
    bytes: int


@dataclass(frozen=True)
class Features(Result):
    """A place where features lie.

    path: a folder beside a collection, or a file that `embed -o` wrote.
    collection: of the items.
    bytes: its size.
    """

    path: str
    collection: str
    bytes: int


@dataclass(frozen=True)
class Cached(Result):
    """The result of `cache`. Entries and features come from `list`, the rest from `clear`.

    folder: the cache folder.
    entries: in it.
    features: every known place of features, in the cache folder or not.
    cleared: entries that were deleted.
    kept: entries that hold decisions of people.
    """

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
    features. What people decided (labels, which items are forgotten) cannot be made again and is never cleared. The
    command line asks before it clears anything; in Python the call is the answer.

    Parameters
    ----------
    action
        What to do:

        - list: every entry with its size, and every known place of features.
        - clear: delete the entries named, or all.

    names
        Entries, by the names that `list` shows.
    """
    from selfsight.data.cache import cache_folder

    folder = cache_folder()
    if action == "list":
        return Cached(str(folder), _entries(folder), _features())
    cleared, kept = [], []
    for entry in _named(names, folder):
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


def removes(action: str = "list", *names: str) -> str:
    """What `cache` with these arguments removes, in words; nothing if it removes nothing."""
    from selfsight.data.cache import cache_folder

    folder = cache_folder()
    gone = [entry for entry in _named(names, folder) if not _decided(folder / entry.kind / entry.name)]
    if action != "clear" or not gone:
        return ""
    what = ", ".join(entry.name for entry in gone) if names or len(gone) == 1 else f"all {len(gone)} entries"
    return f"{what} of {folder} ({sum(entry.bytes for entry in gone) / 1e6:,.1f} MB; made again when needed)"


def _named(names: Sequence[str], folder: Path) -> list[Entry]:
    """The entries to be cleared: those named, or all. Raises `SelfsightError`."""
    entries = _entries(folder)
    for name in names:
        if name not in {entry.name for entry in entries}:
            close = meant(name, [entry.name for entry in entries])
            raise SelfsightError(f"The cache has no {name}.{close} See: selfsight cache list")
    return [entry for entry in entries if not names or entry.name in names]


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
    from selfsight.console import results, table

    console = results(soft_wrap=True)
    rows = result.entries or result.cleared or []
    total = sum(row.bytes for row in rows)
    if result.entries is None:
        console.print(f"Cleared {len(rows)} entries, {total / 1e6:,.1f} MB, of {result.folder}.")
        for row in result.kept or []:
            console.print(f"Kept {row.name}: it holds what people decided. Delete that folder yourself if you mean it.")
        return
    table(
        ("name", "kind", "MB", "of"),
        [(row.name, row.kind, f"{row.bytes / 1e6:,.1f}", row.source or "unfinished") for row in rows],
    )
    console.print(f"{total / 1e6:,.1f} MB in {result.folder}")
    if result.features:
        said = "\nFeatures lie in these places. Only those in the cache folder are cleared with it."
        console.print(said, soft_wrap=True)
        for place in result.features:  # whole paths, that can be copied
            console.print(f"{place.bytes / 1e6:9,.1f} MB  {place.path}", soft_wrap=True)
