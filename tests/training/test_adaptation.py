"""Starting from weights: what stands still stands still to the byte, rates, drift against slow references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import default_objective, make_batches, tiny_encoder, tiny_recipe, train, two_views, write_folder
from torch import Tensor

from selfsight.objectives.simclr import SimCLR
from selfsight.training.adaptation import Adaptation, Frozen, drift
from selfsight.training.measure import canvas_features, measure_normalisation
from selfsight.training.optimisers import learning_rate_factor, make_optimiser
from selfsight.training.pretraining import encoder_factor, groups_of, schedule


@pytest.fixture
def batches(tmp_path: Path):
    return make_batches(write_folder(tmp_path / "photos", 16), batch_size=8)


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


# -- the frozen part of a budget --


@pytest.mark.parametrize("optimiser", ["adamw", "muon", "sgd", "lars"])
@pytest.mark.parametrize("name", ["simclr", "byol", "dino", "rotation"])
def test_while_frozen_the_encoder_and_its_followers_stand_to_the_byte_and_heads_move(
    batches, tmp_path: Path, name: str, optimiser: str
):
    task = default_objective(name)
    before = state_of(task)
    encoders = [n for n, m in task.named_modules() if type(m).__name__ == "Encoder"]
    assert len(encoders) == (2 if name in ("byol", "dino") else 1)
    how = {
        "optimiser": optimiser,
        "freeze_fraction": 0.999,
        "encoder_lr_scale": 0.1,
        "batch_size": 8,
        "learning_rate": 0.01,
    }
    train(task, batches, tmp_path / "run", **how)
    moved = {k for k, v in task.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and not [k for k in moved if k.startswith(tuple(encoders))]


def test_behind_it_the_encoder_moves_and_its_statistics_too_unless_they_are_kept(batches, tmp_path: Path):
    for policy in ("batch", "kept"):
        task = SimCLR(tiny_encoder(), two_views(), hidden=16, width=8)
        before = state_of(task.encoder)
        train(
            task,
            batches,
            tmp_path / policy,
            freeze_fraction=0.4,
            encoder_lr_scale=0.5,
            batch_norm_policy=policy,
            batch_size=8,
        )
        moved = {k for k, v in task.encoder.state_dict().items() if not torch.equal(v, before[k])}
        assert {k for k in before if k.endswith("weight")} <= moved
        buffers = {k for k in before if "running" in k or "tracked" in k}
        assert buffers & moved == (buffers if policy == "batch" else set())


def test_the_optimiser_remembers_nothing_of_a_frozen_encoder(batches, tmp_path: Path):
    from selfsight.training.checkpoints import read_checkpoint

    task = SimCLR(tiny_encoder(), two_views(), hidden=16, width=8)
    _, run, _ = train(task, batches, tmp_path / "run", freeze_fraction=0.999, encoder_lr_scale=0.1, batch_size=8)
    _, _, tensors, _ = read_checkpoint(run.checkpoints)
    heads = {n: p for n, p in task.named_parameters() if not n.startswith("encoder.")}
    assert len({key.split(".")[0] for key in tensors}) == len(heads)
    assert not any(m.training for m in task.encoder.modules())


def test_modes_are_those_of_before_and_after(batches):
    task = default_objective("dino").train()
    frozen = Frozen(task.encoder, task, 0.5, keep_statistics=True)
    norms = [m for m in task.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    frozen.before(0.2)
    assert not task.encoder.training and not task.teacher.copies[0].training and task.head.training
    frozen.before(0.5)
    assert task.encoder.training and not any(norm.training for norm in norms)
    Frozen(task.encoder, task.train(), 0.0).before(0.0)
    assert all(module.training for module in task.modules())


@pytest.mark.parametrize(
    ("progress", "factor"),
    [
        (0.0, 0.0), (0.19, 0.0), (0.2, 0.0), (0.25, 0.5 * 0.1 * learning_rate_factor(0.25, 0.1)),
        (0.3, 0.1 * learning_rate_factor(0.3, 0.1)), (0.55, 0.1 * 0.5), (1.0, 0.0),
    ],
)  # fmt: skip
def test_the_encoders_rate_in_closed_form(progress: float, factor: float):
    recipe = tiny_recipe(two_views(), warmup=0.1, freeze_fraction=0.2, encoder_lr_scale=0.1)
    assert encoder_factor(progress, recipe) == pytest.approx(factor, abs=1e-12)


def test_without_a_frozen_part_the_encoder_has_its_share_of_the_schedule():
    recipe = tiny_recipe(two_views(), warmup=0.1, encoder_lr_scale=0.3)
    for progress in (0.0, 0.05, 0.1, 0.4, 1.0):
        assert encoder_factor(progress, recipe) == pytest.approx(0.3 * learning_rate_factor(progress, 0.1))


def test_groups_hold_each_weight_once_and_the_encoders_are_slower():
    task = SimCLR(tiny_encoder(), two_views(), hidden=8, width=8)
    recipe = tiny_recipe(
        task.views, learning_rate=2.0, weight_decay=0.3, warmup=0.1, freeze_fraction=0.2, encoder_lr_scale=0.1
    )
    optimiser = make_optimiser(groups_of(task, 0.3, encoder_apart=True), "adamw", 2.0)
    every = [p for g in optimiser.param_groups for p in g["params"]]
    assert {id(p) for p in every} == {id(p) for p in task.parameters()} and len(every) == len(set(map(id, every)))
    own = {id(p) for p in task.encoder.parameters()}
    for progress, slow in ((0.1, 0.0), (0.55, 0.1)):
        rate = schedule(optimiser, task, progress, recipe)
        for group in optimiser.param_groups:
            inside = {id(p) in own for p in group["params"]}
            assert inside == {group["encoder"]}
            assert group["lr"] == pytest.approx(rate * slow if group["encoder"] else rate)
            assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)


def test_one_process_without_weights_has_the_groups_it_always_had():
    task = SimCLR(tiny_encoder(), two_views(), hidden=8, width=8)
    groups = make_optimiser(groups_of(task, 0.1), "adamw", 1.0).param_groups
    assert [len(g["params"]) for g in groups] == [len(g["params"]) for g in task.parameter_groups(0.0)]


# -- drift --


def slow_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA by the unbiased HSIC, as the U-statistic over quadruples of different items that it is an estimate of
    (Song et al. 2012, theorem 2)."""
    from itertools import permutations

    def hsic(k: np.ndarray, h: np.ndarray) -> float:
        quads = list(permutations(range(len(k)), 4))
        return float(np.mean([k[i, j] * (h[i, j] + h[q, r] - 2 * h[i, q]) for i, j, q, r in quads]))

    k, h = x @ x.T, y @ y.T
    return hsic(k, h) / np.sqrt(hsic(k, k) * hsic(h, h))


