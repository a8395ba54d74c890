"""What objectives with prototypes share: scores, codes that use all of them evenly, and the swapped prediction."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import all_sum, processes
from selfsight.objectives.objective import check_views, in_float32
from selfsight.objectives.shared import MEASURED

FROZEN = 0.05  # of the budget, in which prototypes stand still
ITEMS_EACH = 16  # items for each prototype, where they are counted by rule
BATCH_EACH = 4  # prototypes for each image of a batch, at most


@in_float32
def cosines(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine similarities [..., K] of `embeddings` [..., D] and `prototypes` [K, D], in float32."""
    return F.normalize(embeddings, dim=-1) @ F.normalize(prototypes.float(), dim=-1).T


@torch.no_grad()
@in_float32
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3, kept: Tensor | None = None) -> Tensor:
    """Codes [N, K] of `scores` [N, K]: probabilities of prototypes for each sample, with all prototypes used alike.

    Cuturi, "Sinkhorn Distances", NeurIPS 2013, as Caron et al., SwAV, 2020, section 3.1 use it: exp(scores /
    temperature), whose columns and then rows are normalised in turn. N counts the samples of all processes, whose
    column sums are added; a batch that each process holds whole gives what it gives in one. kept [N]: 1 for samples
    that count, 0 for those that do not and get zeros.
    """
    top = scores.max() if scores.numel() else scores.new_tensor(float("-inf"))
    if processes() > 1:
        dist.all_reduce(top, dist.ReduceOp.MAX)
    tiny = torch.finfo(scores.dtype).tiny
    codes = ((scores - top) / temperature).exp()  # [N, K]
    if kept is not None:
        codes = codes * kept[:, None]
    for _ in range(iterations):
        codes = codes / all_sum(codes.sum(0)).clamp_min(tiny)
        codes = codes / codes.sum(1, keepdim=True).clamp_min(tiny)
    return codes


@in_float32
def swapped_prediction(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of each view's softmax(scores / temperature) to the targets of every other view, in float32.

    scores [V, B, K] of all views; targets [L, B, K]: probabilities of the first L of them. The mean is over items and
    pairs of a target and another view (Caron et al., SwAV, 2020, equations 1, 2 and 6; DINO, ICCV 2021, equation 3).
    Raises `ValueError` for one view or one sample.
    """
    check_views(scores)
    log_p = F.log_softmax(scores / temperature, dim=2)
    pairs = -torch.einsum("lbk,vbk->lv", targets.float(), log_p) / scores.shape[1]  # [L, V]
    views, large = len(scores), len(targets)
    others = ~torch.eye(large, views, dtype=torch.bool, device=scores.device)
    return pairs[others].mean()


class Prototypes(nn.Module):
    """`count` directions of `dim` dimensions; called with embeddings [..., dim], their cosines [..., count].

    With `frozen` the gradient of the directions is zero, but there is one, for which processes wait.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, embeddings: Tensor, frozen: bool = False) -> Tensor:
        weight = self.weight.detach() + 0.0 * self.weight if frozen else self.weight
        scores: Tensor = cosines(embeddings, weight)
        return scores

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring all directions back to length one."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


def prototype_count(items: int, batch: int) -> tuple[int, str]:
    """How many, and why: a power of two from 64 to 1024 near one prototype for every `ITEMS_EACH` items, but no more
    than `BATCH_EACH` for each image of a batch."""
    wished = int(2 ** min(10, max(6, round(math.log2(max(1, items) / ITEMS_EACH)))))
    count = min(wished, BATCH_EACH * batch)
    reason = f"near one prototype for {ITEMS_EACH} of {items:,} items, within 64 and 1,024"
    if count < wished:
        reason += f", but at most {BATCH_EACH} for each image of a batch, which cannot fill more ({MEASURED})"
    return count, f"{count}: {reason}"
