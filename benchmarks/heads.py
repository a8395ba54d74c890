"""Whether heads keep their word: calibration, coverage of prediction sets, and what many labels cost.

    python benchmarks/heads.py promises cifar10 --model runs/cifar10    # 500 labels, 20 re-splits of the test images
    python benchmarks/heads.py size                                     # 100,000 labels, 512-d features, made up

`promises` draws 500 of the test images as labels, learns a head from them and measures it on the others: calibration
error, and how many of the others' sets hold the truth, beside the band in which split conformal prediction must lie
(the central 95 % of a beta-binomial law for that many calibrating and tested items). 20 draws. A set is one of
speedrun.py.
One row a call in results/heads.jsonl. Looks for the data in SELFSIGHT_DATA or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import betabinom
from speedrun import FOLDERS, data_folder

from selfsight.data.canvases import measure_format
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.features import pooled_labelled
from selfsight.encoders.weights import encoder_of
from selfsight.heads.classify import Learnt, Wish, learn
from selfsight.heads.classify_voice import answers
from selfsight.heads.metrics import Answers, figures
from selfsight.heads.targets import Targets
from selfsight.machine import environment

RESULTS = Path(__file__).parent / "results" / "heads.jsonl"
LABELS, DRAWS, COVERAGE = 500, 20, 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("promises", "size"))
    parser.add_argument("set", choices=FOLDERS, nargs="?", default="cifar10")
    parser.add_argument("--model", default="package:efficientnet_lite0")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-speedrun")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    row = promises(given.set, given.model, given.work) if given.what == "promises" else size()
    machine = environment("cpu")
    row |= {"machine": machine["processor"], "cores": machine["cores"]}
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


def promises(name: str, model: str, work: Path) -> dict[str, object]:
    items = open_source(str(data_folder(name, work) / "test"))
    encoder = encoder_of(model, measure_format(items))
    labels, features, _ = pooled_labelled(encoder, items, Labels.of(items).labelled())
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"top1": [], "ece": [], "covered": [], "size": []}
    methods: list[str] = []
    for _ in range(DRAWS):
        order = rng.permutation(len(labels))
        taught, tested = np.sort(order[:LABELS]), np.sort(order[LABELS:])
        learnt = learn(labels.take(taught), features[taught], Wish(coverage=COVERAGE))
        said = spoken(learnt, features[taught], features[tested])
        targets = Targets.of(labels.take(tested), learnt.targets.classes)
        measured = figures(targets, said)
        assert said.sets is not None
        found["top1"].append(measured["top1"].value or 0.0)
        found["ece"].append(measured["ece"].value or 0.0)
        found["covered"].append(float((targets.values * said.sets).sum()))
        found["size"].append(float(said.sets.sum(1).mean()))
        methods.append(f"{learnt.method} {learnt.setting}".strip())
    rank = int(np.ceil((LABELS + 1) * COVERAGE))
    law = betabinom(len(tested), rank, LABELS + 1 - rank)
    low, high = (int(law.ppf(share)) for share in (0.025, 0.975))
    return {
        "what": "promises", "set": name, "encoder": encoder.digest, "labels": LABELS, "tested": len(tested),
        "draws": DRAWS, "methods": sorted(set(methods)),
        "top1": round(statistics.mean(found["top1"]), 4), "ece": round(statistics.mean(found["ece"]), 4),
        "ece_most": round(max(found["ece"]), 4),
        "coverage": round(statistics.mean(found["covered"]) / len(tested), 4),
        "band": [round(low / len(tested), 4), round(high / len(tested), 4)],
        "inside": sum(low <= one <= high for one in found["covered"]),
        "set_size": round(statistics.mean(found["size"]), 2),
    }  # fmt: skip


def spoken(learnt: Learnt, taught: np.ndarray, features: np.ndarray) -> Answers:
    """What a fitted head says of features."""
    import torch

    with torch.inference_mode():
        tensors = learnt.calibrate(learnt.task(taught)(torch.from_numpy(features)))
    found = {name: tensor.double().numpy() for name, tensor in tensors.items() if name != "novel"}
    return answers(learnt.targets.kind, learnt.targets.classes, found, learnt.decision, learnt.threshold)


def size(items: int = 100_000, dimensions: int = 512, classes: int = 10) -> dict[str, object]:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, classes, items)
    features = rng.normal(size=(items, dimensions)).astype(np.float32)
    features += 0.25 * rng.normal(size=(classes, dimensions)).astype(np.float32)[numbers]
    ids = pa.array([f"{i:08d}" for i in range(items)])
    labels = Labels("class", pa.table({"id": ids}), tuple(f"c{n}" for n in numbers), "made up")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began = time.monotonic()
    linear = learn(labels, features, Wish("linear"))
    linear_seconds = time.monotonic() - began
    began = time.monotonic()
    chosen = learn(labels, features, Wish())
    return {
        "what": "size", "items": items, "dimensions": dimensions, "linear_seconds": round(linear_seconds, 1),
        "chosen_seconds": round(time.monotonic() - began, 1), "method": chosen.method, "setting": linear.setting,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2), "before_gb": round(before, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
