"""Claims of the literature, asked of the pretext tasks as shipped, at the scale of a laptop.

    taskset -c 0 python benchmarks/claims.py                   # measures what is missing, then the tables
    taskset -c 1 python benchmarks/claims.py                   # a second one at the same time takes other cases
    python benchmarks/claims.py --only crop-only               # cases whose name holds this
    python benchmarks/claims.py --table
    python benchmarks/claims.py --plot                         # pictures, into docs/

One row a case in results/claims.jsonl; a case that has its row is not measured again, and other settings make other
cases. Scores are balanced accuracy (which is accuracy where the test has as many of each class), of the last step's
encoder, whitened as every run's is; controls are whitened in the same way. Tests are never learnt from, and nothing is
chosen on them. Looks for data in SELFSIGHT_DATA or ../shared/data. `--work` must be the same for all that work at the
same time. `--smoke` tries everything within minutes; its rows go to --work and mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from claims_data import Made, photos, quarters, radiograph_labels, radiographs, uneven_photos, white_cells
from claims_show import attention_of, colour_of, draw_attention, draw_crop_only, pointing, tables
from objectives import DATA, DRAWS, Images, Sides, _alone, _commit, data_folder, encoded, rounded
from torch import nn

from selfsight.data.geometry import Geometry
from selfsight.data.importers import open_source
from selfsight.data.lock import Busy, locked
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import input_batches
from selfsight.encoders.statistics import measure_batch_norm, some_inputs
from selfsight.encoders.store import create, random_like
from selfsight.encoders.weights import begin, find_weights, load
from selfsight.encoders.whitening import whitened
from selfsight.machine import environment, usable_cores
from selfsight.probing.linear import fit_few_shot, fit_linear
from selfsight.probing.metrics import metrics
from selfsight.probing.neighbours import fit_knn
from selfsight.report.verdict import judge
from selfsight.training.recipe import Budget
from selfsight.training.run import Run
from selfsight.training.settle import choose
from selfsight.verbs.import_ import import_
from selfsight.verbs.pretrain import pretrain

RESULTS = Path(__file__).parent / "results" / "claims.jsonl"
DOCS = Path(__file__).parent.parent / "docs"
PHOTOS = {"bank": 5_000, "test": 10_000}  # images of CIFAR-10 that probes learn from, and that they are measured on
WEIGHTS = "package:efficientnet_lite0"

# Batches of 64, as in the leaderboard: more steps for the same operations.
SETTINGS: dict[str, dict[str, Any]] = {
    # The same steps for all sizes: what differs is how often an image is seen again.
    "crop-only": {"sizes": (2_000, 10_000, 50_000), "steps": 320, "batch": 64, **PHOTOS},
    # 24 px crops of 32 px images; the rates are tried on a split of the labels.
    "mae": {
        "steps": 960, "pretrain_batch": 64, "labels": 5_000, "test": 10_000, "crop": 24, "epochs": 3, "batch": 64,
        "rates": (5e-4, 2e-3), "trial_epochs": 1,
    },
    # Classes of 5,000 images down to 50.
    "imbalance": {"largest": 5_000, "ratio": 100, "junk": 0.1, "steps": 320, "batch": 64, **PHOTOS},
    "groups": {"steps": 80, "batch": 64, "size": 64, "most": 10**6},
    # Patches of 8 px: a white cell is some patches wide. Multi-crop: quarters of a smear have little in common.
    "attention": {
        "steps": 120, "batch": 32, "size": 96, "patch": 8,
        "views": [{"count": 2, "size": 96, "scale": [0.3, 1.0]}, {"count": 4, "size": 48, "scale": [0.08, 0.3]}],
    },
    "weights": {"steps": 40, "batch": 64, "size": 64, "shots": (5, 30), "most": 10**6},
}  # fmt: skip
SMOKE: dict[str, dict[str, Any]] = {
    "crop-only": {"sizes": (40, 80), "steps": 2, "batch": 16, "bank": 60, "test": 40},
    "mae": {"steps": 2, "pretrain_batch": 16, "labels": 40, "test": 40, "batch": 16},
    "imbalance": {"largest": 50, "steps": 2, "batch": 16, "bank": 60, "test": 40},
    "groups": {"steps": 2, "batch": 8, "size": 32, "most": 40},
    "attention": {"steps": 2, "batch": 4, "size": 64, "patch": 16, "views": [{"count": 2, "size": 64}]},
    "weights": {"steps": 2, "batch": 4, "shots": (2, 3), "most": 40},
}
ARMS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {  # what is measured for each claim, and with which seeds
    "mae": (("scratch", "mae"), (0, 1, 2)),
    "imbalance": (("random", "simclr-clean", "simclr-uneven", "swav-clean", "swav-uneven"), (0,)),
    "groups": (tuple(f"{data}-{arm}" for data in ("steel", "cxr") for arm in ("random", "image", "group")), (0, 1, 2)),
    "attention": (("colour", "random", "dino"), (0,)),
    "weights": (
        tuple(f"{d}-{arm}" for d in ("steel", "xray") for arm in ("before", "random", "scratch", "adapted")), (0, 1),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What a row is of."""

    claim: str
    arm: str
    seed: int
    settings: str  # JSON

    @property
    def name(self) -> str:
        return f"{self.claim}-{self.arm}-{self.seed}"


