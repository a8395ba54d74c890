"""The leaderboard: every pretext task at the same number of operations of its encoders, by the rules as shipped.

    taskset -c 0 python benchmarks/objectives.py --budget 90s     # trains and measures what is missing, then the tables
    taskset -c 1 python benchmarks/objectives.py --budget 90s     # a second one at the same time takes other cases
    python benchmarks/objectives.py --budget 10min                # the six best of CIFAR-10 at 90 s, longer
    python benchmarks/objectives.py --table

A case is a pretext task, an encoder, a data set and a seed. Its steps are the budget over the operations of a step in
all of its encoders (student and teacher, forward and back), counted on a few images. One row a case in
results/objectives.jsonl, of the last step's encoder, whitened as every run's is; a case that has its row is not run
again. Encoders are the rules' own: a narrow ResNet, and a small ViT for tasks that need tokens; within a family all
have one encoder, so some tasks are run with both. k-NN and the linear probe learn from `BANK` labels at most and are
measured on every test image. CPU seconds are those of the whole `pretrain` command, its start included.

Controls: the same encoders with random weights, pixels, and words of patches (kmeans_patches.py). Looks for data in
SELFSIGHT_DATA or ../shared/data. `--work` must be the same for all that work at the same time.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kmeans_patches import kmeans_features
from leaderboard import summary, table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from selfsight.data.batches import Batch, collate
from selfsight.data.canvases import Streamed, measure_format
from selfsight.data.geometry import Geometry
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.data.lock import Busy, locked
from selfsight.data.pixels import PixelFormat
from selfsight.data.randomness import item_keys
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import encode, input_batches
from selfsight.encoders.statistics import measure_batch_norm, some_inputs
from selfsight.encoders.store import create, random_like
from selfsight.encoders.weights import load
from selfsight.encoders.whitening import unwhitened, whitened
from selfsight.machine import environment, usable_cores
from selfsight.objectives.objective import registry
from selfsight.probing.linear import fit_few_shot, fit_linear
from selfsight.probing.neighbours import fit_knn
from selfsight.report.verdict import judge
from selfsight.training.build import build
from selfsight.training.measure import measure_normalisation
from selfsight.training.recipe import Budget, Recipe
from selfsight.training.settle import choose, write_recipe
from selfsight.verbs.compare import _criteria, _features
from selfsight.verbs.evaluate import reduced
from selfsight.views.make import make_views

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "objectives.jsonl"
# Operations of encoders: one core of an AMD EPYC with AVX-512 bf16 does 1e11 a second of SimCLR's while the other one
# is busy too, and 8 seconds are its start. Without bf16 it is half of that, and a small ViT's step is slower.
BUDGETS = {"90s": 7e12, "10min": 6e13}
SETS = {"cifar10": "cifar10", "steel": "neu", "xray": "chest-xray", "cifar10-split": "cifar10"}
SEEDS = {"cifar10": (0, 1, 2), "steel": (0,), "xray": (0,), "cifar10-split": (0,)}
SPLIT = 5000  # of CIFAR-10's training images are held out in "cifar10-split", on which settings are chosen
BOTH = ("dino", "lejepa", "simmim")  # run with either encoder: others of their families need tokens
CONTROLS = ("random", "pixels", "k-means")
# Values of a recipe by budget and objective ("" for all) instead of the rules' own; chosen on "cifar10-split".
THRICE = {"learning_rate": 3e-3}  # thrice what the rules give for a batch of 64
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("", ""): {"batch_size": 64},
    **{("10min", name): THRICE for name in ("simclr", "moco", "swav")},
    **{("10min", name): {"learning_rate": 5e-3} for name in ("simsiam", "dino")},
    ("10min", "barlow"): {"learning_rate": 2e-3},
    ("90s", "byol"): {"learning_rate": 1e-3},
}  # fmt: skip
BANK = {"90s": 5_000, "10min": 50_000}  # labelled images that probes learn from, at most
LINEAR, SHOTS, DRAWS = 10_000, 5, 5
WORDS_SIDE = {"cifar10": 32, "cifar10-split": 32, "steel": 64, "xray": 64}  # pixels, for words of patches
COUNTED = 16  # images whose operations are counted
KEPT = ("encoder", "metrics.jsonl", "recipe.yaml")  # of a run
BEST = 6


@dataclass(frozen=True)
class Case:
    """What a row is of. encoder: "conv", "vit", or "" for a control without."""

    budget: str
    data: str
    objective: str
    encoder: str
    seed: int
    flops: float

    @property
    def settings(self) -> dict[str, Any]:
        if self.objective in CONTROLS:
            return {}
        keys = [(budget, name) for budget in ("", self.budget) for name in ("", self.objective)]
        return {k: v for key in keys for k, v in SETTINGS.get(key, {}).items()}

    @property
    def key(self) -> str:
        return json.dumps([*asdict(self).values(), self.settings])

    @property
    def name(self) -> str:
        parts = (self.budget, self.data, self.objective, self.encoder, f"{self.seed}")
        return "-".join(part for part in parts if part)


def cases(budget: str, flops: float, rows: list[dict[str, Any]], sets: Iterable[str]) -> list[Case]:
    """All of a round in their order: controls, then every objective on each data set, then the other seeds."""
    runs = [(name, "vit" if cls.tokens else "conv") for name, cls in registry().items()]
    runs += [(name, "vit") for name in BOTH]
    if budget == "10min":
        runs = best(rows, runs)
    controls = [("random", "conv"), ("random", "vit"), ("pixels", ""), ("k-means", "")]
    out = []
    for first, group in ((True, controls), (True, runs), (False, [*controls[:2], *runs])):
        for data in sets:
            for seed in SEEDS[data][:1] if first else SEEDS[data][1:]:
                out += [Case(budget, data, name, kind, seed, flops) for name, kind in group
                        if name != "colour" or data.startswith("cifar10")]  # fmt: skip
    return out


def best(rows: list[dict[str, Any]], runs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The six of `runs` with the best k-NN on CIFAR-10 after 90 s, a mean over seeds. The other data sets have one,
    and ranks there that change whenever a row is measured anew."""
    found = summary([row for row in rows if (row["budget"], row["data"]) == ("90s", "cifar10")])
    return [run for row in found if (run := (row["objective"], row["encoder"])) in runs][:BEST]


