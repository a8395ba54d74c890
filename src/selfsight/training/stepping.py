"""A step of whatever is trained, a pretext task or a head: gradients of several batches added up over processes, and
nothing changed where something is not finite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from selfsight.distributed import everywhere, together
from selfsight.training.batch_norm import synchronise
from selfsight.training.loop import Step

T = TypeVar("T")


class Forward(NamedTuple):
    """What the forward pass of a batch gave. total: a float32 scalar to minimise; parts: its named terms, detached;
    suspects: tensors that may be to blame where it is not finite, in the order in which they are looked at, by what one
    value of them is called."""

    total: Tensor
    parts: Mapping[str, Tensor]
    suspects: Mapping[str, Iterable[Tensor]]


class Stepper:
    """Gradients of `module`, which is on the accelerator's device. accumulate: forward passes a step, whose losses are
    averaged. clip: the longest that a step's gradient may be, 0 for any."""

    def __init__(self, module: nn.Module, accelerator: Accelerator, accumulate: int = 1, clip: float = 0.0) -> None:
        self.module, self.accelerator, self.accumulate, self.clip = module, accelerator, accumulate, clip
        norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]

    def begin(self) -> None:
        """From here on the module trains, and `model` is it as forward passes call it: wrapped for several processes,
        which share their batch norms' statistics."""
        with together():
            self.model: nn.Module = self.accelerator.prepare(synchronise(self.module).train())

    def gradients(self, forward: Callable[[], Forward], drop: Callable[[], None] = lambda: None) -> Step:
        """Leave the gradients of a step in the parameters. Where something is not finite in any process, running
        statistics are as before, and there is nothing to step along.

        forward: called for each of the step's batches. drop: called in the end, to take gradients out before their
        norm is measured.
        """
        before = [buffer.clone() for buffer in self.statistics]
        finite = torch.tensor(True, device=self.accelerator.device)
        for part in range(self.accumulate):
            # Processes add up their gradients once a step, with the last of its batches.
            with self.accelerator.no_sync(self.model) if part < self.accumulate - 1 else nullcontext():
                found = forward()
                with together():
                    self.accelerator.backward(found.total / self.accumulate)
            finite &= torch.isfinite(found.total.detach())
        drop()
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.clip or float("inf"))
        finite &= torch.isfinite(torch.as_tensor(norm, device=self.accelerator.device))
        broken = None
        if not everywhere(finite):
            for buffer, kept in zip(self.statistics, before, strict=True):
                buffer.copy_(kept)
            broken = _cause(self.module, found)
        return Step({"loss": found.total.detach(), **found.parts}, float(norm), broken)


def _cause(module: nn.Module, found: Forward) -> str:
    """The first thing on the way of the data that is not finite."""

    def finite(tensor: Tensor) -> bool:
        return bool(torch.isfinite(tensor).all())

    for name, tensors in found.suspects.items():
        if not all(map(finite, tensors)):
            return name
    for name, part in found.parts.items():
        if not finite(part):
            return f"the loss ({name})"
    if not finite(found.total):
        return "the loss"
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not finite(parameter.grad):
            return f"the gradient (of {name}, for one)"
    return "the gradient's norm"


class Pace:
    """Views made and time spent waiting for data since the last row of metrics."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.views, self.waited = 0, 0.0

    def wait_for(self, stream: Iterator[T]) -> T:
        """The next batch, its waiting counted."""
        asked = time.monotonic()
        batch = next(stream)
        self.waited += time.monotonic() - asked
        return batch

    def lap(self) -> dict[str, float]:
        """views_per_second and waiting (a fraction of the time) since the last lap."""
        seconds = max(1e-9, time.monotonic() - self.since)
        row = {"views_per_second": self.views / seconds, "waiting": self.waited / seconds}
        self.since, self.views, self.waited = time.monotonic(), 0, 0.0
        return row
