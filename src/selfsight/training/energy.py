"""Energy (being written)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any


class Energy(nullcontext[Any]):
    def __init__(self, run: Any, asked: bool = False) -> None:
        super().__init__()
