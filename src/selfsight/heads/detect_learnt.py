"""What a detector has learnt: its network, and what its scores and counts mean, from pictures that were held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from selfsight.data.boxed import Boxed, Truth
from selfsight.data.collection import Collection
from selfsight.data.placements import Placement
from selfsight.data.spread import spread
from selfsight.heads.detect_fit import Piece, fit_calibration, fit_centres
from selfsight.heads.detect_metrics import Precisions, class_precisions, count_error, precisions, true_counts
from selfsight.heads.detect_modules import Calibrate, Centres, Detect, DetectModule
from selfsight.heads.detect_objects import LEAST, Found, counted, gathered, matched
from selfsight.heads.detect_prototypes import fit_prototypes
from selfsight.heads.detect_scenes import BoxScene, BoxSight
from selfsight.probing.evaluation import Interval

MANY = 60  # pictures, from which a network learns longer
STEPS = (240, 500)  # of training, with few pictures and with `MANY` or more
UNKNOWN = 0.3  # how sure an object must be where nothing was held out
COVERAGE = 0.9  # of the intervals of counts
PROMISED = 2  # times as many objects as a picture was seen to have are told
LEAST_FOUND = 100


@dataclass(frozen=True)
class Held:
    """What was said of pictures while they were held out, N: places among the boxed items, objects with log-odds,
    truths. folds: [N]."""

    places: np.ndarray
    found: list[Found]
    truths: list[Truth]
    folds: np.ndarray

    @classmethod
    def of(cls, boxed: Boxed, found: Mapping[int, Found], folds: np.ndarray) -> Held:
        """Of {place: objects}, in this order."""
        places = list(found)
        return cls(np.array(places, np.int64), list(found.values()), [boxed.at(place) for place in places], folds)

    def part(self, which: np.ndarray) -> Held:
        """Some of the pictures, [N] bool."""
        some = np.flatnonzero(which).tolist()
        return Held(
            self.places[which], [self.found[i] for i in some], [self.truths[i] for i in some], self.folds[which]
        )


@dataclass(frozen=True)
class Learnt:
    """A fitted detector, before it has a folder.

    sight: how it looks. method. task, calibrate: its network. boxed: that it learnt from. held: None where nothing was
    held out. thresholds [K]: how sure an object must be. widths [K]: of the intervals of counts, see `count_widths`.
    coverage: of these. metrics, classes: on held-out pictures. tried: {method: AP50}. bad: {id: reason}. notes.
    """

    sight: BoxSight
    method: str
    task: Detect
    calibrate: Calibrate
    boxed: Boxed
    held: Held | None
    thresholds: np.ndarray
    widths: np.ndarray
    coverage: float
    metrics: dict[str, Interval] = field(default_factory=dict)
    classes: dict[str, Interval] = field(default_factory=dict)
    tried: dict[str, float] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def module(self) -> DetectModule:
        """The network."""
        return DetectModule(self.sight.encoder, self.task, self.calibrate)


@dataclass(frozen=True)
class Work:
    """What is learnt from: scenes, of `boxed` pictures of a collection, as `sight` sees them. seed: of folds, and of
    what is learnt."""

    items: Collection
    sight: BoxSight
    scenes: list[BoxScene]
    boxed: Boxed
    seed: int


def fitted(method: str, work: Work, scenes: Sequence[BoxScene], title: str) -> Detect:
    """What a method learns from some pictures."""
    sight, classes = work.sight, len(work.boxed.names)
    pieces = [piece for scene in scenes for piece in (*scene.pieces, *scene.mirrored)]
    mean, scale = statistics_of(pieces)
    most = max(LEAST_FOUND, PROMISED * max(len(piece.boxes) for piece in pieces))
    if method == "prototypes":
        given = (sight.channels, sight.strides, pieces, classes, mean, scale, work.seed)
        return Detect(fit_prototypes(*given), sight.used, most)
    sides = torch.cat([piece.boxes[:, 2:] - piece.boxes[:, :2] for piece in pieces])
    usual = sides.median(0).values / 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(work.seed)
        net = Centres(sight.channels, sight.strides, classes, mean, scale, usual)
    steps = STEPS[len(scenes) >= MANY]
    with torch.enable_grad():
        fit_centres(net, pieces, steps, work.seed, title)
    return Detect(net, sight.used, most)


def statistics_of(pieces: Sequence[Piece]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel of each level [sum of C_l], of which one that does not vary has 1."""
    some = [pieces[place].levels for place in spread(len(pieces), min(len(pieces), 32)).tolist()]
    means, scales = [], []
    for level in range(len(some[0])):
        flat = torch.cat([levels[level].float().flatten(1) for levels in some], 1)
        deviation = flat.std(1)
        means.append(flat.mean(1))
        scales.append(torch.where(deviation > 1e-6, deviation, 1.0))
    return torch.cat(means), torch.cat(scales)


