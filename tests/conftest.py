"""Every test has a cache folder of its own, one thread, and leaves no global state behind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_folder

# A shell starts what runs in its background with SIGINT ignored, and so would be what the tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that SELFSIGHT_CACHE names: no test reads what another test left, nor the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SELFSIGHT_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    """Accelerate and torch hold global state that a training sets; the next test starts without."""
    from accelerate.state import AcceleratorState

    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., Path]:
    """Maker of small image folders: images(count, name=..., size=(h, w), channels=..., seed=..., suffix=...)."""

    def make(count: int, name: str = "photos", **how: Any) -> Path:
        return write_folder(tmp_path / name, count, **how)

    return make
