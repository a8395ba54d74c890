"""Several processes that train one run, as torchrun or Accelerate's launcher starts them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object

from selfsight.machine import best_device

WAIT = timedelta(hours=24)  # for the main process, which may decode for long before the others have anything to do


def start_processes() -> Accelerator:
    """The processes there are: one, unless a launcher said otherwise."""
    # The precision is the loop's: Accelerate's is for a whole Python process and cannot change for a second run.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    handlers: list[Any] | None = [InitProcessGroupKwargs(timeout=WAIT)] if several else None
    # Accelerate joins processes on a CPU only if it is told to use it.
    return Accelerator(mixed_precision="no", cpu=several and best_device() == "cpu", kwargs_handlers=handlers)


def gathered(here: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """The entries of all processes' dictionaries."""
    if accelerator.num_processes == 1:
        return here
    return {k: v for part in gather_object([here]) for k, v in part.items()}
