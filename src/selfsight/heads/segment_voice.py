"""What a head that says what is where says of items, from its tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa

from selfsight.data.annotations.masks import write_mask
from selfsight.heads.objects import Thing, apart, things_of
from selfsight.heads.pictures import as_png, in_grey
from selfsight.heads.placed import Placed, answered
from selfsight.heads.predictions import Row
from selfsight.heads.segment_maps import Whole
from selfsight.heads.segment_pictures import overlay
from selfsight.heads.voice import About, Voice

# What `predictions` say of an object: where it is in pixels of the file, its area in them, centroid and mean grey.
OBJECT = pa.struct(
    [
        ("label", pa.string()),
        *((name, pa.float64()) for name in ("score", "x0", "y0", "x1", "y1", "area", "x", "y", "intensity")),
        ("rle", pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])),
    ]
)
COLUMNS = {"score": pa.float64(), "mask": pa.string(), "objects": pa.list_(OBJECT)}


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
    1, what they are, how sure it is of a pixel (the mean of the probability of its class), the picture in grey
    [H, W] uint8, and the mean [D] of the features of its inputs."""

    number: int
    mask: np.ndarray
    objects: np.ndarray
    things: list[Thing]
    score: float
    grey: np.ndarray
    pooled: np.ndarray


class SegmentVoice(Voice):
    """A head that says what is where, as those know it who ask it."""

    about_type: ClassVar = SegmentAbout
    gives: ClassVar = "masks"
    draws: ClassVar = True
    about: SegmentAbout

    @property
    @abstractmethod
    def lean(self) -> np.ndarray:
        """[K], what is added to the logarithms of the classes' probabilities before the likeliest is chosen."""

    def judge(self, several: list[Placed]) -> Iterator[Segmented]:
        """What it says of items as they were placed."""

        def answer(pixels: np.ndarray, looked: np.ndarray) -> list[dict[str, np.ndarray]]:
            found = {name: values for name, values in self.tensors_of(pixels, looked).items() if name != "mask"}
            return [{name: values[place] for name, values in found.items()} for place in range(len(pixels))]

        def noted(answers: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
            for found in answers:
                pooled.append(found.pop("pooled"))
                yield found

        for one, answers in answered(several, answer):
            pooled: list[np.ndarray] = []
            whole = Whole(noted(answers), one.placements, self.lean, self.roi)
            objects = apart(whole.mask, whole.centre, whole.boundary, self.about.threshold, self.about.least)
            grey = in_grey(one.pixels, self.geometry)
            things = things_of(objects, whole.mask, whole.probabilities, grey)
            yield Segmented(one.number, whole.mask, objects, things, whole.score, grey, np.mean(pooled, axis=0))

    def say(self, several: list[Placed], drawn: bool = False) -> list[Row]:
        rows, pooled = [], []
        for one in self.judge(several):
            pooled.append(one.pooled)
            row = self.said_of(one)
            if drawn:
                row["mask"] = write_mask(np.array(self.about.numbers, np.int32)[one.mask])
                row["overlay"] = as_png(overlay(one.grey, one.mask, one.objects))
            rows.append(row)
        return self.tell(pooled, rows)

    def said_of(self, one: Segmented) -> dict[str, object]:
        """What a row of predictions says of a picture, beside which it is."""
        return {"score": one.score, "mask": None, "objects": [self._said(thing) for thing in one.things]}

    def _said(self, thing: Thing) -> dict[str, Any]:
        """An object as a row of predictions has it."""
        box = dict(zip(("x0", "y0", "x1", "y1"), map(float, thing.box), strict=True))
        name = self.about.classes[thing.label]
        where = {"area": float(thing.area), "x": thing.centroid[0], "y": thing.centroid[1]}
        return {"label": name, "score": thing.score, **box, **where, "intensity": thing.intensity, "rle": thing.runs}
