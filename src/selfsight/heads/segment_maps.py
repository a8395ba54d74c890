"""What a segmentation says of a whole file, gathered from its inputs as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from selfsight.data.placements import Placement
from selfsight.heads.blending import Blend
from selfsight.heads.segment_modules import Calibrate

LARGE = 4_000_000  # px of a file, above which maps are kept in half precision


class Whole:
    """The maps of a file. mask [H, W]: the place of each pixel's class. probabilities [K, H, W], centre and boundary
    [H, W], None where objects are not told apart: float32, of a large file float16. score: the mean of the
    probabilities of the pixels' classes."""

    def __init__(self, answers: Iterable[Mapping[str, np.ndarray]], placements: Sequence[Placement],
                 calibrate: Calibrate) -> None:  # fmt: skip
        """answers: the network's tensors of each input, in the order of the placements."""
        height, width = placements[0].file
        lean = calibrate.lean.cpu().numpy()[:, None, None]
        classes, sure = len(lean), 0.0
        precise = np.float32 if height * width <= LARGE else np.float16
        self.mask = np.zeros((height, width), np.uint8 if classes <= 256 else np.int32)
        maps: np.ndarray | None = None
        blend = Blend(placements)
        for told in answers:
            planes = [told["probabilities"], *(told[name][None] for name in ("centre", "boundary") if name in told)]
            for rows, found in blend.add(np.concatenate(planes)):
                if maps is None:
                    maps = np.zeros((len(found), height, width), precise)
                maps[:, rows] = found
                own = found[:classes]
                best = (np.log(np.maximum(own, 1e-12)) + lean).argmax(0)
                sure += float(np.take_along_axis(own, best[None], 0).sum(dtype=np.float64))
                self.mask[rows] = best
        assert maps is not None
        self.probabilities = maps[:classes]
        self.centre, self.boundary = (maps[classes], maps[classes + 1]) if len(maps) > classes else (None, None)
        self.score = sure / (height * width)
