"""What it is worth to choose the items to label: `select` beside random items, at 1, 2 and 5 labels a class.

    python benchmarks/selection.py                        # four sets, 10 draws
    python benchmarks/selection.py --sets steel --draws 3
    python benchmarks/selection.py --table

A draw is a random 80 % of the training images, of which as many are chosen as k a class make, by each method.
`select` is what the verb does: a cover first, then one that looks more at what a classifier of the labels doubts. A
linear classifier of the frozen features of package:efficientnet_lite0, the same for every method, is tested on the test
images. A row a draw in results/selection.jsonl: accuracy, and how many classes got a label. What has its row is not run
again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from speedrun import HERE, data_folder

from selfsight.curation.selection import METHODS, Pool, choose
from selfsight.data.canvases import measure_format
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.features import pooled_labelled
from selfsight.encoders.weights import load
from selfsight.probing.linear import FEW_SHOT_STRENGTH, fit_linear
from selfsight.probing.neighbours import neighbour_graph

RESULTS = HERE / "results" / "selection.jsonl"
WORK = Path(tempfile.gettempdir()) / "selfsight-selection"
STOCK, SHOTS, SHARE = "package:efficientnet_lite0", (1, 2, 5), 0.8
MOST = 6_000  # training and test images of a set, spread over it
WAYS = ("random", "select", "typical", "cover")


class Side(NamedTuple):
    """Images of a set: features [N, D] of unit length, class numbers [N], and how many classes there are."""

    features: np.ndarray
    labels: np.ndarray
    classes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="steel,things,xray,cifar10")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    os.environ.setdefault("SELFSIGHT_CACHE", str(WORK / "cache"))
    for name in () if given.table else given.sets.split(","):
        train = test = None
        for draw in range(given.draws):
            if any(row["set"] == name and row["draw"] == draw for row in read_rows()):
                continue
            if train is None or test is None:
                train, test = (side_of(data_folder(name, WORK) / side) for side in ("train", "test"))
            row = {"set": name, "draw": draw} | measure(train, test, draw)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print_table()


def side_of(folder: Path) -> Side:
    items = open_source(str(folder))
    labels = Labels.of(items).labelled(2)
    few = np.random.default_rng(0).permutation(len(labels))[:MOST]
    labels, features, _ = pooled_labelled(load(STOCK, measure_format(items)), items, labels.take(np.sort(few)))
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    return Side(units.astype(np.float32), labels.numbers(labels.classes), len(labels.classes))


def measure(train: Side, test: Side, draw: int) -> dict[str, Any]:
    """{way: {k: [accuracy, classes with a label]}} of one draw."""
    drawn = np.random.default_rng(draw).permutation(len(train.labels))[: int(SHARE * len(train.labels))]
    features, truth = train.features[drawn], train.labels[drawn]
    graph = neighbour_graph(features)
    found: dict[str, Any] = {}
    for way in WAYS:
        chosen = np.empty(0, np.int64)
        found[way] = {}
        for shots in SHOTS:
            budget = shots * train.classes - len(chosen)
            known = np.full(len(truth), -1)
            known[chosen] = truth[chosen]
            pool = Pool(features, graph, np.arange(len(truth)), known)
            if way == "random":
                more = np.random.default_rng(100 + draw).permutation(len(truth))[: shots * train.classes]
                more = more[len(chosen) :]
            else:
                more, _ = choose(pool, budget, way if way in METHODS else None, draw)  # type: ignore[arg-type]
            chosen = np.concatenate([chosen, more])
            found[way][shots] = scored(features[chosen], truth[chosen], test)
    return found


def scored(features: np.ndarray, labels: np.ndarray, test: Side) -> list[float]:
    """[accuracy on the test images, share of the classes that have a label]."""
    seen = len(np.unique(labels)) / test.classes
    if seen * test.classes < 2:
        return [float((test.labels == labels[0]).mean()), seen]
    said = fit_linear(features, labels, test.classes, FEW_SHOT_STRENGTH).scores(test.features).argmax(1)
    return [float((said == test.labels).mean()), seen]


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def print_table() -> None:
    print(
        "Accuracy in %, and in brackets the share of classes that got a label; then the gain over random, with its 95 %"
    )
    print("interval over the draws.")
    for name in dict.fromkeys(row["set"] for row in read_rows()):
        rows = [row for row in read_rows() if row["set"] == name]
        print(f"\n{name}, {len(rows)} draws")
        for shots in map(str, SHOTS):
            for way in WAYS:
                values = [row[way][shots][0] for row in rows]
                gains = [row[way][shots][0] - row["random"][shots][0] for row in rows]
                spread = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
                share = statistics.mean(row[way][shots][1] for row in rows)
                gain = f"{100 * statistics.mean(gains):+5.1f} ± {226 * spread:.1f}" if way != "random" else ""
                print(f"  {shots} a class  {way:8} {100 * statistics.mean(values):5.1f} ({100 * share:3.0f}) {gain}")


if __name__ == "__main__":
    main()
