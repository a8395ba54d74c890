"""Faults that `health.py` puts into the objectives as they are shipped, from a known step on.

Not among them, as they broke nothing in 300 steps of slow teachers: DINO without its running centre (k-NN 0.212 to
0.238 on CIFAR-10) and DINOv2 without Sinkhorn's balance (0.227 to 0.260); the batch norm at the end of their heads
keeps clusters in use. Nor a rate that is too high for the default recipe, SimCLR by Muon: on CIFAR-10 it ended 12
points above random weights at 250 times its rate, and on steel 17 at 7.5 times. On X-rays, at 250 times from step 100
of 200 on, contrast fell from 0.31 to 0.05 and came back to 0.24.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.tokens import take
from selfsight.objectives import byol, dino, dinov2, emp, ijepa, moco, simclr, simsiam, swav
from selfsight.objectives.objective import Loss, Objective, embed_views
from selfsight.objectives.patches import only_view
from selfsight.views.make import View

Fault = Callable[[Any, ExitStack], None]  # changes a task for good, and modules until the stack is closed


def put_in(task: Objective, fault: str, onset: float) -> ExitStack:
    """Put `fault` into `task` from the progress `onset` on. Close what is returned when the run has ended."""
    undo, sound, groups, begun = ExitStack(), task.forward, task.parameter_groups, False

    def forward(views: list[View], progress: float) -> Loss:
        nonlocal begun
        if progress >= onset and not begun:
            begun = True
            FAULTS[fault](task, undo)
        if begun and fault == "unrelated":
            for i, view in enumerate(views[1:], 1):
                view.pixels = view.pixels.roll(i * len(view.pixels) // len(views), 0)
        elif begun and fault == "blank":
            for view in views:
                view.pixels = torch.zeros_like(view.pixels)
        return BROKEN_FORWARD[fault](task, views) if begun and fault in BROKEN_FORWARD else sound(views, progress)

    def parameter_groups(progress: float) -> list[dict[str, Any]]:
        scale = {"hot": 1000.0, "still": 0.0}.get(fault, 1.0) if progress >= onset else 1.0
        return [group | {"lr_scale": group["lr_scale"] * scale} for group in groups(progress)]

    task.forward, task.parameter_groups = forward, parameter_groups  # type: ignore[method-assign, assignment]
    return undo


def cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """1 - cos, a mean over items and pairs of views of two [V, B, D], with gradients through both."""
    cosines = torch.einsum("vbd,wbd->vwb", F.normalize(one, dim=2), F.normalize(other, dim=2))
    return (1.0 - cosines).mean()


def attract_only(z: Tensor, temperature: float, decoupled: bool = False) -> Tensor:
    """SimCLR without its negatives."""
    return cosine_distance(z, z) / temperature


def no_predictor(task: Any, undo: ExitStack) -> None:
    task.predictor = nn.Identity()


def no_stop(task: Any, undo: ExitStack) -> None:
    """SimSiam's and BYOL's targets are the network's own, with their gradient."""
    if isinstance(task, byol.BYOL):
        task.target.embed = lambda views: embed_views(task.encoder, task.projector, views)
        undo.enter_context(patch.object(byol, "cross_view_distance", cosine_distance))
    else:
        undo.enter_context(patch.object(simsiam, "negative_cosine", cosine_distance))


def or_decorrelation(fault: Fault) -> Fault:
    """A fault of SimSiam that also has batch norm in place of its decorrelation, which holds up a collapse: without its
    predictor alone, the alarm came after 135 and 165 steps of CIFAR-10; with a gradient through the target alone, none
    came on steel, and k-NN rose by 9 points and 1. The norm's scale and shift would not be trained, so it has none."""

    def put(task: Any, undo: ExitStack) -> None:
        fault(task, undo)
        task.projector[-1] = nn.BatchNorm1d(task.projector[-2].out_features, affine=False)

    return put


def no_negatives(task: Any, undo: ExitStack) -> None:
    """For MoCo without the predictor as well: with it, it would be BYOL."""
    undo.enter_context(patch.object(simclr, "nt_xent", attract_only))
    undo.enter_context(patch.object(moco, "info_nce", lambda q, k, t: cosine_distance(q, k) / t))
    if isinstance(task, moco.MoCo):
        no_predictor(task, undo)


def attribute(name: str, value: Any) -> Fault:
    return lambda task, undo: setattr(task, name, value)


def no_sharpening(task: Any, undo: ExitStack) -> None:
    for module in (dino, dinov2):
        undo.enter_context(patch.object(module, "teacher_temperature", lambda last, progress: 0.5))


def no_balance(task: Any, undo: ExitStack) -> None:
    def alone(scores: Tensor, temperature: float, iterations: int = 3, kept: Tensor | None = None) -> Tensor:
        return (scores.detach().float() / temperature).softmax(-1) * (1.0 if kept is None else kept[:, None])

    undo.enter_context(patch.object(swav, "sinkhorn", alone))


def no_rate(task: Any, undo: ExitStack) -> None:
    undo.enter_context(patch.object(emp, "coding_rate", lambda z, eps: z.new_zeros(1)))


def own_teacher(task: ijepa.IJEPA, views: list[View]) -> Loss:
    """I-JEPA whose targets are the encoder's own, with their gradient, neither standardised nor layer-normalised."""
    view, draws = only_view(views)
    seen, targets = ijepa.choose(draws, task.grid, task.targets, task.context, task.kept)
    whole = task.encoder(view.pixels)
    wanted = take(whole.patches, torch.cat(targets, 1))
    features = task.encoder(view.pixels, keep=seen)
    loss = (task.guess(features, seen, targets) - wanted).square().mean()
    return Loss(loss, {"smooth_l1": loss.detach()}, gather(whole.pooled.detach().float()[None]))


def nothing(task: Any, undo: ExitStack) -> None:
    """What is wrong is elsewhere: in the views, the rate or the forward pass."""


BROKEN_FORWARD: dict[str, Callable[[Any, list[View]], Loss]] = {"own teacher": own_teacher}
FAULTS: dict[str, Fault] = {
    "no predictor": no_predictor,
    "no stop": no_stop,
    "no predictor or decorrelation": or_decorrelation(no_predictor),
    "no stop or decorrelation": or_decorrelation(no_stop),
    "no negatives": no_negatives,
    "no redundancy": attribute("redundancy", 0.0),
    "no variance or covariance": attribute("weights", (25.0, 0.0, 0.0)),
    "no variance": attribute("weights", (25.0, 0.0, 1.0)),
    "no covariance": attribute("weights", (25.0, 25.0, 0.0)),
    "no coding rate": no_rate,
    "no regulariser": attribute("weight", 0.0),
    "no balance": no_balance,
    "no sharpening": no_sharpening,
    "own teacher": nothing,
    "unrelated": nothing,
    "blank": nothing,
    "hot": nothing,
    "still": nothing,
    "cold": attribute("temperature", 1e-4),
    "lukewarm": attribute("temperature", 1e3),
}
