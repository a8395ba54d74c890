"""Geometry: the way from a file's pixels to an encoder's input."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from selfsight.data.formats.format import usual_mode
from selfsight.data.pixels import PixelFormat
from selfsight.data.placements import RULES, Placement
from selfsight.errors import SelfsightError

if TYPE_CHECKING:  # who only places pixels, as a service on ONNX Runtime does, needs no torch
    from torch import Tensor

Rule = Literal["squash", "fit", "tiles"]


@dataclass(frozen=True)
class Geometry:
    """How a file becomes an encoder's input.

    channels: of the input. size: side of the input in pixels. window: the intensities that become 0 and 1. mean: of
    each channel, by which [0, 1] is then normalised. std: of each channel, likewise. depth: of the pixels as files are
    read, see `PixelFormat`. mode: likewise; "" for the usual mode of that many channels. rule: how a file of any size
    becomes an input. "squash" brings both sides to `size`, whatever the aspect. "fit" brings
        the longer side to `size` and keeps the aspect. "tiles" takes overlapping parts at the scale of the file.

    Raises `SelfsightError` for another rule.
    """

    channels: int
    size: int
    window: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    depth: int = 8
    mode: str = ""
    rule: Rule = "squash"

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise SelfsightError(f"There is no geometry rule {self.rule!r}. Choose one of: {', '.join(RULES)}.")
        object.__setattr__(self, "mode", self.mode or usual_mode(self.channels))

    @property
    def format(self) -> PixelFormat:
        """The form in which files are read."""
        return PixelFormat(self.mode, self.depth, self.window)

    @property
    def facts(self) -> dict[str, object]:
        """Its fields by name, for hashes: the rule only where it is not "squash", as older encoders knew no other."""
        facts = asdict(self)
        return facts if self.rule != "squash" else {name: facts[name] for name in facts if name != "rule"}

    @property
    def key(self) -> str:
        """A short hash of all fields, equal for equal geometries: what is kept of this geometry is kept under it."""
        numbers = {
            k: [float(v) for v in values] for k, values in self.facts.items() if isinstance(values, list | tuple)
        }
        return hashlib.blake2b(json.dumps(self.facts | numbers).encode(), digest_size=8).hexdigest()

    def placements(self, height: int, width: int, stride: int = 1) -> list[Placement]:
        """Where the pixels of a file of this size go: one input, or under "tiles" as many as cover the file.

        stride: of the encoder; the sides of inputs are padded to a multiple of it, but for "squash", which never pads.
        Raises `ValueError` for a file without pixels.
        """
        if min(height, width) < 1:
            raise ValueError(f"a file of height {height} and width {width} has no pixels to place")
        return RULES[self.rule](height, width, self.size, stride)

    def to_unit(self, pixels: Tensor) -> Tensor:
        """Pixels of own depth to float32 in [0, 1], by the window. They stay as they are, and get gradients."""
        import torch

        low, high = self.window
        return pixels.to(torch.float32, copy=True).sub_(low).div_(high - low).clamp_(0.0, 1.0)

    def unit_of(self, pixels: np.ndarray) -> np.ndarray:
        """The same as `to_unit`, of an array."""
        low, high = self.window
        return np.asarray(((pixels.astype(np.float32) - low) / np.float32(high - low)).clip(0.0, 1.0))

    def normalise(self, unit: Tensor) -> Tensor:
        """[..., C, H, W] in [0, 1] to what the encoder takes."""
        mean, std = self._statistics(unit)
        return (unit - mean) / std

    def undo(self, images: Tensor) -> Tensor:
        """What `normalise` gave, back to [0, 1], for pictures."""
        mean, std = self._statistics(images)
        return (images * std + mean).clamp(0.0, 1.0)

    def to_input(self, pixels: np.ndarray) -> Tensor:
        """Pixels [B, H, W, C] of own depth to the normalised [B, C, H, W] float32 that the encoder takes."""
        import torch

        images = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
        return self.normalise(self.to_unit(images))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [C, 1, 1], on the device of `like`."""
        import torch

        mean, std = (torch.tensor(values, device=like.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std
