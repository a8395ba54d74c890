"""DINOv2: predict a teacher's output for whole images and for hidden patches, and spread features out.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, section 4: the image loss of
DINO (`dino.py`) and the patch loss of iBOT (Zhou et al., ICLR 2022, equation 2), both with Sinkhorn's codes in place
of the centre (Ruan et al., ICLR 2023), and KoLeo (Sablayrolles et al., ICLR 2019, equation 2). The patch loss may
be anchored to the patches of an earlier teacher: Siméoni et al., "DINOv3", 2025, section 4, equation 3.

Masks hide patches in one of each item's large views (or quarters, where all views have one size). With two large views
that is half of them, as in the paper, and the paper's weights of the losses are for this case. The random numbers of
the first view choose the view, the ratio and the patches: (view, ratio, N for patches). Patches are drawn one by one,
not in blocks. Heads have batch norm, as in `dino.py`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import gather
from selfsight.encoders.encoder import Encoder
from selfsight.encoders.tokens import take
from selfsight.errors import SelfsightError
from selfsight.objectives.dino import teacher_temperature
from selfsight.objectives.facts import Chosen, Facts, Options, Rule
from selfsight.objectives.objective import EMATeacher, Loss, Objective, embed_views, in_float32, projector, register
from selfsight.objectives.patches import patch_side, token_grid
from selfsight.objectives.prototypes import (
    FROZEN,
    Prototypes,
    prototype_count,
    sinkhorn,
    swapped_prediction,
)
from selfsight.objectives.shared import MEASURED, multi_crop, part_side, quick_crops
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan

LOWEST, HIGHEST = 0.1, 0.5  # part of the patches that is hidden, of a view in which some are


def hidden_patches(draws: Tensor, large: int, patches: int) -> tuple[Tensor, Tensor, Tensor]:
    """(view [B], index [B, M], counts [B, M]) from `draws` [B, 2 + N], with M = N / 2 for a fixed shape.

    view: which of the `large` views hides patches. index: candidate patches. counts: 1 where a candidate is hidden,
    else 0.
    """
    view = (draws[:, 0] * large).long()
    ratio = LOWEST + (HIGHEST - LOWEST) * draws[:, 1]
    most = max(1, int(HIGHEST * patches))
    number = (ratio * patches).round().clamp(1, most)  # [B]
    index = draws[:, 2 : 2 + patches].argsort(dim=1, stable=True)[:, :most]
    return view, index, (torch.arange(most, device=draws.device) < number[:, None]).float()


@in_float32
def ibot_loss(scores: Tensor, targets: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softmax(scores / temperature) to the teacher's `targets`, both [B, M, K], in float32: the mean
    over each view's hidden patches, where `counts` [B, M] is 1, then over views. A view that hides none counts as 0."""
    entropy = -(targets.float() * F.log_softmax(scores / temperature, dim=2)).sum(2)  # [B, M]
    return ((entropy * counts).sum(1) / counts.sum(1).clamp_min(1.0)).mean()


@in_float32
def koleo(features: Tensor) -> Tensor:
    """-mean of log(1e-8 + distance to the nearest other) over `features` [V, B, D] of length one; a sum over views.

    In float32. Raises `ValueError` for one sample.
    """
    if features.shape[1] < 2:
        raise ValueError(f"needs at least 2 samples, got {features.shape[1]}")
    x = F.normalize(features, dim=2)
    with torch.no_grad():
        similarity = x @ x.transpose(1, 2)  # [V, B, B]
        similarity.diagonal(dim1=1, dim2=2).fill_(-2.0)
        nearest = similarity.argmax(2)  # [V, B]
    distance = (x - take(x, nearest)).norm(dim=2)  # [V, B]
    spread: Tensor = -(distance + 1e-8).log().mean(1).sum()
    return spread