def test_drift_equals_a_slow_reference():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 4)) + 3.0
    y = x @ rng.normal(size=(4, 6)) + 0.5 * rng.normal(size=(9, 6))
    assert drift(torch.tensor(x), torch.tensor(y)) == pytest.approx(1.0 - slow_cka(x, y), abs=1e-10)


def test_drift_is_nothing_where_features_are_turned_scaled_or_moved_as_a_whole():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 16, generator=generator)
    turn, _ = torch.linalg.qr(torch.randn(16, 16, generator=generator))
    assert drift(x, x) == pytest.approx(0.0, abs=1e-12)
    assert drift(x, 7.0 * x @ turn + 100.0) == pytest.approx(0.0, abs=1e-4)


def test_drift_is_all_where_features_have_nothing_in_common_however_wide():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(256, 2048, generator=generator) for _ in range(2))
    assert drift(x, y) > 0.95  # the plain estimate finds 0.11 here
    assert drift(x, torch.ones(256, 4)) == 1.0
    with pytest.raises(ValueError, match="four"):
        drift(x[:3], y[:3])


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 3.0])
def test_drift_by_noise_in_closed_form(noise: float):
    """Of white features with white noise |S_xy|^2 / (|S_xx| |S_yy|) is 1 / (1 + s^2)."""
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(1000, 16, generator=generator) for _ in range(2))
    assert drift(x, x + noise * other) == pytest.approx(noise**2 / (1 + noise**2), abs=0.02)


def test_an_adaptation_measures_and_changes_nothing(batches, tmp_path: Path):
    normalise = measure_normalisation(batches.canvases)
    start, encoder = tiny_encoder().eval(), tiny_encoder().train()
    adaptation = Adaptation(start, encoder, batches, normalise)
    before, random = state_of(encoder), torch.get_rng_state()
    assert adaptation.measure(0.01, -1.0) == {"drift": pytest.approx(0.0, abs=1e-9)}
    assert adaptation.measure(0.05, 0.01) == {} and "drift" in adaptation.measure(0.11, 0.05)
    assert encoder.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    other = Adaptation(start, tiny_encoder(seed=5), batches, normalise)
    assert other.measure(1.0, 0.9)["drift"] > 0.05
    features = canvas_features(start, batches, normalise, 256)
    assert torch.equal(features, other.reference) and len(features) == 16


def test_a_copy_that_follows_a_frozen_encoder_is_it_exactly(batches, tmp_path: Path):
    task = default_objective("byol")
    train(task, batches, tmp_path / "run", freeze_fraction=0.999, encoder_lr_scale=0.1, batch_size=8)
    follower = task.target.copies[0]
    for name, tensor in task.encoder.state_dict().items():
        assert torch.equal(follower.state_dict()[name], tensor)
