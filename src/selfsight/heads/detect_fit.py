"""How the centres of a detector are learnt on maps of a frozen encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfsight.console import track
from selfsight.heads.detect_modules import Calibrate, Centres, boxes_at

ALPHA = 0.54  # of an object's side, that its Gaussian covers (Liu et al., section 4)
RATE = 4e-3
MANY = 60  # inputs
BATCH = (4, 8)  # inputs a step, of few and of many
WEIGHT = 2.0  # of the loss of boxes


class Piece(NamedTuple):
    """One input of a picture: levels [C, h, w] in half precision, boxes [N, 4] in its pixels, kinds [N], and unsure
    [M, 4], where nothing is learnt."""

    levels: list[Tensor]
    boxes: Tensor
    kinds: Tensor
    unsure: Tensor


class Target(NamedTuple):
    """What an input is to be told: heat [K, h, w] in [0, 1], 1 at centres; counts [h, w] bool, where it is known;
    boxes [4, h, w]; weight [h, w] of boxes, which sums to 1 over an object."""

    heat: Tensor
    counts: Tensor
    boxes: Tensor
    weight: Tensor


def target_of(piece: Piece, classes: int, shape: tuple[int, int], stride: int) -> Target:
    """What an input is to be told at a grid of this shape (h, w) and stride.

    Each object has a Gaussian whose deviations are `ALPHA` / 6 of its sides; where two overlap, that of the smaller
    tells the box.
    """
    height, width = shape
    heat, counts = torch.zeros(classes, height, width), torch.ones(height, width, dtype=torch.bool)
    boxes, weight = torch.zeros(4, height, width), torch.zeros(height, width)
    for x0, y0, x1, y1 in (piece.unsure / stride).tolist():
        counts[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = False
    sides = piece.boxes[:, 2:] - piece.boxes[:, :2]
    for place in torch.argsort(sides.prod(1), descending=True).tolist():
        box = piece.boxes[place]
        centre, (across, down) = (box[:2] + box[2:]) / 2 / stride, (sides[place] / stride).tolist()
        x = min(width - 1, int(centre[0]))
        y = min(height - 1, int(centre[1]))
        reach_x, reach_y = int(ALPHA * across / 2), int(ALPHA * down / 2)
        columns = slice(max(0, x - reach_x), min(width, x + reach_x + 1))
        rows = slice(max(0, y - reach_y), min(height, y + reach_y + 1))
        dx = (torch.arange(columns.start, columns.stop) - x) / (max(1e-6, (2 * reach_x + 1) / 6))
        dy = (torch.arange(rows.start, rows.stop) - y) / (max(1e-6, (2 * reach_y + 1) / 6))
        bump = (-0.5 * (dx[None] ** 2 + dy[:, None] ** 2)).exp()
        own = heat[int(piece.kinds[place]), rows, columns]
        torch.maximum(own, bump, out=own)
        boxes[:, rows, columns] = box[:, None, None]
        weight[rows, columns] = bump / bump.sum()
        counts[rows, columns] = True
    return Target(heat, counts, boxes, weight)


def heat_loss(heat: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Focal loss of log-odds `heat` [B, K, h, w]: at centres -(1 - p)² log p, elsewhere -(1 - t)⁴ p² log(1 - p), a sum
    over one for each centre (Law and Deng, "CornerNet", ECCV 2018, equation 1)."""
    p = heat.sigmoid()
    centres = (target >= 1.0).float()
    at = -(1 - p).square() * torch.nn.functional.logsigmoid(heat) * centres
    rest = -(1 - target).pow(4) * p.square() * torch.nn.functional.logsigmoid(-heat) * (1 - centres)
    return ((at + rest) * counts[:, None]).sum() / centres.sum().clamp_min(1.0)


def box_loss(boxes: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - GIoU of boxes [B, 4, h, w] and their targets, the mean over objects (Rezatofighi et al., CVPR 2019)."""
    inside = (torch.minimum(boxes[:, 2:], target[:, 2:]) - torch.maximum(boxes[:, :2], target[:, :2])).clamp_min(0)
    around = torch.maximum(boxes[:, 2:], target[:, 2:]) - torch.minimum(boxes[:, :2], target[:, :2])
    shared, whole = inside.prod(1), around.prod(1).clamp_min(1e-6)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (target[:, 2:] - target[:, :2]).prod(1) - shared
    giou = shared / union.clamp_min(1e-6) - (whole - union) / whole
    return (weight * (1 - giou)).sum() / weight.sum().clamp_min(1e-6)


def losses(told: Mapping[str, Tensor], targets: Target, stride: int) -> tuple[Tensor, Tensor]:
    """(of the heat map, of the boxes) of what a readout tells of inputs, whose targets are stacked."""
    edges = box_loss(boxes_at(told["edges"].float(), stride), targets.boxes, targets.weight)
    return heat_loss(told["heat"].float(), targets.heat, targets.counts), edges


def fit_centres(net: Centres, pieces: Sequence[Piece], steps: int, seed: int, title: str) -> Centres:
    """`net` trained on inputs for so many steps."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for place, piece in enumerate(pieces):
        shapes.setdefault(tuple(piece.levels[0].shape), []).append(place)
    groups, rng = list(shapes.values()), np.random.default_rng(seed)
    share = np.array([len(group) for group in groups]) / len(pieces)
    targets = [
        target_of(piece, net.classes, (piece.levels[0].shape[1] * net.finer, piece.levels[0].shape[2] * net.finer),
                  net.stride)
        for piece in pieces
    ]  # fmt: skip
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.15)
    net.train().to(memory_format=torch.channels_last)  # depthwise convolutions learn faster so
    batch = BATCH[len(pieces) > MANY]
    for _ in track(range(steps), f"{title}, step", steps):
        group = groups[int(rng.choice(len(groups), p=share))]
        some = rng.choice(group, min(batch, len(group)), replace=False).tolist()
        levels = [torch.stack([pieces[i].levels[j] for i in some]) for j in range(len(net.channels))]
        heat, counts, boxes, weight = (torch.stack(each) for each in zip(*(targets[i] for i in some), strict=True))
        heats, edges = losses(net(levels), Target(heat, counts, boxes, weight), net.stride)
        loss = heats + WEIGHT * edges
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    return net.eval().to(memory_format=torch.contiguous_format)


def fit_calibration(scores: np.ndarray, kinds: np.ndarray, right: np.ndarray, classes: int) -> Calibrate:
    """Slope, one for all, and offsets by which log-odds [N] of held-out objects tell which are right [N] with the least
    cross-entropy; both are held near 1 and 0, as there may be few."""
    log_slope, offset = torch.zeros((), requires_grad=True), torch.zeros(classes, requires_grad=True)
    odds, of, true = torch.tensor(scores).float(), torch.tensor(kinds), torch.tensor(right).float()
    optimiser = torch.optim.LBFGS([log_slope, offset], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        told = log_slope.exp() * odds + offset[of]
        fit = torch.nn.functional.binary_cross_entropy_with_logits(told, true, reduction="sum")
        loss = fit + log_slope.square() + 0.1 * offset.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return Calibrate(log_slope.detach().exp().expand(classes).clone(), offset.detach())


def uncalibrated(classes: int) -> Calibrate:
    """Where nothing is held out: scores as they are."""
    return Calibrate(torch.ones(classes), torch.zeros(classes))
