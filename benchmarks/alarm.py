"""The collapse alarm and the verdict on healthy and on deliberately broken runs, checked against a k-NN probe.

    python benchmarks/alarm.py            # runs what is missing, then prints the tables
    python benchmarks/alarm.py --table    # prints the tables of the rows there are

Each run trains a tiny network on one thread through the loop that every pretraining goes through, its fault put in
from a known step on. A row of results/alarm.jsonl holds the run's figures, step by step, so that the alarm and the
verdict are judged anew whenever they change, without training again. Delete a row to measure it anew.

The thresholds were chosen on round 0. Round 1 has other seeds and other images, and was trained after they were fixed;
`--round 1` runs it. Looks for data in SELFSIGHT_DATA or
../shared/data; digits are scikit-learn's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from alarm_objectives import OBJECTIVES
from PIL import Image

from selfsight.data.batches import Batches
from selfsight.data.canvases import Canvases, Resident, measure_format
from selfsight.data.importers import open_source
from selfsight.encoders.encoder import Encoder, Preprocessing
from selfsight.encoders.extract import to_input
from selfsight.encoders.store import create
from selfsight.errors import SelfsightError
from selfsight.probing.neighbours import knn_scores
from selfsight.report.verdict import judge
from selfsight.training.alarm import Alarm
from selfsight.training.clock import Clock
from selfsight.training.loop import fit
from selfsight.training.measure import measure_normalisation
from selfsight.training.recipe import Budget, Recipe
from selfsight.training.run import Run
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "alarm.jsonl"
SIDE, WARMUP, PROMISED = 32, 0.05, 100  # pixels; part of the budget; steps from the onset to the alarm
TRAINED, HELD_OUT = 1000, 600  # images at most
SURE = 0.03  # of accuracy: about two standard errors of 600 answers
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet18", {"layers": [1, 1, 1, 0], "channels": [16, 32, 64, 64]}),
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 3, "embed_dim": 64, "num_heads": 2}),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 64), "patch_size": 2}),
}
VIEWS = {"resnet": 24, "vit": 24, "convnext": 32}  # pixels
RATES = {"resnet": 2e-3, "vit": 1e-3, "convnext": 1e-3}
UNUSED = ("views_per_second", "waiting", "seconds", "epoch", "progress", "skipped", "step", "gradient_norm")
UNUSED += ("nt_xent", "invariance", "variance", "covariance", "cosine", "cross_entropy")  # parts of losses


@dataclass(frozen=True)
class Case:
    """One run. fault "" is healthy; onset: the step from which the fault is there."""

    objective: str
    encoder: str
    data: str
    batch: int
    steps: int
    fault: str = ""
    onset: int = 0

    @property
    def name(self) -> str:
        fault = f", {self.fault} from {self.onset}" if self.fault else ""
        return f"{self.objective}, {self.encoder}, {self.data}, {self.batch}, {self.steps}{fault}"

    @property
    def shows(self) -> int:
        """The first step at which the fault could show: a run that is broken from the start does not learn before its
        warm-up ends."""
        return max(self.onset, round(WARMUP * self.steps))


HEALTHY = [
    Case("simclr", "resnet", "cifar10", 64, 300), Case("simclr", "vit", "steel", 64, 300),
    Case("simclr", "convnext", "chest", 64, 250), Case("simclr", "resnet", "forty", 40, 300),
    Case("decoupled", "resnet", "cifar10", 256, 150), Case("decoupled", "vit", "digits", 64, 300),
    Case("decoupled", "resnet", "steel", 16, 400), Case("decoupled", "convnext", "cifar10", 64, 200),
    Case("vicreg", "resnet", "cifar10", 64, 300), Case("vicreg", "vit", "chest", 64, 300),
    Case("vicreg", "convnext", "steel", 32, 300), Case("vicreg", "resnet", "digits", 256, 200),
    Case("vicreg", "resnet", "chest", 16, 400), Case("vicreg", "resnet", "forty", 16, 300),
    Case("simsiam", "resnet", "cifar10", 64, 300), Case("simsiam", "resnet", "steel", 64, 300),
    Case("simsiam", "vit", "digits", 64, 300), Case("byol", "resnet", "cifar10", 64, 300),
    Case("byol", "vit", "steel", 64, 300), Case("byol", "convnext", "digits", 32, 300),
    Case("dino", "resnet", "cifar10", 64, 300), Case("dino", "vit", "steel", 64, 300),
    Case("dino", "resnet", "chest", 128, 250), Case("swav", "resnet", "cifar10", 128, 250),
    Case("swav", "vit", "digits", 64, 300), Case("swav", "resnet", "steel", 32, 300),
]  # fmt: skip
BROKEN = [
    Case("vicreg", "resnet", "cifar10", 64, 300, "no variance or covariance", 150),
    Case("vicreg", "vit", "chest", 64, 300, "no variance or covariance", 0),
    Case("vicreg", "resnet", "steel", 32, 300, "no variance", 150),
    Case("vicreg", "convnext", "digits", 64, 300, "no variance", 0),
    Case("vicreg", "resnet", "cifar10", 64, 400, "no covariance", 200),
    Case("vicreg", "vit", "steel", 64, 300, "no covariance", 0),
    Case("vicreg", "resnet", "chest", 128, 300, "no covariance", 150),
    Case("simclr", "resnet", "cifar10", 64, 300, "no negatives", 150),
    Case("simclr", "vit", "digits", 64, 300, "no negatives", 0),
    Case("decoupled", "convnext", "steel", 32, 300, "no negatives", 150),
    Case("simsiam plain", "resnet", "cifar10", 64, 300, "no stop", 150),
    Case("simsiam plain", "vit", "steel", 64, 300, "no stop", 0),
    Case("simsiam", "resnet", "chest", 64, 300, "no stop", 150),
    Case("simsiam", "resnet", "cifar10", 64, 300, "no predictor", 150),
    Case("byol", "resnet", "cifar10", 64, 300, "no predictor", 150),
    Case("byol", "vit", "digits", 64, 300, "no stop", 150),
    Case("byol", "convnext", "steel", 32, 300, "no stop", 0),
    Case("dino", "resnet", "cifar10", 64, 300, "no centre", 150),
    Case("dino", "vit", "steel", 64, 300, "no centre", 0),
    Case("dino", "resnet", "cifar10", 64, 300, "no sharpening", 150),
    Case("dino", "resnet", "chest", 128, 300, "no sharpening", 0),
    Case("swav", "resnet", "cifar10", 128, 300, "no balance", 150),
    Case("swav", "vit", "digits", 64, 300, "no balance", 0),
    Case("simclr", "resnet", "cifar10", 64, 300, "hot", 150),
    Case("vicreg", "vit", "steel", 64, 300, "hot", 0),
    Case("decoupled", "vit", "chest", 16, 300, "hot", 150),
    Case("simclr", "resnet", "cifar10", 64, 250, "still", 0),
    Case("vicreg", "convnext", "chest", 64, 250, "still", 0),
    Case("decoupled", "vit", "digits", 16, 300, "still", 0),
    Case("simclr", "resnet", "steel", 64, 300, "unrelated", 0),
    Case("simclr", "vit", "cifar10", 64, 300, "unrelated", 150),
    Case("decoupled", "resnet", "cifar10", 64, 300, "cold", 0),
    Case("simclr", "resnet", "digits", 64, 300, "lukewarm", 0),
]  # fmt: skip


def data_folder(name: str, work: Path) -> Path:
    """A folder of images in a folder per class."""
    if name in ("steel", "chest"):
        return DATA / {"steel": "neu", "chest": "chest-xray"}[name] / "train"
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


def load(name: str, work: Path) -> tuple[Canvases, np.ndarray]:
    """The canvases to train on and to probe with, and their labels; a fixed shuffle, the last ones held out."""
    collection = open_source(data_folder("cifar10" if name == "forty" else name, work))
    canvases = Resident(collection, measure_format(collection), SIDE)
    _, labels = np.unique(np.array(collection.folder_labels(collection.usable)), return_inverse=True)
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


@torch.no_grad()
def probe(encoder: Encoder, canvases: Canvases, labels: np.ndarray, bank: np.ndarray, held: np.ndarray) -> float:
    """k-NN accuracy of frozen features, in eval mode."""
    encoder.eval()

    def features(indices: np.ndarray) -> np.ndarray:
        squares = np.stack([np.asarray(Image.fromarray(canvases[int(i)].squeeze()).resize((SIDE, SIDE)))
                            for i in indices])  # fmt: skip
        squares = squares if squares.ndim == 4 else squares[..., None]
        return encoder(to_input(squares, encoder.preprocessing)).pooled.float().numpy()

    scores = knn_scores(features(bank), labels[bank], features(held), int(labels.max()) + 1)
    return float((scores.argmax(1) == labels[held]).mean())


def measure(number: int, case: Case, which: int, canvases: Canvases, labels: np.ndarray) -> dict[str, Any]:
    """Train one case; its row."""
    seed = number // 2 + 1000 * which
    order = np.random.default_rng(which).permutation(len(canvases))
    held, bank = order[:HELD_OUT], order[HELD_OUT : HELD_OUT + TRAINED]
    part = Part(canvases, np.sort(bank[:40] if case.data == "forty" else bank))
    batches = Batches(part, case.batch, seed)
    normalise = measure_normalisation(canvases)
    channels = canvases.format.channels
    views = ViewPlan((ViewGroup(count=2, size=VIEWS[case.encoder], scale=(0.2, 1.0), colour=Colour()),))
    name, args = ENCODERS[case.encoder]
    torch.manual_seed(seed)
    preprocessing = Preprocessing(channels, SIDE, canvases.format.window, normalise.mean, normalise.std)
    encoder = create(name, preprocessing, args)
    objective = OBJECTIVES[case.objective](encoder, views, case.fault, case.onset / case.steps)
    recipe = Recipe(
        objective=case.objective, objective_options={}, encoder=name, encoder_args=args, pretrained=False,
        channels=channels, size=SIDE, canvas_side=SIDE, canvases="resident", views=views, batch_size=case.batch,
        accumulate=1, optimiser="adamw", learning_rate=RATES[case.encoder], weight_decay=0.05, warmup=WARMUP,
        clip=0.0, precision="no", threads=1, seed=seed, budget=Budget(steps=case.steps),
    )  # fmt: skip
    random = probe(encoder, canvases, labels, bank, held)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        clock = Clock(recipe, began, batches.steps_per_epoch)
        try:
            fit(objective, batches, normalise, recipe, run, clock, Accelerator(cpu=True), lambda row: None)
        except SelfsightError as error:  # ten steps in a row that were not finite
            print(f"  {error}")
        rows = run.read_metrics()
    steps = [row["step"] for row in rows]
    names = [key for key in rows[0] if key not in UNUSED]
    figures = {key: [float(f"{row[key]:.4g}") for row in rows] for key in names}
    row = {"round": which, "number": number, "case": case.name, "healthy": not case.fault, "onset": case.shows}
    row |= {"seconds": round(time.monotonic() - began, 1), "random": round(random, 4)}
    row |= {"knn": round(probe(encoder, canvases, labels, bank, held), 4), "chance": round(1 / (labels.max() + 1), 3)}
    return row | {"step": steps, "figures": figures}


def rows_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A run's rows as they were in metrics.jsonl."""
    return [
        {"step": step, "epoch": 0.0} | {key: values[i] for key, values in row["figures"].items()}
        for i, step in enumerate(row["step"])
    ]


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """What the alarm and the verdict say of a run."""
    alarm, rows = Alarm(), rows_of(row)
    alerts = [alert for each in rows for alert in alarm.look(each)]
    before = [a for a in alerts if a.step < row["onset"]]
    caught = [a for a in alerts if row["onset"] <= a.step <= row["onset"] + PROMISED]
    late = [a for a in alerts if a.step > row["onset"] + PROMISED]
    return {"alerts": alerts, "before": before, "caught": caught, "late": late, "verdict": judge(rows).word}


