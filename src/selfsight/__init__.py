"""Self-supervised learning for machine vision: pretrain, prove, use.

    import selfsight
    selfsight.pretrain("photos/", out="runs/first", minutes=20)
    encoder = selfsight.load("runs/first")
    table = selfsight.embed("photos/", model="runs/first")
    result = selfsight.evaluate("runs/first", train="labelled/train", test="labelled/test")

Every name is resolved when it is first used: importing selfsight imports nothing heavy.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "import_": "selfsight.verbs.import_",
    "objectives": "selfsight.verbs.objectives",
    "plan": "selfsight.verbs.plan",
    "pretrain": "selfsight.verbs.pretrain",
    "embed": "selfsight.verbs.embed",
    "evaluate": "selfsight.verbs.evaluate",
    "compare": "selfsight.verbs.compare",
    "report": "selfsight.verbs.report",
    "demo": "selfsight.verbs.demo",
    "runs": "selfsight.verbs.runs",
    "cache": "selfsight.verbs.cache",
    "forget": "selfsight.verbs.forget",
    "load": "selfsight.encoders.store",
    "Encoder": "selfsight.encoders.encoder",
    "Collection": "selfsight.data.collection",
    "SelfsightError": "selfsight.errors",
}
__all__ = sorted(_WHERE)


class _Lazy(types.ModuleType):
    """A module whose public names are imported when used, and never hidden by a room of the same name:
    importing `selfsight.report.page` would else bind the room over the verb `selfsight.report`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module 'selfsight' has no attribute {name!r}")
        return getattr(importlib.import_module(_WHERE[name]), name)

    def __dir__(self) -> list[str]:
        return __all__


sys.modules[__name__].__class__ = _Lazy
