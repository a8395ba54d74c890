"""What the machine can do: memory that is used up told by type, threads that do not hang on noise."""

from __future__ import annotations

import pytest
import torch

from selfsight.machine import memory_errors, most_threads

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


@pytest.mark.parametrize(
    ("rates", "threads"),
    [
        ({1: 100.0, 2: 180.0}, 2),
        ({1: 100.0, 2: 95.0}, 2),  # which of them is ahead is noise
        ({1: 100.0, 2: 67.0}, 2),
        ({1: 100.0, 2: 66.0}, 1),
        ({1: 100.0, 2: 3.0}, 1),  # on a machine that something else keeps busy
        ({1: 90.0, 4: 100.0, 8: 70.0}, 8),
        ({1: 90.0, 4: 100.0, 8: 20.0}, 4),
    ],
)
def test_the_most_threads_unless_fewer_are_much_faster(rates: dict[int, float], threads: int):
    assert most_threads(rates) == threads
