"""Online k-NN: known accuracies, at known moments, without touching what it watches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_encoder
from PIL import Image

from selfsight.data.importers import open_source
from selfsight.errors import SelfsightError
from selfsight.training.watch import online_knn


def labelled(folder: Path, told_apart: bool, count: int = 40) -> Path:
    """Two classes, dark and bright; or both of either kind at random."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("bright", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            mean = level if told_apart else rng.choice([40, 200])
            pixels = (mean + rng.normal(0, 5, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_accuracy_of_what_can_be_told_apart_and_of_what_cannot(tmp_path: Path):
    encoder = tiny_encoder(size=16)
    apart = online_knn(encoder, open_source(labelled(tmp_path / "apart", True)))(0.0, -1.0)
    mixed = online_knn(encoder, open_source(labelled(tmp_path / "mixed", False)))(0.0, -1.0)
    assert apart == {"knn": 1.0}
    assert 0.2 < mixed["knn"] < 0.8


def test_images_without_a_label_are_left_out(tmp_path: Path):
    folder = labelled(tmp_path / "apart", True, 4)
    for i in range(20):  # at the top, where no folder says what they are
        Image.fromarray(np.full((16, 16, 3), 12 * i, np.uint8)).save(folder / f"{i}.png")
    assert online_knn(tiny_encoder(size=16), open_source(folder))(0.0, -1.0) == {"knn": 1.0}


def test_it_measures_at_the_start_and_at_each_tenth_and_changes_nothing(tmp_path: Path):
    encoder = tiny_encoder(size=16).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    measure = online_knn(encoder, open_source(labelled(tmp_path / "apart", True, 4)))
    moments = [-1.0, 0.001, 0.05, 0.099, 0.1, 0.19, 0.35, 1.0]
    assert [bool(measure(b, a)) for a, b in pairwise(moments)] == [
        True, False, False, True, False, True, True,
    ]  # fmt: skip
    assert encoder.training
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_one_class_is_refused(tmp_path: Path):
    folder = labelled(tmp_path / "one", True, 4)
    for path in (folder / "dark").iterdir():
        path.unlink()
    with pytest.raises(SelfsightError, match="two classes"):
        online_knn(tiny_encoder(size=16), open_source(folder))
