"""Whether every pretext task learns: 300 steps on a thousand small images with a tiny encoder, by its own rules.

    python benchmarks/health.py            # trains what is missing, then prints the table
    python benchmarks/health.py --table

One row an objective and data set in results/health.jsonl: k-NN accuracy of frozen features on 600 held-out images
before and after; what the verdict and the alarm say; and on held-out images, for those that fill in what they hide,
the error over that of a mean colour, for those that answer a question the accuracy beside chance.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from alarm import HELD_OUT, HERE, TRAINED, Part, load, probe

from selfsight.data.batches import Batches
from selfsight.data.canvases import Canvases
from selfsight.objectives.objective import Objective, registry
from selfsight.report.verdict import judge
from selfsight.training.alarm import Alarm
from selfsight.training.build import build
from selfsight.training.clock import Clock
from selfsight.training.loop import fit
from selfsight.training.measure import measure_normalisation
from selfsight.training.recipe import Budget, Recipe
from selfsight.training.rules import Facts, resolve
from selfsight.training.run import Run
from selfsight.views.make import Normalisation, View, make_views

RESULTS = HERE / "results" / "health.jsonl"
STEPS, BATCH = 300, 64
TINY = {"resnet18": {"layers": [1, 1, 1, 0], "channels": [16, 32, 64, 64]}}
TINY_VIT = {"depth": 3, "embed_dim": 64, "num_heads": 2}
CHANCE = {"rotation": 1 / 4, "position": 1 / 8, "jigsaw": 1 / 64, "colour": None}


def recipe_of(name: str, canvases: Canvases, seed: int) -> Recipe:
    """The objective's own recipe, its encoder made tiny."""
    facts = Facts(TRAINED, 32, canvases.format, "cpu", False, 1, 2**40, lambda side: 0.0, lambda side: 0)
    asked: dict[str, Any] = {"objective": name, "batch_size": BATCH, "budget": Budget(steps=STEPS), "seed": seed}
    first = resolve(asked, facts)
    asked |= {"encoder": first.encoder, "size": first.size, "canvas_side": 32}
    asked["encoder_args"] = TINY.get(first.encoder, TINY_VIT | {"patch_size": first.encoder_args.get("patch_size")})
    return resolve(asked, facts)


@torch.no_grad()
def held_out_figures(task: Objective, views: list[View]) -> dict[str, float]:
    """What the pretext task itself says of images it has not seen."""
    task.eval()
    loss = task(views, 1.0)
    figures = {name: float(loss.parts[name]) for name in ("accuracy",) if name in loss.parts}
    if type(task).__name__ == "MAE":  # of patches normalised each: a mean colour has an error of 1
        figures["error_share"] = float(loss.total)
    elif hasattr(task, "reconstruct"):
        whole, masked, filled = views[0].pixels, task.masked(views[0]), task.reconstruct(views[0])
        hidden = (masked != whole).any(1, keepdim=True).expand_as(whole)
        seen = (~hidden).float()
        mean = (whole * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True).clamp(min=1)
        figures["error_share"] = float(
            (filled - whole)[hidden].square().mean() / (mean - whole)[hidden].square().mean()
        )
    return figures


def measure(name: str, data: str, canvases: Canvases, labels: np.ndarray) -> dict[str, Any]:
    """Train one objective; its row."""
    order = np.random.default_rng(0).permutation(len(canvases))
    held, bank = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + TRAINED]
    part, unseen = Part(canvases, np.sort(bank)), Part(canvases, np.sort(held))
    recipe = recipe_of(name, canvases, seed=0)
    batches = Batches(part, BATCH, 0)
    normalise: Normalisation = measure_normalisation(canvases)
    task = build(recipe, canvases.format, normalise)
    random = probe(task.trained, canvases, labels, bank, held)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        clock = Clock(recipe, began, batches.steps_per_epoch)
        fit(task, batches, normalise, recipe, run, clock, Accelerator(cpu=True), lambda row: None)
        rows = run.read_metrics()
    alarm = Alarm()
    alerts = [alert for row in rows for alert in alarm.look(row)]
    row: dict[str, Any] = {"objective": name, "data": data, "encoder": recipe.encoder, "steps": STEPS, "batch": BATCH}
    row |= {"seconds": round(time.monotonic() - began, 1), "random": round(random, 4)}
    row |= {"knn": round(probe(task.trained, canvases, labels, bank, held), 4)}
    row |= {"loss": [float(f"{rows[i]['loss']:.4g}") for i in (0, -1)], "rank": round(rows[-1]["effective_rank"], 1)}
    views = make_views(Batches(unseen, 256, 1).gather(np.arange(256), 0), task.views, normalise, 1)
    row |= {name: round(value, 4) for name, value in held_out_figures(task, views).items()}
    return row | {"verdict": judge(rows).word, "alarms": [f"{a.kind} at {a.step}" for a in alerts]}


def table(rows: list[dict[str, Any]]) -> None:
    print("| objective | data | k-NN, random → trained | rank | held-out task | verdict | alarms | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["data"], -(row["knn"] - row["random"]))):
        task = f"error {row['error_share']:.0%} of a mean colour's" if "error_share" in row else ""
        if "accuracy" in row:
            chance = CHANCE.get(row["objective"])
            task = f"{row['accuracy']:.0%} right" + (f", chance {chance:.0%}" if chance else "")
        probed = f"{row['random']:.3f} → {row['knn']:.3f}"
        print(f"| {row['objective']} | {row['data']} | {probed} | {row['rank']:.0f} | {task} | {row['verdict']} "
              f"| {', '.join(row['alarms']) or 'silent'} | {row['seconds']:.0f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-alarm")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if not arguments.table:
        torch.set_num_threads(1)
        arguments.work.mkdir(parents=True, exist_ok=True)
        os.environ["SELFSIGHT_CACHE"] = str(arguments.work / "cache")
        for data in ("cifar10", "steel"):
            canvases, labels = load(data, arguments.work)
            for name in registry():
                grey = name == "colour" and canvases.format.channels != 3
                if grey or any((row["objective"], row["data"]) == (name, data) for row in rows):
                    continue
                rows.append(measure(name, data, canvases, labels))
                with RESULTS.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], flush=True)
    table(rows)


if __name__ == "__main__":
    main()
