"""A head that says which parts have a defect, and where: what it says of items, and its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.heads.blending import Blend
from selfsight.heads.head import FORMAT_VERSION, About, Head, Stored, written_label
from selfsight.heads.inspect import Learnt, p_values
from selfsight.heads.inspect_modules import (
    Conformal,
    Gaussian,
    Inspect,
    InspectModule,
    Patches,
    PatchMemory,
    chosen_levels,
)  # fmt: skip
from selfsight.heads.parts import GOOD
from selfsight.heads.pictures import Pictures, in_grey
from selfsight.heads.placed import Placed, answered, batched, placed
from selfsight.heads.predictions import Unread, failed, unread, with_unread
from selfsight.results import Result

SUSPICIOUS = 5  # good parts that are named


@dataclass(frozen=True)
class Suspect(Result):
    """A good part that looks less normal than most others: its id, uri, score, and the share of the good parts, itself
    among them, that score as high."""

    id: str
    uri: str
    score: float
    p: float


@dataclass(frozen=True, kw_only=True)
class InspectAbout(About):
    """What head.json says of a head of the task "inspect".

    normal: classes of good parts beside good, normal and ok. false_alarms: the share of good parts that was asked to be
    called a defect at most. promised: the share that can be promised. threshold: of maps, from which a pixel is in the
    mask. usual: what half of the good parts reach somewhere in theirs, from which overlays are coloured. good, defects:
    how many of each it was made with. suspicious: the good parts that look least normal, held out. shifts: {change:
    share of good parts that would then be called a defect}, "none" for none. metrics: {"held_out": {"auroc", "found"}}
    of the known defects. tried: {method and size: AUROC}. roi: [height, width] of the mask of where it looks, None for
    everywhere.
    """

    task: str = "inspect"
    normal: tuple[str, ...] = ()
    false_alarms: float
    promised: float
    threshold: float
    usual: float
    good: int
    defects: int
    suspicious: list[Suspect] = field(default_factory=list)
    shifts: dict[str, float] = field(default_factory=dict)
    tried: dict[str, float] = field(default_factory=dict)
    roi: tuple[int, int] | None = None

    @classmethod
    def of(cls, content: Mapping[str, object]) -> InspectAbout:
        found = super().of(content)
        suspicious = [Suspect(**each) for each in cast(list[dict[str, Any]], found.suspicious)]
        roi = None if found.roi is None else (found.roi[0], found.roi[1])
        return replace(found, suspicious=suspicious, normal=tuple(found.normal), roi=roi)


class Inspected(NamedTuple):
    """What an inspection says of a file: the number of its row, score, p-value, whether it has a defect, and, if asked
    for, the map [H, W] float32 in pixels of the file. pixels: [H, W, C] of the file."""

    number: int
    score: float
    p: float
    defect: bool
    map: np.ndarray | None
    pixels: np.ndarray


class InspectHead(Head):
    """A head that says which parts have a defect, and where."""

    about_type: ClassVar = InspectAbout
    gives: ClassVar = "defects"
    draws: ClassVar = True
    about: InspectAbout
    module: InspectModule
    roi: np.ndarray | None = None

    @classmethod
    def of(cls, stored: Stored) -> InspectHead:
        about, state = stored.about, stored.state
        assert isinstance(about, InspectAbout)
        patches = Patches(chosen_levels(stored.encoder.level_strides), state["task.patches.scales"])
        kind: Any = {"memory": PatchMemory, "gaussian": Gaussian}[about.method]
        names = {"memory": ("bank",), "gaussian": ("channels", "mean", "whiten")}[about.method]
        task = Inspect(patches, kind(*(state[f"task.scorer.{name}"] for name in names)))
        calibrate = Conformal(*(state[f"calibrate.{name}"] for name in ("held", "rate", "threshold")))
        head = cls(stored.folder, about, InspectModule(stored.encoder, task, calibrate), stored.items)
        head.roi = state["roi"].numpy() > 0 if "roi" in state else None
        return head

    @property
    def decides(self) -> list[object]:
        roi = None if self.roi is None else np.packbits(self.roi).tobytes().hex()
        return [self.about.encoder, self.about.task, self.about.method, self.about.setting, roi, FORMAT_VERSION]

    @property
    def stride(self) -> int:
        """What the sides of inputs are padded to a multiple of."""
        return max(self.encoder.level_strides)

    def inspect(
        self, items: Collection, rows: pa.Table, bad: dict[int, str], maps: bool, title: str = "Inspecting"
    ) -> Iterator[Inspected]:
        """What it says of each of `rows`, file by file, not in their order; reasons of what cannot be read go into
        `bad`. maps: whether they are wanted."""

        def good() -> Iterator[Placed]:
            for one in placed(items, rows, self.encoder.geometry, self.stride, self.roi, title):
                if isinstance(one, Placed):
                    yield one
                else:
                    bad[one[0]] = one[1]

        for several in batched(good()):
            yield from self.judge(several, maps)

    @torch.inference_mode()
    def judge(self, several: list[Placed], maps: bool = True) -> Iterator[Inspected]:
        """What it says of items as they were placed."""

        def answer(pixels: Tensor, looked: Tensor) -> list[tuple[float, np.ndarray | None]]:
            found = self.module.raw(pixels, looked)
            drawn = list(found["map"].cpu().numpy()) if maps else [None] * len(pixels)
            return list(zip(found["score"].tolist(), drawn, strict=True))

        for one, answers in answered(several, answer, self.encoder.device):
            score, blend = -float("inf"), Blend(one.placements)
            whole = np.zeros(one.pixels.shape[:2], np.float32) if maps else None
            for high, drawn in answers:
                score = max(score, high)
                if whole is not None and drawn is not None:
                    for rows, part in blend.add(drawn):
                        whole[rows] = np.nan_to_num(part, copy=False)  # where nothing is looked at no tile may lie
            if whole is not None and self.roi is not None:
                whole *= self.roi
            told = self.module.calibrate({"score": torch.tensor([score], device=self.encoder.device)})
            yield Inspected(one.number, score, told["p"].item(), told["defect"].item(), whole, one.pixels)

    def predict(self, items: Collection, folder: Path | None = None) -> pa.Table:
        """A row for each item: id, uri, reason, score (higher is more abnormal), p, defect, map, head. With a folder,
        its pictures are drawn as they come, and those that are there already, of this head, are not drawn again."""
        usable = items.usable
        bad: dict[int, str] = {}
        rows: dict[int, dict[str, object]] = {}
        ids, uris = usable["id"].to_pylist(), usable["uri"].to_pylist()
        pictures = (
            None if folder is None else Pictures(folder, usable, self.digest, (self.about.usual, self.about.threshold))
        )
        done = {} if pictures is None else pictures.done
        todo = np.array([number for number, item in enumerate(ids) if item not in done], dtype=np.int64)
        for number, item in enumerate(ids):
            if item in done:
                rows[number] = done[item]
        some = usable.take(pa.array(todo))
        for one in self.inspect(items, some, bad, maps=pictures is not None):
            number = int(todo[one.number])
            row: dict[str, object] = {"score": one.score, "p": one.p, "defect": one.defect, "map": None}
            if pictures is not None and one.map is not None:
                row = pictures.draw(number, in_grey(one.pixels, self.encoder.geometry), one.map, row)
            rows[number] = row
        known = [number for number in range(len(usable)) if number in rows]
        columns: dict[str, pa.Array] = {"id": pa.array([ids[number] for number in known], pa.string())}
        columns["uri"] = pa.array([uris[number] for number in known], pa.string())
        columns["reason"] = pa.array([""] * len(known), pa.string())
        types = {"score": pa.float64(), "p": pa.float64(), "defect": pa.bool_(), "map": pa.string()}
        for name, type in types.items():
            columns[name] = pa.array([rows[number][name] for number in known], type)
        rest: list[Unread] = unread(items.set_aside)
        rest += failed(some, {ids[int(todo[number])]: reason for number, reason in bad.items()})
        return with_unread(pa.table(columns), rest, self.digest)

    def evaluate(self, items: Collection, labels: str | None, by: str | None, masks: str | None) -> Result:
        from selfsight.heads.inspect_evaluation import evaluate_inspection

        return evaluate_inspection(self, items, Labels.of(items, path=labels), by, masks, labels is not None)


def state_of(learnt: Learnt, roi: np.ndarray | None) -> dict[str, Tensor]:
    """The tensors that `head.safetensors` keeps."""
    module = learnt.module()
    state = {f"task.{name}": tensor for name, tensor in module.task.state_dict().items()}
    state |= {f"calibrate.{name}": tensor for name, tensor in module.calibrate.state_dict().items()}
    return state if roi is None else state | {"roi": torch.from_numpy(roi.astype(np.uint8))}


def about_of(
    learnt: Learnt, normal: tuple[str, ...], asked: float, shifts: dict[str, float], roi: np.ndarray | None,
    notes: list[str],
) -> InspectAbout:  # fmt: skip
    """What head.json says of a fitted inspection."""
    encoder, place = learnt.view.encoder, Path(learnt.good.location).name
    return InspectAbout(
        method=learnt.method,
        setting=learnt.setting,
        metrics={"held_out": learnt.metrics},
        geometry=dict(encoder.geometry.facts),
        encoder=encoder.digest,
        licence=encoder.licence,
        intended_use=f"To find parts that do not look like the {', '.join((*GOOD[:1], *normal))} ones of {place}. Not "
        "tested on any others.",
        items=len(learnt.good),
        notes=[*learnt.notes, *notes],
        normal=normal,
        false_alarms=asked,
        promised=learnt.rate,
        threshold=learnt.threshold,
        usual=learnt.usual,
        good=len(learnt.good),
        defects=len(learnt.defects),
        suspicious=suspects(learnt),
        shifts=shifts,
        tried=learnt.tried,
        roi=None if roi is None else (roi.shape[0], roi.shape[1]),
    )


def suspects(learnt: Learnt) -> list[Suspect]:
    """The good parts that look least normal to what did not learn from them, the worst first."""
    order = np.argsort(-learnt.held, kind="stable")[:SUSPICIOUS]
    uris = learnt.good.rows["uri"].to_pylist()
    found = []
    for place in order.tolist():
        others = np.delete(learnt.held, place)
        p = float(p_values(others, learnt.held[place : place + 1])[0])
        found.append(Suspect(learnt.good.ids[place], uris[place], float(learnt.held[place]), p))
    return found


def items_of(learnt: Learnt) -> pa.Table:
    """The table that `items.parquet` keeps: good parts, with the score of what did not learn from them, and known
    defects, with the score of the head."""
    parts = []
    for labels, folds, scores in (
        (learnt.good, learnt.folds, learnt.held),
        (learnt.defects, np.full(len(learnt.defects), -1), learnt.found),
    ):
        told = [written_label(value) for value in labels.values]
        columns = {name: labels.rows[name] for name in ("id", "uri", "content_hash")}
        columns |= {"group": pa.array(labels.groups, pa.string()), "label": pa.array(told, pa.string())}
        columns |= {"fold": pa.array(folds, pa.int32()), "held_out": pa.array(scores, pa.float64())}
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)
