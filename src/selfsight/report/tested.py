"""What a page of a head reads from its folder: where it is, what `evaluate` left there, and what it was made from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from selfsight.errors import DataError, SelfsightError
from selfsight.heads.head import Head


class Measured(Protocol):
    """Figures of the head with this digest."""

    @property
    def head(self) -> str: ...


M = TypeVar("M", bound=Measured)


def folder_of(head: Head) -> Path:
    """Where the head is. Raises `SelfsightError` if it has no folder."""
    if head.path is None:
        raise SelfsightError("This head has no folder. Load it from one: selfsight.load_head(FOLDER)")
    return head.path


def tested_of(head: Head, read: Callable[[Mapping[str, object]], M]) -> tuple[M | None, list[str]]:
    """(what `evaluate` left in the folder, if it is of this head, notes). read: it, from what evaluation.json holds.

    Raises `DataError` for a file that cannot be read.
    """
    path = folder_of(head) / "evaluation.json"
    if not path.exists():
        return None, []
    try:
        found = read(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        again = f"selfsight evaluate {shlex.quote(str(head.path))} --test LABELLED"
        raise DataError(f"{path} cannot be read. Remove it, and measure again: {again}") from None
    if found.head != head.digest:
        return None, ["The test in evaluation.json is of this head as it was before, and is left out. Measure again"]
    return found, []


def traced(head: Head, lineage: Mapping[str, object]) -> list[tuple[str, str]]:
    """By what a head is told from others, and what was there when it was made, from its lineage.json."""
    rows = [
        ("ids", str(lineage.get("ids", ""))),
        ("labels", str(lineage.get("labels", ""))),
        ("this head", head.digest),
    ]
    rows += [("head before", str(lineage["parent"]))] if lineage.get("parent") else []
    if isinstance(versions := lineage.get("versions"), dict):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return rows
