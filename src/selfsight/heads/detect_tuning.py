"""Tuning the encoder of a detector: it and the network that finds centres learn together, from the pixels on.

The network starts from a fit to the frozen maps: from a random one, the first steps would spoil them (Kumar et al.,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from selfsight.data.geometry import Geometry
from selfsight.distributed import start_processes
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.tokens import is_token_model
from selfsight.heads.detect_fit import WEIGHT, Piece, Target, losses, target_of
from selfsight.heads.detect_modules import Centres
from selfsight.heads.detect_scenes import SEEN, BoxSight
from selfsight.heads.tuning import told
from selfsight.heads.tuning_run import tuning_run
from selfsight.heads.tuning_task import CLIP, COLOUR, WARMUP, WAYS, encoder_groups
from selfsight.machine import has_bf16
from selfsight.results import duration
from selfsight.training.adaptation import Frozen
from selfsight.training.build import computing
from selfsight.training.clock import Clock
from selfsight.training.loop import Step, fit
from selfsight.training.optimisers import learning_rate_factor, make_optimiser
from selfsight.training.recipe import Budget
from selfsight.training.recorder import Recorder
from selfsight.training.show import Show
from selfsight.training.stepping import Forward, Pace, Stepper
from selfsight.views.colour import COLOUR_DRAWS, change_colour

BATCH = 4  # inputs
WAY = WAYS["finetune"]
ZOOM = 0.7  # of an input's sides, that a part of it has at least
ADVICE = "Free some, or give a smaller --size or encoder."


class TunedDetector(nn.Module):
    """An encoder with what finds centres in its levels: images [B, C, H, W] to what `Readout` tells.

    used: places of the levels that are looked at.
    """

    def __init__(self, encoder: Encoder, net: Centres, used: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.net, self.used = encoder.train(), net.train(), tuple(used)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        levels = self.encoder(images, levels=True).levels or []
        found: dict[str, Tensor] = self.net([levels[place] for place in self.used])
        return found


def tuned_detector(
    sight: BoxSight, net: Centres, pieces: Sequence[Piece], budget: Budget, seed: int, folder: Path | None,
    digest: str, started: float,
) -> tuple[Encoder, Centres] | None:  # fmt: skip
    """Copies of the encoder of `sight` and of `net`, in eval mode, which learnt together from inputs; None where the
    minutes went by before the first step.

    pieces: whose one level is their pixels. folder: for checkpoints, from which the same call goes on; nothing is kept
    if not given. digest: of the boxes. started: `time.monotonic()` of the command, from which minutes count.

    Raises `Stopped`, after saving, when the user interrupts, and `SelfsightError` for a folder of another tuning and
    steps that are not finite.
    """
    encoder = sight.encoder
    asked: dict[str, object] = {"method": "finetune", "way": asdict(WAY), "budget": asdict(budget), "seed": seed}
    asked |= {"boxes": digest, "encoder": encoder.digest, "torch": torch.__version__}
    with tuning_run(folder, asked, BATCH, ADVICE) as run:
        accelerator = start_processes()
        module = TunedDetector(copy.deepcopy(encoder), copy.deepcopy(net), sight.used)
        task = DetectTuning(module, pieces, encoder.geometry, seed, accelerator)
        clock = Clock(budget, started, task.steps_per_epoch)
        if budget.minutes is None:
            title = f"Tuning {WAY.what} on {len(pieces):,} inputs for {told(budget, task.steps_per_epoch)}."
        else:
            left = 60 * budget.minutes - (time.monotonic() - started)
            title = f"Tuning {WAY.what} on {len(pieces):,} inputs: {duration(max(0.0, left))} are left."
        with Show(title, {"loss": "loss {:.3f}"}) as show:
            done = fit(task, run, clock, accelerator, Recorder(run, accelerator.device, show), seed)
    if done.step == 0:
        return None
    made = module.encoder.to(encoder.device).eval().requires_grad_(True)
    made.about |= {"tuned": "finetune"}
    return made, module.net.cpu().eval().to(memory_format=torch.contiguous_format)


class DetectTuning:
    """A `Task` of the loop: inputs with boxes, parts of which are seen mirrored and enlarged."""

    def __init__(
        self, module: TunedDetector, pieces: Sequence[Piece], geometry: Geometry, seed: int, accelerator: Accelerator
    ) -> None:
        self.module: nn.Module = module.to(accelerator.device).to(memory_format=torch.channels_last)
        self.net, self.pieces, self.geometry, self.seed = module.net, pieces, geometry, seed
        self.accelerator = accelerator
        shapes: dict[tuple[int, ...], list[int]] = {}
        for place, piece in enumerate(pieces):
            shapes.setdefault(tuple(piece.levels[0].shape), []).append(place)
        self.groups = list(shapes.values())
        self.steps_per_epoch = max(1, round(len(pieces) / BATCH))
        head: Any = {"params": list(module.net.parameters()), "weight_decay": 0.0, "peak": WAY.head_rate}
        self.optimiser = make_optimiser([*encoder_groups(module.encoder, WAY), head], "adamw", WAY.rate)
        self.precision = "bf16" if has_bf16(str(accelerator.device)) else "no"
        grid = module.encoder.grid if is_token_model(module.encoder.net) else (0, 0)
        self.patches = grid[0] * grid[1]
        self.frozen = Frozen(module.encoder, module, 0.0, keep_statistics=True)
        self.stepper, self.pace = Stepper(self.module, accelerator, clip=CLIP), Pace()

    def begin(self, step: int) -> None:
        """Begin at `step`, with the module in training mode."""
        self.stepper.begin()
        self.step = step

    def schedule(self, progress: float) -> dict[str, float]:
        """Set the learning rates for `progress`."""
        factor = learning_rate_factor(progress, WARMUP)
        for group in self.optimiser.param_groups:
            group["lr"] = factor * group["peak"]
        return {"learning_rate": factor * WAY.rate}

    def gradients(self, progress: float) -> Step:
        """Compute the gradients of a batch's loss."""
        self.frozen.before(progress)
        found = self.stepper.gradients(self._forward)
        self.step += 1
        return found

    def _forward(self) -> Forward:
        device = self.accelerator.device
        rng = np.random.default_rng([self.seed, self.step, self.accelerator.process_index])
        share = np.array([len(group) for group in self.groups]) / len(self.pieces)
        group = self.groups[int(rng.choice(len(self.groups), p=share))]
        some = [seen(self.pieces[i], rng) for i in rng.choice(group, min(BATCH, len(group)), replace=False)]
        pixels = torch.stack([piece.levels[0] for piece in some]).to(device)
        draws = rng.random((len(some), COLOUR_DRAWS + 2 * pixels.shape[1]))
        images = self.geometry.normalise(change_colour(self.geometry.to_unit(pixels), draws, COLOUR))
        self.pace.views += len(some)
        with computing(self.precision, device, self.patches):
            found = self.stepper.model(images)
        shape = (found["heat"].shape[2], found["heat"].shape[3])
        targets = [target_of(piece, self.net.classes, shape, self.net.stride) for piece in some]
        heat, edges = losses(
            found, Target(*(torch.stack(each).to(device) for each in zip(*targets, strict=True))), self.net.stride
        )
        suspects = {
            "a pixel of the pictures": [images],
            "a weight": self.module.parameters(),
            "a score": found.values(),
        }
        return Forward(heat + WEIGHT * edges, {"heat": heat.detach(), "edges": edges.detach()}, suspects)

    def after_step(self, progress: float) -> None:
        """Nothing moves without a gradient."""

    def evidence(self) -> dict[str, float]:
        """How fast it goes."""
        return self.pace.lap()

    def remedy(self, cause: str, learnt: bool) -> str:
        """Advice where steps are not finite."""
        if "pixel" in cause:
            return "Some images hold values that are not numbers. Leave them out."
        return "Give --method centres, which leaves the encoder as it is."

    def draw(self, folder: Path, step: int) -> tuple[str, ...]:
        """No pictures."""
        return ()


