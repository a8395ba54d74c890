"""A head that says what is where: what it says of items, and its folder."""

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
from selfsight.data.masks import Masks, numbers_of
from selfsight.errors import SelfsightError
from selfsight.heads.head import Head, Stored
from selfsight.heads.placed import Placed, batched, placed
from selfsight.heads.predictions import Unread, failed, read_rows, unread, with_unread
from selfsight.heads.segment import Learnt, class_ious, each_miou, pixels_of_classes
from selfsight.heads.segment_modules import APART, Calibrate, Decoder, Readout, Segment, SegmentModule
from selfsight.heads.segment_pictures import MaskPictures, counts_csv, objects_csv
from selfsight.heads.segment_voice import COLUMNS, SegmentAbout, Segmented, SegmentVoice
from selfsight.heads.voice import FORMAT_VERSION
from selfsight.results import Result


class SegmentHead(SegmentVoice, Head):
    """A head that says what is where."""

    module: SegmentModule

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

    @property
    def lean(self) -> np.ndarray:
        return np.asarray(self.module.calibrate.lean.cpu().numpy())

    def segment(
        self, items: Collection, rows: pa.Table, bad: dict[int, str], title: str = "Segmenting"
    ) -> Iterator[Segmented]:
        """What it says of each of `rows`, file by file, not in their order; reasons of what cannot be read go into
        `bad`."""

        def good() -> Iterator[Placed]:
            for one in placed(items, rows, self.encoder.geometry, self.stride, self.roi, title):
                if isinstance(one, Placed):
                    yield one
                else:
                    bad[one[0]] = one[1]

        for several in batched(good()):
            yield from self.judge(several)

    def predict(self, items: Collection, folder: Path | None = None) -> pa.Table:
        """A row for each item: id, uri, reason, score (how sure it is of a pixel, the mean), mask (its path in the
        folder), objects, head. With a folder, its pictures are drawn as they come, and those that are there already, of
        this head, are not drawn again."""
        usable = items.usable
        bad: dict[int, str] = {}
        ids = usable["id"].to_pylist()
        how = self.about.numbers, self.about.told_apart
        pictures = None if folder is None else MaskPictures(folder, usable, self.digest, *how)
        done = {} if pictures is None else pictures.done
        rows: dict[int, dict[str, object]] = {n: done[item] for n, item in enumerate(ids) if item in done}
        todo = np.array([number for number in range(len(ids)) if number not in rows], dtype=np.int64)
        some = usable.take(pa.array(todo))
        for one in self.segment(items, some, bad):
            number = int(todo[one.number])
            row = self.said_of(one)
            if pictures is not None:
                row = pictures.draw_mask(number, one.grey, one.mask, one.objects, row)
            rows[number] = row
        rest: list[Unread] = unread(items.set_aside)
        rest += failed(some, {ids[int(todo[number])]: reason for number, reason in bad.items()})
        return with_unread(read_rows(usable, rows, COLUMNS), rest, self.digest)

    def told_of(self, items: Collection, rows: pa.Table) -> tuple[pa.Table, dict[str, str]]:
        bad: dict[int, str] = {}
        found = {one.number: self.said_of(one) for one in self.segment(items, rows, bad)}
        ids = rows["id"].to_pylist()
        return read_rows(rows, found, COLUMNS), {ids[number]: reason for number, reason in bad.items()}

    def tables(self, predictions: pa.Table, items: pa.Table, size: float, unit: str) -> dict[str, bytes]:
        return {
            "objects.csv": objects_csv(predictions, items, size, unit),
            "counts.csv": counts_csv(predictions, items, self.about.classes[1:], size, unit),
        }

    def evaluate(self, items: Collection, labels: str | None, by: str | None, masks: str | None) -> Result:
        from selfsight.heads.segment_evaluation import evaluate_segmentation

        if labels is not None and masks is not None:
            raise SelfsightError("--labels and --masks both name the true masks. Give one of them.")
        path = labels or masks
        location = str(Path(path).expanduser().resolve()) if path else ""
        return evaluate_segmentation(self, items, self.true_masks(items, path), by, location)

    def true_masks(self, items: Collection, path: str | None) -> Masks:
        """The masks of a collection, or those at `path`, with the classes of the head and cut to where it looks."""
        found = Masks.of(items, Labels.of(items, path=path, kind="masks"), self.about.told_apart, self.roi)
        return found.with_names(tuple(self.about.classes))


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
