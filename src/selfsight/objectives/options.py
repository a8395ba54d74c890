"""Checks of an objective's options, made before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args, get_origin

NOT_OPTIONS = ("self", "encoder", "views")  # arguments of an objective's constructor that are not options
ABOVE_ZERO = ("temperature", "teacher_temperature", "epsilon", "eps")  # divisors, so 0 is not allowed


def unlike(name: str, value: object, kind: object) -> str:
    """What the option `name` must be, in words, if `value` does not fit the annotation `kind`; else ""."""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else " or ".join(get_args(kind))
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is int:
        return "" if type(value) is int and value > 0 else "a whole number of at least 1"
    if kind is float:
        least = "above 0" if name in ABOVE_ZERO else "of at least 0"
        number = value if type(value) is int or type(value) is float else -1.0
        sound = 0 <= number < math.inf and (number > 0 or name not in ABOVE_ZERO)
        return "" if sound else f"a number {least} (YAML: 1.0e-3)"
    return "" if kind != Sequence[Sequence[int]] or are_pairs(value, 1) else "pairs of whole numbers of at least 1"


def are_pairs(value: object, least: int) -> bool:
    """Whether `value` is a list of pairs of whole numbers of at least `least`."""
    return isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int and n >= least for n in pair)
        for pair in value
    )
