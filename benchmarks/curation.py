"""How well `curate` finds faults of known truth, beside others: near duplicates, off-topic images, wrong labels.

    python benchmarks/curation.py                                  # all sets, 5 %, 2 draws
    python benchmarks/curation.py --sets things --rates 0.01,0.1 --draws 5
    python benchmarks/curation.py --model runs/mine --arm trained --sets steel
    python benchmarks/curation.py --table
    python -m venv own && own/bin/pip install "cleanlab>=2.9" cleanvision      # for the rows of these two

A draw is a set with all kinds of faults in it at once, each at the rate: copies that are cropped, flipped, turned,
compressed, brightened or resized, one to three of these; images of another set; wrong labels, half of any class, half
of the class that looks most alike. Choices were made on `things` and `cifar10-train`; the other sets were looked at
only in this table. Pairs of two images of the set itself are left out of near duplicates, as the sets hold some that
nobody knows of; images of another set are left out of wrong labels.

ours: the functions of `curate`; pairs that it does not look at come last, by distance. random: the same, with random
weights. selfclean: its published scores, written from their formulas: the distance of a pair, where an item sits in the
tree of single linkage (small and late branches first), the ratio of squared distances to the nearest of its own class
and of others. cleanlab: out-of-sample probabilities of logistic regression, distances to neighbours. cleanvision: its
sets of duplicates by hashes, its scores of pixels. A row an arm and draw in results/curation.jsonl; what has its row is
not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from curation_sets import SETS, Item, make, pictures_of
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import average_precision_score, roc_auc_score
from speedrun import HERE

from selfsight.curation.copies import groups_of, near_duplicates
from selfsight.curation.label_errors import label_errors
from selfsight.curation.off_topic import off_topic
from selfsight.data.canvases import measure_format
from selfsight.data.importers import open_source
from selfsight.encoders.features import pooled
from selfsight.encoders.store import random_like
from selfsight.encoders.weights import load
from selfsight.probing.linear import unit_rows
from selfsight.probing.neighbours import neighbour_graph

RESULTS = HERE / "results" / "curation.jsonl"
STOCK = "package:efficientnet_lite0"
TASKS = ("near_duplicates", "off_topic", "label_errors")
SHARES = (0.01, 0.05, 0.15)  # of the items, that are reviewed
ARMS = ("ours", "random", "selfclean", "cleanlab", "cleanvision")


class Scores:
    """What an arm says: a score of each pair [M] of `places` [M, 2], of each item [N] to be off-topic, and to have a
    wrong label. None where it says nothing. found: (estimated, low, high) of each task."""

    def __init__(self) -> None:
        self.pairs: tuple[np.ndarray, np.ndarray] | None = None
        self.off: np.ndarray | None = None
        self.wrong: np.ndarray | None = None
        self.found: dict[str, list[int]] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--rates", default="0.05")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--most", type=int, default=2000, help="images of a set")
    parser.add_argument("--model", default=STOCK)
    parser.add_argument("--arm", default="ours", help="name of the rows of --model")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--own", type=Path, help="python of the environment with cleanlab and cleanvision")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-curation")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SELFSIGHT_CACHE", str(given.work / "cache"))
    arms = [given.arm if arm == "ours" else arm for arm in given.arms.split(",")]
    every = [(float(rate), draw, name, arm) for rate in given.rates.split(",") for draw in range(given.draws)
             for name in given.sets.split(",") for arm in arms]  # fmt: skip
    for rate, draw, name, arm in [] if given.table else every:
        about = {"set": name, "rate": rate, "draw": draw, "most": given.most, "arm": arm}
        if any(about.items() <= row.items() for row in read_rows()):
            continue
        if arm in ("cleanlab", "cleanvision") and given.own is None:
            print(f"{arm} is skipped: give the python of its environment by --own")
            continue
        folder, items = make(name, rate, draw, given.most, given.work)
        began = time.monotonic()
        said = scores_of(arm, given.model, folder, items, given.own)
        row = about | {"items": len(items), "seconds": round(time.monotonic() - began)} | judged(said, items)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print_table(read_rows())


def scores_of(arm: str, model: str, folder: Path, items: list[Item], own: Path | None) -> Scores:
    if arm == "cleanvision":
        return of_cleanvision(folder, items, own)
    units = features_of("random" if arm == "random" else model, folder, items)
    labels = sorted({item.label for item in items})
    classes = np.array([labels.index(item.label) for item in items])
    if arm == "selfclean":
        return of_selfclean(units, classes)
    if arm == "cleanlab":
        return of_cleanlab(units, classes, own)
    return of_ours(units, classes, labels, pictures_of(folder, items))


def features_of(model: str, folder: Path, items: list[Item]) -> np.ndarray:
    """[N, D] of unit length; kept beside the images."""
    kept = folder.parent / f"features-{''.join(c if c.isalnum() else '-' for c in model)}.npy"
    if not kept.exists():
        collection = open_source(str(folder))
        encoder = load(STOCK if model == "random" else model, measure_format(collection))
        rows, features, _ = pooled(random_like(encoder) if model == "random" else encoder, collection)
        names = [Path(uri).name for uri in rows["uri"].to_pylist()]
        np.save(kept, features[[names.index(item.name) for item in items]])
    return unit_rows(np.load(kept))


def of_ours(units: np.ndarray, classes: np.ndarray, labels: list[str], pictures: np.ndarray) -> Scores:
    said = Scores()
    pairs = near_duplicates(units, neighbour_graph(units), lambda numbers: pictures[numbers])
    off = off_topic(units)
    groups = groups_of(pairs.numbers[: pairs.estimated], len(units))
    wrong = label_errors(units, classes, labels, groups)
    one, other = np.triu_indices(len(units), 1)
    rank = np.full((len(units), len(units)), np.inf)
    rank[pairs.numbers[:, 0], pairs.numbers[:, 1]] = np.arange(len(pairs.numbers))
    last = np.lexsort((-(units @ units.T)[one, other], rank[one, other]))
    said.pairs = np.stack([one, other], 1)[last], -np.arange(len(one), dtype=float)
    said.off, said.wrong = np.zeros(len(units)), np.zeros(len(units))
    said.off[off.numbers], said.wrong[wrong.numbers] = off.score, wrong.score
    said.found = {one.kind: [one.estimated, one.low, one.high] for one in (pairs, off, wrong)}
    return said


def of_selfclean(units: np.ndarray, classes: np.ndarray) -> Scores:
    said, count = Scores(), len(units)
    far = np.maximum(1.0 - units @ units.T, 0.0).astype(np.float64)
    np.fill_diagonal(far, 0.0)
    every = np.stack(np.triu_indices(count, 1), 1)
    said.pairs = every, -far[every[:, 0], every[:, 1]]
    tree = linkage(squareform((far + far.T) / 2, checks=False), "single")
    sizes, heights = np.append(np.ones(count), tree[:, 3]), np.append(np.zeros(count), tree[:, 2])
    late = np.zeros(2 * count - 1)  # the sum, over the branches an item is in, of how long and how small they are
    for node in range(len(tree) - 1, -1, -1):
        for branch in tree[node, :2].astype(int):
            lasts = heights[count + node] - heights[branch]
            late[branch] = late[count + node] + lasts * (1.0 - sizes[branch] / count)
    said.off = late[:count]
    np.fill_diagonal(far, np.inf)
    own = classes[:, None] == classes
    same, other = np.where(own, far, np.inf).min(1) ** 2, np.where(own, np.inf, far).min(1) ** 2
    said.wrong = np.where(np.isinf(same), 1.0, same / np.maximum(same + other, 1e-12))
    return said


def of_cleanlab(units: np.ndarray, classes: np.ndarray, own: Path | None) -> Scores:
    """Its scores, of the out-of-sample probabilities of scikit-learn's logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    _, numbers = np.unique(classes, return_inverse=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = LogisticRegression(C=10.0, max_iter=300)
    chances = cross_val_predict(model, units, numbers, cv=folds, method="predict_proba")
    script = """
import sys, numpy as np
from cleanlab.rank import get_label_quality_scores
from cleanlab.outlier import OutOfDistribution
given = np.load(sys.argv[1])
wrong = get_label_quality_scores(given["numbers"], given["chances"], method="normalized_margin")
off = OutOfDistribution().fit_score(features=given["units"], verbose=False)
np.savez(sys.argv[2], wrong=-wrong, off=-off)
"""
    said = Scores()
    with tempfile.TemporaryDirectory() as place:
        np.savez(f"{place}/in.npz", units=units, chances=chances, numbers=numbers)
        subprocess.run([str(own), "-c", script, f"{place}/in.npz", f"{place}/out.npz"], check=True)
        found = np.load(f"{place}/out.npz")
        said.wrong, said.off = found["wrong"], found["off"]
    return said


