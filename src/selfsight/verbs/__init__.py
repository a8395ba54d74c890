"""What a user asks for: one verb a file, one group of verbs (`train classify`) a package.

The table of verbs is here, for the command line and for `import selfsight`. A verb is the function that its module is
named after; beside it is `show`, which prints its result for people. Importing this, or a verb's module, imports
nothing heavy.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

# In the order of `selfsight --help`; the groups come behind them. A trailing underscore is for a keyword of Python.
VERBS = (
    *("import_", "objectives", "plan", "pretrain", "compare", "embed", "odd", "evaluate", "report", "demo"),
    *("runs", "cache", "forget"),
)
SHORT = {"out": "-o"}  # short names of options, the same for every verb that has the option


@dataclass(frozen=True)
class Verb:
    """name: as Python writes it. group: the package under `verbs` that it is in, or nothing."""

    name: str
    group: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """What names it on the command line, of a group two words: hyphens there are underscores in Python."""
        return tuple(word.rstrip("_").replace("_", "-") for word in (self.group, self.name) if word)

    @property
    def module(self) -> ModuleType:
        """Its file, imported now."""
        return importlib.import_module(".".join(filter(None, ("selfsight.verbs", self.group, self.name))))

    @property
    def function(self) -> Callable[..., Any]:
        """The verb itself."""
        return getattr(self.module, self.name)  # type: ignore[no-any-return]


def groups() -> dict[str, tuple[Verb, ...]]:
    """The verbs of each group: every module of every package in this folder, but for names with an underscore first.

    For type checkers the package imports each verb by name, as `selfsight` does; a test says what is lacking.
    """
    found = {}
    for package in pkgutil.iter_modules(__path__):
        if package.ispkg:
            path = importlib.import_module(f"{__name__}.{package.name}").__path__
            names = sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))
            found[package.name] = tuple(Verb(name, package.name) for name in names)
    return found


def every_verb() -> tuple[Verb, ...]:
    """The verbs of the table, then those of the groups."""
    return (*map(Verb, VERBS), *(verb for verbs in groups().values() for verb in verbs))
