"""A way around a convolution of oneDNN that leaves its weight gradient unwritten."""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def with_written_gradients(net: nn.Module) -> nn.Module:
    """Make every strided, padded convolution of `net` pad a map of one pixel itself, in bfloat16 on a CPU.

    There the weight gradient of oneDNN (3.12, in torch 2.14) is memory that nobody wrote: not finite, or finite and
    wrong. A ResNet of stride 32 with views of 16 px meets it. Only `forward` changes: parameters and names stay.
    """
    for conv in net.modules():
        if type(conv) is nn.Conv2d and max(conv.stride) > 1 and conv.padding_mode == "zeros":
            conv.forward = MethodType(_forward, conv)  # type: ignore[method-assign]
    return net


def _forward(conv: nn.Conv2d, x: Tensor) -> Tensor:
    low = torch.is_autocast_enabled("cpu") or x.dtype == torch.bfloat16
    if x.shape[-2:] != (1, 1) or x.device.type != "cpu" or not low or isinstance(conv.padding, str):
        return nn.Conv2d.forward(conv, x)
    height, width = conv.padding
    padded = F.pad(x, (width, width, height, height))
    return F.conv2d(padded, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
