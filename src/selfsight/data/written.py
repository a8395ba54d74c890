"""What selfsight wrote outside the cache folder: its paths, kept there, so that `cache list` and `forget` find it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from selfsight.data.cache import cache_folder
from selfsight.errors import SelfsightError
from selfsight.files import lance_exists, read_json

FILE = "written.jsonl"
Kind = Literal["collection", "features", "labels", "pictures", "run", "head"]


class Written(NamedTuple):
    """Something that holds items, or what was made of them.

    kind: of thing.
    path: absolute.
    collection: absolute path of the collection that the items are of.
    """

    kind: Kind
    path: str
    collection: str


def note(kind: Kind, path: Path, collection: Path) -> None:
    """Remember what was written at `path`; where the cache folder cannot be written, nothing is."""
    line = Written(kind, str(path.resolve()), str(collection.resolve()))
    with suppress(OSError, SelfsightError):
        folder = cache_folder()
        if path.resolve().is_relative_to(folder.resolve()) or line in _lines():
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def written(kind: Kind) -> list[Written]:
    """What was noted of a kind and is still there, sorted by path."""
    return sorted({line for line in _lines() if line.kind == kind and Path(line.path).exists()})


def _lines() -> list[Written]:
    try:
        lines = (cache_folder() / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        with suppress(ValueError, TypeError):  # a kill may have cut one
            found.append(Written(*json.loads(line)))
    return found


def collections() -> list[Path]:
    """Every collection that is known: of the cache folder, written elsewhere, or named by decoded pixels."""
    kept = set((cache_folder() / "collections").glob("*/items.lance"))
    kept |= {Path(line.path) for line in written("collection")}
    for file in (cache_folder() / "canvases").glob("*/about.json"):
        table = Path(str((read_json(file) or {}).get("collection", "")))
        kept |= {table} if table.suffix == ".lance" else set()
    return sorted({path.resolve() for path in kept if lance_exists(path)})
