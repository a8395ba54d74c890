"""From a folder to a collection: recursive, incremental, and nothing silently skipped."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfsight.data.collection import Collection, item_id, rows_table
from selfsight.data.decoding import SUFFIXES, Unreadable, read_header
from selfsight.data.threads import in_threads
from selfsight.errors import SelfsightError


def cache_folder() -> Path:
    """Where collections of plain folders, canvases and features are kept: never the user's folder."""
    import platformdirs

    return Path(os.environ.get("SELFSIGHT_CACHE") or platformdirs.user_cache_dir("selfsight", appauthor=False))


def open_source(source: str | os.PathLike[str], collection: str | os.PathLike[str] | None = None) -> Collection:
    """The collection of a folder (kept under the cache folder, or at `collection`), or a `.lance` folder.

    Raises `SelfsightError` for a source that does not exist or holds no readable image.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise SelfsightError(f"{path} does not exist. Give a folder of images.")
    if path.suffix == ".lance":
        return Collection.open(path)
    if not path.is_dir():
        raise SelfsightError(f"{path} is a file. Give the folder that holds the images.")
    if collection is None:
        key = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=6).hexdigest()
        name = re.sub(r"[^\w.-]", "_", path.resolve().name)[:60]
        collection = cache_folder() / "collections" / f"{name}-{key}" / "items.lance"
    return import_folder(path.resolve(), Path(collection))


def import_folder(folder: Path, out: Path) -> Collection:
    """List `folder` into the collection at `out`; files unchanged since the last import are not read again."""
    known: dict[str, dict[str, Any]] = {}
    before = None
    if out.exists():
        before = Collection.open(out)
        if before.source == folder:
            known = {row["uri"]: row for row in before.table.to_pylist()}
    files, others = [], 0
    for path in _walk(folder):
        if path.suffix.lower() in SUFFIXES:
            files.append(path)
        else:
            others += 1

    def row(path: Path) -> dict[str, Any]:
        return _row(folder, path, known.get(path.relative_to(folder).as_posix()))

    rows = list(in_threads(row, files, f"Reading {folder.name}"))
    usable = sum(r["status"] == "ok" for r in rows)
    if not usable:
        reasons = sorted({str(r["reason"]) for r in rows})
        seen = f"{len(files)} image files, none readable ({'; '.join(reasons)})" if files else "no JPEG or PNG file"
        raise SelfsightError(f"{folder} holds {seen}, and {others} other files. Give a folder of JPEG or PNG images.")
    if before is not None and before.others == others and known == {r["uri"]: r for r in rows}:
        return before
    return Collection.write(out, rows_table(rows), folder, others)


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(root, name)


def _row(folder: Path, path: Path, known: dict[str, Any] | None) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    uri = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    row: dict[str, Any] = dict.fromkeys(rows_table([]).column_names)
    row |= {"id": item_id(folder.name, uri), "uri": uri, "status": "ok", "reason": ""}
    try:
        if uri != name:
            raise Unreadable("the file name is not UTF-8")
        if not path.is_file():
            raise Unreadable("not a file" if path.exists() else "a link to nothing")
        stat = path.stat()
        row |= {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
        if known and (known["bytes"], known["modified_ns"]) == (stat.st_size, stat.st_mtime_ns):
            return known
        data = path.read_bytes()
        row["content_hash"] = hashlib.blake2b(data, digest_size=16).hexdigest()
        row |= read_header(data)
    except Unreadable as error:
        row |= {"status": "set_aside", "reason": str(error)}
    except OSError as error:
        row |= {"status": "set_aside", "reason": error.strerror or type(error).__name__}
    return row
