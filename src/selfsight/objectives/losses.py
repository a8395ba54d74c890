"""What losses of embeddings share: float32 inside, checks of shapes, the cosine between views."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(loss: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Decorator: the loss computes in float32, whatever autocast does. Its first argument is its embeddings.

    Autocast would run the loss's matrix products in bfloat16 even on float32 inputs.
    """

    @functools.wraps(loss)
    def run(embeddings: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(embeddings.device.type, enabled=False):
            return loss(embeddings.float(), *args, **kwargs)

    return run


def check_views(embeddings: Tensor) -> None:
    """Raise `ValueError` for fewer than two views or two samples in `embeddings` [V, B, D]: a joint-embedding loss has
    no meaning there."""
    views, batch = embeddings.shape[:2]
    if views < 2 or batch < 2:
        raise ValueError(f"needs at least 2 views and 2 samples, got {views} views of {batch} samples")


@in_float32
def cross_view_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of cos(prediction of view v, target of view w) over items and v != w, a scalar. Both are [V, B, D].

    No gradient goes through the targets. Raises `ValueError` for one view or one sample.
    """
    check_views(predictions)
    views, batch, _ = predictions.shape
    p, t = F.normalize(predictions, dim=2), F.normalize(targets.detach().float(), dim=2)
    # The sum over pairs of different views is that over all pairs less that over equal ones.
    mean: Tensor = ((p.sum(0) * t.sum(0)).sum() - (p * t).sum()) / (views * (views - 1) * batch)
    return mean
