"""Photometric changes of a batch of views in [0, 1], each with its own strength.

Brightness, contrast, saturation and hue are one linear operation on RGB: saturation scales and hue
turns the chrominance plane of YIQ, brightness scales everything, contrast scales the distance from
the view's mean luminance. One matrix per view, one clamp at the end.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.views.plan import Colour

# FCC NTSC (1953) RGB to YIQ; the first row is the luminance of ITU-R BT.601.
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def jitter(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor | None = None, hue: Tensor | None = None
) -> Tensor:
    """`images` [B, C, H, W] after a linear colour change, clamped to [0, 1].

    brightness: factors, [B] for RGB, [B, C] otherwise.
    contrast: the same.
    saturation: factors [B]; RGB only.
    hue: [B] in turns; RGB only.
    """
    batch = len(images)
    flat = images.flatten(2)  # [B, C, P]
    if saturation is None or hue is None:
        gain = (brightness * contrast)[:, :, None]
        offset = (brightness * (1.0 - contrast))[:, :, None] * flat.mean(2, keepdim=True)
        return (flat * gain + offset).clamp_(0.0, 1.0).view_as(images)
    to_yiq = torch.tensor(RGB_TO_YIQ, device=images.device)
    turn = hue * (2.0 * math.pi)
    middle = images.new_zeros(batch, 3, 3)
    middle[:, 0, 0] = 1.0
    middle[:, 1, 1] = middle[:, 2, 2] = saturation * turn.cos()
    middle[:, 2, 1] = saturation * turn.sin()
    middle[:, 1, 2] = -middle[:, 2, 1]
    matrix = torch.linalg.inv(to_yiq) @ middle @ to_yiq * (brightness * contrast).view(-1, 1, 1)
    # A sum and not a matrix product, which rounds by the place in the batch.
    luminance = (flat.mean(2) * to_yiq[0]).sum(1)  # [B]: the mean is linear, so it comes before the change
    offset = brightness * (1.0 - contrast) * luminance
    return torch.baddbmm(offset.view(-1, 1, 1), matrix, flat).clamp_(0.0, 1.0).view_as(images)


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """`images` [B, C, H, W] after a Gaussian blur of `sigma` [B] pixels, with `radius` taps on each side of the middle
    and reflected edges."""
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (taps / sigma[:, None]).square())
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]  # [B, K, 1, 1, 1]
    height, width = images.shape[2:]
    padded = F.pad(images, (radius, radius, 0, 0), mode="reflect")
    images = sum(weights[:, k] * padded[:, :, :, k : k + width] for k in range(2 * radius + 1))  # type: ignore[assignment]
    padded = F.pad(images, (0, 0, radius, radius), mode="reflect")
    return sum(weights[:, k] * padded[:, :, k : k + height] for k in range(2 * radius + 1))  # type: ignore[return-value]


def solarise(images: Tensor, threshold: float = 0.5) -> Tensor:
    """`images` in [0, 1] with values at or above `threshold` inverted."""
    return torch.where(images >= threshold, 1.0 - images, images)


COLOUR_DRAWS = 9


def change_colour(images: Tensor, draws: np.ndarray, colour: Colour) -> Tensor:
    """`images` [B, C, H, W] in [0, 1] with the changes of `colour`, drawn by `draws` [B, 9 + 2 C], uniform in [0,
    1)."""
    channels, device = images.shape[1], images.device
    u = torch.as_tensor(draws, dtype=torch.float32, device=device)
    on = (u[:, 0] < colour.jitter).float()

    def factor(x: Tensor, strength: float) -> Tensor:
        gate = on if x.ndim == 1 else on[:, None]
        return 1.0 + gate * strength * (2.0 * x - 1.0)

    if channels == 3:
        saturation = factor(u[:, 3], colour.saturation) * (u[:, 5] >= colour.grey)
        hue = on * colour.hue * (2.0 * u[:, 4] - 1.0)
        images = jitter(images, factor(u[:, 1], colour.brightness), factor(u[:, 2], colour.contrast), saturation, hue)
    else:
        own = u[:, COLOUR_DRAWS:].view(len(u), 2, channels)
        images = jitter(images, factor(own[:, 0], colour.brightness), factor(own[:, 1], colour.contrast))
    blurred = np.flatnonzero(draws[:, 6] < colour.blur)
    if len(blurred):
        low, high = colour.blur_sigma
        index = torch.as_tensor(blurred, device=device)
        radius = min(math.ceil(2.0 * high), (min(images.shape[2:]) - 1) // 2)
        images[index] = gaussian_blur(images[index], low + (high - low) * u[index, 7], radius)
    inverted = np.flatnonzero(draws[:, 8] < colour.solarise)
    if len(inverted):
        index = torch.as_tensor(inverted, device=device)
        images[index] = solarise(images[index])
    return images
