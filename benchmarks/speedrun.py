"""What the minutes of a user are worth: whole commands by the clock, from files to k-NN, linear and few-label accuracy.

    python benchmarks/speedrun.py search cifar10 --minutes 3        # every trial, never on test images
    python benchmarks/speedrun.py test cifar10 --minutes 10 --seeds 0,1,2
    python benchmarks/speedrun.py table

`search` learns from 10,000 of the training images at most and measures on 3,000 others of them: a trial is a set of
options or values of a recipe. `test` learns from all training images, by the defaults, and measures on the test images;
it is for what is decided already. One row a trial and seed in results/speedrun.jsonl, of the last step's encoder, with
the machine; what has its row is not run again, so delete the row to measure anew. Looks for the data in SELFSIGHT_DATA
or ../shared/data.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from selfsight.machine import usable_cores

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data"))
RESULTS = HERE / "results" / "speedrun.jsonl"
FOLDERS = {"cifar10": "cifar10", "steel": "neu", "xray": "chest-xray", "things": "things"}
SHOTS = "1,5,30,all"
LEARN, HELD = 10_000, 3_000  # images of a search: to learn from, to measure on
SIDES = ("encoder", "random", "pixels", "start")

# Values of a recipe, by the name of the trial.
TRIALS: dict[str, dict[str, Any]] = {
    "default": {},
    "32 px": {"size": 32},
    "64 px": {"size": 64},
    "96 px": {"size": 96},
    "128 px": {"size": 128},
    "AdamW": {"optimiser": "adamw"},
    "half the rate": {"learning_rate": 1e-2},
    "twice the rate": {"learning_rate": 4e-2},
    "coding rate": {"objective": "emp"},
    "VICReg": {"objective": "vicreg"},
    "before": {
        "batch_size": 256,
        "optimiser": "adamw",
    },  # and four quarters of at most 128 px: the default until 2026-11
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("search", "test", "table"))
    parser.add_argument("set", choices=FOLDERS, nargs="?", default="cifar10")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--trials", default="", help="names, separated by commas; all of them if not given")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-speedrun")
    given = parser.parse_args()
    if given.phase != "table":
        given.work.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("SELFSIGHT_CACHE", str(given.work / "cache"))
        names = given.trials.split(",") if given.trials else list(TRIALS if given.phase == "search" else ["default"])
        sides = sides_of(given.set, given.work, given.phase == "search")
        for seed in map(int, given.seeds.split(",")):
            for trial in names:
                about = {"phase": given.phase, "set": given.set, "trial": trial, "minutes": given.minutes, "seed": seed}
                about["cores"] = usable_cores()
                if not any(about.items() <= row.items() for row in read_rows()):
                    row = about | measure(given.set, trial, seed, given.minutes, sides, given.work)
                    RESULTS.parent.mkdir(exist_ok=True)
                    with RESULTS.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(line(trial, [row]), flush=True)
    table(read_rows())


def data_folder(name: str, work: Path) -> Path:
    """The folder with train/ and test/, unpacked into `work` where it comes as a zip."""
    folder = DATA / FOLDERS[name]
    if folder.is_dir():
        return folder
    unpacked = work / FOLDERS[name]
    if not unpacked.exists():
        with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
            archive.extractall(work)
    return unpacked


def sides_of(name: str, work: Path, search: bool) -> tuple[Path, Path]:
    """Folders to learn from and to measure on. For a search both are links to training images: which is a hash of the
    path."""
    folder = data_folder(name, work)
    if not search:
        return folder / "train", folder / "test"
    made = work / "search" / name
    if not made.exists():
        files = sorted(path for path in (folder / "train").rglob("*") if path.is_file())
        files.sort(key=lambda path: hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())
        held = min(HELD, len(files) // 4)
        for side, some in (("held", files[:held]), ("learn", files[held : held + LEARN])):
            for file in some:
                link = made / side / file.relative_to(folder / "train")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
    return made / "learn", made / "held"


def run(*arguments: str) -> tuple[dict[str, Any], float, float]:
    """A selfsight command's JSON, its wall seconds and its peak memory in MB."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "selfsight", *arguments, "--json"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} failed with {process.returncode}")
    return json.loads(output), time.monotonic() - began, usage.ru_maxrss / 1024


