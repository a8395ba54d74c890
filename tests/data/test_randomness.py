"""Draws are SplitMix64, uniform, and independent of everything but (seed, epoch, item, purpose)."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from selfsight.data.randomness import item_keys, uniform

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15
CONSTANTS = [0.7895469410419341, 0.30319931688175394]


def mix(x: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014, figure 16), in Python integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slow_uniform(seed: int, epoch: int, key: int, purpose: str, n: int) -> list[float]:
    stream = int.from_bytes(hashlib.blake2b(f"{seed} {epoch} {purpose}".encode(), digest_size=8).digest(), "little")
    base = mix(mix((key + GAMMA) & MASK) ^ stream)
    return [(mix((base + j * GAMMA) & MASK) >> 11) / 2**53 for j in range(1, n + 1)]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1])


def test_the_reference_of_this_file_is_splitmix64():
    # The first outputs for seed 1234567, as published with the generator's reference implementations.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [mix((1234567 + j * GAMMA) & MASK) for j in range(1, 5)] == published


@pytest.mark.parametrize("seed, epoch, purpose", [(0, 0, "order"), (7, 3, "colour 0 1"), (-1, 10**9, "")])
def test_uniform_equals_python_integers(seed: int, epoch: int, purpose: str):
    keys = np.array([0, 1, 2**63, MASK, 0x0123456789ABCDEF], dtype=np.uint64)
    expected = [slow_uniform(seed, epoch, int(key), purpose, 6) for key in keys]
    assert uniform(seed, epoch, keys, purpose, 6).tolist() == expected  # to the bit


def test_uniform_keeps_its_constants():
    # Written down from `slow_uniform`: a changed generator would silently change every resumed run.
    keys = np.array([0x0123456789ABCDEF], dtype=np.uint64)
    assert uniform(1, 2, keys, "geometry 0 0", 2)[0].tolist() == CONSTANTS


def test_item_keys_are_the_first_64_bits_of_the_id():
    ids = ["0123456789abcdef" + "f" * 16, "f" * 32]
    assert item_keys(ids).tolist() == [0x0123456789ABCDEF, MASK]


def test_uniformity_chi_square_on_consecutive_keys():
    # Consecutive keys are the hardest input for a hash; a million draws in 256 bins.
    draws = uniform(0, 0, np.arange(125_000, dtype=np.uint64), "x", 8)
    assert draws.min() >= 0.0 and draws.max() < 1.0
    count = draws.size
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / count)
    assert abs(draws.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / count)
    seen = np.histogram(draws, 256, (0, 1))[0]
    chi2 = ((seen - count / 256) ** 2 / (count / 256)).sum()
    assert 255 - 5 * np.sqrt(510) < chi2 < 255 + 5 * np.sqrt(510)  # too even would be wrong as well


def test_pairs_of_draws_fill_the_square():
    a, b = uniform(0, 0, np.arange(500_000, dtype=np.uint64), "x", 2).T
    seen = np.histogram2d(a, b, 16, ((0, 1), (0, 1)))[0]
    chi2 = ((seen - 500_000 / 256) ** 2 / (500_000 / 256)).sum()
    assert 255 - 5 * np.sqrt(510) < chi2 < 255 + 5 * np.sqrt(510)


def test_items_columns_purposes_epochs_seeds_are_independent():
    keys = np.arange(50_000, dtype=np.uint64)
    one = uniform(0, 0, keys, "geometry 0 0", 4)
    bound = 5 / np.sqrt(one.size)
    assert abs(correlation(one[:-1], one[1:])) < bound  # neighbouring items
    assert abs(correlation(one[:, 0], one[:, 1])) < 2 * bound  # neighbouring draws
    assert abs(correlation(one[:-1, 1], one[1:, 0])) < 2 * bound  # a draw and the next item's earlier one
    for other in [(0, 0, "geometry 0 1"), (0, 0, "colour 0 0"), (0, 1, "geometry 0 0"), (1, 0, "geometry 0 0")]:
        assert abs(correlation(one, uniform(*other[:2], keys, other[2], 4))) < bound, other


def test_seed_and_epoch_do_not_stand_in_for_each_other():
    keys = np.arange(8, dtype=np.uint64)
    assert (uniform(1, 0, keys, "x", 1) != uniform(0, 1, keys, "x", 1)).all()
    assert (uniform(1, 11, keys, "x", 1) != uniform(11, 1, keys, "x", 1)).all()


def test_a_draw_is_the_same_in_any_batch_and_of_any_length():
    keys = np.arange(100, dtype=np.uint64)
    whole = uniform(5, 6, keys, "x", 10)
    shuffled = np.random.default_rng(0).permutation(100)
    assert (uniform(5, 6, keys[shuffled], "x", 10) == whole[shuffled]).all()
    assert (uniform(5, 6, keys[42:43], "x", 3) == whole[42:43, :3]).all()
