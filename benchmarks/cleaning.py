"""Does cleaning pay? Labels flipped to the class that looks most alike, and heads on what `curate` leaves of them.

    python benchmarks/cleaning.py                         # steel and CIFAR-10, 30 % flips, 3 draws
    python benchmarks/cleaning.py --sets steel --rate 0.1
    python benchmarks/cleaning.py --table

Features are those of package:efficientnet_lite0 as it is, of at most --most training images; test images are all clean,
and used for nothing else. Two heads: the vote of the 10 nearest, and logistic regression. What they learn from: `clean`
labels; `flipped` ones; `auto`, those that `curate --auto 0.05` leaves, which changes labels; `estimated`, without as
many as `curate` thinks are wrong; `relabelled`, these with the label suggested; `known`, without as many as are wrong,
which says what the ranking alone could do; `chance`, without as many drawn by chance. A row a draw in
results/cleaning.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from curation import STOCK
from speedrun import HERE, data_folder

from selfsight.curation.automatic import sure
from selfsight.curation.label_errors import label_errors
from selfsight.data.canvases import measure_format
from selfsight.data.importers import open_source
from selfsight.data.spread import spread
from selfsight.encoders.features import pooled
from selfsight.encoders.weights import load
from selfsight.machine import environment
from selfsight.probing.linear import fit_linear, unit_rows

RESULTS = HERE / "results" / "cleaning.jsonl"
LEVEL, NEAREST = 0.05, 10
WAYS = ("clean", "flipped", "auto", "estimated", "relabelled", "known", "chance")


def features_of(folder: Path, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, D] of unit length, classes [N]) of images in folders that are called like their class."""
    items = open_source(str(folder))
    rows = items.usable.take(spread(len(items.usable), most))
    rows, features, _ = pooled(load(STOCK, measure_format(items)), items, rows)
    names = [Path(uri).parent.name for uri in rows["uri"].to_pylist()]
    return unit_rows(features).astype(np.float32), np.unique(names, return_inverse=True)[1]


def accuracies(units: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Of both heads on the test."""
    classes = int(max(labels.max(), truth.max())) + 1
    near = np.argsort(-(test @ units.T), axis=1)[:, :NEAREST]
    votes = np.stack([(labels[near] == kind).sum(1) for kind in range(classes)], 1)
    linear = fit_linear(units, labels, classes).scores(test).argmax(1)
    return {"knn": float((votes.argmax(1) == truth).mean()), "linear": float((linear == truth).mean())}


def measured(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], rate: float,
             draw: int) -> dict[str, Any]:  # fmt: skip
    """The row of a draw."""
    units, classes = train
    rng = np.random.default_rng(draw)
    means = unit_rows(np.stack([units[classes == kind].mean(0) for kind in range(int(classes.max()) + 1)]))
    alike = (means @ means.T - 2 * np.eye(len(means))).argmax(1)  # of each class, the one that looks most like it
    wrong = np.sort(rng.permutation(len(classes))[: round(rate * len(classes))])
    flipped = classes.copy()
    flipped[wrong] = alike[classes[wrong]]
    found = label_errors(units, flipped, [str(kind) for kind in range(len(means))])
    order, likely = found.numbers, np.array([int(one) for one in found.suggested or ()])
    changed = {"auto": sure(found, LEVEL), "relabelled": np.arange(len(order)) < found.estimated}
    dropped = {
        "estimated": order[: found.estimated],
        "known": order[: len(wrong)],
        "chance": rng.permutation(len(classes))[: len(wrong)],
    }
    row: dict[str, Any] = {"wrong": len(wrong), "said": [found.estimated, found.low, found.high]}
    row["clean"], row["flipped"] = (accuracies(units, each, *test) for each in (classes, flipped))
    for way, these in changed.items():
        labels = flipped.copy()
        labels[order[these]] = likely[these]
        row[way] = accuracies(units, labels, *test)
        row[f"{way}_changed"] = [int(these.sum()), int(np.isin(order[these], wrong).sum())]
    for way, gone in dropped.items():
        kept = np.setdiff1d(np.arange(len(classes)), gone)
        row[way] = accuracies(units[kept], flipped[kept], *test)
        row[f"{way}_dropped"] = [len(gone), int(np.isin(gone, wrong).sum())]
    return row


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> None:
    """Mean and spread of each way over draws, and how much of the accuracy that is lost comes back."""
    every = rows()
    for name, rate in sorted({(row["set"], row["rate"]) for row in every}):
        some = [row for row in every if (row["set"], row["rate"]) == (name, rate)]
        said = ", ".join("{} [{}, {}]".format(*row["said"]) for row in some)
        print(f"{name}, {rate:.0%} wrong: {some[0]['wrong']}; said: {said}")
        for head in ("knn", "linear"):
            values = {way: np.array([row[way][head] for row in some]) for way in WAYS}
            lost = values["clean"] - values["flipped"]
            print(f"  {head:7} lost {100 * lost.mean():.1f} ± {100 * lost.std(ddof=len(lost) > 1):.1f} points")
            for way in WAYS:
                back = (values[way] - values["flipped"]).mean() / lost.mean()
                print(f"    {way:11} {100 * values[way].mean():.1f} ± {100 * values[way].std():.1f} %, back {back:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="steel,cifar10")
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--most", type=int, default=2000, help="training images of a set, and test images")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    work = Path(tempfile.gettempdir()) / "selfsight-cleaning"
    os.environ.setdefault("SELFSIGHT_CACHE", str(work / "cache"))
    for name in () if given.table else given.sets.split(","):
        keys = [{"set": name, "rate": given.rate, "draw": draw, "most": given.most} for draw in range(given.draws)]
        keys = [key for key in keys if not any(key.items() <= row.items() for row in rows())]
        if keys:
            folder = data_folder(name, work)
            train, test = (features_of(folder / side, given.most) for side in ("train", "test"))
        for key in keys:
            row = key | measured(train, test, given.rate, key["draw"]) | {"machine": environment("cpu")}
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
    table()


if __name__ == "__main__":
    main()
