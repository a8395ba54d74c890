"""The one error a user's mistake raises. The command line prints its sentence and exits with 2."""

from __future__ import annotations


class SelfsightError(Exception):
    """Names the thing, the value and the way out, in one sentence."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for one-sentence reports."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
