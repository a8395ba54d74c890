"""What a user asks for: one verb a file, one group of verbs (`train classify`) a package.

The table of verbs is here, for the command line and for `import selfsight`. A verb is the function that its module is
named after; beside it is `show`, which prints its result for people. A verb that deletes what cannot be made again in
a moment also has `removes`: given the same arguments, it says in words what would be removed, and the command line asks
before it does so. Importing this, or a verb's module, imports nothing heavy.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

# In the order of `selfsight --help`; the groups come after them. A trailing underscore is for a keyword of Python.
VERBS = (
    *("import_", "objectives", "plan", "pretrain", "compare", "embed", "odd", "find", "curate", "select", "label"),
    *("discover", "evaluate", "label_curve", "predict", "export", "serve", "adapt", "report", "demo"),
    *("runs", "cache", "forget"),
)
SHORT = {"out": "-o"}  # short names of options, the same for every verb that has the option
# Headings of `--help`, where a verb has more options than MOST_TOGETHER, and the options under each.
MOST_TOGETHER = 7
HEADINGS = {
    "Data": ("columns", "include", "exclude", "root", "blank", "rate", "strict", "canvases", "collection", "train",
             "test", "data", "split_by", "probe", "stream"),
    "Encoder": ("model", "head", "encoder", "weights", "size", "rule", "tokens"),
    "Training": ("method", "objective", "views", "positives", "batch_size", "accumulate", "optimiser", "learning_rate",
                 "weight_decay", "recipe", "seed"),
    "Budget": ("budget", "minutes", "epochs", "steps", "extend"),
    "Labels": ("labels", "ask", "kind", "classes", "by", "export", "self_train", "miss_rate", "positive", "costs",
               "coverage", "normal", "roi", "masks", "false_alarms"),
    "Measuring": ("beside", "shots", "seeds", "arms", "scratch_shots", "window"),
    "Machine": ("device", "port", "host", "energy"),
    "Access": ("token_file", "tls_cert", "tls_key", "commercial"),
    "Output": ("out", "track", "state", "log_names", "json", "yes"),
}  # fmt: skip
# A command line of each verb that works, for those who left something out.
EXAMPLES = {
    "import_": "selfsight import photos/ -o photos.lance",
    "objectives": "selfsight objectives dino",
    "plan": "selfsight plan photos/ --minutes 20",
    "pretrain": "selfsight pretrain photos/ -o runs/first --minutes 20",
    "compare": "selfsight compare runs/first runs/second",
    "embed": "selfsight embed photos/ --model runs/first -o features.parquet",
    "evaluate": "selfsight evaluate runs/first --train labelled/train --test labelled/test",
    "label_curve": "selfsight label-curve runs/first --train labelled/train --test labelled/test -o curve/",
    "predict": "selfsight predict new/ --head heads/first -o predictions.parquet",
    "export": "selfsight export heads/first -o first.onnx",
    "serve": "selfsight serve heads/first --port 8080 --token-file token",
    "adapt": "selfsight adapt heads/first --stream line/ -o heads/first-adapted",
    "report": "selfsight report runs/first",
    "demo": "selfsight demo",
    "runs": "selfsight runs list runs/",
    "cache": "selfsight cache list",
    "odd": "selfsight odd photos/ --model runs/first -o odd/",
    "find": "selfsight find photos/ --model runs/first --like photos/one.jpg -o found/",
    "curate": "selfsight curate photos/ --model runs/first -o report/",
    "discover": "selfsight discover photos/ --model runs/first -o found/",
    "select": "selfsight select photos/ --model runs/first --budget 50 -o ask.csv",
    "label": "selfsight label photos/ --model runs/first",
    "forget": "selfsight forget photos.lance a.jpg",
    "segment": "selfsight train segment cells.lance --model runs/cells -o heads/cells",
    "classify": "selfsight train classify photos/ --model runs/first -o heads/first",
    "detect": "selfsight train detect blood.lance --model runs/blood -o heads/blood --shots 5",
    "inspect": "selfsight train inspect parts/good --model runs/first -o heads/inspect",
}


@dataclass(frozen=True)
class Verb:
    """A verb.

    name: as Python writes it.
    group: the package under `verbs` that it is in; "" for none.
    """

    name: str
    group: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """What names it on the command line, of a group two words: hyphens there are underscores in Python."""
        return tuple(word.rstrip("_").replace("_", "-") for word in (self.group, self.name) if word)

    @property
    def example(self) -> str:
        """A command line that works; where there is none, the one that shows the help."""
        return EXAMPLES.get(self.name, f"selfsight {' '.join(self.words)} --help")

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
