"""Objectives that nobody ships, each through the real loop on real files: the contract holds what later ones need."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    PLAIN,
    batch_of,
    collection_of,
    default_objective,
    make_batches,
    make_canvases,
    picture,
    tiny_encoder,
    train,
    two_views,
)  # fmt: skip
from torch import Tensor, nn

from selfsight.data.batches import Batches
from selfsight.data.geometry import Geometry
from selfsight.encoders.encoder import Encoder
from selfsight.errors import SelfsightError
from selfsight.objectives.objective import Joint, Loss, Objective, embed_views, find, projector, registry
from selfsight.objectives.simclr import SimCLR
from selfsight.objectives.vicreg import VICReg
from selfsight.training.loop import Stopped
from selfsight.training.measure import measure_normalisation
from selfsight.training.recipe import Budget
from selfsight.views.make import View, make_views
from selfsight.views.masks import as_mask, random_patches
from selfsight.views.plan import ViewGroup, ViewPlan

HALF = Geometry(3, 32, (0.0, 255.0), (0.5,) * 3, (0.25,) * 3)


class Teacher(Objective):
    """BYOL without a predictor: a teacher follows the encoder by an exponential moving average."""

    def __init__(self, encoder: Encoder, stop_after: int | None = None) -> None:
        super().__init__(encoder, two_views())
        self.student = nn.Linear(encoder.dim, 8)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(8))
        self.stop_after = stop_after
        self.done = 0
        self.progresses: list[float] = []

    def forward(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.student, views)
        with torch.no_grad():
            t = embed_views(self.teacher, self.teacher_head, views)
            self.batch_mean = t.mean((0, 1))
        loss = (z - (t.flip(0) - self.centre)).square().mean()
        return Loss(loss, {"distance": loss.detach()}, z.detach())

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.progresses.append(progress)
        for mine, its in ((self.encoder, self.teacher), (self.student, self.teacher_head)):
            for p, q in zip(mine.parameters(), its.parameters(), strict=True):
                q.lerp_(p, 0.1 + 0.2 * progress)
        self.centre.lerp_(self.batch_mean, 0.1)
        self.done += 1
        if self.done == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)  # what Ctrl-C sends; the loop ends its step and saves


class Subset(Objective):
    """Masked modelling: from a few tokens, the mean colour of the whole view."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder, ViewPlan((ViewGroup(1, 32, draws=16),)))
        self.guess = nn.Linear(encoder.patch_dim, 3)
        self.token = nn.Parameter(torch.zeros(encoder.patch_dim))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, views: list[View], progress: float) -> Loss:
        (view,) = views
        assert view.draws is not None
        keep = random_patches(view.draws, 5)
        features = self.encoder(view.pixels, keep=keep)
        self.seen.append(tuple(features.patches.shape))
        filled = self.encoder(view.pixels, replace=(~as_mask(keep, 16), self.token))
        target = view.pixels.mean((2, 3))
        parts = [(self.guess(f.patches.mean(1)) - target).square().mean() for f in (features, filled)]
        return Loss(sum(parts), {"kept": parts[0].detach()}, features.pooled[None].detach())


class TwoSizes(Objective):
    """Small views agree with the mean of the large ones."""

    def __init__(self, encoder: Encoder) -> None:
        large, small = ViewGroup(2, 32, scale=(0.4, 1.0)), ViewGroup(3, 16, scale=(0.05, 0.4))
        super().__init__(encoder, ViewPlan((large, small)))
        self.head = projector([encoder.dim, 16, 8])
        self.sizes: list[list[int]] = []

    def forward(self, views: list[View], progress: float) -> Loss:
        self.sizes.append([v.pixels.shape[-1] for v in views])
        z = embed_views(self.encoder, self.head, views)  # [5, B, 8]
        loss = (z[2:] - z[:2].mean(0)).square().mean() - z.var(1).mean()
        return Loss(loss, {}, z.detach())


