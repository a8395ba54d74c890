"""Supervision from random weights: what labels give without pretraining, with all the care that they deserve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.console import track
from selfsight.data.batches import Batch, Batches
from selfsight.data.canvases import Canvases, Part, Resident
from selfsight.data.splits import Side
from selfsight.data.spread import spread
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import gathered, input_batches, item_features
from selfsight.encoders.statistics import NORM_ITEMS, measure_batch_norm
from selfsight.encoders.store import random_like
from selfsight.errors import DataError
from selfsight.machine import has_bf16
from selfsight.objectives.shared import PLAIN
from selfsight.probing.metrics import balancing, leading
from selfsight.training.build import computing
from selfsight.training.optimisers import Group, learning_rate_factor, make_optimiser
from selfsight.views.make import make_views
from selfsight.views.plan import ViewGroup, ViewPlan

RATES = (2e-2, 5e-3)  # of Muon: as in pretraining, and a quarter of it
TRIAL = 0.25  # of the minutes, for each way that is tried
HELD, LEAST_TO_HOLD = 0.2, 5  # of the labels, on which the way is chosen; labels of each class that it takes
BATCH, WARMUP, WEIGHT_DECAY = 64, 0.05, 0.05
MOST_PASSES, LEAST_STEPS = 300, 300  # after so many passes small data have nothing more to give


@dataclass(frozen=True)
class Way:
    """How a network learns.

    name: of the augmentation, for people.
    view: the augmentation.
    rate: the highest learning rate, after a warm-up and before half a cosine down to 0.
    """

    name: str
    view: ViewGroup
    rate: float = RATES[0]


class Apart(Group):
    """A group of the optimiser. use_fallback: whether Muon takes AdamW's steps for it."""

    use_fallback: bool


class Supervised(nn.Module):
    """Logits [B, K] of images [B, C, H, W]: the encoder's pooled features and a linear layer."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.last = encoder, nn.Linear(encoder.dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.encoder(images).pooled)
        return logits


def ways(size: int, view: ViewGroup | None) -> list[Way]:
    """The augmentations that are tried for inputs of `size` pixels: a third to all of the picture, with the colours and
    flips of the pretraining's own `view`, where it is known; that view itself; the first with colours unchanged."""
    own = replace(view or ViewGroup(1, size), count=1, shared=frozenset(), draws=0)
    large = replace(own, size=size, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3))
    named = {"large parts": large} | ({"views of the pretraining": own} if view else {})
    named["large parts, colours unchanged"] = replace(large, colour=PLAIN)
    found: list[Way] = []
    for name, group in named.items():
        if group not in [way.view for way in found]:
            found.append(Way(name, group))
    return found


