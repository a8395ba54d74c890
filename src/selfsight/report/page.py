"""The page itself: reads a run's folder and renders it into one file."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import plotly
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from selfsight.data.collection import Collection
from selfsight.encoders.store import about_of
from selfsight.errors import DataError, SelfsightError
from selfsight.files import read_json
from selfsight.probing.evaluation import Evaluation
from selfsight.report import atlas, charts, nameless, pictures, tables, worth
from selfsight.report.template import render
from selfsight.report.verdict import Verdict, judge
from selfsight.results import duration
from selfsight.training.adaptation import read_adaptation
from selfsight.training.energy import read_energy
from selfsight.training.recipe import Recipe
from selfsight.training.run import Run
from selfsight.training.settle import decided_by

MOST_SET_ASIDE = 500  # rows of the table; the rest is counted
WAITING_TOO_MUCH = 0.3  # share of the time; above it faster data gives more than a faster machine


def build(run: Run, thumbnails: bool = True, names: bool = True) -> tuple[str, Verdict, int]:
    """The page of `run` as HTML, its verdict, and how many items it was pretrained on.

    thumbnails: whether the page shows images.
    names: whether it names items and paths.

    Raises `SelfsightError` where nothing was measured yet, or the evaluation cannot be read.
    """
    rows = run.read_metrics()
    if not rows:
        raise DataError(
            f"{run.path} has measured nothing yet, so there is nothing to report. "
            "Wait for its first steps, or give its selfsight pretrain command again."
        )
    asked, recipe, data = run.read_recipe()
    verdict, evaluation = judge(rows), _evaluation(run)
    collection, notes = _collection(data)
    drawn = None
    try:
        if collection is not None:
            drawn = _drawn(run, collection, thumbnails, names)
    except SelfsightError as error:
        notes.append(f"The map and the gallery are missing because {error}.")
    if not names:
        asked["recipe"], recipe = Path(asked.get("recipe") or "").name, nameless.recipe(recipe)
        evaluation = evaluation and nameless.evaluation(evaluation)
        notes = [nameless.MISSING] if drawn is None else notes
    content: dict[str, Any] = {"run": run, "recipe": recipe, "data": data, "verdict": verdict, "last": rows[-1]}
    content["took"] = duration(run.seconds)
    content |= {"next_steps": next_steps(verdict, run, recipe, data, rows, evaluation is not None, names)}
    content |= {"curves": charts.curves(rows), "notes": notes, "atlas": drawn}
    content |= {"thumbnails": thumbnails, "names": names}
    for name, file in (("sheet", "views.png"), ("rebuilt", "reconstructions.png")):
        content[name] = pictures.sheet_uri(run.path / file) if thumbnails else None
    about = next((known for name in ("encoder", "start") if (known := about_of(run.path / name))), {})
    content["adaptation"] = tables.adaptation(read_adaptation(run), about, evaluation)
    content |= _evaluated(run, evaluation, names) | _left_out(run, collection, names)
    content |= {"recipe_rows": tables.recipe_rows(asked, recipe), "machine": _machine(run)}
    content["history"] = history = tables.history(run)
    history["events"] = history["events"] if names else nameless.events(history["events"])
    # A string in the library holds a link to its maker's site; the script never goes there, see the page's CSP.
    content |= {"plotly_js": Markup(get_plotlyjs()), "plotly_version": plotly.__version__}
    content["drawings"] = finite(_drawings(content))  # `tojson` in the template escapes <, > and & inside <script>
    return render("page.html", content), verdict, int(data["items"])


def _evaluation(run: Run) -> Evaluation | None:
    path = run.path / "evaluation.json"
    if not path.exists():
        return None
    try:
        return Evaluation.of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError):
        again = evaluate_command(str(run.path))
        raise DataError(f"{path} cannot be read. Remove it, and measure again: {again}") from None


def _collection(data: dict[str, Any]) -> tuple[Collection | None, list[str]]:
    """(the run's collection, None if it cannot be read; notes about it for the reader)."""
    try:
        collection = decided_by(Collection.open(data["collection"]), data.get("decided", 0.0))
    except SelfsightError:
        gone = f"the table of items, {data['collection']}, is not there any more"
        return None, [f"The map and the gallery are missing because {gone}."]
    if collection.id_hash() == data["id_hash"]:
        return collection, []
    return collection, ["The images changed since this run was started: the map shows them as they are now."]


def _drawn(run: Run, collection: Collection, thumbnails: bool, names: bool) -> atlas.Atlas:
    if not run.finished:
        raise DataError("they need the finished encoder, and this run has not ended")
    return atlas.draw(run, collection, thumbnails, names)


def next_steps(
    verdict: Verdict,
    run: Run,
    recipe: Recipe,
    data: dict[str, Any],
    rows: list[dict[str, Any]],
    evaluated: bool,
    names: bool = True,
) -> list[dict[str, str]]:
    """What to do next: {text, command}, most useful first; `command` may be empty. names: whether paths are given."""
    folder, images = (str(run.path), str(data["source"])) if names else (nameless.RUN, nameless.IMAGES)
    here, source, recipe_file = map(shlex.quote, (folder, images, str(Path(folder) / run.recipe_file.name)))
    again = f"selfsight pretrain {source} -o {shlex.quote(f'{folder}-2')} --recipe {recipe_file}"
    slower = f"--learning-rate {recipe.learning_rate / 4:.2g}"
    other = "vicreg" if recipe.objective == "simclr" else "simclr"
    steps: list[dict[str, str]] = []

    def add(text: str, command: str = "") -> None:
        steps.append({"text": text, "command": command})

    if not run.finished:
        add("This run has not ended. The selfsight pretrain command that started it goes on with it.")
    elif verdict.word == "not enough evidence":
        add("Train longer; twenty minutes is a good first try.", f"{again} --minutes 20")
    elif verdict.word in ("stuck", "collapsed"):
        add("Take smaller steps.", f"{again} {slower}")
        add("Or learn by another task.", f"{again} --objective {other}")
        add("And look at the views below: views of one image must show the same thing, of two images different things.")
    if run.finished and verdict.word in ("working", "not enough evidence"):
        if not evaluated:
            add("Measure what it is worth, with a few labelled images.", evaluate_command(folder))
        add("Turn images into features.", f"selfsight embed {source} --model {here} -o features.parquet")
    waiting = sorted(float(row.get("waiting") or 0.0) for row in rows)[len(rows) // 2]
    if waiting > WAITING_TOO_MUCH:
        add(f"Training waited for images {100 * waiting:.0f} % of the time: a faster disk would give more steps.")
    return steps


def evaluate_command(run: str) -> str:
    """The command that measures the run in this folder with labels."""
    return f"selfsight evaluate {shlex.quote(run)} --train LABELLED/train --test LABELLED/test"


def _evaluated(run: Run, evaluation: Evaluation | None, names: bool) -> dict[str, Any]:
    if evaluation is None:
        command = evaluate_command(str(run.path) if names else nameless.RUN)
        return {"evaluation": None, "evaluate_command": command, "label_curve": None}
    return {
        "evaluation": worth.accuracy_table(evaluation),
        "about": evaluation.about,
        "gains": worth.gain_table(evaluation),
        "conclusion": worth.conclusion(evaluation),
        "enough": worth.enough(evaluation),
        "uneven": worth.uneven(evaluation),
        "recall": worth.recall_table(evaluation),
        "label_curve": charts.label_curve(evaluation, worth.titles(evaluation)),
    }


def _left_out(run: Run, collection: Collection | None, names: bool) -> dict[str, Any]:
    rows = tables.set_aside(run, collection)
    others = collection.about.files if collection is not None else None
    reasons = Counter(row["reason"] for row in rows)
    shown = rows[:MOST_SET_ASIDE]
    if not names:
        shown, reasons, others = [], nameless.reasons(reasons), nameless.others(others)
    return {"set_aside": shown, "set_aside_count": len(rows), "reasons": reasons.most_common(), "others": others}


def _machine(run: Run) -> list[tuple[str, str]]:
    """(what, value) pairs from `environment.json`; empty if there is none."""
    machine = read_json(run.path / "environment.json")
    if machine is None:
        return []
    versions = cast(dict[str, str], machine.pop("versions", {}))
    rows = [(name.replace("_gb", " (GB)").replace("_", " "), str(value)) for name, value in machine.items()]
    if energy := read_energy(run.path):
        text = f"{1000 * energy['energy_kwh']:.3g} Wh ({energy['method']})"
        text += f", {1000 * energy['co2_kg']:.3g} g of CO2" if "co2_kg" in energy else ""
        text += f", costing {energy['cost']:.2g}" if "cost" in energy else ""
        rows.append(("energy", text))
    return [*rows, ("versions", ", ".join(f"{name} {number}" for name, number in versions.items()))]


def _drawings(content: dict[str, Any]) -> dict[str, Any]:
    """What the page's script draws: {figures: {id: figure}, names, pictures, columns}."""
    figures = {curve["id"]: curve["figure"] for curve in content["curves"]}
    if content["label_curve"]:
        figures["label-curve"] = content["label_curve"]
    drawn: atlas.Atlas | None = content["atlas"]
    if drawn is None:
        return {"figures": figures, "names": [], "pictures": [], "columns": {}}
    figures["map"] = charts.map_figure(drawn.projection)
    return {
        "figures": figures,
        "names": drawn.names,
        "pictures": drawn.pictures,
        "columns": {k: asdict(v) for k, v in drawn.columns.items()},
    }


def finite(value: Any) -> Any:
    """`value` with None for floats that are not finite, which JSON cannot hold (a loss can be infinite)."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
