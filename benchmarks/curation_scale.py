"""Time and memory of the rankings of `curate`, after embedding, from 10,000 to 1,000,000 items.

    python benchmarks/curation_scale.py                      # 10,000 and 60,000 items of 512 numbers
    python benchmarks/curation_scale.py --items 1000000      # needs the extra `search`; calm machine, 12 GB
    python benchmarks/curation_scale.py --table

Items are synthetic: 100 kinds, in clouds; 1 % have a near copy, whose features are a little off and whose small picture
is flipped; 1 % have a wrong label. recall: share of the pairs of copies among what the graph of neighbours offers, and
among what is called a copy after the pictures were compared. Each size runs in a process of its own. A row a size in
results/curation_scale.jsonl; what has its row is not run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
from speedrun import HERE

from selfsight.curation.copies import groups_of, near_duplicates
from selfsight.curation.label_errors import label_errors
from selfsight.curation.off_topic import off_topic
from selfsight.machine import usable_cores
from selfsight.probing.neighbours import EXACT, neighbour_graph

RESULTS = HERE / "results" / "curation_scale.jsonl"
KINDS, DIM, SHARE = 100, 512, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", default="10000,60000")
    parser.add_argument("--one", type=int, help="measure this size in this process")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    for items in [] if given.table else map(int, given.items.split(",")):
        if not any(row["items"] == items for row in read_rows()):
            said = subprocess.run([sys.executable, __file__, "--one", str(items)], check=True, stdout=subprocess.PIPE)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(said.stdout.decode().splitlines()[-1] + "\n")
    for row in read_rows():
        print(" ".join(f"{key} {value}" for key, value in row.items()))


def measure(items: int) -> dict[str, object]:
    """Seconds of each step, processor seconds of all, and the peak of memory."""
    rng = np.random.default_rng(0)
    copies = int(SHARE * items)
    means = rng.normal(size=(KINDS, DIM)).astype(np.float32)
    truth = rng.integers(0, KINDS, items)
    units = np.empty((items, DIM), np.float32)
    for part in np.array_split(np.arange(items), -(-items // 2**15)):
        units[part] = means[truth[part]] + rng.standard_normal((len(part), DIM), np.float32)
    original = rng.permutation(items - copies)[:copies]
    units[-copies:] = units[original] + 0.3 * rng.standard_normal((copies, DIM), np.float32)
    truth[-copies:] = truth[original]
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    said = truth.copy()
    wrong = rng.permutation(items)[:copies]
    said[wrong] = (said[wrong] + 1) % KINDS
    shown = np.arange(items)
    shown[-copies:] = original

    def pictures(numbers: np.ndarray) -> np.ndarray:
        return np.stack([picture(int(shown[n]), n >= items - copies) for n in numbers])

    row: dict[str, object] = {"items": items, "dim": DIM, "cores": usable_cores(), "exact": items <= EXACT}
    began, used = time.monotonic(), time.process_time()

    def lap(name: str) -> None:
        nonlocal began
        row[name] = round(time.monotonic() - began, 1)
        began = time.monotonic()

    graph = neighbour_graph(units)
    lap("graph")
    row["graph_recall"] = float((graph.index[-copies:] == original[:, None]).any(1).mean())
    pairs = near_duplicates(units, graph, pictures)
    lap("near_duplicates")
    true = {*zip(original.tolist(), range(items - copies, items), strict=True)}
    row["recall"] = len(true & {tuple(pair) for pair in pairs.numbers[: pairs.estimated].tolist()}) / copies
    off_topic(units)
    lap("off_topic")
    groups = groups_of(pairs.numbers[: pairs.estimated], items)
    found = label_errors(units, said, [str(kind) for kind in range(KINDS)], groups)
    lap("label_errors")
    row["wrong_found"] = float(np.isin(wrong, found.numbers[: found.estimated]).mean())
    row["processor"] = round(time.process_time() - used, 1)
    row["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def picture(number: int, flipped: bool) -> np.ndarray:
    """A small picture [1, 64, 64] of its own for each number: a sum of coarse and finer noise."""
    rng = np.random.default_rng(number)
    drawn = sum(
        np.kron(rng.random((side, side), np.float32), np.ones((64 // side,) * 2, np.float32)) for side in (8, 32)
    )
    return (127 * (drawn[:, ::-1] if flipped else drawn)).astype(np.uint8)[None]


def read_rows() -> list[dict[str, object]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


if __name__ == "__main__":
    main()
