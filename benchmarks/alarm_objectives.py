"""Small honest objectives, and the faults that `alarm.py` puts into them from a known step on."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.encoders.encoder import Encoder
from selfsight.objectives.objective import Loss, Objective, embed_views, projector
from selfsight.objectives.simclr import nt_xent
from selfsight.objectives.vicreg import vicreg_terms
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan

WIDTH, PROTOTYPES = 64, 64


class Breakable(Objective):
    """An objective with a `fault` that is there from `onset` (a progress) on.

    Faults of every objective: "unrelated" shows another item as the second view; "hot" multiplies the rate by a
    thousand; "still" sets it to nought. The others are named where they act.
    """

    def __init__(self, encoder: Encoder, views: ViewPlan, fault: str = "", onset: float = 0.0) -> None:
        super().__init__(encoder, views)
        self.fault, self.onset = fault, onset
        self.projector = self.make_projector()

    def make_projector(self) -> nn.Module:
        return projector([self.encoder.dim, 256, WIDTH])

    def broken(self, fault: str, progress: float) -> bool:
        return fault == self.fault and progress >= self.onset

    def forward(self, views: list[View], progress: float) -> Loss:
        if self.broken("unrelated", progress):
            views[1].pixels = views[1].pixels.roll(len(views[1].pixels) // 2, 0)
        return self.loss(views, progress)

    def loss(self, views: list[View], progress: float) -> Loss:
        raise NotImplementedError

    def parameter_groups(self, progress: float) -> list[dict[str, Any]]:
        scale = 1000.0 if self.broken("hot", progress) else 0.0 if self.broken("still", progress) else 1.0
        return [group | {"lr_scale": group["lr_scale"] * scale} for group in super().parameter_groups(progress)]


class Contrast(Breakable):
    """SimCLR. Faults: "no negatives", "cold" and "lukewarm" (temperatures 1e-4 and 1e3)."""

    decoupled = False

    def loss(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)
        temperature = 1e-4 if self.broken("cold", progress) else 1e3 if self.broken("lukewarm", progress) else 0.2
        if self.broken("no negatives", progress):
            loss = -F.cosine_similarity(z[0], z[1]).mean() / temperature
        else:
            loss = nt_xent(z, temperature, self.decoupled)
        return Loss(loss, {"nt_xent": loss.detach()}, z.detach())


class Decoupled(Contrast):
    decoupled = True


class Decorrelate(Breakable):
    """VICReg. Faults: "no variance", "no covariance", "no variance or covariance"."""

    def loss(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)
        terms = torch.stack(vicreg_terms(z))
        bare = self.broken("no variance or covariance", progress)
        weights = terms.new_tensor([
            25.0,
            0.0 if bare or self.broken("no variance", progress) else 25.0,
            0.0 if bare or self.broken("no covariance", progress) else 1.0,
        ])  # fmt: skip
        total = (terms * weights).sum()
        names = ("invariance", "variance", "covariance")
        return Loss(total, dict(zip(names, terms.detach(), strict=True)), z.detach())


class Predict(Breakable):
    """SimSiam (Chen and He, CVPR 2021). Faults: "no predictor", "no stop" (the gradient goes through the target)."""

    def __init__(self, encoder: Encoder, views: ViewPlan, fault: str = "", onset: float = 0.0) -> None:
        super().__init__(encoder, views, fault, onset)
        self.predictor = projector([WIDTH, 32, WIDTH])

    def make_projector(self) -> nn.Module:
        return nn.Sequential(projector([self.encoder.dim, 256, WIDTH]), nn.BatchNorm1d(WIDTH, affine=False))

    def targets(self, views: list[View], z: Tensor, progress: float) -> Tensor:
        return z if self.broken("no stop", progress) else z.detach()

    def loss(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)
        target = self.targets(views, z, progress)
        p = z if self.broken("no predictor", progress) else self.predictor(z.flatten(0, 1)).view_as(z)
        loss = -(F.cosine_similarity(p[0], target[1]).mean() + F.cosine_similarity(p[1], target[0]).mean()) / 2
        return Loss(loss, {"cosine": loss.detach()}, z.detach())


class PredictPlain(Predict):
    """SimSiam whose projector has no batch norm at its end, which is what hides a constant."""

    def make_projector(self) -> nn.Module:
        return projector([self.encoder.dim, 256, WIDTH])


class Bootstrap(PredictPlain):
    """BYOL (Grill et al., NeurIPS 2020) with an EMA of 0.98. Fault: "no stop" makes the student its own teacher."""

    def __init__(self, encoder: Encoder, views: ViewPlan, fault: str = "", onset: float = 0.0) -> None:
        super().__init__(encoder, views, fault, onset)
        self.teacher = nn.ModuleList([copy.deepcopy(self.encoder), copy.deepcopy(self.projector)]).requires_grad_(False)

    def targets(self, views: list[View], z: Tensor, progress: float) -> Tensor:
        if self.broken("no stop", progress):
            return z
        with torch.no_grad():
            return embed_views(self.teacher[0], self.teacher[1], views)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        student = [*self.encoder.parameters(), *self.projector.parameters()]
        for mine, its in zip(self.teacher.parameters(), student, strict=True):
            mine.lerp_(its, 0.02)


class Distil(Breakable):
    """DINO (Caron et al., ICCV 2021), 64 prototypes, temperatures 0.1 and 0.04, centre momentum 0.9, EMA 0.98.

    Faults: "no centre", "no sharpening" (the teacher's temperature is the student's times five).
    """

    def __init__(self, encoder: Encoder, views: ViewPlan, fault: str = "", onset: float = 0.0) -> None:
        super().__init__(encoder, views, fault, onset)
        self.prototypes = nn.Linear(WIDTH, PROTOTYPES, bias=False)
        mine = [self.encoder, self.projector, self.prototypes]
        self.teacher = nn.ModuleList([copy.deepcopy(m) for m in mine]).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(PROTOTYPES))

    def loss(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)
        student = self.prototypes(F.normalize(z, dim=2)) / 0.1
        with torch.no_grad():
            seen = F.normalize(embed_views(self.teacher[0], self.teacher[1], views), dim=2)
            logits = self.teacher[2](seen)  # [V, B, K]
            centre = torch.zeros_like(self.centre) if self.broken("no centre", progress) else self.centre
            target = ((logits - centre) / (0.5 if self.broken("no sharpening", progress) else 0.04)).softmax(2)
            self.centre.lerp_(logits.mean((0, 1)), 0.1)
        loss = -(target.flip(0) * student.log_softmax(2)).sum(2).mean()
        return Loss(loss, {"cross_entropy": loss.detach()}, z.detach(), target.flatten(0, 1))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        mine = [self.encoder, self.projector, self.prototypes]
        for its, own in zip(self.teacher.parameters(), (p for m in mine for p in m.parameters()), strict=True):
            its.lerp_(own, 0.02)


class Cluster(Breakable):
    """SwAV (Caron et al., NeurIPS 2020) without a queue, 32 prototypes. Fault: "no balance" takes the softmax of the
    scores for the codes, "one cluster" adds a growing favour for the first prototype."""

    def __init__(self, encoder: Encoder, views: ViewPlan, fault: str = "", onset: float = 0.0) -> None:
        super().__init__(encoder, views, fault, onset)
        self.prototypes = nn.Linear(WIDTH, 32, bias=False)

    def loss(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)
        scores = F.normalize(z, dim=2) @ F.normalize(self.prototypes.weight, dim=1).T  # [V, B, K]
        with torch.no_grad():
            if self.broken("no balance", progress):
                codes = (scores / 0.02).softmax(2)
            else:
                codes = torch.stack([balanced(s) for s in scores])
        loss = -(codes.flip(0) * (scores / 0.1).log_softmax(2)).sum(2).mean()
        return Loss(loss, {"cross_entropy": loss.detach()}, z.detach(), codes.flatten(0, 1))


def balanced(scores: Tensor) -> Tensor:
    """Sinkhorn-Knopp, three rounds at 0.05: rows of [B, K] that sum to one, columns used evenly."""
    q = (scores / 0.05 - scores.max() / 0.05).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


OBJECTIVES = {
    "simclr": Contrast, "decoupled": Decoupled, "vicreg": Decorrelate, "simsiam": Predict,
    "simsiam plain": PredictPlain, "byol": Bootstrap, "dino": Distil, "swav": Cluster,
}  # fmt: skip
