"""What an adapter has come to: as a head folder like any other, and as the state from which a walk goes on."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import Tensor

from selfsight.data.collection import Collection
from selfsight.deploy.adapting import Adapter, decision_over
from selfsight.deploy.refit import Returned, Said
from selfsight.deploy.running import Running, Support
from selfsight.deploy.watcher import Counts, Watcher
from selfsight.errors import DataError
from selfsight.files import read_json, write_whole
from selfsight.heads.classify_voice import ClassifyAbout
from selfsight.heads.head import Head, save_head
from selfsight.machine import environment
from selfsight.probing.linear import unit_rows

FORMAT_VERSION = 1


def changed(adapter: Watcher) -> bool:
    """Whether the head says anything else than the one that it began as."""
    running = adapter.running
    return bool(running.shift.any()) or any(running.supports) or adapter.fitted


def save_adapted(adapter: Watcher, folder: Path, lineage: Mapping[str, object]) -> Head:
    """Write the head as it is now to `folder`."""
    head = adapter.head
    if isinstance(adapter, Adapter) and changed(adapter):
        return save_head(folder, about_of(adapter), _state_of(adapter), head.encoder, _items_of(adapter), lineage)
    assert head.path is not None
    return save_head(folder, head.about, load_file(head.path / "head.safetensors"), head.encoder, head.items, lineage)


def lineage_from(adapter: Watcher, stream: Collection) -> dict[str, object]:
    """What lineage.json says: what the head before says, which is its parent now, and of which stream."""
    folder = adapter.head.path
    before = (read_json(folder / "lineage.json") if folder else None) or {}
    adapted = {
        "stream": str(stream.path), "stream_version": stream.version, "images": adapter.counts.images,
        "labels": len(adapter.labels),
    }  # fmt: skip
    return before | {
        "command": shlex.join(["selfsight", *sys.argv[1:]]) if sys.argv[0].endswith("selfsight") else "from Python",
        "parent": adapter.head.digest,
        "versions": environment(str(adapter.head.encoder.device))["versions"],
        "adapted": adapted,
    }


def about_of(adapter: Adapter) -> ClassifyAbout:
    """What head.json says of it."""
    about, counts = adapter.head.about, adapter.counts
    labels = f", with {len(adapter.labels):,} labels that came back" if adapter.fitted else ""
    shift = ", for pictures that have drifted" if adapter.running.drifts else ""
    note = f"adapted to a stream of {counts.images:,} pictures{labels}{shift}; its figures are those of the head before"
    return replace(
        about,
        classes=adapter.classes,
        decision=decision_over(about.decision, len(adapter.classes)),
        items=about.items + (len(adapter.labels) if adapter.fitted else 0),
        notes=[*about.notes, note],
    )


def _state_of(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors of head.safetensors; neighbours are kept with the items."""
    state = {} if adapter.head.about.method == "knn" else dict(adapter.current.state_dict())
    calibrate: Any = adapter.head.module.calibrate
    return state | {f"calibrate.{name}": tensor for name, tensor in calibrate.state_dict().items()}


def _items_of(adapter: Adapter) -> pa.Table:
    """items.parquet: what was learnt from, where the drift has carried it, and the labels that came back."""
    items, shift = adapter.head.items, adapter.running.shift
    if shift.any():
        place = items.column_names.index("features")
        rows = [None if row is None else _carried(row, shift) for row in items["features"].to_pylist()]
        items = items.set_column(place, "features", pa.array(rows, pa.list_(pa.float32())))
    if len(adapter.classes) > len(adapter.head.about.classes):  # of which no held-out item had a probability
        place, more = items.column_names.index("held_out"), len(adapter.classes) - len(adapter.head.about.classes)
        held = [None if row is None else [*row, *[0.0] * more] for row in items["held_out"].to_pylist()]
        items = items.set_column(place, "held_out", pa.array(held, pa.list_(pa.float32())))
    if not adapter.fitted:
        return items
    use = [each for each in adapter.labels if each.said.label in adapter.classes]
    columns = {
        **{name: [getattr(each.said, name) for each in use] for name in ("id", "uri", "content_hash", "label")},
        "fold": pa.array([-1] * len(use), pa.int32()),
        "weight": pa.array([1.0] * len(use), pa.float64()),
        "guessed": [False] * len(use),
        "features": pa.array([each.known + shift for each in use], pa.list_(pa.float32())),
    }
    return pa.concat_tables([items, pa.table(columns)], promote_options="default")


def _carried(row: list[float], shift: np.ndarray) -> np.ndarray:
    """Features [D], moved by the shift that features of unit length have."""
    features = np.array(row, np.float32)[None]
    return np.asarray((unit_rows(features) + shift)[0] * np.linalg.norm(features), np.float32)


# -- the state --


def write_state(file: Path, adapter: Watcher, more: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> None:
    """Write what the adapter has come to in one step, with plain values and arrays of the caller's."""
    running, labels = adapter.running, adapter.labels
    supports = [(number, each) for number, those in enumerate(running.supports) for each in those]
    dim = len(running.shift)
    tensors = {
        "running.sums": running.sums,
        "running.counts": running.counts,
        "running.shift": running.shift,
        "supports.class": np.array([number for number, _ in supports], np.int64),
        "supports.entropy": np.array([each.entropy for _, each in supports], np.float64),
        "supports.features": np.array([each.features for _, each in supports], np.float32).reshape(-1, dim),
        "labels.seen": np.array([each.seen for each in labels], np.float32).reshape(-1, dim),
        "labels.known": np.array([each.known for each in labels], np.float32).reshape(-1, dim),
        **{f"more.{name}": value for name, value in arrays.items()},
    }
    about = {
        "format_version": FORMAT_VERSION,
        "counts": asdict(adapter.counts),
        "drifts": running.drifts,
        "labels": [[*each.said, each.right, each.was_right] for each in labels],
        "more": dict(more),
    }
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_whole(file, save(contiguous, {"about": json.dumps(about)}))


def read_state(file: Path, adapter: Watcher) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Let the adapter go on from a state; returns what the caller wrote with it. Raises `DataError` for a damaged
    one."""
    try:
        with safe_open(file, framework="numpy") as content:
            about = json.loads((content.metadata() or {})["about"])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        supports: list[list[Support]] = [[] for _ in tensors["running.counts"]]
        parts = (tensors[f"supports.{name}"] for name in ("class", "entropy", "features"))
        for number, entropy, features in zip(*parts, strict=True):
            supports[int(number)].append(Support(float(entropy), features))
        sums, counts, shift = (tensors[f"running.{name}"] for name in ("sums", "counts", "shift"))
        running = Running(sums, counts, shift, supports, about["drifts"])
        told = zip(about["labels"], tensors["labels.seen"], tensors["labels.known"], strict=True)
        labels = [Returned(Said(*row[:4]), seen, known, row[4], row[5]) for row, seen, known in told]
        adapter.restore(running, labels, Counts(**about["counts"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError):
        raise DataError(f"{file} is damaged. Remove {file.parent}, and the stream is walked from its start.") from None
    return about["more"], {name[5:]: value for name, value in tensors.items() if name.startswith("more.")}
