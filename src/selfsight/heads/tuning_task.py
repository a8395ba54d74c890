"""What the loop trains when it tunes an encoder: labelled items, in gentle crops, to the loss of a linear head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn

from selfsight.data.batches import Batches
from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.tokens import is_token_model
from selfsight.heads.lora import adapted
from selfsight.heads.targets import Targets
from selfsight.machine import has_bf16
from selfsight.probing.metrics import UNEVEN
from selfsight.training.adaptation import Frozen
from selfsight.training.build import computing
from selfsight.training.loop import Step
from selfsight.training.optimisers import Group, learning_rate_factor, make_optimiser
from selfsight.training.stepping import Forward, Pace, Stepper
from selfsight.views.make import make_views
from selfsight.views.plan import Colour, ViewGroup, ViewPlan

WARMUP, CLIP = 0.1, 1.0
CROPS = (0.5, 1.0)  # of the area
COLOUR = Colour(brightness=0.2, contrast=0.2, saturation=0.1, hue=0.0, grey=0.0, solarise=0.0)


@dataclass(frozen=True)
class Way:
    """How an encoder is tuned.

    what: in words. rate: peak learning rate of its last layer. head_rate: of the linear head. layer_decay: of the rate,
    from each layer to the one before it. weight_decay: of matrices.
    """

    what: str
    rate: float
    head_rate: float
    layer_decay: float = 1.0
    weight_decay: float = 0.0


WAYS = {
    "finetune": Way("the whole network", 3e-4, 1e-3, 0.8, 0.05),
    "norm": Way("the weights of its norms", 3e-3, 1e-3),
    "lora": Way("low-rank changes of its attention", 1e-3, 1e-3),
}


def aims_of(targets: Targets) -> tuple[Tensor, float, float]:
    """(what scores are to be [N, K], and the middle and scale of it in units of the targets)."""
    values = torch.from_numpy(targets.values)
    if targets.kind != "number":
        return values, 0.0, 1.0
    middle, scale = float(values.mean()), float(values.std()) or 1.0
    return (values - middle) / scale, middle, scale


def norms_of(net: nn.Module) -> list[nn.Module]:
    """The norms of a network that have weights."""
    return [part for part in net.modules() if "Norm" in type(part).__name__ and list(part.parameters(recurse=False))]


class TunedModule(nn.Module):
    """An encoder with a linear head on its features of unit length: images [B, C, H, W] to scores [B, K].

    Of the encoder only what the method tunes has gradients.
    """

    def __init__(self, encoder: Encoder, method: str, start: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.encoder = encoder.train()
        self.weight, self.bias = (nn.Parameter(part.clone().float()) for part in start)
        if method == "norm":
            encoder.requires_grad_(False)
            for norm in norms_of(encoder.net):
                for parameter in norm.parameters(recurse=False):
                    parameter.requires_grad_(True)
        if method == "lora":
            adapted(encoder.net)

    def forward(self, images: Tensor) -> Tensor:
        pooled = F.normalize(self.encoder(images).pooled.float(), dim=1)
        return pooled @ self.weight.T + self.bias


class Tuning:
    """A `Task` of the loop: labelled items, seen in gentle crops.

    targets: of the items with these `ids`. geometry: of the encoder. mirror: whether half of the views are mirrored.
    """

    def __init__(
        self, module: TunedModule, way: Way, batches: Batches, targets: Targets, ids: list[str], geometry: Geometry,
        seed: int, accelerator: Accelerator, mirror: bool,
    ) -> None:  # fmt: skip
        self.module: nn.Module = module.to(accelerator.device).to(memory_format=torch.channels_last)
        self.way, self.batches, self.seed, self.accelerator = way, batches, seed, accelerator
        self.kind, self.geometry = targets.kind, batches.canvases.geometry(geometry.mean, geometry.std)
        places = {item: place for place, item in enumerate(ids)}
        order = [places[item] for item in batches.ids]
        self.aims, self.counts = aims_of(targets)[0][order], torch.from_numpy(_counts(targets))[order]
        group = ViewGroup(1, geometry.size, CROPS, flip=0.5 if mirror else 0.0, colour=COLOUR)
        self.plan = ViewPlan((group,))
        self.optimiser = make_optimiser(_groups(module, way), "adamw", way.rate)
        self.precision = "bf16" if has_bf16(str(accelerator.device)) else "no"
        grid = module.encoder.grid if is_token_model(module.encoder.net) else (0, 0)
        self.patches = grid[0] * grid[1]
        self.frozen = Frozen(module.encoder, module, 0.0, keep_statistics=True)
        self.stepper, self.pace = Stepper(self.module, accelerator, clip=CLIP), Pace()

    def begin(self, step: int) -> None:
        """Begin the stream of batches at `step`, with the module in training mode."""
        self.stepper.begin()
        self.stream = self.batches.steps(step)

    def schedule(self, progress: float) -> dict[str, float]:
        """Set the learning rates for `progress`."""
        factor = learning_rate_factor(progress, WARMUP)
        for group in self.optimiser.param_groups:
            group["lr"] = factor * group["peak"]
        return {"learning_rate": factor * self.way.rate}

    def gradients(self, progress: float) -> Step:
        """Compute the gradients of a batch's loss."""
        self.frozen.before(progress)
        return self.stepper.gradients(self._forward)

    def _forward(self) -> Forward:
        batch, device = self.pace.wait_for(self.stream), self.accelerator.device
        [view] = make_views(batch, self.plan, self.geometry, self.seed, device)
        self.pace.views += len(batch.ids)
        with computing(self.precision, device, self.patches):
            self.scores = self.stepper.model(view.pixels)
        self.wanted = self.aims[batch.indices].to(device)
        each = losses(self.kind, self.scores, self.wanted)
        suspects = {
            "a pixel of the views": [view.pixels],
            "a weight": self.module.parameters(),
            "a score": [self.scores],
        }
        return Forward((self.counts[batch.indices].to(device) * each).mean(), {}, suspects)

    def after_step(self, progress: float) -> None:
        """Nothing moves without a gradient."""

    def evidence(self) -> dict[str, float]:
        """The share of the last batch that is right, where items have one class."""
        found = self.pace.lap()
        if self.kind in ("class", "grade"):
            found["right"] = float((self.scores.argmax(1) == self.wanted.argmax(1)).float().mean())
        return found

    def remedy(self, cause: str, learnt: bool) -> str:
        """Advice where steps are not finite."""
        if "pixel" in cause:
            return "Some images hold values that are not numbers. Leave them out."
        return "Give --method linear, which leaves the encoder as it is."

    def draw(self, folder: Path, step: int) -> tuple[str, ...]:
        """No pictures."""
        return ()


