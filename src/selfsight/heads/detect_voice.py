"""What a head that finds objects says of items, from its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.heads.detect_objects import Found, counted, gathered
from selfsight.heads.detect_pictures import overlay
from selfsight.heads.pictures import as_png, in_grey
from selfsight.heads.placed import Placed, answered
from selfsight.heads.predictions import Row
from selfsight.heads.voice import About, Voice

# What `predictions` say of an object, whose box is in pixels of the file, and of how many there are.
OBJECT = pa.struct(
    [
        ("label", pa.string()),
        *((name, pa.float64()) for name in ("score", "x0", "y0", "x1", "y1")),
        ("rle", pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])),
    ]
)
COUNT = pa.struct([("label", pa.string()), *((name, pa.int64()) for name in ("count", "low", "high"))])
COLUMNS = {"objects": pa.list_(OBJECT), "counts": pa.list_(COUNT), "overlay": pa.string()}


@dataclass(frozen=True, kw_only=True)
class DetectAbout(About):
    """What head.json says of a head of the task "detect".

    classes: their names. boxes: {class: boxes that it learnt from}. thresholds: how sure an object of each class must
    be. widths: of the interval of each class's count, None where nothing was held out. coverage: how often these hold
    the true count. found: objects that an input tells. held_out: how many pictures the metrics are of. tried: {method:
    AP50}. unusable: [[where, why]] of boxes that were set aside. metrics: also "classes", the AP50 of each.
    """

    task: str = "detect"
    classes: list[str]
    boxes: dict[str, int]
    thresholds: list[float]
    widths: list[float | None]
    coverage: float
    found: int
    held_out: int
    tried: dict[str, float] = field(default_factory=dict)
    unusable: list[tuple[str, str]] = field(default_factory=list)


class Detected(NamedTuple):
    """What a detector says of a file: the number of its row, all objects that may be there, the picture in grey
    [H, W] uint8, and the mean [D] of the features of its inputs."""

    number: int
    found: Found
    grey: np.ndarray
    pooled: np.ndarray


class DetectVoice(Voice):
    """A head that finds objects, as those know it who ask it."""

    about_type: ClassVar = DetectAbout
    gives: ClassVar = "objects"
    draws: ClassVar = True
    about: DetectAbout

    def judge(self, several: list[Placed]) -> Iterator[Detected]:
        """What it says of items as they were placed."""

        def answer(pixels: np.ndarray, looked: np.ndarray) -> list[dict[str, np.ndarray]]:
            told = self.tensors_of(pixels, looked)
            return [{name: values[i] for name, values in told.items()} for i in range(len(pixels))]

        for one, answers in answered(several, answer):
            every = list(answers)
            pooled = np.mean([told["pooled"] for told in every], axis=0)
            found = gathered(every, one.placements)
            yield Detected(one.number, found, in_grey(one.pixels, self.geometry), pooled)

    def say(self, several: list[Placed], drawn: bool = False) -> list[Row]:
        rows, pooled = [], []
        for one in self.judge(several):
            pooled.append(one.pooled)
            row = self.said(one.found)
            if drawn:
                row["overlay"] = as_png(overlay(one.grey, row["objects"], self.about.classes))
            rows.append(row)
        return self.tell(pooled, rows)

    def said(self, found: Found) -> Row:
        """What a row of predictions says of a picture: the objects that are sure enough, and how many there are."""
        thresholds = np.array(self.about.thresholds)
        sure = found.at(np.flatnonzero(found.scores >= thresholds[found.kinds]))
        objects = []
        for box, kind, score in zip(*sure, strict=True):
            edges = dict(zip(("x0", "y0", "x1", "y1"), map(float, box), strict=True))
            objects.append({"label": self.about.classes[kind], "score": float(score), **edges, "rle": None})
        counts = [
            {"label": name, "count": int(count), **dict(zip(("low", "high"), between(int(count), width), strict=True))}
            for name, count, width in zip(
                self.about.classes, counted(found, thresholds), self.about.widths, strict=True
            )
        ]
        return {"objects": objects, "counts": counts, "overlay": None}


def between(count: int, width: float | None) -> tuple[int | None, int | None]:
    """The interval of a count, see `count_widths`; (None, None) where nothing is known of it."""
    if width is None:
        return None, None
    off = width * (count + 1) ** 0.5
    return max(0, int(np.ceil(count - off))), int(np.floor(count + off))
