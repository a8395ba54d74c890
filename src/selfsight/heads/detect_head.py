"""A head that finds objects: what it says of items, and its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from selfsight.data.boxed import Boxed
from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.errors import SelfsightError
from selfsight.heads.detect_learnt import Learnt
from selfsight.heads.detect_modules import Calibrate, Centres, Detect, DetectModule, used_levels
from selfsight.heads.detect_pictures import BoxPictures, counts_csv, objects_csv
from selfsight.heads.detect_prototypes import Prototypes, Windows
from selfsight.heads.detect_voice import COLUMNS, DetectAbout, Detected, DetectVoice
from selfsight.heads.head import Head, Stored
from selfsight.heads.placed import Placed, batched, placed
from selfsight.heads.predictions import Unread, failed, read_rows, unread, with_unread
from selfsight.heads.voice import FORMAT_VERSION
from selfsight.results import Result


class DetectHead(DetectVoice, Head):
    """A head that finds objects."""

    module: DetectModule

    @classmethod
    def of(cls, stored: Stored) -> DetectHead:
        about, state, encoder = stored.about, stored.state, stored.encoder
        assert isinstance(about, DetectAbout)
        used = used_levels(encoder.level_strides)
        own = {name.removeprefix("readout."): value for name, value in state.items() if name.startswith("readout.")}
        channels, strides = ([each[i] for i in used] for each in (encoder.level_channels, encoder.level_strides))
        readout: Centres | Prototypes
        if about.method == "prototypes":
            windows = Windows(channels, strides, own["windows.mean"], own["windows.axes"])
            linear = (own[name] for name in ("sizes", "weight", "bias", "moves"))
            readout = Prototypes(windows, len(about.classes), *linear)
        else:
            readout = Centres(channels, strides, len(about.classes), own["mean"], own["scale"], own["usual"])
            readout.load_state_dict(own)
        calibrate = Calibrate(state["calibrate.slope"], state["calibrate.offset"])
        module = DetectModule(encoder, Detect(readout, used, about.found), calibrate)
        return cls(stored.folder, about, module, stored.items)

    @property
    def decides(self) -> list[object]:
        told = [self.about.classes, self.about.thresholds, self.about.widths, self.about.found]
        return [self.about.encoder, self.about.task, self.about.method, *told, FORMAT_VERSION]

    def detect(
        self, items: Collection, rows: pa.Table, bad: dict[int, str], title: str = "Detecting"
    ) -> Iterator[Detected]:
        """What it says of each of `rows`, file by file, not in their order; reasons of what cannot be read go into
        `bad`."""

        def good() -> Iterator[Placed]:
            for one in placed(items, rows, self.encoder.geometry, self.stride, None, title):
                if isinstance(one, Placed):
                    yield one
                else:
                    bad[one[0]] = one[1]

        for several in batched(good()):
            yield from self.judge(several)

    def predict(self, items: Collection, folder: Path | None = None) -> pa.Table:
        """A row for each item: id, uri, reason, objects, counts, overlay (its path in the folder), head. With a folder,
        overlays are drawn as they come, and those that are there already, of this head, are not drawn again."""
        usable = items.usable
        bad: dict[int, str] = {}
        ids = usable["id"].to_pylist()
        pictures = None if folder is None else BoxPictures(folder, usable, self.digest, self.about.classes)
        done = {} if pictures is None else pictures.done
        rows: dict[int, dict[str, object]] = {n: done[item] for n, item in enumerate(ids) if item in done}
        todo = np.array([number for number in range(len(ids)) if number not in rows], dtype=np.int64)
        some = usable.take(pa.array(todo))
        for one in self.detect(items, some, bad):
            number = int(todo[one.number])
            row = self.said(one.found)
            rows[number] = row if pictures is None else pictures.draw_boxes(number, one.grey, row)
        rest: list[Unread] = unread(items.set_aside)
        rest += failed(some, {ids[int(todo[number])]: reason for number, reason in bad.items()})
        return with_unread(read_rows(usable, rows, COLUMNS), rest, self.digest)

    def told_of(self, items: Collection, rows: pa.Table) -> tuple[pa.Table, dict[str, str]]:
        bad: dict[int, str] = {}
        found = {one.number: self.said(one.found) for one in self.detect(items, rows, bad)}
        ids = rows["id"].to_pylist()
        return read_rows(rows, found, COLUMNS), {ids[number]: reason for number, reason in bad.items()}

    def tables(self, predictions: pa.Table, items: pa.Table, size: float, unit: str) -> dict[str, bytes]:
        return {
            "objects.csv": objects_csv(predictions, items, size, unit),
            "counts.csv": counts_csv(predictions, items, self.about.classes),
        }

    def evaluate(self, items: Collection, labels: str | None, by: str | None, masks: str | None) -> Result:
        from selfsight.heads.detect_evaluation import evaluate_detection

        if masks is not None:
            raise SelfsightError("--masks are of heads that say masks. Name the true boxes: --labels PATH")
        location = str(Path(labels).expanduser().resolve()) if labels else ""
        return evaluate_detection(self, items, self.true_boxes(items, labels), by, location)

    def true_boxes(self, items: Collection, path: str | None) -> Boxed:
        """The boxes of a collection, or those at `path`, with the classes of the head."""
        return Boxed.of(Labels.of(items, path=path, kind="boxes")).with_names(self.about.classes)


def state_of(learnt: Learnt) -> dict[str, Tensor]:
    """The tensors that `head.safetensors` keeps."""
    state = {f"readout.{name}": tensor for name, tensor in learnt.task.readout.state_dict().items()}
    return state | {f"calibrate.{name}": tensor for name, tensor in learnt.calibrate.state_dict().items()}


def about_of(learnt: Learnt, notes: list[str]) -> DetectAbout:
    """What head.json says of a fitted detector."""
    encoder, boxed = learnt.sight.encoder, learnt.boxed
    widths = [None if np.isnan(width) else float(width) for width in learnt.widths]
    return DetectAbout(
        method=learnt.method,
        setting=learnt.method,
        metrics={"held_out": learnt.metrics, "classes": learnt.classes},
        geometry=dict(encoder.geometry.facts),
        encoder=encoder.digest,
        licence=encoder.licence,
        intended_use=f"To find {', '.join(boxed.names)} in pictures like those of "
        f"{Path(boxed.labels.location).name}. Not tested on any others.",
        items=len(boxed),
        notes=[*learnt.notes, *notes],
        classes=list(boxed.names),
        boxes=dict(zip(boxed.names, boxed.counts().sum(0).tolist(), strict=True)),
        thresholds=learnt.thresholds.tolist(),
        widths=widths,
        coverage=learnt.coverage,
        found=learnt.task.found,
        held_out=0 if learnt.held is None else len(learnt.held.found),
        tried=dict(sorted(learnt.tried.items(), key=lambda each: -each[1])),
        unusable=[(one.where, one.reason) for one in boxed.aside],
    )


def items_of(learnt: Learnt) -> pa.Table:
    """The table that `items.parquet` keeps: the pictures, with the classes of their boxes and how many these are, and
    their folds, -1 where nothing was held out."""
    labels, folds = learnt.boxed.labels, np.full(len(learnt.boxed), -1)
    if learnt.held is not None:
        folds[learnt.held.places] = learnt.held.folds
    named = ["|".join(sorted({box.label for box in value})) for value in learnt.boxed.values]
    columns: dict[str, Any] = {name: labels.rows[name] for name in ("id", "uri", "content_hash")}
    columns |= {"group": pa.array(labels.groups, pa.string()), "label": pa.array(named, pa.string())}
    columns |= {"boxes": pa.array([len(value) for value in learnt.boxed.values], pa.int64())}
    return pa.table(columns | {"fold": pa.array(folds, pa.int32())})