def data_folder(name: str, work: Path) -> Path:
    """The folder with train/ and test/ of a data set, unpacked or split into `work` where that is needed."""
    folder = DATA / SETS[name]
    if folder.is_dir():
        return folder
    whole, out = work / "cifar10", work / name
    with _alone(work / "data.lock"):
        if not whole.exists():
            with tempfile.TemporaryDirectory(dir=work) as partial, zipfile.ZipFile(DATA / "cifar10.zip") as archive:
                archive.extractall(partial)
                (Path(partial) / "cifar10").rename(whole)
        if not out.exists():
            files = sorted((whole / "train").glob("*/*"))
            held = set(np.random.default_rng(0).permutation(len(files))[:SPLIT].tolist())
            with tempfile.TemporaryDirectory(dir=work) as partial:
                for i, file in enumerate(files):
                    to = Path(partial) / "split" / ("test" if i in held else "train") / file.parent.name / file.name
                    to.parent.mkdir(parents=True, exist_ok=True)
                    os.link(file, to)
                (Path(partial) / "split").rename(out)
    return out


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock, once whoever has it lets go."""
    while True:
        try:
            with locked(lock):
                yield
                return
        except Busy:
            time.sleep(1.0)


class Images:
    """A data set: its collections, and its images decoded once at each size that an encoder asks for."""

    def __init__(self, name: str, work: Path) -> None:
        self.name, self.work, self.folder = name, work, data_folder(name, work)
        self.train, self.test = (open_source(str(self.folder / part)) for part in ("train", "test"))
        self.format: PixelFormat = measure_format(self.train)
        self.classes = Labels.of(self.train).classes

    @functools.cached_property
    def normalise(self) -> Geometry:
        return measure_normalisation(Streamed(self.train, self.format, 256, usable_cores()))

    def squares(self, part: str, size: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [N, S, S, C] and class numbers [N] of up to `most` images, drawn once and for all."""
        items = self.train if part == "train" else self.test
        rows = items.usable
        if len(rows) > most:
            rows = rows.take(np.sort(np.random.default_rng(0).permutation(len(rows))[:most]))
        labels = Labels.of(items, rows).numbers(self.classes)
        file = self.work / f"{self.name}-{part}-{len(rows)}-{size}.npy"
        if not file.exists():
            flat = (0.0,) * self.format.channels
            p = Geometry(len(flat), size, self.format.window, flat, flat, self.format.depth, self.format.mode)
            out = np.zeros((len(rows), size, size, len(flat)), dtype=np.uint8)
            for numbers, pixels, failed in input_batches(items, rows, p, "Decoding"):
                assert not failed, failed
                out[numbers] = pixels
            own = file.with_suffix(f".{os.getpid()}")
            with own.open("wb") as stream:
                np.save(stream, out)
            own.replace(file)
        return np.load(file, mmap_mode="r"), labels


