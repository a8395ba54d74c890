"""What a verb takes: checked the same for every verb, from its signature, before it does anything."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from selfsight.errors import SelfsightError, meant

P = ParamSpec("P")
R = TypeVar("R")
_PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "True or False"}
_LISTS = (list, Sequence)


def checked(verb: Callable[P, R]) -> Callable[P, R]:
    """`verb`, refusing arguments that its signature does not name: `SelfsightError` says which, and what it takes.

    A path may be any `os.PathLike`, a number one of NumPy's; the verb gets text, or Python's number. Objects of a class
    that only type checkers import are known by its name. While a verb runs that has a `device` and was given one,
    `machine.best_device` is that device.
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
        with _device(bound.arguments.get("device")):
            return verb(*bound.args, **bound.kwargs)

    return called


def _device(asked: str | None) -> AbstractContextManager[None]:
    if asked is None:
        return nullcontext()
    from selfsight.machine import computing_on

    return computing_on(asked)


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
    """What of an annotation the command line takes: text, where a verb takes text or something else."""
    kinds = kinds_of(hint)
    return (str | None if NoneType in kinds else str) if str in kinds else hint


def _accepted(name: str, hint: Any, value: Any) -> Any:
    """The value as the verb gets it. Raises `SelfsightError`."""
    kinds = kinds_of(hint)
    if str in kinds and isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if getattr(value, "ndim", None) == 0:  # a number of NumPy's or PyTorch's
        value = value.item()
    if hasattr(value, "tolist") and any(get_origin(kind) in _LISTS for kind in kinds):
        value = value.tolist()
    if int in kinds and float not in kinds and isinstance(value, float) and value.is_integer():
        value = int(value)
    if any(_fits(kind, value) for kind in kinds):
        return value
    raise SelfsightError(refusal(name, hint, value))


def kinds_of(hint: object) -> tuple[object, ...]:
    """The members of a union; of anything else itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def refusal(name: str, hint: object, value: object) -> str:
    """The sentence for a `value` that does not fit the annotation of the parameter `name`."""
    words = [word for kind in kinds_of(hint) if get_origin(kind) is Literal for word in get_args(kind)]
    close = meant(value, words) if isinstance(value, str) else ""
    return f"{name} takes {_in_words(hint)}, not {value!r}.{close}"


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) in _LISTS:
        members = kinds_of(get_args(kind)[0])
        return isinstance(value, list | tuple) and all(any(_fits(member, one) for member in members) for one in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float)
    return not isinstance(kind, type) or isinstance(value, kind)


def _in_words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(filter(None, map(_in_words, get_args(kind))))
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) in _LISTS:
        return f"a list of {_in_words(get_args(kind)[0])}"
    return "" if kind is NoneType else _PLAIN.get(kind, getattr(kind, "__name__", str(kind)))
