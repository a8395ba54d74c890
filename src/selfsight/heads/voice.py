"""What a head says of items, whatever computes its tensors: PyTorch with its weights, or ONNX Runtime with its export.

Nothing here or in `classify_voice.py`, `inspect_voice.py` and `segment_voice.py` needs torch, so that a service of
exported heads does without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from selfsight.data.formats.format import Unreadable
from selfsight.data.geometry import Geometry
from selfsight.data.masks import other_size
from selfsight.heads.metrics import with_intervals
from selfsight.heads.placed import Placed, place
from selfsight.heads.predictions import Row

FORMAT_VERSION = 1
Listener = Callable[[np.ndarray, list[Row]], None]  # told features [N, D] of items, and what was said of them


@dataclass(frozen=True, kw_only=True)
class About:
    """What head.json says of every head.

    task: that it is for. method: that scores features. setting: of the method. metrics: {"held_out": {metric:
    interval}, …}. geometry: of the encoder's input. encoder: its digest. licence: of the encoder, which holds for the
    head. intended_use: a sentence. items: that it learnt from. notes: what a user must know.
    """

    task: str
    method: str
    setting: str
    metrics: dict[str, Any]
    geometry: dict[str, Any]
    encoder: str
    licence: str
    intended_use: str
    items: int
    notes: list[str] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @classmethod
    def of(cls, content: Mapping[str, object]) -> Self:
        """From what head.json holds. Raises `KeyError` or `TypeError` for anything else."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {name: with_intervals(value) for name, value in content.items() if name in known}
        return cls(**values)


class Voice(ABC):
    """A head as those know it who ask it about items. `items` is what it learnt from, `roi` [H, W] bool where it looks,
    None for everywhere. `listener`, where there is one, is told what it says.

    about_type: what its head.json holds. gives: what it answers, in two words, where it is not classes. draws: whether
    its predictions have pictures.
    """

    about_type: ClassVar[type[About]] = About
    gives: ClassVar[str] = ""
    draws: ClassVar[bool] = False
    about: About
    items: pa.Table
    roi: np.ndarray | None = None
    listener: Listener | None = None

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """How a file becomes inputs."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """What the sides of inputs are padded to a multiple of."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hash of all that its answers depend on: encoder, weights, calibration, decision, remembered items."""

    @abstractmethod
    def tensors_of(self, pixels: np.ndarray, looked: np.ndarray) -> dict[str, np.ndarray]:
        """What its network gives, by name, of inputs [B, C, h, w] of own depth, of which the pixels `looked` [B, h, w]
        count; `pooled` [B, D], the features of the encoder, is among it."""

    @abstractmethod
    def say(self, several: list[Placed], drawn: bool = False) -> list[Row]:
        """What it says of items as they were placed, in their order: the columns of `predict` but id, uri, reason and
        head. drawn: also their pictures, the bytes of a PNG each, by the names of the columns and as `overlay`."""

    def place(self, number: int, pixels: np.ndarray) -> Placed:
        """The pixels [H, W, C] of item `number`, in the form of its geometry, as inputs. Raises `Unreadable` for a
        size that it does not take."""
        if self.roi is not None and pixels.shape[:2] != self.roi.shape:
            raise Unreadable(other_size(pixels.shape[:2], self.roi))
        return place(number, pixels, self.geometry, self.stride, self.roi)

    def tell(self, pooled: Sequence[np.ndarray], rows: list[Row]) -> list[Row]:
        """Let the listener hear what is said of items with these features [D], and return it."""
        if self.listener is not None:
            self.listener(np.stack(pooled), rows)
        return rows
