"""Labels per class, as a user names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfsight.errors import SelfsightError

if TYPE_CHECKING:
    import numpy as np


def parse_shots(shots: str | int | Sequence[str | int]) -> list[str]:
    """`1,5,all`, 5 or ["all", 5, 1] to ["1", "5", "all"], fewest first. Raises `SelfsightError` for another."""
    given = shots.split(",") if isinstance(shots, str) else [shots] if isinstance(shots, int) else shots
    parts = [part for part in (str(part).strip() for part in given) if part]
    for part in parts:
        if part != "all" and not (part.isascii() and part.isdecimal() and int(part) > 0):
            raise SelfsightError(f"--shots takes numbers above 0 and `all`, separated by commas, not {part!r}.")
    if not parts:
        raise SelfsightError("--shots is empty. Give for example 1,5,30,all.")
    numbers = sorted({int(part) for part in parts if part != "all"})
    return [*map(str, numbers), *(["all"] if "all" in parts else [])]


def short_of(counts: list[str], classes: list[str], labels: np.ndarray) -> list[str]:
    """A note for each number of labels that a class has not."""
    import numpy as np

    notes, sizes = [], np.bincount(labels, minlength=len(classes))
    for count in counts:
        if count != "all" and int(count) > sizes.min():
            small = [c for c, size in zip(classes, sizes, strict=True) if size < int(count)]
            names = ", ".join(f"'{c}'" if "," in c else c for c in small)
            fewer = "has fewer, all of its" if len(small) == 1 else "have fewer, all of their"
            asked = f"{count} label{'' if count == '1' else 's'} per class"
            notes.append(f"{asked}: {names} {fewer} labels are used")
    return notes
