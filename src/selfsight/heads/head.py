"""The folder of a head, of whatever task: all that is needed to use it, also when it is moved elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from selfsight.data.collection import Collection
from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import read_folder, save
from selfsight.errors import DataError, SelfsightError, check_version
from selfsight.files import clear_left, own_folder, read_json, whole, write_whole
from selfsight.heads.modules import as_tensor
from selfsight.heads.voice import FORMAT_VERSION, About, Voice
from selfsight.results import Result


class Stored(NamedTuple):
    """What a head folder holds, as it was read: about, the tensors of head.safetensors, encoder, items.parquet."""

    folder: Path
    about: About
    state: dict[str, Tensor]
    encoder: Encoder
    items: pa.Table


class Head(Voice):
    """A head that can be used. `module` is it as one network, `items` what it learnt from.

    A task is a subclass, named in `tasks.TASKS`; what verbs ask of a head is here.
    """

    def __init__(self, path: Path | None, about: About, module: nn.Module, items: pa.Table) -> None:
        self.path, self.about, self.module, self.items = path, about, module.eval(), items

    @classmethod
    @abstractmethod
    def of(cls, stored: Stored) -> Self:
        """The head that a folder holds."""

    @abstractmethod
    def predict(self, items: Collection, folder: Path | None = None) -> pa.Table:
        """A row for each item, in the order of ids, see DESIGN.md; its pictures go into `folder`."""

    def told_of(self, items: Collection, rows: pa.Table) -> tuple[pa.Table, dict[str, str]]:
        """What `--watch` appends: (a row for each of these usable `rows` that can be read, in their order, without
        pictures and without the column `head`; {id: reason} of the others). Nothing is kept with the collection.

        Raises `SelfsightError` for a task that does not watch.
        """
        raise SelfsightError(f"--watch is not for heads of the task {self.about.task}. Leave it out.")

    @abstractmethod
    def evaluate(self, items: Collection, labels: str | None, by: str | None, masks: str | None) -> Result:
        """Its figures on the labelled items of a collection. labels: a table of them. by: a column, for whose values
        the figures are given apart. masks: a folder of them. Raises `SelfsightError` for one that it does not take."""

    def tables(self, predictions: pa.Table, items: pa.Table, size: float, unit: str) -> dict[str, bytes]:
        """{file: what it holds} of what a folder of predictions also lists. items: that they are of. size: side of a
        pixel, in a unit of length or "px"."""
        return {}

    @property
    @abstractmethod
    def decides(self) -> list[object]:
        """What its answers depend on beside encoder and tensors: plain values and dataclasses."""

    @property
    def geometry(self) -> Geometry:
        return self.encoder.geometry

    @property
    def stride(self) -> int:
        return max(self.encoder.level_strides)

    @torch.inference_mode()
    def tensors_of(self, pixels: np.ndarray, looked: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, Tensor] = self.module(as_tensor(pixels, self.encoder.device))
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    @property
    def encoder(self) -> Encoder:
        encoder: Encoder = self.module.encoder  # type: ignore[assignment]
        return encoder

    @cached_property
    def digest(self) -> str:
        digest = hashlib.blake2b(json.dumps(self.decides, default=asdict).encode(), digest_size=8)
        for part in (self.module.task, self.module.calibrate):
            assert isinstance(part, nn.Module)
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


# -- the folder --


def head_folder(model: object) -> Path | None:
    """The head folder that a name means; None if it means none."""
    if not isinstance(model, str | os.PathLike):
        return None
    path = Path(model).expanduser()
    return path if (path / "head.json").is_file() else None


def load_head(path: str | os.PathLike[str]) -> Head:
    """The head in the folder `path`, on the CPU. Raises `SelfsightError` if there is none, or it is damaged."""
    from safetensors.torch import load_file

    from selfsight.heads.tasks import head_type

    folder = head_folder(path)
    if folder is None:
        if not Path(path).expanduser().exists():
            raise DataError(f"There is no head {path}. See where yours are: selfsight runs")
        made = "selfsight train classify, detect, inspect or segment"
        raise DataError(f"{path} is not a head: it has no head.json. Heads are made by {made}.")
    content = read_json(folder / "head.json") or {}
    check_version(int(str(content.get("format_version", 1))), FORMAT_VERSION, folder)
    try:
        kind = head_type(str(content["task"]))
        about = kind.about_type.of(content)
        state = load_file(folder / "head.safetensors")
        items = pq.read_table(folder / "items.parquet")
        head = kind.of(Stored(folder, about, state, read_folder(folder / "encoder"), items))
    except DataError:
        raise
    except Exception as error:  # a damaged file raises many kinds
        raise DataError(f"The head in {folder} cannot be read ({type(error).__name__}). Train it again.") from None
    if head.encoder.digest != about.encoder:
        raise DataError(f"The encoder in {folder} is not the one that the head was trained on. Train the head again.")
    return head


def forget_in(folder: Path, ids: set[str], contents: set[str]) -> int:
    """Remove items with these ids or contents from items.parquet of a head, with their features, and what shows or
    names them: its page, and their names in evaluation.json. Returns how many it had learnt from.

    Neighbours then vote without them. Any other method has learnt from them already, which only training again undoes.
    Raises `DataError` if none would be left.
    """
    file = folder / "items.parquet"
    items = pq.read_table(file)
    pairs = zip(items["id"].to_pylist(), items["content_hash"].to_pylist(), strict=True)
    gone = [item in ids or content in contents for item, content in pairs]
    if _forget_tested(folder, ids) or any(gone):
        (folder / "report.html").unlink(missing_ok=True)
    if not any(gone):
        return 0
    left = items.filter(pa.array([not each for each in gone]))
    by_features = (read_json(folder / "head.json") or {}).get("task") == "classify"
    if not len(left["features"].drop_null() if by_features else left):
        raise DataError(f"The head {folder} has learnt from nothing else. Delete the folder itself.")
    with whole(file) as out:
        pq.write_table(left, out)
    return sum(gone)


def _forget_tested(folder: Path, ids: set[str]) -> bool:
    """Take mistakes on these items out of evaluation.json; whether there were any."""
    file = folder / "evaluation.json"
    content = read_json(file) or {}
    mistakes = content.get("mistakes")
    if not isinstance(mistakes, list):
        return False
    left = [one for one in mistakes if not (isinstance(one, dict) and one.get("id") in ids)]
    if len(left) < len(mistakes):
        write_whole(file, json.dumps(content | {"mistakes": left}, indent=2))
    return len(left) < len(mistakes)


def save_head(
    folder: Path, about: About, state: Mapping[str, Tensor], encoder: Encoder, items: pa.Table,
    lineage: Mapping[str, object],
) -> Head:  # fmt: skip
    """Write a head folder in one step, in place of one that is there; returns it as it is read back. state: the tensors
    of head.safetensors."""
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_left(folder)
    made = own_folder(folder)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        save(encoder, made / "encoder")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()},
                  made / "head.safetensors")  # fmt: skip
        pq.write_table(items, made / "items.parquet")
        (made / "lineage.json").write_text(json.dumps(dict(lineage), indent=2))
        (made / "head.json").write_text(json.dumps(asdict(about), indent=2))
        before = folder.with_name(f"{folder.name}.before")
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)
            os.replace(folder, before)
        os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return load_head(folder)