def measure(name: str, trial: str, seed: int, minutes: float, sides: tuple[Path, Path], work: Path) -> dict[str, Any]:
    """What is in a row beside its name: pretrain, then evaluate the last step's encoder."""
    train, test = sides
    out = work / "runs" / f"{name}-{trial}-{seed}-{int(time.time())}".replace(" ", "-")
    out.parent.mkdir(exist_ok=True)
    values = dict(TRIALS[trial])
    if trial == "before":
        values["size"] = 64 if name == "cifar10" else 128
        group = {"count": 4, "size": values["size"] // 2, "scale": [0.25, 0.25], "ratio": [1.0, 1.0]}
        values["views"] = {"groups": [group]}
    recipe = out.with_suffix(".yaml")
    recipe.write_text(yaml.safe_dump({"resolved": values}))
    given = ["--recipe", str(recipe)] if values else []
    options = ["-o", str(out), "--minutes", f"{minutes:g}", "--seed", str(seed), *given]
    pretrained, seconds, memory = run("pretrain", str(train), *options)
    sides, evaluation_seconds, _ = run("evaluate", str(out), "--train", str(train), "--test", str(test), "--shots",
                                       SHOTS)  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    resolved = yaml.safe_load((out / "recipe.yaml").read_text())["resolved"]
    environment = json.loads((out / "environment.json").read_text())
    return {
        "seconds": round(seconds, 1), "peak_mb": round(memory), "evaluation_seconds": round(evaluation_seconds, 1),
        "steps": pretrained["steps"], "size": resolved["size"], "objective": resolved["objective"],
        "threads": resolved["threads"], "first_step_at": round(rows[0]["seconds"], 1),
        "views_per_second": round(statistics.median(row["views_per_second"] for row in rows)),
        "figures": {side: figures(sides[side]) for side in SIDES if side in sides},
        "machine": environment["processor"], "cores": environment["cores"], "torch": environment["versions"]["torch"],
    }  # fmt: skip


def figures(probes: dict[str, Any]) -> dict[str, float]:
    """Accuracy in %, by probe."""
    few = {count: value["mean"] for count, value in probes["few_shot"].items() if count != "all"}
    found = {"knn": probes["knn"]["top1"], "linear": probes["linear"]["top1"], **few}
    return {name: round(100 * value, 1) for name, value in found.items()}


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


Key = tuple[str, str, float, int]  # phase, set, minutes, cores


def together(rows: list[dict[str, Any]]) -> Iterator[tuple[Key, dict[str, list[dict[str, Any]]]]]:
    """(key, {trial: its rows}): rows of one key are comparable."""
    for key in sorted({(row["phase"], row["set"], row["minutes"], row["cores"]) for row in rows}):
        mine = [row for row in rows if (row["phase"], row["set"], row["minutes"], row["cores"]) == key]
        trials = dict.fromkeys(row["trial"] for row in mine)
        yield key, {trial: [row for row in mine if row["trial"] == trial] for trial in trials}


def table(rows: list[dict[str, Any]]) -> None:
    """Mean and spread over seeds, the best k-NN first, beside the controls."""
    for (phase, name, minutes, cores), trials in together(rows):
        some = next(iter(trials.values()))
        where = "held-out training images" if phase == "search" else "test images"
        print(f"\n{name}, {minutes:g} minutes, {cores} core{'s' * (cores > 1)}, {some[0]['machine']}, on {where}")
        print(f"{'':28}{'steps':>7}" + "".join(f"{title:>14}" for title in some[0]["figures"]["encoder"]))
        for trial, own in sorted(trials.items(), key=lambda each: -each[1][0]["figures"]["encoder"]["knn"]):
            print(line(trial, own))
        for side in SIDES[1:]:
            if side in some[0]["figures"]:
                print(line(side, some, side))


def line(title: str, rows: list[dict[str, Any]], side: str = "encoder") -> str:
    cells = []
    for name in rows[0]["figures"][side]:
        values = [row["figures"][side][name] for row in rows]
        spread = f" ± {statistics.stdev(values):3.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    steps = f"{round(statistics.mean(row['steps'] for row in rows)):,}" if side == "encoder" else ""
    return f"{title + f' ({len(rows)})':28}{steps:>7}" + "".join(f"{cell:>14}" for cell in cells)


if __name__ == "__main__":
    main()
