"""A head that says which parts have a defect, and where: what it says of items, and its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.heads.head import Head, Stored
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
from selfsight.heads.inspect_voice import InspectAbout, Inspected, InspectVoice, Suspect, said_of
from selfsight.heads.modules import as_tensor
from selfsight.heads.parts import GOOD
from selfsight.heads.pictures import Pictures, in_grey
from selfsight.heads.placed import Placed, batched, placed
from selfsight.heads.predictions import Unread, failed, read_rows, unread, with_unread
from selfsight.heads.targets import written_label
from selfsight.heads.voice import FORMAT_VERSION
from selfsight.results import Result

SUSPICIOUS = 5  # good parts that are named


# What `predictions` say of a part.
COLUMNS = {"score": pa.float64(), "p": pa.float64(), "defect": pa.bool_(), "map": pa.string()}


class InspectHead(InspectVoice, Head):
    """A head that says which parts have a defect, and where."""

    module: InspectModule

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

    @torch.inference_mode()
    def tensors_of(self, pixels: np.ndarray, looked: np.ndarray) -> dict[str, np.ndarray]:
        found = self.module(*(as_tensor(each, self.encoder.device) for each in (pixels, looked)))
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

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

    def predict(self, items: Collection, folder: Path | None = None) -> pa.Table:
        """A row for each item: id, uri, reason, score (higher is more abnormal), p, defect, map, head. With a folder,
        its pictures are drawn as they come, and those that are there already, of this head, are not drawn again."""
        usable = items.usable
        bad: dict[int, str] = {}
        rows: dict[int, dict[str, object]] = {}
        ids = usable["id"].to_pylist()
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
            row = said_of(one)
            if pictures is not None and one.map is not None:
                row = pictures.draw(number, in_grey(one.pixels, self.encoder.geometry), one.map, row)
            rows[number] = row
        rest: list[Unread] = unread(items.set_aside)
        rest += failed(some, {ids[int(todo[number])]: reason for number, reason in bad.items()})
        return with_unread(read_rows(usable, rows, COLUMNS), rest, self.digest)

    def told_of(self, items: Collection, rows: pa.Table) -> tuple[pa.Table, dict[str, str]]:
        bad: dict[int, str] = {}
        found = {one.number: said_of(one) for one in self.inspect(items, rows, bad, maps=False)}
        ids = rows["id"].to_pylist()
        return read_rows(rows, found, COLUMNS), {ids[number]: reason for number, reason in bad.items()}

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
    for at in order.tolist():
        others = np.delete(learnt.held, at)
        p = float(p_values(others, learnt.held[at : at + 1])[0])
        found.append(Suspect(learnt.good.ids[at], uris[at], float(learnt.held[at]), p))
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
