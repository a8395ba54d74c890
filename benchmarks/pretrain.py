"""Pretrain with the defaults, then evaluate: one row a seed, resumable, the machine named.

    python benchmarks/pretrain.py cifar10
    python benchmarks/pretrain.py steel

Looks for the data in SELFSIGHT_DATA or ../shared/data (cifar10.zip, neu/). Each row of
results/NAME.jsonl holds the commands' own output, their wall time and peak memory. A seed that has
its row is not run again; delete the row to measure anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parent.parent / "shared" / "data"))
SETS = {
    "cifar10": {"shots": "1,5,30,all", "folder": "cifar10"},
    "steel": {"shots": "1,5,10,30,all", "folder": "neu"},
}


def data_folder(name: str, work: Path) -> Path:
    """The folder with train/ and test/, unpacked into `work` where it comes as a zip."""
    folder = DATA / SETS[name]["folder"]
    if folder.is_dir():
        return folder
    unpacked = work / SETS[name]["folder"]
    if not unpacked.exists():
        with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
            archive.extractall(work)
    return unpacked


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


def measure(name: str, seed: int, minutes: float, folder: Path, work: Path) -> dict[str, Any]:
    """One row: pretrain with defaults and this seed, evaluate the last step's encoder."""
    out = work / f"{name}-{seed}-{int(time.time())}"
    pretrained, seconds, memory = run(
        "pretrain", str(folder / "train"), "-o", str(out), "--minutes", str(minutes), "--seed", str(seed)
    )
    evaluated, evaluation_seconds, evaluation_memory = run(
        "evaluate", str(out), "--train", str(folder / "train"), "--test", str(folder / "test"),
        "--shots", SETS[name]["shots"],
    )  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    row = {"set": name, "seed": seed, "minutes": minutes, "seconds": round(seconds, 1), "peak_mb": round(memory)}
    row |= {"evaluation_seconds": round(evaluation_seconds, 1), "evaluation_peak_mb": round(evaluation_memory)}
    row |= {"steps": pretrained["steps"], "evidence": pretrained["evidence"]}
    row |= {"views_per_second": round(statistics.median(r["views_per_second"] for r in rows))}
    row |= {"waiting": round(statistics.median(r["waiting"] for r in rows), 4), "first_step_at": rows[0]["seconds"]}
    row |= {k: evaluated[k] for k in ("encoder", "random", "pixels")}
    environment = json.loads((out / "environment.json").read_text())
    return row | {
        "machine": environment["processor"],
        "cores": environment["cores"],
        "versions": environment["versions"],
    }


def table(rows: list[dict[str, Any]]) -> None:
    """Mean and spread over seeds, beside the controls."""
    print(f"{rows[0]['set']}: {len(rows)} seeds of {rows[0]['minutes']:g} minutes on {rows[0]['cores']} cores, "
          f"{rows[0]['machine']}")  # fmt: skip
    few = rows[0]["encoder"]["few_shot"]
    measures = [("k-NN", lambda p: p["knn"]["top1"]), ("linear", lambda p: p["linear"]["top1"])]
    measures += [(f"{count}/class", lambda p, count=count: p["few_shot"][count]["mean"]) for count in few]
    print(f"{'':10}" + "".join(f"{side:>16}" for side in ("encoder", "random", "pixels")))
    for title, value in measures:
        cells = []
        for side in ("encoder", "random", "pixels"):
            values = [100 * value(row[side]) for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):8.1f} ± {spread:4.1f} ")
        print(f"{title:10}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "selfsight-benchmarks")
    arguments = parser.parse_args()
    results = HERE / "results" / f"{arguments.set}.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    results.parent.mkdir(exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = data_folder(arguments.set, arguments.work)
    for seed in map(int, arguments.seeds.split(",")):
        if not any((row["seed"], row["minutes"]) == (seed, arguments.minutes) for row in rows):
            rows.append(measure(arguments.set, seed, arguments.minutes, folder, arguments.work))
            with results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    table([row for row in rows if row["minutes"] == arguments.minutes])


if __name__ == "__main__":
    main()
