"""How fast a hundred thousand files are imported, and how memory grows up to a million rows of a table.

    python benchmarks/scale.py --folder /a/disk/with/10/GB

Makes 100,000 different JPEG files of up to 20 KB, and a table of up to 1,000,000 hard links to 400 of them; imports
each by the command, in a process of its own: files a second, peak memory, and the same command again on unchanged data,
which may open no image (an audit hook of Python counts). One row a measurement in results/scale.jsonl, with the load of
the machine before it; what has its row is not measured again. Removes what it made, unless --keep.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from speedrun import HERE, run

from selfsight.console import track
from selfsight.machine import environment

RESULTS = HERE / "results" / "scale.jsonl"
FILES, TABLES = 100_000, (1_000, 10_000, 100_000, 1_000_000)
LINKED = 400  # files that stand for all rows of a table
IN_FOLDER = 1000


def pictures(count: int) -> Iterator[bytes]:
    """JPEG files of 3 to 20 KB: 64 pictures, each file made unlike any other by a comment."""
    rng = np.random.default_rng(0)
    bases = []
    for _ in range(64):
        side = int(rng.integers(90, 220))
        coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        out = io.BytesIO()
        coarse.resize((side, side)).save(out, "JPEG", quality=int(rng.integers(80, 97)))
        bases.append(out.getvalue()[:-2])  # without its end marker
    for i in range(count):
        yield bases[i % 64] + b"\xff\xfe\x00\x0a%08d" % i + b"\xff\xd9"


def path_of(number: int) -> str:
    return f"{number // IN_FOLDER:04d}/{number:07d}.jpg"


def make_files(folder: Path, count: int) -> None:
    """`count` files in folders of a thousand; what is there is not written again."""
    if (folder / path_of(count - 1)).exists():
        return
    for i, data in enumerate(track(pictures(count), "Writing files", count)):
        if i % IN_FOLDER == 0:
            (folder / path_of(i)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path_of(i)).write_bytes(data)


def make_table(folder: Path, files: Path, count: int) -> Path:
    """A table of `count` rows with labels, whose files are hard links to the first of `files`."""
    table = folder / "table.csv"
    targets = [str(files / path_of(i)) for i in range(LINKED)]
    folder.mkdir(parents=True, exist_ok=True)
    with table.open("w") as out:
        out.write("path,label,group\n")
        for i in track(range(count), "Making links", count):
            path = folder / path_of(i)
            if i % IN_FOLDER == 0:
                path.parent.mkdir(exist_ok=True)
            if not path.exists():
                os.link(targets[i % LINKED], path)
            out.write(f"{path_of(i)},class {i % 10},patient {i % 1000}\n")
    return table


def measure(what: str, source: Path, count: int, out: Path) -> dict[str, Any]:
    """Import, and import again; both in processes of their own."""
    shutil.rmtree(out, ignore_errors=True)
    load = os.getloadavg()[0]
    first, seconds, memory = run("import", str(source), "-o", str(out))
    again, seconds_again, memory_again = run("import", str(source), "-o", str(out))
    assert first["items"] == again["items"] == count, first["reasons"]
    row = {"what": what, "files": count, "seconds": round(seconds, 2), "files_per_second": round(count / seconds)}
    row |= {"peak_mb": round(memory), "again_seconds": round(seconds_again, 2), "again_peak_mb": round(memory_again)}
    row |= {"again_opened": opened(source, out), "load_before": round(load, 2)}
    shutil.rmtree(out)
    machine = environment("cpu")
    return row | {name: machine[name] for name in ("processor", "cores", "memory_gb", "python", "versions")}


def opened(source: Path, out: Path) -> int:
    """How many images a start on unchanged data opens: every `open` of the process is seen by an audit hook."""
    program = """
import sys
seen = []
sys.addaudithook(lambda event, given: event == "open" and str(given[0]).endswith(".jpg") and seen.append(given[0]))
open(sys.argv[3]).close()
from selfsight import import_
import_(sys.argv[1], out=sys.argv[2])
print(len(seen))
"""
    image = (source if source.is_dir() else source.parent) / path_of(0)
    command = [sys.executable, "-c", program, str(source), str(out), str(image)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout) - 1  # one was opened to see that the hook works


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    folder, results = arguments.folder / "selfsight-scale", arguments.results
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    results.parent.mkdir(exist_ok=True)
    files = folder / "files"
    make_files(files, FILES)
    for what, count in (("folder", FILES), *(("table", count) for count in TABLES)):
        if any((row["what"], row["files"]) == (what, count) for row in rows):
            continue
        source = files if what == "folder" else make_table(folder / "links", files, count)
        row = measure(what, source, count, folder / "out.lance")
        print(f"{what} of {count:,}: {row['files_per_second']:,} a second, {row['peak_mb']:,} MB, "
              f"again {row['again_seconds']:.1f} s and {row['again_opened']} opened", flush=True)  # fmt: skip
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
    if not arguments.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
