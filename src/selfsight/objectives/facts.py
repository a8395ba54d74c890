"""What rules look at: facts of the data and the machine, and the values of a recipe that were chosen before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from selfsight.data.pixels import PixelFormat
from selfsight.encoders.weights import Weights
from selfsight.views.plan import ViewPlan

Chosen: TypeAlias = dict[str, Any]  # values of a recipe by name, those that were chosen before a rule is asked
Options: TypeAlias = dict[str, Any]  # of an objective's constructor, by name


@dataclass(frozen=True)
class Facts:
    """What the rules look at. side: median shorter side in pixels. format: the collection's. cores: of this machine,
    for each of `processes`. threads: the fastest number of them. free: bytes of disk for canvases. decoding: seconds
    that decoding every item takes, 0 where that is done. size_of: bytes of all canvases of a given shorter side. start:
    the weights to start from, if they are not random."""

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


# From the facts and the values chosen so far to a value and the reason for it.
Rule: TypeAlias = Callable[[Facts, Chosen], tuple[Any, str]]
ViewRule: TypeAlias = Callable[[Facts, Chosen], tuple[ViewPlan, str]]
