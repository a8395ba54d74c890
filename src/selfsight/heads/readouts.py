"""How the readout of a segmentation is fitted: logistic regression on drawn pixels, or a decoder on whole pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.heads.scenes import Points, Scene
from selfsight.heads.segment_modules import APART, Calibrate, Decoder, Readout

ITERATIONS = 40  # of L-BFGS
STEPS = 250  # of the decoder
PICTURES = 4  # a step
RATE = 3e-3


def fit_readout(points: Points, classes: int, decay: float, channels: Sequence[int], strides: Sequence[int]) -> Readout:
    """The scores, linear in standardised features, with the least of: the mean cross-entropy of classes, of which each
    weighs the same; where objects are told apart that of centre and boundary; and decay / 2 times the squared weights.

    Features are scaled by `shares_of`, so that a level of many channels, or of few places, does not outweigh others.
    """
    mean, deviation = statistics_of(points)
    scale = deviation / shares_of(channels, strides)
    features = (points.features - mean) / scale
    outputs = classes + (APART if points.apart is not None else 0)
    weight = torch.zeros(outputs, features.shape[1], requires_grad=True)
    bias = torch.zeros(outputs, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        scores = features @ weight.T + bias
        loss = (points.weights * F.cross_entropy(scores[:, :classes], points.classes, reduction="none")).sum()
        if points.apart is not None:
            loss = loss + F.binary_cross_entropy_with_logits(scores[:, classes:], points.apart)
        loss = loss + 0.5 * decay * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    own = weight.detach() / scale
    return Readout(channels, own, bias.detach() - own @ mean)


def shares_of(channels: Sequence[int], strides: Sequence[int]) -> Tensor:
    """[sum of C_l]: of a level of C channels at stride s, sqrt(64 / C) sqrt(4 / s). The channels of a level together
    vary as much as those of another, but for a coarse level, which has few places to learn from: in one picture 49 at
    stride 32, that as many channels tell from each other whatever they show. With one mask of white blood cells this
    raised the mean IoU of 18 other pictures of the training half from 0.56 to 0.65, mean of 4 draws."""
    pairs = zip(channels, strides, strict=True)
    return torch.cat([torch.full((count,), (64 / count) ** 0.5 * (4 / stride) ** 0.5) for count, stride in pairs])


def statistics_of(points: Points) -> tuple[Tensor, Tensor]:
    """Mean and deviation [D] of the features, of which a channel that does not vary has 1."""
    mean, scale = points.features.mean(0), points.features.std(0)
    return mean, torch.where(scale > 1e-6, scale, 1.0)


def fit_decoder(
    scenes: Sequence[Scene], points: Points, classes: int, channels: Sequence[int], seed: int, steps: int = STEPS
) -> Decoder:
    """A decoder trained on whole inputs for some hundred steps: cross-entropy with classes weighted by the root of how
    rare they are, and, where objects are told apart, that of centre and boundary."""
    pieces = [piece for scene in scenes for piece in scene.pieces]
    told = pieces[0].apart is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(channels, classes + (APART if told else 0), *statistics_of(points))
    share = points.counts / max(1, points.counts.sum())
    rare = torch.tensor(1.0 / np.sqrt(np.maximum(share, 1e-4)), dtype=torch.float32)
    optimiser = torch.optim.AdamW(decoder.parameters(), RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    rng = np.random.default_rng(seed)
    decoder.train()
    for _ in range(steps):
        optimiser.zero_grad()
        chosen = rng.choice(len(pieces), min(PICTURES, len(pieces)), replace=False)
        for place in chosen:  # one by one, as inputs differ in size
            piece = pieces[place]
            scores = decoder([level[None] for level in piece.levels], (piece.grey.shape[1], piece.grey.shape[2]))
            loss = F.cross_entropy(scores[:, :classes], piece.classes[None], rare, ignore_index=-1)
            if piece.apart is not None:
                loss = loss + F.binary_cross_entropy_with_logits(scores[0, classes:], piece.apart)
            if torch.isfinite(loss):  # an input may be left out entirely
                (loss / len(chosen)).backward()
        optimiser.step()
        schedule.step()
    return decoder.eval()


def fit_calibration(scores: Tensor, classes: Tensor, counts: np.ndarray, lean: float) -> Calibrate:
    """Slope and offsets by which scores [N, K] tell the classes [N] of held-out pixels with the least cross-entropy.

    counts: pixels of each class [K]. lean: how much of the rarity of classes is given back when one is chosen, 0 to 1.
    """
    log_slope, offset = torch.zeros((), requires_grad=True), torch.zeros(scores.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([log_slope, offset], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(log_slope.exp() * scores + offset, classes) + 1e-4 * offset.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return Calibrate(log_slope.detach().exp(), offset.detach(), leaning(counts, lean))


def uncalibrated(counts: np.ndarray, lean: float) -> Calibrate:
    """Where nothing is held out: scores of classes that weighed the same, brought to how often each occurs."""
    share = torch.tensor(counts / max(1, counts.sum()), dtype=torch.float32).clamp_min(1e-6)
    return Calibrate(torch.ones(()), share.log(), leaning(counts, lean))


def leaning(counts: np.ndarray, lean: float) -> Tensor:
    """[K]: -lean times the logarithm of each class's share of pixels."""
    share = torch.tensor(counts / max(1, counts.sum()), dtype=torch.float32).clamp_min(1e-6)
    return -lean * share.log()
