"""Whether an exported network says the same as what it was made of, on real images; how large and how fast it is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from selfsight.data.collection import Collection
from selfsight.data.labels import Labels
from selfsight.data.spread import spread
from selfsight.deploy.engine import Engine
from selfsight.deploy.graphs import Inputs, module_of, stride_of
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.classify_head import ClassifyHead
from selfsight.heads.detect_head import DetectHead
from selfsight.heads.detect_objects import overlaps
from selfsight.heads.head import Head
from selfsight.heads.inspect_head import InspectHead
from selfsight.heads.parts import GOOD
from selfsight.heads.placed import Placed, placed
from selfsight.probing.linear import unit_rows
from selfsight.results import Result

MOST = 1000  # images that are looked at
PIXELS = {False: 50_000_000, True: 12_000_000}  # of their inputs; where answers are maps, which are kept too
CLEAR = 1e-3  # by how much the two best answers differ where a difference between decisions is a fault
POINT = 0.01  # of decisions, or of a figure on labelled data, that less precision may cost
ALIKE = 0.99  # cosine of features, that less precision must keep
ALIKE_BOXES = 0.95  # intersection over union of two boxes that are taken for one
RUNS, SECONDS = 30, 5.0  # of a measurement of time, at most
Tensors = dict[str, np.ndarray]


class Example(NamedTuple):
    """An image as the graph takes it: `pixels` [1, C, h, w], and `looked` [1, h, w] where it asks for it; and its
    label, None where it is not known."""

    given: dict[str, np.ndarray]
    label: object


@dataclass(frozen=True)
class Pace(Result):
    """Milliseconds that an image takes: half of the times, and 95 in 100, are at most these."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Proof(Result):
    """How an exported network compares with what it was made of.

    images: that were looked at. agreement: share of them with the same decision; of a segmentation the share of pixels;
    of an encoder the share whose nearest other is the same. clear: the same of those where the two best answers differ
    by more than 0.001. difference: the largest between scores. cosine: the least between features, of an encoder.
    labelled: images with a label. figure, before, after: what is measured on them, in float32 by torch and in the
    export. bytes: of the file. pace: {"1", "all"} threads. miou: of a segmentation, of its masks with the
    original's, the mean over classes.
    """

    if_any: ClassVar = ("cosine", "figure", "before", "after", "miou")
    images: int
    agreement: float
    clear: float
    difference: float
    cosine: float | None
    labelled: int
    figure: str | None
    before: float | None
    after: float | None
    bytes: int = 0
    pace: dict[str, Pace] | None = None
    miou: float | None = None

    @property
    def loss(self) -> float:
        """How much less the figure is."""
        return 0.0 if self.before is None or self.after is None else self.before - self.after


# -- the images --


def usual_size(model: Head | Encoder, rows: pa.Table) -> tuple[int, int]:
    """(H, W) of the input that most of the files become."""
    encoder = model.encoder if isinstance(model, Head) else model
    files = Counter(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True))
    inputs: Counter[tuple[int, int]] = Counter()
    for (height, width), count in files.items():
        inputs[encoder.geometry.placements(height, width, stride_of(encoder))[0].size] += count
    return inputs.most_common(1)[0][0]