def seen(piece: Piece, rng: np.random.Generator) -> Piece:
    """A part of an input, enlarged to its size, and mirrored in half of the cases, with the objects in it; those of
    which less than half is left are unsure."""
    pixels = piece.levels[0]
    height, width = pixels.shape[-2:]
    share, flip = rng.uniform(ZOOM, 1.0), rng.random() < 0.5
    high, wide = max(1, round(share * height)), max(1, round(share * width))
    y, x = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
    part = pixels[:, y : y + high, x : x + wide].float()
    part = F.interpolate(part[None], (height, width), mode="bilinear", align_corners=False)[0]
    offset = torch.tensor([x, y, x, y])
    scale = torch.tensor([width / wide, height / high] * 2)
    edge = torch.tensor([width, height, width, height]).float()

    def moved(boxes: Tensor) -> tuple[Tensor, Tensor]:
        whole = (boxes - offset) * scale
        cut = whole.clamp_min(0).minimum(edge)
        left = (cut[:, 2:] - cut[:, :2]).prod(1) / (whole[:, 2:] - whole[:, :2]).prod(1)
        if flip:
            cut = torch.stack([width - cut[:, 2], cut[:, 1], width - cut[:, 0], cut[:, 3]], 1)
        return cut, left

    (boxes, left), (unsure, rest) = moved(piece.boxes), moved(piece.unsure)
    sure = left >= SEEN
    hidden = torch.cat([boxes[~sure & (left > 0)], unsure[rest > 0]])
    return Piece([part.flip(2) if flip else part], boxes[sure], piece.kinds[sure], hidden)