class Frames(Objective):
    """The middle frame's features are the mean of its neighbours'."""

    def __init__(self, encoder: Encoder, normalise: Geometry) -> None:
        super().__init__(encoder, ViewPlan((ViewGroup(1, 16, colour=PLAIN),), companion="frames"))
        self.normalise = normalise
        self.clips: dict[str, list[int]] = {}

    def forward(self, views: list[View], progress: float) -> Loss:
        (view,) = views
        batch, time = view.pixels.shape[:2]
        for item, clip in zip(view.ids, self.normalise.undo(view.pixels).mean((2, 3, 4)), strict=True):
            self.clips[item] = [round(float(x) * 255) for x in clip]
        z = self.encoder(view.pixels.flatten(0, 1)).pooled.float().unflatten(0, (batch, time))
        loss = (z[:, 1] - z[:, ::2].mean(1)).square().mean() - z[:, 1].var(0).mean()
        return Loss(loss, {}, z.transpose(0, 1).detach())


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def moved(before: dict[str, Tensor], after: nn.Module) -> list[str]:
    return [k for k, v in after.state_dict().items() if v.is_floating_point() and not torch.equal(v, before[k])]


def test_a_teacher_follows_and_comes_back_from_the_checkpoint(images: Callable[..., Path], tmp_path: Path):
    batches = make_batches(images(9), 4)
    whole = Teacher(tiny_encoder())
    start = weights(whole)
    train(whole, batches, tmp_path / "whole")
    assert whole.progresses == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert set(moved(start, whole)) >= {k for k in start if "weight" in k or k == "centre"}
    assert not torch.equal(whole.teacher.net.conv1.weight, whole.encoder.net.conv1.weight)

    with pytest.raises(Stopped):
        train(Teacher(tiny_encoder(), stop_after=2), batches, tmp_path / "parts")
    fresh = Teacher(tiny_encoder(seed=99))  # whatever it starts from, the checkpoint brings all of its state
    train(fresh, batches, tmp_path / "parts")
    assert fresh.progresses == [0.4, 0.6, 0.8]
    assert moved(weights(whole), fresh) == []


def test_after_step_moves_the_teacher_by_the_formula(images: Callable[..., Path], tmp_path: Path):
    task = Teacher(tiny_encoder())
    before = task.teacher_head.weight.clone()
    train(task, make_batches(images(9), 4), tmp_path / "run", budget=Budget(steps=1))
    assert torch.allclose(task.teacher_head.weight, 0.9 * before + 0.1 * task.student.weight, atol=1e-7)


def test_only_some_tokens(images: Callable[..., Path], tmp_path: Path):
    task = Subset(tiny_encoder(name="vit_tiny_patch16_224"))
    start = weights(task)
    train(task, make_batches(images(9), 4), tmp_path / "run")
    assert task.seen == [(4, 5, 32)] * 5
    assert {"token", "guess.weight", "encoder.net.patch_embed.proj.weight"} <= set(moved(start, task))


def test_two_sizes_of_views(images: Callable[..., Path], tmp_path: Path):
    task = TwoSizes(tiny_encoder())
    start = weights(task)
    train(task, make_batches(images(9), 4), tmp_path / "run")
    assert task.sizes == [[32, 32, 16, 16, 16]] * 5
    assert "encoder.net.conv1.weight" in moved(start, task)


def test_embed_views_keeps_the_order_of_mixed_sizes():
    encoder = tiny_encoder().eval()
    views = [View(torch.rand(2, 3, s, s), torch.zeros(2, 2, 3), ["a", "b"], 0) for s in (32, 16, 32, 24, 16)]
    together = embed_views(encoder, nn.Identity(), views)
    for view, row in zip(views, together, strict=True):
        assert torch.allclose(encoder(view.pixels).pooled, row, atol=1e-5)