def table(rows: list[dict[str, Any]]) -> None:
    """Every run; hits and false alarms by round; the verdicts against the probe."""
    counts: Counter[tuple[Any, ...]] = Counter()
    print("| round | run | fault from | alarm | verdict | k-NN, random → trained |\n|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row.get("round", 0), row["number"])):
        j = judged(row)
        said = ", ".join(f"{a.kind} at {a.step}" for a in j["alerts"]) or "silent"
        onset = "" if row["healthy"] else row["onset"]
        name, which = row["case"].split(" from ")[0], row.get("round", 0)
        probed = f"{row['random']:.3f} → {row['knn']:.3f}"
        print(f"| {which} | {name} | {onset} | {said} | {j['verdict']} | {probed} |")
        counts[which, "healthy" if row["healthy"] else "broken"] += 1
        counts[which, "flagged"] += row["healthy"] and bool(j["alerts"])
        counts[which, "caught"] += not row["healthy"] and bool(j["caught"])
        counts[which, "late"] += not row["healthy"] and not j["caught"] and bool(j["late"])
        counts[which, "early"] += not row["healthy"] and bool(j["before"])
        gain = row["knn"] - row["random"]
        counts[j["verdict"], row["healthy"], "better" if gain > SURE else "worse" if gain < -SURE else "same"] += 1
    print("\n| round | broken | caught within 100 steps | later | flagged before the fault | healthy | flagged |")
    print("|---|---|---|---|---|---|---|")
    for which in sorted({row.get("round", 0) for row in rows}):
        names = ("broken", "caught", "late", "early", "healthy", "flagged")
        print(f"| {which} | " + " | ".join(str(counts[which, name]) for name in names) + " |")
    print(f"\n| verdict | run | k-NN better than random weights by over {SURE:.0%} | neither | worse |")
    print("|---|---|---|---|---|")
    for word in ("working", "stuck", "collapsed", "not enough evidence"):
        for healthy in (True, False):
            found = [counts[word, healthy, how] for how in ("better", "same", "worse")]
            if sum(found):
                print(f"| {word} | {'healthy' if healthy else 'broken'} | " + " | ".join(map(str, found)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-alarm")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    if not arguments.table:
        torch.set_num_threads(1)
        arguments.work.mkdir(parents=True, exist_ok=True)
        os.environ["SELFSIGHT_CACHE"] = str(arguments.work / "cache")
        sets: dict[str, tuple[Canvases, np.ndarray]] = {}
        for number, case in sorted(enumerate(HEALTHY + BROKEN), key=lambda pair: pair[0] % len(HEALTHY)):
            done = any((row["case"], row.get("round", 0)) == (case.name, arguments.round) for row in rows)
            if done or arguments.only not in case.name:
                continue
            if case.data not in sets:
                sets[case.data] = load(case.data, arguments.work)
            rows.append(measure(number, case, arguments.round, *sets[case.data]))
            with RESULTS.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{rows[-1]['seconds']:5.1f} s  {case.name}: {rows[-1]['random']:.3f} → {rows[-1]['knn']:.3f}",
                  flush=True)  # fmt: skip
    table(rows)


if __name__ == "__main__":
    main()
