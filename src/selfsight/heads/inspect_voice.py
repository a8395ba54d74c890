"""What a head that says which parts have a defect, and where, says of items, from its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from PIL import Image

from selfsight.heads.blending import Blend
from selfsight.heads.pictures import as_grey, as_png, in_grey, overlay
from selfsight.heads.placed import Placed, answered
from selfsight.heads.predictions import Row
from selfsight.heads.voice import About, Voice
from selfsight.results import Result


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
    for, the map [H, W] float32 in pixels of the file. pixels: [H, W, C] of the file. pooled:
    [D], the mean of the features of its inputs."""

    number: int
    score: float
    p: float
    defect: bool
    map: np.ndarray | None
    pixels: np.ndarray
    pooled: np.ndarray


class InspectVoice(Voice):
    """A head that says which parts have a defect, and where, as those know it who ask it."""

    about_type: ClassVar = InspectAbout
    gives: ClassVar = "defects"
    draws: ClassVar = True
    about: InspectAbout

    def judge(self, several: list[Placed], maps: bool = True) -> Iterator[Inspected]:
        """What it says of items as they were placed. Of a file in tiles the one with the largest score counts."""

        def answer(pixels: np.ndarray, looked: np.ndarray) -> list[dict[str, np.ndarray]]:
            found = self.tensors_of(pixels, looked)
            wanted = ("score", "p", "defect", "pooled", *(["map"] if maps else []))
            return [{name: found[name][place] for name in wanted} for place in range(len(pixels))]

        for one, answers in answered(several, answer):
            most: dict[str, np.ndarray] | None = None
            blend, pooled = Blend(one.placements), list[np.ndarray]()
            whole = np.zeros(one.pixels.shape[:2], np.float32) if maps else None
            for found in answers:
                pooled.append(found.pop("pooled"))
                drawn = found.pop("map", None)
                most = found if most is None or found["score"] > most["score"] else most
                if whole is not None and drawn is not None:
                    for rows, part in blend.add(drawn):
                        whole[rows] = np.nan_to_num(part, copy=False)  # where nothing is looked at no tile may lie
            if whole is not None and self.roi is not None:
                whole *= self.roi
            assert most is not None
            told = float(most["score"]), float(most["p"]), bool(most["defect"])
            yield Inspected(one.number, *told, whole, one.pixels, np.mean(pooled, axis=0))

    def say(self, several: list[Placed], drawn: bool = False) -> list[Row]:
        rows, pooled = [], []
        for one in self.judge(several, maps=drawn):
            pooled.append(one.pooled)
            row = said_of(one)
            if one.map is not None:
                row["map"] = as_png(Image.fromarray(as_grey(one.map, self.about.threshold)))
                grey = in_grey(one.pixels, self.geometry)
                row["overlay"] = as_png(overlay(grey, one.map, self.about.usual, self.about.threshold))
            rows.append(row)
        return self.tell(pooled, rows)


def said_of(one: Inspected) -> dict[str, object]:
    """What a row of predictions says of a part, beside which it is."""
    return {"score": one.score, "p": one.p, "defect": one.defect, "map": None}