def said_of(task: Detect, scene: BoxScene) -> Found:
    """The objects of the inputs of a picture in pixels of its file, with log-odds."""
    return _said(task, ((place, piece.levels) for place, piece in zip(scene.placements, scene.pieces, strict=True)))


def said_whole(work: Work, task: Detect, scene: BoxScene) -> Found:
    """The objects of a picture that is held out: one that has more inputs than are kept is looked at again, as those
    that are kept were chosen by where its objects are."""
    if scene.whole:
        return said_of(task, scene)
    return _said(task, work.sight.again(work.items, work.boxed, scene.place))


@torch.inference_mode()
def _said(task: Detect, inputs: Iterable[tuple[Placement, list[torch.Tensor]]]) -> Found:
    answers, placements = [], []
    for placement, levels in inputs:
        told = task.surest([level[None].float() for level in levels])
        answers.append({name: tensor[0].numpy() for name, tensor in told.items()})
        placements.append(placement)
    return gathered(answers, placements, float(np.log(LEAST / (1 - LEAST))))


# -- what scores mean --


def judged(learnt: Learnt) -> Learnt:
    """With calibrated scores, thresholds, intervals of counts and metrics, from what was held out."""
    held, boxed = learnt.held, learnt.boxed
    if held is None:
        return learnt
    classes = len(boxed.names)
    right = [matched(found, truth) for found, truth in zip(held.found, held.truths, strict=True)]
    flat = np.concatenate(right)
    known = ~np.isnan(flat)
    scores, kinds = (np.concatenate([getattr(found, name) for found in held.found]) for name in ("scores", "kinds"))
    calibrate = fit_calibration(scores[known], kinds[known], flat[known], classes)
    found = [calibrated(one, calibrate) for one in held.found]
    sure = np.concatenate([one.scores for one in found])
    true = true_counts(held.truths, classes)
    thresholds = best_thresholds(sure[known], kinds[known], flat[known], true.sum(0))
    counts = np.array([counted(one, thresholds) for one in found])
    widths, coverage = count_widths(counts, true)
    named = boxed.labels.take(held.places).groups
    groups = np.array(named, dtype=object) if any(named) else None
    measured = Precisions(found, held.truths, classes, learnt.task.found)
    metrics = precisions(measured, groups) | {"count_error": count_error(counts, true, groups)}
    return replace(
        learnt, calibrate=calibrate, thresholds=thresholds, widths=widths, coverage=coverage, metrics=metrics,
        classes=class_precisions(measured, boxed.names, groups),
    )  # fmt: skip


def calibrated(found: Found, calibrate: Calibrate) -> Found:
    """Objects with probabilities in place of log-odds, the surest first."""
    slope, offset = calibrate.slope.cpu().numpy(), calibrate.offset.cpu().numpy()
    odds = slope[found.kinds] * found.scores + offset[found.kinds]
    told = found._replace(scores=1 / (1 + np.exp(-odds)))
    return told.at(np.argsort(-told.scores, kind="stable"))


def best_thresholds(scores: np.ndarray, kinds: np.ndarray, right: np.ndarray, true: np.ndarray) -> np.ndarray:
    """[K] how sure an object of each class must be for the highest F1: halfway between the last that counts and the
    next. true: [K] how many there are."""
    found = np.full(len(true), UNKNOWN)
    for kind, many in enumerate(true):
        mine = kinds == kind
        order = np.argsort(-scores[mine], kind="stable")
        own, hits = scores[mine][order], np.cumsum(right[mine][order])
        if not len(own) or not hits[-1]:
            continue
        f1 = 2 * hits / (np.arange(1, len(own) + 1) + many)
        last = int(f1.argmax())
        found[kind] = (own[last] + own[min(last + 1, len(own) - 1)]) / 2
    return found


def count_widths(counts: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, float]:
    """(widths [K], how often an interval holds the true count): counts are off by at most width times the root of one
    more than the count, a conformal quantile over held-out pictures [N, K] (Lei et al., "Distribution-Free Predictive
    Inference for Regression", JASA 2018). With too few pictures for `COVERAGE` it is of the largest, N / (N + 1)."""
    off = np.sort(np.abs(counts - true) / np.sqrt(counts + 1.0), 0)
    rank = int(np.ceil((len(off) + 1) * COVERAGE))
    if rank <= len(off):
        return off[rank - 1], COVERAGE
    return off[-1], len(off) / (len(off) + 1)