def cases(settings: dict[str, dict[str, Any]]) -> list[Case]:
    """All of them, in their order."""
    sizes = settings["crop-only"]["sizes"]
    crops = ("random", *(f"{style}-{size}" for size in sizes for style in ("full", "crop-only")))
    arms = {"crop-only": (crops, (0,)), **ARMS}
    return [
        Case(claim, arm, seed, json.dumps(settings[claim]))
        for claim, (names, seeds) in arms.items()
        for arm in names
        for seed in (seeds[:1] if arm.endswith(("before", "colour")) else seeds)  # which have no seed
    ]


# -- encoders and what they are worth --


def pretrained(case: Case, source: Path, work: Path, **asked: Any) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of a run, trained if it is not yet, and what it took. Cases that ask for the same share it."""
    asked = {"steps": json.loads(case.settings)["steps"], "seed": case.seed, **asked}
    key = hashlib.blake2b(json.dumps([str(source), asked]).encode(), digest_size=6).hexdigest()
    out = work / "runs" / f"{case.claim}-{case.arm}-{key}"
    with _alone(out.with_name(f"{out.name}.lock")):
        if not Run(out).finished:
            began = time.process_time()
            pretrain(str(source), out=str(out), **asked)
            took = time.process_time() - began  # of what was left, after a kill
            verdict = judge(Run(out).read_metrics()).word
            (out / "took.json").write_text(json.dumps({"pretrain_seconds": took, "verdict": verdict}))
    return load(out), json.loads((out / "took.json").read_text())


def random_encoder(images: Images, seed: int, **asked: Any) -> Encoder:
    """What the rules give for these images, with random weights; batch norms have the statistics of the images."""
    recipe, format = choose({"budget": Budget(steps=1), **asked}, None, images.train)
    n = images.normalise
    p = Geometry(recipe.channels, recipe.size, format.window, n.mean, n.std, format.depth, format.mode)
    encoder = random_like(create(recipe.encoder, p, recipe.encoder_args), seed)
    measure_batch_norm(encoder, some_inputs(images.train, p))
    return encoder


def changed_together(change: Callable[[list[np.ndarray]], list[np.ndarray]], sides: Any) -> Any:
    """Training and test with their features changed together."""
    changed = change([features for features, _ in sides])
    return [(features, labels) for features, (_, labels) in zip(changed, sides, strict=True)]


def sides(encoder: Encoder, images: Images, most: tuple[int, int], control: bool = False) -> Sides:
    """Features and class numbers of training and of test images; those of a control are whitened."""
    out = []
    for part, limit in zip(("train", "test"), most, strict=True):
        pixels, labels = images.squares(part, encoder.geometry.size, limit)
        out.append((encoded(encoder, pixels), labels))
    return changed_together(whitened, out) if control else out


def scores(data: Sides, classes: int, shots: tuple[int, ...] = (5,)) -> dict[str, Any]:
    """Balanced accuracy of k-NN, a linear probe, and of few labels a class: mean and deviation over draws."""
    (train, labels), (test, truth) = data

    def balanced(said: np.ndarray) -> float:
        return float(metrics(said, truth)["balanced"] or 0.0)

    few = {}
    for count in shots:
        draws = [balanced(fit_few_shot(train, labels, classes, count, seed).scores(test)) for seed in range(DRAWS)]
        few[str(count)] = [float(np.mean(draws)), float(np.std(draws, ddof=1))]
    return {
        "knn": balanced(fit_knn(train, labels, classes).scores(test)),
        "linear": balanced(fit_linear(train, labels, classes).scores(test)),
        "few_shot": few,
    }


# -- the claims --


def crop_only(case: Case, s: dict[str, Any], work: Path) -> dict[str, Any]:
    """Moutakanni et al., NeurIPS 2024: with enough images, crops alone do as well as changes of colour."""
    images, row = Images("cifar10", work), {}
    if case.arm == "random":
        encoder = random_encoder(images, case.seed, objective="simclr")
    else:
        style, size = case.arm.rsplit("-", 1)
        source = photos(int(size), work) / "train"
        asked = {"objective": "simclr", "views": style, "batch_size": s["batch"]}
        encoder, row = pretrained(case, source, work, **asked)
    return row | scores(sides(encoder, images, (s["bank"], s["test"]), case.arm == "random"), 10)


def mae(case: Case, s: dict[str, Any], work: Path) -> dict[str, Any]:
    """He et al., CVPR 2022: what MAE learnt without labels helps fine-tuning with few of them."""
    whole = data_folder("cifar10", work)
    images = Made(photos(s["labels"], work), work, whole / "test")

    def start(seed: int) -> Encoder:
        if case.arm == "scratch":
            return random_encoder(images, seed, objective="mae")
        asked = {"objective": "mae", "batch_size": s["pretrain_batch"]}
        return pretrained(replace(case, seed=0), whole / "train", work, **asked)[0]  # one encoder for all seeds

    encoder = start(case.seed)
    pixels, labels = images.squares("train", encoder.geometry.size, s["labels"])
    key = hashlib.blake2b(case.settings.encode(), digest_size=6).hexdigest()
    file = work / "runs" / f"mae-{case.arm}-rates-{key}.json"
    with _alone(file.with_suffix(".lock")):
        if not file.exists():
            file.write_text(json.dumps(rate_scores(start, pixels, labels, s)))
    tried = json.loads(file.read_text())
    rate = float(max(tried, key=lambda r: tried[r]))
    model = fine_tuned(encoder, pixels, labels, rate, s["epochs"], case.seed, s)
    test, truth = images.squares("test", encoder.geometry.size, s["test"])
    return {"rate": rate, "tried": tried, "accuracy": accuracy(model, test, truth)}


class Classifier(nn.Module):
    """An encoder, without its whitening, and a linear layer; all of it learns."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        encoder.net.reset_classifier(0)  # type: ignore[operator]
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, classes)

    def forward(self, pixels: np.ndarray) -> torch.Tensor:
        """Scores [B, K] of `pixels` [B, S, S, C]."""
        return self.head(self.encoder(self.encoder.geometry.to_input(pixels)).pooled)


