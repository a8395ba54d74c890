"""What rules look at: facts about the data and the machine, and the values of the recipe chosen so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from selfsight.data.pixels import PixelFormat
from selfsight.encoders.weights import Weights
from selfsight.views.plan import ViewPlan

Chosen: TypeAlias = dict[str, Any]  # the recipe's values by name, as far as they are chosen
Options: TypeAlias = dict[str, Any]  # an objective's options by name


@dataclass(frozen=True)
class Facts:
    """The facts that rules look at.

    items: usable items of the collection.
    side: their median shorter side in pixels.
    format: the collection's pixel format.
    device: kind of device, such as "cpu" or "cuda".
    bf16: whether the device computes bf16 in hardware.
    threads: the fastest number of threads.
    free: free disk space for canvases, in bytes.
    decoding: from a canvas's shorter side to the seconds that decoding every item takes; 0 where it is done.
    size_of: from a canvas's shorter side to the bytes of all canvases.
    cores: cores of this machine for each process.
    processes: number of processes.
    start: weights to start from; None for random ones.
    speed: of the CPU in convolutions, in operations a second.
    """

    items: int
    side: int
    format: PixelFormat
    device: str
    bf16: bool
    threads: int
    free: int
    decoding: Callable[[int], float]
    size_of: Callable[[int], int]
    cores: int = 1
    processes: int = 1
    start: Weights | None = None
    speed: float = 1e11


# A rule: (facts, values chosen so far) to (value, reason).
Rule: TypeAlias = Callable[[Facts, Chosen], tuple[Any, str]]
ViewRule: TypeAlias = Callable[[Facts, Chosen], tuple[ViewPlan, str]]
