"""Segmentation with few masks: mean intersection over union with 1, 5 and 20 masks, beside random weights and pixels.

    python benchmarks/segmentation.py                       # white blood cells, one draw
    python benchmarks/segmentation.py --draws 3 --counts 1,5,20,100
    python benchmarks/segmentation.py --table

Masks are drawn from one half of site 1 of `wbc`; the test is on pictures of the other half, and on those of site 2,
whose stain is another. The head is `train segment` at one input size (`--size`), all else chosen by its
cross-validation: package:efficientnet_lite0 as it is, with random weights, and the pixels themselves, averaged over
squares of 1 to 16 px.
A row a run in results/segmentation.jsonl; what has its row is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from speedrun import HERE
from torch import Tensor, nn

from selfsight.data.canvases import measure_format
from selfsight.data.collection import Collection
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.data.masks import Masks
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.statistics import measure_batch_norm, some_inputs
from selfsight.encoders.store import random_like
from selfsight.encoders.weights import load
from selfsight.heads.segment import Learnt, Wish, confusion, ious, learn, miou
from selfsight.heads.segment_maps import Whole

RESULTS = HERE / "results" / "segmentation.jsonl"
WORK = Path(tempfile.gettempdir()) / "selfsight-segmentation"
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data"))
STOCK = "package:efficientnet_lite0"
NAMES = ("background", "128", "255")
ARMS = ("imagenet", "random", "pixels")
TESTED = 40  # pictures of each site


class Pixels(nn.Module):
    """No network: its maps are the picture itself, averaged over squares."""

    SIDES = (1, 2, 4, 8, 16)
    num_classes, num_features, head_hidden_size = 0, 3, 3
    pretrained_cfg: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward_features(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 16)

    def forward_head(self, last: Tensor) -> Tensor:
        return last.mean((2, 3))

    def forward_intermediates(
        self, images: Tensor, indices: Any = None, norm: bool = False, intermediates_only: bool = False
    ) -> Any:
        maps = [images if side == 1 else F.avg_pool2d(images, side) for side in self.SIDES]
        return maps if intermediates_only else (maps[-1], maps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1,5,20")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    os.environ.setdefault("SELFSIGHT_CACHE", str(WORK / "cache"))
    sites = None
    for draw in range(0 if given.table else given.draws):
        for count in map(int, given.counts.split(",")):
            for arm in ARMS:
                about = {"set": "wbc", "arm": arm, "masks": count, "draw": draw, "size": given.size}
                if any(about.items() <= row.items() for row in read_rows()):
                    continue
                sites = sites or [site_of(name) for name in ("site1", "site2")]
                row = about | measure(sites, arm, count, draw, given.size)
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    table(read_rows())


def site_of(name: str) -> tuple[Collection, Masks]:
    items = open_source(str(DATA / "wbc" / name / "images"))
    masks = Masks.of(items, Labels.of(items, path=str(DATA / "wbc" / name / "masks"), kind="masks"))
    # In three masks of site 2 some pixels have other values, such as 2: they count as background.
    known = tuple({label: of for label, of in value.items() if label in NAMES} for value in masks.values)
    return items, replace(masks, values=known, names=NAMES)


def encoder_of(arm: str, items: Collection) -> Encoder:
    encoder = load(STOCK, measure_format(items))
    if arm == "pixels":
        return Encoder(Pixels(), encoder.geometry)
    if arm == "random":
        control = random_like(encoder)
        measure_batch_norm(control, some_inputs(items, encoder.geometry))
        return control
    return encoder


def measure(sites: list[tuple[Collection, Masks]], arm: str, count: int, draw: int, size: int) -> dict[str, Any]:
    """What is in a row beside its name."""
    (items, masks), (others, other_masks) = sites
    order = np.random.default_rng(0).permutation(len(masks))
    half = len(masks) // 2
    taught = np.sort(np.random.default_rng(1 + draw).permutation(order[:half])[:count])
    began = time.monotonic()
    learnt = learn(encoder_of(arm, items), items, masks.take(taught), Wish(size=size))
    seconds = time.monotonic() - began
    held = learnt.metrics.get("miou")
    row: dict[str, Any] = {"setting": str(learnt.setting), "lean": learnt.setting.lean, "seconds": round(seconds, 1)}
    row["held_out"] = None if held is None else [held.value, held.low, held.high]
    tests = {"site1": (items, masks.take(np.sort(order[half : half + TESTED])))}
    tests["site2"] = (others, other_masks.take(np.arange(min(TESTED, len(other_masks)))))
    for name, (where, some) in tests.items():
        found = tested(learnt, where, some)
        row[name] = miou(found)
        row[f"{name} classes"] = [round(value, 4) for value in ious(found).tolist()]
    return row


@torch.inference_mode()
def tested(learnt: Learnt, items: Collection, masks: Masks) -> np.ndarray:
    """[N, K, K] pixels by true class and answer."""
    found = []
    for scene in learnt.sight.scenes(items, masks, {}, "Testing"):
        told = []
        for piece in scene.pieces:
            scores = learnt.task([level[None] for level in piece.levels], piece.grey[None])
            told.append({name: value[0].numpy() for name, value in learnt.calibrate(scores).items()})
        mask = Whole(told, scene.placements, learnt.calibrate).mask
        found.append(confusion(masks.at(scene.place)[0], mask, len(masks.names)))
    return np.stack(found)


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(rows: list[dict[str, Any]]) -> None:
    print("| masks | encoder | mIoU, site 1 | mIoU, site 2 | seconds |\n|---|---|---|---|---|")
    for count, arm in sorted(
        {(row["masks"], row["arm"]) for row in rows}, key=lambda key: (key[0], ARMS.index(key[1]))
    ):
        some = [row for row in rows if (row["masks"], row["arm"]) == (count, arm)]
        sites = [np.array([row[name] for row in some]) for name in ("site1", "site2")]
        cells = [
            f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else "") for values in sites
        ]
        print(f"| {count} | {arm} | {' | '.join(cells)} | {np.mean([row['seconds'] for row in some]):.0f} |")


if __name__ == "__main__":
    main()
