"""Whether an inspection finds defects, and whether its promised rates of false alarms hold, on magnetic tiles.

    python benchmarks/inspection.py figures memory 224     # one way to look: trained on half of the good tiles
    python benchmarks/inspection.py promises               # 20 random halves of the good tiles, features computed once
    python benchmarks/inspection.py all                    # what is not in results/inspection.jsonl yet

`figures` tests on the other half of the good tiles and on all 392 with a defect of five kinds: AUROC of tiles and of
pixels, PRO, false alarms where 95 % of the defects are found, with bootstrap intervals; seconds a tile and the most
memory of the process. `promises` learns from a half and counts the alarms on the other, at 5 % and at 10 %, pooled over
20 halves. Nothing is chosen on the defects. A row a call in results/inspection.jsonl. Looks for the data in
SELFSIGHT_DATA or ../shared/data.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from selfsight.data.canvases import measure_format
from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.weights import encoder_of
from selfsight.heads.head import load_head, save_head
from selfsight.heads.inspect import FOLDS, Wish, held_out, learn, limits, p_values
from selfsight.heads.inspect_evaluation import evaluate_inspection
from selfsight.heads.inspect_head import InspectHead, about_of, items_of, state_of
from selfsight.heads.normality import Gaussians, Memories, judged
from selfsight.heads.parts import Parts, parts_of
from selfsight.heads.view import Seen, View
from selfsight.machine import environment

RESULTS = Path(__file__).parent / "results" / "inspection.jsonl"
DATA = Path(os.environ.get("SELFSIGHT_DATA", Path(__file__).parents[2] / "shared" / "data")) / "magnetic-tile"
GOOD = "free"
WAYS = (
    *(("figures", "memory", 224, "fit"), ("promises", "memory", 224, "fit"), ("figures", "gaussian", 224, "fit")),
    *(("promises", "gaussian", 224, "fit"), ("figures", "gaussian", 224, "squash"), ("figures", "memory", 448, "fit")),
)
SPLITS, RATES = 20, (0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("figures", "promises", "all"))
    parser.add_argument("method", nargs="?", default="memory")
    parser.add_argument("size", nargs="?", type=int, default=224)
    parser.add_argument("rule", nargs="?", default="fit")
    parser.add_argument("--model", default="package:efficientnet_lite0")
    given = parser.parse_args()
    torch.set_num_threads(1)
    items = open_source(str(DATA / "images"))
    todo = list(WAYS)
    done = {(row["what"], row["method"], row["size"], row["rule"], row["model"]) for row in rows()}
    if given.what != "all":
        todo, done = [(given.what, given.method, given.size, given.rule)], set()
    for what, method, size, rule in todo:
        if (what, method, size, rule, given.model) in done:
            continue
        row: dict[str, object] = {"what": what, "method": method, "size": size, "rule": rule, "model": given.model}
        began = time.monotonic()
        row |= (figures if what == "figures" else promises)(items, method, size, rule, given.model)
        machine = environment("cpu")
        row |= {"seconds": round(time.monotonic() - began), "machine": machine["processor"], "threads": 1}
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row, indent=1), flush=True)


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def figures(items: Collection, method: str, size: int, rule: Any, model: str) -> dict[str, object]:
    """Trained on half of the good tiles, tested on the others and on all defects."""
    labels = Labels.of(items)
    parts = parts_of(labels, (GOOD,))
    taught, tested = parts.good.hold_out(0.5)
    encoder = encoder_of(model, measure_format(items))
    began = time.monotonic()
    good_only = Parts(parts.good.take(taught), parts.defects.take([]), 0)
    learnt = learn(encoder, items, good_only, Wish(method=method, size=size, rule=rule))
    learning = time.monotonic() - began
    with tempfile.TemporaryDirectory() as folder:
        about = about_of(learnt, (GOOD,), 0.05, {}, None, [])
        save_head(Path(folder) / "head", about, state_of(learnt, None), learnt.view.encoder, items_of(learnt), {})
        head = load_head(Path(folder) / "head")
    assert isinstance(head, InspectHead)
    ids = {parts.good.ids[place] for place in tested} | set(parts.defects.ids)
    asked = labels.take([place for place, item in enumerate(labels.ids) if item in ids])
    began = time.monotonic()
    found = evaluate_inspection(head, items, asked, None, str(DATA / "masks"), False)
    each = (time.monotonic() - began) / found.items
    metrics = {name: [value.value, value.low, value.high] for name, value in found.metrics.items()}
    kinds = {kind: {name: value.value for name, value in some.items()} for kind, some in found.defects.items()}
    return {
        "good": len(taught), "tested": found.items, "metrics": metrics, "defects": kinds, "setting": learnt.setting,
        "seconds_learning": round(learning), "seconds_a_tile": round(each, 3),
        "megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip


def promises(items: Collection, method: str, size: int, rule: Any, model: str) -> dict[str, object]:
    """The share of new good tiles that are called a defect, pooled over splits."""
    good = parts_of(Labels.of(items), (GOOD,)).good
    view = View(encoder_of(model, measure_format(items)), size, rule, None)
    view.measure(items, good.rows)
    seen = Seen(view, items, good.rows, "Features")
    parts = dict(seen)
    alarms: dict[float, list[float]] = {rate: [] for rate in RATES}
    for split in range(SPLITS):
        taught, tested = good.hold_out(0.5, seed=split)
        folds = good.take(taught).folds(FOLDS, split)
        normal = Memories(FOLDS, len(taught), split) if method == "memory" else Gaussians(FOLDS, split, False)
        some = [(number, parts[place]) for number, place in enumerate(taught.tolist())]
        for number, part in some:
            normal.add(part, int(folds[number]), number)
        normal.done()
        held, peaks = held_out(normal, some, folds)
        scorer = normal.scorer()
        scores = np.array([judged(scorer, parts[place])[0] for place in tested.tolist()])
        for rate in RATES:
            promised, _ = limits(held, peaks, rate, [])
            alarms[rate].append(float((p_values(held, scores) <= promised).mean()))
        print(split, {rate: alarms[rate][-1] for rate in RATES}, flush=True)
    return {"splits": SPLITS, "good": len(good) // 2} | {
        f"alarms_at_{100 * rate:g}": {
            "pooled": float(np.mean(found)), "least": min(found), "most": max(found), "std": float(np.std(found)),
        }
        for rate, found in alarms.items()
    }  # fmt: skip


if __name__ == "__main__":
    main()
