"""A head that answers by its export, with ONNX Runtime: neither PyTorch nor timm is imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from selfsight.data.geometry import Geometry
from selfsight.deploy.engine import Engine
from selfsight.errors import SelfsightError
from selfsight.files import read_json
from selfsight.heads.classify_voice import ClassifyVoice
from selfsight.heads.detect_voice import DetectVoice
from selfsight.heads.inspect_voice import InspectVoice
from selfsight.heads.segment_voice import SegmentVoice
from selfsight.heads.voice import Voice

PARTS = ("head.json", "head.safetensors", "items.parquet", "encoder/config.json", "encoder/model.safetensors")


def export_of(folder: Path) -> Path:
    """Where the export of the head in `folder` is looked for: NAME.onnx beside it."""
    return folder.with_name(f"{folder.name}.onnx")


def content_of(folder: Path) -> str:
    """Hash of the files of a head folder that its answers depend on."""
    found = hashlib.blake2b(digest_size=8)
    for name in PARTS:
        with (folder / name).open("rb") as file:
            found.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


class Exported(Voice):
    """The head in `folder` as its export answers. Inputs of a size that the graph does not take are computed by
    PyTorch, which is imported with the first of them.

    engine: what computes. takes: what it takes, as the metadata of the `file` say.
    """

    def __init__(self, folder: Path, file: Path, engine: Engine, said: Mapping[str, object]) -> None:
        """said: what the metadata of the file say."""
        self.path, self.file, self._digest = folder, file, str(said["digest"])
        self.engine: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]] = engine
        self.takes = cast(Mapping[str, int], said["input"])
        self.about = self.about_type.of(read_json(folder / "head.json") or {})
        self.items = pq.read_table(folder / "items.parquet")
        state = load_file(folder / "head.safetensors")
        self.roi = state["roi"] > 0 if "roi" in state else None
        self._lean = state.get("calibrate.lean")
        facts = {name: tuple(v) if isinstance(v, list) else v for name, v in self.about.geometry.items()}
        self._geometry = Geometry(**facts)  # type: ignore[arg-type]

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    @property
    def stride(self) -> int:
        return int(self.takes["stride"])

    @property
    def digest(self) -> str:
        return self._digest

    def tensors_of(self, pixels: np.ndarray, looked: np.ndarray) -> dict[str, np.ndarray]:
        if self.takes["free"] or pixels.shape[2:] == (self.takes["height"], self.takes["width"]):
            return self.engine(pixels, looked)
        return self._by_torch.tensors_of(pixels, looked)

    @cached_property
    def _by_torch(self) -> Voice:
        from selfsight.heads.head import load_head

        return load_head(self.path)


class ExportedClassify(ClassifyVoice, Exported):
    """A head that names classes, grades or numbers."""


class ExportedDetect(DetectVoice, Exported):
    """A head that finds objects."""


class ExportedInspect(InspectVoice, Exported):
    """A head that says which parts have a defect."""


class ExportedSegment(SegmentVoice, Exported):
    """A head that says what is where."""

    @property
    def lean(self) -> np.ndarray:
        assert self._lean is not None
        return self._lean


TASKS: dict[str, type[Exported]] = {
    "classify": ExportedClassify, "detect": ExportedDetect, "inspect": ExportedInspect, "segment": ExportedSegment,
}  # fmt: skip


def open_export(folder: Path, file: Path) -> Exported | str:
    """The head in `folder` as the ONNX `file` answers, if that is its export; else why it is not used."""
    try:
        engine = Engine(file)
        said = {name: json.loads(value) for name, value in engine.metadata.items()}
        task, digest = TASKS[said["task"]], str(said["digest"])
    except (SelfsightError, KeyError, ValueError) as error:
        return str(error) if isinstance(error, SelfsightError) else f"{file} does not say what it was made of."
    if "pooled" not in engine.outputs:
        return f"{file} was written by an older version. Export the head again."
    if said.get("content") != content_of(folder) and digest != _digest_of(folder):
        return f"{file} was made of another head. Export this one again."
    try:
        return task(folder, file, engine, said)
    except (OSError, KeyError, TypeError, ValueError) as error:
        return f"{folder} is damaged ({type(error).__name__}: {error})."


def _digest_of(folder: Path) -> str:
    """The digest of a head whose files are not those that were exported; they may say the same all the same."""
    from selfsight.heads.head import load_head

    return load_head(folder).digest
