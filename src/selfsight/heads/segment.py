"""Segment: what is where, learnt from the pixels of few masks, or of many.

What was not asked for is chosen by cross-validation on the labelled pictures, with groups on one side: the size of the
input, how strongly weights are held down, the guided filter, and, from a dozen masks on, a decoder in place of what is
linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from selfsight.data.collection import Collection
from selfsight.data.geometry import Rule
from selfsight.data.labels import Labels
from selfsight.data.masks import Masks
from selfsight.data.placements import mask_to_file
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.errors import DataError, SelfsightError
from selfsight.heads.inspect import FACTORS, LARGE, longer_side, takes
from selfsight.heads.objects import Matched, ap50, apart, count_error, matched, things_of
from selfsight.heads.readouts import fit_calibration, fit_decoder, fit_readout, leaning, uncalibrated
from selfsight.heads.scenes import KEPT, Points, Scene, Scenes, Sight, drawn_points
from selfsight.heads.segment_maps import Whole
from selfsight.heads.segment_modules import Calibrate, Decoder, Readout, Segment, SegmentModule
from selfsight.probing.evaluation import Interval
from selfsight.probing.metrics import interval

METHODS = ("linear", "decoder")
FOLDS = 5
CHOICE = 40  # pictures on which settings are compared
POINTS = 24_000  # pixels that are learnt from
JUDGED = 2_000  # pixels of a held-out picture that calibrate
DECAYS = (1e-1, 1e-2)  # the first where nothing can be held out
RADII = (0, 4, 8)  # px of the input, of the guided filter
RADIUS = 4  # where nothing can be held out
LEANS = (0.0, 0.5, 1.0)
MANY = 12  # masks, from which a decoder is tried
SEEDS = (0.5, 0.35, 0.65)  # of a watershed: how high a centre must be
MOST_ENLARGED = 4.0  # times a file's longer side, above which no input size is tried
LEAST = 0.1  # of the area of the smallest objects: below it, an object is a speck


@dataclass(frozen=True)
class Wish:
    """What a user asked of a segmentation: method, size (px of the input) and rule are chosen if None. seed: of folds,
    and of the pixels that are drawn."""

    method: str | None = None
    size: int | None = None
    rule: Rule | None = None
    seed: int = 0


@dataclass(frozen=True)
class Setting:
    """How scores are made: by which method, with which decay of weights and which radius of the guided filter, and how
    much the choice of a class leans to rare ones."""

    method: str = "linear"
    decay: float = DECAYS[0]
    radius: int = RADIUS
    lean: float = 1.0

    def __str__(self) -> str:
        sharp = f"guided over {self.radius} px" if self.radius else "not guided"
        return f"{self.method}, {sharp}" + (f", decay {self.decay:g}" if self.method == "linear" else "")


@dataclass(frozen=True)
class Learnt:
    """A fitted segmentation, before it has a folder.

    sight: how it looks. setting. task, calibrate: its network. masks: that it learnt from, N. folds [N]: where each
    was held out, -1 where nothing was. held: pixels [M, K, K] by true class and answer of those with a fold, in their
    order, of what did not learn from the picture; None where nothing was held out. threshold, least: of the watershed,
    and of objects. metrics: on held-out pictures. tried: {setting: mIoU}. bad: {id: reason}. notes.
    """

    sight: Sight
    setting: Setting
    task: Segment
    calibrate: Calibrate
    masks: Masks
    folds: np.ndarray
    held: np.ndarray | None
    threshold: float
    least: int
    metrics: dict[str, Interval] = field(default_factory=dict)
    tried: dict[str, float] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def module(self) -> SegmentModule:
        """The network."""
        return SegmentModule(self.sight.encoder, self.task, self.calibrate)


@dataclass
class Trial:
    """Settings at one size, tried. scenes, folds [n]: of the pictures that are compared on. raw: {place of a scene: the
    readout's scores of its inputs, by what did not learn from it}."""

    sight: Sight
    scenes: list[Scene]
    folds: np.ndarray
    setting: Setting
    raw: dict[int, list[Tensor]]
    calibrate: Calibrate
    held: np.ndarray
    miou: float


def learn(encoder: Encoder, items: Collection, masks: Masks, wish: Wish) -> Learnt:
    """Fit a segmentation to the masks of a collection. Raises `SelfsightError` for a wish that cannot be had."""
    notes = list(masks.notes)
    sizes, rule, told = sizes_for(encoder, masks.labels, wish)
    notes += [told] if told else []
    tried: dict[str, float] = {}
    trial = None
    groups = groups_of(masks.labels)
    if groups < 2:
        why = "one mask only" if len(masks) == 1 else "all masks are of one group"
        notes.append(f"{why}, so nothing could be held out: how good it is, and how sure it may be, is not known")
        sight = Sight(encoder, sizes[min(1, len(sizes) - 1)], rule, masks.roi)
        setting = Setting(method=wish.method or "linear")
    else:
        trial = chosen(encoder, items, masks, sizes, rule, wish, tried)
        sight, setting = trial.sight, trial.setting
    room = sight.room(len(masks.names))
    if any(count > room for count in inputs_at(sight, masks)):
        notes.append(
            f"of pictures of more than {room:,} tiles that many are learnt from, half of them those with outlines"
        )
    scenes = Scenes(sight, items, masks, "Learning from masks")
    points = drawn_points(scenes, len(masks), len(masks.names), POINTS, wish.seed)
    readout = fitted(setting, scenes, points, masks, sight, wish.seed, notes)
    task = Segment(readout, len(masks.names), setting.radius)
    calibrate = uncalibrated(points.counts, setting.lean) if trial is None else trial.calibrate
    bad = {masks.labels.ids[number]: reason for number, reason in scenes.bad.items()}
    threshold, least, metrics = SEEDS[0], least_of(masks), dict[str, Interval]()
    folds = np.full(len(masks), -1)
    if trial is not None:
        folds[[scene.place for scene in trial.scenes]] = trial.folds
        threshold, metrics = judged(trial, masks, least)
    return Learnt(
        sight, setting, task, calibrate, masks, folds, None if trial is None else trial.held, threshold, least,
        metrics, tried, bad, notes,
    )  # fmt: skip


def groups_of(labels: Labels) -> int:
    """How many groups there are, an item without one being one."""
    return len({group for group in labels.groups if group}) + sum(not group for group in labels.groups)


def sizes_for(encoder: Encoder, labels: Labels, wish: Wish) -> tuple[list[int], Rule, str]:
    """(sizes of input that are tried, the rule of the geometry, a note or "")."""
    if wish.method is not None and wish.method not in METHODS:
        raise SelfsightError(f"There is no method {wish.method!r}. Choose one of {', '.join(METHODS)}.")
    if wish.size is not None and wish.size < 16:
        raise SelfsightError(f"--size is the side of the input in px, 16 or more, not {wish.size}.")
    size, longer = encoder.geometry.size, longer_side(labels)
    if not takes(encoder, 2 * size):
        if wish.size not in (None, size) or wish.rule not in (None, "squash"):
            raise SelfsightError(f"This encoder takes inputs of {size} x {size} px alone. Leave --size and --rule out.")
        return [size], "squash", f"the encoder takes inputs of {size} x {size} px alone, so no other size is tried"
    rule: Rule = wish.rule or ("tiles" if longer > LARGE * size else "fit")
    if wish.size is not None:
        return [wish.size], rule, ""
    if rule == "tiles":
        return [2 * size], rule, f"the files, of {longer:,.0f} px, are looked at in tiles at their own scale"
    return [size * factor for factor in FACTORS if factor == 1 or size * factor <= MOST_ENLARGED * longer], rule, ""


# -- cross-validation --


def chosen(
    encoder: Encoder, items: Collection, masks: Masks, sizes: list[int], rule: Rule, wish: Wish, tried: dict[str, float]
) -> Trial:
    """The size and setting with the highest mIoU on held-out pictures; a size is tried as long as the one before it was
    better than the one before that. `tried` is filled."""
    best: Trial | None = None
    for size in sizes:
        sight = Sight(encoder, size, rule, masks.roi)
        some = masks.take(spread(len(masks), min(len(masks), CHOICE, room_at(sight, masks))))
        scenes = sorted(Scenes(sight, items, some, f"Trying {size} px"), key=lambda scene: scene.place)
        if len(scenes) < 2:
            raise DataError(f"{masks.labels.location} has {len(scenes)} picture with a mask that can be read.")
        trial = tried_at(sight, scenes, some, wish, tried)
        if best is not None and trial.miou <= best.miou:
            break
        best = trial
        whole = {scene.place: masks.labels.ids.index(some.labels.ids[scene.place]) for scene in scenes}
        best.scenes = [replace(scene, place=whole[scene.place]) for scene in scenes]  # among all masks
        best.raw = {whole[place]: scores for place, scores in trial.raw.items()}
    assert best is not None
    return best


def room_at(sight: Sight, masks: Masks) -> int:
    """How many of the pictures fit in memory, two or more, by their inputs, of which one in tiles has many."""
    held = sight.room(len(masks.names))
    inputs = float(np.mean([min(held, count) for count in inputs_at(sight, masks)]))
    return int(max(2, KEPT // (sight.bytes_of(len(masks.names)) * inputs)))


def inputs_at(sight: Sight, masks: Masks) -> list[int]:
    """How many inputs each picture has."""
    geometry = sight.encoder.geometry
    return [len(geometry.placements(*masks.size(place), sight.stride)) for place in range(len(masks))]


def tried_at(sight: Sight, scenes: list[Scene], masks: Masks, wish: Wish, tried: dict[str, float]) -> Trial:
    """The best setting at one size."""
    every = masks.labels.folds(min(FOLDS, groups_of(masks.labels), len(masks)), wish.seed)
    folds = every[[scene.place for scene in scenes]]
    found: list[Trial] = []

    def consider(setting: Setting, raw: dict[int, list[Tensor]]) -> None:
        trial = measured(sight, scenes, folds, masks, setting, raw)
        found.append(trial)
        tried[f"{setting}, {sight.encoder.geometry.size} px"] = trial.miou

    def fit(setting: Setting) -> Callable[[list[Scene]], Readout | Decoder]:
        def fitting(some: list[Scene]) -> Readout | Decoder:
            points = drawn_points(some, len(some), len(masks.names), POINTS // 3, wish.seed)
            return fitted(setting, some, points, masks, sight, wish.seed, [])

        return fitting

    if wish.method != "decoder":
        for decay in DECAYS:
            setting = Setting("linear", decay, 0)
            consider(setting, raw_scores(scenes, folds, fit(setting)))
    if wish.method == "decoder" or (wish.method is None and len(scenes) >= MANY):
        setting = Setting("decoder", 0.0, 0)
        consider(setting, raw_scores(scenes, folds, fit(setting)))
    best = max(found, key=lambda trial: trial.miou)
    for radius in RADII[1:]:
        consider(replace(best.setting, radius=radius), best.raw)
    return max(found, key=lambda trial: trial.miou)


@torch.no_grad()
def raw_scores(
    scenes: list[Scene], folds: np.ndarray, fit: Callable[[list[Scene]], Readout | Decoder]
) -> dict[int, list[Tensor]]:
    """{place: scores [K', H, W] of each input in half precision} of each scene, by what did not learn from its fold."""
    found: dict[int, list[Tensor]] = {}
    for fold in np.unique(folds):
        with torch.enable_grad():
            readout = fit([scene for scene, own in zip(scenes, folds, strict=True) if own != fold])
        for scene, own in zip(scenes, folds, strict=True):
            if own == fold:
                found[scene.place] = [
                    readout([level[None] for level in piece.levels], tuple(piece.grey.shape[1:]))[0].half()  # type: ignore[misc]
                    for piece in scene.pieces
                ]
    return found


@torch.no_grad()
def measured(
    sight: Sight, scenes: list[Scene], folds: np.ndarray, masks: Masks, setting: Setting, raw: dict[int, list[Tensor]]
) -> Trial:
    """The setting's mIoU, its scores calibrated on held-out pixels, with the lean to rare classes that is best."""
    task = Segment(Readout((), torch.empty(0, 0), torch.empty(0)), len(masks.names), setting.radius)
    rng = np.random.default_rng(0)
    logs: list[list[Tensor]] = []
    pixels: list[Tensor] = []
    true: list[Tensor] = []
    counts = np.zeros(len(masks.names), np.int64)
    for scene in scenes:
        logs.append([])
        counts += scene.counts
        for piece, scores in zip(scene.pieces, raw[scene.place], strict=True):
            here = task.filtered(scores[None].float(), piece.grey[None])["scores"][0]
            logs[-1].append(here.half())
            flat = piece.classes.flatten()
            known = np.flatnonzero(flat.numpy() >= 0)
            some = torch.from_numpy(rng.choice(known, min(JUDGED, len(known)), replace=False))
            pixels.append(here.flatten(1)[:, some].T)
            true.append(flat[some])
    with torch.enable_grad():
        calibrate = fit_calibration(torch.cat(pixels).clone(), torch.cat(true).clone(), counts, 0.0)
    best: tuple[float, float, np.ndarray] | None = None
    for lean in LEANS:
        calibrate.lean = leaning(counts, lean)
        confusions = []
        for scene, maps in zip(scenes, logs, strict=True):
            told = [calibrate({"scores": each[None].float()})["mask"][0].numpy() for each in maps]
            answer = mask_to_file(told, scene.placements)
            confusions.append(confusion(masks.at(scene.place)[0], answer, len(masks.names)))
        held = np.stack(confusions)
        if best is None or miou(held) > best[0]:
            best = (miou(held), lean, held)
    assert best is not None
    calibrate.lean = leaning(counts, best[1])
    return Trial(sight, scenes, folds, replace(setting, lean=best[1]), raw, calibrate, best[2], best[0])


def fitted(
    setting: Setting, scenes: Iterable[Scene], points: Points, masks: Masks, sight: Sight, seed: int, notes: list[str]
) -> Readout | Decoder:
    """The readout of a setting."""
    channels = sight.encoder.level_channels
    if setting.method == "linear":
        return fit_readout(points, len(masks.names), setting.decay, channels, sight.encoder.level_strides)
    places = set(spread(len(masks), room_at(sight, masks)).tolist())
    kept = [scene for scene in scenes if scene.place in places or not isinstance(scenes, Scenes)]
    if len(places) < len(masks):
        notes.append(f"the decoder learnt from {len(places):,} of {len(masks):,} masks, spread evenly")
    return fit_decoder(kept, points, len(masks.names), channels, seed)


# -- figures --


def confusion(true: np.ndarray, answer: np.ndarray, classes: int) -> np.ndarray:
    """[K, K] pixels by true class and answer; what is left out of the truth, or has no answer, does not count."""
    known = (true >= 0) & (answer >= 0)
    places = true[known].astype(np.int64) * classes + answer[known]
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes)


def ious(confusions: np.ndarray) -> np.ndarray:
    """[K] intersection over union of each class, over the pixels of all pictures [N, K, K]; nan where it has none."""
    total = confusions.sum(0).astype(np.float64)
    union = total.sum(0) + total.sum(1) - np.diag(total)
    return np.asarray(np.divide(np.diag(total), union, out=np.full(len(total), np.nan), where=union > 0))


def miou(confusions: np.ndarray) -> float:
    """The mean over classes, the background among them."""
    return float(np.nanmean(ious(confusions)))


def class_ious(confusions: np.ndarray, names: Sequence[str], groups: np.ndarray | None) -> dict[str, Interval]:
    """{class: intersection over union} over pictures [N, K, K], with intervals over groups."""
    return {
        name: interval(lambda some, k=k: float(ious(some)[k]), [confusions], groups) for k, name in enumerate(names)
    }


def pixels_of_classes(confusions: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """{class: pixels that are truly of it} over pictures [N, K, K]."""
    return dict(zip(names, confusions.sum((0, 2)).tolist(), strict=True))


def each_miou(confusions: np.ndarray) -> list[float]:
    """Of each picture [N, K, K], over the classes that are in it or in the answer; nan where nothing is known."""
    return [miou(one[None]) if one.any() else float("nan") for one in confusions]


def least_of(masks: Masks) -> int:
    """Pixels below which an object is a speck: a tenth of what the smallest twentieth of the objects have."""
    areas = [count for place in range(min(len(masks), CHOICE)) for count in _areas(masks, place)]
    return max(1, int(LEAST * np.quantile(areas, 0.05))) if areas else 1


def _areas(masks: Masks, place: int) -> list[int]:
    classes, objects = masks.at(place)
    if not masks.told_apart:
        objects = apart(classes, None, None, 0.0, 1)
    return [count for count in np.bincount(objects.reshape(-1))[1:].tolist() if count]


def judged(trial: Trial, masks: Masks, least: int) -> tuple[float, dict[str, Interval]]:
    """(how high a centre must be, metrics of held-out pictures with intervals over groups)."""
    labels = masks.labels.take([scene.place for scene in trial.scenes])
    named = np.array(labels.groups, dtype=object) if any(labels.groups) else None
    metrics = {"miou": interval(miou, [trial.held], named)}
    if not masks.told_apart:
        return SEEDS[0], metrics
    task = Segment(Readout((), torch.empty(0, 0), torch.empty(0)), len(masks.names), trial.setting.radius)
    pictures: dict[float, list[Matched]] = {threshold: [] for threshold in SEEDS}
    for scene in trial.scenes:  # one after the other, as the maps of a large one take much memory
        mask, probabilities, centre, boundary = held_maps(trial, scene, task)
        classes, true = replace(masks, roi=scene.looked).at(scene.place)
        for threshold in SEEDS:
            objects = apart(mask, centre, boundary, threshold, least)
            things = things_of(objects, mask, probabilities, np.zeros(mask.shape, np.uint8))
            labels_, scores = [thing.label for thing in things], [thing.score for thing in things]
            pictures[threshold].append(matched(objects, labels_, scores, true, classes))
    best = max(SEEDS, key=lambda threshold: ap50(pictures[threshold]) or 0.0)
    return best, metrics | object_metrics(pictures[best], named)


def object_metrics(pictures: Sequence[Matched], groups: np.ndarray | None) -> dict[str, Interval]:
    """AP50 and the error of counts, with intervals."""
    rows = np.arange(len(pictures))
    return {
        "ap50": interval(lambda some: ap50([pictures[i] for i in some]), [rows], groups, 200),
        "count_error": interval(lambda some: count_error([pictures[i] for i in some]), [rows], groups),
    }


@torch.inference_mode()
def held_maps(
    trial: Trial, scene: Scene, task: Segment
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Mask, probabilities, centre and boundary of a scene in pixels of the file, by what did not learn from it."""
    told = []
    for piece, scores in zip(scene.pieces, trial.raw[scene.place], strict=True):
        found = trial.calibrate(task.filtered(scores[None].float(), piece.grey[None]))
        told.append({name: tensor[0].numpy() for name, tensor in found.items()})
    whole = Whole(told, scene.placements, trial.calibrate.lean.cpu().numpy(), scene.looked)
    return whole.mask, whole.probabilities, whole.centre, whole.boundary
