"""objectives: the pretext tasks there are, what each is for and what it costs."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from itertools import groupby
from textwrap import indent
from typing import TYPE_CHECKING, Any, ClassVar

from selfsight.results import Result
from selfsight.verbs.arguments import checked

if TYPE_CHECKING:
    from selfsight.objectives.objective import Objective
    from selfsight.training.recipe import Recipe

SIDE, IMAGES = 64, 2  # of the images whose arithmetic is counted


@dataclass(frozen=True)
class Task(Result):
    """A pretext task. The last four are given only where it was asked for by name.

    name: as --objective takes it.
    title: what it is, in one line.
    family: kind of pretext task.
    encoders: "any" or "ViT".
    cost: operations per image, as a multiple of SimCLR's.
    when: when to use it.
    about: paper and formula.
    views: the views of each item by default, one text for each group of them.
    options: default values by name.
    meaning: one line for each option, `name: what it is`.
    """

    if_any: ClassVar = ("about", "views", "options", "meaning")
    name: str
    title: str
    family: str
    encoders: str
    cost: float
    when: str
    about: str | None = None
    views: list[str] | None = None
    options: dict[str, Any] | None = None
    meaning: str | None = None


@dataclass(frozen=True)
class Objectives(Result):
    """objectives: every pretext task, or only the one that was asked for."""

    objectives: list[Task]


@checked
def objectives(name: str | None = None) -> Objectives:
    """List the pretext tasks that `pretrain --objective` takes: their kind, the encoders they work with, their cost,
    and when to use them. With a name: its paper and formula, its views and its options.

    Costs are multiples of SimCLR's. They are counted, not timed: floating-point operations per image, forward and
    back, by the default recipe for RGB images of 64 px on a CPU. Any weighted sum works too: --objective dino+0.5*mae

    Parameters
    ----------
    name
        One of them.
    """
    from selfsight.console import track
    from selfsight.objectives.objective import find, registry

    tasks = {"simclr": find("simclr")} | ({name: find(name)} if name else registry())
    operations = {
        key: _operations(default_recipe(key)) for key in track(list(tasks), "Counting operations", len(tasks))
    }
    rows = [_row(key, cls, operations[key] / operations["simclr"]) for key, cls in tasks.items()]
    if name is None:
        return Objectives(sorted(rows, key=lambda row: (row.family, row.cost)))
    recipe = default_recipe(name)
    module = inspect.getmodule(tasks[name])
    views = [f"{g.count} of {g.size} px" for g in recipe.views.groups]
    meaning = "\n".join(f"{option}: {text}" for option, text in meanings(tasks[name]).items())
    meaning = meaning or inspect.getdoc(tasks[name]) or ""
    about = inspect.cleandoc(module.__doc__ or "") if module else ""
    row = next(row for row in rows if row.name == name)
    return Objectives([replace(row, about=about, views=views, options=recipe.objective_options, meaning=meaning)])


def _row(name: str, cls: type[Objective], cost: float) -> Task:
    module = inspect.getmodule(cls)
    title = ((module.__doc__ or "") if module else "").split("\n")[0].rstrip(".")
    encoders = "ViT" if cls.tokens else "any"
    return Task(name, title, cls.family, encoders, cost, cls.when)


def meanings(cls: type) -> dict[str, str]:
    """{option: what it is} from the docstring of an objective's class: one line each, continued on indented lines."""
    lines = re.findall(r"^(\w+): (.*(?:\n +.*)*)", inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in lines}


def default_recipe(name: str) -> Recipe:
    """The default recipe for many RGB images on a CPU."""
    from selfsight.data.pixels import PixelFormat
    from selfsight.objectives.facts import Facts
    from selfsight.training.recipe import Budget
    from selfsight.training.rules import resolve

    facts = Facts(10_000, SIDE, PixelFormat("RGB", 8), "cpu", False, 1, 2**40, lambda side: 0.0, lambda side: 0)
    return resolve({"objective": name, "budget": Budget(steps=100)}, facts)


def _operations(recipe: Recipe) -> float:
    """Floating-point operations of a training step, an image."""
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from selfsight.data.batches import Batch, collate
    from selfsight.data.geometry import Geometry
    from selfsight.data.pixels import PixelFormat
    from selfsight.data.randomness import item_keys
    from selfsight.training.build import build
    from selfsight.views.make import make_views

    rng = np.random.default_rng(0)
    canvases = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(IMAGES)]
    pixels, shapes = collate(canvases)
    ids = [f"{i:032x}" for i in rng.integers(2**31, 2**62, IMAGES).tolist()]
    batch = Batch(pixels[:, None], shapes[:, None], item_keys(ids), ids, 0, np.arange(IMAGES))
    normalise = Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3)
    with torch.random.fork_rng(devices=[]):
        task = build(recipe, PixelFormat("RGB", 8, (0.0, 255.0)), normalise).train()
    views = make_views(batch, task.views, normalise, 0)
    with FlopCounterMode(display=False) as counter:
        task(views, 0.5).total.backward()
    return float(counter.get_total_flops()) / IMAGES


def show(result: Objectives) -> None:
    """Print the table, or all about one."""
    from rich.table import Table

    from selfsight.console import results

    console = results()
    rows = result.objectives
    row = rows[0]
    if row.about is not None:
        console.print(f"{row.name} ({row.family}; encoders: {row.encoders}; {row.cost:.1f} x SimCLR per image)")
        about = re.sub(r"(?<!\n)\n(?!\n)", " ", row.about)  # lines break where the terminal ends
        console.print(f"\n{about}\n\nWhen: {row.when}\nViews: {'; '.join(row.views or [])}")
        console.print("Options:\n" + indent(row.meaning or "", "  "))
        console.print("By default: " + ", ".join(f"{k} {v}" for k, v in (row.options or {}).items()))
        console.print(f"Next: selfsight pretrain photos/ -o runs/{row.name} --objective {row.name}", soft_wrap=True)
        return
    table = Table("objective", "encoders", "cost", "when to use", box=None, pad_edge=False)
    for family, members in groupby(rows, lambda row: row.family):
        table.add_row("", "", "", f"-- {family} --")
        for row in members:
            table.add_row(row.name, row.encoders, f"{row.cost:.1f}", row.when)
    console.print(table)
    console.print("\nCost: operations per image, as a multiple of SimCLR's. All about one: selfsight objectives dino")
