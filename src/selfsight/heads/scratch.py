"""Supervision from random weights: what labels give without pretraining, with all the care that they deserve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.console import track
from selfsight.data.batches import Batch, Batches
from selfsight.data.canvases import Canvases, Part, Resident
from selfsight.data.splits import Side
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.features import gathered, item_features
from selfsight.encoders.store import random_like
from selfsight.errors import DataError
from selfsight.probing.metrics import balancing, leading
from selfsight.training.optimisers import learning_rate_factor, make_optimiser
from selfsight.views.make import make_views
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

RATES = (5e-4, 2e-3)  # of AdamW: what transformers and what convolutions like
TRIAL = 0.5  # of the minutes, for each of the rates
HELD = 0.2  # of the labels, on which the rate is chosen
BATCH, WARMUP, WEIGHT_DECAY = 64, 0.05, 0.05
MOST_PASSES = 300  # after which small data have nothing more to give
GENTLE = Colour(0.0, 0.0, 0.0, 0.0, jitter=0.0, grey=0.0, solarise=0.0)


@dataclass(frozen=True)
class Schedule:
    """How long a network learns, and how fast.

    seconds: of training, which ends sooner after 300 passes over the labels.
    rate: the highest learning rate, after a warm-up and before half a cosine down to 0.
    """

    seconds: float
    rate: float


class Supervised(nn.Module):
    """Logits [B, K] of images [B, C, H, W]: the encoder's pooled features and a linear layer."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.last = encoder, nn.Linear(encoder.dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.encoder(images).pooled)
        return logits


def supervised_answers(
    encoder: Encoder, train: Side, test: Side, classes: list[str], minutes: float
) -> tuple[np.ndarray, float]:
    """(class numbers [N] of the test items, passes over the labels) of the encoder's network, trained from random
    weights on all labels of `train` for so many minutes.

    Views are flips and crops of 60 to 100 % of the picture. The learning rate is the better of two on a fifth of the
    labels, each tried for half of the minutes; with too few labels to hold any out it is the lower one. Where classes
    are uneven, the loss weighs them alike, as balanced accuracy does.

    Raises `SelfsightError` where canvases cannot be written, or an item cannot be decoded at test.
    """
    held_in, numbers = train.items, dict(zip(train.labels.ids, train.labels.numbers(classes).tolist(), strict=True))
    canvases = Resident(held_in, encoder.geometry.format, encoder.geometry.size, rows=train.labels.rows)
    rate = RATES[0]
    with suppress(DataError):  # too few labels or groups to hold some out
        kept, held = train.labels.hold_out(HELD)
        places = np.flatnonzero(np.isin(canvases.ids, [train.labels.ids[place] for place in kept]))
        asked = Side(held_in, train.labels.take(held))
        truth = asked.labels.numbers(classes)
        weights = _weights(truth)
        found = {}
        for tried in RATES:
            schedule = Schedule(TRIAL * 60 * minutes, tried)
            net, _ = train_supervised(encoder, Part(canvases, places), numbers, len(classes), schedule)
            found[tried] = float(((answers(net, asked) == truth) * weights).sum())
        rate = max(RATES, key=lambda each: found[each])
    net, passes = train_supervised(encoder, canvases, numbers, len(classes), Schedule(60 * minutes, rate))
    return answers(net, test), passes


def train_supervised(
    encoder: Encoder, canvases: Canvases, numbers: dict[str, int], classes: int, schedule: Schedule, seed: int = 0
) -> tuple[Supervised, float]:
    """The encoder's network with random weights, trained on `canvases`, and the passes over these.

    numbers: of the class of each item, by id.
    """
    net = Supervised(random_like(encoder, seed), classes).to(encoder.device).train()
    weight = torch.ones(classes, device=encoder.device)
    truth = np.array([numbers[item] for item in canvases.ids])
    if leading(truth) == "balanced":
        sizes = np.bincount(truth, minlength=classes)
        weight = torch.tensor(np.where(sizes > 0, sizes.mean() / np.maximum(sizes, 1), 0.0), dtype=torch.float32)
        weight = weight.to(encoder.device)
    groups = [
        {"params": [p for p in net.parameters() if (p.ndim > 1) == large], "weight_decay": WEIGHT_DECAY * large}
        for large in (True, False)
    ]
    optimiser = make_optimiser(groups, "adamw", schedule.rate)  # type: ignore[arg-type]
    normalise = canvases.geometry(encoder.geometry.mean, encoder.geometry.std)
    plan = ViewPlan((ViewGroup(1, encoder.geometry.size, (0.6, 1.0), colour=GENTLE),))
    batches = Batches(canvases, BATCH, seed)
    steps = 0
    for batch, share in _until(batches, schedule.seconds):
        [view] = make_views(batch, plan, normalise, seed, encoder.device)
        wanted = torch.tensor([numbers[item] for item in batch.ids], device=encoder.device)
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * learning_rate_factor(share, WARMUP)
        optimiser.zero_grad()
        F.cross_entropy(net(view.pixels), wanted, weight).backward()
        optimiser.step()
        steps += 1
    return net.eval(), steps / batches.steps_per_epoch


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
    """Batches with the share of the budget that is over, 0 to 1: of the time, or of the passes if these are fewer."""
    began, most = monotonic(), MOST_PASSES * batches.steps_per_epoch
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
