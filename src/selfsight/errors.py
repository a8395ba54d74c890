"""What ends a verb, told in one sentence, and the exit code that the command line gives it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class SelfsightError(Exception):
    """Names the thing, the value and the way out, in one sentence. Of this class itself: something that was asked for
    is wrong, such as a name, a value or a place."""

    exit_code: ClassVar[int] = 2


class DataError(SelfsightError):
    """Images, labels, or a file of selfsight's own are missing, damaged or not enough for what was asked."""

    exit_code = 3


class MachineError(SelfsightError):
    """This machine lacks something (memory, disk, a package, the network, a process that died), or another process
    works on the same files. Once that has changed, the same command works, or goes on."""

    exit_code = 4


class TrainingError(SelfsightError):
    """A training that ran came to nothing: its values were not finite, or its time too short."""

    exit_code = 5


def check_version(found: int, known: int, what: object) -> None:
    """Raise `SelfsightError` if `what` was written in a format newer than `known`."""
    if found > known:
        raise DataError(f"{what} was written by a newer selfsight. Run: pip install -U selfsight")


def meant(name: str, names: Iterable[str], prefix: str = "") -> str:
    """` Did you mean X?`, to end the sentence that refuses `name`; nothing if none of the `names` is like it. prefix:
    to be written before the name."""
    known = {one.lower(): one for one in names}
    close = get_close_matches(name.lower(), known, n=1)
    return f" Did you mean {prefix}{known[close[0]]}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for one-sentence reports."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def in_words(error: Exception) -> str:
    """What the system says of a disk that is full, a folder that may not be written, …, from whichever library."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    found = re.search(r"([A-Z][\w ,-]*) \(os error \d+\)", str(error))  # as Rust libraries put it
    return found[1] if found else first_line(error)
