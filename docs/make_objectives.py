"""Writes docs/objectives.md and a page with a picture for each objective, from their docstrings and rules.

    python docs/make_objectives.py

The pictures show views of two photographs that scikit-learn brings along (china.jpg by Oleg Mitiukhin, flower.jpg by
Sultry; both CC BY), as the default recipe makes them.
"""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from selfsight import objectives
from selfsight.data.batches import Batches
from selfsight.data.canvases import Resident, measure_format
from selfsight.data.importers import open_source
from selfsight.objectives.objective import registry
from selfsight.training.build import build
from selfsight.training.measure import measure_normalisation
from selfsight.training.pictures import contact_sheet
from selfsight.verbs.objectives import default_recipe, meanings

HERE = Path(__file__).parent
PARTS = [("china", 0, 120), ("china", 150, 320), ("flower", 40, 160), ("flower", 180, 330)]  # name, top, left


def table(rows: list[dict[str, Any]]) -> str:
    """The overview."""
    lines = ["| objective | family | encoders | cost | when to use |", "|---|---|---|---|---|"]
    for row in rows:
        name = f"[{row.name}](objectives/{row.name}.md)"
        lines.append(f"| {name} | {row.family} | {row.encoders} | {row.cost:.1f} | {row.when} |")
    return "\n".join(lines)


def _is_loss(function: Any) -> bool:
    """Whether it is public and takes tensors."""
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return not function.__name__.startswith("_") and first is not None and first.annotation == "Tensor"


def page(name: str, cls: type, row: dict[str, Any]) -> str:
    """The page of one objective."""
    module = inspect.getmodule(cls)
    about = inspect.cleandoc(module.__doc__ or "") if module else ""
    title, _, rest = about.partition("\n")
    losses = [
        (function, inspect.cleandoc(value.__doc__ or ""))
        for function, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and _is_loss(value)  # type: ignore[union-attr]
    ]
    recipe = default_recipe(name)
    defaults = {key: p.default for key, p in inspect.signature(cls).parameters.items()} | recipe.objective_options
    options = [f"| `{key}` | {text} | {defaults[key]} |" for key, text in meanings(cls).items()]
    groups = "; ".join(f"{g.count} of {g.size} px" for g in recipe.views.groups)
    parts = [f"# {name}", title, rest.strip(), f"**When.** {row.when}"]
    parts += [f"Family: {row.family}. Encoders: {row.encoders}. Cost: {row.cost:.1f} times SimCLR's per image."]
    parts += ["```", f"selfsight pretrain photos/ -o runs/{name} --objective {name} --minutes 20", "```"]
    parts = ["\n\n".join(parts[:5]), "\n".join(parts[5:])]
    parts += [f"![Views]({name}.png)", f"On the left images, then their views ({groups})."]
    parts += ["## Losses", *(f"`{function}`: {text}" for function, text in losses)] if losses else []
    head = "| option | what it is | default for 10,000 images |\n|---|---|---|\n"
    parts += ["## Options", head + "\n".join(options) if options else inspect.cleandoc(cls.__doc__ or "")]
    return "\n\n".join(part for part in parts if part) + "\n"


def pictures(out: Path) -> None:
    """The views of every objective on a few parts of two photographs."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"  # its name is a part of the ids that views are drawn from
        photos.mkdir()
        for i, (photo, top, left) in enumerate(PARTS):
            part = load_sample_image(f"{photo}.jpg")[top : top + 192, left : left + 192]
            Image.fromarray(np.ascontiguousarray(part)).resize((96, 96)).save(photos / f"{i}.png")
        items = open_source(str(photos), Path(folder) / "items.lance")
        for name in registry():
            recipe = default_recipe(name)
            canvases = Resident(items, measure_format(items), 96)
            normalise = measure_normalisation(canvases)
            task = build(recipe, measure_format(items), normalise)
            batches = Batches(canvases, len(PARTS), 0, None)
            contact_sheet(batches, task.views, normalise, 0, out / f"{name}.png")
            sheet = Image.open(out / f"{name}.png").convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
            sheet.save(out / f"{name}.png", optimize=True)


def written() -> dict[str, str]:
    """The text of every page by its file name."""
    rows = objectives().objectives
    by_name = {row.name: row for row in rows}
    pages = {f"objectives/{name}.md": page(name, cls, by_name[name]) for name, cls in registry().items()}
    head = (HERE / "objectives.md").read_text(encoding="utf-8").partition("| objective | family |")
    rest = head[2].partition("\n\n")[2]
    return pages | {"objectives.md": f"{head[0]}{table(rows)}\n\n{rest}"}


if __name__ == "__main__":
    (HERE / "objectives").mkdir(exist_ok=True)
    for file, text in written().items():
        (HERE / file).write_text(text, encoding="utf-8")
    pictures(HERE / "objectives")
