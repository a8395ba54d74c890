"""Everything an objective is written with, importable from here, and the registry of objectives by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TypeVar

from selfsight.errors import SelfsightError, meant
from selfsight.objectives.contract import Loss, Objective, ParameterGroup
from selfsight.objectives.embedding import embed_and_predict, embed_views, encode, projector
from selfsight.objectives.joint import Joint, joint, weights_of
from selfsight.objectives.losses import check_views, cross_view_cosine, in_float32
from selfsight.objectives.teacher import EMATeacher

__all__ = [
    "EMATeacher",
    "Joint",
    "Loss",
    "Objective",
    "ParameterGroup",
    "check_views",
    "cross_view_cosine",
    "embed_and_predict",
    "embed_views",
    "encode",
    "find",
    "in_float32",
    "projector",
    "register",
    "registry",
]

C = TypeVar("C", bound=type[Objective])
_REGISTRY: dict[str, type[Objective]] = {}


def register(name: str) -> Callable[[C], C]:
    """Class decorator that registers an objective under `name`.

    Raises `ValueError` if another objective has this name, so that yours never silently replaces one of ours.
    """

    def put(cls: C) -> C:
        before = _REGISTRY.setdefault(name, cls)
        if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"Two objectives are called {name!r}: {before} and {cls}. Rename yours.")
        _REGISTRY[name] = cls  # the same one, of a module that was loaded again
        return cls

    return put


def registry() -> dict[str, type[Objective]]:
    """{name: class} of all objectives, sorted by name. Every module in this folder is imported first."""
    package = importlib.import_module("selfsight.objectives")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"selfsight.objectives.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def find(name: str) -> type[Objective]:
    """The class of the objective called `name`, or of a sum such as `dino+0.5*mae`.

    Raises `SelfsightError`, which lists the names, where there is no such objective.
    """
    if "+" in name or "*" in name:
        weights = weights_of(name)
        return joint(name, {member: find(member) for member in weights}, list(weights.values()))
    known = registry()
    if name not in known:
        raise SelfsightError(f"No objective is called {name!r}. There are: {', '.join(known)}.{meant(name, known)}")
    return known[name]
