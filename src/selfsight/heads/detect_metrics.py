"""How good boxes are: average precision as COCO measures it, by faster-coco-eval, and counts."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from selfsight.data.boxed import Truth
from selfsight.errors import MachineError
from selfsight.heads.detect_objects import Found
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import interval

DRAWS = 200  # of the bootstrap
EXTRA = "pip install 'selfsight[detect]'"
AT_50 = 0  # the place of an overlap of 0.5 among COCO's ten


def check_installed() -> None:
    """Raise `MachineError` where the extra "detect" is not installed."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise MachineError(f"Boxes are measured by the package faster-coco-eval, which is not installed. Run: {EXTRA}")


class Precisions:
    """The average precision of what was found in pictures, N, beside their truth, for any of them, as often as a
    bootstrap draws them. classes: K. most: objects of a class in a picture that count, the surest."""

    def __init__(self, found: Sequence[Found], truths: Sequence[Truth], classes: int, most: int) -> None:
        check_installed()
        from faster_coco_eval import COCO, COCOeval_faster

        self.count, self.classes = len(found), classes
        images = [{"id": number + 1} for number in range(self.count)]
        categories = [{"id": kind + 1, "name": str(kind)} for kind in range(classes)]
        true = COCO({"images": images, "annotations": _true(truths), "categories": categories})
        told = COCO({"images": images, "annotations": _told(found), "categories": categories})
        evaluator: Any = COCOeval_faster(true, told, "bbox", print_function=_silent, separate_eval=True)
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluator.params.maxDets = [most]
        evaluator.evaluate()
        # Matches of each class and picture, from which the library accumulates: it has no public name for them.
        self._matches, self._settings = evaluator.__dict__["_evalImgs_cpp"], evaluator.__dict__["_paramsEval"]

    def of(self, some: np.ndarray) -> np.ndarray:
        """[10, K]: of each class at overlaps of 0.5 to 0.95, over these pictures; nan of a class that is in none."""
        from faster_coco_eval.faster_eval_api_cpp import COCOevalAccumulate

        self._settings.imgIds = list(range(1, len(some) + 1))
        matches = [self._matches[kind * self.count + place] for kind in range(self.classes) for place in some.tolist()]
        precision = np.asarray(COCOevalAccumulate(self._settings, matches)["precision"])[:, :, :, 0, 0]  # [10, 101, K]
        return np.where((precision < 0).any(1), np.nan, precision.mean(1))

    @cached_property
    def every(self) -> np.ndarray:
        """[N] the places of all pictures."""
        return np.arange(self.count)


def precisions(measured: Precisions, groups: np.ndarray | None) -> dict[str, Interval]:
    """`ap`, the mean over overlaps and classes that occur, and `ap50`."""
    means = {"ap": lambda some: _mean(measured.of(some)), "ap50": lambda some: _mean(measured.of(some)[AT_50])}
    return {name: interval(mean, [measured.every], groups, DRAWS) for name, mean in means.items()}


def class_precisions(measured: Precisions, names: Sequence[str], groups: np.ndarray | None) -> dict[str, Interval]:
    """{class: AP50}."""
    return {
        name: interval(lambda some, k=kind: float(measured.of(some)[AT_50, k]), [measured.every], groups, DRAWS)
        for kind, name in enumerate(names)
    }


def ap50_of(found: Sequence[Found], truths: Sequence[Truth], classes: int, most: int) -> float:
    """The mean over the classes that occur."""
    measured = Precisions(found, truths, classes, most)
    return _mean(measured.of(measured.every)[AT_50])


def count_error(counts: np.ndarray, true: np.ndarray, groups: np.ndarray | None) -> Interval:
    """By how many objects a picture is off, counts [N, K] beside the true ones: the mean over pictures of the sum over
    classes."""
    return interval(lambda one, other: float(np.abs(one - other).sum(1).mean()), [counts, true], groups)


def true_counts(truths: Sequence[Truth], classes: int) -> np.ndarray:
    """[N, K], without those that are unsure."""
    return np.array([np.bincount(truth.kinds[~truth.unsure], minlength=classes) for truth in truths])


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _true(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, truth in enumerate(truths, 1):
        for box, kind, unsure in zip(truth.boxes, truth.kinds, truth.unsure, strict=True):
            found.append(_one(len(found), number, box, int(kind)) | {"iscrowd": int(unsure)})
    return found


def _told(found: Sequence[Found]) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for number, one in enumerate(found, 1):
        for box, kind, score in zip(*one, strict=True):
            told.append(_one(len(told), number, box, int(kind)) | {"score": float(score)})
    return told


def _one(before: int, image: int, box: np.ndarray, kind: int) -> dict[str, Any]:
    x0, y0, x1, y1 = box.tolist()
    edges = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
    return {"id": before + 1, "image_id": image, "category_id": kind + 1} | edges


def _silent(*_: object) -> None:
    """What the library would print."""
