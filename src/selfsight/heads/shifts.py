"""What a change of light or of position does to an inspection, measured on good parts that were held out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from selfsight.data.collection import Collection
from selfsight.data.geometry import Geometry
from selfsight.data.spread import spread
from selfsight.heads.inspect import Learnt, p_values
from selfsight.heads.normality import judged
from selfsight.heads.placed import Placed, placed

PARTS = 40  # on which it is measured
LIGHT = 0.1
PIXELS = 4  # of the input
CHANGES = ("none", "10 % more light", "10 % less light", f"shifted by {PIXELS} px")


def shifted(learnt: Learnt, items: Collection) -> dict[str, float]:
    """{change: the share of good parts that would be called a defect}, "none" for no change."""
    view, geometry = learnt.view, learnt.view.encoder.geometry
    chosen = spread(len(learnt.good), PARTS)
    rows = learnt.good.rows.take(pa.array(chosen))
    found: dict[str, list[float]] = {change: [] for change in CHANGES}
    for one in placed(items, rows, geometry, view.stride, view.roi, "Changing light and position"):
        if isinstance(one, Placed):
            at = int(chosen[one.number])
            scorer = learnt.normal.scorer(int(learnt.folds[at]))
            others = np.delete(learnt.held, at)
            found["none"].append(float(p_values(others, learnt.held[at : at + 1])[0]))
            for change in CHANGES[1:]:
                inputs = [changed(pixels, change, geometry) for pixels in one.inputs]
                score, _ = judged(scorer, view.part(one._replace(inputs=inputs)))
                found[change].append(float(p_values(others, np.array([score]))[0]))
    return {change: float(np.mean([p <= learnt.rate for p in values])) for change, values in found.items() if values}


def changed(pixels: np.ndarray, change: str, geometry: Geometry) -> np.ndarray:
    """An input [h, w, C] of own depth after one of `CHANGES`; what a shift moves in repeats the edge."""
    if "light" in change:
        low, high = geometry.window
        brighter = low + (pixels.astype(np.float32) - low) * (1.0 + LIGHT * (1 if "more" in change else -1))
        clipped = brighter.clip(low, high)
        return clipped.round().astype(pixels.dtype) if pixels.dtype.kind == "u" else clipped.astype(pixels.dtype)
    moved = np.pad(pixels, ((PIXELS, 0), (PIXELS, 0), (0, 0)), mode="edge")
    return np.ascontiguousarray(moved[: pixels.shape[0], : pixels.shape[1]])


def shifts_said(found: dict[str, float]) -> str:
    """What was found, in a sentence without its full stop."""
    named = ", ".join(f"{change}: {100 * share:.0f} %" for change, share in found.items() if change != "none")
    return f"of up to {PARTS} held-out good parts {100 * found['none']:.0f} % are called a defect as they are; {named}"