def of_cleanvision(folder: Path, items: list[Item], own: Path | None) -> Scores:
    """Pairs within its sets of near and exact duplicates; off-topic by the worst of its other scores."""
    script = """
import json, sys
from pathlib import Path
from cleanvision import Imagelab
lab = Imagelab(data_path=sys.argv[1])
lab.find_issues(n_jobs=1)
sets = [s for kind in ("exact_duplicates", "near_duplicates") for s in lab.info.get(kind, {}).get("sets", [])]
scores = lab.issues[[c for c in lab.issues if c.endswith("_score") and "duplicates" not in c]].min(axis=1)
said = {"sets": [[Path(p).name for p in s] for s in sets], "off": {Path(p).name: float(v) for p, v in scores.items()}}
Path(sys.argv[2]).write_text(json.dumps(said))
"""
    said, place = Scores(), {item.name: number for number, item in enumerate(items)}
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([str(own), "-c", script, str(folder), f"{out}/said.json"], check=True, capture_output=True)
        found = json.loads(Path(f"{out}/said.json").read_text())
    pairs = {tuple(sorted((place[a], place[b]))) for one in found["sets"] for a in one for b in one if a < b}
    said.pairs = np.array(sorted(pairs), np.int64).reshape(-1, 2), np.ones(len(pairs))
    said.off = np.array([-found["off"][item.name] for item in items])
    return said