def encoded(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """Pooled features [N, D] of `pixels` [N, S, S, C], in eval mode."""
    encoder = encoder.to(memory_format=torch.channels_last)
    starts = range(0, len(pixels), 256)
    inputs = ((start, encoder.geometry.to_input(pixels[start : start + 256])) for start in starts)
    return np.concatenate([features for _, features in encode(encoder, inputs)])


Sides = list[tuple[np.ndarray, np.ndarray]]  # features and class numbers, of training and of test images


def probes(sides: Sides, classes: int) -> dict[str, Any]:
    """k-NN, linear and few-shot accuracy."""
    (train, labels), (test, truth) = sides

    def accuracy(scores: np.ndarray) -> float:
        return float((scores.argmax(1) == truth).mean())

    few = [accuracy(fit_few_shot(train, labels, classes, SHOTS, seed).scores(test)) for seed in range(DRAWS)]
    some = np.random.default_rng(0).permutation(len(train))[:LINEAR]
    return {
        "knn": accuracy(fit_knn(train, labels, classes).scores(test)),
        "linear": accuracy(fit_linear(train[some], labels[some], classes).scores(test)),
        "few_shot": [statistics.mean(few), statistics.stdev(few)],
    }


def features_of(encoder: Encoder, images: Images, most: int) -> Sides:
    """Of an encoder, of training and of test images."""
    out = []
    for part, limit in (("train", most), ("test", 10**9)):
        pixels, labels = images.squares(part, encoder.geometry.size, limit)
        out.append((encoded(encoder, pixels), labels))
    return out


def recipe_of(case: Case, images: Images) -> Recipe:
    """What the rules give, with the encoder and the settings of the case."""
    asked: dict[str, Any] = {"seed": case.seed, "budget": Budget(steps=1), **case.settings}
    if case.objective in CONTROLS:
        asked["objective"] = "simclr" if case.encoder == "conv" else "mae"
    else:
        asked["objective"] = case.objective
        if case.encoder == "vit" and not registry()[case.objective].tokens:
            vit, _ = choose({"objective": "mae", "budget": Budget(steps=1)}, None, images.train)
            asked |= {"encoder": vit.encoder, "encoder_args": vit.encoder_args, "size": vit.size}
    return choose(asked, None, images.train)[0]


def encoder_flops(recipe: Recipe, format: PixelFormat) -> float:
    """Operations of one image's step in all encoders of an objective, forward and, where there are gradients, back.

    Each call of an encoder is made once more under the counter, with a backward pass of its own from its features.
    """
    rng = np.random.default_rng(0)
    side, low, high = recipe.canvas_side, *format.window
    shape = (side, side, recipe.channels)
    pixels, shapes = collate([rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(COUNTED)])
    ids = [f"{i:032x}" for i in rng.integers(2**31, 2**62, COUNTED).tolist()]
    batch = Batch(pixels[:, None], shapes[:, None], item_keys(ids), ids, 0, np.arange(COUNTED))
    halves, quarters = (0.5,) * recipe.channels, (0.25,) * recipe.channels
    normalise = Geometry(recipe.channels, recipe.size, (low, high), halves, quarters)
    task = build(recipe, format, normalise).train()
    counter = FlopCounterMode(display=False)

    def count(encoder: Encoder, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        with counter, sdpa_kernel(SDPBackend.MATH):  # the one whose products are counted on a CPU
            again = encoder.forward(*args, **kwargs)
            if again.pooled.requires_grad:
                (again.pooled.sum() + again.patches.sum()).backward()
        total.append(float(counter.get_total_flops()))

    total: list[float] = []
    for module in task.modules():
        if isinstance(module, Encoder):
            module.register_forward_hook(count, with_kwargs=True)
    task(make_views(batch, task.views, normalise, 0), 0.5)
    return sum(total) / COUNTED


def pretrain(case: Case, images: Images, recipe: Recipe, out: Path) -> dict[str, Any]:
    """Run the command; its figures. Raises `RuntimeError` with the end of what it said if it fails."""
    shutil.rmtree(out, ignore_errors=True)
    flops = encoder_flops(recipe, images.format)
    steps = max(1, round(case.flops / (flops * recipe.batch_size * recipe.accumulate)))
    recipe = replace(recipe, budget=Budget(steps=steps))
    file, said = out.with_suffix(".yaml"), out.with_suffix(".err")
    write_recipe(file, recipe)
    command = [sys.executable, "-m", "selfsight", "pretrain", str(images.folder / "train"), "-o", str(out)]
    began = time.monotonic()
    with said.open("w") as errors:
        process = subprocess.Popen([*command, "--recipe", str(file)], stdout=subprocess.DEVNULL, stderr=errors)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    if process.returncode:
        raise RuntimeError(said.read_text()[-600:].strip() or f"exit code {process.returncode}")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for entry in out.iterdir():
        if entry.name not in KEPT:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return {
        "steps": steps, "batch": recipe.batch_size, "mflops": flops / 1e6, "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mb": round(usage.ru_maxrss / 1024),
        "views_per_second": round(statistics.median(r["views_per_second"] for r in rows)), "verdict": judge(rows).word,
    }  # fmt: skip


def changed_together(change: Callable[[list[np.ndarray]], list[np.ndarray]], sides: Any) -> Any:
    """Training and test with their features changed together."""
    changed = change([features for features, _ in sides])
    return [(features, labels) for features, (_, labels) in zip(changed, sides, strict=True)]


def control(case: Case, images: Images) -> Sides:
    """Features of what needs no pretraining, of training and of test images."""
    most = BANK[case.budget]
    if case.objective == "random":
        recipe = recipe_of(case, images)
        p = Geometry(
            recipe.channels, recipe.size, images.format.window, images.normalise.mean, images.normalise.std,
            images.format.depth, images.format.mode,
        )  # fmt: skip
        encoder = random_like(create(recipe.encoder, p, recipe.encoder_args), case.seed)
        measure_batch_norm(encoder, some_inputs(images.train, p))
        return changed_together(whitened, features_of(encoder, images, most))
    side = 32 if case.objective == "pixels" else WORDS_SIDE[case.data]
    (train, labels), (test, truth) = (images.squares(*each) for each in (("train", side, most), ("test", side, 10**9)))
    if case.objective == "pixels":
        flat = [(x.reshape(len(x), -1).astype(np.float32), y) for x, y in ((train, labels), (test, truth))]
        return changed_together(reduced, flat)
    words = kmeans_features(np.asarray(train), np.asarray(test), case.seed)
    return changed_together(whitened, [(words[0], labels), (words[1], truth)])


def measure(case: Case, images: Images, work: Path) -> dict[str, Any]:
    """The row of a case."""
    row: dict[str, Any] = asdict(case) | ({"settings": case.settings} if case.settings else {})
    began = time.monotonic()
    if case.objective in CONTROLS:
        sides = control(case, images)
        row["seconds"] = time.monotonic() - began
        row |= probes(sides, len(images.classes))
    else:
        out = work / "runs" / case.name
        row |= pretrain(case, images, recipe_of(case, images), out)
        began = time.monotonic()
        encoder = load(out)
        row |= probes(features_of(encoder, images, BANK[case.budget]), len(images.classes))
        row["criteria"] = _criteria(_features(unwhitened(encoder), images.train))
        row["evaluation_seconds"] = time.monotonic() - began
    row |= {
        "machine": environment("cpu")["processor"],
        "threads": usable_cores(),
        "torch": torch.__version__,
        "commit": _commit(),
    }
    return rounded(row)


@functools.cache
def _commit() -> str:
    done = subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()


def rounded(value: Any) -> Any:
    """Floats to four digits behind the point, or four in all above 1."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float) and math.isfinite(value):
        return round(value, 4) if abs(value) < 1 else float(f"{value:.4g}")
    return value


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def missing(wanted: Callable[[], list[Case]], work: Path) -> Iterator[Case]:
    """Cases without a row, each held while it is worked on: those that another process holds are left to it."""
    tried: set[str] = set()
    while True:
        done = {json.dumps([*(row[k] for k in Case.__dataclass_fields__), row.get("settings", {})])
                for row in read_rows()}  # fmt: skip
        for case in wanted():
            if case.key in done or case.key in tried:
                continue
            tried.add(case.key)
            try:
                with locked(work / "runs" / f"{case.name}.lock"):
                    yield case
            except Busy:
                continue
            break
        else:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS, default="90s")
    parser.add_argument("--sets", default="cifar10,steel,xray")
    parser.add_argument("--only", default="", help="cases whose name, such as 90s-steel-simclr-conv-0, holds this")
    parser.add_argument("--flops", type=float, help="another budget, to try it; rows go to --work")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-objectives")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    if arguments.flops:
        globals()["RESULTS"] = work / "tried.jsonl"
    if not arguments.table:
        run(arguments, work)
    flops = arguments.flops or BUDGETS[arguments.budget]
    table([row for row in read_rows() if row["flops"] == flops], arguments.budget)


def run(arguments: argparse.Namespace, work: Path) -> None:
    """Measure every case that is missing."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    (work / "runs").mkdir(parents=True, exist_ok=True)
    RESULTS.parent.mkdir(exist_ok=True)
    os.environ["SELFSIGHT_CACHE"] = str(work / "cache")
    torch.set_num_threads(usable_cores())
    open_images = functools.cache(lambda name: Images(name, work))
    flops = arguments.flops or BUDGETS[arguments.budget]

    def wanted() -> list[Case]:
        each = cases(arguments.budget, flops, read_rows(), arguments.sets.split(","))
        return [case for case in each if arguments.only in case.name]

    for case in missing(wanted, work):
        try:
            row = measure(case, open_images(case.data), work)
        except Exception as error:  # whatever fails, the next case goes on
            print(json.dumps({"failed": case.name, "error": f"{type(error).__name__}: {error}"}))
            continue
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        took = (
            f"{row.get('steps', 0)} steps in {row['seconds']:.0f} s, {row.get('evaluation_seconds', 0):.0f} to measure"
        )
        print(f"{time.strftime('%H:%M')} {case.name}: k-NN {row['knn']:.3f}, linear {row['linear']:.3f}, {took}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.")
