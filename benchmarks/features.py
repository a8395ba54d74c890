"""Reading kept features: the table that was joined through a Python dict of tuples, and the store that joins by column.

    python benchmarks/features.py --rows 200000 1000000 --dim 512

Makes a table of items and their features, and reads all of it, an eighth and a thousandth, in another order, each in a
process of its own: seconds and peak memory beside what the process held before. The disk's cache is warm.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lance
import numpy as np
import psutil
import pyarrow as pa

from selfsight.data.features import FeatureStore, Key
from selfsight.data.geometry import Geometry
from selfsight.machine import environment

KEY = Key("benchmark", "pooled", Geometry(3, 224, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3))
WAYS = ("dict", "columns")
SHARES = {"all": 1, "an eighth": 8, "a thousandth": 1000}
APPENDED = 4096  # rows at a time, as when they are computed


def items(rows: int) -> pa.Table:
    """Ids and hashes as they are in reality."""
    rng = np.random.default_rng(0)
    names = [rng.bytes(16 * rows).hex() for _ in range(2)]
    columns = [[name[32 * i : 32 * i + 32] for i in range(rows)] for name in names]
    return pa.table({"id": columns[0], "content_hash": columns[1]})


def features_of(start: int, count: int, dim: int) -> np.ndarray:
    return np.random.default_rng(start + 1).standard_normal((count, dim), dtype=np.float32)


def by_dict(path: Path, rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """As `Collection.read_features` was until the store came."""

    def keys(table: pa.Table) -> list[tuple[str, str]]:
        return list(zip(table["id"].to_pylist(), table["content_hash"].to_pylist(), strict=True))

    kept = lance.dataset(str(path)).to_table()
    where = {key: i for i, key in enumerate(keys(kept))}
    found = np.array([where.get(key, -1) for key in keys(rows)], dtype=np.int64)
    flat = kept["features"].combine_chunks()
    matrix = flat.flatten().to_numpy(zero_copy_only=False).reshape(len(kept), -1)
    return found >= 0, matrix[found[found >= 0]].astype(np.float32)


@contextmanager
def peak(figures: dict[str, float]) -> Iterator[None]:
    """Seconds, and how far memory rose above what it was, in GB."""
    process, done = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not done.wait(0.01):
            most = max(most, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.monotonic()
    try:
        yield
    finally:
        figures["seconds"] = time.monotonic() - began
        done.set()
        thread.join()
        figures["peak"] = (most - before) / 1e9


def read(way: str, folder: Path, rows: int, dim: int, share: int) -> None:
    """Read one share in one way and print seconds, GB and GB of the result. What is read is checked to the bit."""
    table, store = items(rows), FeatureStore(folder / "c.lance")
    chosen = np.random.default_rng(7).permutation(rows)[: rows // share]
    wanted, figures = table.take(chosen), {}
    del table
    with peak(figures):
        known, got = by_dict(store.folder / KEY.name, wanted) if way == "dict" else store.read(KEY, wanted)
    assert known.all() and len(got) == len(chosen)
    for start in range(0, rows, APPENDED):
        here = np.flatnonzero((chosen >= start) & (chosen < start + APPENDED))
        assert (got[here] == features_of(start, min(APPENDED, rows - start), dim)[chosen[here] - start]).all()
    print(f"{figures['seconds']:.3f} {figures['peak']:.3f} {got.nbytes / 1e9:.3f}")


def make(folder: Path, rows: int, dim: int) -> None:
    table, store = items(rows), FeatureStore(folder / "c.lance")
    for start in range(0, rows, APPENDED):
        some = table.slice(start, APPENDED)
        store.add(KEY, some, features_of(start, len(some), dim))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--read", nargs=3, metavar=("WAY", "FOLDER", "SHARE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.read:
        way, place, share = asked.read
        read(way, Path(place), asked.rows[0], asked.dim, int(share))
        return
    print(environment("cpu")["processor"], f"{os.cpu_count()} cores, others at work on them: {os.getloadavg()[0]:.1f}")
    print("| rows | dim | read | way | seconds | peak, GB | result, GB |\n|---|---|---|---|---|---|---|")
    for rows in asked.rows:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder), rows, asked.dim)
            for name, share in SHARES.items():
                for way in asked.ways:
                    command = [sys.executable, __file__, "--rows", str(rows), "--dim", str(asked.dim)]
                    command += ["--read", way, folder, str(share)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    seconds, most, result = done.stdout.split()
                    print(f"| {rows:,} | {asked.dim} | {name} | {way} | {seconds} | {most} | {result} |", flush=True)


if __name__ == "__main__":
    main()