def fine_tuned(
    encoder: Encoder, pixels: np.ndarray, labels: np.ndarray, rate: float, epochs: int, seed: int, s: dict[str, Any]
) -> Classifier:
    """AdamW, a warm-up over a tenth and a cosine after it, on crops and their mirror images."""
    torch.manual_seed(seed)
    rng, crop, batch = np.random.default_rng(seed), s["crop"], s["batch"]
    model = Classifier(encoder, len(np.unique(labels))).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    steps = epochs * (len(labels) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1, cycle_momentum=False)
    for _ in range(epochs):
        order = rng.permutation(len(labels))
        for chosen in (order[i : i + batch] for i in range(0, len(order) - batch + 1, batch)):
            places = rng.integers(0, pixels.shape[1] - crop + 1, (batch, 2))
            crops = [pixels[i, y : y + crop, x : x + crop] for i, (y, x) in zip(chosen, places, strict=True)]
            mirrored = [
                part[:, ::-1] if turn else part for part, turn in zip(crops, rng.random(batch) < 0.5, strict=True)
            ]
            loss = nn.functional.cross_entropy(model(np.stack(mirrored)), torch.from_numpy(labels[chosen]))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model


@torch.inference_mode()
def accuracy(model: Classifier, pixels: np.ndarray, labels: np.ndarray) -> float:
    """On whole images."""
    model.eval()
    said = [model(pixels[i : i + 256]).argmax(1).numpy() for i in range(0, len(pixels), 256)]
    return float((np.concatenate(said) == labels).mean())


def rate_scores(
    start: Callable[[int], Encoder], pixels: np.ndarray, labels: np.ndarray, s: dict[str, Any]
) -> dict[str, float]:
    """The accuracy on every fifth of the labelled images of what learnt from the others, by learning rate."""
    held = np.arange(len(labels)) % 5 == 0
    out = {}
    for rate in s["rates"]:
        model = fine_tuned(start(0), pixels[~held], labels[~held], rate, s["trial_epochs"], 0, s)
        out[str(rate)] = accuracy(model, pixels[held], labels[held])
    return out


