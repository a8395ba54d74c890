"""What a head that names classes, grades or numbers says of items, from its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.data.labels import Kind
from selfsight.heads.calibration import Decision
from selfsight.heads.metrics import Answers
from selfsight.heads.placed import Placed, inputs_of
from selfsight.heads.predictions import Row
from selfsight.heads.voice import About, Voice
from selfsight.probing.linear import unit_rows

LIKE = 3  # examples in `why`
PIECE = 256  # items that are compared with all that is remembered at a time
NEW = 0.01  # p-value below which an item is left open as unlike all that was learnt


class Example(NamedTuple):
    """An item that was learnt from, its label, and the cosine of its features to those of another."""

    id: str
    uri: str
    label: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class ClassifyAbout(About):
    """What head.json says of a head of the task "classify".

    kind: of the labels: class, classes, grade or number. classes: in the order of probabilities. decision: how
    probabilities become a label. coverage: that prediction sets promise. threshold: the least probability of a class in
    a set; None where nothing is promised. metrics: {"held_out": {metric: interval}, "recall": {class: {"sensitivity",
    "specificity"}}}. tried: {method and setting: loss on held-out items}.
    """

    task: str = "classify"
    kind: Kind
    classes: tuple[str, ...]
    decision: Decision
    coverage: float
    threshold: float | None
    tried: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, content: Mapping[str, object]) -> ClassifyAbout:
        found = super().of(content)
        decision: Any = found.decision  # as JSON has it
        return replace(found, classes=tuple(found.classes), decision=Decision(**decision))


class ClassifyVoice(Voice):
    """A head that names classes, grades or numbers, as those know it who ask it."""

    about_type: ClassVar = ClassifyAbout
    about: ClassifyAbout

    @property
    def stride(self) -> int:
        return 1

    def answers(self, found: dict[str, np.ndarray]) -> Answers:
        """What the tensors say of each item."""
        about = self.about
        return answers(about.kind, about.classes, found, about.decision, about.threshold)

    def say(self, several: list[Placed], drawn: bool = False) -> list[Row]:
        found: dict[str, np.ndarray] = {}
        for _, pixels, looked in inputs_of(several):  # one batch, as all are of one size
            found = {name: values.astype(np.float64) for name, values in self.tensors_of(pixels, looked).items()}
        numbers, features = pa.array([str(one.number) for one in several]), found.pop("pooled")
        rows = self.as_rows(pa.table({"id": numbers, "uri": numbers}), features, found)
        return self.tell(list(features), rows.drop_columns(["id", "uri"]).to_pylist())

    def as_rows(self, rows: pa.Table, features: np.ndarray, found: dict[str, np.ndarray]) -> pa.Table:
        """What is said of `rows`, with their features [N, D] and tensors: DESIGN's columns for the kind, without
        `reason`."""
        said = self.answers(found)
        columns: dict[str, Any] = {"id": rows["id"], "uri": rows["uri"]}
        columns |= _columns(self.about, said, found)
        columns["novel"] = pa.array(found["novel"], pa.float64())
        columns["why"] = pa.array([[one._asdict() for one in few] for few in self.why(features)], WHY)
        return pa.table(columns)

    def why(self, features: np.ndarray) -> list[list[Example]]:
        """Of each row of features [N, D] the 3 examples that are most like it."""
        bank, rows = self._bank, self._remembered
        unit, few = unit_rows(np.asarray(features, np.float32)), min(LIKE, len(bank))
        found: list[list[Example]] = []
        for start in range(0, len(unit), PIECE):
            alike = unit[start : start + PIECE] @ bank.T
            places = np.argpartition(-alike, few - 1, axis=1)[:, :few]
            places = np.take_along_axis(places, np.argsort(-np.take_along_axis(alike, places, 1), 1), 1)
            cosines = np.take_along_axis(alike, places, axis=1).tolist()
            for some, near in zip(places.tolist(), cosines, strict=True):
                found.append([Example(**rows[i], similarity=s) for i, s in zip(some, near, strict=True)])
        return found

    @cached_property
    def _bank(self) -> np.ndarray:
        return unit_rows(known_features(self.items))

    @cached_property
    def _remembered(self) -> list[dict[str, str]]:
        known = self.items.filter(self.items["features"].is_valid())
        return known.select(["id", "uri", "label"]).to_pylist()  # type: ignore[no-any-return]


WHY = pa.list_(
    pa.struct([("id", pa.string()), ("uri", pa.string()), ("label", pa.string()), ("similarity", pa.float64())])
)


def answers(kind: str, classes: tuple[str, ...], found: dict[str, np.ndarray], decision: Decision,
            threshold: float | None) -> Answers:  # fmt: skip
    """What the tensors of a head, as arrays, say of each item."""
    if kind == "number":
        value, ends = found["value"][:, None], np.stack([found["low"], found["high"]], 1)
        return Answers(value, value, ends if np.isfinite(ends).all() else None, np.zeros(len(value), bool))
    p = found["probabilities"]
    sets = None if threshold is None else p >= threshold
    if kind == "classes":
        return Answers(p, p >= 0.5, sets, np.zeros(len(p), bool))
    if sets is not None:  # the likeliest class is always in it, which covers more than was promised
        sets |= p == p.max(1, keepdims=True)
    left = np.zeros(len(p), bool) if sets is None else sets.sum(1) != 1
    if "novel" in found:
        left |= found["novel"] < NEW
    return Answers(p, decision.answers(classes, p), sets, left)


def known_features(items: pa.Table) -> np.ndarray:
    """The features [M, D] that items.parquet keeps, of those of its items that it keeps any of."""
    known = items["features"].drop_null().combine_chunks()
    values = known.flatten().to_numpy(zero_copy_only=False).reshape(len(known), -1)
    return np.array(values, np.float32)


def _columns(about: ClassifyAbout, said: Answers, found: dict[str, np.ndarray]) -> dict[str, pa.Array]:
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
