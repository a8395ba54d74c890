"""What a verb takes: checked the same for every verb, from its signature, before it does anything."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from selfsight.errors import SelfsightError

P = ParamSpec("P")
R = TypeVar("R")
_PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}


def checked(verb: Callable[P, R]) -> Callable[P, R]:
    """`verb`, refusing arguments that its signature does not name: `SelfsightError` says which, and what it takes.

    A path may be any `os.PathLike`, a number one of NumPy's; the verb gets text, or Python's number. Objects of a class
    that only type checkers import are known by its name.
    """

    @functools.wraps(verb)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = inspect.signature(called).bind(*args, **kwargs)
        for name, hint in hints_of(verb).items():
            if name in bound.arguments:
                several = inspect.signature(called).parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
                value = bound.arguments[name]
                bound.arguments[name] = (
                    tuple(_accepted(name, hint, one) for one in value) if several else _accepted(name, hint, value)
                )
        return verb(*bound.args, **bound.kwargs)

    return called


class _Named(type):
    """The type of classes known by name alone, because importing them is heavy."""

    def __instancecheck__(cls, value: object) -> bool:
        return any(known.__name__ == cls.__name__ for known in type(value).__mro__)


def hints_of(verb: Callable[..., object]) -> dict[str, object]:
    """The types of the parameters."""
    names = vars(sys.modules[verb.__module__])
    hints = {name: hint for name, hint in verb.__annotations__.items() if name != "return"}
    return {name: _resolved(hint, names) if isinstance(hint, str) else hint for name, hint in hints.items()}


def _resolved(hint: str, names: dict[str, object]) -> object:
    try:
        return eval(hint, names)
    except NameError as error:  # imported for type checkers only
        name = str(error.name)
        return _resolved(hint, names | {name: _Named(name, (), {})})


def typed(hint: object) -> object:
    """What of a type can be typed on a command line: text and numbers, no objects of selfsight's own."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return Union[tuple(kind for kind in kinds if not isinstance(kind, _Named))]  # noqa: UP007


def _accepted(name: str, hint: Any, value: Any) -> Any:
    """The value as the verb gets it. Raises `SelfsightError`."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if str in kinds and isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if getattr(value, "ndim", None) == 0:  # a number of NumPy's or PyTorch's
        value = value.item()
    if int in kinds and float not in kinds and isinstance(value, float) and value.is_integer():
        value = int(value)
    if any(_fits(kind, value) for kind in kinds):
        return value
    wanted = " or ".join(filter(None, map(_in_words, kinds)))
    raise SelfsightError(f"{name} takes {wanted}, not {value!r}.")


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list | tuple) and all(_fits(get_args(kind)[0], one) for one in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float)
    return not isinstance(kind, type) or isinstance(value, kind)


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) is list:
        return f"a list of {_in_words(get_args(kind)[0])}"
    return "" if kind is NoneType else _PLAIN.get(kind, getattr(kind, "__name__", str(kind)))