def imbalance(case: Case, s: dict[str, Any], work: Path) -> dict[str, Any]:
    """Goyal et al., SEER, 2021: clustering and contrast also learn from data that nobody curated."""
    images, row = Images("cifar10", work), {}
    if case.arm == "random":
        encoder = random_encoder(images, case.seed, objective="simclr")
    else:
        objective, kind = case.arm.split("-")
        uneven, total = uneven_photos(s["largest"], s["ratio"], s["junk"], work)
        source = uneven if kind == "uneven" else photos(total, work)
        encoder, row = pretrained(case, source / "train", work, objective=objective, batch_size=s["batch"])
        row = row | {"images": total}
    return row | scores(sides(encoder, images, (s["bank"], s["test"]), case.arm == "random"), 10)


def groups(case: Case, s: dict[str, Any], work: Path) -> dict[str, Any]:
    """Azizi et al., MICLe, ICCV 2021: two images of a patient are a better pair than two crops of one image."""
    data, arm = case.arm.split("-")
    folder = quarters(work) if data == "steel" else radiographs(work)
    images, row = Made(folder, work), {}
    if arm == "random":
        encoder = random_encoder(images, case.seed, objective="simclr", size=s["size"])
    else:
        collection = work / "collections" / folder.name / "train.lance"
        import_(str(folder / "train"), out=str(collection), columns="group={folder}")
        asked = {"objective": "simclr", "size": s["size"], "batch_size": s["batch"], "positives": arm}
        encoder, row = pretrained(case, collection, work, **asked)
    found = sides(encoder, images, (s["most"], s["most"]), arm == "random")
    if data == "steel":
        return row | {"tasks": {"defect": scores(found, len(images.classes))}}
    return row | {"tasks": {task: scores(*known(task, found, images)) for task in ("covid-19", "view", "sex")}}


def known(task: str, found: Sides, images: Images) -> tuple[Sides, int]:
    """The features of the radiographs of which something is known, with what it is as class number; and of how many."""
    labels = []
    for (features, _), items in zip(found, (images.train, images.test), strict=True):
        uris = items.usable["uri"].to_pylist()
        drawn = np.sort(np.random.default_rng(0).permutation(len(uris))[: len(features)])  # as `squares` draws them
        rows = drawn if len(features) < len(uris) else range(len(uris))
        labels.append([radiograph_labels(Path(uris[i]).name).get(task, "") for i in rows])
    classes = sorted(set(labels[0]) - {""})
    out = []
    for (features, _), names in zip(found, labels, strict=True):
        have = np.array([name in classes for name in names])
        out.append((features[have], np.searchsorted(classes, np.array(names)[have])))
    return out, len(classes)


def attention(case: Case, s: dict[str, Any], work: Path) -> dict[str, Any]:
    """Caron et al., DINO, ICCV 2021: the class token of a ViT attends to the thing in the picture."""
    maps, boxes, _, row = attention_maps(case, s, work)
    return row | pointing(maps, boxes)


def attention_maps(
    case: Case, s: dict[str, Any], work: Path
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, dict[str, Any]]:
    """Of every smear with a white cell: where a map [heads, h, w] that sums to 1 looks, the boxes of the white cells,
    and its pixels; and what the training took."""
    source, row = DATA / "bccd" / "JPEGImages", {}
    items = open_source(str(source))
    args = {"embed_dim": 128, "depth": 6, "num_heads": 4, "patch_size": s["patch"]}  # the rules', but for the patch
    vit = {"encoder": "vit_tiny_patch16_224", "encoder_args": args}
    if case.arm == "dino":
        file = work / "runs" / f"attention-{s['patch']}.yaml"
        file.write_text(yaml.safe_dump({"resolved": vit | {"views": {"groups": s["views"]}}}))
        asked = {"objective": "dino", "size": s["size"], "batch_size": s["batch"], "recipe": str(file)}
        encoder, row = pretrained(case, source, work, **asked)
    else:
        flat = (0.5,) * 3, (0.25,) * 3
        p = Geometry(3, s["size"], (0.0, 255.0), *flat)
        encoder = random_like(create(vit["encoder"], p, args), case.seed)
    pixels, uris = [], []
    for numbers, squares, _ in input_batches(items, items.usable, encoder.geometry, "Decoding"):
        pixels.append(squares)
        uris += [items.usable["uri"][i].as_py() for i in numbers]
    boxes = [white_cells(DATA / "bccd" / "Annotations" / f"{Path(uri).stem}.xml") for uri in uris]
    order = [i for i in np.argsort(uris) if len(boxes[i])]
    squares = np.concatenate(pixels)[order]
    maps = colour_of(squares, s["patch"]) if case.arm == "colour" else attention_of(encoder, squares)
    return maps, [boxes[i] for i in order], squares, row


