"""Whether `plan` says what a run will take: its estimate beside the run, on seven kinds of data.

    python benchmarks/plan.py

Plans, then pretrains with the same options and the default recipe, both as a user types them, with an empty cache at
first. One row a data set in results/plan.jsonl: the estimate, the seconds of the command, its peak memory, and the
values that were chosen. What has its row is not measured again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from speedrun import DATA, HERE, data_folder, run

from selfsight.machine import environment
from selfsight.verbs.demo import write_digits

RESULTS = HERE / "results" / "plan.jsonl"
SHOWN = ("encoder", "size", "canvas_side", "canvases", "batch_size", "channels", "threads", "precision")


def digits(work: Path) -> Path:
    write_digits(work / "digits")
    return work / "digits" / "train"


def cifar(count: int) -> Callable[[Path], Path]:
    def folder(work: Path) -> Path:
        train = data_folder("cifar10", work) / "train"
        out = work / f"cifar-{count}"
        if count >= 50_000 or out.exists():
            return train if count >= 50_000 else out
        for each in sorted(train.iterdir()):
            (out / each.name).mkdir(parents=True)
            for path in sorted(each.iterdir())[: count // 10]:
                shutil.copy(path, out / each.name)
        return out

    return folder


def five_channels(work: Path) -> Path:
    """Microscopy as it might be: 200 TIFF files of five channels of 16 bits, blobs on a dark ground."""
    out, rng = work / "five", np.random.default_rng(0)
    out.mkdir(exist_ok=True)
    y, x = np.mgrid[:256, :256]
    for i in range(200):
        image = rng.poisson(200, (5, 256, 256)).astype(np.float64)
        for _ in range(rng.integers(10, 40)):
            cy, cx, r = rng.integers(0, 256), rng.integers(0, 256), rng.uniform(4, 14)
            image += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * r * r)) * rng.uniform(0, 8000, (5, 1, 1))
        tifffile.imwrite(out / f"{i:03d}.tif", image.clip(0, 65535).astype(np.uint16), planarconfig="separate",
                         photometric="minisblack")  # fmt: skip
    return out


def forty(work: Path) -> Path:
    """Forty photographs of 640 x 480: blood smears."""
    out = work / "forty"
    out.mkdir(exist_ok=True)
    for path in sorted((DATA / "bccd").rglob("*.jpg"))[:40]:
        Image.open(path).save(out / path.name)
    return out


# name: (folder of the images, budget)
SETS: dict[str, tuple[Callable[[Path], Path], tuple[str, str]]] = {
    "digits": (digits, ("--epochs", "6")),
    "CIFAR-10, 1,000": (cifar(1000), ("--epochs", "8")),
    "CIFAR-10, 50,000": (cifar(50_000), ("--steps", "30")),
    "steel": (lambda work: DATA / "neu" / "train", ("--epochs", "3")),
    "X-ray": (lambda work: DATA / "chest-xray" / "train", ("--epochs", "2")),
    "five channels": (five_channels, ("--epochs", "12")),
    "forty images": (forty, ("--steps", "60")),
}


def main() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    work = Path(tempfile.mkdtemp(prefix="selfsight-plan-"))
    os.environ["SELFSIGHT_CACHE"] = str(work / "cache")
    for name, (folder, budget) in SETS.items():
        if any(row["data"] == name for row in rows):
            continue
        source, load = str(folder(work)), os.getloadavg()[0]
        planned, took_plan, _ = run("plan", source, *budget)
        began = time.monotonic()
        result, took, peak = run("pretrain", source, "-o", str(work / f"run-{len(rows)}"), *budget)
        row: dict[str, Any] = {"data": name, "items": planned["items"], "budget": " ".join(budget)}
        row |= {"estimate": round(planned["estimate"]["seconds"], 1), "took": round(took, 1)}
        row |= {"ratio": round(planned["estimate"]["seconds"] / took, 3), "steps": result["steps"]}
        row |= {"steps_planned": planned["estimate"]["steps"], "plan_took": round(took_plan, 1)}
        row |= {"memory_estimate_mb": round(planned["estimate"]["memory_bytes"] / 1e6), "peak_mb": round(peak)}
        row |= {k: planned["values"][k] for k in SHOWN} | {"load_before": round(load, 2)}
        row["processor"] = environment("cpu")["processor"]
        rows.append(row)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name}: estimated {row['estimate']} s, took {row['took']} s, ratio {row['ratio']} "
              f"({time.monotonic() - began:.0f} s)", flush=True)  # fmt: skip
    print("| data | items | budget | estimate, s | took, s | ratio | memory estimate, MB | peak of the process, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['data']} | {row['items']:,} | {row['budget']} | {row['estimate']:.0f} | {row['took']:.0f} | "
              f"{row['ratio']:.2f} | {row['memory_estimate_mb']:,} | {row['peak_mb']:,} |")  # fmt: skip
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