def examples_of(
    model: Head | Encoder, takes: Inputs, items: Collection, rows: pa.Table, labels: Labels | None
) -> list[Example]:
    """Images of some rows, evenly over the order of ids, as the graph takes them; a file in tiles gives its first.

    Raises `DataError` where none can be read.
    """
    encoder = model.encoder if isinstance(model, Head) else model
    draws = isinstance(model, Head) and model.draws
    most = min(MOST, max(8, PIXELS[draws] // (takes.size[0] * takes.size[1])))
    rows = rows.sort_by("id")
    rows = rows.take(pa.array(spread(len(rows), most)))
    known = {} if labels is None else dict(zip(labels.ids, labels.values, strict=True))
    ids, found = rows["id"].to_pylist(), {}
    roi = getattr(model, "roi", None)
    for one in placed(items, rows, encoder.geometry, stride_of(encoder), roi, "Reading images"):
        if isinstance(one, Placed) and (takes.free or one.inputs[0].shape[:2] == takes.size):
            given = {"pixels": one.inputs[0].transpose(2, 0, 1)[None]}
            if takes.looked:
                given["looked"] = one.looked[0][None]
            found[one.number] = Example(given, known.get(ids[one.number]))
    if not found:
        raise DataError(f"Of {items.about.location} no image can be used to prove the export. Give others: --calibrate")
    return [found[number] for number in sorted(found)]


# -- what is said of them --


@torch.inference_mode()
def by_torch(model: Head | Encoder, examples: Sequence[Example]) -> list[Tensors]:
    """The tensors that the model itself gives of each image."""
    module = module_of(model).cpu()
    found = []
    for one in examples:
        given = [torch.from_numpy(np.ascontiguousarray(value)) for value in one.given.values()]
        found.append({name: tensor[0].numpy() for name, tensor in module(*given).items()})
    return found


def by_engine(path: Path, examples: Sequence[Example], threads: int | None = None) -> list[Tensors]:
    """The tensors that an ONNX file gives of each image."""
    engine = Engine(path, threads)
    return [{name: values[0] for name, values in engine(**one.given).items()} for one in examples]


def pace_of(path: Path, example: Example, threads: int | None) -> Pace:
    """How long an image takes in a batch of one, with so many threads, None for one a core."""
    engine = Engine(path, threads)
    for _ in range(3):
        engine(**example.given)
    times: list[float] = []
    while len(times) < RUNS and sum(times) < SECONDS:
        start = time.perf_counter()
        engine(**example.given)
        times.append(time.perf_counter() - start)
    p50, p95 = (float(1000 * value) for value in np.percentile(times, (50, 95)))
    return Pace(p50, p95)


# -- the comparison --


def compared(
    model: Head | Encoder, examples: Sequence[Example], before: Sequence[Tensors], after: Sequence[Tensors]
) -> Proof:
    """What the tensors of a model, `before`, and of its export, `after`, have in common, image by image."""
    figure, worth = _figure(model, examples)
    one, other = (None, None) if worth is None else (worth(before), worth(after))
    rest = (sum(each.label is not None for each in examples), figure, one, other)
    if not isinstance(model, Head):
        vectors = [np.stack([found["pooled"] for found in some]) for some in (before, after)]
        raw = [np.stack([found.get("unwhitened", found["pooled"]) for found in some]) for some in (before, after)]
        nearest = _nearest(vectors[0]) == _nearest(vectors[1])
        largest = float(np.abs(vectors[0] - vectors[1]).max())
        cosine = float((unit_rows(raw[0]) * unit_rows(raw[1])).sum(1).min())
        return Proof(len(examples), float(nearest.mean()), 1.0, largest, cosine, *rest)
    pairs = [_pair(model, first, second) for first, second in zip(before, after, strict=True)]
    agreement, clear, difference = (np.array([pair[place] for pair in pairs]) for place in range(3))
    found = Proof(len(examples), float(agreement.mean()), float(clear.mean()), float(difference.max()), None, *rest)
    return replace(found, miou=_miou(before, after)) if "mask" in before[0] and model.about.task == "segment" else found


def _miou(before: Sequence[Tensors], after: Sequence[Tensors]) -> float:
    """How alike the masks [H, W] of classes are: intersection over union, the mean over the classes of either."""
    one, other = (np.concatenate([found["mask"].reshape(-1) for found in some]) for some in (before, after))
    both = [((one == k) & (other == k)).sum() / ((one == k) | (other == k)).sum() for k in np.union1d(one, other)]
    return float(np.mean(both))


def _pair(model: Head, before: Tensors, after: Tensors) -> tuple[float, float, float]:
    """(share of decisions that agree, share that agree or are not clear, largest difference of scores) of an image."""
    if isinstance(model, InspectHead):
        held = model.module.calibrate.held.cpu().numpy()
        same = bool(before["defect"] == after["defect"])
        near = float(np.abs(held - before["score"]).min()) <= CLEAR * max(1.0, float(np.abs(before["score"])))
        difference = float(np.abs(before["score"] - after["score"])) / max(1.0, float(np.abs(before["score"])))
        return float(same), float(same or near), difference
    if isinstance(model, ClassifyHead) and model.about.kind == "number":
        width = float(before["high"] - before["low"])
        difference = float(np.abs(before["value"] - after["value"]))
        same = difference <= POINT * (width if np.isfinite(width) and width > 0 else max(1.0, float(before["value"])))
        return float(same), float(same), difference
    if isinstance(model, DetectHead):
        return _pair_of_objects(model, before, after)
    p, q = (found["probabilities"].astype(np.float64) for found in (before, after))
    if isinstance(model, ClassifyHead):
        first, second = (model.answers({"probabilities": each[None]}).decided[0] for each in (p, q))
        margin = np.abs(p - 0.5) if model.about.kind == "classes" else np.diff(np.sort(p)[-2:])
        same = bool(np.all(first == second))
        return float(same), float(same or bool((margin <= CLEAR).any())), float(np.abs(p - q).max())
    equal = before["mask"] == after["mask"]
    two = np.partition(p, -2, axis=0)[-2:]
    return float(equal.mean()), float((equal | (two[1] - two[0] <= CLEAR)).mean()), float(np.abs(p - q).max())


def _pair_of_objects(model: DetectHead, before: Tensors, after: Tensors) -> tuple[float, float, float]:
    """The same of objects: each that is told on one side is to be told on the other, with nearly the same box. One is
    clear if its score is not near its threshold."""
    same, clear, difference = [], [], [0.0]
    thresholds = np.array(model.about.thresholds)
    for one, other in ((before, after), (after, before)):
        far = np.abs(one["scores"] - thresholds[one["labels"]])
        for place in np.flatnonzero(one["scores"] >= thresholds[one["labels"]]):
            alike = overlaps(one["boxes"][place][None], other["boxes"])[0] * (other["labels"] == one["labels"][place])
            best = int(alike.argmax())
            found = bool(alike[best] >= ALIKE_BOXES)
            told = found and bool(other["scores"][best] >= thresholds[other["labels"][best]])
            same.append(told)
            clear.append(told or bool(far[place] <= CLEAR))
            difference += [abs(float(other["scores"][best] - one["scores"][place]))] if found else []
    return float(np.mean(same)) if same else 1.0, float(np.mean(clear)) if clear else 1.0, max(difference)


def _figure(
    model: Head | Encoder, examples: Sequence[Example]
) -> tuple[str | None, Callable[[Sequence[Tensors]], float] | None]:
    """What is measured on the labelled images, and how; None where there are none, or it has no meaning."""
    known = [place for place, one in enumerate(examples) if one.label is not None]
    labels = [examples[place].label for place in known]
    if known and isinstance(model, ClassifyHead) and model.about.kind in ("class", "grade"):
        names = list(model.about.classes)

        def accuracy(found: Sequence[Tensors]) -> float:
            p = np.stack([found[place]["probabilities"].astype(np.float64) for place in known])
            said = model.about.decision.answers(model.about.classes, p)
            return float(np.mean([names[number] == label for number, label in zip(said, labels, strict=True)]))

        return "accuracy", accuracy
    if isinstance(model, InspectHead):
        good = {name.lower() for name in (*GOOD, *model.about.normal)}
        bad = np.array([str(label).lower() not in good for label in labels])
        if bad.any() and not bad.all():

            def auroc(found: Sequence[Tensors]) -> float:
                from sklearn.metrics import roc_auc_score

                return float(roc_auc_score(bad, [float(found[place]["score"]) for place in known]))

            return "AUROC", auroc
    return None, None


def _nearest(vectors: np.ndarray) -> np.ndarray:
    """Which other is nearest to each, by cosine."""
    unit = unit_rows(vectors)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -2.0)
    return np.asarray(alike.argmax(1))


# -- the verdict --


def cheap(proof: Proof) -> bool:
    """Whether less precision costs no more than a point: of an encoder's features, of the cosine; else of decisions, or
    of accuracy where enough images have a label, as decisions between two likely classes may turn either way.

    Of fewer than 100 images one may differ, as they cannot tell a point.
    """
    if proof.cosine is not None:
        return proof.cosine >= ALIKE
    if proof.figure == "accuracy" and proof.labelled >= 1 / POINT:
        return proof.loss <= POINT + 1e-9
    allowed = max(POINT, 1.0 / proof.images)
    return proof.agreement >= 1.0 - allowed - 1e-9


def check(proof: Proof, precision: str) -> None:
    """Raise `SelfsightError` for an export that does not say the same as what it was made of."""
    if precision == "fp32" and (proof.clear < 1.0 or proof.difference > CLEAR):
        raise SelfsightError(
            f"The export differs from the original on {proof.images:,} images: by {proof.difference:.2g} in a score, "
            f"and in {100 * (1 - proof.clear):.2g} % of the clear decisions. Nothing was written; please report this."
        )
    if precision != "fp32" and not cheap(proof):
        what = f"cosine {proof.cosine:.3f} of features" if proof.cosine is not None else ""
        what = what or f"{100 * (1 - proof.agreement):.2g} % of {proof.images:,} decisions differ"
        raise SelfsightError(f"{precision} costs too much here ({what}). Nothing was written; use --precision fp32.")
