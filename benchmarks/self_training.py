"""What self-training adds at four labels a class, and whether it knows how many of its guesses are right.

    python benchmarks/self_training.py                     # 10 draws of two sets, and with 30 % wrong labels
    python benchmarks/self_training.py --sets wbc --draws 3            # halves of site 1, classes 1 to 4
    python benchmarks/self_training.py --table

Frozen features of package:efficientnet_lite0; labels are drawn from the training images, all others of them are
unlabelled. A row a draw in results/self_training.jsonl: accuracy on the test images of the head without guesses and
with them, the share of the guesses that are right, and the 90 % interval of the estimate of it. What has its row is not
run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from label_curves import sides as wbc_sides
from speedrun import HERE, data_folder

from selfsight.data.canvases import measure_format
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.features import pooled_labelled
from selfsight.encoders.weights import load
from selfsight.heads.classify import Learnt, Wish, learn
from selfsight.heads.fits import scored
from selfsight.heads.self_training import self_trained

RESULTS = HERE / "results" / "self_training.jsonl"
WORK = Path(tempfile.gettempdir()) / "selfsight-self-training"
MOST = 6_000  # images of a side
STOCK, SHOTS, WRONG = "package:efficientnet_lite0", 4, 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="steel,things")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    os.environ.setdefault("SELFSIGHT_CACHE", str(WORK / "cache"))
    for name in () if given.table else given.sets.split(","):
        sides = None
        for wrong in (0.0, WRONG):
            for draw in range(given.draws):
                about = {"set": name, "shots": SHOTS, "wrong": wrong, "draw": draw}
                if any(about.items() <= row.items() for row in read_rows()):
                    continue
                sides = sides or [side_of(place) for place in places(name)]
                row = about | measure(sides, wrong, draw)
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    table(read_rows())


def places(name: str) -> tuple[Path, Path]:
    """What to learn from and what to test on."""
    if name == "wbc":
        return wbc_sides(name)
    folder = data_folder(name, WORK)
    return folder / "train", folder / "test"


def side_of(folder: Path) -> tuple[Labels, np.ndarray]:
    items = open_source(str(folder))
    encoder, every = load(STOCK, measure_format(items)), Labels.of(items).labelled()
    some = np.sort(np.random.default_rng(0).permutation(len(every))[:MOST])
    labels, features, _ = pooled_labelled(encoder, items, every.take(some))
    return labels, features


def measure(sides: list[tuple[Labels, np.ndarray]], wrong: float, draw: int) -> dict[str, Any]:
    """What is in a row beside its name."""
    (every, features), test = sides
    rng, numbers, count = np.random.default_rng(draw), every.numbers(every.classes), len(every.classes)
    some = np.sort(np.concatenate([rng.choice(np.flatnonzero(numbers == c), SHOTS, replace=False)
                                   for c in range(count)]))  # fmt: skip
    given = numbers[some].copy()
    spoilt = rng.choice(len(some), round(wrong * len(some)), replace=False)
    given[spoilt] = (given[spoilt] + rng.integers(1, count, len(spoilt))) % count
    rest = np.setdiff1d(np.arange(len(numbers)), some)
    labels = replace(every.take(some), values=tuple(every.classes[n] for n in given))
    pool = replace(every.take(rest), values=(None,) * len(rest))
    began, wish = time.monotonic(), Wish(seed=draw)
    plain = learn(labels, features[some], wish)
    new, done, rows = self_trained(plain, labels, features[some], pool, features[rest], wish)
    truth = dict(zip(every.ids, every.values, strict=True))
    pairs = [] if rows is None else zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True)
    right = [truth[item] == label for item, label in pairs]
    return {
        "plain": accuracy(plain, *test), "self_trained": accuracy(new, *test), "method": new.method, "kept": done.kept,
        "guessed": len(right), "unlabelled": len(rest), "right": round(float(np.mean(right)), 4) if right else None,
        "precision": [None if v is None else round(v, 4) for v in (done.precision.value, done.precision.low,
                                                                   done.precision.high)],
        "rounds": [{"by": r.by, "precision": r.precision.value, "right": round(r.right, 4), "taken": r.taken}
                   for r in done.rounds],
        "why": done.why, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def accuracy(learnt: Learnt, labels: Labels, features: np.ndarray) -> float:
    said = np.array(learnt.targets.classes)[scored(learnt.scorer, features).argmax(1)]
    return round(float((said == np.array(labels.values)).mean()), 4)


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(rows: list[dict[str, Any]]) -> None:
    for name, wrong in dict.fromkeys((row["set"], row["wrong"]) for row in rows):
        own = [row for row in rows if (row["set"], row["wrong"]) == (name, wrong)]
        gains = [100 * (row["self_trained"] - row["plain"]) for row in own]
        kept = [row for row in own if row["kept"]]
        holds = sum(row["precision"][1] <= row["right"] <= row["precision"][2] for row in kept)
        share = statistics.mean(row["right"] for row in kept) if kept else float("nan")
        before, after = (100 * statistics.mean(row[side] for row in own) for side in ("plain", "self_trained"))
        print(
            f"{name:8} {100 * wrong:3.0f} % wrong  {len(own):2} draws: {before:.1f} -> {after:.1f} % ("
            f"{statistics.mean(gains):+.1f}, "
            f"{min(gains):+.1f} to {max(gains):+.1f}); kept {len(kept)}, guesses right {100 * share:.1f} %, "
            f"interval holds {holds} of {len(kept)}; {statistics.mean(row['seconds'] for row in own):.0f} s a draw"
        )


if __name__ == "__main__":
    main()
