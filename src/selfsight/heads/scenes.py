"""Labelled pictures as a segmentation learns from them: the levels of an encoder at one input size, and the mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.data.collection import Collection
from selfsight.data.geometry import Rule
from selfsight.data.masks import Masks
from selfsight.data.placements import Placement
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.heads.modules import Prepare, as_tensor
from selfsight.heads.objects import targets
from selfsight.heads.placed import Placed, inputs_of, placed
from selfsight.heads.segment_modules import APART

KEPT = 768 * 2**20  # bytes of inputs and their scores that are held at once; a picture takes at most half of it


class Piece(NamedTuple):
    """One input of a picture: levels [C, h, w] in half precision, grey [1, H, W], classes [H, W] int64 (-1: left out),
    and centre and boundary [2, H, W], where objects are told apart."""

    levels: list[Tensor]
    grey: Tensor
    classes: Tensor
    apart: Tensor | None


@dataclass
class Scene:
    """A labelled picture, or as much of a large one as there is room for. place: among the masks. pieces: its inputs,
    with where they lie. counts: their pixels of each class [K], by its share in the whole picture. looked: [H, W] bool,
    where its inputs lie and it is to be looked at, None for everywhere."""

    place: int
    pieces: list[Piece]
    placements: list[Placement]
    counts: np.ndarray
    looked: np.ndarray | None = None


class Sight:
    """How a segmentation looks: an encoder whose geometry has this size and rule, and the mask [H, W] bool of where it
    looks, None for everywhere."""

    def __init__(self, encoder: Encoder, size: int, rule: Rule, roi: np.ndarray | None = None) -> None:
        geometry = replace(encoder.geometry, size=size, rule=rule)
        self.encoder = Encoder(encoder.net, geometry, encoder.about).eval()
        self.prepare = Prepare(geometry)
        self.roi = roi
        self.stride = max(self.encoder.level_strides)

    def scenes(self, items: Collection, masks: Masks, bad: dict[int, str], title: str) -> Iterator[Scene]:
        """The pictures of the masks, not in their order; reasons of what cannot be read go into `bad`."""
        for one in placed(items, masks.labels.rows, self.encoder.geometry, self.stride, self.roi, title):
            if isinstance(one, Placed):
                yield self._scene(one, masks)
            else:
                bad[one[0]] = one[1]

    @torch.no_grad()
    def _scene(self, one: Placed, masks: Masks) -> Scene:
        classes, objects = masks.at(one.number)
        one, looked = self._roomy(one, classes, masks)
        pieces: list[Piece | None] = [None] * len(one.inputs)
        for which, given, _ in inputs_of([one]):
            pixels = as_tensor(given, self.encoder.device)
            levels = self.encoder.encode(self.prepare(pixels), levels=True).levels or []
            grey = self.prepare.geometry.to_unit(pixels).mean(1, keepdim=True)
            for place, (_, j) in enumerate(which):
                of = one.placements[j]
                apart = None
                if masks.told_apart:
                    apart = torch.from_numpy(np.stack(targets(of.mask_to_input(objects).clip(0))))
                half = [level[place].half().cpu().clone() for level in levels]
                true = torch.from_numpy(of.mask_to_input(classes).astype(np.int64))
                pieces[j] = Piece(half, grey[place].cpu().clone(), true, apart)
        there = [piece for piece in pieces if piece is not None]
        counts = sum(
            (counted(piece.classes, len(masks.names)) for piece in there), np.zeros(len(masks.names), np.int64)
        )
        if looked is not masks.roi:  # of the whole picture, as tiles with something in them come first
            whole = np.bincount(classes[classes >= 0], minlength=len(masks.names))
            counts = np.rint(whole * (counts.sum() / max(1, whole.sum()))).astype(np.int64)
        return Scene(one.number, there, one.placements, counts, looked)

    def _roomy(self, one: Placed, classes: np.ndarray, masks: Masks) -> tuple[Placed, np.ndarray | None]:
        """(as many of the inputs of a picture as there is room for, where they lie): of more than that, half are spread
        evenly, and half are spread over those in which there is more than background."""
        room = self.room(len(masks.names))
        if len(one.inputs) <= room:
            return one, masks.roi
        some = set(spread(len(one.inputs), (room + 1) // 2).tolist())
        full = [j for j, of in enumerate(one.placements) if j not in some and (of.mask_to_input(classes) > 0).any()]
        some |= {full[j] for j in spread(len(full), room - len(some)).tolist()}
        rest = [j for j in range(len(one.inputs)) if j not in some]
        used = sorted(some | {rest[j] for j in spread(len(rest), room - len(some)).tolist()})
        looked = np.zeros(classes.shape, bool)
        for x0, y0, x1, y1 in (one.placements[j].source for j in used):
            looked[y0:y1, x0:x1] = True
        if masks.roi is not None:
            looked &= masks.roi
        return one._replace(
            inputs=[one.inputs[j] for j in used],
            placements=[one.placements[j] for j in used],
            looked=[one.looked[j] for j in used],
        ), looked

    def room(self, classes: int) -> int:
        """How many inputs of a picture are held."""
        return max(1, KEPT // 2 // self.bytes_of(classes))

    def bytes_of(self, classes: int) -> int:
        """Bytes of an input while settings are compared: levels, grey, classes, centre and boundary, and its scores
        twice in half precision, as they are and filtered."""
        side, encoder = self.encoder.geometry.size, self.encoder
        levels = zip(encoder.level_channels, encoder.level_strides, strict=True)
        held = sum(2 * channels * (side / stride) ** 2 for channels, stride in levels)
        return int(held + side * side * (4 + 8 + 2 * 4 + 2 * 2 * (classes + APART)))


def counted(classes: Tensor, count: int) -> np.ndarray:
    """Pixels of each class [K] among classes [H, W], of which -1 is left out."""
    return np.bincount(classes[classes >= 0].numpy(), minlength=count)


class Scenes:
    """The scenes of some masks, to be gone through several times: kept where they fit, else seen anew."""

    def __init__(self, sight: Sight, items: Collection, masks: Masks, title: str) -> None:
        self.sight, self.items, self.masks, self.title = sight, items, masks, title
        self.bad: dict[int, str] = {}
        self._kept: list[Scene] | None = None

    def __iter__(self) -> Iterator[Scene]:
        if self._kept is not None:
            yield from self._kept
            return
        keeping: list[Scene] | None = []
        held = 0
        for scene in self.sight.scenes(self.items, self.masks, self.bad, self.title):
            held += len(scene.pieces) * self.sight.bytes_of(len(self.masks.names))
            if keeping is not None and held <= KEPT:
                keeping.append(scene)
            else:
                keeping = None
            yield scene
        self._kept = keeping


class Points(NamedTuple):
    """Pixels drawn from scenes: features [N, D], class [N] int64, weight [N], centre and boundary [N, 2] or None, and
    how many pixels of each class [K] there are in all."""

    features: Tensor
    classes: Tensor
    weights: Tensor
    apart: Tensor | None
    counts: np.ndarray


def drawn_points(scenes: Iterable[Scene], count: int, classes: int, most: int, seed: int) -> Points:
    """About `most` pixels of the scenes, of which there are `count`: of each scene and class alike, as far as there
    are so many; those next to a boundary of objects are drawn apart. The weights of each class sum to the same."""
    rng = np.random.default_rng(seed)
    share = max(8, most // max(1, count * classes))
    found: list[tuple[Tensor, Tensor, Tensor | None]] = []
    counts = np.zeros(classes, np.int64)
    for scene in scenes:
        counts += scene.counts
        true = np.concatenate([piece.classes.numpy().reshape(-1) for piece in scene.pieces])
        picked = [_some(np.flatnonzero(true == kind), share, rng) for kind in range(classes)]
        edges = [piece.apart[1].numpy().reshape(-1) > 0 for piece in scene.pieces if piece.apart is not None]
        if edges:
            picked.append(_some(np.flatnonzero(np.concatenate(edges)), share, rng))
        places, start = np.concatenate(picked), 0
        for piece in scene.pieces:
            size = piece.classes.numel()
            here = torch.from_numpy(places[(places >= start) & (places < start + size)] - start)
            start += size
            if len(here):
                apart = None if piece.apart is None else piece.apart.flatten(1)[:, here].T
                found.append((at_points(piece.levels, here, piece.classes.shape), piece.classes.flatten()[here], apart))
    features, labels = (torch.cat([each[i] for each in found]) for i in (0, 1))  # type: ignore[misc]
    aparts = [each[2] for each in found if each[2] is not None]
    sizes = torch.bincount(labels, minlength=classes).clamp_min(1)
    weights = 1.0 / sizes[labels] / (sizes > 0).sum()
    return Points(features, labels, weights / weights.sum(), torch.cat(aparts) if aparts else None, counts)


def _some(places: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return places if len(places) <= most else rng.choice(places, most, replace=False)


def at_points(levels: Sequence[Tensor], places: Tensor, size: Sequence[int]) -> Tensor:
    """Levels [C_l, h, w] at pixels of an input of (H, W), by their place in reading order: [N, sum of C_l] float32, the
    same as if each were brought to the input's size bilinearly."""
    height, width = size
    y, x = places // width, places % width
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)[None, None].float()
    parts = [
        F.grid_sample(level[None].float(), grid.to(level.device), padding_mode="border", align_corners=False)[0, :, 0]
        for level in levels
    ]
    return torch.cat(parts).T
