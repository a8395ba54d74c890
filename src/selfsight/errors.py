"""The one error a user's mistake raises. The command line prints its sentence and exits with 2."""

from __future__ import annotations

import re


class SelfsightError(Exception):
    """Names the thing, the value and the way out, in one sentence."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for one-sentence reports."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def in_words(error: Exception) -> str:
    """What the system says of a disk that is full, a folder that may not be written, …, from whichever library."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    found = re.search(r"([A-Z][\w ,-]*) \(os error \d+\)", str(error))  # as Rust libraries put it
    return found[1] if found else first_line(error)
