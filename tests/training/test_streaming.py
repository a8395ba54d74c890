"""Streaming is resident training with the decoding elsewhere: the same weights, whatever cannot be read."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import garble, make_canvases, tiny_encoder, train, two_views, write_folder

from selfsight.data.batches import Batches
from selfsight.data.importers import open_source
from selfsight.objectives.simclr import SimCLR
from selfsight.training.recipe import Budget


def test_streamed_and_resident_weights_are_equal_after_50_steps(tmp_path: Path):
    folder = write_folder(tmp_path / "photos", 13, size=(40, 52))
    write_folder(folder / "large", 8, size=(90, 70), seed=1, suffix="jpg")  # decoded at a reduced scale
    for name in ("004.png", "008.png"):
        garble(folder / name)
    collection = open_source(folder)
    weights = []
    for held in ("resident", "stream"):
        batches = Batches(make_canvases(collection, 24, held), 4, 0)
        task = SimCLR(tiny_encoder(), two_views(), hidden=8, width=8)
        steps, _, _ = train(task, batches, tmp_path / held, budget=Budget(steps=50))
        assert steps == 50 and len(batches.canvases.set_aside) == 2
        weights.append(task.state_dict())
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
