"""A detector whose encoder is tuned, and one that learns from guesses: what inputs are seen, and what is learnt."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import write_cells
from helpers import tiny_encoder

from selfsight.data.boxed import Boxed, Truth
from selfsight.data.importers import open_source
from selfsight.data.labels import Labels
from selfsight.data.placements import Placement
from selfsight.heads.detect_fit import Piece
from selfsight.heads.detect_further import bounds, guessed_scenes, usual_budget
from selfsight.heads.detect_learnt import Held, Work, fitted, said_of, said_whole
from selfsight.heads.detect_modules import Detect, Readout
from selfsight.heads.detect_objects import Found
from selfsight.heads.detect_scenes import BoxScene, BoxSight
from selfsight.heads.detect_tuning import DetectTuning, seen, tuned_detector
from selfsight.training.loop import Stopped
from selfsight.training.recipe import Budget


def test_boxes_move_with_the_pixels_of_the_part_that_is_seen() -> None:
    """Pixels tell where they were, so the centre of a box does too; its area grows as the pixels do."""
    y, x = torch.meshgrid(torch.arange(96.0) + 0.5, torch.arange(128.0) + 0.5, indexing="ij")
    box = torch.tensor([[40.0, 30.0, 70.0, 50.0]])
    piece = Piece([torch.stack([x, y])], box, torch.tensor([3]), torch.empty(0, 4))
    mirrored, zooms = [], []
    for number in range(40):
        part = seen(piece, np.random.default_rng(number))
        pixels = part.levels[0]
        assert pixels.shape == (2, 96, 128)
        mirrored.append(bool(pixels[0, 0, 0] > pixels[0, 0, -1]))
        if not len(part.boxes) or (part.boxes <= 0).any() or (part.boxes >= torch.tensor([128, 96, 128, 96])).any():
            continue  # cut by the edge of the part
        x0, y0, x1, y1 = part.boxes[0].tolist()
        middle = pixels[:, int((y0 + y1) / 2), int((x0 + x1) / 2)]
        assert middle.tolist() == pytest.approx([55, 40], abs=1.0) and part.kinds.tolist() == [3]
        zooms.append((x1 - x0) / 30)
        assert (y1 - y0) / 20 == pytest.approx(zooms[-1], rel=0.02)
    assert 8 < sum(mirrored) < 32 and min(zooms) < 1.15 and max(zooms) > 1.3


def test_an_object_of_which_less_than_half_is_seen_is_unsure() -> None:
    whole = Piece([torch.zeros(1, 64, 64)], torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([0]), torch.empty(0, 4))
    states = set()
    for number in range(60):
        part = seen(whole, np.random.default_rng(number))
        assert len(part.boxes) + len(part.unsure) <= 1
        for edges in (*part.boxes, *part.unsure):
            assert (edges >= 0).all() and (edges <= 64).all()
        states.add((len(part.boxes), len(part.unsure)))
    assert states == {(1, 0), (0, 1), (0, 0)}


def found(*scores: float, kind: int = 0) -> Found:
    """Objects side by side, of these log-odds."""
    edges = np.array([[20.0 * n, 0.0, 20.0 * n + 10, 10.0] for n in range(len(scores))])
    return Found(edges, np.full(len(scores), kind), np.array(scores))


def test_bounds_are_where_guesses_are_seen_to_be_right() -> None:
    """Ten sure objects are right and two doubtful ones of ten: from 11 / 12 of the first on, not with the rest."""
    told = found(*np.linspace(9, 8, 10), *np.linspace(1, 0, 10))
    right = told.boxes[[*range(10), 14, 19]]
    held = Held(np.array([0]), [told], [Truth(right, np.zeros(12, int), np.zeros(12, bool))], np.zeros(1, int))
    calibrate, low, high = bounds(held, 2)
    sure = 1 / (1 + np.exp(-(calibrate.slope[0].item() * told.scores + calibrate.offset[0].item())))
    taken = sure >= high[0]
    assert taken[:10].all() and (told.scores[taken] >= 0).all()
    share = np.isin(np.arange(20), [*range(10), 14, 19])[taken]
    assert (share.sum() + 1) / (len(share) + 2) >= 0.8 and len(share) < 20
    assert (sure[[*range(10), 14, 19]] < low[0]).mean() <= 0.1
    assert np.isinf(high[1])  # of a class of which nothing was told, nothing is guessed


class Same(Readout):
    """Tells the same of every input: three objects, whose log-odds differ."""

    stride = 8

    def forward(self, levels: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        heat = torch.full((1, 1, 4, 8), -20.0)
        heat[0, 0, 1, 1], heat[0, 0, 1, 4], heat[0, 0, 1, 6] = 9.0, 0.5, -6.0
        return {"heat": heat, "edges": torch.full((1, 4, 4, 8), 5.0)}


def test_sure_objects_are_learnt_doubtful_ones_left_open_and_the_rest_is_background() -> None:
    told = found(*np.linspace(9, 8, 10), *np.linspace(1, 0, 10))
    right = told.boxes[[*range(10), 13, 19]]
    held = Held(np.array([0]), [told], [Truth(right, np.zeros(12, int), np.zeros(12, bool))], np.zeros(1, int))
    placement = Placement((32, 64), (0, 0, 64, 32), (32, 64), (32, 64))
    empty = Piece([torch.zeros(1, 4, 8)], torch.empty(0, 4), torch.empty(0, dtype=torch.int64), torch.empty(0, 4))
    [scene] = guessed_scenes(Detect(Same(), (0,), 10), [BoxScene(0, [placement], [empty], [])], held, 1)
    [piece] = scene.pieces
    assert piece.boxes.tolist() == [[7, 7, 17, 17]] and piece.kinds.tolist() == [0]
    assert piece.unsure.tolist() == [[31, 7, 41, 17]]


def test_the_usual_budget() -> None:
    assert [usual_budget(inputs).steps for inputs in (4, 100, 10_000)] == [100, 300, 1500]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("further")
    write_cells(folder, 6, 0)
    items = open_source(str(folder / "images"))
    boxed = Boxed.of(Labels.of(items, path=str(folder / "cells.json"), kind="boxes"))
    sight = BoxSight(tiny_encoder(64), 64, "fit")
    return Work(items, sight, sight.scenes(items, boxed, False, {}, ""), boxed, 0)


def test_a_tuning_that_was_stopped_ends_as_one_that_was_not(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr("selfsight.heads.detect_learnt.STEPS", (20, 20))
    net = fitted("centres", work, work.scenes, "").readout
    pieces = work.sight.inputs(work.items, work.boxed, "")
    assert sum(len(piece.boxes) for piece in pieces) == sum(len(s.pieces[0].boxes) for s in work.scenes)
    start = work.sight.encoder.digest

    def run(folder: Path | None) -> tuple[str, list[torch.Tensor]]:
        made, own = tuned_detector(work.sight, net, pieces, Budget(steps=8), 0, folder, "boxes", time.monotonic())
        return made.digest, list(own.state_dict().values())

    digest, weights = run(None)
    assert digest != start == work.sight.encoder.digest
    with monkeypatch.context() as patch:

        def stop(task: DetectTuning, progress: float) -> None:
            if task.step == 5:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(DetectTuning, "after_step", stop)
        with pytest.raises(Stopped):
            run(tmp_path / "tuning")
    again, other = run(tmp_path / "tuning")
    assert again == digest and all(torch.equal(one, two) for one, two in zip(weights, other, strict=True))


def test_all_of_a_held_out_picture_is_looked_at(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a part of the tiles is kept, those with objects come first, and figures of them alone would flatter."""
    sight = BoxSight(work.sight.encoder, 32, "tiles")
    some = work.boxed.take([0, 1])
    whole = Work(work.items, sight, sight.scenes(work.items, some, False, {}, ""), some, 0)
    monkeypatch.setattr("selfsight.heads.detect_learnt.STEPS", (20, 20))
    task = fitted("centres", whole, whole.scenes, "")
    monkeypatch.setattr("selfsight.heads.detect_scenes.KEPT", 4 * 2 * sight.bytes_of())
    part = Work(work.items, sight, sight.scenes(work.items, some, False, {}, ""), some, 0)
    for one, other in zip(whole.scenes, part.scenes, strict=True):
        assert one.whole and not other.whole and len(other.pieces) < len(one.pieces)
        told, again = said_of(task, one), said_whole(part, task, other)
        assert len(told.boxes) > 0
        for name in ("boxes", "kinds", "scores"):
            assert np.allclose(getattr(told, name), getattr(again, name), atol=1e-3)
