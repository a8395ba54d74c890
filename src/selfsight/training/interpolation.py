"""The end of a run from given weights: the start, the trained weights or a way between them, chosen without labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from selfsight.encoders.encoder import Encoder

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from the start to the trained weights, that are tried
LEAST_RANK = 0.5  # of the start's effective rank, below which features have lost too much to be kept


@dataclass(frozen=True)
class Tried:
    """The figures of the weights at one place between the start and the trained ones.

    share: of the way, 0 to 1.
    effective_rank: of the features of one view of each image.
    neighbour_stability: how far two views of an image agree on its neighbours; None for fewer than three images.
    drift: from the features of the start, of one view of each image; None for fewer than four images.
    """

    share: float
    effective_rank: float
    neighbour_stability: float | None
    drift: float | None

    def figures(self) -> dict[str, float]:
        """Those that were measured, by name, without the share."""
        return {name: value for name, value in asdict(self).items() if value is not None and name != "share"}


@dataclass(frozen=True)
class Kept:
    """The weights that a run from given weights keeps.

    share: of the way from the start to the trained ones, 0 to 1.
    why: a sentence.
    tried: the figures of each share that was tried.
    """

    share: float
    why: str
    tried: list[Tried]

    @property
    def drift(self) -> float | None:
        """Of the kept weights."""
        return next(one.drift for one in self.tried if one.share == self.share)


@torch.no_grad()
def interpolated(start: Encoder, trained: Encoder, share: float) -> Encoder:
    """A new encoder, in eval mode, whose weights are (1 - share) of those of `start` and `share` of those of `trained`.

    Running statistics of batch norms are interpolated too; whole numbers are those of `trained`. At 0 and 1 the weights
    are those of one of the two, to the bit. Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR
    2022, equation 1: what lies between two weights with a common start is often better than both.
    """
    between = copy.deepcopy(trained)
    ends = start.net.state_dict(), trained.net.state_dict()
    for name, tensor in between.net.state_dict().items():
        one, other = (end[name].detach().cpu() for end in ends)  # where float64 is known: not on MPS
        if share in (0.0, 1.0) or not tensor.is_floating_point():
            tensor.copy_(other if share else one)
        else:
            tensor.copy_((1.0 - share) * one.double() + share * other.double())
    return between.eval()


def chosen(tried: Sequence[Tried], agreement: Sequence[Tensor]) -> Kept:
    """The share to keep: the nearest to the start of those that are not clearly worse than the best.

    tried: by share, the start first and the trained weights last.
    agreement: [N] of each, how far two views of each image agree on its neighbours (`shared_neighbours`).

    The best has the highest mean, of those whose effective rank is at least half of the start's: features that hold
    little else can agree well. Another one is clearly worse if, over the images, the difference is more than its
    standard error: the rule of one standard error (Breiman et al., "Classification and regression trees", 1984, section
    3.4.3), which takes the simplest of what chance cannot tell apart.
    """
    sound = [i for i, one in enumerate(tried) if one.effective_rank >= LEAST_RANK * tried[0].effective_rank]
    best = max(sound, key=lambda i: float(agreement[i].mean()))
    at = next(i for i in sound if _as_good(agreement[i], agreement[best]))
    return Kept(tried[at].share, _why(tried, at), list(tried))


def _as_good(scores: Tensor, best: Tensor) -> bool:
    """Whether `scores` [N] are within one standard error of the `best` ones, image by image."""
    less = (best - scores).double()
    return float(less.mean()) <= float(less.std() / len(less) ** 0.5)


def _why(tried: Sequence[Tried], at: int) -> str:
    """The sentence on what is kept, for the log, the terminal and the report."""
    kept, start, end = (tried[i].neighbour_stability or 0.0 for i in (at, 0, -1))
    measured = "two views of an image agree on which images are like it by"
    lost = tried[-1].effective_rank < LEAST_RANK * tried[0].effective_rank
    if at == 0 and (end < start or lost):
        ranks = f"; effective rank {tried[0].effective_rank:.0f} and {tried[-1].effective_rank:.0f}" if lost else ""
        return (
            f"The starting weights were better and are kept: {measured} {start:.2f} with them, {end:.2f} at the end of "
            f"training{ranks}."
        )
    if at == 0:
        return (
            f"The starting weights are kept, as training did not make them clearly better: {measured} {start:.2f} with "
            f"them, {end:.2f} at the end of training."
        )
    if at == len(tried) - 1:
        return f"The trained weights are kept: {measured} {kept:.2f} with them, {start:.2f} at the start."
    return (
        f"{_part(tried[at].share)} of the way from the starting weights to the trained ones is kept: {measured} "
        f"{kept:.2f} there, {start:.2f} at the start, {end:.2f} at the end."
    )


def _part(share: float) -> str:
    return {0.25: "A quarter", 0.5: "Half", 0.75: "Three quarters"}.get(share, f"{share:.0%}")
