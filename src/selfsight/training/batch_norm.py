"""Batch norm over processes (being written)."""

from __future__ import annotations

from torch import nn


def synchronise(module: nn.Module) -> nn.Module:
    return module
