"""What objectives with prototypes share: scores, codes that use all prototypes evenly, the swapped prediction."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.distributed import all_sum, processes
from selfsight.objectives.objective import check_views, in_float32
from selfsight.objectives.shared import MEASURED

FROZEN = 0.05  # share of the budget, at the start, during which prototypes do not move
ITEMS_EACH = 16  # items per prototype that `prototype_count` aims at
BATCH_EACH = 4  # largest number of prototypes per image of a batch


@in_float32
def cosines(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine similarities [..., K] of `embeddings` [..., D] and `prototypes` [K, D], in float32."""
    return F.normalize(embeddings, dim=-1) @ F.normalize(prototypes.float(), dim=-1).T


@torch.no_grad()
@in_float32
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3, kept: Tensor | None = None) -> Tensor:
    """Codes [N, K] of `scores` [N, K]: each sample's probabilities of the prototypes, with all prototypes used evenly.

    Cuturi, "Sinkhorn Distances", NeurIPS 2013, as Caron et al., SwAV, 2020, section 3.1, use it: the columns and rows
    of exp(scores / temperature) are normalised in turn. Column sums are added over processes. So N may be a part of the
    batch on each process; where each holds the whole batch, the codes are those of one process.

    kept: [N] 1 for samples that count, 0 for samples that do not; their codes are 0.
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
    """Mean cross-entropy of each view's softmax(scores / temperature) to the targets of every other view, float32.

    scores: [V, B, K] of all views. targets: [L, B, K] probabilities, of the first L views. The mean is over items and
    over pairs of a target and another view (Caron et al., SwAV, 2020, equations 1, 2 and 6; DINO, ICCV 2021, equation
    3). Raises `ValueError` for one view or one sample.
    """
    check_views(scores)
    log_p = F.log_softmax(scores / temperature, dim=2)
    pairs = -torch.einsum("lbk,vbk->lv", targets.float(), log_p) / scores.shape[1]  # [L, V]
    views, large = len(scores), len(targets)
    others = ~torch.eye(large, views, dtype=torch.bool, device=scores.device)
    return pairs[others].mean()


class Prototypes(nn.Module):
    """`count` directions in `dim` dimensions. Called with embeddings [..., dim] it gives cosines [..., count].

    With `frozen` the directions get a gradient of zero: there must be one, as other processes wait for it.
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
        """Bring all directions back to unit length."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


def prototype_count(items: int, batch: int) -> tuple[int, str]:
    """(number of prototypes, reason): a power of two from 64 to 1024, about one prototype per `ITEMS_EACH` items, but
    at most `BATCH_EACH` per image of a batch."""
    wished = int(2 ** min(10, max(6, round(math.log2(max(1, items) / ITEMS_EACH)))))
    count = min(wished, BATCH_EACH * batch)
    reason = f"about one prototype per {ITEMS_EACH} of {items:,} items, within 64 and 1,024"
    if count < wished:
        reason += f", but at most {BATCH_EACH} per image of a batch, which cannot fill more ({MEASURED})"
    return count, f"{count}: {reason}"
