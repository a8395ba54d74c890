"""What a segmentation says of a whole file, gathered from its inputs as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from selfsight.data.placements import Placement
from selfsight.heads.blending import Blend

LARGE = 4_000_000  # px of a file, above which maps are kept in half precision


class Whole:
    """The maps of a file. mask [H, W]: the place of each pixel's class. probabilities [K, H, W], centre and boundary
    [H, W], None where objects are not told apart: float32, of a large file float16. score: the mean of the
    probabilities of the pixels' classes. Where it does not look all is background, and nothing counts."""

    def __init__(
        self, answers: Iterable[Mapping[str, np.ndarray]], placements: Sequence[Placement], lean: np.ndarray,
        roi: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """answers: the network's tensors of each input, in the order of the placements. lean [K]: see `Calibrate`.
        roi: [H, W] bool, where it looks."""
        height, width = placements[0].file
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
                    maps[0] = 1.0  # the background, where no input lies
                own, best = found[:classes], np.zeros(found.shape[1:], np.int64)
                if roi is not None:  # where no tile may lie
                    found[:, ~roi[rows]] = 0.0
                    own[0][~roi[rows]] = 1.0
                here = np.ones(best.shape, bool) if roi is None else roi[rows]
                best[here] = (np.log(np.maximum(own[:, here], 1e-12)) + lean[:, None]).argmax(0)
                sure += float(np.take_along_axis(own, best[None], 0)[0][here].sum(dtype=np.float64))
                maps[:, rows], self.mask[rows] = found, best
        assert maps is not None
        self.probabilities = maps[:classes]
        apart = len(maps) > classes
        self.centre: np.ndarray | None = maps[classes] if apart else None
        self.boundary: np.ndarray | None = maps[classes + 1] if apart else None
        self.score = sure / (height * width if roi is None else int(roi.sum()))
