"""Geometry: the way from a file's pixels to an encoder's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfsight.data.formats.format import usual_mode
from selfsight.data.pixels import PixelFormat


@dataclass(frozen=True)
class Geometry:
    """How a file becomes an encoder's input.

    channels: of the input. size: pixels a side of the input. window: the intensities that become 0 and 1. mean, std: of
    each channel, by which [0, 1] is then normalised. depth, mode: the form in which files are read, see `PixelFormat`;
    without a mode it is the usual one of that many channels.
    """

    channels: int
    size: int
    window: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    depth: int = 8
    mode: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", self.mode or usual_mode(self.channels))

    @property
    def format(self) -> PixelFormat:
        """The form in which files are read."""
        return PixelFormat(self.mode, self.depth, self.window)

    def to_unit(self, pixels: Tensor) -> Tensor:
        """Pixels of own depth to float32 in [0, 1], by the window."""
        low, high = self.window
        return pixels.float().sub_(low).div_(high - low).clamp_(0.0, 1.0)

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
        images = torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)
        return self.normalise(self.to_unit(images))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [C, 1, 1], on the device of `like`."""
        mean, std = (torch.tensor(values, device=like.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std