@in_float32
def gram_loss(patches: Tensor, anchors: Tensor) -> Tensor:
    """Mean squared difference, in float32, of two matrices [B, N, N] of cosine similarities: between the `patches` of
    an image, and between its `anchors`. Both are [B, N, D]; their D may differ."""
    x, y = F.normalize(patches, dim=2), F.normalize(anchors.float(), dim=2)
    return (x @ x.transpose(1, 2) - y @ y.transpose(1, 2)).square().mean()


def _views(facts: Facts, chosen: Chosen) -> tuple[ViewPlan, str]:
    """`quick_crops`, or `multi_crop` where quarters would be one or two patches wide. The first group carries the
    random numbers for the masks."""
    choose = quick_crops if part_side(chosen, 2) > 2 * patch_side(chosen) else multi_crop
    plan, reason = choose(facts, chosen)
    large, *small = plan.groups
    draws = 2 + (large.size // patch_side(chosen)) ** 2
    hidden = f"patches are hidden in one of the {large.count} of {large.size} px"
    return ViewPlan((replace(large, draws=draws), *small)), f"{reason}; {hidden}"


def _options(facts: Facts, chosen: Chosen) -> tuple[Options, str]:
    count, why = prototype_count(facts.items, chosen["batch_size"])
    options = {"prototypes": count, "hidden": 512, "bottleneck": 128, "momentum": 0.99, "koleo": 0.1, "gram": 0.0}
    options |= {"temperature": 0.1, "teacher_temperature": 0.02}
    reason = f"a fast teacher, as a short run has few steps, and one sharper than in the paper ({MEASURED}); the "
    reason += "rest as in Oquab et al., 2023"
    return options, f"{why}; {reason}"


@register("dinov2")
class DINOv2(Objective):
    """prototypes: outputs of each of the two heads, for images and for patches.
    hidden: width of the heads' hidden layers.
    bottleneck: width of the heads' last layer before the prototypes.
    momentum: of the teacher at the start; 1 at the end. A short run's teacher is faster (see `EMATeacher`).
    temperature: of the student.
    teacher_temperature: of the teacher once it is warm.
    koleo: weight of KoLeo.
    gram: weight of the patch anchor (DINOv3: 2).
    gram_from: progress, 0 to 1, at which the teacher becomes the anchor.
    """

    family = "self-distillation"
    when = "A ViT whose patch features matter too, for segmentation or counting. Steps are expensive: for long runs."
    tokens = True
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": _views,
        "objective_options": _options,
        "clip": lambda facts, chosen: (3.0, "the norm at which Oquab et al., 2023, clip gradients"),
    }

    anchored: Tensor

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        prototypes: int = 1024,
        hidden: int = 512,
        bottleneck: int = 128,
        momentum: float = 0.99,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        koleo: float = 0.1,
        gram: float = 0.0,
        gram_from: float = 0.5,
    ) -> None:
        super().__init__(encoder, views)
        self.large, size = views.groups[0].count, views.groups[0].size
        self.patches = math.prod(token_grid(encoder, size))
        if views.groups[0].draws != 2 + self.patches:
            raise SelfsightError(
                f"dinov2 hides some of {self.patches} patches, for which a large view needs draws: {2 + self.patches}. "
                f"The view plan has {views.groups[0].draws}."
            )
        self.temperature, self.teacher_temperature = temperature, teacher_temperature
        self.weights = {"dino": 1.0, "ibot": 1.0, "koleo": koleo, "gram": gram}
        self.gram_from = gram_from
        self.token = nn.Parameter(torch.zeros(encoder.patch_dim))
        self.head = projector([encoder.dim, hidden, hidden, bottleneck], last_norm=True)
        self.prototypes = Prototypes(prototypes, bottleneck)
        self.patch_head = projector([encoder.patch_dim, hidden, hidden, bottleneck], last_norm=True)
        self.patch_prototypes = Prototypes(prototypes, bottleneck)
        self.teacher = EMATeacher(*self._followed(), base=momentum)
        if gram > 0:
            self.anchor = copy.deepcopy(encoder).requires_grad_(False)
        self.register_buffer("anchored", torch.tensor(False))

    def _followed(self) -> list[nn.Module]:
        return [self.encoder, self.head, self.prototypes, self.patch_head, self.patch_prototypes]

    @property
    def trained(self) -> Encoder:
        return cast(Encoder, self.teacher.copies[0])

    def forward(self, views: list[View], progress: float) -> Loss:
        frozen, small = progress < FROZEN, views[self.large :]
        assert views[0].draws is not None
        view, index, counts = hidden_patches(views[0].draws, self.large, self.patches)  # [B], [B, M], [B, M]
        pixels = torch.cat([v.pixels for v in views[: self.large]])  # [L B, C, H, W]
        image_targets, patch_targets = self._teach(pixels, view, index, counts, progress)

        features = self.encoder(pixels, replace=(self._mask(view, index, counts), self.token))
        z = self._whole(self.head(features.pooled))  # [L, B, D]
        if small:
            z = torch.cat([z, embed_views(self.encoder, self.head, small)])  # [V, B, D]
        hidden = self.patch_head(self._pick(features.patches, view, index))  # [B M, D]
        patch_scores = self.patch_prototypes(hidden, frozen).view_as(patch_targets)  # [B, M, K]
        terms = {
            "dino": swapped_prediction(self.prototypes(z, frozen), image_targets, self.temperature),
            # as of the paper's two large views, of which one hides patches, however many there are
            "ibot": ibot_loss(patch_scores, patch_targets, counts, self.temperature) / 2.0,
            "koleo": 2.0 / self.large * koleo(self._whole(features.pooled)),
        }
        if self.weights["gram"] > 0 and self.anchored:
            with torch.no_grad():
                anchors = self.anchor(pixels).patches  # [L B, N, D]
            terms["gram"] = gram_loss(features.patches, anchors)
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        parts = {name: term.detach() for name, term in terms.items()}
        return Loss(total, parts, z.detach(), image_targets.flatten(0, 1))

    @torch.no_grad()
    def _teach(
        self, pixels: Tensor, view: Tensor, index: Tensor, counts: Tensor, progress: float
    ) -> tuple[Tensor, Tensor]:
        """The teacher's probabilities for the large views [L, B, K] of the whole batch, and for the patches hidden from
        the student [B, M, K]. The teacher itself sees every patch."""
        encoder, head, prototypes, patch_head, patch_prototypes = self.teacher.copies
        warmth = teacher_temperature(self.teacher_temperature, progress)
        features = encoder(pixels)
        scores = prototypes(self._whole(head(features.pooled)))  # [L, B, K]
        images = sinkhorn(scores.flatten(0, 1), warmth).view_as(scores)
        scores = patch_prototypes(patch_head(self._pick(features.patches, view, index)))  # [B M, K]
        patches = sinkhorn(scores, warmth, kept=counts.flatten()).view(*counts.shape, -1)
        return images, patches

    def _whole(self, rows: Tensor) -> Tensor:
        """[L, B, D] of the items of all processes, from this one's rows [L B, D], in float32."""
        return gather(torch.stack(rows.float().chunk(self.large)))

    def _mask(self, view: Tensor, index: Tensor, counts: Tensor) -> Tensor:
        """[L B, N] bool: true at the patches that are hidden."""
        mask = torch.zeros(len(view), self.patches, device=index.device).scatter_(1, index, counts).bool()  # [B, N]
        return torch.cat([mask & (view == v)[:, None] for v in range(self.large)])

    def _pick(self, patches: Tensor, view: Tensor, index: Tensor) -> Tensor:
        """[B M, D] the patches of `index` in the view that hides some, from `patches` [L B, N, D]."""
        chosen = torch.stack(patches.chunk(self.large))[view, torch.arange(len(view), device=view.device)]  # [B, N, D]
        return take(chosen, index).flatten(0, 1)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.teacher.follow(self._followed(), progress)
        if self.weights["gram"] > 0 and progress >= self.gram_from and not self.anchored:
            self.anchor.load_state_dict(self.teacher.copies[0].state_dict())
            self.anchored.fill_(True)
