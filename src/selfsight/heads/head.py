"""The folder of a head: all that is needed to use it, also when it is moved elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.data.labels import Kind, Labels
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.store import read_folder, save
from selfsight.errors import DataError, check_version
from selfsight.files import clear_left, own_folder, read_json, whole, write_whole
from selfsight.heads.calibration import Decision
from selfsight.heads.classify import Learnt, answers
from selfsight.heads.fits import Ordinal, Targets
from selfsight.heads.metrics import Answers, figures, recall, with_intervals
from selfsight.heads.modules import Calibrate, HeadModule, Linear, Memory, Nearest, Scores

FORMAT_VERSION = 1
LIKE = 3  # examples in `why`
PIECE = 4096  # items whose tensors are computed at a time


class Example(NamedTuple):
    """An item that was learnt from, its label, and the cosine of its features to those of another."""

    id: str
    uri: str
    label: str
    similarity: float


@dataclass(frozen=True)
class About:
    """What head.json says.

    task: "classify". kind: of the labels: class, classes, grade or number. classes: in the order of probabilities.
    method: that scores features. setting: of the method. decision: how probabilities become a label. coverage: that
    prediction sets promise. threshold: the least probability of a class in a set; None where nothing is promised.
    metrics: {"held_out": {metric: interval}, "recall": {class: {"sensitivity", "specificity"}}}. geometry: of the
    encoder's input. encoder: its digest. licence: of the encoder, which holds for the head. intended_use: a sentence.
    items: that it learnt from. notes: what a user must know. tried: {method and setting: loss on held-out items}.
    """

    task: str
    kind: Kind
    classes: tuple[str, ...]
    method: str
    setting: str
    decision: Decision
    coverage: float
    threshold: float | None
    metrics: dict[str, Any]
    geometry: dict[str, Any]
    encoder: str
    licence: str
    intended_use: str
    items: int
    notes: list[str] = field(default_factory=list)
    tried: dict[str, float] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, content: Mapping[str, object]) -> About:
        """From what head.json holds. Raises `KeyError` or `TypeError` for anything else."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {name: with_intervals(value) for name, value in content.items() if name in known}
        values |= {"classes": tuple(values["classes"]), "decision": Decision(**values["decision"])}
        return cls(**values)


