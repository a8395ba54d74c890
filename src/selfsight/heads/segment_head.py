"""A head that says what is where: what it says of items, and its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.data.masks import Masks, numbers_of
from selfsight.errors import SelfsightError
from selfsight.heads.head import FORMAT_VERSION, About, Head, Stored
from selfsight.heads.objects import Thing, apart, things_of
from selfsight.heads.pictures import in_grey
from selfsight.heads.placed import Placed, answered, batched, placed
from selfsight.heads.predictions import Unread, failed, unread, with_unread
from selfsight.heads.segment import Learnt, class_ious, each_miou, pixels_of_classes
from selfsight.heads.segment_maps import Whole
from selfsight.heads.segment_modules import APART, Calibrate, Decoder, Readout, Segment, SegmentModule
from selfsight.heads.segment_pictures import MaskPictures
from selfsight.results import Result

# What `predictions` say of an object: where it is in pixels of the file, its area in them, centroid and mean grey.
OBJECT = pa.struct(
    [
        ("label", pa.string()),
        *((name, pa.float64()) for name in ("score", "x0", "y0", "x1", "y1", "area", "x", "y", "intensity")),
        ("rle", pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SegmentAbout(About):
    """What head.json says of a head of the task "segment".

    classes: their names, first the background. numbers: of each in masks. told_apart: whether objects that touch are
    told apart. threshold: of the watershed. least: pixels of an object. radius: of the guided filter. held_out: how
    many pictures the metrics are of. pixels: of them that are truly of each class. tried: {setting and size: mIoU}.
    unusable: masks that were set aside. metrics: also "classes", the intersection over union of each. roi: [height,
    width] of the mask of where it looks, None for everywhere.
    """

    task: str = "segment"
    classes: list[str]
    numbers: list[int]
    told_apart: bool
    threshold: float
    least: int
    radius: int
    held_out: int
    pixels: dict[str, int] = field(default_factory=dict)
    tried: dict[str, float] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    roi: tuple[int, int] | None = None

    @classmethod
    def of(cls, content: Mapping[str, object]) -> SegmentAbout:
        found = super().of(content)
        return replace(found, roi=None if found.roi is None else (found.roi[0], found.roi[1]))


class Segmented(NamedTuple):
    """What a segmentation says of a file: the number of its row, mask [H, W] of places of classes, objects [H, W] from
    1, what they are, how sure it is of a pixel (the mean of the probability of its class), and the picture in grey
    [H, W] uint8."""

    number: int
    mask: np.ndarray
    objects: np.ndarray
    things: list[Thing]
    score: float
    grey: np.ndarray


class SegmentHead(Head):
    """A head that says what is where."""

    about_type: ClassVar = SegmentAbout
    gives: ClassVar = "masks"
    draws: ClassVar = True
    about: SegmentAbout
    module: SegmentModule
    roi: np.ndarray | None = None

    @classmethod
    def of(cls, stored: Stored) -> SegmentHead:
        about, state = stored.about, stored.state
        assert isinstance(about, SegmentAbout)
        channels, classes = stored.encoder.level_channels, len(about.classes)
        own = {name.removeprefix("readout."): value for name, value in state.items() if name.startswith("readout.")}
        readout: Readout | Decoder
        if about.method == "linear":
            readout = Readout(channels, own["weight"], own["bias"])
        else:
            readout = Decoder(channels, classes + (APART if about.told_apart else 0), own["mean"], own["scale"])
            readout.load_state_dict(own)
        calibrate = Calibrate(*(state[f"calibrate.{name}"] for name in ("slope", "offset", "lean")))
        task = Segment(readout, classes, about.radius)
        head = cls(stored.folder, about, SegmentModule(stored.encoder, task, calibrate), stored.items)
        head.roi = state["roi"].numpy() > 0 if "roi" in state else None
        return head

    @property
    def decides(self) -> list[object]:
        told = [self.about.classes, self.about.threshold, self.about.least, self.about.radius]
        told += [] if self.roi is None else [np.packbits(self.roi).tobytes().hex()]
        return [self.about.encoder, self.about.task, self.about.method, *told, FORMAT_VERSION]

    def segment(
        self, items: Collection, rows: pa.Table, bad: dict[int, str], title: str = "Segmenting"
    ) -> Iterator[Segmented]:
        """What it says of each of `rows`, file by file, not in their order; reasons of what cannot be read go into
        `bad`."""

        def good() -> Iterator[Placed]:
            for one in placed(items, rows, self.encoder.geometry, max(self.encoder.level_strides), self.roi, title):
                if isinstance(one, Placed):
                    yield one
                else:
                    bad[one[0]] = one[1]

        for several in batched(good()):
            yield from self.judge(several)

    @torch.inference_mode()
    def judge(self, several: list[Placed]) -> Iterator[Segmented]:
        """What it says of items as they were placed."""

        def answer(pixels: Tensor, looked: Tensor) -> list[dict[str, np.ndarray]]:
            found = {name: tensor.cpu().numpy() for name, tensor in self.module(pixels).items() if name != "mask"}
            return [{name: maps[place] for name, maps in found.items()} for place in range(len(pixels))]

        for one, answers in answered(several, answer, self.encoder.device):
            whole = Whole(answers, one.placements, self.module.calibrate, self.roi)
            objects = apart(whole.mask, whole.centre, whole.boundary, self.about.threshold, self.about.least)
            grey = in_grey(one.pixels, self.encoder.geometry)
            things = things_of(objects, whole.mask, whole.probabilities, grey)
            yield Segmented(one.number, whole.mask, objects, things, whole.score, grey)

    def predict(self, items: Collection, folder: Path | None = None) -> pa.Table:
        """A row for each item: id, uri, reason, score (how sure it is of a pixel, the mean), mask (its path in the
        folder), objects, head. With a folder, its pictures are drawn as they come, and those that are there already, of
        this head, are not drawn again."""
        usable = items.usable
        bad: dict[int, str] = {}
        ids, uris = usable["id"].to_pylist(), usable["uri"].to_pylist()
        how = self.about.numbers, self.about.told_apart
        pictures = None if folder is None else MaskPictures(folder, usable, self.digest, *how)
        done = {} if pictures is None else pictures.done
        rows: dict[int, dict[str, object]] = {n: done[item] for n, item in enumerate(ids) if item in done}
        todo = np.array([number for number in range(len(ids)) if number not in rows], dtype=np.int64)
        some = usable.take(pa.array(todo))
        for one in self.segment(items, some, bad):
            number = int(todo[one.number])
            row: dict[str, object] = {
                "score": one.score,
                "mask": None,
                "objects": [self._said(thing) for thing in one.things],
            }
            if pictures is not None:
                row = pictures.draw_mask(number, one.grey, one.mask, one.objects, row)
            rows[number] = row
        known = [number for number in range(len(usable)) if number in rows]
        columns: dict[str, pa.Array] = {"id": pa.array([ids[number] for number in known], pa.string())}
        columns["uri"] = pa.array([uris[number] for number in known], pa.string())
        columns["reason"] = pa.array([""] * len(known), pa.string())
        for name, type in (("score", pa.float64()), ("mask", pa.string()), ("objects", pa.list_(OBJECT))):
            columns[name] = pa.array([rows[number][name] for number in known], type)
        rest: list[Unread] = unread(items.set_aside)
        rest += failed(some, {ids[int(todo[number])]: reason for number, reason in bad.items()})
        return with_unread(pa.table(columns), rest, self.digest)

    def _said(self, thing: Thing) -> dict[str, Any]:
        """An object as a row of predictions has it."""
        box = dict(zip(("x0", "y0", "x1", "y1"), map(float, thing.box), strict=True))
        name = self.about.classes[thing.label]
        where = {"area": float(thing.area), "x": thing.centroid[0], "y": thing.centroid[1]}
        return {"label": name, "score": thing.score, **box, **where, "intensity": thing.intensity, "rle": thing.runs}

    def evaluate(self, items: Collection, labels: str | None, by: str | None, masks: str | None) -> Result:
        from selfsight.heads.segment_evaluation import evaluate_segmentation

        if labels is not None and masks is not None:
            raise SelfsightError("--labels and --masks both name the true masks. Give one of them.")
        path = labels or masks
        known = Labels.of(items, path=path, kind="masks")
        found = Masks.of(items, known, self.about.told_apart, self.roi)
        location = str(Path(path).expanduser().resolve()) if path else ""
        return evaluate_segmentation(self, items, found.with_names(tuple(self.about.classes)), by, location)


def state_of(learnt: Learnt) -> dict[str, Tensor]:
    """The tensors that `head.safetensors` keeps."""
    state = {f"readout.{name}": tensor for name, tensor in learnt.task.readout.state_dict().items()}
    state |= {f"calibrate.{name}": tensor for name, tensor in learnt.calibrate.state_dict().items()}
    roi = learnt.masks.roi
    return state if roi is None else state | {"roi": torch.from_numpy(roi.astype(np.uint8))}


def about_of(learnt: Learnt, notes: list[str]) -> SegmentAbout:
    """What head.json says of a fitted segmentation."""
    encoder, masks = learnt.sight.encoder, learnt.masks
    classes, pixels = dict[str, Any](), dict[str, int]()
    if learnt.held is not None:
        own = masks.labels.take(np.flatnonzero(learnt.folds >= 0)).groups
        groups = np.array(own, dtype=object) if any(own) else None
        classes = class_ious(learnt.held, masks.names, groups)
        pixels = pixels_of_classes(learnt.held, masks.names)
    return SegmentAbout(
        method=learnt.setting.method,
        setting=str(learnt.setting),
        metrics={"held_out": learnt.metrics, "classes": classes},
        geometry=dict(encoder.geometry.facts),
        encoder=encoder.digest,
        licence=encoder.licence,
        intended_use=f"To find {', '.join(masks.names[1:])} in pictures like those of "
        f"{Path(masks.labels.location).name}. Not tested on any others.",
        items=len(masks),
        notes=[*learnt.notes, *notes],
        classes=list(masks.names),
        numbers=numbers_of(masks.names),
        told_apart=masks.told_apart,
        threshold=learnt.threshold,
        least=learnt.least,
        radius=learnt.setting.radius,
        held_out=0 if learnt.held is None else len(learnt.held),
        pixels=pixels,
        tried=dict(sorted(learnt.tried.items(), key=lambda each: -each[1])),
        unusable={one.where: one.reason for one in masks.aside},
        roi=None if masks.roi is None else (masks.roi.shape[0], masks.roi.shape[1]),
    )


def items_of(learnt: Learnt) -> pa.Table:
    """The table that `items.parquet` keeps: the pictures, with the classes in their masks, their folds, and `held_out`,
    the mIoU of each by what did not learn from it."""
    labels = learnt.masks.labels
    held: list[float | None] = [None] * len(labels)
    if learnt.held is not None:
        places = np.flatnonzero(learnt.folds >= 0).tolist()
        for place, value in zip(places, each_miou(learnt.held), strict=True):
            held[place] = value if value == value else None
    columns = {name: labels.rows[name] for name in ("id", "uri", "content_hash")}
    columns |= {"group": pa.array(labels.groups, pa.string())}
    columns |= {"label": pa.array(["|".join(sorted(value)) for value in learnt.masks.values], pa.string())}
    columns |= {"fold": pa.array(learnt.folds, pa.int32()), "held_out": pa.array(held, pa.float64())}
    return pa.table(columns)
