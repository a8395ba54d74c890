"""The parts of an inspection against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import mahalanobis

from selfsight.heads.coreset import k_centre
from selfsight.heads.inspect import auroc, limits, p_values
from selfsight.heads.inspect_modules import (
    Conformal,
    Gaussian,
    Patches,
    PatchMemory,
    chosen_levels,
    on_grid,
    smoothed,
)
from selfsight.heads.normality import SHRINK, Gaussians, Look, Memories, judged, likelihood


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("strides", "chosen"),
    [((2, 4, 8, 16, 32), (2, 3)), ((4, 8, 16, 32), (1, 2)), ((16,) * 4, (1, 2)), ((4, 32), (0, 1)), ((16,), (0,))],
)
def test_the_levels_nearest_to_strides_8_and_16(strides: tuple[int, ...], chosen: tuple[int, ...]) -> None:
    assert chosen_levels(strides) == chosen


def test_patches_are_local_means_of_all_levels_with_zeros_around() -> None:
    fine, coarse = some(1, 3, 6, 8), some(1, 2, 3, 4, seed=1)
    found = Patches((0, 1), torch.tensor([2.0, 4.0]))([fine, coarse])
    assert found.shape == (1, 5, 6, 8)
    y, x = 2, 0  # at the left edge two columns are there, of three
    mean = np.array([fine[0, c, 1:4, 0:2].numpy().sum() / 9 for c in range(3)]) / 2.0
    local = np.zeros((2, 3, 4))
    for c in range(2):
        for i in range(3):
            for j in range(4):
                local[c, i, j] = coarse[0, c, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].numpy().sum() / 9 / 4.0
    above = (y + 0.5) / 2 - 0.5  # between the rows 0 and 1 of the coarse map; left of its first centre
    rest = (1 - above) * local[:, 0, 0] + above * local[:, 1, 0]
    assert found[0, :, y, x].numpy() == pytest.approx(np.concatenate([mean, rest]), abs=1e-5)


def test_the_score_is_equation_7_of_the_paper() -> None:
    bank, patches = some(30, 5), some(2, 5, 3, 4, seed=1)
    counts = torch.ones(2, 3, 4, dtype=torch.bool)
    counts[1, 0] = False
    far, score = PatchMemory(bank)(patches, counts)
    for b in range(2):
        best = (-1.0, None)
        for y in range(3):
            for x in range(4):
                to_all = [float(torch.dist(patches[b, :, y, x], m)) for m in bank]
                assert float(far[b, y, x]) == pytest.approx(min(to_all), abs=1e-4)
                if counts[b, y, x] and min(to_all) > best[0]:
                    best = (min(to_all), (patches[b, :, y, x], bank[int(np.argmin(to_all))]))
        star, (patch, near) = best[0], best[1]
        nine = sorted(bank, key=lambda m: float(torch.dist(near, m)))[:9]
        weight = 1 - np.exp(star) / sum(np.exp(float(torch.dist(patch, m))) for m in nine)
        assert float(score[b]) == pytest.approx(weight * star, abs=1e-4)


def test_a_memory_of_one_patch_scores_its_distance() -> None:
    far, score = PatchMemory(torch.zeros(1, 2))(torch.tensor([[[[3.0]], [[4.0]]]]), torch.ones(1, 1, 1, dtype=bool))
    assert float(far) == pytest.approx(5.0) and float(score) == pytest.approx(5.0)


def test_k_centre_takes_the_farthest_each_time() -> None:
    rows = some(60, 3)
    chosen = k_centre(rows, 12, seed=3)
    for number in range(1, 12):  # the slow way
        nearest = [min(float(torch.dist(row, rows[c])) for c in chosen[:number]) for row in rows]
        assert nearest[chosen[number]] == pytest.approx(max(nearest), abs=1e-4)
    assert len(set(chosen)) == 12
    copies = k_centre(torch.ones(5, 3), 5)
    assert sorted(copies) == [0, 1, 2, 3, 4]
    assert len(k_centre(rows, 100)) == 60


def test_k_centre_covers_what_is_wide_in_a_projection() -> None:
    rows = torch.zeros(200, 300)
    rows[:190] = 0.01 * some(190, 300)
    rows[190:] = 5.0 * torch.eye(300)[:10]  # ten far corners, and one heap
    chosen = set(k_centre(rows, 11).tolist())
    assert chosen >= set(range(190, 200))


def looks(count: int, seed: int, shape: tuple[int, int, int] = (4, 3, 5)) -> list[list[Look]]:
    looked = torch.ones(8 * shape[1], 8 * shape[2], dtype=torch.bool)
    return [[Look(some(*shape, seed=seed + i).half(), looked)] for i in range(count)]


@pytest.mark.parametrize("placed", [False, True])
def test_a_gaussian_without_a_fold_is_one_that_never_saw_it(placed: bool) -> None:
    parts, folds = looks(12, 0), [i % 3 for i in range(12)]
    model, fresh = Gaussians(3, 0, placed), Gaussians(1, 0, placed)
    for i, (part, fold) in enumerate(zip(parts, folds, strict=True)):
        model.add(part, fold, i)
        if fold != 1:
            fresh.add(part, 0, i)
    one, two = model.scorer(without=1), fresh.scorer()
    for name in ("mean", "whiten"):
        assert getattr(one, name).numpy() == pytest.approx(getattr(two, name).numpy(), abs=1e-5)
    values = np.stack([part[0].patches.float().numpy() for part, fold in zip(parts, folds, strict=True) if fold != 1])
    if placed:
        mean = values.mean(0)
        off = (values - mean).transpose(1, 0, 2, 3).reshape(4, -1)
        covariance = off @ off.T / (off.shape[1] - 15)
    else:
        flat = values.transpose(1, 0, 2, 3).reshape(4, -1)
        mean, covariance = flat.mean(1)[:, None, None] + np.zeros((4, 3, 5)), np.cov(flat)
    covariance += SHRINK * np.trace(covariance) / 4 * np.eye(4)
    far, score = one(parts[1][0].patches[None].float(), parts[1][0].counts[None])
    inverse = np.linalg.inv(covariance)
    for y in range(3):
        for x in range(5):
            slow = mahalanobis(parts[1][0].patches[:, y, x].float().numpy(), mean[:, y, x], inverse)
            assert float(far[0, y, x]) == pytest.approx(slow, rel=1e-3)
    assert float(score) == pytest.approx(float(far.max()))


def test_a_mean_for_each_place_is_taken_where_places_differ() -> None:
    at = some(4, 3, 5, seed=99)  # what is normal depends on the place
    same, differing = looks(12, 0), []
    for i, [look] in enumerate(looks(12, 50)):
        differing.append([look._replace(patches=(3 * at + 0.3 * some(4, 3, 5, seed=i)).half())])
    better = []
    for parts in (same, differing):
        found = {}
        for placed in (False, True):
            model = Gaussians(3, 0, placed)
            for i, part in enumerate(parts):
                model.add(part, i % 3, i)
            found[placed] = likelihood(model, iter([(i % 3, part) for i, part in enumerate(parts)]))
        better.append(found[True] > found[False])
    assert better == [False, True]


def test_a_memory_without_a_fold_holds_nothing_of_it() -> None:
    parts = looks(9, 0)
    memory = Memories(3, 9, 0, size=60)
    for i, part in enumerate(parts):
        memory.add(part, i % 3, i)
    memory.done()
    of_fold = torch.cat([parts[i][0].patches.flatten(1).T for i in (1, 4, 7)]).float()
    whole, without = memory.scorer().bank, memory.scorer(1).bank
    shared = (torch.cdist(whole, of_fold) == 0).any(1)
    assert shared.any() and not (torch.cdist(without, of_fold) == 0).any()
    assert len(whole) == len(without) == 13  # a tenth of 9 x 15, chosen anew
    assert judged(memory.scorer(1), parts[1])[0] > judged(memory.scorer(), parts[1])[0]


def test_a_memory_covers_what_one_choice_from_all_would() -> None:
    clusters = [some(4, 1, 1, seed=900 + i) * 4 for i in range(12)]  # each in patches of one part alone, and once
    parts = looks(12, 0, (4, 6, 6))
    for part, cluster in zip(parts, clusters, strict=True):
        part[0].patches[:, 2:3, 3:4] = cluster.half()
    memory = Memories(4, 12, 0)
    for i, part in enumerate(parts):
        memory.add(part, i % 4, i)
    memory.done()
    every = torch.cat([part[0].patches.flatten(1).T for part in parts]).float()
    bank = memory.scorer().bank
    best = every[torch.from_numpy(k_centre(every, len(bank)))]
    reach, aim = (torch.cdist(every, rows).amin(1).amax() for rows in (bank, best))
    assert len(bank) == 43 and reach < 1.2 * aim
    assert torch.cdist(torch.cat([c.flatten(1).T for c in clusters]), bank).amin(1).amax() < reach + 1e-3


def test_maps_are_smoothed_by_a_gaussian_of_sigma_4() -> None:
    far = some(1, 6, 8).abs()
    everywhere = torch.ones(1, 48, 64, dtype=torch.bool)
    found = smoothed(far, everywhere)[0].numpy()
    full = torch.nn.functional.interpolate(far[:, None], (48, 64), mode="bilinear")[0, 0].numpy()
    slow = gaussian_filter(full, 4.0, mode="constant", truncate=4.0)
    slow /= gaussian_filter(np.ones_like(full), 4.0, mode="constant", truncate=4.0)
    assert found == pytest.approx(slow, abs=1e-4)
    half = everywhere.clone()
    half[:, :, 32:] = False
    limited = smoothed(far, half)[0].numpy()
    assert (limited[:, 32:] == 0).all()
    changed = far.clone()
    changed[:, :, 5:] += 100.0  # where nothing is looked at, and away from what is interpolated with it
    assert smoothed(changed, half)[0].numpy() == pytest.approx(limited, abs=1e-3)


def test_cells_count_by_half_of_their_pixels() -> None:
    looked = torch.zeros(1, 16, 16, dtype=torch.bool)
    looked[0, :8, :4] = True  # half of a cell
    looked[0, 8:, 8:11] = True  # less
    assert on_grid(looked, (2, 2))[0].tolist() == [[True, False], [False, False]]
    looked[0, :8] = False
    assert on_grid(looked, (2, 2))[0].tolist() == [[False, False], [False, True]]


def test_p_values_and_limits_by_hand() -> None:
    held = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    assert p_values(held, np.array([0.05, 0.2, 0.35, 0.4, 0.5])).tolist() == [1.0, 0.8, 0.4, 0.4, 0.2]
    module = Conformal(torch.from_numpy(held), torch.tensor(0.4), torch.tensor(1.0))
    told = module({"score": torch.tensor([0.05, 0.35, 0.5]), "map": torch.tensor([[[0.9, 1.0]]])})
    assert told["p"].tolist() == pytest.approx([1.0, 0.4, 0.2]) and told["defect"].tolist() == [False, True, True]
    assert told["mask"].tolist() == [[[False, True]]]
    notes: list[str] = []
    rate, threshold = limits(held, 10 * held, 0.4, notes)  # of 5 places, the third: 3 / 5 lie at or below it
    assert rate == 0.4 and threshold == pytest.approx(3.0) and threshold > 10 * held[2] and not notes
    rate, threshold = limits(held, 10 * held, 0.05, notes)
    assert rate == pytest.approx(0.2) and threshold > 4.0
    assert "4 good parts are too few to promise 5 % of false alarms: 19 or more" in notes[0]


def test_promised_rates_hold_for_parts_like_the_held_out_ones() -> None:
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(400):
        scores = rng.gamma(2.0, size=60)
        alarms.append((p_values(scores[:40], scores[40:]) <= 0.1).mean())
    assert 0.08 <= np.mean(alarms) <= 0.1 + 0.01  # floor(0.1 * 41) / 41 = 0.098 in expectation


def test_auroc_by_hand() -> None:
    assert auroc(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0])) == pytest.approx((1 + 0.5 + 3) / 6)


def test_a_gaussian_is_differentiable_and_finite_at_its_mean() -> None:
    patches = torch.zeros(1, 3, 2, 2, requires_grad=True)
    scorer = Gaussian(torch.arange(3), torch.zeros(3, 1, 1), torch.eye(3))
    _, score = scorer(patches, torch.ones(1, 2, 2, dtype=torch.bool))
    [gradient] = torch.autograd.grad(score.sum(), patches)
    assert torch.isfinite(gradient).all()
