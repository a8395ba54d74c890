"""Segmentation with few masks: mean intersection over union with 1, 5, 20 and all masks, beside controls.

    python benchmarks/segmentation.py                       # both sets, three draws of 1, 5 and 20 masks, one of all
    python benchmarks/segmentation.py --sets wbc --draws 1 --counts 1,5 --arms imagenet,pixels
    python benchmarks/segmentation.py --table

`wbc` (cytoplasm, nucleus): masks are drawn from one half of site 1; the test is on pictures of the other half, and on
those of site 2, whose stain is another. `magnetic-tile` (defect): masks are drawn from the tiles with a defect of the
training split of encoders.py; the test is on those of the rest.
The head is `train segment` at one input size (`--size`), all else chosen by its cross-validation: encoders.py's of ten
minutes from scratch and package:efficientnet_lite0 as it is, with random weights, and the pixels themselves, averaged
over squares of 1 to 16 px. `unet` is a U-Net from scratch (Ronneberger et al., MICCAI 2015) with 5 and all masks, for
as many seconds of CPU as the head on `imagenet` took, and a minute at least.
A row a run in results/segmentation.jsonl; what has its row is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from encoders import encoder as kept_encoder
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
from selfsight.heads.scenes import Scene, Sight
from selfsight.heads.segment import Wish, confusion, ious, learn, miou
from selfsight.heads.segment_maps import Whole
from selfsight.heads.segment_modules import Calibrate

RESULTS = HERE / "results" / "segmentation.jsonl"
WORK = Path(tempfile.gettempdir()) / "selfsight-segmentation"
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data"))
STOCK = "package:efficientnet_lite0"
NAMES = {"wbc": ("background", "128", "255"), "magnetic-tile": ("background", "1")}
ARMS = ("scratch", "imagenet", "random", "pixels", "unet")
TESTED = 80  # pictures of each test
ALL = 0  # as a count: every mask there is
UNET_COUNTS = (5, ALL)
CROP, BATCH, RATE, LEAST_SECONDS = 160, 8, 1e-3, 60.0


class Set(NamedTuple):
    """Pictures with masks. taught: places that masks are drawn from. tests: {name: (items, masks) that are tested}."""

    items: Collection
    masks: Masks
    taught: np.ndarray
    tests: dict[str, tuple[Collection, Masks]]


class Pixels(nn.Module):
    """No network: its maps are the picture itself, averaged over squares."""

    SIDES = (1, 2, 4, 8, 16)
    num_classes = 0
    pretrained_cfg: ClassVar[dict[str, Any]] = {}

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = channels
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


class UNet(nn.Module):
    """Images [B, C, H, W] to scores [B, K, H, W]; sides are multiples of 16."""

    def __init__(self, channels: int, classes: int, widths: tuple[int, ...] = (24, 48, 96, 192, 256)) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(twice, (channels, *widths[:-1]), widths))
        self.up = nn.ModuleList(
            twice(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )  # fmt: skip
        self.last = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            seen.append(x)
        for block, skip in zip(self.up, seen[-2::-1], strict=True):
            x = block(torch.cat([skip, F.interpolate(x, skip.shape[-2:], mode="bilinear")], 1))
        return torch.as_tensor(self.last(x))


def twice(before: int, after: int) -> nn.Sequential:
    def one(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]

    return nn.Sequential(*one(before), *one(after))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="wbc,magnetic-tile")
    parser.add_argument("--counts", default="5,1,20,all")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    os.environ.setdefault("SELFSIGHT_CACHE", str(WORK / "cache"))
    torch.set_num_threads(1)
    sets: dict[str, Set] = {}
    counts = [ALL if count == "all" else int(count) for count in given.counts.split(",")]
    for draw in range(0 if given.table else given.draws):
        for name, count, arm in product(given.sets.split(","), counts, given.arms.split(",")):
            about = {"set": name, "arm": arm, "masks": count or "all", "draw": draw, "size": given.size}
            done = any(about.items() <= row.items() for row in read_rows())
            if done or (count == ALL and draw) or (arm == "unet" and count not in UNET_COUNTS):
                continue
            if name not in sets:
                sets[name] = SETS[name]()
            row = about | measure(sets[name], about, count or len(sets[name].taught))
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    table(read_rows())


def wbc() -> Set:
    sites = []
    for name in ("site1", "site2"):
        items = open_source(str(DATA / "wbc" / name / "images"))
        sites.append((items, masks_of(items, DATA / "wbc" / name / "masks", NAMES["wbc"])))
    (items, masks), (others, other_masks) = sites
    order = np.random.default_rng(0).permutation(len(masks))
    half = len(masks) // 2
    tests = {"site1": (items, masks.take(np.sort(order[half : half + TESTED])))}
    tests["site2"] = (others, other_masks.take(np.arange(min(TESTED, len(other_masks)))))
    return Set(items, masks, order[:half], tests)


def magnetic() -> Set:
    items = open_source(str(DATA / "magnetic-tile" / "images"))
    masks = masks_of(items, DATA / "magnetic-tile" / "masks", NAMES["magnetic-tile"])
    uris = masks.labels.rows["uri"].to_pylist()
    trained = np.array([hashlib.sha256(uri.encode()).digest()[0] % 5 > 0 for uri in uris])
    test = np.random.default_rng(0).permutation(np.flatnonzero(~trained))[:TESTED]
    return Set(items, masks, np.flatnonzero(trained), {"tiles": (items, masks.take(np.sort(test)))})


SETS = {"wbc": wbc, "magnetic-tile": magnetic}


def masks_of(items: Collection, folder: Path, names: tuple[str, ...]) -> Masks:
    masks = Masks.of(items, Labels.of(items, path=str(folder), kind="masks"), objects=False)
    # In three masks of site 2 of wbc some pixels have other values, such as 2: they count as background.
    known = tuple({label: of for label, of in value.items() if label in names} for value in masks.values)
    return replace(masks, values=known, names=names)


def encoder_of(name: str, arm: str, items: Collection) -> Encoder:
    if arm == "scratch":
        return load(kept_encoder(name, "scratch")[0])
    encoder = load(STOCK, measure_format(items))
    if arm in ("pixels", "unet"):
        return Encoder(Pixels(encoder.geometry.channels), encoder.geometry)
    if arm == "random":
        control = random_like(encoder)
        measure_batch_norm(control, some_inputs(items, encoder.geometry))
        return control
    return encoder


def measure(of: Set, about: dict[str, Any], count: int) -> dict[str, Any]:
    """What is in a row beside its name."""
    taught = np.sort(np.random.default_rng(1 + about["draw"]).permutation(of.taught)[:count])
    encoder = encoder_of(about["set"], about["arm"], of.items)
    began = time.process_time()
    row: dict[str, Any] = {"pictures": len(taught)}
    if about["arm"] == "unet":
        sight = Sight(encoder, about["size"], "fit")
        net, row["steps"] = unet(sight, of, taught, about)

        def answer(scene: Scene) -> np.ndarray:
            return told(scene, lambda piece: net(piece.levels[0][None].float()), calibrate)

        zeros = torch.zeros(len(of.masks.names))
        calibrate = Calibrate(torch.ones(()), zeros, zeros)
    else:
        learnt = learn(encoder, of.items, of.masks.take(taught), Wish(size=about["size"]))
        held, sight = learnt.metrics.get("miou"), learnt.sight
        row |= {"setting": str(learnt.setting), "lean": learnt.setting.lean}
        row["held_out"] = None if held is None else [held.value, held.low, held.high]

        def answer(scene: Scene) -> np.ndarray:
            return told(
                scene,
                lambda piece: learnt.task([level[None] for level in piece.levels], piece.grey[None])["scores"],
                learnt.calibrate,
            )

    row["cpu_seconds"] = round(time.process_time() - began, 1)
    for name, (items, masks) in of.tests.items():
        found = tested(sight, answer, items, masks)
        row[name] = miou(found)
        row[f"{name} classes"] = [round(value, 4) for value in ious(found).tolist()]
    return row


def unet(sight: Sight, of: Set, taught: np.ndarray, about: dict[str, Any]) -> tuple[UNet, int]:
    """A U-Net, and in how many steps it was trained: AdamW, cross-entropy and soft Dice on flipped crops."""
    beside = {**about, "arm": "imagenet"}
    spent = [row["cpu_seconds"] for row in read_rows() if beside.items() <= row.items()]
    seconds = max(LEAST_SECONDS, *spent)
    torch.manual_seed(about["draw"])
    rng = np.random.default_rng(about["draw"])
    scenes = list(sight.scenes(of.items, of.masks.take(taught), {}, "Reading"))
    pieces = [piece for scene in scenes for piece in scene.pieces]
    net = UNet(len(pieces[0].levels[0]), len(of.masks.names)).train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE)
    began, steps = time.process_time(), 0
    while (progress := (time.process_time() - began) / seconds) < 1.0:
        for group in optimiser.param_groups:
            group["lr"] = RATE * 0.5 * (1.0 + np.cos(np.pi * progress))
        crops = [crop(pieces[place], rng) for place in rng.integers(len(pieces), size=BATCH)]
        images, true = (torch.stack([each[i] for each in crops]) for i in (0, 1))
        scores = net(images)
        there = (true >= 0)[:, None]
        marked = F.one_hot(true.clamp_min(0), scores.shape[1]).permute(0, 3, 1, 2) * there
        shares = scores.softmax(1) * there
        dice = 2.0 * (shares * marked).sum((0, 2, 3)) / (shares + marked).sum((0, 2, 3)).clamp_min(1e-6)
        loss = F.cross_entropy(scores, true, ignore_index=-1) + 1.0 - dice.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    return net.eval(), steps


def crop(piece: Any, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """A square of a piece, turned over by chance: image [C, S, S] and classes [S, S], -1 beyond the edge."""
    image, true = piece.levels[0].float(), piece.classes
    below, beside = (max(0, CROP - side) for side in true.shape)
    image, true = F.pad(image, (0, beside, 0, below)), F.pad(true, (0, beside, 0, below), value=-1)
    top, left = (int(rng.integers(side - CROP + 1)) for side in true.shape)
    image, true = (each[..., top : top + CROP, left : left + CROP] for each in (image, true))
    turned = [axis for axis in (-1, -2) if rng.random() < 0.5]
    return image.flip(turned), true.flip(turned)


@torch.inference_mode()
def tested(sight: Sight, answer: Callable[[Scene], np.ndarray], items: Collection, masks: Masks) -> np.ndarray:
    """[N, K, K] pixels by true class and answer."""
    scenes = sight.scenes(items, masks, {}, "Testing")
    return np.stack([confusion(masks.at(scene.place)[0], answer(scene), len(masks.names)) for scene in scenes])


def told(scene: Scene, scores: Callable[[Any], Tensor], calibrate: Calibrate) -> np.ndarray:
    """The classes [H, W] of a file."""
    answers = [calibrate({"scores": scores(piece)}) for piece in scene.pieces]
    return Whole(
        [{name: value[0].numpy() for name, value in one.items()} for one in answers], scene.placements, calibrate
    ).mask


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(rows: list[dict[str, Any]]) -> None:
    print("| set | masks | encoder | draws | mIoU | mIoU, site 2 | seconds of CPU |\n|---|---|---|---|---|---|---|")
    keys = {(row["set"], str(row["masks"]), row["arm"]) for row in rows}
    order = ("1", "5", "20", "all")
    for name, count, arm in sorted(keys, key=lambda key: (key[0], order.index(key[1]), ARMS.index(key[2]))):
        some = [row for row in rows if (row["set"], str(row["masks"]), row["arm"]) == (name, count, arm)]
        cells = []
        for test in ("site1" if name == "wbc" else "tiles", "site2"):
            values = np.array([row[test] for row in some if test in row])
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}" if len(values) else "")
        seconds = np.mean([row["cpu_seconds"] for row in some])
        print(f"| {name} | {count} | {arm} | {len(some)} | {' | '.join(cells)} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
