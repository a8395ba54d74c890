"""How fast an exported encoder is: torch, ONNX Runtime in fp32 and int8, and OpenVINO, batches of 1 and 32.

    python benchmarks/latency.py run [--openvino PYTHON] [--threads 2]
    python benchmarks/latency.py table

With one thread what is taken is the processor's time, which other work on the machine stretches little; with several it
is the time on the clock, for which the machine must do nothing else. The engines take turns, so that it stretches all
alike. A row has the median and the least, in ms an image. Ranges of int8 are found on pictures of steel
(SELFSIGHT_DATA). What is there in results/latency.jsonl is not measured again. OpenVINO has an environment of its own,
without its telemetry, and computes in bf16 where the processor can:

    python -m venv /tmp/openvino && /tmp/openvino/bin/pip install --no-deps openvino numpy
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from selfsight.data.geometry import Geometry
from selfsight.deploy.engine import Engine
from selfsight.deploy.graphs import EncoderModule, write_graph
from selfsight.deploy.precision import Quantiser
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import create

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "latency.jsonl"
DATA = Path(os.environ.get("SELFSIGHT_DATA", HERE.parents[1] / "shared" / "data"))
ENCODERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "resnet18": ("resnet18", 224, {}),
    "resnet50": ("resnet50", 224, {}),
    "the default on a CPU": ("resnet18", 128, {"layers": [1, 1, 1, 0], "channels": [64, 128, 256, 256]}),
}
BATCHES, SECONDS, LEAST = (1, 32), 10.0, 4
# What the other environment runs: it times a network as often as it is asked to on a line.
SERVED = """
import sys, time, numpy as np, openvino as ov
core = ov.Core()
model = core.compile_model(sys.argv[1], "CPU", {"INFERENCE_NUM_THREADS": int(sys.argv[2])})
pixels = np.load(sys.argv[3])
print(ov.__version__, flush=True)
for _ in sys.stdin:
    clock = time.process_time if sys.argv[2] == "1" else time.perf_counter
    start = clock(); model([pixels]); print(clock() - start, flush=True)
"""


def pictures(size: int, count: int) -> np.ndarray:
    """[N, 3, size, size] uint8 of steel."""
    files = sorted((DATA / "neu" / "train").rglob("*.*"))
    files = files[:: max(1, len(files) // count)][:count]
    images = [np.asarray(Image.open(file).convert("RGB").resize((size, size))) for file in files]
    return np.stack(images).transpose(0, 3, 1, 2).copy()


def made(name: str, folder: Path) -> tuple[Encoder, dict[str, Path]]:
    """An encoder with random weights, and its networks."""
    architecture, size, args = ENCODERS[name]
    torch.manual_seed(0)
    encoder = create(architecture, Geometry(3, size, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3), args).eval()
    files = {"fp32": folder / "fp32.onnx", "int8": folder / "int8.onnx"}
    write_graph(encoder, files["fp32"])
    images = [{"pixels": one[None]} for one in pictures(size, 32)]
    Quantiser(files["fp32"], images, folder).write(files["int8"])
    return encoder, files


def timed(work: Callable[[], object], threads: int) -> Callable[[], float]:
    clock = time.process_time if threads == 1 else time.perf_counter

    def once() -> float:
        start = clock()
        work()
        return clock() - start

    return once


def engines(
    encoder: Encoder, files: dict[str, Path], pixels: np.ndarray, openvino: str | None, folder: Path, threads: int
) -> dict[str, Callable[[], float]]:
    """{engine: a call that takes the time of one batch}."""
    module, images = EncoderModule(encoder).eval(), torch.from_numpy(pixels)
    torch.set_num_threads(threads)

    def by_torch() -> None:
        with torch.inference_mode():
            module(images)

    sessions = {name: Engine(file, threads) for name, file in files.items()}
    found = {"torch": timed(by_torch, threads)}
    for name, session in sessions.items():
        found[f"ONNX Runtime {name}"] = timed(lambda session=session: session(pixels), threads)  # type: ignore[misc]
    if openvino:
        np.save(folder / "pixels.npy", pixels)
        for name, file in files.items():
            command = [openvino, "-c", SERVED, str(file), str(threads), str(folder / "pixels.npy")]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            process.stdout.readline()

            def ask(process: Any = process) -> float:
                process.stdin.write("\n")
                process.stdin.flush()
                return float(process.stdout.readline())

            found[f"OpenVINO {name}"] = ask
    return found


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run(openvino: str | None, threads: int) -> None:
    for name, (_, size, _) in ENCODERS.items():
        todo = [batch for batch in BATCHES if not done(name, batch, openvino, threads)]
        if not todo:
            continue
        with tempfile.TemporaryDirectory() as at:
            folder = Path(at)
            encoder, files = made(name, folder)
            for batch in todo:
                times = measured(engines(encoder, files, pictures(size, batch), openvino, folder, threads))
                with RESULTS.open("a") as file:
                    for engine, each in times.items():
                        row = {"encoder": name, "size": size, "engine": engine, "batch": batch, "threads": threads}
                        per = [1000 * value / batch for value in each]
                        row |= {"median_ms": round(statistics.median(per), 3), "least_ms": round(min(per), 3)}
                        row |= {"runs": len(per)}
                        file.write(json.dumps(row) + "\n")
                        print(row, flush=True)


def done(name: str, batch: int, openvino: str | None, threads: int) -> bool:
    asked = (name, batch, threads)
    there = {row["engine"] for row in rows() if (row["encoder"], row["batch"], row.get("threads", 1)) == asked}
    return len(there) >= (5 if openvino else 3)


def measured(calls: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Times of the engines, which take turns, after two rounds that do not count."""
    for _ in range(2):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.monotonic()
    while time.monotonic() - start < SECONDS or len(next(iter(times.values()))) < LEAST:
        for name, call in calls.items():
            times[name].append(call())
    return times


def table() -> Iterator[str]:
    known = [{"threads": 1, **row} for row in rows()]
    names = list(dict.fromkeys(row["engine"] for row in known))
    yield "| encoder | threads | batch | " + " | ".join(names) + " |"
    yield "|---" * (3 + len(names)) + "|"
    parts = ("encoder", "size", "threads", "batch")
    for key in dict.fromkeys(tuple(row[part] for part in parts) for row in known):
        found = {row["engine"]: row for row in known if tuple(row[part] for part in parts) == key}
        cells = [f"{found[n]['median_ms']:.2f} ({found[n]['least_ms']:.2f})" if n in found else "" for n in names]
        yield f"| {key[0]}, {key[1]} px | {key[2]} | {key[3]} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--openvino", help="the Python of its environment")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.what == "run":
        run(given.openvino, given.threads)
    print("\n".join(table()))
