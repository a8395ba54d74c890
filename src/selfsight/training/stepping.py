"""A training step: gradients of several batches, averaged over processes. Nothing changes if something is not
finite."""

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
    """The result of the forward pass of a batch.

    total: float32 scalar to minimise. parts: its terms by name, detached. suspects: tensors that may be to blame if the
    total is not finite, by what one of their values is called, in the order
        in which they are checked.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    suspects: Mapping[str, Iterable[Tensor]]


class Stepper:
    """Computes the gradients of `module`, which is on the accelerator's device.

    accumulate: forward passes per step, whose losses are averaged.
    clip: largest norm of a step's gradient; 0 for no limit.
    """

    def __init__(self, module: nn.Module, accelerator: Accelerator, accumulate: int = 1, clip: float = 0.0) -> None:
        self.module, self.accelerator, self.accumulate, self.clip = module, accelerator, accumulate, clip
        norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase))
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]

    def begin(self) -> None:
        """Begin training. From here on `model` is the module to call: wrapped for several processes, with shared batch
        norm statistics."""
        with together():
            self.model: nn.Module = self.accelerator.prepare(synchronise(self.module).train())

    def gradients(self, forward: Callable[[], Forward], drop: Callable[[], None] = lambda: None) -> Step:
        """Compute the gradients of a step into the parameters. If something is not finite in any process, `Step.broken`
        names it, running statistics are as before, and the gradients must not be used.

        forward: called for each batch of the step.
        drop: called at the end, to remove gradients before their norm is measured.
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
    """The first value, in the order of computation, that is not finite, in words."""

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
        """The next batch of `stream`. The time it takes counts as waiting."""
        asked = time.monotonic()
        batch = next(stream)
        self.waited += time.monotonic() - asked
        return batch

    def lap(self) -> dict[str, float]:
        """{views_per_second, waiting} since the last lap; waiting is a share of the time."""
        seconds = max(1e-9, time.monotonic() - self.since)
        row = {"views_per_second": self.views / seconds, "waiting": self.waited / seconds}
        self.since, self.views, self.waited = time.monotonic(), 0, 0.0
        return row
