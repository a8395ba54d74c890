"""Whether every pretext task learns, and whether the collapse alarm and the verdict are right about it.

    python benchmarks/health.py            # trains what is missing of round 0, then prints the tables
    python benchmarks/health.py --round 1
    python benchmarks/health.py --default  # the same for `DEFAULT`: the default recipe on several data sets
    python benchmarks/health.py --table    # prints the tables of the rows there are

Each run trains a tiny network on one thread by the objective's own rules, through the loop that every pretraining goes
through. Sound runs have no fault; the others have one of `faults.py` from a known step on. A row of
results/health.jsonl holds the run's figures, step by step, so that the alarm and the verdict are judged anew whenever
they change, without training again; k-NN of frozen features on held-out images before and after; and on held-out
images, for tasks that fill in what they hide, the error over that of a mean colour, for those that answer a question,
how many answers are right. Delete a row to measure it anew.

The alarm's thresholds were chosen on round 0. Round 1 has other seeds and other images and was looked at when they had
been committed. What counts was fixed with them: a run is healthy if it has no fault and its k-NN ends `SURE` above that
of random weights; others without a fault are counted apart.

`DEFAULT` leaves the encoder, the optimiser, the views and the precision to the rules, as `pretrain` does. Its runs have
tables of their own. Looks for data in SELFSIGHT_DATA or ../shared/data; digits are scikit-learn's.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from faults import put_in
from PIL import Image
from torch import Tensor

from selfsight.data.batches import Batches
from selfsight.data.canvases import Canvases, Resident, measure_format
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import encode
from selfsight.encoders.statistics import measure_batch_norm
from selfsight.errors import SelfsightError
from selfsight.machine import has_bf16
from selfsight.objectives.facts import Facts
from selfsight.objectives.objective import Objective, registry
from selfsight.probing.neighbours import fit_knn
from selfsight.report.verdict import judge
from selfsight.training.alarm import SEEN, Alarm
from selfsight.training.build import build
from selfsight.training.clock import Clock
from selfsight.training.measure import measure_normalisation
from selfsight.training.pretraining import train
from selfsight.training.recipe import Budget, Recipe
from selfsight.training.rules import resolve
from selfsight.training.run import Run
from selfsight.views.make import View, make_views

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "health.jsonl"
SIDE, STEPS, BATCH, WARMUP, PROMISED = 32, 300, 64, 0.05, 100  # pixels; …; steps from the onset to the alarm
TRAINED, HELD_OUT = 1000, 600  # images at most
SURE = 0.03  # of accuracy: about two standard errors of 600 answers
CHANCE = {"rotation": 1 / 4, "position": 1 / 8, "jigsaw": 1 / 64}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {"layers": [1, 1, 1, 0], "channels": [16, 32, 64, 64]}),
    "vit": ("vit_tiny_patch16_224", {"patch_size": 4, "depth": 3, "embed_dim": 64, "num_heads": 2}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 64), "patch_size": 1}),
}
FOLDERS = {
    "steel": "neu/train", "chest": "chest-xray/train", "things": "things/train", "tiles": "magnetic-tile/images",
    "tiny": "tiny/seen/train",
}  # fmt: skip
FEW = {"forty": 40, "hundred": 100}  # images of CIFAR-10 to train on
FIGURES = (*SEEN[1:], "centre_norm", "agreement", "neighbour_stability")


@dataclass(frozen=True)
class Case:
    """One run. fault "" is none; onset: the step from which it is there; rate: times the rules' learning rate.

    encoder: of `ENCODERS`, or "default" for the rules' own.
    size: pixels of the encoder's input.
    """

    objective: str
    encoder: str
    data: str
    batch: int = BATCH
    steps: int = STEPS
    fault: str = ""
    onset: int = 0
    rate: float = 1.0
    size: int = SIDE

    @property
    def name(self) -> str:
        fault = f", {self.fault} from {self.onset}" if self.fault else ""
        rate = f", rate x {self.rate:g}" if self.rate != 1.0 else ""
        data = self.data if self.size == SIDE else f"{self.data} at {self.size}"
        return f"{self.objective}, {self.encoder}, {data}, {self.batch}, {self.steps}{rate}{fault}"

    @property
    def shows(self) -> int:
        """The first step at which the fault could show: a run that is broken from the start does not learn before its
        warm-up ends."""
        return max(self.onset, round(WARMUP * self.steps))


def every_objective(data: str) -> list[Case]:
    """Each by itself, with the encoder that its rules choose."""
    return [Case(name, "vit" if cls.tokens else "resnet", data) for name, cls in registry().items()]


SOUND = [
    *every_objective("cifar10"), Case("simclr", "resnet", "steel"), Case("rotation", "resnet", "steel"),
    Case("simmim", "resnet", "steel"), Case("dino", "resnet", "steel"), Case("moco", "resnet", "steel", 32),
    Case("simclr", "vit", "chest"), Case("simclr", "convnext", "digits", 32), Case("simclr", "resnet", "forty", 40),
    Case("vicreg", "vit", "digits"), Case("vicreg", "resnet", "chest", 16, 400), Case("vicreg", "convnext", "steel"),
    Case("byol", "vit", "steel"), Case("byol", "convnext", "cifar10"), Case("byol", "resnet", "digits", 128, 200),
    Case("simsiam", "vit", "digits"), Case("simsiam", "resnet", "chest", 32), Case("moco", "vit", "cifar10"),
    Case("swav", "vit", "steel"), Case("dino", "vit", "chest"), Case("dino", "resnet", "digits", 128, 150),
    Case("lejepa", "vit", "chest"), Case("lejepa", "convnext", "digits"), Case("barlow", "vit", "steel", 128, 200),
    Case("emp", "vit", "digits", 32), Case("simclr", "resnet", "cifar10", 256, 150), Case("ijepa", "vit", "chest", 32),
    Case("mae", "vit", "digits", 128, 200), Case("simmim", "vit", "chest"), Case("rotation", "vit", "digits"),
]  # fmt: skip
BROKEN = [
    Case("simclr", "resnet", "cifar10", fault="no negatives", onset=150),
    Case("moco", "resnet", "cifar10", fault="no negatives", onset=0),
    Case("byol", "resnet", "cifar10", fault="no predictor", onset=150),
    Case("simsiam", "resnet", "cifar10", fault="no predictor or decorrelation", onset=0),
    Case("barlow", "resnet", "cifar10", fault="no redundancy", onset=0),
    Case("vicreg", "resnet", "cifar10", fault="no variance or covariance", onset=150),
    Case("emp", "resnet", "cifar10", fault="no coding rate", onset=0),
    Case("lejepa", "resnet", "cifar10", fault="no regulariser", onset=150),
    Case("swav", "resnet", "cifar10", fault="no balance", onset=0),
    Case("dino", "resnet", "cifar10", fault="no sharpening", onset=0),
    Case("dinov2", "vit", "cifar10", fault="no sharpening", onset=0),
    Case("ijepa", "vit", "cifar10", fault="own teacher", onset=0),
    Case("simclr", "vit", "digits", fault="no negatives", onset=0),
    Case("simclr", "convnext", "steel", 32, fault="no negatives", onset=150),
    Case("moco", "vit", "chest", fault="no negatives", onset=150),
    Case("byol", "vit", "steel", fault="no stop", onset=0), Case("byol", "resnet", "chest", fault="no stop", onset=150),
    Case("simsiam", "resnet", "steel", fault="no stop or decorrelation", onset=150),
    Case("simsiam", "vit", "digits", fault="no stop or decorrelation", onset=0),
    Case("vicreg", "vit", "chest", fault="no variance", onset=0),
    Case("vicreg", "resnet", "steel", 32, fault="no covariance", onset=0),
    Case("vicreg", "convnext", "digits", 128, fault="no variance or covariance", onset=0),
    Case("lejepa", "vit", "steel", fault="no regulariser", onset=0),
    Case("swav", "vit", "steel", fault="no balance", onset=150),
    Case("dino", "vit", "steel", fault="no sharpening", onset=0),
    Case("dino", "resnet", "chest", fault="no sharpening", onset=150),
    Case("simclr", "resnet", "cifar10", fault="hot", onset=150), Case("vicreg", "vit", "steel", fault="hot", onset=0),
    Case("simclr", "vit", "chest", 16, fault="hot", onset=150), Case("mae", "vit", "steel", fault="hot", onset=150),
    Case("simclr", "resnet", "digits", fault="still", onset=0), Case("byol", "vit", "cifar10", fault="still", onset=0),
    Case("rotation", "resnet", "cifar10", fault="still", onset=0), Case("mae", "vit", "chest", fault="still", onset=0),
    Case("simclr", "resnet", "steel", fault="unrelated", onset=0),
    Case("vicreg", "vit", "cifar10", fault="unrelated", onset=150),
    Case("simclr", "resnet", "cifar10", fault="cold", onset=0),
    Case("simclr", "resnet", "digits", fault="lukewarm", onset=0),
]  # fmt: skip
# Larger shapes than CIFAR-10's, for tasks that fill in what they hide. Last, as seeds are places in the list.
FILLED = [
    Case("mae", "vit", "chest"), Case("inpaint", "resnet", "chest"), Case("mae", "vit", "digits", rate=6.0)
]  # fmt: skip


def default(data: str, batch: int = BATCH, steps: int = 150, rate: float = 1.0, **others: Any) -> Case:
    """A run of the default recipe, which has 64 items a step."""
    return Case("simclr", "default", data, batch, steps, rate=rate, **others)


def broken_default(rate: float) -> list[Case]:
    return [
        default("cifar10", rate=rate, fault="no negatives"),
        default("steel", steps=200, rate=rate, fault="no negatives", onset=100),
        default("chest", steps=200, rate=rate, fault="no negatives", onset=100),
        default("cifar10", steps=200, rate=rate, fault="cold", onset=100),
        default("tiny", steps=200, rate=rate, fault="unrelated", onset=100),
        default("things", rate=rate, fault="unrelated"), default("steel", rate=rate, fault="cold"),
        default("tiny", rate=rate, fault="lukewarm"), default("things", rate=rate, fault="still"),
        default("chest", rate=rate, fault="blank"),
    ]  # fmt: skip


# The default recipe. First at a quarter of its rate, which was the default when these were trained: as it is, slower
# and faster, in other batches, on few images, at twice the size, far too fast, which it bears, and broken. Then at its
# rate.
DEFAULT = [
    *(default(data, rate=0.25) for data in ("cifar10", "steel", "things", "chest", "tiny", "tiles", "digits")),
    *(default(data, rate=0.125) for data in ("cifar10", "steel", "things", "tiny")),
    *(default(data, rate=0.5) for data in ("cifar10", "steel", "things", "chest", "tiny", "tiles")),
    *(default(data, 32, rate=0.25) for data in ("cifar10", "steel", "things", "chest")),
    default("tiny", 16, rate=0.25), default("cifar10", 128, 100, rate=0.25), default("cifar10", steps=300, rate=0.25),
    default("forty", 40, rate=0.25), default("hundred", rate=0.25),
    *(default(data, size=64, rate=0.25) for data in ("cifar10", "steel")),
    *(default(data, rate=7.5) for data in ("things", "tiny")),
    *broken_default(0.25), default("cifar10", rate=250.0), default("steel", rate=7.5),
    *(default(data) for data in ("cifar10", "steel", "things", "chest", "tiny", "tiles", "hundred")),
    *(default(data, rate=2.0) for data in ("cifar10", "steel", "things", "tiny")),
    *(default(data, 32) for data in ("cifar10", "things")), default("cifar10", 128, 100), default("forty", 40),
    default("steel", size=64), *broken_default(1.0),
]  # fmt: skip


def data_folder(name: str, work: Path) -> Path:
    """A folder of images in a folder per class."""
    if name in FOLDERS:
        return DATA / FOLDERS[name]
    out = work / name
    if out.exists():
        return out
    part = work / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            (part / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((16, 16)).save(part / str(label) / f"{i}.png")
    else:
        seen: Counter[str] = Counter()
        with zipfile.ZipFile(DATA / "cifar10.zip") as archive:
            for entry in sorted(archive.namelist()):
                folder, _, _ = entry.rpartition("/")
                if "/train/" in entry and entry.endswith((".jpg", ".png")) and seen[folder] < 160:
                    seen[folder] += 1
                    (part / Path(folder).name).mkdir(parents=True, exist_ok=True)
                    (part / Path(folder).name / Path(entry).name).write_bytes(archive.read(entry))
    part.rename(out)
    return out


def load(name: str, size: int, work: Path) -> tuple[Canvases, np.ndarray]:
    """The canvases to train on and to probe with, and their labels."""
    collection = open_source(data_folder("cifar10" if name in FEW else name, work))
    canvases = Resident(collection, measure_format(collection), size)
    given = Labels.of(collection)
    labels = given.numbers(given.classes)
    return canvases, labels


class Part(Canvases):
    """Some of the canvases of another."""

    def __init__(self, whole: Canvases, indices: np.ndarray) -> None:
        self.__dict__ |= whole.__dict__
        self.whole, self.chosen = whole, indices
        self.ids = [whole.ids[i] for i in indices]
        self.sides = whole.sides[indices]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.whole[int(self.chosen[index])]


def probe(
    encoder: Encoder, canvases: Canvases, labels: np.ndarray, bank: np.ndarray, held: np.ndarray, trained: bool = True
) -> float:
    """k-NN accuracy of frozen features, in eval mode; one that is not `trained` gets the data's statistics first."""

    def inputs(indices: np.ndarray) -> Tensor:
        side = (encoder.geometry.size, encoder.geometry.size)
        squares = np.stack([np.asarray(Image.fromarray(canvases[int(i)].squeeze()).resize(side)) for i in indices])
        return encoder.geometry.to_input(squares if squares.ndim == 4 else squares[..., None])

    if not trained:
        measure_batch_norm(encoder, inputs(bank).split(256))
    known, asked = (features for _, features in encode(encoder, ((0, inputs(which)) for which in (bank, held))))
    scores = fit_knn(known, labels[bank], int(labels.max()) + 1).scores(asked)
    return float((scores.argmax(1) == labels[held]).mean())


