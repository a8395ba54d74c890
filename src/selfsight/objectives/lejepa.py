"""LeJEPA: views agree, and embeddings are spread like a Gaussian cloud, tested along random directions.

Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics", 2025: the loss
is (1 - weight) * agreement + weight * SIGReg. SIGReg is the test of Epps and Pulley (1983) between each projection and
the standard normal distribution, a mean over directions and views. It needs no teacher, no predictor and no normalised
embeddings.

With `test="wasserstein"` the regulariser is VISReg instead (Wu, Balestriero and Levine, 2026): centre, scale and the
sliced 2-Wasserstein distance of the standardised cloud. Its gradient does not vanish at a collapse.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.encoders.encoder import Encoder
from selfsight.errors import SelfsightError
from selfsight.objectives.facts import Rule
from selfsight.objectives.objective import Loss, Objective, check_views, embed_views, in_float32, projector, register
from selfsight.objectives.shared import quarters
from selfsight.views.make import View
from selfsight.views.plan import ViewPlan

KNOTS, REACH = 17, 3.0  # of the integral over [0, 3], doubled by symmetry


def directions(dim: int, count: int, seed: int) -> Tensor:
    """[D, K] random unit vectors, a function of `seed`."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(dim, count, generator=generator), dim=0)


@in_float32
def sigreg(embeddings: Tensor, along: Tensor) -> Tensor:
    """The Epps-Pulley statistic of `embeddings` [V, N, D] along the directions `along` [D, K], a scalar.

    N times the integral over t of |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), with phi the characteristic function of the
    N projected embeddings; a mean over directions and views. About 1.06 for a standard normal cloud of any size, 0.41 N
    where all are zero. Embeddings must not be normalised.
    """
    t = torch.linspace(0.0, REACH, KNOTS, device=embeddings.device)
    normal = torch.exp(-t.square() / 2)
    weights = torch.full_like(t, 2 * REACH / (KNOTS - 1))  # trapezoids on both sides of 0
    weights[[0, -1]] /= 2
    total = embeddings.new_zeros(())
    for view in embeddings:  # one by one: [N, K, T] is large
        angles = (view @ along)[:, :, None] * t
        distance = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()  # [K, T]
        total = total + (distance * weights * normal).sum(1).mean() * view.shape[0]
    return total / len(embeddings)


@in_float32
def sliced(embeddings: Tensor, along: Tensor) -> Tensor:
    """The VISReg statistic of `embeddings` [V, N, D] along the directions `along` [D, K], a scalar: centre, scale and
    shape.

    centre: mean square of the means. scale: mean square of (1 - standard deviation). shape: mean squared distance of
    the sorted projections of the standardised cloud from the normal quantiles.
    """
    n = embeddings.shape[1]
    mean, deviation = embeddings.mean(1, keepdim=True), embeddings.std(1, unbiased=False, keepdim=True)
    standard = (embeddings - mean) / (deviation.detach() + 1e-4)
    quantiles = torch.special.ndtri(torch.arange(1, n + 1, device=embeddings.device) / (n + 1.0))
    shape = ((standard @ along).sort(dim=1).values - quantiles[:, None]).square().mean()
    total: Tensor = mean.square().mean() + (1.0 - deviation).square().mean() + shape
    return total


@register("lejepa")
class LeJEPA(Objective):
    """weight: of the regulariser, from 0 to 1.
    test: the regulariser, "sigreg" or "wasserstein".
    slices: random directions per step.
    hidden: width of the projector's hidden layer.
    width: of the projector's output, the embeddings.
    """

    family = "joint-embedding prediction"
    when = "One weight to set and no teacher. Better under a linear head than for nearest neighbours or few labels."
    least_views = 2
    rules: ClassVar[dict[str, Rule]] = {
        "views": quarters,
        "objective_options": lambda facts, chosen: (
            {"weight": 0.05, "test": "sigreg", "slices": 256, "hidden": 1024, "width": 64},
            "weight 0.05 for batches of hundreds, as the test grows with the batch; 64 dimensions, which 256 "
            "directions cover",
        ),
    }

    def __init__(
        self,
        encoder: Encoder,
        views: ViewPlan,
        weight: float = 0.05,
        test: Literal["sigreg", "wasserstein"] = "sigreg",
        slices: int = 256,
        hidden: int = 1024,
        width: int = 64,
    ) -> None:
        super().__init__(encoder, views)
        if test not in ("sigreg", "wasserstein"):
            raise SelfsightError(f"test must be sigreg or wasserstein, not {test!r}.")
        self.weight, self.slices = weight, slices
        self.regulariser = sigreg if test == "sigreg" else sliced
        self.projector = projector([encoder.dim, hidden, width])
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))  # each has directions of its own

    def forward(self, views: list[View], progress: float) -> Loss:
        z = embed_views(self.encoder, self.projector, views)  # [V, B, D]
        check_views(z)
        large = torch.tensor([view.group == 0 for view in views])
        agreement = (z - z[large.to(z.device)].mean(0)).square().mean()
        along = directions(z.shape[2], self.slices, int(self.steps)).to(z.device)
        spread = self.regulariser(z, along)
        total = (1.0 - self.weight) * agreement + self.weight * spread
        return Loss(total, {"prediction": agreement.detach(), "regulariser": spread.detach()}, z.detach())

    def after_step(self, progress: float) -> None:
        self.steps += 1