def weights(case: Case, s: dict[str, Any], work: Path) -> dict[str, Any]:
    """That adaptation to one's own images starts from ImageNet's weights and never ends below them."""
    data, arm = case.arm.split("-")
    images, row = Images(data, work), {}
    asked: dict[str, Any] = {"objective": "simclr", "size": s["size"], "batch_size": s["batch"]}
    if arm == "before":
        start, f = find_weights(WEIGHTS), images.format
        flat = start.statistics(f.channels)
        encoder = begin(start, Geometry(f.channels, s["size"], f.window, *flat, f.depth, f.mode), start.args)
    elif arm == "random":
        encoder = random_encoder(images, case.seed, encoder=find_weights(WEIGHTS).architecture, **asked)
    else:
        asked |= {"encoder": find_weights(WEIGHTS).architecture} if arm == "scratch" else {"weights": WEIGHTS}
        encoder, row = pretrained(case, images.folder / "train", work, **asked)
    found = sides(encoder, images, (s["most"], s["most"]), arm in ("before", "random"))
    return row | scores(found, len(images.classes), s["shots"])


MEASURES: dict[str, Callable[[Case, dict[str, Any], Path], dict[str, Any]]] = {
    "crop-only": crop_only, "mae": mae, "imbalance": imbalance, "groups": groups, "attention": attention,
    "weights": weights,
}  # fmt: skip


# -- the work --


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def present(settings: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the settings of now, in the order of the cases."""
    rows = {(r["claim"], r["arm"], r["seed"], json.dumps(r["settings"])): r for r in read_rows()}
    keys = [(case.claim, case.arm, case.seed, case.settings) for case in cases(settings)]
    return [rows[key] for key in keys if key in rows]


def missing(only: str, settings: dict[str, dict[str, Any]], work: Path) -> Iterator[Case]:
    """Cases without a row, each held while it is worked on: those that another process holds are left to it."""
    for case in cases(settings):
        if only not in case.name:
            continue
        try:
            with locked(work / "cases" / f"{case.name}.lock"):
                if (case.claim, case.arm, case.seed) not in {
                    (r["claim"], r["arm"], r["seed"]) for r in present(settings)
                }:
                    yield case
        except Busy:
            continue


def run(only: str, settings: dict[str, dict[str, Any]], work: Path) -> None:
    """Measure every case that is missing."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    torch.set_num_threads(usable_cores())
    for case in missing(only, settings, work):
        began = time.process_time()
        try:
            row = MEASURES[case.claim](case, json.loads(case.settings), work)
        except Exception as error:  # whatever fails, the next case goes on
            print(json.dumps({"failed": case.name, "error": f"{type(error).__name__}: {error}"}))
            continue
        row = {"claim": case.claim, "arm": case.arm, "seed": case.seed, "settings": json.loads(case.settings), **row}
        row |= {"seconds": time.process_time() - began, "machine": environment("cpu")["processor"]}
        row |= {"threads": usable_cores(), "torch": torch.__version__, "commit": _commit()}
        settings_as_given = row.pop("settings")
        with RESULTS.open("a") as file:
            file.write(json.dumps({**rounded(row), "settings": settings_as_given}) + "\n")
        print(f"{time.strftime('%H:%M')} {case.name}: {row['seconds']:.0f} s of a core")


def plot(settings: dict[str, dict[str, Any]], work: Path, out: Path) -> None:
    """The pictures of what has been measured."""
    rows = present(settings)
    draw_crop_only([row for row in rows if row["claim"] == "crop-only"], out / "crop-only.png")
    drawn = [case for case in cases(settings) if case.claim == "attention" and case.arm != "colour"]
    if {case.arm for case in drawn} <= {row["arm"] for row in rows if row["claim"] == "attention"}:
        found = {case.arm: attention_maps(case, json.loads(case.settings), work) for case in drawn}
        draw_attention(found, out / "attention.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name, such as groups-cxr-image-0, holds this")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--plot", action="store_true", help="measure nothing, draw the pictures of docs/")
    parser.add_argument("--smoke", action="store_true", help="tiny settings; rows and pictures go to --work")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-claims")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    settings = {name: s | (SMOKE[name] if arguments.smoke else {}) for name, s in SETTINGS.items()}
    if arguments.smoke:
        globals()["RESULTS"] = work / "smoke.jsonl"
    for folder in (work / "runs", work / "cases", RESULTS.parent):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ["SELFSIGHT_CACHE"] = str(work / "cache")
    if arguments.plot:
        plot(settings, work, work if arguments.smoke else DOCS)
        return
    if not arguments.table:
        run(arguments.only, settings, work)
    tables([row for row in present(settings) if arguments.only in f"{row['claim']}-{row['arm']}-{row['seed']}"])


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.")