def judged(said: Scores, items: list[Item]) -> dict[str, Any]:
    """{task: {auroc, ap, prevalence, found: shares, count}}."""
    place = {item.name: number for number, item in enumerate(items)}
    strange = np.array([not item.truth for item in items])
    row: dict[str, Any] = {}
    if said.pairs is not None:
        row["near_duplicates"] = of_pairs(*said.pairs, items, place)
    if said.off is not None:
        row["off_topic"] = figures(strange, said.off, len(items))
    if said.wrong is not None:
        wrong = np.array([bool(item.flip) for item in items])[~strange]
        row["label_errors"] = figures(wrong, said.wrong[~strange], len(items))
    for task, count in said.found.items():
        row[task]["estimated"] = count
    return row


def of_pairs(pairs: np.ndarray, score: np.ndarray, items: list[Item], place: dict[str, int]) -> dict[str, Any]:
    """Of all pairs but those of two images of the set itself; those that are not ranked share the last place."""
    count = len(items)
    made = np.array([bool(item.original) or not item.truth for item in items])
    truth = np.zeros((count, count), bool)
    for number, item in enumerate(items):
        if item.original:
            truth[[number, place[item.original]], [place[item.original], number]] = True
    ranked = np.full((count, count), score.min(initial=0.0) - 1.0)
    ranked[pairs[:, 0], pairs[:, 1]] = ranked[pairs[:, 1], pairs[:, 0]] = score
    one, other = np.triu_indices(count, 1)
    asked = made[one] | made[other]
    return figures(truth[one, other][asked], ranked[one, other][asked], count)


def figures(truth: np.ndarray, score: np.ndarray, items: int) -> dict[str, Any]:
    order = np.argsort(-score, kind="stable")
    found = [round(float(truth[order[: int(share * items)]].sum() / truth.sum()), 4) for share in SHARES]
    return {
        "auroc": round(float(roc_auc_score(truth, score)), 4),
        "ap": round(float(average_precision_score(truth, score)), 4),
        "faults": int(truth.sum()), "prevalence": round(float(truth.mean()), 6), "found": found,
    }  # fmt: skip


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def print_table(rows: list[dict[str, Any]]) -> None:
    """Mean over draws of each set, and the mean over sets."""
    for rate in sorted({row["rate"] for row in rows}):
        for task in TASKS:
            print(f"\n{task}, {100 * rate:g} %: AUROC / average precision, and found in the first 1, 5, 15 % reviewed")
            for arm in dict.fromkeys(row["arm"] for row in rows):
                cells = {}
                for name in SETS:
                    few = [row[task] for row in rows
                           if (row["arm"], row["set"], row["rate"]) == (arm, name, rate) and task in row]  # fmt: skip
                    if few:
                        cells[name] = [mean(few, lambda one: one["auroc"]), mean(few, lambda one: one["ap"]),
                                       *(mean(few, lambda one, at=at: one["found"][at]) for at in range(3))]  # type: ignore[misc]  # fmt: skip
                if cells:
                    cells["mean"] = [statistics.mean(cell[at] for cell in cells.values()) for at in range(5)]
                    said = "  ".join(f"{name} {cell[0]:.3f}/{cell[1]:.3f}" for name, cell in cells.items())
                    first = " ".join(f"{100 * share:.0f}" for share in cells["mean"][2:])
                    print(f"  {arm:12} {said}  ({first} %)")


def mean(rows: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float]) -> float:
    return statistics.mean(figure(row) for row in rows)


if __name__ == "__main__":
    main()