def test_frame_triplets(tmp_path: Path):
    collection = collection_of(tmp_path / "film", [{"sequence": "s", "frame": t} for t in range(6)], [(24, 24)] * 6)
    batches = Batches(make_canvases(collection, 24), 6, 0, "frames")
    task = Frames(tiny_encoder(), measure_normalisation(batches.canvases))
    train(task, batches, tmp_path / "run")
    item = dict(zip(collection.usable["uri"].to_pylist(), collection.usable["id"].to_pylist(), strict=True))
    grey = [10 * (t + 1) for t in range(6)]
    for t in range(6):
        assert task.clips[item[f"{t}.png"]] == [grey[max(t - 1, 0)], grey[t], grey[min(t + 1, 5)]]


def make_joint(encoder: Encoder) -> Joint:
    plan = two_views()
    more = ViewPlan((ViewGroup(3, 16), ViewGroup(1, 24)))
    one = SimCLR(encoder, plan, hidden=16, width=8)
    return Joint([one, VICReg(encoder, more, hidden=16, width=8)], [1.0, 0.5])


def test_joint_is_the_sum_of_its_parts():
    joint = make_joint(tiny_encoder()).eval()
    assert [g.count for g in joint.views.groups] == [3, 1]
    rng = np.random.default_rng(0)
    batch = batch_of([picture(rng, 32, 32) for _ in range(4)], [f"{i * 7919:016x}{0:016x}" for i in range(4)])
    one, two = joint.members
    own = [m(make_views(batch, m.views, HALF, 0), 0.0) for m in (one, two)]  # each on the views of its own plan
    loss = joint(make_views(batch, joint.views, HALF, 0), 0.0)
    assert loss.total.item() == pytest.approx(own[0].total.item() + 0.5 * own[1].total.item(), rel=1e-5)
    assert loss.parts["0_nt_xent"].item() == pytest.approx(own[0].total.item(), rel=1e-5)
    assert loss.parts["1_covariance"].item() == pytest.approx(own[1].parts["covariance"].item(), rel=1e-4)


def test_joint_shares_and_trains_one_encoder_and_resumes(images: Callable[..., Path], tmp_path: Path):
    batches = make_batches(images(9), 4)
    joint = make_joint(tiny_encoder())
    groups = [p for g in joint.parameter_groups(0.0) for p in g["params"]]
    assert len(groups) == len({id(p) for p in groups})  # the shared encoder is stepped once
    train(joint, batches, tmp_path / "run", budget=Budget(steps=4))
    assert joint.members[0].encoder is joint.encoder is joint.members[1].encoder
    again = make_joint(tiny_encoder(seed=5))
    steps, _, _ = train(again, batches, tmp_path / "run", budget=Budget(steps=4))  # at its end: only restored
    assert steps == 4 and moved(weights(joint), again) == []


def test_joint_calls_after_step_of_every_member(images: Callable[..., Path], tmp_path: Path):
    encoder = tiny_encoder()
    teacher = Teacher(encoder)
    train(
        Joint([SimCLR(encoder, two_views(), hidden=16, width=8), teacher]), make_batches(images(9), 4), tmp_path / "r"
    )
    assert teacher.progresses == [0.0, 0.2, 0.4, 0.6, 0.8]


def test_of_a_sum_with_a_teacher_the_teacher_is_what_is_saved():
    task = default_objective("simclr+dino")
    assert isinstance(task, Joint) and task.trained is task.members[1].teacher.copies[0]
    plain = default_objective("simclr+vicreg")
    assert plain.trained is plain.encoder


def test_joint_of_two_encoders_is_refused():
    with pytest.raises(ValueError, match="share one encoder"):
        Joint([SimCLR(tiny_encoder(), two_views()), SimCLR(tiny_encoder(), two_views())])


def test_the_registry_names_what_there_is():
    assert registry()["simclr"] is SimCLR and registry()["vicreg"] is VICReg
    with pytest.raises(SelfsightError, match=r"'simpler'.*simclr.*vicreg"):
        find("simpler")
