"""Self-supervised learning for machine vision: pretrain, prove, use.

    import selfsight
    selfsight.pretrain("photos/", out="runs/first", minutes=20)
    encoder = selfsight.load("runs/first")
    features = selfsight.embed("photos/", model="runs/first").features
    result = selfsight.evaluate("runs/first", train="labelled/train", test="labelled/test")

Verbs give frozen dataclasses; `to_dict()` is what `--json` prints.

Every name is resolved when it is first used: importing selfsight imports nothing heavy.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from selfsight.verbs import VERBS, Verb, groups

if TYPE_CHECKING:  # what type checkers and editors see, of groups their packages; a test holds it against the verbs
    from selfsight.data.collection import Collection as Collection
    from selfsight.encoders.encoder import Encoder as Encoder
    from selfsight.encoders.weights import load as load
    from selfsight.errors import SelfsightError as SelfsightError
    from selfsight.heads.head import load_head as load_head
    from selfsight.verbs import train as train
    from selfsight.verbs.adapt import adapt as adapt
    from selfsight.verbs.cache import cache as cache
    from selfsight.verbs.compare import compare as compare
    from selfsight.verbs.curate import curate as curate
    from selfsight.verbs.demo import demo as demo
    from selfsight.verbs.discover import discover as discover
    from selfsight.verbs.embed import embed as embed
    from selfsight.verbs.evaluate import evaluate as evaluate
    from selfsight.verbs.export import export as export
    from selfsight.verbs.find import find as find
    from selfsight.verbs.forget import forget as forget
    from selfsight.verbs.import_ import import_ as import_
    from selfsight.verbs.label import label as label
    from selfsight.verbs.label_curve import label_curve as label_curve
    from selfsight.verbs.objectives import objectives as objectives
    from selfsight.verbs.odd import odd as odd
    from selfsight.verbs.plan import plan as plan
    from selfsight.verbs.predict import predict as predict
    from selfsight.verbs.pretrain import pretrain as pretrain
    from selfsight.verbs.report import report as report
    from selfsight.verbs.runs import runs as runs
    from selfsight.verbs.select import select as select
    from selfsight.verbs.serve import serve as serve

__version__ = "0.1.0"

_NOUNS = {
    "load": "selfsight.encoders.weights",
    "load_head": "selfsight.heads.head",
    "Encoder": "selfsight.encoders.encoder",
    "Collection": "selfsight.data.collection",
    "SelfsightError": "selfsight.errors",
}
__all__ = sorted((*VERBS, *groups(), *_NOUNS))


class _VerbAndRoom:
    """A verb that has its name in common with a room: called it is the verb, its attributes are the room's, so that
    both `selfsight.report(...)` and `import selfsight.report.page as page` work, in any order."""

    def __init__(self, verb: Verb) -> None:
        functools.update_wrapper(self, verb.function)
        self._room = f"selfsight.{verb.name}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self._room), name)

    def __get__(self, instance: object, owner: type | None = None) -> _VerbAndRoom:
        return self  # `help` takes an object with __get__ for a function, and shows its signature and words

    def __repr__(self) -> str:
        return repr(self.__wrapped__)  # type: ignore[attr-defined]


class _Group:
    """The verbs of one package under `verbs`: `selfsight.train.classify` is `selfsight train classify`."""

    def __init__(self, name: str) -> None:
        self._verbs = {verb.name: verb for verb in groups()[name]}
        self.__module__ = "selfsight.verbs"
        self.__doc__ = importlib.import_module(f"selfsight.verbs.{name}").__doc__

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__") or name not in self._verbs:
            raise AttributeError(name)
        return self._verbs[name].function

    def __dir__(self) -> list[str]:
        return sorted(self._verbs)


class _Lazy(types.ModuleType):
    """A module whose public names are imported when used, and never hidden by a room of the same name:
    importing `selfsight.report.page` would else bind the room over the verb `selfsight.report`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _NOUNS:
            return getattr(importlib.import_module(_NOUNS[name]), name)
        if name in VERBS:
            shared = importlib.util.find_spec(f"selfsight.{name}") is not None
            return _VerbAndRoom(Verb(name)) if shared else Verb(name).function
        if not name.startswith("_") and name in groups():
            return _Group(name)
        raise AttributeError(f"module 'selfsight' has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        return __all__


sys.modules[__name__].__class__ = _Lazy
