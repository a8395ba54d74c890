"""Batch norm with the statistics of all processes, on any device. torch's SyncBatchNorm raises on a CPU."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn

from selfsight.distributed import all_sum, processes


def synchronise(module: nn.Module) -> nn.Module:
    """`module` itself, with every batch norm (torch's and timm's) sharing its statistics over processes in training.

    Only their `forward` changes: parameters, buffers, names and evaluation stay, so a plain model is saved. Nothing
    changes in a single process.
    """
    if processes() > 1:
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.forward = MethodType(_forward, norm)  # type: ignore[method-assign]
    return module


def _forward(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    """Batch norm of x [B, C, ...] over all processes, at least in float32 (Ioffe and Szegedy, ICML 2015, alg. 1)."""
    if not norm.training:
        alone: Tensor = type(norm).forward(norm, x)
        return alone
    norm._check_input_dim(x)
    values = x if x.dtype == torch.float64 else x.float()
    over = [d for d in range(x.ndim) if d != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = x.numel() // x.shape[1] * processes()
    mean = all_sum(values.sum(over)) / count  # [C]
    centred = values - mean.view(shape)
    variance = all_sum(centred.square().sum(over)) / count  # [C]
    _remember(norm, mean.detach(), variance.detach() * (count / max(1, count - 1)))
    out: Tensor = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        out = out * norm.weight.view(shape) + norm.bias.view(shape)
    out = out.to(x.dtype)  # as torch does: float32 inside, the input's type outside
    for after in ("drop", "act"):  # timm's batch norm carries what follows it
        out = getattr(norm, after)(out) if hasattr(norm, after) else out
    return out


@torch.no_grad()
def _remember(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
