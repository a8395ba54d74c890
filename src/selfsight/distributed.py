"""Several processes that train one run, as torchrun or Accelerate's launcher starts them, and what they share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from selfsight.errors import MachineError, SelfsightError
from selfsight.machine import best_device

WAIT = timedelta(hours=24)  # for the main process, which may decode for long before the others have anything to do

T = TypeVar("T")

# gloo raises a plain RuntimeError, which begins with the place in its sources: "[/…/gloo/transport/tcp/pair.cc:561] …"
GLOO = re.compile(r"\[\S*gloo[/\\]transport[/\\]")


class ProcessLost(MachineError):
    """Another process of the run has ended, so that this one waits for it in vain."""

    def __init__(self) -> None:
        super().__init__("Another process of this run has ended. Its own message, above, says why.")


@contextmanager
def together() -> Iterator[None]:
    """Around whatever waits for other processes. Raises `ProcessLost` where one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or GLOO.match(str(error)):
            raise ProcessLost from error
        raise


@contextmanager
def main_first(accelerator: Accelerator) -> Iterator[None]:
    """The main process runs what is within, then the others do: it writes what they find."""
    with together(), accelerator.main_process_first():
        yield


def start_processes() -> Accelerator:
    """The processes there are: one, unless a launcher said otherwise."""
    # The precision is the loop's: Accelerate's is for a whole Python process and cannot change for a second run.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    handlers: list[Any] | None = [InitProcessGroupKwargs(timeout=WAIT)] if several else None
    # Accelerate joins processes on a CPU only if it is told to use it.
    device = torch.device(best_device())
    if several and device.index is not None:
        raise SelfsightError(f"--device {device} is one device, and each process wants its own. Give {device.type}.")
    accelerator = Accelerator(mixed_precision="no", cpu=several and device.type == "cpu", kwargs_handlers=handlers)
    if not several:  # Accelerate keeps the device of the first run of a Python process
        accelerator.state.device = device
    return accelerator


def gathered(here: dict[str, T]) -> dict[str, T]:
    """The entries of all processes' dictionaries."""
    if processes() == 1:
        return here
    parts: list[dict[str, T]] = [{}] * processes()
    with together():
        dist.all_gather_object(parts, here)
    return {k: v for part in parts for k, v in part.items()}


def gather(embeddings: Tensor) -> Tensor:
    """Embeddings [V, B / processes, D] of every process as [V, B, D], in the order of one process, with gradients.

    Every process then has the loss of the whole batch, and each one's embeddings receive its gradient from all of
    them: as many times the gradient as there are processes, which their mean over processes sets right.
    """
    if processes() == 1:
        return embeddings
    own, rank = embeddings.shape[1], dist.get_rank()
    return all_sum(F.pad(embeddings, (0, 0, own * rank, own * (processes() - 1 - rank))))


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over processes, the same in all of them, with gradients; every process has to call it."""
    if processes() == 1:
        return tensor
    total: Tensor = _AllSum.apply(tensor)
    return total


def all_mean(tensor: Tensor) -> Tensor:
    """The mean over processes: for what an objective keeps of its own part of the batch (a centre of patches, say).
    What comes of `embed_views` is of the whole batch already."""
    return all_sum(tensor) / processes()


class _AllSum(torch.autograd.Function):
    """Each process's loss depends on the sum, so an input receives the sum of their gradients.

    torch has this twice: once deprecated in 2.14, once with names that 2.9 does not know.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _reduced(tensor.clone(memory_format=torch.contiguous_format), dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_sum(gradient)


def agreed(progress: float, stop: bool, device: torch.device) -> tuple[float, bool]:
    """The furthest progress of all processes, and whether one of them is to stop: all must do the same."""
    if processes() == 1:
        return progress, stop
    both = torch.tensor([progress, float(stop)], dtype=torch.float64, device=device)
    _reduced(both, dist.ReduceOp.MAX)
    return float(both[0]), bool(both[1])


def everywhere(here: Tensor) -> bool:
    """Whether it is true in all processes."""
    if processes() > 1:
        here = _reduced(here.float(), dist.ReduceOp.MIN)
    return bool(here)


def _reduced(tensor: Tensor, how: Any) -> Tensor:
    """`tensor`, in place, as all processes make it."""
    with together():
        dist.all_reduce(tensor, how)
    return tensor


@torch.no_grad()
def shared_means(figures: dict[str, Tensor]) -> dict[str, float]:
    """Means over processes of single numbers."""
    values = all_mean(torch.stack([value.float() for value in figures.values()]))
    return dict(zip(figures, values.tolist(), strict=True))
