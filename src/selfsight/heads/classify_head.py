"""A head that names classes, grades or numbers: what it says of items, and its folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import gathered, item_features, pooled
from selfsight.errors import SelfsightError
from selfsight.heads.classify import Learnt
from selfsight.heads.classify_voice import ClassifyAbout, ClassifyVoice, answers, known_features
from selfsight.heads.fits import Ordinal
from selfsight.heads.head import Head, Stored
from selfsight.heads.metrics import Answers, figures, recall
from selfsight.heads.modules import Calibrate, HeadModule, Linear, Memory, Nearest, Scores
from selfsight.heads.predictions import Unread, failed, unread, with_unread
from selfsight.heads.targets import Targets, read_label, written_label
from selfsight.heads.voice import FORMAT_VERSION
from selfsight.results import Result

PIECE = 4096  # items whose tensors are computed at a time


class ClassifyHead(ClassifyVoice, Head):
    """A head that names classes, grades or numbers."""

    module: HeadModule

    @classmethod
    def of(cls, stored: Stored) -> ClassifyHead:
        about = stored.about
        assert isinstance(about, ClassifyAbout)
        module = HeadModule(stored.encoder, _task(about, stored.state, stored.items), _calibrate(about, stored.state))
        return cls(stored.folder, about, module, stored.items)

    @property
    def decides(self) -> list[object]:
        about = self.about
        made_of: list[object] = [about.encoder, about.kind, about.classes, asdict(about.decision)]
        return [*made_of, about.method, about.setting, about.threshold, FORMAT_VERSION]

    @property
    def labelled(self) -> pa.Table:
        """The items whose label was given, and not guessed by self-training."""
        if "guessed" not in self.items.column_names:
            return self.items
        return self.items.filter(pa.compute.invert(self.items["guessed"]))

    def tensors(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """The module's outputs for pooled features [N, D], as arrays."""
        device = self.encoder.device
        parts: list[dict[str, Tensor]] = []
        with torch.inference_mode():
            for part in torch.from_numpy(np.ascontiguousarray(features, np.float32)).split(PIECE):
                parts.append(self.module.of_features(part.to(device)))
        return {name: torch.cat([part[name] for part in parts]).double().cpu().numpy() for name in parts[0]}

    def predictions(self, rows: pa.Table, features: np.ndarray) -> pa.Table:
        """One row an item of `rows`, with pooled `features` [N, D]: DESIGN's columns for the kind, without `reason`."""
        if not len(rows):  # the columns all the same
            nobody = pa.table({"id": ["nobody"], "uri": ["nobody"]})
            return self.predictions(nobody, np.zeros((1, self.encoder.dim), np.float32)).slice(0, 0)
        return self.as_rows(rows, features, self.tensors(features))

    def predict(self, items: Collection, folder: Path | None = None) -> pa.Table:
        """Predictions for all items, in the order of ids. Items that cannot be read have a `reason` and nothing else.

        Features are kept with the collection, so the same call goes on where it was stopped.
        """
        if not len(usable := items.usable):
            return self.told(usable, np.zeros((0, self.encoder.dim), np.float32), unread(items.set_aside))
        known, features, bad = pooled(self.encoder, items, usable)
        return self.told(known, features, unread(items.set_aside) + failed(usable, bad))

    def told(self, known: pa.Table, features: np.ndarray, rest: list[Unread]) -> pa.Table:
        """Predictions for the rows `known` with their pooled `features` [N, D], and a row for each of the `rest`, in
        the order of ids. The column `head` is its digest."""
        return with_unread(self._read(known, features), rest, self.digest)

    def told_of(self, items: Collection, rows: pa.Table) -> tuple[pa.Table, dict[str, str]]:
        known, features, bad = rows, np.zeros((0, self.encoder.dim), np.float32), dict[str, str]()
        if len(rows):  # not kept with the collection: a table of features that grows by single rows is slow to read
            numbers, features, bad = gathered(item_features(self.encoder, items, rows), rows)
            known = rows.take(numbers)
        return self._read(known, features), bad

    def _read(self, known: pa.Table, features: np.ndarray) -> pa.Table:
        """Predictions for rows that can be read."""
        found = self.predictions(known, features)
        return found.add_column(2, "reason", pa.array([""] * len(found), pa.string()))

    def evaluate(self, items: Collection, labels: str | None, by: str | None, masks: str | None) -> Result:
        from selfsight.heads.evaluation import evaluate_head

        if masks is not None:
            raise SelfsightError("--masks is for heads that say where, and this one names classes. Leave it out.")
        return evaluate_head(self, items, Labels.of(items, path=labels, kind=self.about.kind), by)


def remembered(items: pa.Table) -> Tensor:
    """The features [M, D] of unit length that items.parquet keeps."""
    return F.normalize(torch.from_numpy(known_features(items)), dim=1)


def _task(about: ClassifyAbout, state: dict[str, Tensor], items: pa.Table) -> Scores:
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


def _calibrate(about: ClassifyAbout, state: dict[str, Tensor]) -> Calibrate:
    return Calibrate(about.kind, *(state[f"calibrate.{name}"] for name in ("temperature", "width", "distances")))


def about_of(learnt: Learnt, labels: Labels, encoder: Encoder, notes: Sequence[str] = ()) -> ClassifyAbout:
    """What head.json says of a fitted head, measured on the items that were held out in turn."""
    targets, there = learnt.targets, np.flatnonzero(learnt.folds >= 0)
    metrics: dict[str, Any] = {"held_out": {}, "recall": {}}
    if len(there):
        groups = [labels.groups[place] for place in there] if any(labels.groups) else None
        said, taught = held_out(learnt), targets.take(there)
        metrics = {"held_out": figures(taught, said, groups), "recall": recall(taught, said, groups)}
    named = ", ".join(targets.classes[:8]) + (", …" if len(targets.classes) > 8 else "")
    use = f"To tell {named} apart" if targets.classes else "To estimate a number"
    return ClassifyAbout(
        kind=targets.kind,
        classes=targets.classes,
        method=learnt.method,
        setting=learnt.setting,
        decision=learnt.decision,
        coverage=learnt.coverage,
        threshold=learnt.threshold,
        metrics=metrics,
        geometry=dict(encoder.geometry.facts),
        encoder=encoder.digest,
        licence=encoder.licence,
        intended_use=f"{use} in images like those of {Path(labels.location).name}. Not tested on any others.",
        items=len(targets),
        notes=[*notes, *learnt.notes],
        tried=learnt.tried,
    )


def state_of(learnt: Learnt) -> dict[str, Tensor]:
    """The tensors that `head.safetensors` keeps; neighbours are kept with the items."""
    state = {} if learnt.method == "knn" else dict(learnt.scorer.state_dict())
    return state | {f"calibrate.{name}": tensor for name, tensor in learnt.calibrate.state_dict().items()}


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
