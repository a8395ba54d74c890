"""From a head or an encoder to NAME.onnx, NAME.json and run.py, kept only if they say the same as the original."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.console import console
from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.deploy.about import about_export, as_metadata
from selfsight.deploy.graphs import Inputs, inputs_of, write_graph
from selfsight.deploy.precision import Batch, Quantiser, halved
from selfsight.deploy.proof import (
    MOST,
    PIXELS,
    Example,
    Proof,
    Tensors,
    by_engine,
    by_torch,
    cheap,
    check,
    compared,
    examples_of,
    pace_of,
    usual_size,
)
from selfsight.encoders.encoder import Encoder
from selfsight.errors import SelfsightError
from selfsight.files import write_whole
from selfsight.heads.head import Head

FEW = 20  # images, below which the same ones find ranges and prove the export
RANGES = 128  # images, at most, by which ranges are found
TRIED = 16  # images, by which groups of layers are ordered
RUN = Path(__file__).parent / "run.py"


class Made(NamedTuple):
    """What was written. about: what NAME.json says. kept: layers in float32, and all. notes: for the user."""

    about: dict[str, object]
    proof: Proof
    kept: tuple[int, int]
    notes: list[str]


def exported(
    model: Head | Encoder, path: Path, precision: str, items: Collection, rows: pa.Table, labels: Labels | None
) -> Made:
    """Write a head or an encoder to `path`, with NAME.json and run.py beside it.

    precision: fp32, fp16 or int8. rows: of the collection, by which it is proved and ranges are found. Raises
    `SelfsightError`, and writes nothing, where the network cannot be exported or does not say the same.
    """
    check_place(path)
    takes = inputs_of(model, usual_size(model, rows))
    examples = examples_of(model, takes, items, rows, labels)
    notes: list[str] = []
    if len(examples) < len(rows):
        notes.append(
            f"{len(examples):,} of {len(rows):,} images were compared, spread evenly: as many as have "
            f"{PIXELS[isinstance(model, Head) and model.draws]:,} pixels together, at most {MOST:,}. Those that cannot "
            "be read, or have a size that the network does not take, are left out."
        )
    with tempfile.TemporaryDirectory(prefix="selfsight-export-") as name:
        folder = Path(name)
        file = folder / "fp32.onnx"
        about = _written(model, takes, file, precision)
        proved, ranges, (kept, layers) = examples, examples, (0, 0)
        if precision == "int8" and len(examples) >= FEW:
            step = max(2, -(-len(examples) // RANGES))
            proved, ranges = [one for place, one in enumerate(examples) if place % step], examples[::step]
        elif precision == "int8":
            notes.append(f"The same {len(examples)} images found the ranges of int8 and proved it; give more.")
        before = by_torch(model, proved)
        if precision == "fp16":
            halved(file, folder / "fp16.onnx")
            file = folder / "fp16.onnx"
        if precision == "int8":
            quantiser = Quantiser(file, [_batch(one) for one in ranges], folder)
            file, kept, layers = _quantised(model, quantiser, proved, before)
        found = compared(model, proved, before, by_engine(file, proved))
        check(found, precision)
        pace = {"1": pace_of(file, proved[0], 1), "all": pace_of(file, proved[0], None)}
        found = replace(found, bytes=file.stat().st_size, pace=pace)
        about |= {"kept": [kept, layers]} if precision == "int8" else {}
        about |= {"proof": found.to_dict()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, file.read_bytes())
        write_whole(path.with_suffix(".json"), json.dumps({"file": path.name, **about}, indent=1))
        write_whole(path.parent / "run.py", RUN.read_bytes())
    return Made(about, found, (kept, layers), notes)


def check_place(path: Path) -> None:
    """Raise `SelfsightError` where a run.py of somebody else would be overwritten."""
    there = path.parent / RUN.name
    if there.exists() and not there.read_bytes().startswith(RUN.read_bytes().splitlines()[0]):
        raise SelfsightError(f"{there} is there and was not written by selfsight export. Give a folder of its own: -o")


def _written(model: Head | Encoder, takes: Inputs, file: Path, precision: str) -> dict[str, object]:
    """Write the network in float32 with what it says of itself, which is returned."""
    console().print("Writing the network; this takes from seconds to minutes.")
    about = about_export(model, takes, precision)
    write_graph(model, file, size=takes.size, about=as_metadata(about))
    return about


def _batch(example: Example) -> Batch:
    return {name: np.ascontiguousarray(value) for name, value in example.given.items()}


def _quantised(
    model: Head | Encoder, quantiser: Quantiser, examples: Sequence[Example], before: Sequence[Tensors]
) -> tuple[Path, int, int]:
    """(file, layers that stay in float32, layers) of 8 bits that cost no more than a point.

    Where all layers in 8 bits cost more, groups of them are put back into float32, one after the other, first those
    that alone do the most damage. Raises `SelfsightError` where no group but the last is cheap.
    """
    groups, out = range(len(quantiser.groups)), quantiser.folder / "int8.onnx"
    layers = sum(map(len, quantiser.groups))
    damage: dict[int, float] = {}
    for count in range(len(quantiser.groups)):
        if count == 1:
            few = slice(0, TRIED)
            for group in groups:
                quantiser.write(out, [other for other in groups if other != group])
                found = compared(model, examples[few], before[few], by_engine(out, examples[few]))
                damage[group] = found.difference if found.cosine is None else 1.0 - found.cosine
        kept = sorted(damage, key=lambda group: -damage[group])[:count]
        quantiser.write(out, kept)
        if cheap(compared(model, examples, before, by_engine(out, examples))):
            return out, sum(len(quantiser.groups[group]) for group in kept), layers
    raise SelfsightError("int8 costs more than a point here, whichever layers stay in fp32. Use --precision fp32.")