def recipe_of(case: Case, canvases: Canvases, items: int, seed: int) -> Recipe:
    """What the rules say for so many items, with a tiny encoder or the default one."""
    bf16 = case.encoder == "default" and has_bf16("cpu")
    facts = Facts(items, case.size, canvases.format, "cpu", bf16, 1, 2**40, lambda side: 0.0, lambda side: 0)
    asked: dict[str, Any] = {"objective": case.objective, "size": case.size, "canvas_side": case.size}
    if case.encoder != "default":
        encoder, args = ENCODERS[case.encoder]
        if case.encoder == "vit" and registry()[case.objective].pool == "avg":
            args = args | {"global_pool": "avg"}
        asked |= {"encoder": encoder, "encoder_args": args}
    recipe = resolve(asked | {"batch_size": case.batch, "budget": Budget(steps=case.steps), "seed": seed}, facts)
    return replace(recipe, learning_rate=case.rate * recipe.learning_rate)


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
        error, plain = (filled - whole)[hidden].square().mean(), (mean - whole)[hidden].square().mean()
        figures["error_share"] = float(error / plain)
    return figures


def measure(number: int, case: Case, which: int, canvases: Canvases, labels: np.ndarray) -> dict[str, Any]:
    """Train one case; its row."""
    seed = number + 1000 * which
    order = np.random.default_rng(which).permutation(len(canvases))
    held, bank = np.split(order[: HELD_OUT + TRAINED], [min(HELD_OUT, len(order) // 2)])
    part = Part(canvases, np.sort(bank[: FEW.get(case.data)]))
    recipe = recipe_of(case, canvases, len(part), seed)
    batches = Batches(part, recipe.batch_size, seed)
    normalise = measure_normalisation(canvases)
    task = build(recipe, canvases.format, normalise)
    random, began = probe(copy.deepcopy(task.trained), canvases, labels, bank, held, trained=False), time.monotonic()
    undo = put_in(task, case.fault, case.onset / case.steps) if case.fault else None
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        clock = Clock(recipe.budget, began, batches.steps_per_epoch, recipe.accumulate)
        try:
            train(task, batches, normalise, recipe, run, clock, Accelerator(cpu=True), lambda row: None)
        except SelfsightError as error:  # ten steps in a row that were not finite
            print(f"  {error}")
        rows = run.read_metrics()
    names = [name for name in FIGURES if name in rows[0]]
    row = {"round": which, "case": case.name, "objective": case.objective, "sound": not case.fault}
    row |= {"onset": case.shows, "seconds": round(time.monotonic() - began, 1), "random": round(random, 4)}
    row |= {"knn": round(probe(task.trained, canvases, labels, bank, held), 4)}
    if undo:
        undo.close()
    else:
        unseen = Batches(Part(canvases, np.sort(held)), 256, 1).gather(np.arange(256), 0)
        said = held_out_figures(task, make_views(unseen, task.views, normalise, 1))
        row |= {name: round(value, 4) for name, value in said.items()}
    figures = {key: [float(f"{each[key]:.4g}") for each in rows] for key in names}
    return row | {"step": [each["step"] for each in rows], "figures": figures}


def rows_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's rows as they were in metrics.jsonl."""
    return [
        {"step": step, "epoch": 0.0} | {key: values[i] for key, values in row["figures"].items()}
        for i, step in enumerate(row["step"])
    ]


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """What the alarm and the verdict say of a run, and how its k-NN ended beside random weights."""
    alarm, rows = Alarm(), rows_of(row)
    alerts = [alert for each in rows for alert in alarm.look(each)]
    gain = row["knn"] - row["random"]
    when = {
        "before": any(a.step < row["onset"] for a in alerts),
        "caught": any(row["onset"] <= a.step <= row["onset"] + PROMISED for a in alerts),
        "late": any(a.step > row["onset"] + PROMISED for a in alerts),
    }
    ended = "better" if gain > SURE else "worse" if gain < -SURE else "same"
    return when | {"alerts": alerts, "verdict": judge(rows).word, "ended": ended}


def table(rows: list[dict[str, Any]]) -> None:
    """Every run; hits and false alarms by round; the verdicts against the probe."""
    counts: Counter[tuple[Any, ...]] = Counter()
    print("| round | run | fault from | alarm | verdict | k-NN, random → trained | held-out task |")
    print("|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["round"], not row["sound"])):
        j, which = judged(row), row["round"]
        said = ", ".join(f"{a.kind} at {a.step}" for a in j["alerts"]) or "silent"
        task = f"error {row['error_share']:.0%} of a mean colour's" if "error_share" in row else ""
        if "accuracy" in row:
            chance = CHANCE.get(row["objective"])
            task = f"{row['accuracy']:.0%} right" + (f", chance {chance:.0%}" if chance else "")
        onset, probed = "" if row["sound"] else row["onset"], f"{row['random']:.3f} → {row['knn']:.3f}"
        print(f"| {which} | {row['case'].split(' from ')[0]} | {onset} | {said} | {j['verdict']} | {probed} | {task} |")
        kind = "broken" if not row["sound"] else "healthy" if j["ended"] == "better" else j["ended"]
        counts[which, kind] += 1
        counts[which, kind, "flagged"] += bool(j["alerts"])
        if kind == "broken":
            counts[which, "caught"] += j["caught"]
            counts[which, "late"] += j["late"] and not j["caught"]
            counts[which, "early"] += j["before"]
        counts[j["verdict"], row["sound"], j["ended"]] += 1
    print("\n| round | broken | caught within 100 steps | later | flagged before the fault | healthy | flagged | no "
          "better than random weights | flagged | worse | flagged |\n" + "|---" * 11 + "|")  # fmt: skip
    for which in sorted({row["round"] for row in rows}):
        names = [(name,) for name in ("broken", "caught", "late", "early", "healthy")]
        names += [("healthy", "flagged"), ("same",), ("same", "flagged"), ("worse",), ("worse", "flagged")]
        print(f"| {which} | " + " | ".join(str(counts[which, *name]) for name in names) + " |")
    print(f"\n| verdict | run | k-NN better than random weights by over {SURE:.0%} | neither | worse |")
    print("|---|---|---|---|---|")
    for word in ("working", "stuck", "collapsed", "not enough evidence"):
        for sound in (True, False):
            found = [counts[word, sound, how] for how in ("better", "same", "worse")]
            if sum(found):
                print(f"| {word} | {'sound' if sound else 'broken'} | " + " | ".join(map(str, found)) + " |")


def summary(rows: list[dict[str, Any]]) -> None:
    """Every objective by itself on CIFAR-10, the best first: all rounds, and the twin that has a fault."""
    print(
        "\n| objective | encoder | k-NN over that of random weights | rank | held-out task | broken twin | its alarm |"
    )
    print("|---" * 7 + "|")
    lines = []
    for case in every_objective("cifar10"):
        sound = [row for row in rows if row["case"] == case.name]
        if not sound:
            continue
        gains = [100 * (row["knn"] - row["random"]) for row in sound]
        ranks = "; ".join(f"{row['figures']['effective_rank'][-1]:.0f}" for row in sound)
        task = ""
        if "error_share" in sound[0]:
            task = "error " + "; ".join(f"{row['error_share']:.0%}" for row in sound) + " of a mean colour's"
        elif "accuracy" in sound[0]:
            chance = f", chance {CHANCE[case.objective]:.0%}" if case.objective in CHANCE else ""
            task = "; ".join(f"{row['accuracy']:.0%}" for row in sound) + f" right{chance}"
        twins = [c for c in BROKEN if (c.objective, c.encoder, c.data) == (case.objective, case.encoder, "cifar10")]
        fault, said = "", ""
        for twin in twins[:1]:
            fault, when = twin.fault, []
            for row in (row for row in rows if row["case"] == twin.name):
                after = [alert for alert in judged(row)["alerts"] if alert.step >= row["onset"]]
                when.append(f"{after[0].kind}, {after[0].step - row['onset']} steps" if after else "silent")
            said = "; ".join(when)
        spread = f" ± {np.std(gains, ddof=1):.1f}" if len(gains) > 1 else ""
        cells = [case.objective, case.encoder, f"{np.mean(gains):+.1f}{spread}", ranks, task, fault, said]
        lines.append((-float(np.mean(gains)), "| " + " | ".join(cells) + " |"))
    print("\n".join(line for _, line in sorted(lines)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--default", action="store_true", help="train DEFAULT in place of the tiny networks")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-health")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if not arguments.table:
        torch.set_num_threads(1)
        arguments.work.mkdir(parents=True, exist_ok=True)
        os.environ["SELFSIGHT_CACHE"] = str(arguments.work / "cache")
        sets: dict[tuple[str, int], tuple[Canvases, np.ndarray]] = {}
        cases = DEFAULT if arguments.default else SOUND + BROKEN + FILLED
        turns = sum(not case.fault for case in cases)  # so that broken runs take turns with sound ones
        for number, case in sorted(enumerate(cases), key=lambda pair: pair[0] % turns):
            done = any((row["case"], row["round"]) == (case.name, arguments.round) for row in rows)
            if done or arguments.only not in case.name:
                continue
            if (case.data, case.size) not in sets:
                sets[case.data, case.size] = load(case.data, case.size, arguments.work)
            rows.append(measure(number, case, arguments.round, *sets[case.data, case.size]))
            with RESULTS.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print({key: value for key, value in rows[-1].items() if key not in ("step", "figures")}, flush=True)
    table([row for row in rows if ", default, " not in row["case"]])
    print("\nThe default recipe:\n")
    table([row for row in rows if ", default, " in row["case"]])
    summary(sorted(rows, key=lambda row: row["round"]))


if __name__ == "__main__":
    main()
