"""Detection with few boxes: AP50, AP and counts with 5, 30 and all boxes of each class, beside controls.

    python benchmarks/detection.py                                     # both sets, three draws of 5 and 30 boxes
    python benchmarks/detection.py --sets bccd --counts 5 --draws 1 --arms imagenet,random
    python benchmarks/detection.py --model runs/blood/encoder          # adds the arm own, an encoder of your own
    python benchmarks/detection.py --table

`bccd` (red and white cells, platelets): learnt from its trainval split, tested on its test split. `neu` (six defects of
steel): its training half and its test half. Whole pictures are drawn until each class has so many boxes. The arms:
`imagenet`, package:efficientnet_lite0 as it is; `random`, the same with random weights whose batch norms have the
statistics of the data; `own`, the encoder of --model; `selftrained`, imagenet that guesses the objects of pictures that
were not drawn; `finetuned`, imagenet tuned by the boxes, and `scratch`, random weights that learn everything from them,
for 3 minutes each, after what is learnt with the encoder as it is; `retinanet`, torchvision's RetinaNet on
efficientnet_lite0 pretrained alike, trained as a whole with all boxes for as many seconds of CPU as `imagenet` took,
and a minute at least. A row a run in results/detection.jsonl; what has its row is not run again.
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
import pyarrow as pa
import torch
from scipy import stats
from speedrun import HERE

from selfsight.data.boxed import Boxed
from selfsight.data.canvases import measure_format
from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.statistics import measure_batch_norm, some_inputs
from selfsight.encoders.store import random_like
from selfsight.encoders.weights import load
from selfsight.heads.detect import Wish, learn
from selfsight.heads.detect_evaluation import evaluate_detection
from selfsight.heads.detect_head import DetectHead, about_of, items_of
from selfsight.heads.detect_metrics import Precisions
from selfsight.heads.detect_objects import Found
from selfsight.training.recipe import Budget

RESULTS = HERE / "results" / "detection.jsonl"
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data"))
STOCK = "package:efficientnet_lite0"
ARMS = ("imagenet", "random", "own", "selftrained", "finetuned", "scratch", "retinanet")
CONTROLS = ("random", "scratch")  # of which 30 boxes are not asked
MINUTES = 3.0
ALL = 0  # as a count: every box there is
LEAST_SECONDS, BATCH, RATE = 60.0, 2, 1e-4


def sides_of(name: str) -> tuple[Collection, Boxed, Boxed]:
    """(the items, the boxes that are learnt from, those that are tested)."""
    items = open_source(str(DATA / name))
    boxed = Boxed.of(
        Labels.of(items, path=str(DATA / name / ("Annotations" if name == "bccd" else "boxes")), kind="boxes")
    )
    uris = boxed.labels.rows["uri"].to_pylist()
    if name == "bccd":
        tested = set((DATA / name / "ImageSets" / "Main" / "test.txt").read_text().split())
        is_test = [Path(uri).stem in tested for uri in uris]
    else:
        is_test = [uri.startswith("test/") for uri in uris]
    places = np.array(is_test)
    return items, boxed.take(np.flatnonzero(~places)), boxed.take(np.flatnonzero(places))


def encoder_for(arm: str, items: Collection, model: str | None) -> Encoder:
    encoder = load(STOCK if model is None or arm != "own" else model, measure_format(items))
    if arm in CONTROLS:
        encoder = random_like(encoder)
        measure_batch_norm(encoder, some_inputs(items, encoder.geometry))
    return encoder


def measured(arm: str, name: str, count: int, draw: int, model: str | None) -> dict[str, Any]:
    """The row of a run."""
    items, train, test = sides_of(name)
    every = train
    train = train if count == ALL else train.shots(count, draw)
    start = time.process_time()
    wish = Wish(seed=draw)
    if arm in ("finetuned", "scratch"):
        wish = Wish("finetune", seed=draw, budget=Budget(minutes=MINUTES))
    pool = train.rest_of(every.labels) if arm == "selftrained" else None
    learnt = learn(encoder_for(arm, items, model), items, train, wish, pool)
    seconds = time.process_time() - start
    head = DetectHead(None, about_of(learnt, []), learnt.module(), items_of(learnt))
    found = evaluate_detection(head, items, test.with_names(train.names), None)
    row: dict[str, Any] = {"pictures": len(train), "seconds": round(seconds, 1), "method": learnt.method,
                           "tried": learnt.tried}  # fmt: skip
    row |= {key: one.value for key, one in found.metrics.items()}
    row["size"] = learnt.sight.encoder.geometry.size
    row["ap50_by_class"] = {key: one.value for key, one in found.classes.items()}
    row["inside"] = {key: one.inside.value if one.inside else None for key, one in found.counts.items()}
    row["false_alarms"] = {key: one.alarms.value if one.alarms else None for key, one in found.counts.items()}
    return row


def retinanet(name: str, draw: int, seconds: float) -> dict[str, Any]:
    """torchvision's RetinaNet on the same backbone, trained as a whole on all boxes."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import FeaturePyramidNetwork

    items, train, test = sides_of(name)
    encoder = load(STOCK, measure_format(items))
    used = [place for place, stride in enumerate(encoder.level_strides) if stride >= 8]

    class Backbone(torch.nn.Module):
        out_channels = 128

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.pyramid = FeaturePyramidNetwork([encoder.level_channels[place] for place in used], self.out_channels)

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            levels = self.encoder(images, levels=True).levels or []
            told: dict[str, torch.Tensor] = self.pyramid({str(i): levels[i] for i in used})
            return told

    torch.manual_seed(draw)
    anchors = AnchorGenerator(
        tuple((side, int(side * 1.26), int(side * 1.59)) for side in (24, 64, 128)), ((0.5, 1.0, 2.0),) * 3
    )
    mean, std = list(encoder.geometry.mean), list(encoder.geometry.std)
    net = RetinaNet(Backbone(), len(train.names), anchor_generator=anchors, min_size=336, max_size=448,
                    image_mean=mean, image_std=std)  # fmt: skip
    optimiser = torch.optim.AdamW(net.parameters(), RATE)
    rng, start = np.random.default_rng(draw), time.process_time()
    net.train()
    while time.process_time() - start < max(LEAST_SECONDS, seconds):
        some = rng.choice(len(train), BATCH, replace=False).tolist()
        truths = [train.at(place) for place in some]
        images = pixels_of(items, train, some, encoder)
        targets = [
            {"boxes": torch.tensor(t.boxes[~t.unsure]).float(), "labels": torch.tensor(t.kinds[~t.unsure])}
            for t in truths
        ]
        loss = sum(net(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    taken = time.process_time() - start
    net.eval()
    found = []
    with torch.inference_mode():
        for place in range(len(test)):
            told = net(pixels_of(items, test, [place], encoder))[0]
            found.append(Found(told["boxes"].double().numpy(), told["labels"].numpy(),
                               told["scores"].double().numpy()))  # fmt: skip
    precision = Precisions(found, [test.at(place) for place in range(len(test))], len(train.names), 300)
    values = precision.of(precision.every)
    by = dict(zip(train.names, values[0].tolist(), strict=True))
    return {"pictures": len(train), "seconds": round(taken, 1), "method": "retinanet", "ap": float(np.nanmean(values)),
            "ap50": float(np.nanmean(values[0])), "ap50_by_class": by}  # fmt: skip


def pixels_of(items: Collection, boxed: Boxed, places: list[int], encoder: Encoder) -> list[torch.Tensor]:
    """Pictures [C, H, W] in [0, 1], in the order of the places."""
    from selfsight.data.canvases import decoded

    rows = boxed.labels.rows.take(pa.array(places))
    found = {
        n: np.asarray(p) for n, p in decoded(items, rows, encoder.geometry.format, None, "Pictures", ahead=len(places))
    }
    unit = encoder.geometry.to_unit
    return [unit(torch.from_numpy(found[n].astype(np.float32))).permute(2, 0, 1) for n in range(len(places))]


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> None:
    """Mean and spread over draws, and how far `imagenet` is above each other arm of the same draws."""
    groups: dict[tuple[str, int, str], dict[int, dict[str, Any]]] = {}
    for row in rows():
        groups.setdefault((row["set"], row["count"], row["arm"]), {})[row["draw"]] = row
    for (name, count, arm), some in sorted(groups.items()):
        ap50, ap = (np.array([row[key] for row in some.values()]) for key in ("ap50", "ap"))
        text = f"{name} {count or 'all':>4} {arm:11} AP50 {ap50.mean():.3f} ± {ap50.std():.3f}  AP {ap.mean():.3f}"
        text += f"  {np.mean([row['seconds'] for row in some.values()]):.0f} s of CPU, {len(some)} draws"
        best = groups.get((name, count, "imagenet"), {})
        if arm != "imagenet" and (both := sorted(some.keys() & best.keys())):
            above = np.array([best[draw]["ap50"] - some[draw]["ap50"] for draw in both])
            text += f"; imagenet {100 * above.mean():+.1f} points"
            if len(above) > 1:
                reach = stats.t.ppf(0.975, len(above) - 1) * above.std(ddof=1) / len(above) ** 0.5
                text += f" [{100 * (above.mean() - reach):+.1f}, {100 * (above.mean() + reach):+.1f}]"
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="bccd,neu")
    parser.add_argument("--counts", default="5,30,0", help="boxes of each class; 0 is all")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--model", help="an encoder for the arm own")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("SELFSIGHT_CACHE", str(Path(tempfile.gettempdir()) / "selfsight-detection"))
    if given.table:
        return table()
    for name in given.sets.split(","):
        for count in map(int, given.counts.split(",")):
            for draw in range(1 if count == ALL else given.draws):
                for arm in given.arms.split(","):
                    if (arm == "own" and not given.model) or (arm in CONTROLS and count not in (5, ALL)):
                        continue
                    if (arm == "retinanet" and count != ALL) or (arm == "selftrained" and count == ALL):
                        continue
                    key = {"set": name, "count": count, "draw": draw, "arm": arm}
                    if any(key.items() <= row.items() for row in rows()):
                        continue
                    same = [r["seconds"] for r in rows() if (r["set"], r["count"], r["arm"]) == (name, ALL, "imagenet")]
                    own = (
                        retinanet(name, draw, same[0] if same else LEAST_SECONDS)
                        if arm == "retinanet"
                        else measured(arm, name, count, draw, given.model)
                    )
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(key | own) + "\n")
                    print(key | own, flush=True)
    return table()


if __name__ == "__main__":
    main()