def losses(kind: str, scores: Tensor, aims: Tensor) -> Tensor:
    """The loss [B] of each item: cross-entropy of one class or of several, half the square of a number."""
    if kind == "number":
        return 0.5 * (scores - aims).square().mean(1)
    if kind == "classes":
        return F.binary_cross_entropy_with_logits(scores, aims, reduction="none").mean(1)
    return F.cross_entropy(scores, aims, reduction="none")


def _counts(targets: Targets) -> np.ndarray:
    """[N] float32, with mean 1: how much each item counts. Where classes are uneven, each class counts the same."""
    sizes = targets.values.sum(0)
    if targets.kind not in ("class", "grade") or sizes.max() <= UNEVEN * sizes[sizes > 0].min():
        return np.ones(len(targets), np.float32)
    counts = 1.0 / sizes[targets.numbers]
    return np.asarray(counts / counts.mean(), np.float32)


def _groups(module: TunedModule, way: Way) -> list[Any]:
    """The groups of the optimiser, with their peak rates: the encoder's, and the head."""
    head = {"params": [module.weight, module.bias], "weight_decay": 0.0, "peak": way.head_rate}
    return [*encoder_groups(module.encoder, way), head]


def encoder_groups(encoder: Encoder, way: Way) -> list[Group]:
    """The groups of an encoder's parameters, with their peak rates: slower the earlier a layer is."""
    net: Any = encoder.net
    groups: list[Any]
    if way.layer_decay < 1.0:
        still = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
        groups = param_groups_layer_decay(net, way.weight_decay, still, layer_decay=way.layer_decay)
    else:
        learning = [p for p in net.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learning if (p.ndim > 1) == matrix], "weight_decay": matrix * way.weight_decay}
            for matrix in (True, False)
        ]
    for group in groups:
        group["peak"] = way.rate * group.get("lr_scale", 1.0)
    return groups
