"""How many labels the encoders of benchmarks/encoders.py save: `selfsight label-curve` on every set and start.

    python benchmarks/label_curves.py                                    # what is missing: hours
    python benchmarks/label_curves.py --sets steel --starts imagenet --arms frozen
    python benchmarks/label_curves.py --table

Steel and X-rays: frozen features at all numbers of labels, five draws, also with labels that `select` chose and with
guesses; supervision from scratch and fine-tuning with all labels, once, and with 5 and 30 per class, three draws.
CIFAR-10 and wbc: frozen features only; of wbc the classes 1 to 4, half of site 1 to learn from, measured on the other
half and on site 2, another laboratory. (X-ray patients may cross the split, which flatters all arms.) What was measured
stays in SELFSIGHT_CURVES (default: beside the encoders), so the same
command goes on after a stop; a row a curve is in results/label_curves.jsonl, with the digest of its encoder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from encoders import KEPT, STARTS, WORK, encoder
from speedrun import DATA, HERE, data_folder

CURVES = Path(os.environ.get("SELFSIGHT_CURVES", KEPT.parent / "curves"))
RESULTS = HERE / "results" / "label_curves.jsonl"
SCRATCH = ("steel", "xray")  # where supervision from scratch is measured too
CLASSES = ("1", "2", "3", "4")  # of wbc: the fifth has two pictures
FROZEN = "frozen,selected,selftrained"
SHOTS = "1,2,5,10,30,100,all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default="steel,xray,wbc,wbc-site2,cifar10")
    parser.add_argument("--starts", default=",".join(STARTS))
    parser.add_argument("--arms", default="frozen,scratch", help="frozen, or frozen,scratch")
    parser.add_argument("--minutes", default="5", help="of a training from scratch")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    given = parser.parse_args()
    for name in () if given.table else given.sets.split(","):
        for start in given.starts.split(","):
            measure(name, start, given.arms, given.minutes)
    for row in read_rows():
        print(line(row))


def measure(name: str, start: str, arms: str, minutes: str) -> None:
    """Measure what is missing of a curve, and write its row anew."""
    folder, digest = encoder(name.partition("-site")[0], start)
    model = folder.parent if folder.name == "encoder" else folder  # a run knows its starting weights and its views
    train, test = sides(name)
    command = [sys.executable, "-m", "selfsight", "label-curve", str(model), "--train", str(train), "--test", str(test)]
    command += ["-o", str(CURVES / f"{name}-{start}"), "--shots", SHOTS, "--minutes", minutes, "--json"]
    began = time.monotonic()
    if name in SCRATCH and "scratch" in arms:
        run([*command, "--arms", "scratch,finetuned", "--scratch-shots", "5,30", "--seeds", "3"])
        found = run([*command, "--arms", f"{FROZEN},random,start,scratch,finetuned", "--scratch-shots", "all"])
    else:
        found = run([*command, "--arms", "frozen"])
    row = {
        "set": name, "start": start, "encoder": digest, "leading": found["leading"], "train": found["train_items"],
        "test": found["test_items"], "level": found["level"], "needed": found["needed"], "curves": found["curves"],
        "minutes": float(minutes), "seconds": round(time.monotonic() - began, 1), "notes": found["notes"],
    }  # fmt: skip
    others = [each for each in read_rows() if (each["set"], each["start"]) != (name, start)]
    RESULTS.write_text("".join(json.dumps(each) + "\n" for each in [*others, row]))
    print(f"{time.strftime('%H:%M')} {line(row)}", flush=True)


def run(command: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def sides(name: str) -> tuple[Path, Path]:
    """What to learn from and what to measure on."""
    if not name.startswith("wbc"):
        folder = data_folder(name, WORK)
        return folder / "train", folder / "test"
    if name == "wbc-site2":
        return listed("site1", "train"), listed("site2", "all")
    return listed("site1", "train"), listed("site1", "test")


def listed(site: str, part: str) -> Path:
    """A table of the pictures of a site with their classes: one half by a hash of the name, the other, or all."""
    images = DATA / "wbc" / site
    chosen = []
    with (images / "labels.csv").open(newline="") as file:
        for row in csv.reader(file):
            if len(row) < 2 or row[1].strip() not in CLASSES:
                continue
            path = images / "images" / f"{int(row[0]):03d}.png"
            half = ("train", "test")[hashlib.sha256(path.stem.encode()).digest()[0] % 2]
            if part in (half, "all"):
                chosen.append((path, f"class {row[1].strip()}"))
    WORK.mkdir(parents=True, exist_ok=True)
    table = WORK / f"wbc-{site}-{part}.csv"
    with table.open("w", newline="") as out:
        csv.writer(out).writerows([("path", "label"), *chosen])
    return table


def read_rows() -> list[dict[str, Any]]:
    return [json.loads(text) for text in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def line(row: dict[str, Any]) -> str:
    """A row for people: the accuracies of frozen features, and the labels saved."""
    figures = "  ".join(f"{p['shots']} {100 * p['accuracy']['value']:.1f}" for p in row["curves"]["frozen"])
    saved = row["needed"].get("frozen", {}).get("saved")
    level = "" if row["level"] is None else f"  scratch {100 * row['level']['value']:.1f}"
    ends = "" if not saved else f"  saved {[saved[name] for name in ('value', 'low', 'high')]}"
    return f"{row['set']:10} {row['start']:9} {row['encoder']}  {figures}{level}{ends}"


if __name__ == "__main__":
    main()
