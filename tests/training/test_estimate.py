"""Memory counted on a few images holds for the whole batch, and what does not fit is refused with what does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import make_batches, tiny_encoder, tiny_recipe, two_views
from torch import nn

from selfsight.data.batches import Batches
from selfsight.errors import SelfsightError
from selfsight.objectives.objective import Loss, Objective
from selfsight.objectives.simclr import SimCLR
from selfsight.training.estimate import MARGIN, Memory, _first, _saved_bytes, check_memory, memory_of, memory_told
from selfsight.training.measure import measure_normalisation
from selfsight.views.make import View, make_views


class Linear(Objective):
    """One layer after another on the pixels of the first view: what it keeps can be counted by hand."""

    def __init__(self) -> None:
        super().__init__(tiny_encoder(), two_views())
        self.first, self.second = nn.Linear(3 * 16 * 16, 50, bias=False), nn.Linear(50, 1, bias=False)

    def forward(self, views: list[View], progress: float) -> Loss:
        pixels = views[0].pixels.flatten(1) + 0.0  # a tensor of its own
        total = self.second(self.first(pixels)).sum()
        return Loss(total, {}, pixels.detach()[None])


@pytest.fixture
def batches(images: Callable[..., Path]) -> Batches:
    return make_batches(images(40), batch_size=32)


def test_what_is_kept_is_counted_to_the_byte(batches: Batches):
    normalise, recipe = measure_normalisation(batches.canvases), tiny_recipe(two_views())
    views = 2 * 8 * 3 * 16 * 16 * 4
    own = 8 * (3 * 16 * 16 + 50) * 4  # the input of each layer; its weights are the module's anyway
    assert _saved_bytes(Linear(), _first(batches, 8), normalise, recipe, "cpu") == views + own


def test_a_few_items_tell_of_many(batches: Batches):
    normalise, recipe = measure_normalisation(batches.canvases), tiny_recipe(two_views(), batch_size=32)
    task = SimCLR(tiny_encoder(), two_views(), hidden=16, width=8)
    before = {k: v.clone() for k, v in task.state_dict().items()}
    state = torch.get_rng_state()
    memory = memory_of(task, batches, normalise, recipe, "cpu")
    assert all(torch.equal(v, before[k]) for k, v in task.state_dict().items())  # measuring is not training
    assert torch.equal(torch.get_rng_state(), state)
    kept = _saved_bytes(task, _first(batches, 32), normalise, recipe, "cpu")
    assert memory.needed(32) - memory.state == pytest.approx(MARGIN * kept, rel=0.01)
    assert memory.state == 4 * 4 * sum(p.numel() for p in task.parameters())
    assert make_views(_first(batches, 4), two_views(), normalise, 0)  # and the batches are as they were


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does():
    memory = Memory(state=0, curve=(1e6 / MARGIN, 0.0), free=100_000_000)  # a megabyte an item, nine tenths of 100
    assert [memory.needed(n) for n in (1, 50)] == [pytest.approx(1e6, abs=1), pytest.approx(5e7, abs=1)]
    assert memory.largest_batch() == 88
    recipe = tiny_recipe(two_views(), batch_size=256)
    with pytest.raises(
        SelfsightError, match=r"256 items needs about 0\.3 GB .* 0\.1 GB are free\. Give --batch-size 88"
    ):
        check_memory(memory, recipe)
    check_memory(memory, tiny_recipe(two_views(), batch_size=88))
    with pytest.raises(SelfsightError, match="smaller --encoder"):
        check_memory(Memory(10**9, (1.0, 0.0), 10**8), tiny_recipe(two_views(), batch_size=2))


def test_a_step_that_does_run_out_of_memory_names_a_batch_that_fits():
    memory, recipe = Memory(0, (1e6 / MARGIN, 0.0), 100_000_000), tiny_recipe(two_views(), batch_size=256)
    with pytest.raises(SelfsightError, match=r"^Out of memory\. .* Give --batch-size 88"), memory_told(memory, recipe):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="size"), memory_told(memory, recipe):
        torch.ones(2) + torch.ones(3)