class Head:
    """A head that can be used. `module` is it as one network, `items` what it learnt from."""

    def __init__(self, path: Path | None, about: About, module: HeadModule, items: pa.Table) -> None:
        self.path, self.about, self.module, self.items = path, about, module.eval(), items

    @property
    def encoder(self) -> Encoder:
        return self.module.encoder

    @property
    def labelled(self) -> pa.Table:
        """The items whose label was given, and not guessed by self-training."""
        if "guessed" not in self.items.column_names:
            return self.items
        return self.items.filter(pa.compute.invert(self.items["guessed"]))

    @cached_property
    def digest(self) -> str:
        """Hash of all that its answers depend on: encoder, weights, calibration, decision, remembered items."""
        made_of: list[object] = [self.about.encoder, self.about.kind, self.about.classes, asdict(self.about.decision)]
        made_of += [self.about.method, self.about.setting]
        made_of += [self.about.threshold, FORMAT_VERSION]
        digest = hashlib.blake2b(json.dumps(made_of, default=asdict).encode(), digest_size=8)
        for part in (self.module.task, self.module.calibrate):
            for name, tensor in sorted(part.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def tensors(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """The module's outputs for pooled features [N, D], as arrays."""
        device = self.encoder.device
        parts: list[dict[str, Tensor]] = []
        with torch.inference_mode():
            for part in torch.from_numpy(np.ascontiguousarray(features, np.float32)).split(PIECE):
                parts.append(self.module.of_features(part.to(device)))
        return {name: torch.cat([part[name] for part in parts]).double().cpu().numpy() for name in parts[0]}

    def answers(self, found: dict[str, np.ndarray]) -> Answers:
        """What the tensors say of each item."""
        about = self.about
        return answers(about.kind, about.classes, found, about.decision, about.threshold)

    def why(self, features: np.ndarray) -> list[list[Example]]:
        """Of each row of features [N, D] the 3 examples that are most like it."""
        bank: Tensor = self.module.task.memory.bank  # type: ignore[union-attr, assignment]
        known = self.items.filter(self.items["features"].is_valid())
        rows = known.select(["id", "uri", "label"]).to_pylist()
        found: list[list[Example]] = []
        for part in torch.from_numpy(np.ascontiguousarray(features, np.float32)).split(PIECE):
            similarity, index = (F.normalize(part.to(bank.device), dim=1) @ bank.T).topk(min(LIKE, len(bank)), dim=1)
            for cosines, places in zip(similarity.tolist(), index.tolist(), strict=True):
                found.append([Example(**rows[i], similarity=s) for i, s in zip(places, cosines, strict=True)])
        return found

    def predictions(self, rows: pa.Table, features: np.ndarray) -> pa.Table:
        """One row an item of `rows`, with pooled `features` [N, D]: DESIGN's columns for the kind, without `reason`."""
        if not len(rows):  # the columns all the same
            nobody = pa.table({"id": ["nobody"], "uri": ["nobody"]})
            return self.predictions(nobody, np.zeros((1, self.encoder.dim), np.float32)).slice(0, 0)
        found = self.tensors(features)
        said = self.answers(found)
        columns: dict[str, Any] = {"id": rows["id"], "uri": rows["uri"]}
        columns |= _columns(self.about, said, found)
        columns["novel"] = pa.array(found["novel"], pa.float64())
        columns["why"] = pa.array([[one._asdict() for one in few] for few in self.why(features)], WHY)
        return pa.table(columns)


WHY = pa.list_(
    pa.struct([("id", pa.string()), ("uri", pa.string()), ("label", pa.string()), ("similarity", pa.float64())])
)


def _columns(about: About, said: Answers, found: dict[str, np.ndarray]) -> dict[str, pa.Array]:
    """The columns between `uri` and `novel`."""
    if about.kind == "number":
        return {name: pa.array(found[name], pa.float64()) for name in ("value", "low", "high")}
    probabilities = pa.array(list(said.probabilities.astype(np.float32)), pa.list_(pa.float32()))
    sets = None if said.sets is None else _named(about.classes, said.sets)
    if about.kind == "classes":
        score = np.where(said.decided.any(1), np.where(said.decided, said.probabilities, 0.0).max(1), np.nan)
        return {
            "labels": pa.array(_named(about.classes, said.decided), pa.list_(pa.string())),
            "score": pa.array(score, pa.float64(), from_pandas=True),
            "probabilities": probabilities,
            "set": pa.nulls(len(score), pa.list_(pa.string())) if sets is None else pa.array(sets),
        }
    score = said.probabilities[np.arange(len(said.decided)), said.decided]
    return {
        "label": pa.array([about.classes[number] for number in said.decided], pa.string()),
        "score": pa.array(score, pa.float64()),
        "probabilities": probabilities,
        "set": pa.nulls(len(score), pa.list_(pa.string())) if sets is None else pa.array(sets, pa.list_(pa.string())),
        "abstain": pa.array(said.abstained),
    }


def _named(classes: Sequence[str], chosen: np.ndarray) -> list[list[str]]:
    return [[name for name, there in zip(classes, row, strict=True) if there] for row in chosen]


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

    folder = head_folder(path)
    if folder is None:
        raise DataError(f"{path} is not a head: it has no head.json. Heads are made by: selfsight train classify")
    content = read_json(folder / "head.json") or {}
    check_version(int(str(content.get("format_version", 1))), FORMAT_VERSION, folder)
    try:
        about = About.of(content)
        state = load_file(folder / "head.safetensors")
        items = pq.read_table(folder / "items.parquet")
        encoder = read_folder(folder / "encoder")
        module = HeadModule(encoder, _task(about, state, items), _calibrate(about, state))
    except DataError:
        raise
    except Exception as error:  # a damaged file raises many kinds
        raise DataError(f"The head in {folder} cannot be read ({type(error).__name__}). Train it again.") from None
    if encoder.digest != about.encoder:
        raise DataError(f"The encoder in {folder} is not the one that the head was trained on. Train the head again.")
    return Head(folder, about, module, items)


def remembered(items: pa.Table) -> Tensor:
    """The features [M, D] of unit length that items.parquet keeps."""
    known = items["features"].drop_null().combine_chunks()
    values = known.flatten().to_numpy(zero_copy_only=False).reshape(len(known), -1)
    return F.normalize(torch.from_numpy(np.array(values, np.float32)), dim=1)


def _task(about: About, state: dict[str, Tensor], items: pa.Table) -> Scores:
    bank = remembered(items)
    if about.method == "knn":
        values = [read_label(label, about.kind) for label in items["label"].to_pylist()]
        labels = Labels(about.kind, items, tuple(values), "")
        targets = torch.from_numpy(Targets.of(labels, about.classes).values)
        scorer: nn.Module = Nearest(bank, targets, about.kind, int(about.setting.removeprefix("k=")))
    elif about.method == "ordinal":
        scorer = Ordinal(state["weight"], state["cuts"])
    else:
        scorer = Linear(state["weight"], state["bias"])
    return Scores(scorer, Memory(bank))


def _calibrate(about: About, state: dict[str, Tensor]) -> Calibrate:
    return Calibrate(about.kind, *(state[f"calibrate.{name}"] for name in ("temperature", "width", "distances")))


def written_label(value: object) -> str:
    """A label as a cell of a table: several as `a|b`."""
    return "|".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def read_label(cell: str, kind: str) -> str | float | tuple[str, ...]:
    """The inverse of `written_label`."""
    if kind == "number":
        return float(cell)
    return tuple(filter(None, cell.split("|"))) if kind == "classes" else cell


def about_of(learnt: Learnt, labels: Labels, encoder: Encoder, notes: Sequence[str] = ()) -> About:
    """What head.json says of a fitted head, measured on the items that were held out in turn."""
    targets, there = learnt.targets, np.flatnonzero(learnt.folds >= 0)
    metrics: dict[str, Any] = {"held_out": {}, "recall": {}}
    if len(there):
        groups = [labels.groups[place] for place in there] if any(labels.groups) else None
        said, taught = held_out(learnt), targets.take(there)
        metrics = {"held_out": figures(taught, said, groups), "recall": recall(taught, said, groups)}
    named = ", ".join(targets.classes[:8]) + (", …" if len(targets.classes) > 8 else "")
    use = f"To tell {named} apart" if targets.classes else "To estimate a number"
    return About(
        "classify", targets.kind, targets.classes, learnt.method, learnt.setting, learnt.decision, learnt.coverage,
        learnt.threshold, metrics, dict(encoder.geometry.facts), encoder.digest, encoder.licence,
        f"{use} in images like those of {Path(labels.location).name}. Not tested on any others.", len(targets),
        [*notes, *learnt.notes], learnt.tried,
    )  # fmt: skip


def held_out(learnt: Learnt) -> Answers:
    """The answers for the items that were held out, in the order of the items."""
    held = learnt.held[learnt.folds >= 0]
    if learnt.targets.kind == "number":
        width = float(learnt.calibrate.width)
        found = {"value": held[:, 0], "low": held[:, 0] - width, "high": held[:, 0] + width}
    else:
        found = {"probabilities": held}
    return answers(learnt.targets.kind, learnt.targets.classes, found, learnt.decision, learnt.threshold)


def items_of(learnt: Learnt, labels: Labels, features: np.ndarray, weights: np.ndarray | None = None) -> pa.Table:
    """The table that `items.parquet` keeps of what was learnt from."""
    kept = np.zeros(len(labels), bool)
    kept[learnt.kept] = True
    held = [None if np.isnan(row).any() else row for row in learnt.held.astype(np.float32)]
    remember = [row if there else None for row, there in zip(features.astype(np.float32), kept, strict=True)]
    return pa.table(
        {
            **{name: labels.rows[name] for name in ("id", "uri", "content_hash")},
            "group": pa.array(labels.groups, pa.string()),
            "label": pa.array([written_label(value) for value in labels.values], pa.string()),
            "fold": pa.array(learnt.folds, pa.int32()),
            "weight": pa.array(np.ones(len(labels)) if weights is None else weights, pa.float64()),
            "guessed": pa.array(np.zeros(len(labels), bool)),
            "held_out": pa.array(held, pa.list_(pa.float32())),
            "features": pa.array(remember, pa.list_(pa.float32())),
        }
    )


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
    if not len(left["features"].drop_null()):
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
    folder: Path, about: About, task: Scores, calibrate: Calibrate, encoder: Encoder, items: pa.Table,
    lineage: Mapping[str, object],
) -> Head:  # fmt: skip
    """Write a head folder in one step, in place of one that is there; returns it as it is read back."""
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_left(folder)
    made = own_folder(folder)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        save(encoder, made / "encoder")
        state = {} if about.method == "knn" else dict(task.scorer.state_dict())
        state |= {f"calibrate.{name}": tensor for name, tensor in calibrate.state_dict().items()}
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
