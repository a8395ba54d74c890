"""One encoder for each data set and start, from training images only: what every later benchmark builds on.

    python benchmarks/encoders.py                        # trains what is missing: about 5 core-hours for all
    python benchmarks/encoders.py --sets steel,bccd --starts scratch
    python benchmarks/encoders.py --table

A start is `scratch` (ten minutes by the defaults), `imagenet` (package:efficientnet_lite0 as it is) or `adapted` (ten
minutes from there). Encoders are kept as SET-START in the folder SELFSIGHT_ENCODERS (default: ../encoders beside the
project), outside git; results/encoders.jsonl has their digests. One whose folder is missing is trained again, and its
row replaced: by minutes, an encoder never comes out the same twice, so a benchmark names the digest it used.

    from encoders import encoder
    path, digest = encoder("steel", "scratch")
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speedrun import DATA, FOLDERS, HERE, data_folder

KEPT = Path(os.environ.get("SELFSIGHT_ENCODERS", HERE.parent.parent / "encoders"))
RESULTS = HERE / "results" / "encoders.jsonl"
SETS = ("cifar10", "steel", "xray", "things", "magnetic-tile", "wbc", "bccd")
STARTS = ("scratch", "imagenet", "adapted")
STOCK = "package:efficientnet_lite0"
MINUTES = 10.0
WORK = Path(tempfile.gettempdir()) / "selfsight-encoders"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--starts", default=",".join(STARTS))
    parser.add_argument("--table", action="store_true", help="train nothing")
    given = parser.parse_args()
    for name in () if given.table else given.sets.split(","):
        for start in given.starts.split(","):
            encoder(name, start)
    for row in read_rows():
        spent = f"{row['steps']:>6,} steps, {row['seconds']:>4.0f} s" if row["steps"] else "as it is"
        print(f"{row['set']:14} {row['start']:9} {row['digest']}  {row['images']:>6,} images  {spent}")


def encoder(name: str, start: str) -> tuple[Path, str]:
    """(folder, digest) of the encoder of a data set and a start; trained now if it is missing."""
    if name not in SETS or start not in STARTS:
        raise SystemExit(f"There is no {name} {start}: sets are {', '.join(SETS)}, starts are {', '.join(STARTS)}.")
    kept = KEPT / f"{name}-{start}"
    folder = kept if start == "imagenet" else kept / "encoder"
    row = next((row for row in read_rows() if (row["set"], row["start"]) == (name, start)), None)
    if not (folder / "config.json").exists():
        row = make(name, start, kept)
    elif row is None or digest_of(folder) != row["digest"]:
        raise SystemExit(f"{folder} is not the encoder of results/encoders.jsonl. Remove the folder to train it again.")
    return folder, row["digest"]


def make(name: str, start: str, kept: Path) -> dict[str, Any]:
    """Train or copy an encoder into `kept`. Returns its row, which replaces an earlier one."""
    from selfsight.machine import environment

    print(f"{time.strftime('%H:%M')} {name} {start}", flush=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    images, began, steps = training_images(name), time.monotonic(), 0
    if start == "imagenet":
        copy_stock(images, kept)
    else:
        weights = ["--weights", STOCK] if start == "adapted" else []
        command = [sys.executable, "-m", "selfsight", "pretrain", str(images), "-o", str(kept), "--json"]
        done = subprocess.run([*command, "--minutes", f"{MINUTES:g}", *weights], stdout=subprocess.PIPE, check=True)
        steps = json.loads(done.stdout)["steps"]
    folder = kept if start == "imagenet" else kept / "encoder"
    machine = environment("cpu")
    row = {
        "set": name, "start": start, "digest": digest_of(folder), "steps": steps,
        "seconds": round(time.monotonic() - began, 1), "images": sum(1 for _ in images.rglob("*.*")),
        "machine": machine["processor"], "cores": machine["cores"], "torch": machine["versions"]["torch"],
    }  # fmt: skip
    others = [each for each in read_rows() if (each["set"], each["start"]) != (name, start)]
    rows = sorted([*others, row], key=lambda each: (SETS.index(each["set"]), STARTS.index(each["start"])))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return row


def copy_stock(images: Path, folder: Path) -> None:
    """Save the stock weights, fitted to the channels of `images`, in `folder`."""
    from selfsight.data.canvases import measure_format
    from selfsight.data.importers import open_source
    from selfsight.encoders.store import save
    from selfsight.encoders.weights import load

    save(load(STOCK, measure_format(open_source(str(images)))), folder)


def digest_of(folder: Path) -> str:
    from selfsight.encoders.weights import load

    return load(folder).digest


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def training_images(name: str) -> Path:
    """A folder of a data set's training images, and of no others."""
    WORK.mkdir(exist_ok=True)
    if name in FOLDERS:
        return data_folder(name, WORK) / "train"
    if name == "wbc":
        return DATA / "wbc" / "site1" / "images"
    if name == "magnetic-tile":  # it has no split: four fifths, by a hash of the path
        files = sorted((DATA / name / "images").rglob("*.*"))
        return linked(name, (f for f in files if hashlib.sha256(f"{f.parent.name}/{f.name}".encode()).digest()[0] % 5))
    names = (DATA / "bccd" / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    return linked("bccd", (DATA / "bccd" / "JPEGImages" / f"{each}.jpg" for each in names))


def linked(name: str, files: Iterable[Path]) -> Path:
    """A folder with links to `files`, each within a folder of its own folder's name."""
    folder = WORK / name
    for file in files:
        link = folder / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file)
    return folder


if __name__ == "__main__":
    main()
