"""From a batch of canvases to the views of a plan, on the device of the encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.data.batches import Batch
from selfsight.data.geometry import Geometry
from selfsight.data.randomness import uniform
from selfsight.views.colour import COLOUR_DRAWS, change_colour
from selfsight.views.crops import crop_affines, levels_of, pyramid, sample
from selfsight.views.plan import ViewGroup, ViewPlan


@dataclass
class View:
    """One view of each item of a batch.

    pixels: [B, C, H, W], normalised; with companion frames [B, 3, C, H, W].
    affine: [B, 2, 3] from view to canvas coordinates.
    ids: of the B items.
    group: number of its group in the view plan.
    draws: [B, n] in [0, 1), as many as the plan asks for; None if it asks for none.
    """

    pixels: Tensor
    affine: Tensor
    ids: list[str]
    group: int
    draws: Tensor | None = None


def make_views(
    batch: Batch, plan: ViewPlan, normalise: Geometry, seed: int, device: torch.device | str = "cpu"
) -> list[View]:
    """The views of `plan` for `batch`, group by group. Every draw is a function of (seed, epoch, item, view)."""
    pixels = batch.pixels if batch.pixels.dtype == torch.uint8 else batch.pixels.float()  # not every device has uint16
    pixels = normalise.to_unit(pixels.to(device, non_blocking=True))  # [B, T, C, H, W]
    pixels = _room_for_pyramid(pixels, plan)
    pyramids: dict[int, list[Tensor]] = {}

    def levels(which: int, needed: int) -> list[Tensor]:
        have = pyramids.setdefault(which, [pixels[:, which].contiguous()])
        if len(have) <= needed:
            have.extend(pyramid(have[-1], needed + 1 - len(have))[1:])
        return have

    views = []
    for g, group in enumerate(plan.groups):
        for v in range(group.count):
            which = [0, 1, 2] if plan.companion == "frames" else [v % 2 if plan.companion == "group" else 0]
            draws = _draws(batch, seed, g, v, group, pixels.shape[2])
            affine = crop_affines(draws["geometry"], batch.shapes[:, which[len(which) // 2]].numpy(), group)
            needed = int(levels_of(affine).max())
            frames = [sample(levels(t, needed), affine, group.size) for t in which]
            frames = [normalise.normalise(change_colour(f, draws["colour"], group.colour)) for f in frames]
            shown = torch.stack(frames, 1) if plan.companion == "frames" else frames[0]
            # float32 would round the last of them up to 1
            own = torch.as_tensor(np.minimum(draws["own"], 1 - 2.0**-24), dtype=torch.float32, device=device)
            views.append(
                View(shown, torch.as_tensor(affine, dtype=torch.float32), batch.ids, g, own if group.draws else None)
            )
    return views


def _room_for_pyramid(pixels: Tensor, plan: ViewPlan) -> Tensor:
    """`pixels` with edges repeated to the right and below. So the coarsest pyramid pixel past an item's border is a
    mean of the item's own edge, whatever other items the batch was padded for."""
    deepest = math.floor(math.log2(max(1.0, max(pixels.shape[-2:]) / min(group.size for group in plan.groups))))
    if deepest == 0:
        return pixels
    room = 2**deepest
    padded: Tensor = F.pad(pixels.flatten(0, 1), (0, room, 0, room), mode="replicate")
    return padded.view(*pixels.shape[:2], *padded.shape[1:])


def _draws(batch: Batch, seed: int, g: int, v: int, group: ViewGroup, channels: int) -> dict[str, np.ndarray]:
    counts = {"geometry": 5, "colour": COLOUR_DRAWS + 2 * channels, "own": group.draws}
    return {
        name: uniform(seed, batch.epoch, batch.keys, f"{name} {g} {0 if name in group.shared else v}", n)
        for name, n in counts.items()
    }