def supervised_answers(
    encoder: Encoder, train: Side, test: Side, classes: list[str], minutes: float, view: ViewGroup | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """(class numbers [N] of the test items, passes over the labels) of the encoder's network, trained from random
    weights on all labels of `train` for so many minutes.

    The augmentation, and then the learning rate, are the best on a fifth of the labels, each tried for a quarter of the
    minutes; with fewer than 5 labels of a class none are held out, and the first of `ways` is taken. Where classes are
    uneven, the loss weighs them alike, as balanced accuracy does. view: the augmentation of the pretraining.

    Raises `SelfsightError` where canvases cannot be written, or an item cannot be decoded at test.
    """
    numbers = dict(zip(train.labels.ids, train.labels.numbers(classes).tolist(), strict=True))
    canvases = Resident(train.items, encoder.geometry.format, 2 * encoder.geometry.size, rows=train.labels.rows)
    choices = ways(encoder.geometry.size, view)
    way = choices[0]
    if split := _held_out(train, classes):
        kept, held = split
        places = np.flatnonzero(np.isin(canvases.ids, [train.labels.ids[place] for place in kept]))
        asked = Side(train.items, train.labels.take(held))
        truth = asked.labels.numbers(classes)
        weights, found = _weights(truth), {}

        def attempt(way: Way) -> None:
            seconds = TRIAL * 60 * minutes
            net, _ = train_supervised(encoder, Part(canvases, places), numbers, len(classes), way, seconds, seed)
            found[way] = float(((answers(net, asked) == truth) * weights).sum())

        for each in choices:
            attempt(each)
        attempt(replace(max(found, key=lambda each: found[each]), rate=RATES[1]))
        way = max(found, key=lambda each: found[each])
    net, passes = train_supervised(encoder, canvases, numbers, len(classes), way, 60 * minutes, seed)
    return answers(net, test), passes


def _held_out(train: Side, classes: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Places that are kept and that are held out; None where labels or groups are too few."""
    if np.bincount(train.labels.numbers(classes), minlength=len(classes)).min() < LEAST_TO_HOLD:
        return None
    try:
        return train.labels.hold_out(HELD)
    except DataError:
        return None


def train_supervised(
    encoder: Encoder, canvases: Canvases, numbers: dict[str, int], classes: int, way: Way, seconds: float,
    seed: int = 0,
) -> tuple[Supervised, float]:  # fmt: skip
    """The encoder's network with random weights, trained on `canvases` for so many seconds, or 300 passes if these are
    fewer, and its passes over them. Batch norms get the statistics of whole pictures in the end.

    numbers: of the class of each item, by id.
    """
    device, geometry = encoder.device, encoder.geometry
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Supervised(random_like(encoder, seed), classes)
    net = net.to(device).to(memory_format=torch.channels_last).train()
    truth = np.array([numbers[item] for item in canvases.ids])
    weight = _class_weights(truth, classes).to(device)
    optimiser = make_optimiser(_groups(net), "muon", way.rate)
    normalise, precision = canvases.geometry(geometry.mean, geometry.std), "bf16" if has_bf16(device.type) else "no"
    batches, steps = Batches(canvases, BATCH, seed), 0
    for batch, share in _until(batches, seconds):
        [view] = make_views(batch, ViewPlan((way.view,)), normalise, seed, device)
        wanted = torch.tensor([numbers[item] for item in batch.ids], device=device)
        for group in optimiser.param_groups:
            group["lr"] = way.rate * learning_rate_factor(share, WARMUP)
        with computing(precision, device):
            scores = net(view.pixels)
        loss = F.cross_entropy(scores.float(), wanted, weight)
        optimiser.zero_grad()
        loss.backward()
        if torch.isfinite(loss.detach()):
            optimiser.step()
        steps += 1
    some = canvases.rows.take(spread(len(canvases), NORM_ITEMS))
    inputs = input_batches(canvases.collection, some, geometry, "Statistics")
    measure_batch_norm(net.encoder, (geometry.to_input(pixels) for found, pixels, _ in inputs if found))
    return net.eval(), steps / batches.steps_per_epoch


def _class_weights(truth: np.ndarray, classes: int) -> Tensor:
    """[K] of the loss: all 1, or where classes are uneven such that they count alike."""
    if leading(truth) != "balanced":
        return torch.ones(classes)
    sizes = np.bincount(truth, minlength=classes)
    return torch.tensor(np.where(sizes > 0, sizes.mean() / np.maximum(sizes, 1), 0.0), dtype=torch.float32)


def _groups(net: Supervised) -> list[Group]:
    """Its parameters for the optimiser: no decay of biases and norms, and no matrix steps for the last layer, whose
    rows are classes."""
    found: list[Group] = []
    for last in (False, True):
        own = [p for name, p in net.named_parameters() if name.startswith("last.") == last]
        for matrices in (True, False):
            part = [p for p in own if (p.ndim > 1) == matrices]
            found.append(Apart(params=part, weight_decay=WEIGHT_DECAY * matrices, use_fallback=last))
    return found


def answers(net: Supervised, side: Side) -> np.ndarray:
    """Class numbers [N] of the items of `side`, all of which can be decoded."""
    rows = side.labels.rows
    found, features, bad = gathered(item_features(net.encoder, side.items, rows), rows)
    if len(found) < len(rows):
        raise DataError(f"{side.items.uri_of(next(iter(bad)))} could be decoded before and cannot be now.")
    with torch.inference_mode():
        logits = net.last(torch.from_numpy(features).to(net.last.weight.device))
    return np.asarray(logits.argmax(1).cpu().numpy())


def _until(batches: Batches, seconds: float) -> Iterator[tuple[Batch, float]]:
    """Batches with the share of the budget that is over, 0 to 1: of the time, or of the passes if
    these are fewer; but 300 steps are allowed."""
    began, most = monotonic(), max(LEAST_STEPS, MOST_PASSES * batches.steps_per_epoch)
    told = 0

    def coming() -> Iterator[tuple[Batch, float]]:
        for step, batch in enumerate(batches.steps()):
            share = max((monotonic() - began) / seconds, step / most)
            if share >= 1.0:
                return
            yield batch, share

    def percent(each: tuple[Batch, float]) -> int:
        nonlocal told
        before, told = told, round(100 * each[1])
        return told - before

    yield from track(coming(), "Supervised from scratch, %", 100, percent)


def _weights(truth: np.ndarray) -> np.ndarray:
    """[N] that sum to 1: of the items in the accuracy that leads."""
    return balancing(truth) if leading(truth) == "balanced" else np.full(len(truth), 1.0 / len(truth))
