"""Whether harmful sources are found and honest ones kept, and what a head gains by it: simulated sites of known truth.

    python benchmarks/sites.py                      # CIFAR-10 (20 draws), X-rays (5), white blood cells (10)
    python benchmarks/sites.py --sets xray --draws 2
    python benchmarks/sites.py --sets develop       # the images of CIFAR-10 that thresholds were chosen on
    python benchmarks/sites.py --table

A draw is 12 sites of 100 to 200 images, each with its own share of classes. Two of them are honest and different: a
second camera, darker and tinted. One to four are harmful, each of a kind drawn by chance: inverted images, noise of 50
grey levels, labels replaced by others, or images of another modality under these labels. Of `wbc` seven sites are
drawn, five of one laboratory and two of another with its own stain, which is honest; one or two of the first are
harmful.

What a head (the linear probe) learnt of the sites that are kept, of all, and of the honest ones only is measured on the
test images, which nothing else sees; of `wbc` on a quarter that was held out first. "by files" is the same judgement
from summaries written as JSON and read back. A row a draw in results/sites.jsonl; what has its row is not run again.
Features are those of package:efficientnet_lite0, computed once and kept in a folder of the system's temporary files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from speedrun import DATA, HERE, data_folder

from selfsight.curation.sources import Judgement, judge
from selfsight.curation.summaries import Summary, from_json, summarise, to_json
from selfsight.curation.told import noise_share
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.weights import load
from selfsight.probing.linear import fit_linear

RESULTS = HERE / "results" / "sites.jsonl"
WORK = Path(tempfile.gettempdir()) / "selfsight-sites"
STOCK = "package:efficientnet_lite0"
DRAWS = {"cifar10": 20, "xray": 5, "wbc": 10, "develop": 20}
SIZE = {"cifar10": 64, "develop": 64, "xray": 112, "wbc": 112}  # of the encoder's input
KINDS = ("inverted", "noisy", "flipped", "modality")
POOL = 3000  # training images of a set, that sites are drawn from
Files = list[tuple[Path, str]]  # images with their classes


class Seen(NamedTuple):
    """Features of images and of their negatives, [N, D] each, and their shares of noise [N]."""

    features: np.ndarray
    negatives: np.ndarray
    noise: np.ndarray


class Site(NamedTuple):
    """kind: plain, another honest one, or one of KINDS."""

    kind: str
    seen: Seen
    labels: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="cifar10,xray,wbc")
    parser.add_argument("--draws", type=int, help="of each set; if not given, 20 of CIFAR-10, 5 of X-rays, 10 of wbc")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    WORK.mkdir(exist_ok=True)
    for name in () if given.table else given.sets.split(","):
        for draw in range(given.draws or DRAWS[name]):
            if not any(row["set"] == name and row["draw"] == draw for row in read_rows()):
                row = {"set": name, "draw": draw} | measured(*drawn(name, draw))
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print_table()


# -- images --


def files_of(name: str, side: str) -> Files:
    """The images of one side of a set, in an order by chance that is always the same."""
    if name == "wbc":
        folder = DATA / "wbc" / side
        rows = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()[1:]]
        found = [(folder / "images" / f"{int(row[0]):03d}.png", row[1]) for row in rows if row[1].isdigit()]
    else:
        files = sorted(path for path in (data_folder(name, WORK) / side).rglob("*") if path.is_file())
        found = [(path, path.parent.name) for path in files]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def inverted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - pixels


def noisy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    grey = (pixels == pixels[..., :1]).all()
    return (pixels + rng.normal(0, 50, (*pixels.shape[:2], 1 if grey else 3))).clip(0, 255).round().astype(np.uint8)


def camera(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    tint = 1.0 if (pixels == pixels[..., :1]).all() else np.array([1.1, 1.0, 0.85])
    return (12 + 230 * (pixels / 255) ** 1.3 * tint).clip(0, 255).round().astype(np.uint8)


def plain(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return pixels


def seen(key: str, files: Files, change: Callable[..., np.ndarray], size: int) -> Seen:
    """What the encoder makes of changed images, read again where it was computed before."""
    kept = WORK / f"{key}.{change.__name__}.npz"
    if not kept.exists():
        print(f"Encoding {len(files)} images of {key}, {change.__name__}", flush=True)
        encoder, rng = load(STOCK), np.random.default_rng(1)
        encoder.geometry = replace(encoder.geometry, size=size)
        pixels = [change(np.asarray(Image.open(path).convert("RGB")), rng) for path, _ in files]
        noise = np.array([noise_share(one) or 0.0 for one in pixels])
        squares = [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in pixels]
        both = [encoded(encoder, [change(one, rng) for one in squares]) for change in (plain, inverted)]
        np.savez(kept, *both, noise)
    with np.load(kept) as arrays:
        return Seen(*(arrays[name] for name in arrays.files))


def encoded(encoder: Encoder, pixels: list[np.ndarray]) -> np.ndarray:
    parts = [np.stack(pixels[i : i + 64]) for i in range(0, len(pixels), 64)]
    return np.concatenate([encoder.encode(encoder.geometry.to_input(part)).pooled.numpy() for part in parts])


# -- sites --


def drawn(name: str, draw: int) -> tuple[list[Site], Seen, np.ndarray]:
    """The sites of a draw; the images to test on, and their classes."""
    rng, size = np.random.default_rng(1000 + draw), SIZE[name]
    if name == "wbc":
        return of_laboratories(rng, size)
    pool = files_of("cifar10" if name == "develop" else name, "train")
    pool = pool[POOL : 2 * POOL] if name == "develop" else pool[:POOL]
    test = files_of("cifar10" if name == "develop" else name, "test")[:2000]
    changed = {change.__name__: seen(name, pool, change, size) for change in (plain, inverted, noisy, camera)}
    changed["modality"] = seen(f"{name}-other", other_than(name), plain, size)
    kinds = [*rng.choice(KINDS, rng.integers(1, 5)), "camera", "camera"]
    kinds += ["plain"] * (12 - len(kinds))
    classes = np.array([label for _, label in pool])
    free = {c: [*rng.permutation(np.flatnonzero(classes == c))] for c in sorted({*classes.tolist()})}
    usual, sites = np.array([len(free[c]) for c in free]) / len(pool), []
    for kind in rng.permutation(kinds):
        mix = rng.dirichlet(10 * len(free) * usual)
        counts = rng.multinomial(rng.integers(100, 201), mix)
        taken = [free[c].pop() for c, count in zip(free, counts, strict=True) for _ in range(min(count, len(free[c])))]
        sites.append(site(kind, changed, np.array(taken), classes, rng))
    return sites, seen(f"{name}-test", test, plain, size), np.array([label for _, label in test])


def of_laboratories(rng: np.random.Generator, size: int) -> tuple[list[Site], Seen, np.ndarray]:
    sites, held = [], []
    kinds = [*rng.choice(KINDS, rng.integers(1, 3))]
    for lab, count in (("site1", 5), ("site2", 2)):
        files = files_of("wbc", lab)
        classes = np.array([label for _, label in files])
        changed = {change.__name__: seen(f"wbc-{lab}", files, change, size) for change in (plain, inverted, noisy)}
        changed["modality"] = seen("wbc-other", other_than("wbc"), plain, size)
        order = rng.permutation(len(files))
        out, rest = order[: len(order) // 4], order[len(order) // 4 :]
        held.append((Seen(*(part[out] for part in changed["plain"])), classes[out]))
        for taken in np.array_split(rest, count):
            kind = kinds.pop() if kinds and lab == "site1" else "plain" if lab == "site1" else "stain"
            sites.append(site(kind, changed, taken, classes, rng))
    test = Seen(*(np.concatenate(parts) for parts in zip(*(one for one, _ in held), strict=True)))
    return sites, test, np.concatenate([labels for _, labels in held])


def other_than(name: str) -> Files:
    """Images of another modality: X-rays among photographs, photographs among cells, steel among X-rays."""
    other = {"cifar10": "xray", "develop": "xray", "wbc": "cifar10", "xray": "steel"}[name]
    return files_of(other, "train")[:600]


def site(kind: str, changed: dict[str, Seen], taken: np.ndarray, classes: np.ndarray, rng: np.random.Generator) -> Site:
    """The items `taken` of a pool, made into a site of this kind."""
    labels, names = classes[taken], np.unique(classes)
    if kind == "flipped":
        labels = names[(np.searchsorted(names, labels) + rng.integers(1, len(names), len(labels))) % len(names)]
    if kind == "flipped" and len(names) == 2:  # not all, which would only rename them
        labels = np.where(rng.random(len(labels)) < 0.5, labels, classes[taken])
    if kind == "modality":
        labels, taken = rng.permutation(labels), rng.permutation(len(changed[kind].features))[: len(labels)]
    return Site(kind, Seen(*(part[taken] for part in changed.get(kind, changed["plain"]))), labels)


# -- what is measured --


def measured(sites: list[Site], test: Seen, truth: np.ndarray) -> dict[str, Any]:
    names = {f"{place:02d} {one.kind}": one for place, one in enumerate(sites)}
    told = [summary(name, one, True) for name, one in names.items()]
    found = judge(told)
    with tempfile.TemporaryDirectory() as folder:
        for place, one in enumerate(told):
            (Path(folder) / f"{place}.json").write_text(to_json(one))
        by_files = judge([from_json(file.read_bytes(), file) for file in sorted(Path(folder).glob("*.json"))])
    unlabelled = judge([summary(name, one, False) for name, one in names.items()])
    kept = [names[one.source] for one in found if one.verdict != "remove"]
    honest = [one for one in sites if one.kind not in KINDS]
    heads = {"all": sites, "kept": kept, "honest": honest}
    return {
        "harmful": [one.kind for one in sites if one.kind in KINDS],
        "labelled": outcome(found),
        "by files": outcome(by_files),
        "unlabelled": outcome([one for one in unlabelled if not one.source.endswith("flipped")]),
        "accuracy": {name: accuracy(some, test, truth) for name, some in heads.items()},
    }


def summary(name: str, one: Site, labelled: bool) -> Summary:
    labels = one.labels.tolist() if labelled else None
    return summarise(name, STOCK, one.seen.features, labels, one.seen[:2], one.seen.noise)


def outcome(found: list[Judgement]) -> dict[str, Any]:
    """AUROC of the order, which sites are removed, and the difference and harm of each kind."""
    bad = np.array([one.source[3:] in KINDS for one in found])
    if bad.all() or not bad.any():
        auroc = None
    else:
        ranks = np.arange(len(bad))
        auroc = float(np.mean(ranks[bad][:, None] < ranks[~bad][None]))
    return {
        "auroc": auroc,
        "removed": [one.source[3:] for one in found if one.verdict == "remove"],
        "look": [one.source[3:] for one in found if one.verdict == "look"],
        "sites": [
            [one.source[3:], round(one.difference.value, 2), None if one.harm is None else round(one.harm.value, 3)]
            for one in found
        ],
    }


def accuracy(sites: list[Site], test: Seen, truth: np.ndarray) -> float:
    names, numbers = np.unique(np.concatenate([one.labels for one in sites]), return_inverse=True)
    features = np.concatenate([one.seen.features for one in sites])
    said = fit_linear(features, numbers, len(names)).scores(test.features).argmax(1)
    return float((names[said] == truth).mean())


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def print_table() -> None:
    for name in dict.fromkeys(row["set"] for row in read_rows()):
        rows = [row for row in read_rows() if row["set"] == name]
        harmful = [kind for row in rows for kind in row["harmful"]]
        print(f"\n{name}, {len(rows)} draws, {len(harmful)} harmful sites")
        for way in ("labelled", "by files", "unlabelled"):
            scores = [row[way]["auroc"] for row in rows if row[way]["auroc"] is not None]
            removed = [kind for row in rows for kind in row[way]["removed"]]
            of = {kind: f"{removed.count(kind)}/{harmful.count(kind)}" for kind in KINDS if kind in harmful}
            print(
                f"  {way:10}  AUROC {statistics.mean(scores):.3f} (least {min(scores):.3f})   honest removed "
                f"{sum(kind not in KINDS for kind in removed)}   removed of "
                + ", ".join(f"{k} {v}" for k, v in of.items())
            )
        for head in ("all", "kept"):
            lost = [100 * (row["accuracy"][head] - row["accuracy"]["honest"]) for row in rows]
            spread = statistics.stdev(lost) if len(lost) > 1 else 0.0
            print(f"  head of {head:5} against that of the honest: {statistics.mean(lost):+.2f} ± {spread:.2f} points")


if __name__ == "__main__":
    main()
