"""Memory that is used up is told by type, whatever PyTorch raises."""

from __future__ import annotations

import pytest
import torch

from selfsight.machine import memory_errors

MORE_THAN_ANY = 2**50  # numbers: more than a processor of 64 bits can address


def test_memory_that_there_is_not_is_a_memory_error():
    with pytest.raises(MemoryError, match=str(4 * MORE_THAN_ANY)) as told, memory_errors():
        torch.empty(MORE_THAN_ANY)
    assert type(told.value.__cause__) is RuntimeError  # which says so in its text only
    with pytest.raises(MemoryError), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="size"), memory_errors():
        torch.ones(2) + torch.ones(3)
    with pytest.raises(RuntimeError, match="illegal"), memory_errors():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
