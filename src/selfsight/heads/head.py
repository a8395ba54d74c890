"""The folder of a head, of whatever task: all that is needed to use it, also when it is moved elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from selfsight.data.collection import Collection
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import read_folder, save
from selfsight.errors import DataError, check_version
from selfsight.files import clear_left, own_folder, read_json, whole, write_whole
from selfsight.heads.metrics import with_intervals
from selfsight.results import Result

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class About:
    """What head.json says of every head.

    task: that it is for. method: that scores features. setting: of the method. metrics: {"held_out": {metric:
    interval}, …}. geometry: of the encoder's input. encoder: its digest. licence: of the encoder, which holds for the
    head. intended_use: a sentence. items: that it learnt from. notes: what a user must know.
    """

    task: str
    method: str
    setting: str
    metrics: dict[str, Any]
    geometry: dict[str, Any]
    encoder: str
    licence: str
    intended_use: str
    items: int
    notes: list[str] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, content: Mapping[str, object]) -> Self:
        """From what head.json holds. Raises `KeyError` or `TypeError` for anything else."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {name: with_intervals(value) for name, value in content.items() if name in known}
        return cls(**values)


class Stored(NamedTuple):
    """What a head folder holds, as it was read: about, the tensors of head.safetensors, encoder, items.parquet."""

    folder: Path
    about: About
    state: dict[str, Tensor]
    encoder: Encoder
    items: pa.Table


class Head(ABC):
    """A head that can be used. `module` is it as one network, `items` what it learnt from.

    A task is a subclass, named in `tasks.TASKS`; what verbs ask of a head is here.

    about_type: what its head.json holds. gives: what it answers, in two words, where it is not classes. draws: whether
    its predictions have pictures.
    """

    about_type: ClassVar[type[About]] = About
    gives: ClassVar[str] = ""
    draws: ClassVar[bool] = False
    about: About

    def __init__(self, path: Path | None, about: About, module: nn.Module, items: pa.Table) -> None:
        self.path, self.about, self.module, self.items = path, about, module.eval(), items

    @classmethod
    @abstractmethod
    def of(cls, stored: Stored) -> Self:
        """The head that a folder holds."""

    @abstractmethod
    def predict(self, items: Collection, folder: Path | None = None) -> pa.Table:
        """A row for each item, in the order of ids, see DESIGN.md; its pictures go into `folder`."""

    @abstractmethod
    def evaluate(self, items: Collection, labels: str | None, by: str | None, masks: str | None) -> Result:
        """Its figures on the labelled items of a collection. labels: a table of them. by: a column, for whose values
        the figures are given apart. masks: a folder of them. Raises `SelfsightError` for one that it does not take."""

    @property
    @abstractmethod
    def decides(self) -> list[object]:
        """What its answers depend on beside encoder and tensors: plain values and dataclasses."""

    @property
    def encoder(self) -> Encoder:
        encoder: Encoder = self.module.encoder  # type: ignore[assignment]
        return encoder

    @cached_property
    def digest(self) -> str:
        """Hash of all that its answers depend on: encoder, weights, calibration, decision, remembered items."""
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
        raise DataError(f"{path} is not a head: it has no head.json. Heads are made by: selfsight train classify")
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


def written_label(value: object) -> str:
    """A label as a cell of a table: several as `a|b`."""
    return "|".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def read_label(cell: str, kind: str) -> str | float | tuple[str, ...]:
    """The inverse of `written_label`."""
    if kind == "number":
        return float(cell)
    return tuple(filter(None, cell.split("|"))) if kind == "classes" else cell


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
    if not len(left["features"].drop_null() if "features" in left.column_names else left):
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
